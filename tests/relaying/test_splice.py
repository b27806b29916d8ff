"""Pipes between sockets: what a pipe does, how many there are, and that none carries what is another's."""

import errno
import fcntl
import os
import random
import socket as std_socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.socket import wait_read
from hypothesis import given
from hypothesis import strategies as st

from proxy.relaying.direction import MOST_IN_PIPES
from proxy.relaying.relay import DataForwarder
from proxy.relaying.stream import Ending, Stream, TcpStream
from proxy.sharing import pipes as module
from proxy.sharing import turns
from proxy.sharing.pipes import AVAILABLE, BIG_PIPE_SIZE, BIG_PIPES, PIPE_SIZE, PIPES, Pipe, PipePool
from proxy.sharing.turns import ALONE, BESIDE_SMALL, Share
from proxy.websocket.stream import WebSocketStream
from tests.wire.greenlets import Pair, send_and_end, tcp_pair, until
from tests.wire.sockets import read_to_end, reset

KIB, MIB = 1 << 10, 1 << 20

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no splice here")


def descriptors() -> int:
    """Count what this process has open."""
    return len(os.listdir("/proc/self/fd"))


def test_it_is_there_on_linux() -> None:
    assert sys.platform == "linux"


# -- a pipe


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Make a pipe."""
    made = Pipe()
    yield made
    made.close()


@pytest.fixture
def source() -> Iterator[Pair]:
    """Connect a sender to a socket that a pipe is filled from."""
    yield from connected()


@pytest.fixture
def sink() -> Iterator[Pair]:
    """Connect a receiver to a socket that a pipe is drained into."""
    yield from connected()


def connected() -> Iterator[Pair]:
    """Connect two sockets for a test."""
    pair = tcp_pair()
    yield pair
    for sock in pair:
        sock.close()


def arrived(sock: socket.socket, size: int) -> None:
    """Wait until so many bytes wait in a socket."""
    until(lambda: len(sock.recv(size, socket.MSG_PEEK)) >= size)


def test_what_goes_in_comes_out(pipe: Pipe, source: Pair, sink: Pair) -> None:
    source[0].sendall(b"some bytes")
    arrived(source[1], 10)
    assert pipe.fill(source[1].fileno(), PIPE_SIZE) == 10
    assert pipe.drain(sink[0].fileno(), 10) == 10
    assert sink[1].recv(100) == b"some bytes"


def test_no_more_goes_in_than_was_asked_for(pipe: Pipe, source: Pair) -> None:
    """What follows a frame's payload is the next header, which is for us."""
    source[0].sendall(b"payload|header")
    arrived(source[1], 14)
    assert pipe.fill(source[1].fileno(), 7) == 7
    assert source[1].recv(100) == b"|header"


def test_a_source_that_has_nothing_is_told_from_one_that_has_ended(pipe: Pipe, source: Pair) -> None:
    with pytest.raises(BlockingIOError):
        pipe.fill(source[1].fileno(), PIPE_SIZE)
    source[0].shutdown(std_socket.SHUT_WR)
    source[1].recv(1)  # waits for the end
    assert pipe.fill(source[1].fileno(), PIPE_SIZE) == 0


def test_a_source_that_was_reset_is_an_error(pipe: Pipe, source: Pair) -> None:
    reset(source[0])
    wait_read(source[1].fileno())
    with pytest.raises(ConnectionResetError):
        pipe.fill(source[1].fileno(), PIPE_SIZE)


def test_a_sink_that_was_reset_is_an_error(pipe: Pipe, source: Pair, sink: Pair) -> None:
    source[0].sendall(b"x")
    arrived(source[1], 1)
    pipe.fill(source[1].fileno(), 1)
    reset(sink[1])
    wait_read(sink[0].fileno())
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        pipe.drain(sink[0].fileno(), 1)


def test_a_pipe_that_is_full_of_slots_is_no_end_and_nothing_is_lost(
    pipe: Pipe, source: Pair, sink: Pair
) -> None:
    """A pipe has room for segments, not for bytes: a hundred segments of one byte fill one of 256 KiB."""
    data = os.urandom(400)
    for byte in data:
        source[0].send(bytes([byte]))
    arrived(source[1], len(data))
    moved = 0
    while moved < len(data):
        count = pipe.fill(source[1].fileno(), PIPE_SIZE)
        assert count > 0
        assert pipe.drain(sink[0].fileno(), count) == count
        moved += count
    with pytest.raises(BlockingIOError):
        pipe.fill(source[1].fileno(), PIPE_SIZE)
    sink[0].shutdown(std_socket.SHUT_WR)
    assert read_to_end(sink[1]) == data


def test_a_sink_takes_what_it_has_room_for_and_the_rest_later_in_order(
    pipe: Pipe, source: Pair, sink: Pair
) -> None:
    data = os.urandom(8 * MIB)
    sending = gevent.spawn(send_and_end, source[0], data)
    received = bytearray()
    blocked = False
    while count := fill(pipe, source[1]):
        while count:
            try:
                count -= pipe.drain(sink[0].fileno(), count)
            except BlockingIOError:
                blocked = True
                received += sink[1].recv(MIB)
    sink[0].shutdown(std_socket.SHUT_WR)
    received += read_to_end(sink[1])
    assert blocked
    assert received == data
    sending.get()


def fill(pipe: Pipe, sock: socket.socket) -> int:
    """Fill a pipe, as soon as there is something; 0 is the end."""
    while True:
        try:
            return pipe.fill(sock.fileno(), PIPE_SIZE)
        except BlockingIOError:
            wait_read(sock.fileno())


def test_neither_end_blocks_or_is_inherited() -> None:
    pipe = Pipe()
    ends = (pipe._reader, pipe._writer)
    assert not any(os.get_blocking(end) or os.get_inheritable(end) for end in ends)
    pipe.close()
    assert not any(is_open(end) for end in ends)


def is_open(descriptor: int) -> bool:
    """Tell whether a descriptor is open."""
    return os.path.exists(f"/proc/self/fd/{descriptor}")


def test_it_is_as_big_as_pays_off(pipe: Pipe) -> None:
    assert pipe.size == PIPE_SIZE == 256 * KIB


def test_a_user_who_may_not_have_big_pipes_gets_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refuse(descriptor: int, command: int, *rest: int) -> int:
        if command == module._SET_SIZE:
            raise PermissionError(1, "Operation not permitted")
        return int(real(descriptor, command, *rest))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    pipe = Pipe()
    assert pipe.size >= 4096
    pipe.close()


def test_where_a_megabyte_is_too_much_a_pipe_is_no_smaller_than_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = fcntl.fcntl

    def refuse(descriptor: int, command: int, *rest: int) -> int:
        if command == module._SET_SIZE and rest[0] > PIPE_SIZE:
            raise PermissionError(1, "Operation not permitted")
        return int(real(descriptor, command, *rest))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    pipe = Pipe(BIG_PIPE_SIZE)
    assert pipe.size == PIPE_SIZE
    pipe.close()


def test_a_pipe_is_closed_with_what_is_in_it(source: Pair) -> None:
    before = descriptors()
    pipe = Pipe()
    source[0].sendall(b"unsaid")
    arrived(source[1], 6)
    pipe.fill(source[1].fileno(), 6)
    pipe.close()
    assert descriptors() == before


# -- the pool


@pytest.fixture
def pool() -> Iterator[PipePool]:
    """Make a pool of two pipes at most."""
    made = PipePool(most=2)
    yield made
    for pipe in made._free:
        pipe.close()


def take(pool: PipePool) -> Pipe:
    """Take a pipe, which must be there."""
    pipe = pool.take()
    assert pipe is not None
    return pipe


def test_a_pipe_that_comes_back_empty_is_lent_again(pool: PipePool) -> None:
    first = take(pool)
    pool.give_back(first)
    assert pool.take() is first
    pool.give_back(first)


def test_only_so_many_are_lent(pool: PipePool) -> None:
    pipes = [take(pool), take(pool)]
    assert pool.take() is None
    assert pool.lent == 2
    pool.give_back(pipes[0])
    pipes[0] = take(pool)
    assert pool.take() is None
    for pipe in pipes:
        pool.give_back(pipe)
    assert pool.lent == 0


def test_a_pipe_that_is_not_empty_serves_nobody_else(pool: PipePool) -> None:
    before = descriptors()
    used = take(pool)
    pool.give_back(used, empty=False)
    assert descriptors() == before
    again = take(pool)
    assert again is not used
    pool.give_back(again)


def test_after_a_rush_most_pipes_are_closed() -> None:
    pool = PipePool()
    before = descriptors()
    pipes = [take(pool) for _ in range(100)]
    assert descriptors() == before + 200
    for pipe in pipes:
        pool.give_back(pipe)
    assert pool.lent == 0
    assert descriptors() <= before + 2 * 32
    for pipe in pool._free:
        pipe.close()


def test_the_process_lends_at_most_256() -> None:
    pool = PipePool()
    pipes: list[Pipe] = []
    while (pipe := pool.take()) and len(pipes) <= 256:
        pipes.append(pipe)
    for pipe in pipes:
        pool.give_back(pipe, empty=False)
    assert len(pipes) == 256


@given(steps=st.lists(st.sampled_from(["take", "empty", "full"]), max_size=60))
def test_the_pool_never_holds_more_than_it_may_nor_forgets_any(steps: list[str]) -> None:
    before = descriptors()
    pool, lent = PipePool(most=5), list[Pipe]()
    for step in steps:
        if step == "take":
            pipe = pool.take()
            assert (pipe is None) == (len(lent) == 5)
            assert pipe not in lent
            lent += [pipe] if pipe else []
        elif lent:
            pool.give_back(lent.pop(0), empty=step == "empty")
        assert pool.lent == len(lent)
        assert descriptors() <= before + 2 * 5
    for pipe in lent:
        pool.give_back(pipe, empty=False)
    for pipe in pool._free:
        pipe.close()
    assert descriptors() == before


def test_a_system_without_descriptors_gives_none(pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES G178: then copying has to do."""
    monkeypatch.setattr(os, "pipe2", fail)
    assert pool.take() is None
    assert pool.lent == 0


def fail(flags: int) -> Any:
    """Have no descriptors left."""
    raise OSError(24, "Too many open files")


# -- in a relay


def framed(sock: socket.socket, *, server: bool) -> WebSocketStream:
    """Take a socket for a WebSocket."""
    return WebSocketStream(TcpStream(sock), server=server, half_close=True, ping_interval=0)


def transfer(data: bytes, *, web: bool = False) -> bytes:
    """Send data through a relay, or through two with a WebSocket between them, and give what came out."""
    client, a = tcp_pair()
    target, b = tcp_pair()
    pairs: list[tuple[Stream, Stream]]
    if web:
        near, far = tcp_pair()
        pairs = [(TcpStream(a), framed(near, server=True)), (framed(far, server=False), TcpStream(b))]
    else:
        pairs = [(TcpStream(a), TcpStream(b))]
    relays = [gevent.spawn(DataForwarder().forward_data, *pair) for pair in pairs]
    sending = gevent.spawn(send_and_end, client, data)
    received = read_to_end(target)
    target.close()
    sending.get()
    client.close()
    gevent.joinall(relays)
    return received


both = pytest.mark.parametrize("web", [False, True], ids=["plain", "framed"])


@both
@pytest.mark.parametrize("size", [0, 1, 65536, 256 * KIB, 256 * KIB + 1, 5 * MIB + 3])
def test_bytes_arrive_as_sent_and_every_pipe_comes_back(size: int, web: bool) -> None:
    lent, data = PIPES.lent, os.urandom(size)
    assert transfer(data, web=web) == data
    assert PIPES.lent == lent


def test_much_is_spliced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the rest of these tests would show nothing."""
    moved = 0

    def drain(self: Pipe, sink: int, count: int) -> int:
        nonlocal moved
        done = real(self, sink, count)
        moved += done
        return done

    real = Pipe.drain
    monkeypatch.setattr(Pipe, "drain", drain)
    for web, hops in ((False, 1), (True, 2)):
        moved = 0
        transfer(bytes(8 * MIB), web=web)
        assert moved > hops * 4 * MIB


@pytest.mark.parametrize("share", [ALONE, BESIDE_SMALL])
def test_a_sink_that_keeps_up_gets_as_much_at_a_time_as_may_be_and_leaves_nothing_in_the_pipe(
    share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "ALONE", share)
    monkeypatch.setattr(turns.TURNS, "share", share)
    drained: list[tuple[int, int]] = []

    def drain(self: Pipe, sink: int, count: int) -> int:
        done = real(self, sink, count)
        drained.append((count, done))
        return done

    real = Pipe.drain
    monkeypatch.setattr(Pipe, "drain", drain)
    data = os.urandom(64 * MIB)
    assert transfer(data) == data
    big = [(count, done) for count, done in drained if count > PIPE_SIZE]
    assert big
    assert all(count == done <= share.most for count, done in big)
    assert BIG_PIPES.lent == 0


@both
def test_where_there_is_no_pipe_bytes_are_copied(monkeypatch: pytest.MonkeyPatch, web: bool) -> None:
    monkeypatch.setattr(PIPES, "take", lambda: None)
    data = os.urandom(4 * MIB)
    assert transfer(data, web=web) == data


@both
def test_pipes_may_run_out_and_come_back_at_any_time(monkeypatch: pytest.MonkeyPatch, web: bool) -> None:
    """Each change between splicing and copying is a chance to lose the place in the stream."""
    toss, lent, real = random.Random(1), PIPES.lent, PIPES.take
    monkeypatch.setattr(PIPES, "take", lambda: real() if toss.random() < 0.5 else None)
    data = os.urandom(8 * MIB)
    assert transfer(data, web=web) == data
    assert PIPES.lent == lent


@both
def test_small_pipes_do_as_well(monkeypatch: pytest.MonkeyPatch, web: bool) -> None:
    monkeypatch.setattr(PIPES, "_size", 8 * KIB)
    monkeypatch.setattr(PIPES, "_free", [])
    data = os.urandom(2 * MIB)
    assert transfer(data, web=web) == data
    for pipe in PIPES._free:
        pipe.close()


def stall() -> tuple[socket.socket, socket.socket, "gevent.Greenlet[Any, Any]"]:
    """Fill a tunnel until it is stuck with bytes in a pipe; give its ends, and the relay."""
    client, a = tcp_pair()
    target, b = tcp_pair()
    relay = DataForwarder().relay(TcpStream(a), TcpStream(b))
    running = gevent.spawn(DataForwarder().run, relay)
    pouring = gevent.spawn(client.sendall, b"SECRET" * (6 * MIB))
    wait_until_stuck_with_a_pipe(relay._up, target)
    pouring.kill()
    return client, target, running


def wait_until_stuck_with_a_pipe(direction: Any, reader: socket.socket) -> None:
    """
    Wait until a direction is held, and by what is in a pipe.

    The operation that its sink did not take may have been a copy. Then enough is read for it to go
    on, and it will be held again.
    """
    while not (direction.held and direction.in_pipe):
        if direction.held:
            reader.recv(MIB)
        gevent.sleep(0.01)


def test_while_one_direction_is_stuck_the_other_goes_on_and_both_hold_no_more_than_one_pipe() -> None:
    """CASES E133: also where both are stuck."""
    client, a = tcp_pair()
    target, b = tcp_pair()
    relay = DataForwarder().relay(TcpStream(a), TcpStream(b))
    up, down = relay._up, relay._down
    running = gevent.spawn(DataForwarder().run, relay)
    pouring = gevent.spawn(client.sendall, bytes(64 * MIB))
    wait_until_stuck_with_a_pipe(up, target)
    data = os.urandom(2 * MIB)
    answering, received = gevent.spawn(target.sendall, data), b""
    while len(received) < len(data):
        received += client.recv(65536)
    answering.get()
    assert received == data
    flooding = gevent.spawn(target.sendall, bytes(64 * MIB))
    until(lambda: down.held)
    assert up.in_pipe + down.in_pipe <= MOST_IN_PIPES
    gevent.killall([pouring, flooding])
    reset(client)
    target.close()
    running.get()


@pytest.mark.parametrize("room", [-1, 0, 100])
def test_a_direction_copies_when_the_other_one_holds_all_and_its_sink_has_no_room(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """To splice no byte at all would look like the end of the source."""
    client, a = tcp_pair()
    target, b = tcp_pair()
    monkeypatch.setattr(TcpStream, "room", room)
    monkeypatch.delattr(Pipe, "fill")
    relay = DataForwarder().relay(TcpStream(a), TcpStream(b))
    relay._up._bulk = relay._up._found_much = True
    relay._down.in_pipe = 4 * MOST_IN_PIPES
    client.sendall(b"hello")
    running = gevent.spawn(DataForwarder().run, relay)
    assert target.recv(10) == b"hello"
    relay._down.in_pipe = 0
    client.close()
    target.close()
    running.get()


def test_what_a_cut_tunnel_had_in_flight_never_shows_up_in_another() -> None:
    """The most dangerous mistake that a pool of pipes can make."""
    before = PIPES.lent
    tunnels = [stall() for _ in range(3)]
    assert PIPES.lent == before + 3
    for client, target, running in tunnels:
        running.kill()
        reset(client)
        target.close()
    assert PIPES.lent == before
    for _ in range(6):
        data = os.urandom(2 * MIB)
        assert transfer(data) == data


Wrap = Callable[[socket.socket], Stream]
ENDS: dict[str, Wrap] = {
    "plain": TcpStream,
    "websocket-server": lambda sock: framed(sock, server=True),
    "websocket-client": lambda sock: framed(sock, server=False),
}


@pytest.mark.parametrize("who", ["reader", "writer"])
@pytest.mark.parametrize(
    ("source", "sink"),
    [
        ("plain", "plain"),
        ("plain", "websocket-server"),
        ("websocket-client", "plain"),
        ("websocket-client", "websocket-server"),
    ],
)
def test_whoever_resets_in_mid_transfer_takes_no_pipe_with_it(source: str, sink: str, who: str) -> None:
    transfer(bytes(MIB))  # leaves pipes in the pool
    lent, before = PIPES.lent, descriptors()
    for step in range(8):
        writer, a = tcp_pair()
        reader, b = tcp_pair()
        running = gevent.spawn(DataForwarder().forward_data, ENDS[source](a), ENDS[sink](b))
        pouring = gevent.spawn(pour, writer, web=source != "plain")
        left = MIB + step * 100_000
        while left > 0:
            left -= len(reader.recv(64 * KIB))
        ends = {"reader": reader, "writer": writer}
        reset(ends.pop(who))
        running.join(0.02)  # before it has to be patient with the other one
        pouring.kill()
        for sock in ends.values():
            sock.close()
        running.get()
    assert PIPES.lent == lent
    assert descriptors() <= before + 2


def pour(sock: socket.socket, *, web: bool) -> None:
    """Send without end; as a WebSocket server, in frames of 1 MiB (RFC 6455, section 5.2)."""
    frame = (struct.pack("!BBQ", 0x82, 127, MIB) if web else b"") + bytes(MIB)
    with suppress(OSError):
        while True:
            sock.sendall(frame)


def test_a_pipe_whose_frame_header_cannot_be_sent_comes_back() -> None:
    """The header goes first: where it fails, nothing of the payload was tried."""
    lent = PIPES.lent
    client, a = tcp_pair()
    target, b = tcp_pair()
    stream, pipe = framed(a, server=True), take(PIPES)
    target.sendall(b"payload")
    arrived(b, 7)
    pipe.fill(b.fileno(), 7)
    reset(client)
    gevent.get_hub().wait(stream.reader)
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        stream.splice_out(pipe, 7)
    stream.begin_close(Ending.CUT)
    stream.finish_close()
    target.close()
    b.close()
    assert PIPES.lent == lent


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_where_a_sandbox_does_not_let_us_it_is_done_without(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every connection that moves much would be cut."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    assert module.is_available()
    monkeypatch.setattr(os, "splice", refuse)
    before = set(os.listdir("/proc/self/fd"))
    assert not module.is_available()
    assert set(os.listdir("/proc/self/fd")) == before
