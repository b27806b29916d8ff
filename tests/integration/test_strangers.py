"""
What those may do who have no login, or send what nobody should: it costs little, and fills nothing.
"""

import json
from collections.abc import Iterator

import pytest

from tests.integration.programs import Proxy, socks_door, web_door
from tests.wire.sockets import connect, read_to_end

LONGEST = ".".join(["n" * 63] * 4)  # 255 bytes


@pytest.fixture(scope="module", params=["text", "json"])
def node(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """Run a node that says all that it has to say."""
    doors = {
        "socks": socks_door(),
        "web": web_door(),
        "open": web_door(auth="none"),
        "socks-open": socks_door(auth="none"),
    }
    users = {LONGEST: "wonderland"}
    settings = {"log_format": request.param, "log_level": "debug", "timeout": "2s"}
    with Proxy({"proxy": settings, "auth_users": users, "listeners": doors}) as node:
        yield node


def send(node: Proxy, door: str, said: bytes) -> bytes:
    """Say something at a door, and hear all that it answers."""
    with connect(node.door(door)) as sock:
        sock.sendall(said)
        return read_to_end(sock)


def upgrade(host: bytes = b"h.invalid", *more: bytes, path: bytes = b"/") -> bytes:
    """Write an opening handshake."""
    return b"\r\n".join(
        [
            b"GET " + path + b" HTTP/1.1",
            b"Host: x",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            b"X-Proxy-Target-Host: " + host,
            b"X-Proxy-Target-Port: 1",
            *more,
            b"",
            b"",
        ]
    )


def login(user: bytes, password: bytes = b"wrong") -> bytes:
    """Write what a SOCKS5 client says up to its login (RFC 1929, section 2)."""
    return b"\x05\x01\x02\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password


def to_name(name: bytes) -> bytes:
    """Write a SOCKS5 request for a name (RFC 1928, section 4)."""
    return b"\x05\x01\x00\x03" + bytes([len(name)]) + name + b"\x00\x01"


ODD = [b"\xff", b"\x01", b"\\", b'"', "\u2028".encode(), "\U0001f600".encode()]


@pytest.mark.parametrize("byte", ODD, ids=repr)
def test_no_log_line_has_more_than_1_kb(node: Proxy, byte: bytes) -> None:
    """Case 377."""
    as_name = (byte * 255)[:255]
    as_header = byte * (8000 // len(byte))
    send(node, "socks", login(as_name))
    send(node, "socks", login(LONGEST.encode(), b"wonderland") + to_name(LONGEST.encode()))
    send(node, "socks-open", b"\x05\x01\x00" + to_name(as_name))
    credentials = b"X-Proxy-Username: " + as_name, b"X-Proxy-Password: wrong"
    send(node, "web", upgrade(b"h", *credentials))
    send(node, "web", upgrade(b"h", b"X-Proxy-Username: " + as_header, b"X-Proxy-Password: wrong"))
    send(node, "open", upgrade(as_name))
    send(node, "open", upgrade(as_header))
    send(node, "open", upgrade(path=b"/" + as_header))
    node.wait_for_log(send_last(node))
    lines = node.log_path.read_bytes().splitlines()
    assert max(map(len, lines)) < 1000, max(lines, key=len)
    if node.config["proxy"]["log_format"] == "json":
        assert all(json.loads(line) for line in lines)


def send_last(node: Proxy) -> str:
    """Connect once more, and tell what the access log will have of it."""
    with connect(node.door("socks")) as sock:
        sock.sendall(b"\x05")
        return "{}:{}".format(*sock.getsockname()[:2])


@pytest.mark.parametrize("what", [b"X-Proxy-Username: ", b"X-Proxy-Password: "])
@pytest.mark.parametrize("door", ["web", "open"])
def test_a_name_of_more_than_255_bytes_is_malformed(node: Proxy, door: str, what: bytes) -> None:
    """Case 377."""
    assert send(node, door, upgrade(b"h", what + b"x" * 256)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("host", [b"\xe4\xb8\x80" * 1000, b"x" * 8000, "\U0001f600".encode() * 2000])
def test_a_host_of_more_than_255_bytes_is_malformed(node: Proxy, host: bytes) -> None:
    """Cases 370 and 373."""
    assert send(node, "open", upgrade(host)).startswith(b"HTTP/1.1 400 ")
