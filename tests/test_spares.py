"""
Connections that are made ready: how many, for how long, and what is taken for one. The clock is the test's.
"""

import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from proxy.spares import IN_USE, LONGEST, LOOK, MEMORY, Spares
from tests.wire.greenlets import patience, until

EFFORT = 0.15  # seconds: three times there and back on a wire of 50 ms


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the test look at them, and nobody else."""
    monkeypatch.setattr(Spares, "_tend", lambda spares: None)
    with patience():
        yield


class Channel:
    """A connection that a test has die, or say something."""

    def __init__(self) -> None:
        self.is_good = True
        self.is_unheard = False
        self.is_closed = False
        self.is_hung_up = False

    def is_quiet(self) -> bool:
        """Be there, and say nothing."""
        return self.is_good

    def leave(self) -> None:
        """Be closed."""
        self.is_closed = True

    def hang_up(self) -> None:
        """Be ended for those that wait for something."""
        self.is_hung_up = True


class Bench:
    """The spares of an upstream that makes what is wanted at once."""

    def __init__(self, most: int = 8) -> None:
        self.now = 1000.0
        self.made: list[Channel] = []
        self.is_reachable = True
        self.effort = EFFORT
        self.lives = True
        self.asked = 0
        self.spares = Spares(most, lambda: self.now)
        self.spares.begin(self)

    def make_spare(self) -> Any:
        """Make one."""
        if not self.is_reachable:
            return None
        self.made.append(Channel())
        return self.made[-1]

    def is_silent(self) -> bool:
        """Give a sign of life, or none."""
        self.asked += 1
        return not self.lives

    def take(self) -> Any:
        """Take one; if there is none, reach the upstream, with success."""
        self.now += 2 * EFFORT
        (channel,) = self.burst(1)
        return channel

    def burst(self, count: int) -> list[Any]:
        """Come with several clients at once, which all reach the upstream if they have to."""
        taken = [self.spares.take(self.effort) for _ in range(count)]
        if None in taken:
            self.spares.fill()
        gevent.idle()
        return taken

    def look(self, later: float = LOOK) -> None:
        """Let time go by, and look at them, as is done twice a second."""
        ends = self.now + later
        while self.now < ends:
            self.now += LOOK
            self.spares.look()
            gevent.idle()


# -- how many


def test_the_first_client_finds_none_and_the_next_one_does() -> None:
    bench = Bench()
    assert bench.take() is None
    assert len(bench.spares) == 1
    assert bench.take() is bench.made[0]
    assert len(bench.spares) == 1  # for the one after that


def test_one_that_was_only_asked_for_is_not_made_before_the_upstream_was_reached() -> None:
    """None for an upstream that is down: to try it is for whoever needs it."""
    bench = Bench()
    bench.spares.take(EFFORT)
    gevent.idle()
    bench.look()
    assert bench.made == []


def test_there_are_as_many_as_were_taken_at_once() -> None:
    bench = Bench()
    bench.burst(5)
    assert len(bench.spares) == 5
    bench.now += 1
    assert None not in bench.burst(5)
    assert len(bench.spares) == 5


def test_clients_that_come_one_after_the_other_share_one() -> None:
    """It is replaced before the next one comes."""
    bench = Bench()
    for _ in range(20):
        bench.take()
        assert len(bench.spares) == 1
    assert len(bench.made) == 20


def test_an_upstream_that_is_near_gets_new_ones_with_the_next_look_only() -> None:
    """To reach it costs a client next to nothing, and to have somebody else do it costs more."""
    bench = Bench()
    bench.effort = 0.001
    bench.burst(3)
    made = len(bench.made)
    for _ in range(100):
        bench.now += 0.004
        bench.burst(3)
    assert len(bench.made) == made
    bench.look()
    assert len(bench.spares) == 3


@pytest.mark.parametrize("most", [0, 1, 8, 64])
def test_there_are_never_more_than_may_be(most: int) -> None:
    bench = Bench(most)
    for _ in range(3):
        bench.burst(100)
        assert len(bench.spares) == most
    assert len(bench.made) <= 3 * most


def test_those_that_nobody_takes_become_fewer() -> None:
    bench = Bench()
    bench.burst(8)
    seen = []
    for _ in range(3):
        bench.look(LONGEST)
        seen.append(len(bench.spares))
    assert seen == [4, 2, 1]


def test_a_client_now_and_then_wastes_one_in_eight_seconds_at_most() -> None:
    bench = Bench()
    bench.take()
    bench.look(IN_USE)
    assert len(bench.made) <= 1 + IN_USE / (LONGEST - LOOK)


def test_an_upstream_that_nobody_uses_has_none() -> None:
    bench = Bench()
    bench.take()
    bench.look(IN_USE + LOOK)
    made = len(bench.made)
    bench.look(3 * LONGEST)
    assert len(bench.spares) == 0
    assert all(channel.is_closed for channel in bench.made)
    assert len(bench.made) == made


def test_an_upstream_that_fails_has_none_until_it_was_reached_again() -> None:
    bench = Bench()
    bench.take()
    bench.spares.drop()
    assert bench.made[0].is_closed
    bench.look(LONGEST)
    assert len(bench.made) == 1
    bench.take()
    assert len(bench.spares) == 1


def test_when_one_cannot_be_made_no_other_is_tried() -> None:
    bench = Bench()
    bench.is_reachable = False
    bench.burst(8)
    bench.is_reachable = True
    bench.look(LONGEST)
    assert bench.made == []


# -- what is taken for one


def test_the_oldest_is_taken_first_so_that_fewer_are_wasted() -> None:
    bench = Bench()
    bench.burst(3)
    assert bench.burst(3) == bench.made[:3]


def test_one_that_has_died_or_has_said_something_is_passed_over() -> None:
    bench = Bench()
    bench.burst(2)
    bench.look(4.0)
    old, other = bench.made
    assert bench.take() is old
    other.is_good = False
    assert bench.take() is bench.made[2]
    assert other.is_closed
    assert (bench.spares.counts["died"], bench.spares.counts["taken"]) == (1, 2)


@pytest.mark.parametrize("how", ["it grew old", "the process was stopped"])
def test_one_that_is_too_old_is_not_taken(how: str) -> None:
    """Also if nobody could look at it meanwhile."""
    bench = Bench()
    bench.take()
    if how == "it grew old":
        bench.look(LONGEST)
    else:
        bench.now += LONGEST + 0.1
        assert bench.take() is None
    assert bench.made[0].is_closed
    assert bench.spares.counts["expired"] == 1


def test_the_clock_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of the other end does, which has given the connection up by then."""
    asked: list[int] = []

    def clock_gettime(clock: int) -> float:
        asked.append(clock)
        return 1.0

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    Spares(8).take()
    assert asked == [getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)]


def test_where_they_die_young_they_are_kept_for_half_as_long() -> None:
    """Many servers end a connection after some seconds on which nothing is asked for."""
    bench = Bench()
    bench.take()
    bench.look(5.0)
    bench.made[0].is_good = False
    bench.look()
    assert bench.made[0].is_closed
    bench.look(2.5)
    assert bench.made[1].is_closed  # it was good
    assert bench.spares.counts["died"] == 1


def test_where_they_die_at_once_there_are_none_for_a_while() -> None:
    bench = Bench()
    bench.take()
    bench.made[0].is_good = False
    bench.look()
    made = len(bench.made)
    ends = bench.now + MEMORY
    while bench.now < ends:
        assert bench.take() is None
        assert len(bench.made) == made
        bench.look(5.0)
    bench.take()
    bench.look()
    assert len(bench.spares) == 1


def test_where_all_die_together_the_oldest_tells_how_long_they_last() -> None:
    """The upstream was started anew: that says nothing of the young ones."""
    bench = Bench()
    bench.burst(2)
    bench.look(6.0)
    bench.take()
    assert len(bench.spares) == 2
    for channel in bench.made:
        channel.is_good = False
    bench.look()
    assert bench.spares.counts["died"] == 2
    assert len(bench.spares) == 2


# -- who makes them


def test_nobody_makes_any_once_that_has_ended() -> None:
    bench = Bench()
    bench.take()
    bench.spares.end()
    assert bench.made[0].is_closed
    assert bench.take() is None
    bench.look(LONGEST)
    assert len(bench.made) == 1


def test_what_comes_when_nobody_wants_it_any_more_is_closed() -> None:
    bench = Bench()
    bench.take()
    late, left = Channel(), Channel()
    bench.spares.end()
    bench.spares._making += 1
    bench.spares.arrive(late, bench.now)  # type: ignore[arg-type]
    bench.spares.offer(left, bench.now)  # type: ignore[arg-type]
    assert (late.is_closed, left.is_closed) == (True, True)


def test_one_that_a_race_leaves_over_is_kept_if_one_is_wanted() -> None:
    bench = Bench()
    bench.take()
    bench.made[0].is_good = False
    bench.is_reachable = False
    bench.spares.take(EFFORT)
    assert bench.spares.expect()
    assert not bench.spares.expect()  # one is enough
    late = Channel()
    bench.spares.arrive(late, bench.now)  # type: ignore[arg-type]
    assert bench.spares.take(EFFORT) is late  # type: ignore[comparison-overlap]


# -- when an upstream has vanished


@pytest.mark.parametrize("lives", [True, False])
def test_a_request_that_nobody_acknowledges_is_given_up_if_there_is_no_sign_of_life(lives: bool) -> None:
    """It lies on a connection that was reached some seconds ago, and there may be nobody any more."""
    bench = Bench()
    bench.lives = lives
    bench.take()
    channel = bench.take()
    channel.is_unheard = True
    with bench.spares.asking(channel):
        bench.look(2 * LOOK)
        until(lambda: bench.asked)
        gevent.idle()
        assert channel.is_hung_up is not lives


def test_a_request_that_was_acknowledged_is_waited_for() -> None:
    """The upstream has it, and may be connecting to the target."""
    bench = Bench()
    bench.take()
    channel = bench.take()
    with bench.spares.asking(channel):
        bench.look(LONGEST)
    channel.is_unheard = True
    bench.look(LONGEST)  # the request has been answered
    assert bench.asked == 0
    assert not channel.is_hung_up
