"""
The server side of WebSocket proxying (RFC 6455).

The request's head is read and vetted by our own strict parser; only when the target is connected
does gevent-websocket see it, and answers 101. Then the socket is ours.
"""

import logging
from io import BytesIO
from types import SimpleNamespace
from typing import Any

from geventwebsocket.handler import WebSocketHandler

from proxy.address import UNKNOWN, Address
from proxy.errors import AuthError, ProxyError
from proxy.http.forwarded import learn_client
from proxy.http.heads import Fields, HttpError, read_request
from proxy.http.refusals import encode_response, refusal
from proxy.net.deadline import Deadline
from proxy.policy.auth import name_of
from proxy.relaying.channel import Channel
from proxy.relaying.stream import Stream
from proxy.runtime import Runtime
from proxy.server import ProxyServer
from proxy.session import Wanted
from proxy.settings.listener import AnswerTime
from proxy.websocket.frames import CloseCode, encode_close
from proxy.websocket.headers import (
    BOUND,
    HALF_CLOSE,
    TunnelRequest,
    vet_request,
)
from proxy.websocket.stream import WebSocketStream


class WebSocketServer(ProxyServer):
    """Serves WebSocket clients."""

    def inbound(self, channel: Channel, runtime: Runtime) -> "WebSocketInbound":
        """Greet a client that has just connected."""
        return WebSocketInbound(channel, runtime)


class WebSocketInbound:
    """One client that asks for a tunnel by WebSocket."""

    half_close_grace = 0.0  # seconds: a client that ends TCP before the 101 does not want it

    def __init__(self, channel: Channel, runtime: Runtime) -> None:
        self._channel = channel
        self._runtime = runtime
        self._request: TunnelRequest | None = None
        self._has_switched = False  # the 101 was sent

    def greet(self) -> Wanted:
        """Read where the client wants to go, and who it is."""
        head = read_request(self._channel)
        learn_client(self._channel, head.headers, self._runtime.config)
        request = vet_request(head, path=self._runtime.config.path)
        # From here on: what the login takes of it is gone.
        answer_by = None if request.patience is None else Deadline(request.patience)
        user = ""
        if self._runtime.needs_auth:
            if not request.username or not request.password:
                raise AuthError(name_of(request.username or b""))
            user = self._runtime.log_in(request.username, request.password, self._channel)
        self._request = request
        wanted = Wanted(request.target, user, answer_by)
        if self._runtime.config.answer is AnswerTime.AT_ONCE:
            self._switch(None)
        return wanted

    def accept(self, bound: Address | None) -> Stream:
        """Answer 101, if that was not done at once."""
        assert self._request is not None
        if not self._has_switched:
            self._switch(bound)
        return WebSocketStream(
            self._channel.stream(),
            server=True,
            half_close=self._request.half_close,
            ping_interval=self._runtime.config.ping_interval,
        )

    def _switch(self, bound: Address | None) -> None:
        assert self._request is not None
        # Without it the client knows that there may be no connection yet. A SOCKS5 proxy may tell a name
        # or nothing: then the target is connected all the same.
        answer: Fields = ((BOUND, _told(bound)),) if bound else ()
        if self._request.half_close:
            answer += ((HALF_CLOSE, "1"),)
        switch_protocols(self._channel, self._request.key, answer)
        self._has_switched = True

    def refuse(self, error: ProxyError) -> None:
        """Answer with the status that says why not, or with a Close if the 101 was sent already."""
        if self._has_switched:
            self._channel.send(
                encode_close(CloseCode.INTERNAL_ERROR, error.told or error.failure.value, key=None)
            )
            return
        answer = (
            error if isinstance(error, HttpError) else refusal(error.failure, error.retry_after, error.told)
        )
        self._channel.send(encode_response(answer))


def _told(bound: Address) -> str:
    if not bound.ip:
        return str(UNKNOWN)
    return str(Address(bound.host, bound.port) if bound.zone else bound)  # a zone is nobody else's


def switch_protocols(channel: Channel, key: str, headers: Fields) -> None:
    """Have gevent-websocket answer 101 to a request that was vetted, with these headers added."""
    handler = _Upgrade(SimpleNamespace(sendall=channel.send), None, _NO_SERVER, rfile=BytesIO())
    handler.added = headers
    handler.environ = {
        "REQUEST_METHOD": "GET",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
        "HTTP_SEC_WEBSOCKET_KEY": key,
        "PATH_INFO": "/",
    }
    try:
        handler.run_application()
    finally:
        handler.let_go()


# All that the handler asks of its server. Its logger would say at debug what we say better.
_NO_SERVER = SimpleNamespace(logger=logging.getLogger("proxy.websocket.library"))
_NO_SERVER.logger.setLevel(logging.CRITICAL)


class _Upgrade(WebSocketHandler):  # type: ignore[misc]
    prevent_wsgi_call = True
    request_version = "HTTP/1.1"
    added: Fields = ()

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        return super().start_response(status, [*headers, *self.added], exc_info)

    def let_go(self) -> None:
        """
        Take the library's WebSocket apart.

        It would send a Close frame of its own when it is collected, and refers to us as we to it.
        """
        library = self.__dict__.pop("websocket")
        library.closed = True
        library.stream = library.raw_read = library.raw_write = library.handler = library.environ = None
