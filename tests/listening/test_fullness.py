"""What is told of a listener that fills and empties, under a clock that only the tests move."""

import logging
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from proxy.listening import fullness as module
from proxy.listening.fullness import Fullness


class Clock:
    """The time in seconds, and the event loop's timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Any]] = []

    def __call__(self) -> float:
        return self.now

    def timer(self, delay: float) -> "Clock.Timer":
        """Make a timer, as the event loop does."""
        return Clock.Timer(self, self.now + delay)

    def pass_by(self, seconds: float) -> None:
        """Let time pass, and call what is due."""
        self.now += seconds
        for due, act in [each for each in self.timers if each[0] <= self.now]:
            self.timers.remove((due, act))
            act()

    class Timer:
        """Calls somebody once, unless it is closed before."""

        def __init__(self, clock: "Clock", due: float) -> None:
            self._clock, self._due = clock, due

        def start(self, act: Any, *, update: bool) -> None:
            self._clock.timers.append((self._due, act))

        def close(self) -> None:
            self._clock.timers = [each for each in self._clock.timers if each[0] != self._due]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Move the time by hand."""
    made = Clock()
    monkeypatch.setattr(module, "monotonic", made)
    monkeypatch.setattr(gevent.get_hub(), "loop", made)
    yield made
    monkeypatch.undo()


@pytest.fixture
def one(clock: Clock, caplog: pytest.LogCaptureFixture) -> Fullness:
    """Be a listener that is empty."""
    caplog.set_level(logging.INFO, "proxy")
    made = Fullness(lambda: "full" if made.is_full else "room")
    return made


def test_it_is_told_at_once_that_it_is_full(one: Fullness, caplog: pytest.LogCaptureFixture) -> None:
    """Case 331."""
    one.become(True)
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [("WARNING", "full")]


def test_it_is_told_once_that_there_is_room_again(
    one: Fullness, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Case 331."""
    one.become(True)
    one.become(False)
    clock.pass_by(2)
    clock.pass_by(100)
    assert [each.getMessage() for each in caplog.records] == ["full", "room"]


def test_a_place_that_one_who_waited_takes_is_no_room(
    one: Fullness, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    one.become(True)
    for _ in range(1000):
        one.become(False)
        clock.pass_by(0.1)
        one.become(True)
        clock.pass_by(0.1)
    assert [each.getMessage() for each in caplog.records] == ["full"]


def test_one_that_is_full_now_and_then_writes_two_lines_in_half_a_minute(
    one: Fullness, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(30):
        one.become(True)
        clock.pass_by(2)
        one.become(False)
        clock.pass_by(2)
    assert 4 <= len(caplog.records) <= 2 * (120 / 30 + 1)
    told = [each.getMessage() for each in caplog.records]
    assert told == ["full", "room"] * (len(told) // 2)


def test_one_that_stays_full_after_a_pair_of_lines_is_told_in_the_end(
    one: Fullness, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    one.become(True)
    one.become(False)
    clock.pass_by(2)
    one.become(True)
    clock.pass_by(10)
    assert [each.getMessage() for each in caplog.records] == ["full", "room"]
    clock.pass_by(20)
    assert [each.getMessage() for each in caplog.records] == ["full", "room", "full"]
