"""
One program with every way through it: the doors alone, and two doors behind each other.

What a process holds (memory, descriptors, connections in the kernel's table) is read from /proc, so
that nothing has to be asked of the program itself.
"""

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.integration import clients
from tests.integration.clients import Tunnel, WebTunnel
from tests.integration.programs import Proxy, socks_door, upstream, wait_until, web_door

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
        _make_certificate(self.directory)

    def open(self, way: str, port: int, host: str = "127.0.0.1", **settings: Any) -> Tunnel:
        """Open a tunnel to a target on this machine."""
        return WAYS[way](self.door(way), host, port, **settings)

    @property
    def memory(self) -> int:
        """The resident memory, in bytes."""
        return memory_of(self.pid)

    @property
    def connections(self) -> int:
        """How many sockets the program holds, its listeners among them."""
        return len(sockets_of(self.pid))

    def wait_until_empty(self, timeout: float = 10.0) -> None:
        """Wait until the program holds nothing but its listeners."""
        listeners = len(self.config["listeners"])
        wait_until(lambda: self.connections <= listeners, "the last connection to be closed", timeout)


def _make_certificate(directory: Path) -> None:
    files = ["-keyout", "node.key", "-out", "node.pem"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subject = ["-nodes", "-days", "2", "-subj", "/CN=localhost", *files]
    subprocess.run([*command, *subject], cwd=directory, check=True, capture_output=True, timeout=20)


def _port(listener: Mapping[str, Any]) -> int:
    return int(listener["listen_addr"].rpartition(":")[2])


def memory_of(pid: int) -> int:
    """Tell how much memory of a process is resident, in bytes."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) * KIB


def sockets_of(pid: int) -> list[str]:
    """List the TCP sockets that a process holds, as the kernel names them."""
    held = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            held.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        except OSError:
            continue  # closed meanwhile
    rows = [line.split() for table in ("tcp", "tcp6") for line in _table(pid, table)]
    return [row[9] for row in rows if f"socket:[{row[9]}]" in held]


def next_probes(pid: int) -> list[float]:
    """Tell in how many seconds the kernel will probe each connection of a process; 0.0 if it does not."""
    held = sockets_of(pid)
    rows = [row.split() for row in _table(pid, "tcp")]
    timers = [row[5].split(":") for row in rows if row[9] in held and row[3] == "01"]  # established
    return [int(ticks, 16) / os.sysconf("SC_CLK_TCK") if kind == "02" else 0.0 for kind, ticks in timers]


def _table(pid: int, name: str) -> list[str]:
    path = Path(f"/proc/{pid}/net/{name}")
    return path.read_text().splitlines()[1:] if path.exists() else []


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
