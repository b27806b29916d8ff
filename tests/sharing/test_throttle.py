"""
Bandwidth that is shared: how much, how evenly and in which order, by a clock and timers of our own.
"""

import heapq
import itertools
from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.sharing.throttle import CHUNK_TIME, Place, Throttle

KIB, MIB = 1 << 10, 1 << 20
SECONDS = 5.0


class Time:
    """A clock that goes from timer to timer, and is late for each as a busy event loop is."""

    def __init__(self, lateness: Callable[[], float] = lambda: 0.0) -> None:
        self.now = 1000.0
        self._lateness = lateness
        self._numbers = itertools.count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._closed: set[int] = set()

    def start(self, seconds: float, act: Callable[[], None]) -> "Timer":
        """Start a timer."""
        number = next(self._numbers)
        heapq.heappush(self._timers, (self.now + seconds, number, act))
        return Timer(partial(self._closed.add, number))

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            due, number, act = heapq.heappop(self._timers)
            if number not in self._closed:
                self.now = max(self.now, due + self._lateness())
                act()
        self.now = max(self.now, end)

    @property
    def pending(self) -> int:
        """How many timers are left."""
        return sum(number not in self._closed for _, number, _ in self._timers)

    def throttle(self, rate: int) -> Throttle:
        """Make a throttle that goes by this clock."""
        return Throttle(rate, lambda: self.now, self.start)


class Timer:
    """What ``start`` returns."""

    def __init__(self, close: Callable[[], None]) -> None:
        self.close = close


class Mover:
    """Always has more to move: as much as it may, or what its operations happen to find."""

    def __init__(self, time: Time, *throttles: Throttle, finds: Callable[[], int] = lambda: MIB) -> None:
        self.moved = 0
        self._time = time
        self._places = [Place(each, self.go) for each in throttles]
        self._finds = finds

    def go(self) -> None:
        """Ask all of them, and move something when all let it through."""
        if not all(each.throttle.ask(each) for each in self._places):
            for each in self._places:
                each.throttle.pass_on(each)
        else:
            count = min(self._finds(), *(each.throttle.share for each in self._places))
            self.moved += count
            for each in self._places:
                each.throttle.pay(each, count)
            self._time.start(0.00005, self.go)


def movers(time: Time, count: int, *throttles: Throttle) -> list[Mover]:
    """Have so many move under the same throttles."""
    made = [Mover(time, *throttles) for _ in range(count)]
    for each in made:
        each.go()
    return made


@pytest.mark.parametrize("rate", [20 * KIB, 64 * KIB, MIB, 2 * MIB, 100 * MIB])
@pytest.mark.parametrize("count", [1, 2, 16])
def test_the_rate_is_kept_within_5_percent_over_5_seconds_and_shared_evenly(count: int, rate: int) -> None:
    time = Time()
    moved = movers(time, count, time.throttle(rate))
    time.run(SECONDS)
    total = sum(each.moved for each in moved)
    assert abs(total - rate * SECONDS) <= 0.05 * rate * SECONDS
    assert min(each.moved for each in moved) >= 0.8 * total / count


@pytest.mark.parametrize("count", [1, 16])
def test_a_loop_that_is_mostly_late_costs_no_bandwidth(count: int) -> None:
    """What was not used while it was late is there when it comes, up to a chunk."""
    random = Random(1)
    time = Time(lambda: random.uniform(0, 0.8 * CHUNK_TIME))
    moved = movers(time, count, time.throttle(2 * MIB))
    time.run(SECONDS)
    total = sum(each.moved for each in moved)
    assert abs(total - 2 * MIB * SECONDS) <= 0.05 * 2 * MIB * SECONDS


@settings(max_examples=50, deadline=None)
@given(st.integers(KIB, 50 * MIB), st.integers(1, 40), st.floats(0, 2), st.floats(0.1, 2))
def test_in_no_window_is_more_moved_than_the_rate_a_chunk_and_one_operation(
    rate: int, count: int, start: float, length: float
) -> None:
    time = Time()
    throttle = time.throttle(rate)
    moved = movers(time, count, throttle)
    time.run(start)
    before = sum(each.moved for each in moved)
    most = throttle.share
    time.run(length)
    more = sum(each.moved for each in moved) - before
    assert more <= rate * (length + 2 * CHUNK_TIME) + max(most, 16 * KIB)


def test_one_that_comes_later_gets_the_same_from_then_on() -> None:
    time = Time()
    throttle = time.throttle(MIB)
    first = movers(time, 3, throttle)
    time.run(SECONDS)
    before = first[0].moved
    (late,) = movers(time, 1, throttle)
    time.run(SECONDS)
    assert late.moved == pytest.approx(first[0].moved - before, rel=0.1)


def test_those_whose_operations_find_little_get_no_less_than_those_who_find_much() -> None:
    time, random = Time(), Random(1)
    throttle = time.throttle(2 * MIB)
    finds = [lambda: MIB, lambda: 3000, lambda: random.randrange(1, 20_000), lambda: random.choice((1, MIB))]
    different = [Mover(time, throttle, finds=each) for each in finds]
    for each in different:
        each.go()
    time.run(SECONDS)
    total = sum(each.moved for each in different)
    assert total == pytest.approx(2 * MIB * SECONDS, rel=0.05)
    assert min(each.moved for each in different) >= 0.85 * total / len(different)


def test_any_number_of_new_ones_keeps_nobody_from_its_turn() -> None:
    """They have had nothing yet, so they come first, but not for ever."""
    time = Time()
    throttle = time.throttle(MIB)
    old = movers(time, 4, throttle)
    time.run(1)
    before = [each.moved for each in old]

    def come() -> None:
        new = Visitor(throttle, then=lambda: time.start(0.001, come))
        if throttle.ask(new.place):
            new.move()

    for _ in range(4):
        come()
    time.run(SECONDS)
    got = [each.moved - was for each, was in zip(old, before, strict=True)]
    assert sum(got) >= MIB * SECONDS / 6  # where half is the due of these four beside four new ones
    assert min(got) >= 0.8 * sum(got) / len(got)


class Visitor:
    """Moves a share once, when it is let through."""

    def __init__(self, throttle: Throttle, then: Callable[[], object] = lambda: None) -> None:
        self.place = Place(throttle, self.move)
        self._then = then

    def move(self) -> None:
        """Move it."""
        self.place.throttle.pay(self.place, self.place.throttle.share)
        self._then()


def test_those_who_have_had_the_same_are_let_through_in_the_order_in_which_they_came() -> None:
    time = Time()
    throttle = time.throttle(1000)
    through: list[str] = []
    first, *others = [Visitor(throttle, partial(through.append, name)) for name in "abcd"]
    assert throttle.ask(first.place)
    assert throttle.ask(first.place)  # as long as it has not paid
    assert not any(throttle.ask(each.place) for each in others)
    assert not throttle.ask(others[0].place)  # to ask again is no second place, and no other one
    time.run(10)
    assert through == []
    throttle.pay(first.place, 100)
    time.run(0.01)
    assert through == []  # what it has moved is still owed
    time.run(10)
    assert through == list("bcd")


def test_who_leaves_is_not_called_and_keeps_nobody_waiting() -> None:
    time = Time()
    throttle = time.throttle(1000)
    through: list[str] = []
    first, second, third = [Visitor(throttle, partial(through.append, name)) for name in "abc"]
    assert throttle.ask(first.place)
    assert not throttle.ask(second.place)
    assert not throttle.ask(third.place)
    for _ in range(2):
        throttle.forget(second.place)
    time.run(1)
    assert not through
    throttle.forget(first.place)
    assert not through  # it may be in the middle of what it has not paid
    time.run(1)
    assert through == ["c"]
    assert time.pending == 0


def test_two_throttles_hold_together_and_the_narrower_one_decides() -> None:
    time = Time()
    mine, yours, everybodys = time.throttle(MIB), time.throttle(10 * MIB), time.throttle(2 * MIB)
    me = movers(time, 4, mine, everybodys)
    you = movers(time, 4, yours, everybodys)
    time.run(SECONDS)
    my, your = sum(each.moved for each in me), sum(each.moved for each in you)
    assert my + your == pytest.approx(2 * MIB * SECONDS, rel=0.05)
    assert my <= 1.05 * MIB * SECONDS
    assert min(each.moved for each in me) >= 0.8 * my / 4
    assert min(each.moved for each in you) >= 0.8 * your / 4


def test_who_waits_for_another_throttle_keeps_nobody_waiting_who_does_not_need_that() -> None:
    """A user comes from two places, in one of which others leave little."""
    time = Time()
    user, crowded = time.throttle(2 * MIB), time.throttle(64 * KIB)
    movers(time, 7, crowded)
    (here,) = movers(time, 1, user, crowded)
    (there,) = movers(time, 1, user)
    time.run(SECONDS)
    assert here.moved == pytest.approx(64 * KIB * SECONDS / 8, rel=0.2)
    assert here.moved + there.moved == pytest.approx(2 * MIB * SECONDS, rel=0.05)


def test_many_who_wait_for_another_throttle_do_not_owe_more_than_a_bucket_holds() -> None:
    time = Time()
    mine, everybodys = time.throttle(MIB), time.throttle(MIB)
    me = movers(time, 16, mine, everybodys)
    (other,) = movers(time, 1, everybodys)
    for _ in range(50):
        before = sum(each.moved for each in me)
        time.run(0.1)
        more = sum(each.moved for each in me) - before
        assert more <= MIB * (0.1 + 3 * CHUNK_TIME)
    total = sum(each.moved for each in me) + other.moved
    assert total == pytest.approx(MIB * SECONDS, rel=0.05)


def test_a_throttle_of_others_is_not_waited_for() -> None:
    """Whoever has used up its own leaves another identity what is its."""
    time = Time()
    slow, fast = time.throttle(KIB), time.throttle(MIB)
    movers(time, 16, slow)
    (alone,) = movers(time, 1, fast)
    time.run(SECONDS)
    assert alone.moved == pytest.approx(MIB * SECONDS, rel=0.05)


@pytest.mark.parametrize(("before", "after"), [(100 * MIB, 64 * KIB), (4 * KIB, MIB)])
def test_another_rate_holds_at_once_for_those_who_wait(before: int, after: int) -> None:
    time = Time()
    throttle = time.throttle(before)
    moved = movers(time, 4, throttle)
    time.run(1)
    so_far = sum(each.moved for each in moved)
    throttle.rate = after
    time.run(SECONDS)
    more = sum(each.moved for each in moved) - so_far
    assert more == pytest.approx(after * SECONDS, rel=0.05)


def test_it_is_idle_when_nothing_is_owed() -> None:
    time = Time()
    throttle = time.throttle(1000)
    assert throttle.is_idle
    visitor = Visitor(throttle)
    assert throttle.ask(visitor.place)
    visitor.move()
    assert not throttle.is_idle
    time.run(1)
    assert throttle.is_idle
