"""A socket as one end of a relay."""

import os

import pytest

from proxy.relaying.stream import BUFFER_SIZE, Buffer, Ending, TcpStream
from tests.net.wires import arrived
from tests.wire.greenlets import Pair


def test_nothing_there_is_told_from_the_end(pair: Pair) -> None:
    ours, theirs = pair
    stream, buffer = TcpStream(ours), Buffer()
    assert stream.recv_into(buffer, bulk=False) is None
    theirs.close()
    assert arrived(stream, buffer) == 0


def test_what_the_socket_does_not_take_is_kept_and_sent_later(pair: Pair) -> None:
    """Nothing here waits; the relay does."""
    ours, theirs = pair
    stream, buffer = TcpStream(ours), Buffer()
    expected = b""
    while not stream.blocked:
        data = os.urandom(BUFFER_SIZE)
        buffer.payload[:] = data
        stream.send(buffer, BUFFER_SIZE)
        expected += data
    received = b""
    while len(received) < len(expected):
        received += theirs.recv(BUFFER_SIZE)
        stream.flush()
    assert received == expected
    assert not stream.blocked


def test_an_end_is_half_a_close(pair: Pair) -> None:
    ours, theirs = pair
    stream, buffer = TcpStream(ours), Buffer()
    assert stream.half_closes
    stream.end()
    assert theirs.recv(1) == b""
    theirs.sendall(b"answer")
    assert arrived(stream, buffer) == 6


@pytest.mark.parametrize("ending", list(Ending))
def test_only_what_finished_is_closed_with_a_fin(pair: Pair, ending: Ending) -> None:
    """CASES D120: a cut must not look like an end."""
    ours, theirs = pair
    stream = TcpStream(ours)
    stream.begin_close(ending)
    stream.finish_close()
    if ending is Ending.FINISHED:
        assert theirs.recv(1) == b""
    else:
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)


def test_a_buffer_has_room_for_a_header_in_front() -> None:
    """RFC 6455, section 5.2: a header has 14 bytes at most."""
    buffer = Buffer()
    assert len(buffer.payload) == BUFFER_SIZE
    buffer.payload[0] = 7
    assert buffer.view[14] == 7
