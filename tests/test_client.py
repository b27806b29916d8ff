"""What all ways out share: whose fault an error is, who speaks at the far end, and use as a library."""

import errno
from collections.abc import Iterator

import pytest
from gevent import socket

from proxy.address import Address
from proxy.client import Connected, DirectClient, UpstreamClient, speaker_of
from proxy.errors import ConfigError, DialError, Failure, LimitError, ProxyError
from proxy.net.deadline import Deadline
from proxy.relaying.channel import Channel
from proxy.settings.client import ClientConfig
from proxy.settings.protocols import Protocol
from tests.wire.greenlets import PATIENCE, patience, tcp_pair


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience():
        yield


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Listen, as a target does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        yield listening


class Upstream(UpstreamClient):
    """A way through a proxy of which nothing matters but its faults."""

    def __init__(self) -> None:
        super().__init__(ClientConfig("127.0.0.1:1", Protocol.SOCKS5), "home")

    def prepare(self, channel: Channel, deadline: Deadline) -> None:
        raise NotImplementedError

    def ask(self, channel: Channel, deadline: Deadline) -> int:
        raise NotImplementedError

    def ask_for(self, target: Address, channel: Channel, deadline: Deadline) -> Connected:
        raise NotImplementedError


# -- whose fault it is


def test_the_proxys_fault_is_never_taken_for_the_targets() -> None:
    """Whatever the cause says: it is about the proxy, and the client asked for something else."""
    error = Upstream().as_upstream_error("refused", DialError("refused", Failure.REFUSED))
    assert (str(error), error.failure, error.transient) == ("upstream home: refused", Failure.UPSTREAM, True)


@pytest.mark.parametrize("cause", [TimeoutError("late"), DialError("late", Failure.TIMED_OUT)])
def test_that_time_ran_out_is_true_of_both(cause: Exception) -> None:
    error = Upstream().as_upstream_error("late", cause)
    assert (error.failure, error.transient) == (Failure.TIMED_OUT, True)


def test_what_may_have_been_the_targets_silence_is_not_tried_again() -> None:
    """The request was sent: to say it twice might do twice what it asks for."""
    assert not Upstream().as_upstream_error("late", TimeoutError("late"), unclear=True).transient
    assert Upstream().as_upstream_error("cut", EOFError("cut"), unclear=True).transient


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_shortage_of_our_own_is_nobodys_fault(number: int) -> None:
    """CASES 178."""
    with pytest.raises(LimitError, match="upstream home"):
        Upstream().as_upstream_error("cannot connect", OSError(number, "too many"))


def test_a_login_that_is_refused_is_not_repeated_and_says_whether_there_was_one() -> None:
    client = Upstream()
    assert str(client.login_refused()) == "upstream home: wants a login, and none is set"
    client.authenticate("alice", "wonderland")
    assert str(client.login_refused()) == "upstream home: refused our credentials"
    assert not client.login_refused().transient


def test_what_the_protocol_cannot_carry_is_refused_before_it_is_used() -> None:
    """CASES B44: RFC 1929 has one byte for each length."""
    client = Upstream()
    with pytest.raises(ConfigError):
        client.authenticate("a" * 256, "b")
    assert client.credentials is None


# -- who speaks


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "an HTTP server"),
        (b"H", "an HTTP server"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "an SSH server"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "a TLS server"),  # RFC 8446, section 6: an alert
        (b"\x05\xff", "a SOCKS5 server"),
        (b"220 mail.example ESMTP", "a mail or FTP server"),
        (b"hello", "something that begins with b'hell'"),
    ],
)
def test_who_speaks_is_named_by_its_first_bytes(said: bytes, name: str) -> None:
    assert speaker_of(said) == name


# -- as a library


def test_a_connection_is_joined_to_a_client(listener: socket.socket) -> None:
    client = DirectClient(timeout=PATIENCE)
    connected = client.connect(*listener.getsockname())
    target, peer = listener.accept()
    assert str(connected.bound) == f"{peer[0]}:{peer[1]}"
    near, far = tcp_pair()
    near.sendall(b"question")
    near.shutdown(1)
    target.sendall(b"answer!")
    target.close()
    transfer = client.forward_data(far)
    assert (transfer.sent, transfer.received) == (8, 7)


def test_there_is_nothing_to_join_before_a_connection() -> None:
    with pytest.raises(ProxyError, match="comes after connect"):
        DirectClient().forward_data(tcp_pair()[0])


def test_the_next_connection_closes_the_one_before(listener: socket.socket) -> None:
    client = DirectClient(timeout=PATIENCE)
    client.connect(*listener.getsockname())
    first, _ = listener.accept()
    client.connect(*listener.getsockname())
    second, _ = listener.accept()
    assert first.recv(1) == b""
    client.close()
    assert second.recv(1) == b""
