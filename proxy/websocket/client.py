"""
A way out through a WebSocket proxy: websocket-client does the opening handshake.

It speaks through a ``_Mouthpiece``: the answer's head is read in few system calls, bounded and
strictly parsed, and only what the library has to check of it is passed on. An answer that is not
101 ends there, so that no body is read, no redirect followed, and no cookie kept.
"""

import errno
import logging
import os
import re
import ssl
from socket import socket
from typing import Any, cast

from websocket import WebSocketException, WebSocketTimeoutException

# Not WebSocket.connect: it makes an object for a data path that we do not use, ten more in it, and all
# of them refer to one another.
from websocket._handshake import handshake

from proxy import __version__
from proxy.address import DEFAULT_PORTS, UNKNOWN, Address, Endpoint
from proxy.client import Connected, UpstreamClient, speaker_of
from proxy.config import ClientConfig
from proxy.errors import DialError, Failure, ProtocolError, reason_of
from proxy.http.heads import HeadBuffer, HttpError, ResponseHead, parse_response
from proxy.http.refusals import PROXY_NAME, failure_reported
from proxy.net.deadline import Deadline
from proxy.net.tls import client_context
from proxy.net.tlssocket import connect_tls
from proxy.redact import without_query
from proxy.relaying.channel import Channel
from proxy.websocket.headers import (
    BOUND,
    HALF_CLOSE,
    PASSWORD,
    TARGET_HOST,
    TARGET_PORT,
    TIMEOUT,
    USERNAME,
)
from proxy.websocket.stream import WebSocketStream

log = logging.getLogger(__name__)

_MARGIN = 1.0  # seconds that an answer may take on its way, at most
_MAX_INTERIM = 8  # answers
_OF_ITS_OWN = (Failure.LIMIT, Failure.UPSTREAM)  # what a proxy of our kind says of itself, not of a target

_CHECKED = ("Upgrade", "Connection")  # by the library, like Sec-WebSocket-Accept
_IP_AND_PORT = re.compile(r"\[?([0-9A-Fa-f:.]{2,45})\]?:([0-9]{1,5})")
_UNWANTED = ("Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol")  # we asked for none


class WebSocketClient(UpstreamClient):
    """Reaches targets through a WebSocket proxy, which also resolves their names."""

    def __init__(self, config: ClientConfig, name: str = "") -> None:
        super().__init__(config, name or without_query(str(config.endpoint)))
        self._ping_interval = config.ping_interval
        secure = self._endpoint.scheme == "wss"
        self._host = _host_header(self._endpoint)
        self._tls = client_context(config.tls_ca, verify=config.tls_verify) if secure else None

    def prepare(self, channel: Channel, deadline: Deadline) -> None:
        """Do the TLS handshake, if there is one."""
        if self._tls is None:
            return
        try:
            with deadline.limit("TLS handshake"):
                channel.sock = connect_tls(channel.sock, self._tls, self._endpoint.server_name)
        except ProtocolError as exc:
            # A bad certificate will be no better in a moment.
            passes = isinstance(exc.__cause__, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
            raise self.as_upstream_error(str(exc), transient=passes) from exc
        except OSError as exc:
            raise self.as_upstream_error(reason_of(exc), exc) from exc

    def ask(self, channel: Channel, deadline: Deadline) -> int:
        """Ask for a WebSocket without saying where to: there is no telling, and any status will do."""
        return self._open(channel, None, deadline).status

    def ask_for(self, target: Address, channel: Channel, deadline: Deadline) -> Connected:
        """Ask for a WebSocket to a target."""
        answer = self._open(channel, target, deadline)
        if answer.status != 101:
            raise self._refusal(answer, target)
        stream = WebSocketStream(
            channel.stream(),
            server=False,
            half_close=answer.headers.get_all(HALF_CLOSE) == ["1"],
            ping_interval=self._ping_interval,
        )
        bound = _bound(answer)
        if bound is None:
            log.debug("upstream %s: 101 without %s: its success is a promise only", self.name, BOUND)
        return Connected(stream, bound, self.name)

    def _open(self, channel: Channel, target: Address | None, deadline: Deadline) -> ResponseHead:
        """Ask for a WebSocket, and give the answer, whatever its status; raises ``UpstreamError``."""
        mouthpiece = _Mouthpiece(channel)
        try:
            with deadline.limit("WebSocket handshake"):
                return self._upgrade(mouthpiece, self._headers(target, deadline))
        except _NotSwitchedError as exc:
            return exc.answer
        except ProtocolError as exc:
            # What does not speak HTTP will be no better in a moment.
            raise self.as_upstream_error(str(exc), transient=False) from exc
        except WebSocketTimeoutException as exc:
            # The kernel's: ours is not an Exception before it leaves the block.
            raise self.as_upstream_error(
                os.strerror(errno.ETIMEDOUT), TimeoutError(), unclear=mouthpiece.waits
            ) from exc
        except WebSocketException as exc:
            raise self.as_upstream_error("its answer is no WebSocket handshake", transient=False) from exc
        except (EOFError, ConnectionError) as exc:
            reason = "it closed the connection during the handshake"
            if isinstance(exc, ConnectionError):
                reason = reason_of(exc)
            elif mouthpiece.waits:
                reason = "it closed the connection without an answer"
            hint = ": does it want TLS (wss://)?" if mouthpiece.waits and not self._tls else ""
            raise self.as_upstream_error(reason + hint, unclear=mouthpiece.waits) from exc
        except OSError as exc:
            raise self.as_upstream_error(reason_of(exc), exc, unclear=mouthpiece.waits) from exc

    def _upgrade(self, mouthpiece: "_Mouthpiece", headers: list[str]) -> ResponseHead:
        handshake(
            cast(socket, mouthpiece),
            str(self._endpoint),
            self._endpoint.server_name,
            self._endpoint.port,
            self._endpoint.path,
            header=headers,
            host=self._host,
            suppress_origin=True,
        )
        answer = mouthpiece.answer
        assert answer is not None
        if any(answer.headers.get_all(name) for name in _UNWANTED):
            raise ProtocolError("it switched to an extension or subprotocol that was not asked for")
        if len(answer.headers.get_all(BOUND)) > 1:
            raise ProtocolError(f"its answer has {BOUND} more than once")
        return answer

    def _headers(self, target: Address | None, deadline: Deadline) -> list[str]:
        headers = [f"User-Agent: {PROXY_NAME}/{__version__}", f"{HALF_CLOSE}: 1"]
        if target:
            # So that a target which does not answer is told as one, before we have to give up ourselves.
            left = deadline.remaining()
            patience = max(left - min(left / 5, _MARGIN), 0.001)
            headers += [
                f"{TARGET_HOST}: {target.host}",
                f"{TARGET_PORT}: {target.port}",
                f"{TIMEOUT}: {patience:.3f}",
            ]
        if self.credentials:
            username, password = (part.decode() for part in self.credentials)
            headers += [f"{USERNAME}: {username}", f"{PASSWORD}: {password}"]
        return headers

    def _refusal(self, answer: ResponseHead, target: Address) -> DialError:
        status = answer.status
        if status in (401, 407):
            return self.login_refused()
        failure, is_told = failure_reported(answer)
        if is_told and failure not in _OF_ITS_OWN:
            return DialError(f"{target} through upstream {self.name}: {failure.value}", failure)
        # It may be well, and only have no place left or no way on, or not like the request.
        well = is_told or status in (400, 429)
        said = f"{failure.value} (status {status})" if is_told else self._describe(status)
        busy = is_told and failure is Failure.LIMIT
        error = self.as_upstream_error(said, transient=busy, unclear=not well, well=well, status=status)
        error.failure = failure
        return error

    def _describe(self, status: int) -> str:
        if status >= 500 or status in (403, 429):
            return f"answered {status}"
        hint = "is the path right?"
        if status == 400 and not self._tls:
            hint = "does it want TLS (wss://)?"
        return f"answered {status} instead of 101: {hint} ({without_query(str(self._endpoint))})"


def _host_header(endpoint: Endpoint) -> str:
    """Write the Host header: only its own scheme's default port is left out (RFC 6455, section 4.1)."""
    name = endpoint.server_name
    host = f"[{name}]" if ":" in name else name
    return host if endpoint.port == DEFAULT_PORTS[endpoint.scheme] else f"{host}:{endpoint.port}"


def _bound(answer: ResponseHead) -> Address | None:
    """Read where the far end's connection is bound; None if it says nothing of it."""
    told = answer.headers.get_all(BOUND)
    if not told:
        return None
    # Anything else, such as a name, says nothing that we need, and is not worth reading.
    match = _IP_AND_PORT.fullmatch(told[0])
    try:
        return Address(match[1], int(match[2])) if match and len(told) == 1 else UNKNOWN
    except ProtocolError:
        return UNKNOWN


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
        self.waits = False  # the request is sent, and nothing of its answer is there

    def send(self, data: bytes) -> int:
        """Send the request."""
        self.waits = True
        return self._channel.send(data)

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
        # RFC 9110, section 15.2: any number of interim answers may come before the one that counts.
        for _ in range(_MAX_INTERIM + 1):
            answer = self._read_head()
            if answer.status >= 200 or answer.status == 101:
                return answer
            self.waits = True
        raise ProtocolError("it sends one interim answer after the other")

    def _read_head(self) -> ResponseHead:
        buffer = HeadBuffer(request=False)
        data = first = self._channel.recv(4096)
        self.waits = not first
        try:
            while not buffer.feed(data):
                if not data:
                    raise EOFError("the peer closed the connection")
                data = self._channel.recv(4096)
        except HttpError as exc:
            if first.startswith(b"HTTP/"):
                raise
            raise ProtocolError(f"this is no HTTP server: {speaker_of(first)} answered") from exc
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
