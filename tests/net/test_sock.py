"""Sockets of the event loop, and how the system writes addresses."""

import errno
import socket as std_socket
import sys
from ipaddress import ip_address

import pytest
from gevent import socket
from gevent.event import Event

from proxy.address import Address
from proxy.net.limits import BALLAST
from proxy.net.sock import address_of, set_options, sockaddr_of, take_over
from tests.wire.greenlets import PATIENCE, Pair


def test_what_cannot_be_done_at_once_is_said(pair: Pair) -> None:
    sock = take_over(pair[0])
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    sock.close()


def test_a_socket_that_was_taken_over_is_spent(pair: Pair) -> None:
    ours, theirs = pair
    number = ours.fileno()
    sock = take_over(ours)
    assert (sock.fileno(), ours.fileno()) == (number, -1)
    assert take_over(sock) is sock
    sock.send(b"on")
    assert theirs.recv(10) == b"on"
    sock.close()


def test_a_watcher_is_made_when_it_is_needed_and_goes_with_its_socket(pair: Pair) -> None:
    """Else the next socket with its number would be watched by it."""
    ours, theirs = pair
    sock = take_over(ours)
    reader = sock.reader
    assert sock.reader is reader
    readable = Event()
    reader.start(readable.set)
    theirs.sendall(b"x")
    assert readable.wait(PATIENCE)
    sock.close()
    assert not reader.active
    assert sock.fileno() == -1


def test_every_connection_is_asked_for_a_sign_of_life_and_sends_small_messages_at_once() -> None:
    """Case 343: the kernel asks after a minute, not after two hours."""
    with socket.socket() as sock:
        set_options(sock)
        assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE)
        assert sock.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY)
        if sys.platform == "linux":
            assert sock.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_KEEPIDLE) == 60


def test_an_address_is_written_as_sockets_want_it() -> None:
    loopback = std_socket.if_nametoindex("lo")
    assert sockaddr_of(ip_address("192.0.2.1"), 80) == ("192.0.2.1", 80)
    assert sockaddr_of(ip_address("fe80::1%lo"), 80) == ("fe80::1", 80, 0, loopback)
    assert sockaddr_of(ip_address("fe80::1%7"), 80) == ("fe80::1", 80, 0, 7)


def test_an_interface_that_is_not_there_is_an_error_with_a_number() -> None:
    with pytest.raises(OSError, match="there is no interface gone") as raised:
        sockaddr_of(ip_address("fe80::1%gone"), 80)
    assert raised.value.errno == errno.ENODEV


@pytest.mark.parametrize(("sockaddr", "address"), [
    (("192.0.2.1", 80), Address("192.0.2.1", 80)),
    (("2001:db8::1", 80, 0, 0), Address("2001:db8::1", 80)),
    (("::ffff:192.0.2.1", 80, 0, 0), Address("192.0.2.1", 80)),
    (("fe80::1", 80, 0, std_socket.if_nametoindex("lo")), Address("fe80::1", 80, "lo")),
    (("fe80::1%gone", 80, 0, 1 << 20), Address("fe80::1", 80, "1048576")),
    ("", Address("0.0.0.0", 0)),  # a Unix socket's
])  # fmt: skip
def test_what_the_system_calls_an_address_becomes_one(sockaddr: object, address: Address) -> None:
    assert address_of(sockaddr) == address


def test_nothing_is_kept_where_that_would_use_up_the_last_memory(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave_some() -> None:
        raise MemoryError

    sock = take_over(pair[0])
    monkeypatch.setattr(BALLAST, "leave_some", leave_some)
    sock.write(b"this is taken at once")
    with pytest.raises(MemoryError):
        sock.write(bytes(64 << 20))
    assert not sock.unsent
    sock.close()
