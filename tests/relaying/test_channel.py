"""A socket during a handshake."""

import socket as std_socket
import time
from collections.abc import Callable
from contextlib import suppress

import gevent
import pytest
from gevent import socket

from proxy.errors import ClientLeftError
from proxy.net.sock import LoopSocket
from proxy.relaying.channel import Channel
from proxy.relaying.relay import DataForwarder
from proxy.relaying.stream import Buffer
from tests.net.wires import arrived
from tests.wire.greenlets import Pair, settle, tcp_pair
from tests.wire.sockets import read_to_end, reset

LATE = 8.0  # seconds: how late a busy machine may be


def test_exactly_what_is_asked_for_is_read_however_it_comes(pair: Pair) -> None:
    ours, theirs = pair
    channel = Channel(ours)

    def send_in_pieces() -> None:
        for byte in b"0123456789":
            theirs.sendall(bytes([byte]))
            gevent.sleep(0.002)

    gevent.spawn(send_in_pieces)
    assert channel.read_exact(4) == b"0123"
    assert channel.read_exact(0) == b""
    assert channel.read_exact(6) == b"456789"


def test_an_end_before_all_was_read_is_an_error(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"ab")
    theirs.close()
    with pytest.raises(EOFError):
        Channel(ours).read_exact(3)


def test_what_is_pushed_back_is_read_again(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"abcdef")
    channel = Channel(ours)
    channel.read_exact(6)
    channel.push_back(b"def")
    assert channel.recv(2) == b"de"
    assert channel.read_exact(1) == b"f"
    theirs.close()
    assert channel.recv(1) == b""


def test_after_a_question_nothing_is_read_before_there_is_an_answer(pair: Pair) -> None:
    """A look that finds nothing is a system call and an exception for nothing."""

    class Watched(LoopSocket):
        reads = 0

        def recv(self, *args: int) -> bytes:
            Watched.reads += 1
            return super().recv(*args)

    ours, theirs = pair
    sock = Watched(ours.family, std_socket.SOCK_STREAM, fileno=ours.detach())
    channel = Channel(sock)
    channel.send(b"question")
    asking = gevent.spawn(channel.recv, 10)
    assert theirs.recv(10) == b"question"
    settle()
    assert Watched.reads == 0
    theirs.sendall(b"answer")
    assert (asking.get(), Watched.reads) == (b"answer", 1)
    sock.close()


def test_what_came_early_goes_first_into_the_relay(pair: Pair) -> None:
    """CASES A2."""
    ours, theirs = pair
    theirs.sendall(b"greeting" + b"early")
    channel = Channel(ours)
    assert channel.read_exact(8) == b"greeting"
    stream = channel.stream()
    theirs.sendall(b" and late")
    theirs.close()
    target, far = tcp_pair()
    gevent.spawn(DataForwarder().forward_data, stream, far)
    assert read_to_end(target) == b"early and late"
    target.close()


def test_a_channel_that_handed_its_socket_over_does_not_close_it(pair: Pair) -> None:
    ours, theirs = pair
    channel = Channel(ours)
    stream = channel.stream()
    channel.abort()
    theirs.sendall(b"x")
    assert arrived(stream, Buffer()) == 1


def test_a_last_word_arrives_although_the_peer_had_more_to_say(pair: Pair) -> None:
    """CASES A3: Linux resets what is closed with unread bytes, and a reset overtakes what was sent."""
    ours, theirs = pair
    theirs.sendall(b"unread" * 1000)
    channel = Channel(ours)
    channel.send(b"refused")
    closing = gevent.spawn(channel.close)
    assert theirs.recv(100) == b"refused"
    assert theirs.recv(100) == b""
    theirs.close()
    closing.get()


def test_a_peer_that_never_leaves_is_left(pair: Pair) -> None:
    ours, _theirs = pair
    started = time.monotonic()
    Channel(ours).close()
    assert time.monotonic() - started < 1.0 + LATE
    assert ours.fileno() == -1


def test_a_peer_that_never_stops_sending_is_left(pair: Pair) -> None:
    """CASES A3."""
    ours, theirs = pair

    def blast() -> None:
        with suppress(OSError):
            while True:
                theirs.sendall(bytes(1 << 16))

    blasting = gevent.spawn(blast)
    started = time.monotonic()
    Channel(ours).close()
    assert time.monotonic() - started < 5.0 + LATE
    blasting.get()


def test_a_channel_knows_whether_the_peer_has_said_anything(pair: Pair) -> None:
    ours, theirs = pair
    channel = Channel(ours)
    gevent.spawn_later(0.01, theirs.sendall, b"\x16\x03")
    assert not channel.heard
    assert channel.read_exact(1) == b"\x16"
    assert channel.heard


@pytest.mark.parametrize(("leave", "error"), [
    (lambda peer: peer.close(), EOFError),
    (reset, ConnectionResetError),
])  # fmt: skip
def test_a_peer_that_leaves_without_a_byte_has_said_nothing(
    pair: Pair, leave: Callable[[socket.socket], None], error: type[Exception]
) -> None:
    ours, theirs = pair
    channel = Channel(ours)
    leave(theirs)
    with pytest.raises(error):
        channel.read_exact(1)
    assert not channel.heard


# -- watching for a client that leaves


def test_a_reset_ends_the_watched_block(pair: Pair) -> None:
    """CASES C89."""
    ours, theirs = pair
    gevent.spawn_later(0.05, reset, theirs)
    started = time.monotonic()
    with pytest.raises(ClientLeftError), Channel(ours).watched(grace=60):
        gevent.sleep(60)
    assert time.monotonic() - started < 0.2 + LATE


@pytest.mark.parametrize("grace", [0.0, 0.4])
def test_a_fin_ends_the_watched_block_after_the_grace(pair: Pair, grace: float) -> None:
    """CASES C89; A37 is why there is a grace."""
    ours, theirs = pair
    theirs.shutdown(std_socket.SHUT_WR)
    started = time.monotonic()
    with pytest.raises(ClientLeftError), Channel(ours).watched(grace):
        gevent.sleep(60)
    assert grace * 0.7 <= time.monotonic() - started < grace + 0.2 + LATE


def test_a_client_that_stays_is_left_alone_whatever_it_sends(pair: Pair) -> None:
    ours, theirs = pair
    channel = Channel(ours)
    with channel.watched(grace=0.0):
        theirs.sendall(b"early")
        gevent.sleep(0.3)  # a few looks of who watches
    assert channel.recv(10) == b"early"


def test_after_the_block_nobody_watches(pair: Pair) -> None:
    ours, theirs = pair
    with Channel(ours).watched(grace=0.0):
        pass
    reset(theirs)
    gevent.sleep(0.25)  # a few looks of who would watch


def test_an_error_of_the_watched_block_passes_through(pair: Pair) -> None:
    with pytest.raises(KeyError), Channel(pair[0]).watched(grace=0.0):
        raise KeyError("mine")


def test_a_library_that_catches_every_error_does_not_catch_the_leaving(pair: Pair) -> None:
    ours, theirs = pair
    reset(theirs)

    def library() -> None:
        try:
            gevent.sleep(60)
        except Exception:
            pytest.fail("it was caught")

    with pytest.raises(ClientLeftError), Channel(ours).watched(grace=60):
        library()


def test_a_peer_that_sends_byte_by_byte_is_not_read_byte_by_byte() -> None:
    """Each would cost as much as a whole request."""
    ours, peer = tcp_pair()
    channel = Channel(ours)

    def drip() -> None:
        for _ in range(300):
            peer.send(b"x")
            gevent.sleep(0.001)

    started = time.monotonic()
    dripping = gevent.spawn(drip)
    pieces: list[bytes] = []
    with gevent.Timeout(10):
        while len(b"".join(pieces)) < 300:
            pieces.append(channel.recv(4096))
        dripping.join()
    # The first 32 at once, and then twenty times a second.
    assert len(pieces) < 34 + (time.monotonic() - started) * 20
