"""
Relays that share a bandwidth: what waits for it, and what does not.

A throttle that somebody holds is closed for as long as a test wants. How exactly a rate is kept stands in
``test_throttle``; here it is only never exceeded, which a busy machine does not change.
"""

import os
from collections.abc import Callable, Iterator
from random import Random
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket

from proxy.relaying import relay as module
from proxy.relaying.relay import LINGER, DataForwarder
from proxy.relaying.stream import Ending, Stream, TcpStream
from proxy.sharing.pipes import Pipe
from proxy.sharing.throttle import CHUNK_TIME, Place, Throttle
from proxy.websocket.stream import WebSocketStream
from tests.relaying.test_relay_turns import Tunnel, every_way, run, websocket
from tests.relaying.test_relay_turns import _patience as _patience
from tests.relaying.test_relay_turns import tunnels as tunnels
from tests.wire.greenlets import send_and_end, settle, tcp_pair, until
from tests.wire.sockets import read_exact, read_to_end, reset
from tests.wire.websocket import frame

KIB, MIB = 1 << 10, 1 << 20
MANY = 64 * 1024 * MIB  # bytes a second: no limit that is felt
MASK = b"\x00\x00\x00\x00"

Make = Callable[[int], list[Tunnel]]


class Closed(Throttle):
    """A throttle that lets nobody through until it is ``open``."""

    def __init__(self) -> None:
        super().__init__(MANY)
        self._holder = Place(self, self.open)
        assert self.ask(self._holder)

    def open(self) -> None:
        """Let the next one through, and everybody from then on."""
        self.pay(self._holder, 0)

    @property
    def waiting(self) -> int:
        """How many wait for it."""
        return len(self._waiting)


class Joined:
    """Two streams that are relayed; the tests hold the far ends."""

    def __init__(self, client: Callable[[socket.socket], Stream], *, zero_copy: bool) -> None:
        self.client, near = tcp_pair()
        self.target, far = tcp_pair()
        forwarder = DataForwarder(zero_copy=zero_copy)
        self.relay = forwarder.relay(client(near), TcpStream(far))
        self.running = gevent.spawn(forwarder.run, self.relay)
        gevent.sleep(0)

    def close(self) -> None:
        """Clean up."""
        self.client.close()
        self.target.close()
        self.running.kill()


Join = Callable[..., Joined]


@pytest.fixture
def join() -> Iterator[Join]:
    """Join two connections, as often as a test wants."""
    made: list[Joined] = []

    def make(client: Callable[[socket.socket], Stream] = TcpStream, *, zero_copy: bool = True) -> Joined:
        made.append(Joined(client, zero_copy=zero_copy))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def closed() -> Closed:
    """Make a throttle that lets nobody through."""
    return Closed()


def web_client(sock: socket.socket) -> Stream:
    """Be the server of a WebSocket client that knows half-close."""
    return websocket(sock, server=True)


def old_web_client(sock: socket.socket) -> Stream:
    """Be the server of one that does not."""
    return WebSocketStream(TcpStream(sock), server=True, half_close=False, ping_interval=0)


@pytest.mark.parametrize("zero_copy", [True, False], ids=["splice", "copy"])
def test_the_rate_is_never_exceeded_in_either_direction_and_every_byte_arrives(
    join: Join, zero_copy: bool
) -> None:
    rate, up, down = 2 * MIB, os.urandom(MIB), os.urandom(MIB // 2)
    joined = join(zero_copy=zero_copy)
    joined.relay.limit((Throttle(rate),), (Throttle(rate // 2),))
    began = monotonic()
    sending = [gevent.spawn(send_and_end, joined.client, up), gevent.spawn(send_and_end, joined.target, down)]
    reading = gevent.spawn(read_to_end, joined.client)
    assert read_to_end(joined.target) == up
    assert reading.get() == down
    took = monotonic() - began
    gevent.joinall(sending)
    assert took >= 1 / 2 - 3 * CHUNK_TIME  # each has to wait as long; one after the other, it would be twice


@every_way
def test_no_way_to_move_bytes_gets_round_it_and_all_get_alike(tunnels: Make) -> None:
    rate = 16 * MIB
    throttle = Throttle(rate)
    all_of_them = tunnels(8)
    for tunnel in all_of_them:
        tunnel.relay.limit((throttle,), ())
    began = monotonic()
    run(all_of_them, 4 * MIB)
    before = [tunnel.relay.sent for tunnel in all_of_them]
    run(all_of_them, 12 * MIB)
    # What it held at first, and a debt of one operation.
    assert sum(tunnel.relay.sent for tunnel in all_of_them) <= rate * (monotonic() - began + 2 * CHUNK_TIME)
    moved = [tunnel.relay.sent - was for tunnel, was in zip(all_of_them, before, strict=True)]
    assert min(moved) >= 0.8 * sum(moved) / len(moved)


@pytest.mark.parametrize("way", ["splice", "splice a frame"])
@pytest.mark.parametrize("count", [1, 4, 16])
def test_bytes_under_a_limit_are_not_copied(
    tunnels: Make, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    spliced = 0
    fill = Pipe.fill

    def counting(self: Pipe, source: int, most: int) -> int:
        nonlocal spliced
        filled = fill(self, source, most)
        spliced += filled
        return filled

    monkeypatch.setattr(Pipe, "fill", counting)
    throttle = Throttle(4 * MIB)
    some = tunnels(count)
    for tunnel in some:
        tunnel.relay.limit((throttle,), ())
    run(some, 2 * MIB)
    moved, spliced = sum(tunnel.relay.sent for tunnel in some), 0  # the first of each is always copied
    run(some, 4 * MIB)
    # Where the source runs dry for a moment, one operation copies: how often is the machine's affair.
    assert spliced >= 0.5 * (sum(tunnel.relay.sent for tunnel in some) - moved)


def test_payload_waits_for_its_bandwidth_and_the_other_direction_does_not(join: Join, closed: Closed) -> None:
    joined = join()
    joined.relay.limit((closed,), ())
    joined.client.sendall(b"up")
    until(lambda: closed.waiting)
    joined.target.sendall(b"down")
    assert read_exact(joined.client, 4) == b"down"
    settle()
    assert joined.relay.sent == 0
    closed.open()
    assert read_exact(joined.target, 2) == b"up"


def test_the_end_of_a_direction_passes_while_payload_of_the_other_one_waits(
    join: Join, closed: Closed
) -> None:
    joined = join()
    joined.relay.limit((), (closed,))
    joined.target.sendall(b"down")
    until(lambda: closed.waiting)
    joined.client.sendall(b"up")
    joined.client.shutdown(socket.SHUT_WR)
    assert read_to_end(joined.target) == b"up"
    closed.open()
    assert read_exact(joined.client, 4) == b"down"


def test_a_ping_is_answered_while_payload_waits(join: Join, closed: Closed) -> None:
    joined = join(web_client)
    joined.relay.limit((), (closed,))
    joined.target.sendall(b"down")
    until(lambda: closed.waiting)
    joined.client.sendall(frame(0x89, b"there?", MASK))
    assert read_exact(joined.client, 8) == frame(0x8A, b"there?", None)
    closed.open()
    assert read_exact(joined.client, 6) == frame(0x82, b"down", None)


def test_a_close_is_passed_on_while_payload_waits(join: Join, closed: Closed) -> None:
    joined = join(web_client)
    joined.relay.limit((), (closed,))
    joined.target.sendall(b"down")
    until(lambda: closed.waiting)
    joined.client.sendall(frame(0x88, b"\x03\xe8", MASK))
    assert read_to_end(joined.target) == b""


def test_what_follows_the_end_of_stream_needs_no_bandwidth(join: Join, closed: Closed) -> None:
    """A WebSocket whose direction has ended goes on with Pings, which are no payload."""
    joined = join(web_client)
    joined.client.sendall(frame(0x82, b"", MASK))
    assert read_to_end(joined.target) == b""
    joined.relay.limit((closed,), ())
    joined.client.sendall(frame(0x89, b"there?", MASK))
    assert read_exact(joined.client, 8) == frame(0x8A, b"there?", None)


def test_a_wait_for_bandwidth_is_no_silence_of_a_peer(
    join: Join, closed: Closed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be told of an end is given up when it is silent. Here it is we who do not listen."""
    monkeypatch.setattr(module, "_SWEEP", 3600.0)
    joined = join(old_web_client)
    joined.relay.limit((closed,), ())
    joined.client.sendall(frame(0x82, b"up", MASK))
    until(lambda: closed.waiting)
    joined.target.shutdown(socket.SHUT_WR)
    now = monotonic()
    until(lambda: joined.relay._lingering_since)
    for _ in range(5):
        now += LINGER
        joined.relay.tick(now)
    assert not joined.relay.is_over
    closed.open()
    assert read_exact(joined.target, 2) == b"up"


def test_a_reset_is_noticed_while_payload_waits_and_what_came_before_it_is_delivered(
    join: Join, closed: Closed
) -> None:
    joined = join()
    joined.relay.limit((closed,), ())
    joined.client.sendall(b"up")
    until(lambda: closed.waiting)
    reset(joined.client)
    until(lambda: joined.relay.broken)
    closed.open()
    assert read_exact(joined.target, 2) == b"up"
    assert joined.running.get().ending is Ending.CUT


def test_who_is_stopped_waits_for_nothing_any_more(join: Join, closed: Closed) -> None:
    joined, other = join(), join()
    for each in (joined, other):
        each.relay.limit((closed,), ())
        each.client.sendall(b"up")
    until(lambda: closed.waiting == 2)
    joined.relay.stop(Ending.EVICTED)
    assert closed.waiting == 1
    closed.open()
    assert read_exact(other.target, 2) == b"up"


def test_a_limit_holds_for_a_live_connection_and_its_removal_too(join: Join, closed: Closed) -> None:
    joined = join()
    joined.client.sendall(b"one")
    assert read_exact(joined.target, 3) == b"one"
    joined.relay.limit((closed,), ())
    joined.client.sendall(b"two")
    until(lambda: closed.waiting)
    settle()
    assert joined.relay.sent == 3
    joined.relay.limit((), ())
    assert read_exact(joined.target, 3) == b"two"
    assert closed.waiting == 0


def test_who_waits_for_one_throttle_may_get_another(join: Join, closed: Closed) -> None:
    joined, other = join(), Closed()
    joined.relay.limit((closed,), ())
    joined.client.sendall(b"up")
    until(lambda: closed.waiting)
    joined.relay.limit((closed, other), ())
    until(lambda: closed.waiting)
    closed.open()
    until(lambda: other.waiting)
    assert joined.relay.sent == 0
    other.open()
    assert read_exact(joined.target, 2) == b"up"


def test_one_whose_target_takes_nothing_keeps_no_other_from_the_bandwidth(join: Join) -> None:
    """It waits for its target, and not among those who wait for the throttle."""
    throttle = Throttle(MANY)
    stuck, other = join(), join()
    for each in (stuck, other):
        each.relay.limit((throttle,), ())
    blasting = gevent.spawn(stuck.client.sendall, bytes(64 * MIB))
    until(lambda: stuck.relay._up.held)
    other.client.sendall(b"up")
    assert read_exact(other.target, 2) == b"up"
    blasting.kill()


@pytest.mark.parametrize("client", [TcpStream, web_client], ids=["tcp", "websocket"])
@pytest.mark.parametrize("zero_copy", [True, False], ids=["splice", "copy"])
def test_limits_that_come_and_go_all_the_time_lose_no_byte(
    join: Join, client: Callable[[socket.socket], Stream], zero_copy: bool
) -> None:
    random = Random(1)
    up, down = random.randbytes(6 * MIB), random.randbytes(6 * MIB)
    joined, other = join(client, zero_copy=zero_copy), join()
    pool = [Throttle(rate * MIB) for rate in (8, 32, 128)]
    other.relay.limit(tuple(pool), tuple(pool))
    blasting = gevent.spawn(blast, other)
    framed = b"".join(frame(0x82, up[at : at + 9000], MASK) for at in range(0, len(up), 9000))
    is_web = client is web_client
    sending: list[Any] = [
        gevent.spawn(joined.client.sendall, framed if is_web else up),
        gevent.spawn(send_and_end, joined.target, down),
    ]
    reading: list[Any] = [
        gevent.spawn(read_messages if is_web else read_exact, joined.client, len(down)),
        gevent.spawn(read_exact, joined.target, len(up)),
    ]
    while not all(each.ready() for each in reading):
        mine = [tuple(each for each in pool if random.random() < 0.5) for _ in range(2)]
        joined.relay.limit(mine[0], mine[1])
        gevent.sleep(random.choice((0, 0.001, 0.01)))
    assert [each.get() for each in reading] == [down, up]
    gevent.joinall(sending)
    blasting.kill()


def blast(joined: Joined) -> None:
    """Want all that there is."""
    draining = gevent.spawn(read_to_end, joined.target)
    try:
        while True:
            joined.client.sendall(bytes(MIB))
    finally:
        draining.kill()


def read_messages(sock: socket.socket, size: int) -> bytes:
    """Read so much payload of unmasked binary messages (RFC 6455, section 5.2)."""
    data = b""
    while len(data) < size:
        first, length = read_exact(sock, 2)
        assert first == 0x82
        if length > 125:
            length = int.from_bytes(read_exact(sock, 2 if length == 126 else 8), "big")
        data += read_exact(sock, length)
    return data


def test_a_relay_that_is_over_waits_for_no_limit_that_comes_now(join: Join, closed: Closed) -> None:
    """Its sockets are closed already, and their watchers with them."""
    joined = join()
    joined.relay.stop(Ending.STOPPED)
    joined.relay.limit((closed,), (closed,))
    joined.running.get()
    joined.relay.limit((closed,), (closed,))
    assert closed.waiting == 0
