"""
What we use of libraries that they do not promise.

Where one of them changes it, the fault shows here, by name, and not as an upstream that cannot be reached.
"""

import _ssl
import base64
import ctypes
import hashlib
import re
import ssl
import subprocess
import sys
from inspect import signature
from types import SimpleNamespace
from typing import Any, cast

import gevent
import pytest
import socks
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer
from websocket._handshake import handshake

from proxy.address import Endpoint
from proxy.listening.opening import bind
from proxy.tls import tickets
from proxy.tls.contexts import validity_of
from proxy.websocket.server import switch_protocols
from tests.integration.certificates import Certificate
from tests.integration.programs import clean_environment

KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Answering:
    """A socket that answers a request for a WebSocket, by the line, though it is asked for single bytes."""

    def __init__(self) -> None:
        self.sent = b""
        self.asked: set[int] = set()
        self.pieces: list[bytes] = []

    def send(self, data: bytes) -> int:
        """Take the request."""
        self.sent += data
        return len(data)

    def recv(self, count: int) -> bytes:
        """Give a line, and then its end."""
        self.asked.add(count)
        if not self.pieces:
            key = re.search(rb"(?m)^Sec-WebSocket-Key: (\S+)\r$", self.sent)
            assert key
            accept = base64.b64encode(hashlib.sha1(key[1] + GUID).digest()).decode()
            head = ["HTTP/1.1 101 x", "Upgrade: websocket", "Connection: Upgrade"]
            lines = "\r\n".join([*head, f"Sec-WebSocket-Accept: {accept}", "", ""]).encode().split(b"\n")
            self.pieces = [piece for line in lines[:-1] for piece in (line, b"\n")]
        return self.pieces.pop(0)

    def gettimeout(self) -> None:
        """Have none."""


def test_websocket_client_asks_for_single_bytes_of_a_head_and_takes_a_line() -> None:
    sock = Answering()
    url = ["ws://host/"] if "url" in signature(handshake).parameters else []
    answer = cast(Any, handshake)(sock, *url, "host", 80, "/", suppress_origin=True)
    assert answer.status == 101
    assert sock.asked == {1}
    assert sock.pieces == []
    assert sock.sent.startswith(b"GET / HTTP/1.1\r\n")


class Files:
    """The files that PySocks has of a connection: what it writes, by the flush, and what it reads."""

    def __init__(self, *replies: bytes) -> None:
        self.replies = list(replies)
        self.messages = [b""]

    def makefile(self, *_: object) -> "Files":
        """Be both of them."""
        return self

    def write(self, data: bytes) -> None:
        """Take a part of a message."""
        self.messages[-1] += data

    def flush(self) -> None:
        """End a message."""
        self.messages.append(b"")

    def read(self, count: int) -> bytes:
        """Give a reply, which is as long as it is expected to be."""
        reply = self.replies.pop(0)
        assert len(reply) == count
        return reply

    def close(self) -> None:
        """Be left."""


class Asking(socks.socksocket):  # type: ignore[misc]
    """PySocks, with addresses of our own."""

    def _write_SOCKS5_address(self, target: str, writer: Files) -> str:
        writer.write(target.encode())
        return target

    def _read_SOCKS5_address(self, reader: Files) -> str:
        return "bound"


def test_pysocks_holds_a_conversation_over_files_and_writes_a_login_at_once() -> None:
    with Asking() as asking:
        asking.set_proxy(socks.SOCKS5, username="-", password="-")
        files = Files(b"\x05\x02", b"\x01\x00", b"\x05\x00\x00")
        assert asking._SOCKS5_request(files, b"\x01", "target") == ("target", "bound")
    assert files.messages == [
        b"\x05\x02\x00\x02",  # RFC 1928, section 3: two methods, none and a login
        b"\x01\x01-\x01-",  # RFC 1929, section 2
        b"\x05\x01\x00target",
        b"",
    ]


def test_gevent_websocket_answers_101_to_an_environment_alone() -> None:
    sent: list[bytes] = []
    switch_protocols(cast(Any, SimpleNamespace(send=sent.append)), KEY, (("X-Added", "1"),))
    status, *lines = b"".join(sent).decode().split("\r\n")
    assert status.startswith("HTTP/1.1 101 ")
    assert {"Upgrade: websocket", "Connection: Upgrade", "X-Added: 1"} <= set(lines)
    assert f"Sec-WebSocket-Accept: {ACCEPT}" in lines
    assert lines[-2:] == ["", ""]


def test_a_listening_socket_of_gevent_gives_a_descriptor_or_says_not_now() -> None:
    with gevent.Timeout(5), bind(Endpoint("tcp", "127.0.0.1", 0))[0] as listening:
        private: Any = listening
        with pytest.raises(BlockingIOError):
            private._accept()
        with socket.create_connection(listening.getsockname()) as client:
            fileno, peer = private._accept()
            assert peer == client.getsockname()
            with socket.socket(fileno=fileno) as served:
                served.sendall(b"x")
                assert client.recv(1) == b"x"


def test_a_server_of_gevent_asks_whether_it_is_full_then_reads_then_handles() -> None:
    told: list[str] = []
    handled = Event()

    class Told(StreamServer):
        def full(self) -> bool:
            told.append("full")
            return False

        def do_read(self) -> Any:
            told.append("do_read")
            return ("client", "peer") if told.count("do_read") == 1 else None

        def do_handle(self, *args: Any) -> None:
            told.append(f"do_handle {args}")
            handled.set()

    with gevent.Timeout(5), bind(Endpoint("tcp", "127.0.0.1", 0))[0] as listening:
        server = Told(listening, lambda *_: None, spawn=None)
        server.start()
        with socket.create_connection(listening.getsockname()):
            handled.wait()
        server.close()
    assert told[:3] == ["full", "do_read", "do_handle ('client', 'peer')"]


def test_the_first_field_of_a_context_points_to_that_of_openssl() -> None:
    """So the keys of tickets can be set; asked with what both can tell."""
    control = tickets._control()
    get_options = ctypes.CDLL(_ssl.__file__).SSL_CTX_get_options
    get_options.argtypes, get_options.restype = [ctypes.c_void_p], ctypes.c_uint64
    for more in (ssl.OP_NO_TICKET, ssl.OP_NO_COMPRESSION):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= more
        pointer = tickets._pointer(context)
        assert get_options(pointer) == context.options & 0xFFFFFFFFFFFFFFFF
        assert control(pointer, tickets._KEYS, 0, None) == 80  # a name, and two keys


def test_python_reads_a_certificate_that_no_peer_has_shown(good: Certificate) -> None:
    """By a function that is there for Python's own tests."""
    told = subprocess.run(
        ["openssl", "x509", "-in", good.cert, "-noout", "-enddate"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    ends = ssl.cert_time_to_seconds(told.stdout.strip().removeprefix("notAfter="))
    validity = validity_of(str(good.cert))
    assert validity
    assert validity[1] == ends


def test_gevent_looks_for_no_plugins_where_the_program_starts() -> None:
    """It would read what all installed packages say of themselves, 25 times."""
    code = """
import sys
from proxy.__main__ import monkey
print(sorted({"importlib.metadata", "pkg_resources"} & set(sys.modules)), monkey.is_module_patched("ssl"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, env=clean_environment("/")
    )
    assert (done.stdout, done.stderr) == ("[] True\n", "")
