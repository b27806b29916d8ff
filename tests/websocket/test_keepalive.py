"""
When a WebSocket peer is asked for a sign of life, and when it is dead (CASES D124).

The clock is passed in, so that nobody who is kept from answering for a while is dead in a test.
"""

import select
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.relaying.stream import Buffer, TcpStream
from proxy.websocket.stream import WebSocketStream
from tests.wire.greenlets import PATIENCE, patience, tcp_pair
from tests.wire.websocket import BINARY, FIN, KEY, PING, PONG, Peer, frame

INTERVAL = 30.0  # seconds


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience():
        yield


class Ends:
    """A stream, the peer of it, and a clock."""

    def __init__(self, *, server: bool) -> None:
        theirs, ours = tcp_pair()
        sock: Any = theirs  # a Peer asks no more of a socket than gevent's can do
        self.peer = Peer(sock, KEY if server else None)
        self._readable = select.poll()
        self._readable.register(ours, select.POLLIN)
        self.stream = WebSocketStream(
            TcpStream(ours), server=server, half_close=False, ping_interval=INTERVAL
        )
        self.now = 1000.0
        self.listening = True
        assert self.tick(0.0)

    def tick(self, intervals: float) -> bool:
        """Let time go by, and tell whether the peer is taken for alive."""
        self.now += intervals * INTERVAL
        return self.stream.tick(self.now, listening=self.listening)

    def hear(self, sent: bytes) -> None:
        """Let the peer send something, and read it."""
        self.peer.write(sent)
        assert self._readable.poll(1000 * PATIENCE)
        self.stream.recv_into(Buffer(), bulk=False)


@pytest.fixture(params=["server", "client"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """Be in either role."""
    made = Ends(server=request.param == "server")
    yield made
    made.peer.sock.close()


def test_a_peer_that_answers_is_asked_again_and_again_and_lives(ends: Ends) -> None:
    for _ in range(5):
        assert ends.tick(1.0)
        ping = ends.peer.recv()
        assert (ping.first, ping.key is None) == (FIN | PING, ends.peer.key is not None)
        ends.hear(frame(FIN | PONG, ping.payload, ends.peer.key))
        assert ends.tick(0.5)  # which is when it is seen to have answered


def test_a_peer_that_is_silent_for_two_intervals_is_dead(ends: Ends) -> None:
    assert ends.tick(1.0)
    assert ends.peer.recv().opcode == PING
    assert ends.tick(0.99)
    assert not ends.tick(0.01)


@pytest.mark.parametrize(
    ("first", "payload"),
    [(FIN | PONG, b"not asked for"), (FIN | PING, b""), (FIN | BINARY, b""), (FIN | BINARY, b"some")],
    ids=["pong", "ping", "empty", "data"],
)
def test_any_frame_is_a_sign_of_life(ends: Ends, first: int, payload: bytes) -> None:
    for _ in range(5):
        ends.hear(frame(first, payload, ends.peer.key))
        assert ends.tick(0.0)
        assert ends.tick(1.9)
    assert not ends.tick(0.1)


def test_a_peer_that_we_do_not_listen_to_is_not_judged_and_hears_that_we_live(ends: Ends) -> None:
    """Case 330: it cannot be asked, as its answer would stand behind what is not taken."""
    ends.listening = False
    assert ends.tick(0.0)
    for _ in range(5):
        assert ends.tick(1.0)
        pong = ends.peer.recv()
        assert (pong.first, pong.payload) == (FIN | PONG, b"")
    ends.listening = True
    assert ends.tick(0.0)
    assert ends.tick(1.9)
    assert not ends.tick(0.1)


def test_a_peer_that_has_to_take_our_bytes_first_is_not_judged(ends: Ends) -> None:
    buffer = Buffer()
    while not ends.stream.blocked:
        buffer.payload[:60_000] = bytes(60_000)
        ends.stream.send(buffer, 60_000)
    for _ in range(5):
        assert ends.tick(3.0)
