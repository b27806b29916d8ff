"""
How checks of passwords are shared out: what guessing costs, who waits, and who is told at once.

What a check takes is read from a clock that only the test moves, and whether one begins is decided in the
moment it is asked for, or another one ends. So nothing here depends on how fast this machine is.
"""

import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from proxy.errors import LimitError
from proxy.net import checking
from proxy.net.checking import MOST_WAIT, Checkers
from proxy.net.threads import Job
from tests.wire.greenlets import PATIENCE

THREADS = 2


class Desk:
    """Takes questions on behalf of askers, who all wait until the test is over."""

    def __init__(self) -> None:
        self.now = 0.0
        self.checkers = Checkers(THREADS, lambda: self.now)
        self.calls = 0
        self._answers: dict[Job[Any], list[object]] = {}
        self._ends: dict[Job[Any], threading.Event] = {}
        self.waiting = ExitStack()

    def ask(self, asker: str, key: Hashable = None) -> "Job[bool]":
        """Ask for a check, which takes until ``end``."""
        answer: list[object] = []
        end = threading.Event()

        def check() -> bool:
            self.calls += 1
            assert end.wait(PATIENCE)
            if isinstance(answer[0], Exception):
                raise answer[0]
            return bool(answer[0])

        job = self.waiting.enter_context(self.checkers.job(check, asker, key))
        self._answers.setdefault(job, answer)
        self._ends.setdefault(job, end)
        return job

    def end(self, job: "Job[bool]", answer: object, takes: float = 0.0) -> None:
        """Let one come to its answer, so many seconds later."""
        self.now += takes
        self._answers[job].append(answer)
        self._ends[job].set()
        if isinstance(answer, Exception):
            with pytest.raises(type(answer)):
                job.get()
        else:
            assert job.get() is answer

    def finish(self) -> None:
        """Let all end that run."""
        for job, end in self._ends.items():
            self._answers[job].append(True)
            end.set()
        self.waiting.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.finish()


# Whoever guesses


def test_who_was_wrong_rests_while_others_are_served(desk: Desk) -> None:
    desk.end(desk.ask("guesser"), False, takes=100)
    with pytest.raises(LimitError):  # the rest is longer than anybody may wait
        desk.ask("guesser")
    assert desk.ask("other").is_begun


def test_who_was_right_does_not_rest(desk: Desk) -> None:
    desk.end(desk.ask("user"), True, takes=100)
    assert desk.ask("user").is_begun


def test_a_stop_of_the_process_makes_nobody_s_rest_longer(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes a check look slow; and whoever mistypes a password then would be locked out for long."""
    rests: list[float] = []
    loop = gevent.get_hub().loop

    class Timer:
        def __init__(self, seconds: float) -> None:
            rests.append(seconds)
            self._timer = loop.timer(0.001)
            self.start, self.close = self._timer.start, self._timer.close

    fake = SimpleNamespace(get_hub=lambda: SimpleNamespace(loop=SimpleNamespace(timer=Timer)))
    monkeypatch.setattr(checking, "gevent", fake)
    desk.end(desk.ask("guesser"), False, takes=3600)
    assert rests == [8.0]
    following = desk.ask("other")
    assert following.is_begun
    assert len(fill(desk, "other")) == 4  # as many as for checks of a second


def test_the_next_guess_is_checked_after_eight_times_as_long(desk: Desk) -> None:
    guess, following = desk.ask("guesser"), desk.ask("guesser")
    began = time.monotonic()
    desk.end(guess, False, takes=0.02)
    desk.end(following, True)  # it is waited for here: nothing but the timer begins it
    assert time.monotonic() - began >= 8 * 0.02


def test_a_guess_hands_its_thread_to_somebody_else(desk: Desk) -> None:
    first, second = desk.ask("guesser"), desk.ask("other")
    behind, third = desk.ask("guesser"), desk.ask("third")
    assert [job.is_begun for job in (first, second, behind, third)] == [True, True, False, False]
    desk.end(first, False, takes=100)
    assert third.is_begun
    assert isinstance(behind.error, LimitError)


def test_nobody_by_name_does_not_rest(desk: Desk) -> None:
    """Without a name, one wrong answer says nothing about who asks next."""
    desk.end(desk.ask(""), False, takes=100)
    assert desk.ask("").is_begun


def test_a_check_that_failed_is_no_guess(desk: Desk) -> None:
    desk.end(desk.ask("user"), ZeroDivisionError(), takes=100)
    assert desk.ask("user").is_begun


# Whoever would wait for too long


def fill(desk: Desk, asker: str) -> "list[Job[bool]]":
    """Ask until there are too many."""
    jobs: list[Job[bool]] = []
    with suppress(LimitError):
        while len(jobs) < 10_000:
            jobs.append(desk.ask(asker))
    return jobs


@pytest.mark.parametrize(("takes", "most"), [(1.0, 4), (0.5, 8), (0.125, 32)])
def test_one_waits_for_a_bounded_time(desk: Desk, takes: float, most: int) -> None:
    """Four seconds: as many checks as fit into that, beside the one that runs, and no call for others."""
    assert MOST_WAIT == 4.0
    desk.end(desk.ask("user"), True, takes)
    jobs = fill(desk, "user")
    assert [job.is_begun for job in jobs] == [True] + [False] * most
    assert desk.ask("other").is_begun


def test_a_guesser_s_bound_counts_the_rests(desk: Desk) -> None:
    """One check in 9 × 0.25 s: only one in 4 s, where one that does not rest has room for 16."""
    guess, behind = desk.ask("guesser"), [desk.ask("guesser") for _ in range(3)]
    desk.end(guess, False, takes=0.25)
    assert [isinstance(job.error, LimitError) for job in behind] == [False, True, True]


def test_those_for_whom_it_has_become_too_late_are_told(desk: Desk) -> None:
    """A first check says how long each takes: here 1 s, so the next one begins and three more can wait."""
    first, *others = fill(desk, "user")
    desk.end(first, True, takes=1.0)
    assert [job.is_begun for job in others[:4]] == [True, False, False, False]
    assert [job.outcome.ready() for job in others[:4]] == [False] * 4
    assert len(others) > 4
    for late in others[4:]:
        assert isinstance(late.error, LimitError)


def test_a_check_that_somebody_else_waits_for_too_is_made(desk: Desk) -> None:
    first = desk.ask("user")
    others = [desk.ask("user", key=number) for number in range(6)]
    desk.ask("other")  # the second thread
    assert desk.ask("another", key=5) is others[5]
    desk.end(first, True, takes=1.0)
    assert isinstance(others[4].error, LimitError)
    assert others[5].error is None
    assert not others[5].outcome.ready()


def test_who_waits_for_a_check_that_is_asked_for_already_adds_nothing(desk: Desk) -> None:
    desk.end(desk.ask("user"), True, takes=1.0)
    begun = desk.ask("user", key="begun")
    jobs = [desk.ask("user", key=number) for number in (0, 1, 2, 2, 2, 3)]
    with pytest.raises(LimitError, match="too many checks are waiting for user"):
        desk.ask("user", key="new")
    assert desk.ask("user", key="begun") is begun
    assert desk.ask("user", key=3) is jobs[5]


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("takes", [4.1, 60.0, 1e6])
def test_however_long_the_last_check_took_the_next_one_is_made(
    desk: Desk, takes: float, answer: bool
) -> None:
    """As after the process was stopped for a while: else nobody could ever log in again."""
    desk.end(desk.ask("user"), answer, takes)
    following = desk.ask("other")
    assert following.is_begun
    desk.end(following, True, takes=0.125)
    assert len(fill(desk, "third")) == 1 + 32


def test_a_check_for_which_there_was_no_thread_does_not_say_how_long_one_takes(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.end(desk.ask("user"), True, takes=1.0)

    def none_left(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(desk.checkers, "_pool", SimpleNamespace(spawn=none_left))
        with pytest.raises(LimitError, match="no thread can be started: raise the limit"):
            desk.ask("user").get()
    assert len(fill(desk, "user")) == 1 + 4


# What is left behind


def test_nothing_is_kept_of_those_who_are_gone(desk: Desk) -> None:
    """Any number of strangers may come: one after the other they must not fill the memory."""
    for number in range(50):
        desk.end(desk.ask(f"right {number}"), True, takes=0.1)
        desk.end(desk.ask(f"wrong {number}", key=number), False, takes=0.001)
    desk.waiting.close()
    while desk.checkers._resting:
        desk.checkers.run(lambda: True)
    for kept in ("_queues", "_shared", "_held", "_began", "_paces"):
        assert not getattr(desk.checkers, kept), kept
