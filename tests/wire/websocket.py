"""
A WebSocket spoken byte by byte, in either role, by nothing of what is under test.

A ``Peer`` sends whatever it is told, right or wrong, and takes apart what comes back.
"""

import base64
import hashlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import NamedTuple

from tests.wire.sockets import CHUNK, Credentials, Door, Holder, connect, is_silent, read_rest

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN = 0x80

# The masking key of the examples in RFC 6455, section 5.7, and the nonce and the answer of section 1.3.
KEY = bytes.fromhex("37fa213d")
NONCE = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


class Frame(NamedTuple):
    """A frame as it stood on the wire, its payload unmasked."""

    first: int  # FIN, the reserved bits, and the opcode
    key: bytes | None
    payload: bytes

    @property
    def opcode(self) -> int:
        """What kind of frame it is."""
        return self.first & 0x0F


def xor(data: bytes, key: bytes) -> bytes:
    """Mask or unmask (RFC 6455, section 5.3)."""
    repeated = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(data), "big")


def header(first: int, length: int, key: bytes | None) -> bytes:
    """Write a frame's header; the length is in its shortest form."""
    mask_bit = 0 if key is None else 0x80
    if length < 126:
        head = bytes([first, mask_bit | length])
    elif length < 1 << 16:
        head = struct.pack("!BBH", first, mask_bit | 126, length)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, length)
    return head + (key or b"")


def frame(first: int, payload: bytes = b"", key: bytes | None = KEY) -> bytes:
    """Write a frame; the key None makes it a server's."""
    return header(first, len(payload), key) + (payload if key is None else xor(payload, key))


def close_payload(code: int, reason: bytes = b"") -> bytes:
    """Write what stands in a Close frame."""
    return struct.pack("!H", code) + reason


def ten_frames(key: bytes | None) -> bytes:
    """Write a bit of everything that a peer may send, with a Close at the end."""
    frames = (
        frame(BINARY, b"alpha", key),  # not the last fragment
        frame(FIN | PING, b"ping", key),
        frame(CONTINUATION, b"", key),
        frame(CONTINUATION, b"beta", key and bytes.fromhex("00ff00ff")),
        frame(FIN | PONG, b"pong", key),
        frame(FIN | CONTINUATION, b"gamma", key),
        frame(FIN | BINARY, b"", key),
        frame(FIN | BINARY, b"d" * 130, key),  # a length of 16 bits
        frame(FIN | PING, b"", key),
        frame(FIN | CLOSE, close_payload(1000, b"bye"), key),
    )
    return b"".join(frames)


SAID_IN_TEN_FRAMES = b"alphabetagamma" + b"d" * 130


def accept_of(key: str) -> str:
    """Compute the answer to a key (RFC 6455, section 1.3)."""
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    return base64.b64encode(digest).decode()


def upgrade(
    port: int | str,
    *extra: str,
    line: str = "GET / HTTP/1.1",
    without: str = "",
    **changes: str,
) -> bytes:
    """Write an opening handshake: the good one, but for what is changed, left out or added."""
    fields = {
        "Host": "proxy.example",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": NONCE,
        "Sec-WebSocket-Version": "13",
        "X-Proxy-Target-Host": "127.0.0.1",
        "X-Proxy-Target-Port": str(port),
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if name != without]
    return "\r\n".join([line, *lines, *extra, "", ""]).encode("latin-1")


def upgrade_request(
    host: str,
    port: int | str,
    credentials: Credentials | None = None,
    *,
    path: str = "/",
    half_close: bool = True,
    key: str = NONCE,
) -> bytes:
    """Write an opening handshake that names a target, with the fields that a good client sends, in UTF-8."""
    fields = {"X-Proxy-Target-Host": host}
    if credentials:
        fields["X-Proxy-Username"], fields["X-Proxy-Password"] = credentials
    fields = {name: value.encode().decode("latin-1") for name, value in fields.items()}
    fields["Sec-WebSocket-Key"] = key
    if half_close:
        fields["X-Proxy-Half-Close"] = "1"
    return upgrade(port, line=f"GET {path} HTTP/1.1", **fields)


def switching(
    key: str, *headers: str, accept: str | None = None, without: str = "", half_close: bool = True
) -> bytes:
    """Write a 101 (RFC 6455, section 4.2.2): the good one, but for what is said, left out or added."""
    fields = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": accept_of(key) if accept is None else accept,
    }
    if half_close:
        fields["X-Proxy-Half-Close"] = "1"
    lines = [f"{name}: {value}" for name, value in fields.items() if name != without]
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, *headers, "", ""]).encode()


class Peer(Holder):
    """One end of a connection; with a key it masks, as clients do."""

    def __init__(self, sock: socket.socket, key: bytes | None = KEY) -> None:
        self.sock = sock
        self.key = key
        self._unread = bytearray()

    @classmethod
    def connect(cls, door: Door, *, receive_buffer: int = 0) -> "Peer":
        """Connect to a door; a small receive buffer lets the other side feel that we do not read."""
        return cls(connect(door, receive_buffer=receive_buffer))

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        self.sock.sendall(data)

    def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        """Send a frame."""
        self.write(frame((FIN if fin else 0) | opcode, payload, self.key))

    def read(self, size: int) -> bytes:
        """Read exactly so many bytes."""
        while len(self._unread) < size:
            self._read_more()
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def read_head(self) -> tuple[str, dict[str, str]]:
        """Read the head of an HTTP message: its first line, and its headers, names in lower case."""
        while b"\r\n\r\n" not in self._unread:
            self._read_more()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in lines]
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        assert len(headers) == len(pairs), f"a header is repeated: {lines}"
        return first, headers

    def _read_more(self) -> None:
        data = self.sock.recv(CHUNK)
        if not data:
            raise ConnectionError(f"the connection ended after {bytes(self._unread)!r}")
        self._unread += data

    def read_answer(self) -> tuple[int, dict[str, str]]:
        """Read the head of an HTTP answer: its status, and its headers."""
        first, headers = self.read_head()
        version, status, *_ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        return int(status), headers

    def read_body(self, headers: Mapping[str, str]) -> bytes:
        """Read what is behind a head: as much as it says, or all."""
        length = headers.get("content-length")
        return self.read_rest()[0] if length is None else self.read(int(length))

    def recv(self) -> Frame:
        """Receive the next frame."""
        first, second = self.read(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.read(8))
        key = self.read(4) if second & 0x80 else None
        payload = self.read(length)
        return Frame(first, key, xor(payload, key) if key else payload)

    def recv_data(self, size: int) -> bytes:
        """Receive so many bytes of payload; every frame on the way is one of data."""
        data = bytearray()
        while len(data) < size:
            got = self.recv()
            assert got.opcode in (BINARY, CONTINUATION), got
            data += got.payload
        return bytes(data)

    def recv_close(self) -> int | None:
        """Receive a Close frame, with nothing before it, and give its code."""
        got = self.recv()
        assert got.first == FIN | CLOSE, got
        return int.from_bytes(got.payload[:2], "big") if got.payload else None

    def wait(self, seconds: float) -> None:
        """Read nothing for so long: here the time itself is what is tested."""
        time.sleep(seconds)

    def read_rest(self) -> tuple[bytes, str]:
        """Read to the end of the connection, and tell how it ended."""
        data, end = read_rest(self.sock)
        data = bytes(self._unread) + data
        self._unread.clear()
        return data, end

    def is_silent(self, seconds: float) -> bool:
        """Tell whether nothing arrives for so long, not even an end."""
        return not self._unread and is_silent(self.sock, seconds)
