"""
The server side of SOCKS5 (RFC 1928, RFC 1929).
"""

from contextlib import suppress

from proxy.address import UNKNOWN, Address
from proxy.errors import AuthError, LimitError, OverLimitError, ProtocolError, ProxyError
from proxy.parsers import run
from proxy.relaying.channel import Channel
from proxy.relaying.stream import Stream
from proxy.runtime import Runtime
from proxy.server import ProxyServer
from proxy.session import Wanted
from proxy.socks5 import codec
from proxy.socks5.codec import Greeting, Method, Reply, ReplyCode

LOGIN_OK = bytes([codec.LOGIN_VERSION, 0])
LOGIN_REFUSED = bytes([codec.LOGIN_VERSION, 1])

_WHY_NOT = {
    Method.USERNAME_PASSWORD: "but has to log in (2)",
    Method.NO_AUTHENTICATION: "but this listener has no logins (0)",
}
_TELL = 8  # methods of a client, which may offer 255


class Socks5Server(ProxyServer):
    """Serves SOCKS5 clients."""

    def inbound(self, channel: Channel, runtime: Runtime) -> "Socks5Inbound":
        """Greet a client that has just connected."""
        return Socks5Inbound(channel, runtime)


class Socks5Inbound:
    """One client that speaks SOCKS5."""

    __slots__ = ("_asked", "_channel", "_runtime")

    # A client may send its request and close its side: the answer is still wanted.
    half_close_grace = 0.5  # seconds

    def __init__(self, channel: Channel, runtime: Runtime) -> None:
        self._channel = channel
        self._runtime = runtime
        self._asked = False  # the client has sent a request, so a reply is possible

    def greet(self) -> Wanted:
        """Let the client log in and say where it wants to go."""
        read_exact = self._channel.read_exact
        user = self._log_in(run(codec.parse_greeting(), read_exact))
        self._channel.await_request()
        self._asked = True
        request = run(codec.parse_request(), read_exact)
        return Wanted(request.target, user)

    def _log_in(self, greeting: Greeting) -> str:
        wanted = Method.USERNAME_PASSWORD if self._runtime.needs_auth else Method.NO_AUTHENTICATION
        if wanted not in greeting.methods:
            self._channel.send(bytes([codec.VERSION, Method.NONE_ACCEPTABLE]))
            offered = f"{list(greeting.methods[:_TELL])}{' ...' if greeting.methods[_TELL:] else ''}"
            raise ProtocolError(f"the client offers only methods {offered}, {_WHY_NOT[wanted]}")
        self._channel.send(bytes([codec.VERSION, wanted]))
        if wanted is Method.NO_AUTHENTICATION:
            return ""
        login = run(codec.parse_login(), self._channel.read_exact)
        try:
            user = self._runtime.log_in(login.username, login.password, self._channel)
        except (AuthError, LimitError, OverLimitError):
            with suppress(
                OSError
            ):  # whoever has gone by now is not let in all the same, which is to be logged
                self._channel.send(LOGIN_REFUSED)
            raise
        self._channel.send(LOGIN_OK)
        return user

    def accept(self, bound: Address | None) -> Stream:
        """Tell the client that it is connected."""
        self._channel.send(Reply(ReplyCode.SUCCEEDED, bound if bound and bound.ip else UNKNOWN).encode())
        return self._channel.stream()

    def refuse(self, error: ProxyError) -> None:
        """Tell the client why not, where it waits for a reply, and close."""
        if self._asked:
            self._channel.send(Reply(codec.code_of(error.failure)).encode())
