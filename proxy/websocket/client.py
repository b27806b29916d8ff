"""
A way out through a WebSocket proxy: websocket-client does the opening handshake.

It speaks through a ``_Mouthpiece``: the answer's head is read in few system calls, bounded and
strictly parsed, and only what the library has to check of it is passed on. An answer that is not
101 ends there, so that no body is read, no redirect followed, and no cookie kept.
"""

from socket import socket
from typing import Any, cast

from websocket import WebSocketException

# Not WebSocket.connect: it makes an object for a data path that we do not use, ten more in it, and all
# of them refer to one another.
from websocket._handshake import handshake

from proxy.address import UNKNOWN, Address, without_query
from proxy.client import Connected, UpstreamClient
from proxy.config import ClientConfig
from proxy.errors import DialError, ProtocolError, ProxyError, reason_of
from proxy.net.channel import Channel
from proxy.net.deadline import Deadline
from proxy.net.tls import client_context, connect_tls
from proxy.websocket.headers import (
    BOUND,
    HALF_CLOSE,
    PASSWORD,
    TARGET_HOST,
    TARGET_PORT,
    USERNAME,
    HeadBuffer,
    ResponseHead,
    parse_response,
)
from proxy.websocket.refusals import failure_reported
from proxy.websocket.stream import WebSocketStream

_CHECKED = ("Upgrade", "Connection")  # by the library, like Sec-WebSocket-Accept
_UNWANTED = ("Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol")  # we asked for none


class WebSocketClient(UpstreamClient):
    """Reaches targets through a WebSocket proxy, which also resolves their names."""

    def __init__(self, config: ClientConfig, name: str = "") -> None:
        self._endpoint = config.endpoint
        self._ping_interval = config.ping_interval
        secure = self._endpoint.scheme == "wss"
        self._tls = client_context(config.tls_ca, verify=config.tls_verify) if secure else None
        super().__init__(config, name or without_query(str(self._endpoint)))

    def dial(self, target: Address, deadline: Deadline) -> Connected:
        """Connect through the proxy; raises ``DialError`` and ``UpstreamError``."""
        channel = Channel(self.dial_proxy(self._endpoint.address, deadline))
        try:
            answer = self._open(channel, target, deadline)
        except BaseException:
            channel.abort()
            raise
        stream = WebSocketStream(
            channel.stream(),
            server=False,
            half_close=answer.headers.get_all(HALF_CLOSE) == ["1"],
            ping_interval=self._ping_interval,
        )
        # Of a target that is known by name only, our own kind does not tell the bound address.
        confirmed = any(answer.headers.get_all(name) for name in (BOUND, HALF_CLOSE))
        return Connected(stream, _bound(answer), self.name, confirmed)

    def _open(self, channel: Channel, target: Address, deadline: Deadline) -> ResponseHead:
        try:
            with deadline.limit("WebSocket handshake"):
                if self._tls:
                    channel.sock = connect_tls(channel.sock, self._tls, self._endpoint.server_name)
                return self._upgrade(channel, target)
        except _NotSwitchedError as exc:
            raise self._refusal(exc.answer, target) from exc
        except ProtocolError as exc:
            raise self.blame(str(exc)) from exc
        except WebSocketException as exc:
            raise self.blame("its answer is no WebSocket handshake") from exc
        except EOFError as exc:
            raise self.blame("it closed the connection during the handshake") from exc
        except OSError as exc:
            raise self.blame(reason_of(exc), exc) from exc

    def _upgrade(self, channel: Channel, target: Address) -> ResponseHead:
        mouthpiece = _Mouthpiece(channel)
        handshake(
            cast(socket, mouthpiece),
            str(self._endpoint),
            self._endpoint.server_name,
            self._endpoint.port,
            self._endpoint.path,
            header=self._headers(target),
            suppress_origin=True,
        )
        answer = mouthpiece.answer
        assert answer is not None
        if any(answer.headers.get_all(name) for name in _UNWANTED):
            raise ProtocolError("it switched to an extension or subprotocol that was not asked for")
        return answer

    def _headers(self, target: Address) -> list[str]:
        headers = [
            f"{TARGET_HOST}: {target.host}",
            f"{TARGET_PORT}: {target.port}",
            f"{HALF_CLOSE}: 1",
        ]
        if self.credentials:
            username, password = (part.decode() for part in self.credentials)
            headers += [f"{USERNAME}: {username}", f"{PASSWORD}: {password}"]
        return headers

    def _refusal(self, answer: ResponseHead, target: Address) -> ProxyError:
        failure, at_fault = failure_reported(answer)
        if not at_fault:
            return DialError(f"{target} through upstream {self.name}: {failure.value}", failure)
        if answer.status in (401, 407):
            return self.blame("refused our credentials", transient=False)
        error = self.blame(f"answered {answer.status}", transient=answer.status >= 500)
        error.failure = failure
        return error


def _bound(answer: ResponseHead) -> Address:
    host, _, port = (answer.headers.get(BOUND) or "").rpartition(":")
    try:
        return Address(host.removeprefix("[").removesuffix("]"), int(port))
    except ValueError:
        return UNKNOWN  # of another make: it does not tell


class _NotSwitchedError(Exception):
    """The answer is not 101."""

    def __init__(self, answer: ResponseHead) -> None:
        super().__init__(f"status {answer.status}")
        self.answer = answer


class _Mouthpiece:
    """The socket that websocket-client writes to and reads from, over our channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._for_library = b""
        self.answer: ResponseHead | None = None
        self.send = channel.send

    def recv(self, count: int) -> bytes:
        """Give the library what it has to check of the answer."""
        if self.answer is None:
            self.answer = self._read_answer()
            if self.answer.status != 101:
                raise _NotSwitchedError(self.answer)
            self._for_library = _excerpt(self.answer)
        # It asks for one byte after the other up to the end of a line, 130 times in all, and joins
        # what it gets: so it gets the line, and then the end of it.
        line, end, rest = self._for_library.partition(b"\n")
        self._for_library = end + rest if line else rest
        return line or end

    def _read_answer(self) -> ResponseHead:
        buffer = HeadBuffer(request=False)
        while not buffer.feed(data := self._channel.recv(4096)):
            if not data:
                raise EOFError("the peer closed the connection")
        self._channel.push_back(buffer.leftover)
        return parse_response(buffer.head)

    def gettimeout(self) -> Any:
        """Have no timeout: a deadline is around all of it."""
        return None

    def close(self) -> None:
        """Leave the channel open: it is not the library's."""


def _excerpt(answer: ResponseHead) -> bytes:
    lines = [f"{name}: {', '.join(answer.headers.get_all(name))}" for name in _CHECKED]
    lines.append(f"Sec-WebSocket-Accept: {answer.headers.get('Sec-WebSocket-Accept') or ''}")
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode("latin-1")
