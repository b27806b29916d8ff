"""
Work without an event that says so, shared out over the turns of the event loop.
"""

from collections.abc import Iterator

import gevent
import pytest
from gevent import socket

from proxy.sharing import turns as module
from proxy.sharing.turns import ALONE, BESIDE_SMALL, FEW_FRAMES, FRAMES_AT_A_TIME, Share, Turns
from tests.wire.greenlets import settle, until


@pytest.fixture
def one_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one operation use up the time of a turn."""
    monkeypatch.setattr(module, "ALONE", Share(0.0, ALONE.most))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let time pass only where a test says so."""
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


class Look:
    """Counts how often the event loop has looked at its sockets."""

    def __init__(self) -> None:
        self.count = 0
        self._watcher = gevent.get_hub().loop.check()
        self._watcher.start(self._look)

    def _look(self) -> None:
        self.count += 1

    def close(self) -> None:
        """Count no more."""
        self._watcher.close()


@pytest.fixture
def look() -> Iterator[Look]:
    """Count the looks of the event loop at its sockets."""
    made = Look()
    yield made
    made.close()


@pytest.mark.usefixtures("one_a_turn")
def test_those_who_wait_take_turns_in_the_order_in_which_they_came() -> None:
    turns, done = Turns(), []
    left = dict.fromkeys("abc", 3)

    def operation(name: str) -> None:
        done.append(name)
        left[name] -= 1
        if left[name]:
            turns.later(lambda: operation(name))

    for name in left:
        turns.later(lambda name=name: operation(name))  # type: ignore[misc]
    until(lambda: not any(left.values()))
    assert "".join(done) == "abcabcabc"


@pytest.mark.usefixtures("one_a_turn")
def test_between_two_turns_sockets_are_looked_at() -> None:
    """However much waits, a small message is behind one turn of it."""
    turns, done = Turns(), 0
    seen: list[int] = []
    ours, theirs = socket.socketpair()

    def operation() -> None:
        nonlocal done
        done += 1
        if done == 10:
            theirs.send(b"x")
        if not seen and done < 10_000:
            turns.later(operation)

    def read() -> None:
        ours.recv(1)
        seen.append(done)

    reading = gevent.spawn(read)
    for _ in range(100):
        turns.later(operation)
    reading.get()
    assert seen[0] <= 10 + 3
    ours.close()
    theirs.close()


@pytest.mark.usefixtures("clock")
def test_frames_are_for_all_together_and_anew_in_each_turn() -> None:
    turns = Turns()
    for _ in range(1000):
        turns.spend(FEW_FRAMES)  # what everybody may is not counted
    assert turns.frames == FRAMES_AT_A_TIME
    while not turns.is_full:
        turns.spend(FRAMES_AT_A_TIME)
    assert turns.frames == FEW_FRAMES
    gevent.sleep(0.001)
    assert turns.frames == FRAMES_AT_A_TIME


@pytest.mark.usefixtures("clock")
def test_what_is_copied_is_counted_without_a_clock() -> None:
    """However many operations there are in a turn that nobody knew to be big."""
    turns = Turns()
    done = 0
    while not turns.is_full:
        turns.spend_bytes(64 * 1024)
        done += 1
    assert done < 10
    assert not turns.has_room
    gevent.sleep(0.001)
    assert turns.has_room


def test_who_comes_when_the_slice_is_used_up_has_no_room_and_gets_it_in_the_next_turn(
    clock: list[float],
) -> None:
    turns = Turns()

    def take(seconds: float) -> None:
        clock[0] += seconds

    turns.do(lambda: take(ALONE.slice * 0.6))
    assert turns.has_room
    turns.do(lambda: take(ALONE.slice * 0.6))
    assert not turns.has_room
    gevent.sleep(0.001)
    assert turns.has_room


def test_nobody_has_room_while_somebody_waits() -> None:
    """Who comes by an event would otherwise be served again and again before those who wait."""
    turns, done = Turns(), []
    turns.later(lambda: done.append("waited"))
    assert not turns.has_room
    until(lambda: done)
    assert turns.has_room


def test_those_who_wait_are_served_whatever_others_use(clock: list[float], look: Look) -> None:
    """A busy socket must not starve them: each turn serves one at least."""
    turns = Turns()
    served: list[int] = []

    def busy() -> None:
        turns.do(lambda: clock.__setitem__(0, clock[0] + 1.0))

    def wait() -> None:
        served.append(look.count)
        clock[0] += 1.0
        if len(served) < 20:
            turns.later(wait)

    ours, theirs = socket.socketpair()
    theirs.send(b"x")
    event = gevent.get_hub().loop.io(ours.fileno(), 1)
    event.start(busy)
    turns.later(wait)
    until(lambda: len(served) == 20)
    event.close()
    assert served == list(range(served[0], served[0] + 20))  # one in each
    ours.close()
    theirs.close()


def test_what_is_forgotten_is_not_done() -> None:
    turns, done = Turns(), []

    def operation() -> None:
        done.append("forgotten")

    turns.later(operation)
    turns.later(lambda: done.append("other"))
    turns.forget(operation)
    turns.forget(operation)
    until(lambda: done)
    settle()
    assert done == ["other"]


def test_one_who_waits_may_take_another_along() -> None:
    """An operation may end the connection of one who waits behind it."""
    turns, done = Turns(), []

    def second() -> None:
        done.append("second")

    def first() -> None:
        turns.forget(second)
        done.append("first")

    turns.later(first)
    turns.later(second)
    until(lambda: done)
    settle()
    assert done == ["first"]
    assert turns.has_room


def test_beside_small_ones_those_who_move_much_have_less_of_each_turn() -> None:
    """Until none has been there for a while: then fewer and bigger operations cost less."""
    turns = Turns()
    assert turns.share == ALONE
    turns.small_came = True
    turns._renew()
    for _ in range(module._MEMORY - 1):
        assert turns.share == BESIDE_SMALL
        turns._renew()
    assert BESIDE_SMALL < ALONE
    turns._renew()
    assert turns.share == ALONE


def test_a_small_one_is_noticed_in_the_turn_in_which_it_comes(clock: list[float]) -> None:
    turns = Turns()
    turns.spend_bytes(1)
    turns.small_came = True
    gevent.sleep(0.001)

    def take(seconds: float) -> None:
        clock[0] += seconds

    turns.do(lambda: take(BESIDE_SMALL.slice))
    assert not turns.has_room
