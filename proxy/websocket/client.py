"""
The client side of WebSocket proxies: websocket-client does the opening handshake.

It speaks through a ``_Mouthpiece``: the answer's head is read in few system calls, bounded and
strictly parsed, and only what the library has to check of it is passed on. An answer that is not
101 ends there, so that no body is read, no redirect followed, and no cookie kept.
"""

import errno
import logging
import os
import re
from collections.abc import Callable
from inspect import signature
from typing import Any

from websocket import WebSocketException, WebSocketTimeoutException

# Not WebSocket.connect: it makes an object for a data path that we do not use, ten more in it, and all
# of them refer to one another.
from websocket._handshake import handshake

from proxy.address import UNKNOWN, Address
from proxy.client import Connected, TunnelClient
from proxy.errors import ProtocolError
from proxy.http.basic import encode_basic
from proxy.http.heads import ResponseHead
from proxy.http.speaker import Exchange, HttpSpeaker, host_header
from proxy.net.deadline import Deadline
from proxy.redact import without_query
from proxy.relaying.channel import Channel
from proxy.settings.client import ClientConfig, UpstreamAuth
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

_handshake: Callable[..., object] = handshake
_TAKES_URL = "url" in signature(handshake).parameters  # not so in the library that Debian 12 has, 1.2.3
_MARGIN = 1.0  # seconds that an answer may take on its way, at most
_CHECKED = ("Upgrade", "Connection")  # by the library, like Sec-WebSocket-Accept
_IP_AND_PORT = re.compile(r"\[?([0-9A-Fa-f:.]{2,45})\]?:([0-9]{1,5})")
_HTTP_PROXY = b"this is an HTTP proxy"  # in what it says to one that asks for a path
_UNWANTED = ("Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol")  # we asked for none


class WebSocketClient(HttpSpeaker):
    """Reaches targets through a WebSocket proxy, which also resolves their names."""

    def __init__(self, config: ClientConfig, name: str = "", via: TunnelClient | None = None) -> None:
        super().__init__(config, name, via)
        self._ping_interval = config.ping_interval

    def ask(self, channel: Channel, deadline: Deadline) -> int:
        """Ask for a WebSocket without saying where to: there is no telling, and any status will do."""
        return self._open(channel, None, deadline).status

    def ask_for(self, target: Address, channel: Channel, deadline: Deadline) -> Connected:
        """Ask for a WebSocket to a target."""
        answer = self._open(channel, target, deadline)
        if answer.status != 101:
            raise self.refusal(answer, target)
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
            return self._check_websocket(self.check_plain(exc.answer))
        except WebSocketTimeoutException as exc:
            # The kernel's: ours is not an Exception before it leaves the block.
            raise self.as_upstream_error(
                os.strerror(errno.ETIMEDOUT), TimeoutError(), unclear=mouthpiece.waits
            ) from exc
        except WebSocketException as exc:
            raise self.as_upstream_error("its answer is not a WebSocket handshake", transient=False) from exc
        except (ProtocolError, EOFError, OSError) as exc:
            raise self.broken(exc, waits=mouthpiece.waits) from exc

    def _check_websocket(self, answer: ResponseHead) -> ResponseHead:
        """Give an answer back; raises ``UpstreamError`` for that of a mixed listener of ours."""
        if answer.status != 400 or _HTTP_PROXY not in answer.behind:
            return answer
        scheme = "https" if self._tls else "http"
        reason = f"it is an HTTP proxy: it needs type = http, and {scheme}:// in its address"
        # A sign of life has to say the same: what a client asks for must not make it rest.
        raise self.as_upstream_error(reason, transient=False, unclear=True, status=answer.status)

    def _upgrade(self, mouthpiece: "_Mouthpiece", headers: list[str]) -> ResponseHead:
        url = [str(self._endpoint)] if _TAKES_URL else []
        _handshake(
            mouthpiece,
            *url,
            self._endpoint.server_name,
            self._endpoint.port,
            self._endpoint.path,
            header=headers,
            host=self._config.host or host_header(self._endpoint),
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
        headers = [*self.more_headers, f"{HALF_CLOSE}: 1"]
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
            if self._config.auth is UpstreamAuth.BASIC:
                return [*headers, f"Authorization: {encode_basic(*self.credentials)}"]
            username, password = (part.decode() for part in self.credentials)
            headers += [f"{USERNAME}: {username}", f"{PASSWORD}: {password}"]
        return headers

    def describe(self, status: int) -> str:
        """Say what an answer says that is neither 101 nor of our kind."""
        if status >= 500 or status in (403, 429):
            return f"answered {status}"
        hint = (self.tls_hint() if status == 400 else "") or ": is the path right?"
        return f"answered {status} instead of 101{hint} ({without_query(str(self._endpoint))})"


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
        self._exchange = Exchange(channel)
        self._for_library = b""
        self.answer: ResponseHead | None = None

    @property
    def waits(self) -> bool:
        """True while the request is sent, and nothing of its answer is there."""
        return self._exchange.waits

    def send(self, data: bytes) -> int:
        """Send the request."""
        return self._exchange.send(data)

    def recv(self, count: int) -> bytes:
        """Give the library what it has to check of the answer."""
        if self.answer is None:
            self.answer = self._exchange.read_answer()
            if self.answer.status != 101:
                raise _NotSwitchedError(self.answer)
            self._for_library = _excerpt(self.answer)
        # It asks for one byte after the other up to the end of a line, 130 times in all, and joins
        # what it gets: so it gets the line, and then the end of it.
        line, end, rest = self._for_library.partition(b"\n")
        self._for_library = end + rest if line else rest
        return line or end

    def gettimeout(self) -> Any:
        """Have no timeout: a deadline is around all of it."""
        return None

    def close(self) -> None:
        """Leave the channel open: it is not the library's."""


def _excerpt(answer: ResponseHead) -> bytes:
    lines = [f"{name}: {', '.join(answer.headers.get_all(name))}" for name in _CHECKED]
    lines.append(f"Sec-WebSocket-Accept: {answer.headers.get('Sec-WebSocket-Accept') or ''}")
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode("latin-1")
