"""
Reaching several upstreams beside one another: which are begun, which is taken, and what becomes of the rest.

The head starts are none or without end, so that no test depends on how fast this machine is.
"""

from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event

from proxy.errors import LimitError, UpstreamError
from proxy.net.deadline import Deadline
from proxy.race import Race
from tests.wire.greenlets import patience, until

NEVER = 3600.0  # seconds


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience():
        yield


class Upstream:
    """One that is reached when a test says so, and by its own name."""

    def __init__(self, name: str, *, head_start: float = NEVER) -> None:
        self.name = name
        self.head_start = head_start
        self.is_ready = False  # at once
        self.wants_spare = False
        self.error: Exception | None = None
        self.may_go_on = Event()
        self.begun = 0
        self.is_under_way = False
        self.was_last: bool | None = None
        self.was_passed_over = 0
        self.taken_back: list[str | None] = []

    def at_once(self) -> str | None:
        """Be ready, or not."""
        return self.name if self.is_ready else None

    def reach(self, budget: Deadline, *, last: bool) -> str:
        """Wait for the test."""
        self.begun += 1
        self.was_last = last
        self.is_under_way = True
        try:
            self.may_go_on.wait()
        finally:
            self.is_under_way = False
        if self.error:
            raise self.error
        return self.name

    def passed_over(self, started: float) -> None:
        """Count it."""
        self.was_passed_over += 1

    def left_over(self, reached: str) -> None:
        """Keep it for the test."""
        self.taken_back.append(reached)

    def expects(self) -> bool:
        """Have a use for it, or not."""
        return self.wants_spare

    def came_late(self, reached: str | None) -> None:
        """Keep it for the test."""
        self.taken_back.append(reached)


def broken(name: str) -> UpstreamError:
    """Make the error of one that cannot be reached."""
    return UpstreamError(f"upstream {name}: broken")


def race_of(*upstreams: Upstream) -> Race[str]:
    """Let these race."""
    return Race(upstreams, Deadline(NEVER))


def test_only_the_preferred_one_is_begun_as_long_as_it_has_a_head_start() -> None:
    a, b = Upstream("a"), Upstream("b")
    race = race_of(a, b)
    winner = gevent.spawn(race.next)
    until(lambda: a.begun)
    gevent.idle()
    assert (a.begun, b.begun, a.was_passed_over) == (1, 0, 0)
    a.may_go_on.set()
    assert winner.get() == "a"
    race.end()


def test_the_next_is_begun_beside_one_that_is_not_reached_in_time_and_may_win() -> None:
    a, b = Upstream("a", head_start=0.0), Upstream("b")
    race = race_of(a, b)
    winner = gevent.spawn(race.next)
    until(lambda: b.begun)
    assert a.is_under_way
    assert (a.was_passed_over, b.was_passed_over) == (1, 0)
    b.may_go_on.set()
    assert winner.get() == "b"
    race.end()


def test_one_that_was_passed_over_wins_all_the_same_if_it_is_reached_first() -> None:
    a, b = Upstream("a", head_start=0.0), Upstream("b")
    race = race_of(a, b)
    winner = gevent.spawn(race.next)
    until(lambda: b.begun)
    a.may_go_on.set()
    assert winner.get() == "a"
    race.end()
    until(lambda: not b.is_under_way)  # it is called off


def test_of_two_that_are_reached_at_the_same_time_the_preferred_one_is_taken() -> None:
    a, b = Upstream("a", head_start=0.0), Upstream("b")
    race = race_of(a, b)
    winner = gevent.spawn(race.next)
    until(lambda: b.begun)
    b.may_go_on.set()
    a.may_go_on.set()
    assert winner.get() == "a"
    assert race.next() == "b"  # as the request to the first may fail
    assert race.next() is None


def test_the_next_is_begun_at_once_when_one_fails() -> None:
    a, b = Upstream("a"), Upstream("b")
    a.error = broken("a")
    a.may_go_on.set()
    b.may_go_on.set()
    race = race_of(a, b)
    assert race.next() == "b"
    assert race.errors == [a.error]
    assert a.was_passed_over == 0


def test_what_is_ready_needs_no_race() -> None:
    """A spare, or a way that needs none: not even the one before has to be waited for then."""
    a, b = Upstream("a"), Upstream("b")
    a.is_ready = True
    race = race_of(a, b)
    assert race.next() == "a"
    assert (a.begun, b.begun) == (0, 0)
    race.end()


def test_the_preferred_one_has_its_head_start_although_the_next_is_ready() -> None:
    a, b = Upstream("a"), Upstream("b")
    b.is_ready = True
    a.may_go_on.set()
    race = race_of(a, b)
    assert race.next() == "a"
    race.end()


def test_the_last_one_is_told_so() -> None:
    """It may try again after a timeout, as nobody else needs the time."""
    a, b = Upstream("a"), Upstream("b")
    a.error = broken("a")
    a.may_go_on.set()
    b.may_go_on.set()
    race_of(a, b).next()
    assert (a.was_last, b.was_last) == (False, True)


def test_when_nobody_is_left_all_errors_are_there() -> None:
    upstreams = [Upstream(name) for name in "abc"]
    for each in upstreams:
        each.error = broken(each.name)
        each.may_go_on.set()
    race = race_of(*upstreams)
    assert race.next() is None
    assert race.errors == [each.error for each in upstreams]


def test_what_was_reached_and_not_taken_goes_back() -> None:
    a, b = Upstream("a", head_start=0.0), Upstream("b")
    race = race_of(a, b)
    winner = gevent.spawn(race.next)
    until(lambda: b.begun)
    b.may_go_on.set()
    a.may_go_on.set()
    winner.get()
    race.end()
    assert b.taken_back == ["b"]
    assert a.taken_back == []


@pytest.mark.parametrize("error", [None, broken("a")])
def test_what_is_reached_too_late_goes_to_an_upstream_that_has_a_use_for_it(
    error: UpstreamError | None,
) -> None:
    a, b = Upstream("a", head_start=0.0), Upstream("b")
    a.wants_spare, a.error = True, error
    b.may_go_on.set()
    race = race_of(a, b)
    assert race.next() == "b"
    race.end()
    assert a.is_under_way
    a.may_go_on.set()
    until(lambda: a.taken_back)
    assert a.taken_back == [None if error else "a"]


def test_a_client_that_leaves_calls_all_off() -> None:
    a, b = Upstream("a", head_start=0.0), Upstream("b")

    def connect() -> None:
        race = race_of(a, b)
        try:
            race.next()
        finally:
            race.end()

    client = gevent.spawn(connect)
    until(lambda: b.begun)
    client.kill()
    until(lambda: not (a.is_under_way or b.is_under_way))
    assert a.taken_back == b.taken_back == []


def test_a_shortage_of_our_own_is_told_and_nobody_else_is_begun() -> None:
    """Case 340: the next one would be no better off."""
    a, b = Upstream("a"), Upstream("b")
    a.error = LimitError("too many open files")
    a.may_go_on.set()
    with pytest.raises(LimitError):
        race_of(a, b).next()
    assert b.begun == 0


def test_a_shortage_does_not_keep_one_from_winning_that_is_under_way() -> None:
    a, b = Upstream("a", head_start=0.0), Upstream("b")
    b.error = LimitError("too many open files")
    race = race_of(a, b)
    winner = gevent.spawn(race.next)
    until(lambda: b.begun)
    b.may_go_on.set()
    until(lambda: not b.is_under_way)
    a.may_go_on.set()
    assert winner.get() == "a"
    race.end()


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_network() -> None:
    a, b = Upstream("a"), Upstream("b")
    a.error = ZeroDivisionError()
    a.may_go_on.set()
    with pytest.raises(ZeroDivisionError):
        race_of(a, b).next()
