"""
Tunnels full of tiny frames: how much of them a turn of the event loop takes (case 372).

What is counted is work, which is the same on a busy machine.
"""

import random
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest

from proxy.relaying.relay import DataForwarder
from proxy.relaying.stream import Buffer, Ending, TcpStream
from proxy.sharing.turns import FEW_FRAMES, FRAMES_AT_A_TIME, TURNS
from proxy.websocket.frames import Decoder
from proxy.websocket.stream import WebSocketStream
from tests.wire.greenlets import PATIENCE, patience, settle, tcp_pair
from tests.wire.websocket import BINARY, CLOSE, FIN, PING, PONG, close_payload, frame

TUNNELS = 12
# Before the slice of a turn is used up, two operations may be begun; in a turn there are two slices, one for
# those whose sockets are ready and one for those who wait.
A_TURN = 2 * 2 * FRAMES_AT_A_TIME + TUNNELS * FEW_FRAMES
CRUMBS = 9000  # frames of a byte: 63,000 bytes, which are there at once
ONE_OF_EACH = b"".join(frame(FIN | BINARY, bytes([byte])) for byte in range(250))


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience(60):
        yield


class Tunnel:
    """A relay from a WebSocket client, whose frames are all there when it begins with ``start``."""

    def __init__(self, forwarder: DataForwarder, sent: bytes) -> None:
        self.client, near = tcp_pair()
        self.target, far = tcp_pair()
        self.client.sendall(sent)
        self.near = TcpStream(near)
        stream = WebSocketStream(self.near, server=True, half_close=False, ping_interval=0)
        self.relay = forwarder.relay(stream, TcpStream(far))
        self.running = gevent.Greenlet(forwarder.run, self.relay)

    def start(self) -> None:
        """Begin in the next turn of the event loop."""
        self.running.start()

    def wait_readable(self) -> None:
        """Wait for what the client has sent, and give nobody a turn meanwhile."""
        poll = select.poll()
        poll.register(self.near._sock.fileno(), select.POLLIN)
        assert poll.poll(1000 * PATIENCE)

    def close(self) -> None:
        """Clean up."""
        self.relay.stop(Ending.EVICTED)
        for sock in (self.client, self.target):
            sock.close()
        self.running.get()


@contextmanager
def frames_of_each_turn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the frames that are decoded between two looks of the event loop at its sockets."""
    counts = [0]
    feed = Decoder.feed

    def counting(self: Decoder, data: memoryview, most: int | None = None) -> Iterator[object]:
        yield from feed(self, data, most)
        counts[-1] += self.frames

    monkeypatch.setattr(Decoder, "feed", counting)
    look = gevent.get_hub().loop.check()
    look.start(lambda: counts.append(0))
    yield counts
    look.close()


def moved(tunnels: list[Tunnel]) -> int:
    """Tell how many bytes have arrived."""
    return sum(tunnel.relay.sent for tunnel in tunnels)


def full_tunnels(forwarder: DataForwarder) -> list[Tunnel]:
    """Make tunnels whose frames are all there, and start them together."""
    tunnels = [Tunnel(forwarder, ONE_OF_EACH * (CRUMBS // 250)) for _ in range(TUNNELS)]
    for tunnel in tunnels:
        tunnel.wait_readable()
    for tunnel in tunnels:
        tunnel.start()
    return tunnels


def test_many_tiny_frames_of_many_tunnels_leave_each_turn_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 372: the bound is in frames, and for all tunnels together."""
    forwarder = DataForwarder()
    with frames_of_each_turn(monkeypatch) as counts:
        tunnels = full_tunnels(forwarder)
        while moved(tunnels) < TUNNELS * CRUMBS:
            gevent.sleep(0.01)
    assert sum(counts) >= TUNNELS * CRUMBS  # one that came in two reads is decoded in two steps
    assert max(counts) <= A_TURN
    for tunnel in tunnels:
        received = b""
        while len(received) < CRUMBS:
            received += tunnel.target.recv(CRUMBS)
        assert received == bytes(range(250)) * (CRUMBS // 250)
        tunnel.close()


def test_nobody_waits_until_another_tunnel_is_done() -> None:
    """Case 372: those who have more take turns, and who has little is served at once."""
    forwarder = DataForwarder()
    small = Tunnel(forwarder, b"")
    small.start()
    busy = full_tunnels(forwarder)
    while not moved(busy):
        gevent.sleep(0)
    small.client.sendall(frame(FIN | BINARY, b"small"))
    small.wait_readable()
    before = moved(busy)
    while not small.relay.sent:
        gevent.sleep(0)
    assert before < TUNNELS * CRUMBS
    assert moved(busy) - before <= 2 * A_TURN
    assert small.target.recv(10) == b"small"
    for tunnel in (*busy, small):
        tunnel.close()


@pytest.mark.parametrize("ended", [False, True], ids=["in a relay", "after the end of stream"])
def test_of_the_pings_that_are_read_at_once_the_last_one_is_answered(*, ended: bool) -> None:
    """Case 372; RFC 6455, section 5.5.3."""
    pings = frame(FIN | PING) * 1000 + frame(FIN | PING, b"last")
    client, near = tcp_pair()
    target, far = tcp_pair()
    stream = WebSocketStream(TcpStream(near), server=True, half_close=True, ping_interval=0)
    client.sendall((frame(FIN | BINARY) if ended else b"") + pings)
    running = gevent.spawn(DataForwarder().forward_data, stream, TcpStream(far))
    assert client.recv(100) == bytes([FIN | PONG, 4]) + b"last"
    client.sendall(frame(FIN | CLOSE, close_payload(1000)))
    target.close()
    end, close = b"\x82\x00", b"\x88\x02\x03\xe8"
    assert client.recv(100) in (
        end + close,
        end,
        close,
    )  # whichever end is seen first; no Pong
    client.close()
    running.get()


def test_tiny_frames_behind_our_close_leave_each_turn_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 372: they are decoded to find the Close that answers ours."""
    client, near = tcp_pair()
    stream = WebSocketStream(TcpStream(near), server=True, half_close=False, ping_interval=0)
    client.sendall(ONE_OF_EACH * (CRUMBS // 250) + frame(FIN | CLOSE, close_payload(1000)))
    with frames_of_each_turn(monkeypatch) as counts:
        stream.begin_close(Ending.FINISHED)
        closing = gevent.spawn(stream.finish_close)
        assert client.recv(100) == b"\x88\x02\x03\xe8"
        closing.get()
    assert sum(counts) >= CRUMBS + 1
    assert max(counts) <= FRAMES_AT_A_TIME
    client.close()


def test_frames_are_given_up_with_their_connection() -> None:
    """What waits for a turn does not come when all is over."""
    tunnel = Tunnel(DataForwarder(), ONE_OF_EACH * (CRUMBS // 250))
    tunnel.start()
    while not tunnel.relay.sent:
        gevent.sleep(0)
    tunnel.close()
    sent = tunnel.relay.sent
    settle()
    assert tunnel.relay.sent == sent
    assert not TURNS._waiting


def test_what_is_left_of_a_read_may_be_more_than_the_next_buffer_holds() -> None:
    """A relay gives a small one where there is little room, and nothing is lost or out of order."""
    client, near = tcp_pair()
    stream = WebSocketStream(TcpStream(near), server=True, half_close=False, ping_interval=0)
    payload = random.Random(372).randbytes(60_000)
    sent = frame(FIN | BINARY, b"x") * FRAMES_AT_A_TIME + frame(FIN | BINARY, payload)
    client.sendall(sent)
    poll = select.poll()
    poll.register(stream._tcp._sock.fileno(), select.POLLIN)
    whole = memoryview(bytearray(70_000))
    while stream._tcp._sock.recv_into(whole, flags=socket.MSG_PEEK) < len(sent):
        assert poll.poll(1000 * PATIENCE)
    first, small = Buffer(), Buffer(8192)
    received = bytes(first.payload[: stream.recv_into(first, bulk=False) or 0])
    while stream.buffered:
        received += small.payload[: stream.recv_into(small, bulk=False) or 0]
    assert received == b"x" * FRAMES_AT_A_TIME + payload[: len(received) - FRAMES_AT_A_TIME]
    assert len(received) == FRAMES_AT_A_TIME + len(payload)
    client.close()
    stream._tcp._sock.close()
