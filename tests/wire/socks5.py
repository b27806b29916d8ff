"""
SOCKS5 in bytes: what a client writes and what a server answers, put together without our codec.

The messages are as RFC 1928 and RFC 1929 print them.
"""

import re
import socket
import struct
import time
from ipaddress import ip_address

import pytest

from tests.wire.sockets import Credentials, Door, Holder, Readable, connect, read_exact

AT_ONCE = 60.0  # seconds, for a machine that has other things to do

GREETING = b"\x05\x01\x00"  # version 5, one method: no authentication
LOGIN_GREETING = b"\x05\x01\x02"  # version 5, one method: username and password
CHOSEN = b"\x05\x00"  # version 5, no authentication
LOGIN_CHOSEN = b"\x05\x02"  # version 5, username and password
NONE_ACCEPTABLE = b"\x05\xff"
LOGGED_IN = b"\x01\x00"  # version 1, success
GRANTED = bytes.fromhex("05 00 00 01 7f000001 04d2")  # RFC 1928, section 6: bound to 127.0.0.1:1234

# Version 5, reserved 0, address type 1 with 4 bytes or 4 with 16, a port of 2 bytes.
REPLY = re.compile(rb"\x05(?P<code>.)\x00(?:\x01.{4}|\x04.{16})..", re.DOTALL)


# What a client says.


def socks_greeting(credentials: Credentials | None = None) -> bytes:
    """Write a greeting that offers one method (RFC 1928, section 3)."""
    return LOGIN_GREETING if credentials else GREETING


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


def socks_request(host: str, port: int) -> bytes:
    """Write a request: for an IP address as such, for anything else as a name."""
    try:
        return to_ip(host, port)
    except ValueError:
        return to_name(host.encode(), port)


def read_socks_reply(stream: Readable) -> int:
    """Read a reply, check its form (CASES 39), and give its code."""
    head = read_exact(stream, 4)
    return code_of(head + read_exact(stream, (16 if head[3] == 4 else 4) + 2))


def code_of(answer: bytes) -> int:
    """Check that these bytes are one reply and nothing else, and give its code (RFC 1928, section 6)."""
    reply = REPLY.fullmatch(answer)
    assert reply, f"not a reply: {answer.hex(' ')}"
    return reply["code"][0]


# What a server says and hears.


def socks_reply(code: int) -> bytes:
    """Write a reply with an unknown bound address."""
    return bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])


def hear_greeting(stream: Readable) -> bytes:
    """Read a greeting (RFC 1928, section 3)."""
    head = read_exact(stream, 2)
    return head + read_exact(stream, head[1])


def hear_login(stream: Readable) -> bytes:
    """Read a login (RFC 1929, section 2)."""
    head = read_exact(stream, 2)
    name = read_exact(stream, head[1] + 1)
    return head + name + read_exact(stream, name[-1])


def hear_request(stream: Readable) -> bytes:
    """Read a request (RFC 1928, section 4)."""
    head = read_exact(stream, 5)
    length = {1: 4, 3: head[4] + 1, 4: 16}[head[3]]
    return head + read_exact(stream, length + 1)


class Peer(Holder):
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
        return read_socks_reply(self.sock)

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


def talk(door: Door, *segments: bytes, within: float = AT_ONCE, pause: float = 0.0) -> bytes:
    """Send these segments, and give all that the server says until it closes."""
    with Peer(door) as peer:
        for segment in segments:
            peer.send(segment)
            if pause:
                time.sleep(pause)  # so that the next one is read apart from this one
        return peer.rest(within)
