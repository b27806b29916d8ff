"""The addresses on which this process listens, told from all others."""

import _socket
import errno
import os
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import gevent
import pytest
from gevent import socket

from proxy.address import Endpoint, Place
from proxy.errors import LimitError
from proxy.listening import ours
from proxy.listening.listen import SocketServer
from proxy.listening.opening import bind
from tests.integration.netns import Namespace
from tests.wire.sockets import free_port
from tests.wire.waits import wait_until


@pytest.mark.parametrize(
    ("place", "target", "expected"),
    [
        ("127.0.0.1:1080", "127.0.0.1", True),
        ("127.0.0.1:1080", "::ffff:127.0.0.1", True),
        ("127.0.0.1:1080", "0.0.0.0", True),  # which Linux takes for the loopback address
        ("127.0.0.1:1080", "127.0.0.2", False),  # somebody else may listen there
        ("127.0.0.1:1080", "::1", False),
        ("0.0.0.0:1080", "127.8.9.10", True),
        ("0.0.0.0:1080", "::1", False),
        ("[::]:1080", "::1", True),
        ("[::]:1080", "127.0.0.1", False),
        (":1080", "127.0.0.1", True),
        (":1080", "::", True),
        (":1080", "::1", True),
        (":1080", "192.0.2.1", False),  # RFC 5737: no machine's
        (":1080", "2001:db8::1", False),  # RFC 3849
        ("[fe80::1%lo]:1080", "fe80::1%lo", True),
        ("[fe80::1%lo]:1080", "fe80::1%eth0", False),
    ],
)
def test_knows_where_a_connection_would_arrive(place: str, target: str, expected: bool) -> None:
    """Case 375."""
    where = Endpoint.parse(place).place
    assert isinstance(where, Place)
    assert ours.leads_to(ip_address(target), where) is expected


EVERYWHERE = Place("::", 1080, both_families=True)


@pytest.mark.parametrize("has_netlink", [True, False])
def test_every_address_of_this_machine_is_told_from_its_neighbours(
    has_netlink: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 375: also a second one, one that came later, and a link-local one."""
    if not has_netlink:
        real = _socket.socket

        def without_netlink(family: int, *rest: int) -> Any:
            if family == socket.AF_NETLINK:
                raise OSError("Address family not supported by protocol")
            return real(family, *rest)

        monkeypatch.setattr(_socket, "socket", without_netlink)
    with Namespace() as space:

        def are_ours(*addresses: str) -> list[bool]:
            return space.run(lambda: [ours.leads_to(ip_address(each), EVERYWHERE) for each in addresses])

        space.ip("link", "add", "here0", "type", "veth", "peer", "name", "there0")
        space.ip("link", "set", "here0", "up")
        space.ip("addr", "add", "10.77.0.1/24", "dev", "here0")
        assert are_ours("10.77.0.1", "10.77.0.2") == [True, False]
        space.ip("addr", "add", "10.77.0.2/24", "dev", "here0")  # secondary: its source would be the first
        space.ip("addr", "add", "2001:db8::1/64", "dev", "here0", "nodad")
        space.ip("addr", "add", "fe80::77/64", "dev", "here0", "nodad")
        new = ("10.77.0.2", "2001:db8::1", "fe80::77%here0")
        wait_until(lambda: all(are_ours(*new)), "the kernel to have routes to what it has just got")
        assert are_ours("10.77.0.3", "2001:db8::2", "fe80::78%here0", "192.0.2.1") == [False] * 4


def test_an_address_that_could_be_bound_is_not_ours_for_that() -> None:
    """Case 375: machines in a cluster may bind each other's addresses (net.ipv4.ip_nonlocal_bind)."""
    with Namespace() as space:

        def allow_any() -> None:
            with open("/proc/sys/net/ipv4/ip_nonlocal_bind", "w") as setting:
                setting.write("1")

        space.run(allow_any)
        assert space.run(lambda: ours.leads_to(ip_address("192.0.2.1"), EVERYWHERE)) is False


def test_a_shortage_of_ours_is_called_so_and_lets_nobody_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 375; DESIGN 1.3."""

    def none_left(*_: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(_socket, "socket", none_left)
    with pytest.raises(LimitError, match="Too many open files"):
        ours.leads_to(ip_address("192.0.2.1"), EVERYWHERE)


@pytest.fixture
def within_seconds() -> Iterator[None]:
    with gevent.Timeout(20):
        yield


@pytest.mark.usefixtures("within_seconds")
def test_an_address_is_ours_as_long_as_a_socket_listens_there() -> None:
    """Case 375: a reload keeps the set current."""
    port, home = free_port(), ip_address("127.0.0.1")
    assert not ours.has(port)
    (sock,) = bind(Endpoint.parse(f"127.0.0.1:{port}"))
    servers = [SocketServer(each, lambda *_: None, 1) for each in (sock, sock.dup())]
    assert ours.has(port)
    servers.pop().close()
    assert ours.is_ours(home, port)
    assert not ours.is_ours(ip_address("127.0.0.2"), port)
    servers.pop().close()
    assert not ours.has(port)
    assert not ours.is_ours(home, port)
