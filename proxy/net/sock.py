"""
A connected socket that never blocks, and the event loop's watchers that wait for it.

It serves from the first byte of the handshake to the last of the relay. gevent's own class would wrap
a second object around it and make both watchers in advance: for each of a connection's two sockets
that is more work than all of their other Python code in a handshake.
"""

import _socket
import errno
import socket as std_socket
from typing import Any

import gevent
from gevent import socket

from proxy.address import Address, IPAddress, UnixAddress
from proxy.net.limits import BALLAST

GeventSocket = socket.socket  # what blocks the greenlet; of such are the listening sockets

READ, WRITE = 1, 2  # libev's names for what to wait for

# Small messages go out at once. And a peer that vanished without a word is missed in some three minutes,
# though nobody sends: the kernel asks after a minute of silence, and then every 15 s, nine times unless its
# administrator says otherwise. By itself it would ask after two hours.
_IDLE = 60  # seconds
_INTERVAL = 15  # seconds
_OPTIONS = [
    (std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY, 1),
    (std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE, 1),
    *(
        (std_socket.IPPROTO_TCP, getattr(std_socket, name), value)
        for name, value in (("TCP_KEEPIDLE", _IDLE), ("TCP_KEEPALIVE", _IDLE), ("TCP_KEEPINTVL", _INTERVAL))
        if hasattr(std_socket, name)  # macOS has another name for the first
    ),
]


class LoopSocket(_socket.socket):
    """A non-blocking socket: what cannot be done at once raises ``BlockingIOError``."""

    __slots__ = ("_reader", "_writer", "unsent")

    pending = False  # the kernel knows of all that there is to receive

    def __init__(self, family: int, kind: int, proto: int = 0, fileno: int | None = None) -> None:
        super().__init__(family, kind, proto, fileno)
        self.setblocking(False)
        self._reader: Any = None
        self._writer: Any = None
        self.unsent = b""  # what the kernel did not take yet

    @property
    def reader(self) -> Any:
        """The watcher for something to read."""
        if self._reader is None:
            self._reader = watcher(self.fileno(), READ)
        return self._reader

    @property
    def writer(self) -> Any:
        """The watcher for room to write, which most connections never need."""
        if self._writer is None:
            self._writer = watcher(self.fileno(), WRITE)
        return self._writer

    def write(self, data: memoryview | bytes, flags: int = 0) -> None:
        """
        Send what the kernel takes, behind what it did not take before, and keep the rest as ``unsent``.

        Raises ``MemoryError`` where there is none for the rest.
        """
        if self.unsent:
            self.unsent += data
            return
        try:
            sent = self.send(data, flags)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            BALLAST.leave_some()
            self.unsent = bytes(data[sent:])

    def flush(self) -> None:
        """Send what is ``unsent``, as much as the kernel takes."""
        unsent, self.unsent = self.unsent, b""
        self.write(unsent)

    def is_quiet(self) -> bool:
        """Tell if the peer is there and has said nothing."""
        try:
            self.recv(1, std_socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close it, and its watchers before: its number may belong to another one at once."""
        self._close_watchers()
        super().close()

    def detach(self) -> int:
        """Give its descriptor away, which others will watch."""
        self._close_watchers()
        return super().detach()

    def _close_watchers(self) -> None:
        for each in (self._reader, self._writer):
            if each is not None:
                each.close()
        self._reader = self._writer = None


def set_options(sock: Any) -> None:
    """Set what every connection has, on its socket or on the listening one, from which it is inherited."""
    if sock.family == std_socket.AF_UNIX:  # whose ends cannot vanish, and which holds nothing back
        return
    for level, option, value in _OPTIONS:
        sock.setsockopt(level, option, value)


def watcher(fileno: int, events: int) -> Any:
    """Make a watcher of the event loop; whoever waits has it to itself."""
    return gevent.get_hub().loop.io(fileno, events)


def take_over(sock: Any) -> Any:
    """Make a ``LoopSocket`` of gevent's or Python's socket, which is spent; others stay what they are."""
    if not isinstance(sock, (GeventSocket, std_socket.socket)):
        return sock
    return LoopSocket(sock.family, std_socket.SOCK_STREAM, sock.proto, sock.detach())


def sockaddr_of(ip: IPAddress, port: int) -> tuple[Any, ...]:
    """Write an address as sockets want it; raises ``OSError`` for an interface that is not there."""
    zone = getattr(ip, "scope_id", None)
    if not zone:
        return str(ip), port
    try:
        index = int(zone) if zone.isdecimal() else std_socket.if_nametoindex(zone)
    except OSError as exc:  # without an errno
        raise OSError(errno.ENODEV, f"there is no interface {zone}") from exc
    return str(ip).partition("%")[0], port, 0, index


def address_of(sockaddr: Any) -> Address:
    """Turn what ``getpeername`` and ``getsockname`` give into an address."""
    if not isinstance(sockaddr, tuple) or not sockaddr:
        return Address("0.0.0.0", 0)
    return Address(sockaddr[0].partition("%")[0], sockaddr[1], zone_of(sockaddr))


def zone_of(sockaddr: tuple[Any, ...]) -> str:
    """Name the interface of a link-local address, of which sockets only tell the number."""
    return name_of_interface(sockaddr[3]) if len(sockaddr) == 4 and sockaddr[3] else ""


def listening_address(sock: Any) -> Address:
    """Tell where a socket listens."""
    name = sock.getsockname()
    return UnixAddress(name) if isinstance(name, str) else address_of(name)


def name_of_interface(index: int) -> str:
    """Name an interface; one that is not there keeps its number."""
    try:
        return std_socket.if_indextoname(index)
    except (OSError, OverflowError):  # it has just gone, or there never was such a number
        return str(index)
