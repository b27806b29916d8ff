"""
What is known of an upstream, as it answers and fails: by a clock that only the test moves.
"""

import pytest

from proxy import health as module
from proxy.errors import UpstreamError
from proxy.health import Health
from proxy.settings.upstream import UpstreamConfig, UpstreamType

CONFIG = UpstreamConfig("home", UpstreamType.SOCKS5, "home.example:1080")
FAULT = UpstreamError("no answer")
NEEDS_MENDING = UpstreamError("refused our credentials", transient=False)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "monotonic", made)
    return made


def fail(health: Health, clock: Clock, fault: UpstreamError = FAULT) -> float:
    """Have an attempt that begins now fail a moment later, and give the rest that follows."""
    started = clock.now
    clock.now += 0.25
    health.failed(fault, started)
    return health.cooldown_until - clock.now


def test_the_rest_doubles_up_to_a_minute_and_stays_there_however_often_it_fails(clock: Clock) -> None:
    """Also after 1,100 failures in a row, where a power of two is larger than any float."""
    health = Health(CONFIG)
    assert [fail(health, clock) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    for _ in range(1100):
        assert fail(health, clock) == 60


def test_an_answer_forgets_all_failures(clock: Clock) -> None:
    health = Health(CONFIG)
    for _ in range(5):
        fail(health, clock)
    health.answered()
    assert (health.failures, health.problem, health.may_return) == (0, "", False)
    assert health.place(clock.now) == Health(CONFIG).place(clock.now)
    clock.now += 1
    assert fail(health, clock) == 1


def test_of_many_that_fail_at_the_same_time_one_counts(clock: Clock) -> None:
    """They began before any of them had failed, so they know nothing of one another."""
    health = Health(CONFIG)
    started = clock.now
    for _ in range(100):
        clock.now += 0.001
        health.failed(FAULT, started)
    assert health.failures == 1
    assert health.cooldown_until == clock.now + 1


def test_who_failed_while_others_were_answered_says_nothing(clock: Clock) -> None:
    health = Health(CONFIG)
    started = clock.now
    clock.now += 1
    health.answered()
    clock.now += 1
    health.failed(FAULT, started)
    assert health.failures == 0


def test_one_that_would_not_serve_a_request_is_as_it_was_and_says_why(clock: Clock) -> None:
    health = Health(CONFIG)
    health.declined(UpstreamError("answered 429"))
    assert (health.failures, health.problem) == (0, "answered 429")
    fail(health, clock)
    health.declined(UpstreamError("answered 429"))
    assert (health.failures, health.problem) == (1, "no answer")


def test_only_what_may_come_back_by_itself_is_probed(clock: Clock) -> None:
    """What refuses our credentials does so until somebody mends them."""
    health = Health(CONFIG)
    fail(health, clock)
    assert health.may_return
    fail(health, clock, NEEDS_MENDING)
    assert not health.may_return
    fail(health, clock, UpstreamError("answered 404", transient=False, unclear=True, status=404))
    assert not health.may_return
    fail(health, clock, UpstreamError("answered 502", transient=False, unclear=True, status=502))
    assert health.may_return


def test_one_at_rest_comes_behind_one_that_is_late_and_that_behind_the_well(clock: Clock) -> None:
    well, late, resting, longer = (Health(CONFIG) for _ in range(4))
    late.late_until = clock.now + 5
    fail(longer, clock)
    fail(longer, clock)
    fail(resting, clock)
    order = sorted([longer, late, resting, well], key=lambda each: each.place(clock.now))
    assert order == [well, late, resting, longer]


def test_a_rest_that_is_over_gives_no_place_back_to_one_that_says_nothing(clock: Clock) -> None:
    health = Health(CONFIG)
    fail(health, clock)
    clock.now += 100
    assert health.place(clock.now) > Health(CONFIG).place(clock.now)
    health.answers = True  # asked for a sign of life it says something, which is none
    assert health.is_due(clock.now)
    assert health.place(clock.now) == Health(CONFIG).place(clock.now)
    health.is_tried = True  # by one connection at a time
    assert health.place(clock.now) > Health(CONFIG).place(clock.now)


def test_the_head_start_follows_the_time_that_it_usually_takes(clock: Clock) -> None:
    """
    Three times that, between a quarter of a second and one.

    Less than a second where nothing is known, so that the first client of a dead one has some of it left.
    """
    health = Health(CONFIG)
    assert 0.25 <= health.head_start < 1.0
    health.reached(0.001)
    assert health.head_start == 0.25
    health = Health(CONFIG)
    health.reached(0.2)
    assert health.head_start == pytest.approx(0.6)
    for _ in range(50):
        health.reached(10.0)
    assert health.head_start == 1.0


def test_one_slow_attempt_does_not_make_the_usual_one(clock: Clock) -> None:
    health = Health(CONFIG)
    for _ in range(50):
        health.reached(0.1)
    health.reached(0.5)
    assert health.head_start == pytest.approx(3 * 0.2)  # a fourth of the way
