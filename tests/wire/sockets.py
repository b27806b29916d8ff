"""What every peer does with a socket: take a port, connect, read, and leave."""

import select
import socket
import struct
from collections import deque
from typing import Protocol, TypeVar

AnyHolder = TypeVar("AnyHolder", bound="Holder")

Door = tuple[str, int]  # host and port; or the path of a Unix socket, and 0
Credentials = tuple[str, str]

TIMEOUT = 20.0  # seconds on every socket
CHUNK = 1 << 18

_MOST_RESERVED = 400  # beyond that the oldest are given back, whose programs have long ended
_reserved: deque[socket.socket] = deque()


class Readable(Protocol):
    """A socket, gevent's too, or a tunnel."""

    def recv(self, size: int, /) -> bytes:
        """Receive some bytes; none at the end."""


class Closable(Protocol):
    """A socket, gevent's too."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """Set an option."""

    def close(self) -> None:
        """Close it."""


class Holder:
    """Whoever has a socket, which is closed with the block."""

    sock: socket.socket

    def __enter__(self: AnyHolder) -> AnyHolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()


def free_port() -> int:
    """
    Reserve a port for long; a connection to it is refused until a program listens on it.

    The reservation is a socket that is bound and never listens. Linux lets a program that sets
    SO_REUSEADDR, as servers do, listen on the port beside it, but gives the port to nobody unasked.
    """
    sock = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", 0))
    _reserved.append(sock)
    if len(_reserved) > _MOST_RESERVED:
        _reserved.popleft().close()
    return int(sock.getsockname()[1])


def connect(
    door: Door, timeout: float = TIMEOUT, *, source: str = "", receive_buffer: int = 0
) -> socket.socket:
    """
    Connect to a door, with a deadline on whatever follows.

    The source is an address of the loopback; a small receive buffer lets the other side feel that we
    do not read.
    """
    is_unix = door[0].startswith("/")
    sock = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET6 if ":" in door[0] else socket.AF_INET)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if not is_unix:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(timeout)
    try:
        if source:
            sock.bind((source, 0))
        sock.connect(door[0] if is_unix else door)
    except BaseException:
        sock.close()
        raise
    return sock


def read_exact(stream: Readable, size: int) -> bytes:
    """Read so many bytes; raise ``ConnectionError`` if the stream ends before."""
    data = bytearray()
    while len(data) < size:
        piece = stream.recv(min(size - len(data), CHUNK))
        if not piece:
            raise ConnectionError(f"the stream ended after {len(data)} of {size} bytes: {data[-100:]!r}")
        data += piece
    return bytes(data)


def read_to_end(stream: Readable) -> bytes:
    """Read until the stream ends."""
    return b"".join(iter(lambda: stream.recv(CHUNK), b""))


def read_rest(sock: Readable) -> tuple[bytes, str]:
    """Read to the end of a connection, and tell how it ended: by a ``FIN`` or a ``reset``."""
    data = bytearray()
    try:
        while piece := sock.recv(CHUNK):
            data += piece
    except ConnectionResetError:
        return bytes(data), "reset"
    return bytes(data), "FIN"


def is_silent(sock: socket.socket | int, seconds: float) -> bool:
    """Tell whether nothing arrives for so long, not even an end."""
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(sock, select.POLLIN)
    return not poll.poll(1000 * seconds)


def reset(sock: Closable) -> None:
    """Close a connection by a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
