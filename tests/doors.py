"""
One program with every way through it: the doors alone, and two doors behind each other.

What a process holds (memory, descriptors, connections in the kernel's table) is read from /proc, so
that nothing has to be asked of the program itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tests.integration.certificates import Authority
from tests.integration.programs import Proxy, socks_door, upstream, web_door
from tests.wire import clients
from tests.wire.clients import Tunnel, WebTunnel
from tests.wire.processes import memory_of

KIB, MIB = 1 << 10, 1 << 20

# What a test connects through: the listener, and how its door is opened.
WAYS: Mapping[str, Callable[..., Tunnel]] = {
    "socks5": clients.socks5,
    "websocket": clients.websocket,
    "chain": clients.socks5,  # SOCKS5 -> WebSocket -> direct: the tunnel that people come for
    "tls-chain": clients.socks5,  # the same, encrypted on the way
    "back-chain": clients.websocket,  # WebSocket -> SOCKS5 -> direct
}


class Doors(Proxy):
    """A node with a listener for each of ``WAYS``."""

    def __init__(self, **settings: Any) -> None:
        """Describe it; the settings are those of ``[proxy]``."""
        socks, web = socks_door(), web_door()
        tls = web_door(tls_cert="node.pem", tls_key="node.key")
        listeners = {
            "socks5": socks,
            "websocket": web,
            "wss": tls,
            "chain": socks_door(upstream="by-web"),
            "tls-chain": socks_door(upstream="by-tls"),
            "back-chain": web_door(upstream="by-socks"),
        }
        upstreams = {
            "by-web": upstream("websocket", ("localhost", _port(web))),
            "by-tls": upstream("websocket", f"wss://localhost:{_port(tls)}/", tls_verify="no"),
            "by-socks": upstream("socks5", ("localhost", _port(socks))),
        }
        super().__init__({"proxy": settings, "listeners": listeners, "upstreams": upstreams})
        Authority(self.directory).self_signed("node", "localhost")

    def open(self, way: str, port: int, host: str = "127.0.0.1", **settings: Any) -> Tunnel:
        """Open a tunnel to a target on this machine."""
        return WAYS[way](self.door(way), host, port, **settings)

    @property
    def memory(self) -> int:
        """The resident memory, in bytes."""
        return memory_of(self.pid)


def _port(listener: Mapping[str, Any]) -> int:
    return int(listener["listen_addr"].rpartition(":")[2])


def how_it_ends(tunnel: Tunnel) -> str:
    """Read to the end, and say what it was: ``end``, ``reset``, or ``close`` with its code."""
    try:
        while tunnel.recv(MIB):
            pass
    except ConnectionResetError:
        return "reset"
    except ConnectionError:
        return "cut"  # a WebSocket without a Close frame
    code = tunnel.close_code if isinstance(tunnel, WebTunnel) else None
    return "end" if code in (None, 1000) else f"close {code}"


def cut_of(way: str) -> set[str]:
    """Tell what a client may see of a stream that was cut: never what an end looks like."""
    return {"close 1011", "close 1014"} if WAYS[way] is clients.websocket else {"reset"}
