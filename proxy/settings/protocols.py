"""
The protocols, and the addresses at which they are spoken.
"""

from enum import Enum
from typing import Annotated

from proxy.address import Endpoint
from proxy.errors import ConfigError
from proxy.settings.kinds import members


class Protocol(str, Enum):
    """What a listener or a proxy speaks."""

    SOCKS5 = "socks5"
    WEBSOCKET = "websocket"
    HTTP = "http"  # an upstream's
    MIXED = "mixed"  # a listener's: SOCKS5, SOCKS4 and HTTP proxy clients


# The schemes of their addresses; the first is meant where none is written.
LISTENER_SCHEMES = {
    Protocol.SOCKS5: ("tcp", "socks5"),
    Protocol.WEBSOCKET: ("ws", "wss"),
    Protocol.MIXED: ("tcp", "socks5", "http", "https"),
}
PROXY_SCHEMES = {
    Protocol.SOCKS5: ("tcp", "socks5"),
    Protocol.WEBSOCKET: ("ws", "wss"),
    Protocol.HTTP: ("http", "https"),
}
ListenerProtocol = Annotated[Protocol, members(*LISTENER_SCHEMES)]
ProxyProtocol = Annotated[Protocol, members(*PROXY_SCHEMES)]
SECURE = {"ws": "wss", "http": "https"}  # what a scheme is over TLS


def parse_endpoint(field_name: str, text: str, scheme: str) -> Endpoint:
    """Parse the address in a setting. Raises ``ConfigError`` for that field."""
    try:
        return Endpoint.parse(text, scheme=scheme)
    except ValueError as exc:
        raise ConfigError(field_name, str(exc)) from None
