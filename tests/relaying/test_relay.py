"""
Two TCP connections joined; the tests hold the far ends.
"""

import errno
import fcntl
import gc
import os
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from proxy.errors import ProtocolError
from proxy.net.limits import Ballast
from proxy.relaying import direction
from proxy.relaying import relay as module
from proxy.relaying.relay import DataForwarder, Transfer
from proxy.relaying.stream import Buffer, Ending, TcpStream
from proxy.sharing.pipes import PIPES
from tests.net.wires import Spy
from tests.wire.greenlets import send_and_end, settle, tcp_pair, until
from tests.wire.sockets import read_to_end, reset

LATE = 20.0  # seconds: how late a busy machine may be
HOUR = 3600.0  # seconds
MIB = 1 << 20

both_copies = pytest.mark.parametrize("zero_copy", [True, False], ids=["splice", "copy"])
both_sides = pytest.mark.parametrize("side", ["client", "target"])


class Tunnel:
    """A relay under way."""

    def __init__(self, forwarder: DataForwarder, *, half_closes: bool = True, early: bytes = b"") -> None:
        self.client, inner_client = tcp_pair()
        self.target, inner_target = tcp_pair()
        self.near = Spy(inner_client, half_closes=half_closes)
        self.near._early = early
        self.far = Spy(inner_target)
        self.relay = forwarder.relay(self.near, self.far)
        self.running = gevent.spawn(forwarder.run, self.relay)

    def sides(self, first: str) -> tuple[socket.socket, socket.socket]:
        """Give both far ends, the named one first."""
        return (self.client, self.target) if first == "client" else (self.target, self.client)

    def result(self) -> Transfer:
        """Wait for the end."""
        return self.running.get()

    def close(self) -> None:
        """Clean up."""
        self.running.kill()
        self.client.close()
        self.target.close()


Join = Callable[..., Tunnel]


@pytest.fixture
def zero_copy() -> bool:
    """Let the relay splice; tests that care parametrise over this."""
    return True


@pytest.fixture
def join(zero_copy: bool) -> Iterator[Join]:
    """Join two connections, as often as a test wants."""
    made: list[Tunnel] = []
    forwarder = DataForwarder(zero_copy=zero_copy)

    def make(idle_timeout: float | None = None, **settings: object) -> Tunnel:
        own = forwarder if idle_timeout is None else DataForwarder(idle_timeout, zero_copy=zero_copy)
        made.append(Tunnel(own, **settings))  # type: ignore[arg-type]
        return made[-1]

    before = PIPES.lent
    yield make
    for tunnel in made:
        tunnel.close()
    gevent.sleep(0)
    assert PIPES.lent == before


@pytest.fixture
def tunnel(join: Join) -> Tunnel:
    """Join two connections."""
    return join()


# -- moving


@both_copies
def test_bytes_go_both_ways_and_are_counted_as_the_client_sees_them(tunnel: Tunnel) -> None:
    up, down = os.urandom(9 * MIB), os.urandom(7 * MIB)

    def play(sock: socket.socket, data: bytes) -> bytes:
        sender = gevent.spawn(send_and_end, sock, data)
        received = read_to_end(sock)
        sender.get()
        return received

    at_target = gevent.spawn(play, tunnel.target, down)
    assert play(tunnel.client, up) == down
    assert at_target.get() == up
    assert tunnel.result() == Transfer(sent=len(up), received=len(down), ending=Ending.FINISHED)


@both_copies
def test_much_after_little_after_much_keeps_its_order(tunnel: Tunnel) -> None:
    """The relay goes over to splicing where there is much, and back where there is little."""
    pieces = [os.urandom(size) for size in (1, MIB, 3, 10, 2 * MIB, 1, 70_000, 5, MIB)]

    def send() -> None:
        for piece in pieces:
            tunnel.client.sendall(piece)
            gevent.sleep(0.01)
        tunnel.client.shutdown(1)

    sending = gevent.spawn(send)
    assert read_to_end(tunnel.target) == b"".join(pieces)
    sending.get()


@both_copies
def test_a_slow_reader_gets_every_byte_in_order(tunnel: Tunnel) -> None:
    data = os.urandom(12 * MIB)
    sending = gevent.spawn(send_and_end, tunnel.target, data)
    received = b""
    for _ in range(20):
        gevent.sleep(0.01)  # so that everything in between fills up
        received += tunnel.client.recv(100_000)
    assert received + read_to_end(tunnel.client) == data
    sending.get()


@both_copies
def test_early_bytes_of_any_size_go_first(join: Join) -> None:
    """CASES A2."""
    early = os.urandom(3 * 64 * 1024 + 17)
    tunnel = join(early=early)
    tunnel.client.sendall(b"later")
    tunnel.client.shutdown(1)
    assert read_to_end(tunnel.target) == early + b"later"


def test_the_counts_can_be_read_while_it_runs(tunnel: Tunnel) -> None:
    tunnel.client.sendall(b"abc")
    tunnel.target.recv(10)
    assert (tunnel.relay.sent, tunnel.relay.received) == (3, 0)


def test_sockets_are_taken_as_they_are() -> None:
    """The specification's ``forward_data(a, b)``."""
    client, a = tcp_pair()
    target, b = tcp_pair()
    done = gevent.spawn(DataForwarder().forward_data, a, b)
    client.sendall(b"hello")
    client.shutdown(1)
    assert read_to_end(target) == b"hello"
    target.close()
    assert done.get().sent == 5
    assert client.recv(1) == b""
    client.close()


# -- ends


@both_sides
def test_the_end_of_one_direction_leaves_the_other_alone(tunnel: Tunnel, side: str) -> None:
    """CASES E126, E127."""
    one, other = tunnel.sides(side)
    one.shutdown(1)
    assert other.recv(1) == b""
    other.sendall(b"still here")
    assert one.recv(100) == b"still here"
    other.shutdown(1)
    assert one.recv(1) == b""
    assert tunnel.result().ending is Ending.FINISHED


@both_copies
@pytest.mark.parametrize("noticed_by", ["sending", "the sweep"])
@both_sides
def test_what_a_peer_said_before_it_broke_off_is_delivered_to_one_who_takes_it_slowly(
    tunnel: Tunnel, side: str, noticed_by: str
) -> None:
    """Case 346: its last words wait in front of a side that takes nothing, when its reset is seen."""
    one, other = tunnel.sides(side)
    stream = tunnel.near if side == "client" else tunnel.far
    one.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            one.send(os.urandom(MIB))
            gevent.sleep(0.01)
    settle()
    expected = tunnel.relay.sent + tunnel.relay.received + unread(stream)
    reset(one)
    if noticed_by == "sending":
        with suppress(ConnectionError):
            for _ in range(3):
                other.sendall(b"more")
                gevent.sleep(0.01)
    else:
        tunnel.relay.tick(time.monotonic())
    heard, last = 0, b"?"
    with suppress(ConnectionResetError):
        while last:
            last = other.recv(300_000)
            heard += len(last)
            gevent.sleep(0.001)
    assert last, "a cut looks like an end"
    assert heard >= expected > MIB // 4  # as much as the buffers on the way have grown to
    assert tunnel.result().ending is Ending.CUT
    assert tunnel.result().detail.startswith(f"{side}: ")


@both_copies
@both_sides
def test_what_a_peer_said_before_it_ended_and_closed_is_all_to_one_who_takes_it_slowly(
    tunnel: Tunnel, side: str
) -> None:
    """Case 346: a FIN came behind the answer, and the reset only behind that, for what is still sent."""
    one, other = tunnel.sides(side)
    direction = tunnel.relay._up if side == "client" else tunnel.relay._down
    sent = 0
    while not direction.held:
        one.sendall(bytes(40_000))
        sent += 40_000
        gevent.sleep(0.001)
    one.close()
    other.sendall(b"more")
    while not tunnel.relay.broken:
        other.sendall(b"more")
        gevent.sleep(0.01)
    assert len(read_to_end(other)) == sent
    assert tunnel.result().ending is Ending.CUT


def unread(stream: TcpStream) -> int:
    """Tell how much a socket has received that nobody has read."""
    return int.from_bytes(fcntl.ioctl(stream._sock, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.usefixtures("no_sweep")
@both_sides
def test_nobody_waits_long_for_one_who_does_not_take_the_last_words_of_a_broken_peer(
    tunnel: Tunnel, side: str
) -> None:
    """Cases 130, 346."""
    one, _ = tunnel.sides(side)
    blasting = gevent.spawn(blast, one)
    settle()
    blasting.kill()
    reset(one)
    now = time.monotonic()
    tunnel.relay.tick(now)
    settle()
    assert not tunnel.running.ready()
    tunnel.relay.tick(now + 1.5 * module.LINGER)
    assert tunnel.result().ending is Ending.CUT


@both_sides
def test_a_reset_of_one_leg_is_a_reset_of_the_other_and_is_named(tunnel: Tunnel, side: str) -> None:
    """CASES E130, E131."""
    one, other = tunnel.sides(side)
    one.sendall(b"x")
    assert other.recv(1) == b"x"
    reset(one)
    with pytest.raises(ConnectionResetError):
        other.recv(1)
    assert tunnel.result().ending is Ending.CUT
    assert tunnel.result().detail == f"{side}: Connection reset by peer"


@both_copies
@both_sides
def test_a_reset_of_a_leg_that_takes_nothing_is_seen(tunnel: Tunnel, side: str) -> None:
    """CASES E130: while its buffers are full, and the other side keeps sending."""
    one, other = tunnel.sides(side)
    blasting = gevent.spawn(blast, other)
    settle()
    reset(one)
    assert tunnel.result().ending is Ending.CUT
    blasting.get()


def blast(sock: socket.socket) -> None:
    """Send until the connection breaks."""
    with suppress(ConnectionError):
        while True:
            sock.sendall(bytes(MIB))


@pytest.mark.parametrize("ending", list(Ending))
def test_both_hear_how_it_ended(tunnel: Tunnel, ending: Ending) -> None:
    settle()
    tunnel.relay.stop(ending)
    tunnel.result()
    assert tunnel.near.story == tunnel.far.story == [f"begin_close {ending.value}", "finish_close"]
    for sock in (tunnel.client, tunnel.target):
        if ending is Ending.FINISHED:
            assert sock.recv(1) == b""
        else:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


def test_the_first_to_say_why_it_ended_is_right(tunnel: Tunnel) -> None:
    settle()
    tunnel.relay.stop(Ending.IDLE)
    tunnel.relay.stop(Ending.CUT, "later")
    assert tunnel.result() == Transfer(0, 0, Ending.IDLE)


@pytest.mark.parametrize(("fault", "ending", "detail"), [
    (ProtocolError("a bad frame"), Ending.CUT, "a bad frame"),
    (OSError(5, "whatever"), Ending.CUT, "whatever"),
    (ValueError("a bug"), Ending.FAILED, "a bug"),
    (OSError(errno.ENOMEM, "no memory"), Ending.FAILED, "no memory"),  # which is no peer's fault
])  # fmt: skip
def test_any_fault_of_an_end_ends_it(tunnel: Tunnel, fault: Exception, ending: Ending, detail: str) -> None:
    """CASES G191: not even a bug of ours leaves a tunnel hanging."""
    tunnel.near.fault = fault
    tunnel.client.sendall(b"x")
    assert tunnel.result().ending is ending
    assert tunnel.result().detail.endswith(detail)
    assert tunnel.far.story == [f"begin_close {ending.value}", "finish_close"]


def test_a_fault_that_a_stream_keeps_does_not_lead_back_to_it(tunnel: Tunnel) -> None:
    """Else nothing of the two would be freed until the garbage is looked for."""
    tunnel.near.fault = ProtocolError("a bad frame")
    tunnel.client.sendall(b"x")
    tunnel.result()
    assert tunnel.near.fault.__traceback__ is None


def test_bytes_for_which_there_was_no_memory_are_our_own_failure(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are lost, so that nothing may come behind them; and the operator is told."""
    monkeypatch.setattr(direction, "BALLAST", Ballast())
    settle()

    def send(buffer: Buffer, count: int) -> None:
        raise MemoryError

    monkeypatch.setattr(tunnel.far, "send", send, raising=False)
    tunnel.client.sendall(b"x")
    assert tunnel.result() == Transfer(0, 0, Ending.FAILED, "no memory")
    assert "no memory is left" in caplog.text


def test_an_end_of_which_nobody_could_be_told_is_told_later(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a connection would be kept for ever, as there was no memory when it ended."""
    settle()

    def run_callback(*_: object) -> None:
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr(gevent, "get_hub", lambda: SimpleNamespace(
        loop=SimpleNamespace(run_callback=run_callback)
    ))  # fmt: skip
    with pytest.raises(MemoryError):
        tunnel.relay.stop(Ending.CUT, "a reason")
    assert tunnel.result() == Transfer(0, 0, Ending.CUT, "a reason")


@pytest.mark.parametrize("step", ["begin_close", "finish_close"])
def test_a_fault_in_ending_one_side_leaves_nothing_of_the_other_open(tunnel: Tunnel, step: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    settle()
    setattr(tunnel.near, step, fail)
    tunnel.running.link_exception(lambda _: None)
    tunnel.relay.stop(Ending.STOPPED)
    with pytest.raises(RuntimeError):
        tunnel.result()
    assert tunnel.far.story == ["begin_close stopped", "finish_close"]


def test_a_relay_that_is_over_is_left_alone_while_its_ends_are_closed(tunnel: Tunnel) -> None:
    """No Ping follows our Close, and nobody takes an error from the one who waits for the answer."""
    closed = Event()
    ticks: list[float] = []

    def tick(now: float, *, listening: bool) -> bool:
        ticks.append(now)
        return True

    tunnel.near.finish_close = closed.wait  # type: ignore[method-assign, assignment]
    tunnel.near.tick = tunnel.far.tick = tick  # type: ignore[method-assign]
    settle()
    tunnel.relay.stop(Ending.CUT, "the target broke")
    settle()
    tunnel.relay.tick(time.monotonic())
    assert not ticks
    closed.set()
    assert tunnel.result().detail == "the target broke"


def test_what_is_decrypted_already_is_not_waited_for_though_there_was_no_payload(tunnel: Tunnel) -> None:
    """As with a control frame of which only the beginning was taken: no event tells of its rest."""

    class Decrypted(Spy):
        pieces: ClassVar[list[bytes]] = [b"", b"more"]

        @property
        def buffered(self) -> bool:
            return bool(self.pieces) and self.begun

        begun = False

        def recv_into(self, buffer: Buffer, *, bulk: bool) -> int | None:
            self.begun = True
            super().recv_into(buffer, bulk=bulk)
            piece = self.pieces.pop(0)
            buffer.payload[: len(piece)] = piece
            return len(piece) or None

    client, near = tcp_pair()
    target, far = tcp_pair()
    running = gevent.spawn(DataForwarder().forward_data, Decrypted(near), TcpStream(far))
    client.sendall(b"a record")
    assert target.recv(10) == b"more"
    running.kill()


def test_who_waits_for_it_may_be_killed(tunnel: Tunnel) -> None:
    settle()
    tunnel.running.kill()
    assert tunnel.near.story == tunnel.far.story == ["begin_close stopped", "finish_close"]


@both_copies
def test_nothing_is_left_behind(zero_copy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither descriptors nor greenlets."""
    monkeypatch.setattr(module, "_SWEEP", 0.02)

    def held() -> tuple[int, int]:
        gc.collect()
        greenlets = sum(isinstance(each, gevent.Greenlet) and not each.dead for each in gc.get_objects())
        return len(os.listdir("/proc/self/fd")), greenlets

    Tunnel(DataForwarder()).close()  # the first one leaves pipes in their pool
    settle()
    before = held()
    for _ in range(5):
        tunnel = Tunnel(DataForwarder(zero_copy=zero_copy))
        tunnel.client.sendall(b"x")
        tunnel.client.close()
        tunnel.target.close()
        tunnel.result()
    del tunnel
    until(lambda: held() <= before)  # the sweep ends, too


# -- backpressure and fairness


@both_copies
@both_sides
def test_a_peer_that_does_not_read_holds_up_the_other(tunnel: Tunnel, side: str) -> None:
    """CASES E132: what the kernel holds is bounded, and what we hold is a pipe or a buffer."""
    one, other = tunnel.sides(side)
    blasting = gevent.spawn(blast, other)
    settle()
    assert 0 < tunnel.relay.sent + tunnel.relay.received < 64 * MIB
    assert PIPES.lent <= 1
    one.sendall(b"the other direction goes on")
    assert other.recv(100) == b"the other direction goes on"
    blasting.kill()


@both_copies
def test_a_busy_tunnel_leaves_the_loop_to_others(join: Join) -> None:
    """One bounded operation for each readiness: nobody waits for a bulk transfer to end."""
    tunnel = join()
    blasting = gevent.spawn(blast, tunnel.target)
    draining = gevent.spawn(read_and_forget, tunnel.client)
    moved: list[int] = []
    turn: Any = gevent.get_hub().loop.check()
    turn.start(lambda: moved.append(tunnel.relay.received))
    while tunnel.relay.received < 8 * MIB:
        gevent.sleep(0.001)
    turn.close()
    assert max(after - before for before, after in pairwise(moved)) <= 4 * MIB
    gevent.killall([blasting, draining])


def read_and_forget(sock: socket.socket) -> None:
    """Take whatever comes."""
    while sock.recv(MIB):
        gevent.sleep(0)


@both_copies
def test_a_small_message_is_not_behind_a_big_transfer(join: Join) -> None:
    big, small = join(), join()
    busy = [gevent.spawn(blast, big.target), gevent.spawn(read_and_forget, big.client)]
    overtaken = []
    for _ in range(20):
        before = big.relay.received
        small.client.sendall(b"x")
        assert small.target.recv(1) == b"x"
        overtaken.append(big.relay.received - before)
        gevent.sleep(0.002)
    gevent.killall(busy)
    assert max(overtaken) <= 16 * MIB  # some turns of the loop, however long they take


# -- time


def test_an_idle_relay_ends_and_is_no_clean_end_to_anybody(join: Join) -> None:
    """CASES E134."""
    started = time.monotonic()
    tunnel = join(idle_timeout=0.2)
    assert tunnel.result().ending is Ending.IDLE
    assert 0.2 <= time.monotonic() - started < 0.4 + LATE
    for sock in (tunnel.client, tunnel.target):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_who_sent_while_we_could_not_run_is_not_idle(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 395: the sweep is the first to run after a stop, and comes late."""
    stopped, swept = 0.0, 0

    def clock() -> float:
        nonlocal swept
        swept += 1
        return time.monotonic() + stopped

    monkeypatch.setattr(module, "monotonic", clock)
    monkeypatch.setattr(module, "_SWEEP", 0.02)
    tunnel = join(idle_timeout=HOUR)
    settle()
    tunnel.client.sendall(b"in time")
    time.sleep(0.05)  # nothing in this process runs, and the sweep is due
    stopped, swept = 2 * HOUR, 0
    until(lambda: swept > 10)
    assert tunnel.target.recv(10) == b"in time"
    assert not tunnel.running.ready()


@pytest.mark.usefixtures("no_sweep")
@both_sides
def test_a_byte_either_way_keeps_it_alive(join: Join, side: str) -> None:
    """CASES E134."""
    tunnel = join(idle_timeout=4 * HOUR)
    one, other = tunnel.sides(side)
    now = time.monotonic()
    for step in range(1, 7):
        one.sendall(b".")
        assert other.recv(1) == b"."
        tunnel.relay.tick(now + step * 3 * HOUR)
        assert not tunnel.running.ready()
    tunnel.relay.tick(now + 6 * 3 * HOUR + 4 * HOUR)
    assert tunnel.result().ending is Ending.IDLE


@both_copies
@both_sides
def test_a_relay_that_can_write_nothing_is_idle(join: Join, side: str) -> None:
    """CASES E135."""
    tunnel = join(idle_timeout=0.3)
    _, other = tunnel.sides(side)
    blasting = gevent.spawn(blast, other)
    assert tunnel.result().ending is Ending.IDLE
    blasting.get()


def test_without_an_idle_timeout_silence_is_no_end(tunnel: Tunnel) -> None:
    settle()
    tunnel.relay.tick(time.monotonic() + 1e6)
    settle()
    assert not tunnel.running.ready()


@pytest.fixture
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the clock to the test."""
    monkeypatch.setattr(module, "_SWEEP", 3600.0)


@pytest.mark.usefixtures("no_sweep")
def test_a_peer_that_cannot_be_told_of_an_end_gets_a_moment_for_the_rest(join: Join) -> None:
    tunnel = join(half_closes=False)
    tunnel.target.sendall(b"all")
    tunnel.target.shutdown(1)
    settle()
    now = time.monotonic()
    tunnel.relay.tick(now + 0.5 * module.LINGER)
    settle()
    assert not tunnel.running.ready()
    tunnel.relay.tick(now + 1.5 * module.LINGER)
    assert tunnel.result() == Transfer(sent=0, received=3, ending=Ending.FINISHED)


@pytest.mark.usefixtures("no_sweep")
@both_sides
def test_one_that_goes_on_sending_gets_a_longer_moment_and_what_it_sends_then_is_not_all(
    join: Join, side: str
) -> None:
    """Case 391."""
    tunnel = join(half_closes=False)
    sender, ended = tunnel.sides(side)
    ended.shutdown(1)
    settle()
    now = time.monotonic()
    for step in range(int(2 * module.LINGER_AT_MOST)):
        sender.sendall(b"x")
        assert ended.recv(10) == b"x"
        tunnel.relay.tick(now + step * 0.5)
        gevent.sleep(0)
        assert not tunnel.running.ready()
    sender.sendall(b"x")
    assert ended.recv(10) == b"x"
    tunnel.relay.tick(now + module.LINGER_AT_MOST + 0.5)
    assert tunnel.result().ending is Ending.CUT
    assert tunnel.result().detail == f"{side}: the rest did not end in time"
    with pytest.raises(ConnectionResetError):
        read_to_end(ended)


@pytest.mark.usefixtures("no_sweep")
@both_sides
def test_one_that_takes_nothing_of_the_rest_is_the_one_that_was_late(join: Join, side: str) -> None:
    tunnel = join(half_closes=False)
    taker, sender = tunnel.sides(side)
    taker.shutdown(1)
    settle()
    blasting = gevent.spawn(blast, sender)
    until(lambda: tunnel.relay._up.held or tunnel.relay._down.held)
    now = time.monotonic()
    tunnel.relay.tick(now)
    tunnel.relay.tick(now + module.LINGER_AT_MOST + 0.5)
    assert tunnel.result().detail == f"{side}: the rest was not taken in time"
    blasting.get()


@pytest.mark.usefixtures("no_sweep")
def test_two_that_can_be_told_of_an_end_may_take_their_time(tunnel: Tunnel) -> None:
    tunnel.target.shutdown(1)
    assert tunnel.client.recv(1) == b""
    tunnel.relay.tick(time.monotonic() + 1e6)
    settle()
    tunnel.client.sendall(b"late")
    assert tunnel.target.recv(10) == b"late"


def test_a_dead_peer_is_a_cut(tunnel: Tunnel) -> None:
    settle()
    tunnel.near.alive = False
    tunnel.relay.tick(time.monotonic())
    assert tunnel.result() == Transfer(0, 0, Ending.CUT, "client: no answer to pings")


def test_the_sweep_looks_after_every_relay_also_after_a_pause(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SWEEP", 0.02)
    for _ in range(2):
        first = join()
        gevent.sleep(0.03)
        second = join()
        second.near.alive = False
        assert second.result().ending is Ending.CUT
        first.near.alive = False
        assert first.result().ending is Ending.CUT
        gevent.sleep(0.1)  # with the last of them, the sweep ends, and begins anew with the next


def test_a_plain_stream_has_no_life_to_prove() -> None:
    one, other = tcp_pair()
    stream = TcpStream(one)
    assert stream.tick(time.monotonic() + 1e6, listening=True)
    stream.begin_close(Ending.FINISHED)
    other.close()
