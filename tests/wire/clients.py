"""
Clients that open tunnels, writing a proxy's protocols byte by byte, as the RFCs print them.

A ``Tunnel`` is what both give: bytes in, bytes out, and an end in each direction. Clients that other
people wrote (curl, PySocks, websocket-client, websockets) are in ``test_peers``.
"""

import base64
import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from tests.wire.sockets import TIMEOUT, Credentials, Door, connect, read_exact
from tests.wire.socks5 import login, read_socks_reply, socks_greeting, socks_request
from tests.wire.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, Peer, accept_of, upgrade_request

MESSAGE = 1 << 16  # bytes of payload in a frame, at the most


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
            sock.sendall(login(*(text.encode() for text in credentials)))
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


class WebTunnel:
    """The stream behind a 101: binary messages, masked (RFC 6455, section 5)."""

    def __init__(self, peer: Peer, headers: Mapping[str, str]) -> None:
        self.sock = peer.sock
        self.headers = headers
        self.half_close = headers.get("x-proxy-half-close") == "1"
        self.close_code: int | None = None  # of the Close frame that we were sent
        self.pings = 0
        self._peer = peer
        self._data = b""
        self._ended = False
        self._sending = threading.Lock()  # pongs come from the thread that receives

    def send_frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        """Send one frame, masked with a key of its own."""
        with self._sending:
            self._peer.key = os.urandom(4)
            self._peer.send(opcode, payload, fin=fin)

    def recv_frame(self) -> tuple[int, bytes]:
        """Receive one frame, and check that a client may see it."""
        frame = self._peer.recv()
        assert not frame.first & 0x70, "a reserved bit is set"
        assert frame.key is None, "a server masks its frames"
        return frame.opcode, frame.payload

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
        peer = Peer(sock)
        status, headers = peer.read_answer()
        if status != 101:
            raise HttpRefused(status, headers, peer.read_body(headers))
    except BaseException:
        sock.close()
        raise
    assert headers["sec-websocket-accept"] == accept_of(key)  # RFC 6455, section 4.2.2
    return WebTunnel(peer, headers)


OPEN: Mapping[str, Callable[..., Tunnel]] = {"socks5": socks5, "websocket": websocket}
