"""
What a SOCKS5 client writes, and what it sees of the answers.

The messages are put together as RFC 1928 and RFC 1929 print them, without our codec.
"""

import re
import socket
import struct
import time
from ipaddress import ip_address
from types import TracebackType

import pytest

from tests.integration import clients
from tests.wire.sockets import Door, connect, read_exact

AT_ONCE = 8.0  # seconds, for a machine that has other things to do

GREETING = b"\x05\x01\x00"  # version 5, one method: no authentication
LOGIN_GREETING = b"\x05\x01\x02"  # version 5, one method: username and password
CHOSEN = b"\x05\x00"  # version 5, no authentication
LOGIN_CHOSEN = b"\x05\x02"  # version 5, username and password
NONE_ACCEPTABLE = b"\x05\xff"
LOGGED_IN = b"\x01\x00"  # version 1, success

# Version 5, reserved 0, address type 1 with 4 bytes or 4 with 16, a port of 2 bytes.
REPLY = re.compile(rb"\x05(?P<code>.)\x00(?:\x01.{4}|\x04.{16})..", re.DOTALL)


def login(user: bytes, password: bytes) -> bytes:
    """Write a login (RFC 1929, section 2)."""
    return bytes([1, len(user)]) + user + bytes([len(password)]) + password


def to_ip(ip: str, port: int, *, command: int = 1) -> bytes:
    """Write a request for an IP address (RFC 1928, section 4)."""
    address = ip_address(ip)
    kind = 1 if address.version == 4 else 4
    return bytes([5, command, 0, kind]) + address.packed + struct.pack("!H", port)


def to_name(name: bytes, port: int) -> bytes:
    """Write a request for a domain name (RFC 1928, section 5)."""
    return bytes([5, 1, 0, 3, len(name)]) + name + struct.pack("!H", port)


def code_of(answer: bytes) -> int:
    """Check that these bytes are one reply and nothing else, and give its code (RFC 1928, section 6)."""
    reply = REPLY.fullmatch(answer)
    assert reply, f"not a reply: {answer.hex(' ')}"
    return reply["code"][0]


class Peer:
    """A client at a door, with a deadline on whatever it waits for."""

    def __init__(self, door: Door, source: str = "127.0.0.1") -> None:
        """Connect, from an address of the loopback."""
        self.sock = connect(door, source=source)

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.sock.sendall(data)

    def end(self) -> None:
        """Send a FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    def read(self, size: int) -> bytes:
        """Read exactly so many bytes."""
        return read_exact(self.sock, size)

    def reply(self) -> int:
        """Read a reply, and give its code."""
        return clients.read_socks_reply(self.sock)

    def rest(self, within: float = AT_ONCE) -> bytes:
        """Give all that comes until the server closes; fail if it is still open after ``within``."""
        deadline = time.monotonic() + within
        heard = b""
        while True:
            self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self.sock.recv(1 << 16)
            except TimeoutError:
                pytest.fail(f"still open after {within:g} s, having said {heard!r}")
            except ConnectionError:
                data = b""
            if not data:
                return heard
            heard += data

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()


def talk(door: Door, *segments: bytes, within: float = AT_ONCE, pause: float = 0.0) -> bytes:
    """Send these segments, and give all that the server says until it closes."""
    with Peer(door) as peer:
        for segment in segments:
            peer.send(segment)
            if pause:
                time.sleep(pause)  # so that the next one is read apart from this one
        return peer.rest(within)
