"""The SOCKS4 door of a mixed listener, in raw bytes (socks4.protocol, socks4a.protocol)."""

import struct
from collections.abc import Iterator

import pytest

from tests.integration.programs import Proxy, mixed_door
from tests.wire.sockets import Door, connect, free_port, read_exact, read_rest
from tests.wire.targets import Listener
from tests.wire.waits import wait_until

REJECTED = bytes([0, 0x5B, 0, 0, 0, 0, 0, 0])


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    doors = {"open": mixed_door(auth="none"), "login": mixed_door()}
    users = {"alice": "wonderland"}
    with Proxy({"proxy": {"log_level": "debug"}, "listeners": doors, "auth_users": users}) as running:
        yield running
        assert "internal error" not in running.log


@pytest.fixture
def door(proxy: Proxy) -> Door:
    return proxy.door("open")


@pytest.fixture
def target() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener


def request(port: int, ip: bytes = b"\x7f\0\0\x01", user: bytes = b"me", *, command: int = 1) -> bytes:
    """Write a request."""
    return struct.pack("!BBH4s", 4, command, port, ip) + user + b"\0"


def refused(door: Door, data: bytes) -> None:
    """Send a request, and check that it is rejected, and nothing else is said."""
    with connect(door) as client:
        client.sendall(data)
        assert read_rest(client) == (REJECTED, "FIN")


def granted(door: Door, target: Listener, data: bytes) -> None:
    """Send a request with bytes behind it, and check that it is granted, and where it is bound."""
    with connect(door) as client:
        client.sendall(data + b"early")
        far = target.accept()
        assert read_exact(far, 5) == b"early"
        host, port = far.getpeername()
        assert host == "127.0.0.1"
        assert read_exact(client, 8) == struct.pack("!BBH4s", 0, 0x5A, port, b"\x7f\0\0\x01")
        far.sendall(b"down")
        assert read_exact(client, 4) == b"down"


def test_connects_to_an_address(door: Door, target: Listener) -> None:
    granted(door, target, request(target.port))


def test_connects_to_a_name_as_socks4a(door: Door, target: Listener) -> None:
    granted(door, target, request(target.port, b"\0\0\0\x07") + b"localhost\0")


def test_a_user_id_may_be_empty_or_long(door: Door, target: Listener) -> None:
    granted(door, target, request(target.port, user=b""))
    granted(door, target, request(target.port, user=b"u" * 255))


def test_a_request_may_come_byte_by_byte(door: Door, target: Listener) -> None:
    with connect(door) as client:
        for byte in request(target.port, b"\0\0\0\x01") + b"localhost\0":
            client.sendall(bytes([byte]))
        assert read_exact(client, 2) == b"\0\x5a"


def test_texts_without_a_bound_are_cut_short(door: Door, target: Listener) -> None:
    """They have no length of their own, so nobody else bounds them."""
    refused(door, request(target.port, user=b"u" * 256))
    refused(door, request(target.port, b"\0\0\0\x01") + b"n" * 256 + b"\0")
    assert target.untouched


def test_bind_is_rejected(door: Door, target: Listener) -> None:
    refused(door, request(target.port, command=2))
    assert target.untouched


@pytest.mark.parametrize("name", [b"", b"a b", b"\xff", b"-x"])
def test_a_name_that_is_none_is_rejected(door: Door, name: bytes) -> None:
    refused(door, request(80, b"\0\0\0\x01") + name + b"\0")


def test_port_0_is_rejected(door: Door) -> None:
    refused(door, request(0))


def test_a_target_that_refuses_is_rejected(proxy: Proxy, door: Door) -> None:
    port = free_port()
    refused(door, request(port))
    proxy.wait_for_log(f'end="refused: 127.0.0.1:{port}: Connection refused"')


def test_where_a_login_is_needed_it_is_rejected(proxy: Proxy, target: Listener) -> None:
    """DESIGN 1.9. A user ID is no login, and none was tried: it is nothing for fail2ban."""
    refused(proxy.door("login"), request(target.port, user=b"alice"))
    assert target.untouched
    wait_until(lambda: "a login is needed, which SOCKS4 does not have" in proxy.log, "the reason")
    assert "authentication failed" not in proxy.log
