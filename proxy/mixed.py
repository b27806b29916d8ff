"""
The mixed port: SOCKS5, SOCKS4, SOCKS4a and HTTP proxy clients, told apart by their first byte.
"""

from proxy.errors import ProtocolError
from proxy.http.server import HttpInbound
from proxy.relaying.channel import Channel
from proxy.runtime import Runtime
from proxy.server import ProxyServer
from proxy.session import Inbound
from proxy.socks4 import VERSION as SOCKS4
from proxy.socks4 import Socks4Inbound
from proxy.socks5.codec import VERSION as SOCKS5
from proxy.socks5.server import Socks5Inbound

_TLS = 22  # the first byte of a handshake (RFC 8446, section 5.1)


class MixedServer(ProxyServer):
    """Serves whoever knows how to ask a proxy."""

    @property
    def offers(self) -> str:
        """What it offers its clients, in a word or two."""
        return "SOCKS and HTTPS proxy over TLS" if self.config.tls_cert else "SOCKS and HTTP proxy"

    def inbound(self, channel: Channel, runtime: Runtime) -> Inbound:
        """Choose the protocol of a client by its first byte; raises ``ProtocolError`` and ``EOFError``."""
        first = channel.read_exact(1)
        channel.push_back(first)
        if first[0] == SOCKS5:
            return Socks5Inbound(channel, runtime)
        if first[0] == SOCKS4:
            return Socks4Inbound(channel, runtime)
        if first.isalpha() or first == b"\r":  # of an empty line (RFC 9112, section 2.2)
            return HttpInbound(channel, runtime)
        if first[0] == _TLS and not runtime.tls:
            raise ProtocolError("the client speaks TLS, and this listener does not: it has no tls_cert")
        raise ProtocolError(f"neither SOCKS nor HTTP: the first byte is {first[0]:#04x}")
