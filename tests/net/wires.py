"""
Pairs of connected sockets, and a stream that a test can look into.

These tests run gevent in a process that is not monkey-patched, so whatever blocks is gevent's own.
"""

import socket as std_socket
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
from gevent import socket

from proxy.net.stream import Buffer, Ending, TcpStream

PATIENCE = 10.0  # seconds that any of these tests may block


@contextmanager
def patience(seconds: float = PATIENCE) -> Iterator[None]:
    """Fail what blocks for longer."""
    with gevent.Timeout(seconds, AssertionError(f"blocked for {seconds:g} s")):
        yield


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Connect two TCP sockets by the loopback interface."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        other, _ = listener.accept()
    one.settimeout(PATIENCE)
    other.settimeout(PATIENCE)
    return one, other


def send_and_end(sock: socket.socket, data: bytes) -> None:
    """Send data, and half-close."""
    sock.sendall(data)
    sock.shutdown(std_socket.SHUT_WR)


class Spy(TcpStream):
    """
    A socket in a relay that a test can make stranger than it is, and that notes how it was ended.
    """

    def __init__(self, sock: socket.socket, *, half_closes: bool = True) -> None:
        super().__init__(sock)
        self.half_closes = half_closes
        self.alive = True
        self.fault: Exception | None = None
        self.story: list[str] = []

    def recv_into(self, buffer: Buffer, *, bulk: bool) -> int | None:
        """Receive, or fail."""
        if self.fault:
            raise self.fault
        return super().recv_into(buffer, bulk=bulk)

    def tick(self, now: float, *, listening: bool) -> bool:
        """Be alive, or not."""
        return super().tick(now, listening=listening) and self.alive

    def farewell(self, ending: Ending) -> None:
        """Note how it ended."""
        self.story.append(f"farewell {ending.value}")
        super().farewell(ending)

    def close(self) -> None:
        """Note that it was closed."""
        self.story.append("close")
        super().close()
