"""
Tunnels with both ends in a test's hands.

A ``tunnel`` goes in through a WebSocket door and out directly; a ``chain`` goes in through a SOCKS5
door and out through a WebSocket proxy, which is the test.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from tests.wire.processes import Memory
from tests.wire.sockets import TIMEOUT, Door, read_exact
from tests.wire.targets import Listener
from tests.wire.websocket import BINARY, FIN, Frame, Peer, frame, switching, upgrade


class Tunnel(NamedTuple):
    """Both ends of a tunnel."""

    client: Peer
    target: socket.socket


@contextmanager
def tunnel(door: Door, *, half_close: bool = False, receive_buffer: int = 0) -> Iterator[Tunnel]:
    """Open a tunnel; a small receive buffer lets the server feel at once that we do not read."""
    agreed = {"X_Proxy_Half_Close": "1"} if half_close else {}
    with Listener() as listener, Peer.connect(door, receive_buffer=receive_buffer) as client:
        client.write(upgrade(listener.port, **agreed))
        target = listener.accept()
        first, headers = client.read_head()
        assert first == "HTTP/1.1 101 Switching Protocols"
        assert ("x-proxy-half-close" in headers) == half_close
        yield Tunnel(client, target)


@contextmanager
def sending(end: socket.socket | Peer, data: bytes) -> Iterator[None]:
    """Send data in a thread, while the block reads it at the other end."""

    def send() -> None:
        with suppress(OSError):  # whoever reads finds the same fault, and says it
            (end.write if isinstance(end, Peer) else end.sendall)(data)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield
    thread.join(30)
    assert not thread.is_alive()


def assert_relays(client: Peer, target: socket.socket) -> None:
    """Check that a tunnel still does what it is for."""
    client.send(BINARY, b"up")
    assert read_exact(target, 2) == b"up"
    target.sendall(b"down")
    assert client.recv_data(4) == b"down"


def assert_bears_frames_of_one_byte(pid: int, sender: Peer, receiver: socket.socket, count: int) -> None:
    """Check that a program passes them on in good time, and keeps nothing of them."""
    data = bytes(range(250)) * (count // 250)
    one_of_each = b"".join(frame(FIN | BINARY, bytes([byte]), sender.key) for byte in range(250))
    memory = Memory(pid)
    with sending(sender, one_of_each * (count // 250)):
        assert read_exact(receiver, count) == data
    assert memory.growth < 4 << 20  # bytes


class Chain(NamedTuple):
    """The client in front, and the server behind."""

    client: socket.socket
    server: Peer


_one_at_a_time = threading.Lock()  # then the next connection behind belongs to it


@contextmanager
def chain(door: Door, behind: Listener, *, half_close: bool = False, glued: bytes = b"") -> Iterator[Chain]:
    """Open a tunnel through the program; the server may have something glued to its 101."""
    with socket.create_connection(door, TIMEOUT) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(bytes.fromhex("05 01 00"))
        assert read_exact(client, 2) == bytes.fromhex("05 00")
        with _one_at_a_time:
            client.sendall(bytes.fromhex("05 01 00 01 7f000001 0050"))  # its target exists only in name
            server = Peer(behind.accept(), key=None)
        with server:
            switch(server, half_close=half_close, glued=glued)
            assert read_exact(client, 4) == bytes.fromhex("05 00 00 01")
            read_exact(client, 6)
            yield Chain(client, server)


def switch(server: Peer, *, half_close: bool, glued: bytes) -> None:
    """Read the opening handshake, and answer it."""
    line, headers = server.read_head()
    assert line == "GET / HTTP/1.1"
    assert headers["x-proxy-half-close"] == "1"
    server.write(switching(headers["sec-websocket-key"], half_close=half_close) + glued)


def recv_masked(server: Peer, first: int) -> Frame:
    """Receive a frame that a client may send."""
    got = server.recv()
    assert got.first == first, got
    assert got.key is not None, "a client's frame is not masked"
    return got
