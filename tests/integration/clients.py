"""
Clients that write a proxy's protocols byte by byte, as the RFCs print them.

A ``Tunnel`` is what both give: bytes in, bytes out, and an end in each direction. Clients that other
people wrote (curl, PySocks, websocket-client, websockets) are in ``test_peers``.
"""

import base64
import contextlib
import hashlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Protocol

from websockets.frames import apply_mask  # type: ignore[attr-defined,unused-ignore]

from tests.wire.sockets import CHUNK, TIMEOUT, Door, connect, read_exact, read_to_end

MESSAGE = 1 << 16  # bytes of payload in a frame, at the most

Credentials = tuple[str, str]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


class SocksRefused(Exception):
    """The proxy answered with a reply code other than 0 (RFC 1928, section 6)."""

    def __init__(self, reply: int) -> None:
        super().__init__(f"SOCKS5 reply {reply:02x}")
        self.reply = reply


class LoginRefused(Exception):
    """The proxy refused our credentials, or asks for others than we have."""


class HttpRefused(Exception):
    """The proxy answered the upgrade with something other than 101."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"HTTP {status} {dict(headers)} {body!r}")
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def proxy_error(self) -> str:
        """The error token of Proxy-Status (RFC 9209, section 2.3)."""
        _, _, error = self.headers.get("proxy-status", "").partition("error=")
        return error.split(";")[0].strip()


class Tunnel(Protocol):
    """A stream to a target, through a proxy."""

    sock: socket.socket

    def sendall(self, data: bytes) -> None:
        """Send bytes to the target."""

    def recv(self, size: int, /) -> bytes:
        """Receive bytes from the target; none at the end of its stream."""

    def end(self) -> None:
        """End our stream, and go on receiving."""

    def close(self) -> None:
        """Leave."""


class SocksTunnel:
    """The stream behind a SOCKS5 reply: the socket itself."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sendall = sock.sendall
        self.recv = sock.recv
        self.close = sock.close

    def end(self) -> None:
        """Half-close the connection."""
        self.sock.shutdown(socket.SHUT_WR)


# SOCKS5


def socks_greeting(credentials: Credentials | None = None) -> bytes:
    """Write a greeting that offers one method (RFC 1928, section 3)."""
    return b"\x05\x01\x02" if credentials else b"\x05\x01\x00"


def socks_login(credentials: Credentials) -> bytes:
    """Write a login (RFC 1929, section 2)."""
    user, password = (text.encode() for text in credentials)
    return bytes([1, len(user)]) + user + bytes([len(password)]) + password


def socks_request(host: str, port: int, command: int = 1) -> bytes:
    """Write a request (RFC 1928, section 4): an IP address as such, anything else as a name."""
    try:
        ip = ip_address(host)
    except ValueError:
        name = host.encode()
        destination = bytes([3, len(name)]) + name
    else:
        destination = (b"\x01" if ip.version == 4 else b"\x04") + ip.packed
    return bytes([5, command, 0]) + destination + struct.pack("!H", port)


def read_socks_reply(sock: socket.socket) -> int:
    """Read a reply (RFC 1928, section 6), check its form (CASES 39), and give its code."""
    version, reply, reserved, kind = read_exact(sock, 4)
    assert (version, reserved) == (5, 0)
    assert kind in (1, 4), f"BND.ADDR of type {kind}"
    read_exact(sock, (4 if kind == 1 else 16) + 2)
    return reply


def socks5(
    door: Door,
    host: str,
    port: int,
    credentials: Credentials | None = None,
    *,
    timeout: float = TIMEOUT,
) -> SocksTunnel:
    """Connect to a target through a SOCKS5 door, one step at a time."""
    sock = connect(door, timeout)
    try:
        sock.sendall(socks_greeting(credentials))
        chosen = read_exact(sock, 2)
        if chosen != socks_greeting(credentials)[::2]:
            raise LoginRefused(f"the proxy chose {chosen.hex()}")
        if credentials:
            sock.sendall(socks_login(credentials))
            version, status = read_exact(sock, 2)
            assert version == 1
            if status:
                raise LoginRefused(f"status {status}")
        sock.sendall(socks_request(host, port))
        reply = read_socks_reply(sock)
        if reply:
            raise SocksRefused(reply)
    except BaseException:
        sock.close()
        raise
    return SocksTunnel(sock)


# WebSocket


class WebTunnel:
    """The stream behind a 101: binary messages, masked (RFC 6455, section 5)."""

    def __init__(self, sock: socket.socket, leftover: bytes, headers: Mapping[str, str]) -> None:
        self.sock = sock
        self.headers = headers
        self.half_close = headers.get("x-proxy-half-close") == "1"
        self.close_code: int | None = None  # of the Close frame that we were sent
        self.pings = 0
        self._buffer = leftover
        self._data = b""
        self._ended = False
        self._sending = threading.Lock()  # pongs come from the thread that receives

    def send_frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        """Send one frame."""
        head = bytes([(0x80 if fin else 0) | opcode])
        if len(payload) < 126:
            head += bytes([0x80 | len(payload)])
        elif len(payload) < 1 << 16:
            head += b"\xfe" + struct.pack("!H", len(payload))
        else:
            head += b"\xff" + struct.pack("!Q", len(payload))
        key = os.urandom(4)
        with self._sending:
            self.sock.sendall(head + key + apply_mask(payload, key))

    def recv_frame(self) -> tuple[int, bytes]:
        """Receive one frame, and check that a client may see it."""
        first, second = self._read(2)
        assert not first & 0x70, "a reserved bit is set"
        assert not second & 0x80, "a server masks its frames"
        length = second
        if length == 126:
            (length,) = struct.unpack("!H", self._read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._read(8))
        return first & 0x0F, self._read(length)

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            piece = self.sock.recv(max(CHUNK, size - len(self._buffer)))
            if not piece:
                raise ConnectionError("the connection ended without a Close frame")
            self._buffer += piece
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def sendall(self, data: bytes) -> None:
        """Send bytes as binary messages."""
        for start in range(0, len(data), MESSAGE):
            self.send_frame(BINARY, data[start : start + MESSAGE])

    def recv(self, size: int) -> bytes:
        """Receive bytes; none at the end of the stream, which a Close frame is as well."""
        while not self._data and not self._ended:
            self._take_frame()
        data, self._data = self._data[:size], self._data[size:]
        return data

    def _take_frame(self) -> None:
        opcode, payload = self.recv_frame()
        if opcode == PING:
            self.pings += 1
            self.send_frame(PONG, payload)
        elif opcode == CLOSE:
            self.close_code = struct.unpack("!H", payload[:2])[0] if payload else 1005
            self._ended = True
            with contextlib.suppress(OSError):
                self.send_frame(CLOSE, payload[:2])
        elif opcode in (BINARY, CONTINUATION):
            self._ended = not payload and self.half_close
            self._data = payload
        else:
            assert opcode == PONG, f"opcode {opcode}"

    def end(self) -> None:
        """Say that our stream has ended: an empty message, which both sides agreed on."""
        assert self.half_close, "the server does not know half-close"
        self.send_frame(BINARY)

    def recv_close(self) -> int:
        """Read on until the server closes, and give the code of its Close frame."""
        while self.close_code is None:
            self._take_frame()
        return self.close_code

    def close(self) -> None:
        """Drop the connection."""
        self.sock.close()


def upgrade_request(
    host: str,
    port: int | str,
    credentials: Credentials | None = None,
    *,
    path: str = "/",
    half_close: bool = True,
    key: str = "dGhlIHNhbXBsZSBub25jZQ==",  # RFC 6455, section 1.3
) -> bytes:
    """Write an opening handshake that names a target."""
    headers = {
        "Host": "proxy.example",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Version": "13",
        "X-Proxy-Target-Host": host,
        "X-Proxy-Target-Port": str(port),
    }
    if credentials:
        headers["X-Proxy-Username"], headers["X-Proxy-Password"] = credentials
    if half_close:
        headers["X-Proxy-Half-Close"] = "1"
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_response(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read status and headers of an HTTP response; what came behind them is given as well."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(CHUNK)
        if not piece:
            raise ConnectionError(f"the connection ended in the middle of a response: {data!r}")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    version, status = status_line.split(" ")[:2]
    assert version == "HTTP/1.1"
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status), headers, rest


def websocket(
    door: Door,
    host: str,
    port: int,
    credentials: Credentials | None = None,
    *,
    path: str = "/",
    half_close: bool = True,
    tls: ssl.SSLContext | None = None,
    timeout: float = TIMEOUT,
) -> WebTunnel:
    """Connect to a target through a WebSocket door."""
    sock = connect(door, timeout)
    try:
        if tls:
            sock = tls.wrap_socket(sock, server_hostname="localhost")
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall(upgrade_request(host, port, credentials, path=path, half_close=half_close, key=key))
        status, headers, rest = read_response(sock)
        if status != 101:
            raise HttpRefused(status, headers, _read_body(sock, headers, rest))
    except BaseException:
        sock.close()
        raise
    accept = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    assert headers["sec-websocket-accept"] == base64.b64encode(accept).decode()  # RFC 6455, section 4.2.2
    return WebTunnel(sock, rest, headers)


def _read_body(sock: socket.socket, headers: Mapping[str, str], start: bytes) -> bytes:
    if "content-length" not in headers:
        return start + read_to_end(sock)
    return start + read_exact(sock, int(headers["content-length"]) - len(start))


OPEN: Mapping[str, Callable[..., Tunnel]] = {"socks5": socks5, "websocket": websocket}
