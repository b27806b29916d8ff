"""
Waits and pairs of connected sockets for tests of gevent code.

These tests run gevent in a process that is not monkey-patched, so whatever blocks is gevent's own.
"""

import socket as std_socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
from gevent import socket

Pair = tuple[socket.socket, socket.socket]

PATIENCE = 60.0  # seconds that any of these tests may block


@contextmanager
def patience(seconds: float = PATIENCE) -> Iterator[None]:
    """Fail what blocks for longer."""
    with gevent.Timeout(seconds, AssertionError(f"blocked for {seconds:g} s")):
        yield


def until(condition: Callable[[], object]) -> None:
    """Let the others run until something is true."""
    with patience():
        while not condition():
            gevent.sleep(0.001)


def settle() -> None:
    """
    Let happen whatever can happen now: call this before you say that something did not.

    The moment is for the kernel, which may deliver late what was sent. Then the loop runs until it has
    nothing left to do, however slow the machine is.
    """
    gevent.sleep(0.02)
    gevent.idle()


def tcp_pair() -> Pair:
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
