"""
Work without an event that says so, shared out over the turns of the event loop.
"""

import gevent
import pytest
from gevent import socket

from proxy.relaying import turns as module
from proxy.relaying.turns import FEW_FRAMES, FRAMES_A_TURN, FRAMES_AT_A_TIME, Turns
from tests.wire.greenlets import until


@pytest.fixture
def one_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one operation use up the time of a turn."""
    monkeypatch.setattr(module, "_SLICE", 0.0)


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


def test_frames_are_for_all_together_and_anew_in_each_turn() -> None:
    turns = Turns()
    assert turns.frames == FRAMES_AT_A_TIME
    for _ in range(1000):
        turns.spend(FEW_FRAMES)  # what everybody may is not counted
    for _ in range(FRAMES_A_TURN // FRAMES_AT_A_TIME):
        assert turns.frames == FRAMES_AT_A_TIME
        turns.spend(FRAMES_AT_A_TIME)
    assert turns.frames == FEW_FRAMES
    gevent.sleep(0.001)
    assert turns.frames == FRAMES_AT_A_TIME
