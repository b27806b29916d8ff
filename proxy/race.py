"""
Race several upstreams, as Happy Eyeballs races the addresses of a name (RFC 8305).

They are started in the order of preference: the next one when those before it have failed, or when the last
one started has had its head start. The first one reached is taken; if several are, the preferred one.

What may never be violated:

- Only what comes before a request is raced. Whoever takes what was reached makes the request, and asks for
  the next one only when that has failed.
- Nothing that was reached gets lost: it is taken, or it goes back to its upstream, whatever ends the race.
- Our own shortage is told as that (``LimitError``), unless somebody has been reached all the same.
"""

from collections.abc import Iterable
from time import monotonic
from typing import Generic, Protocol, TypeVar

from proxy.errors import LimitError, UpstreamError
from proxy.net.deadline import Deadline
from proxy.net.threads import Task, first_of

T = TypeVar("T")


class Entrant(Protocol[T]):
    """Who can be reached, by a ``T``."""

    @property
    def head_start(self) -> float:
        """For how many seconds it is waited for before the next one is begun."""

    def at_once(self) -> T | None:
        """Give what is ready, if there is something."""

    def reach(self, budget: Deadline, *, last: bool) -> T:
        """Reach it; raises ``UpstreamError``, or ``LimitError``, which blames nobody."""

    def passed_over(self, started: float) -> None:
        """Take note that another one is begun, because it was not reached in time."""

    def left_over(self, reached: T) -> None:
        """Take back what nobody needs any more."""

    def expects(self) -> bool:
        """Tell if it has a use for what is reached too late. Then it is told what came of it."""

    def came_late(self, reached: T | None) -> None:
        """Take what it expected; None if it could not be reached."""


class Race(Generic[T]):
    """One race of several; whoever begins one ends it."""

    def __init__(self, entrants: Iterable[Entrant[T]], budget: Deadline) -> None:
        self._waiting = list(entrants)
        self._running: list[_Runner[T]] = []  # the preferred ones first
        self._budget = budget
        self._head_start = budget.within(0.0)  # of the last that was begun
        self._shortage: LimitError | None = None
        self.errors: list[UpstreamError] = []  # of those that could not be reached

    @property
    def left(self) -> int:
        """How many may yet be reached."""
        return len(self._waiting) + len(self._running)

    def next(self) -> T | None:
        """
        Wait for the next that is reached; None if nobody is left.

        Raises ``LimitError`` if nobody is left because we are short of something ourselves.
        """
        while True:
            for runner in self._running:
                if runner.reached is not None:
                    self._running.remove(runner)
                    return runner.reached
            has_failed = self._drop_the_failed()
            is_late = not self._head_start.remaining()
            if self._waiting and (has_failed or is_late or not self._running):
                self._begin(is_late=is_late)
            elif self._running:
                first_of([each.task for each in self._running if each.task], self._patience())
            elif self._shortage:
                raise self._shortage
            else:
                return None

    def _begin(self, *, is_late: bool) -> None:
        if is_late and self._running:
            self._running[-1].entrant.passed_over(self._running[-1].started)
        entrant = self._waiting.pop(0)
        runner = _Runner(entrant)
        self._running.append(runner)
        runner.reached = entrant.at_once()
        if runner.reached is None:
            is_last = not self._waiting
            if self.left == 1:
                runner.run(self._budget, last=is_last)  # with nobody beside it, it needs no greenlet
            else:
                runner.task = Task(lambda: runner.run(self._budget, last=is_last))
        self._head_start = Deadline(entrant.head_start)

    def _patience(self) -> float | None:
        return self._head_start.remaining() if self._waiting else None

    def _drop_the_failed(self) -> bool:
        failed = [each for each in self._running if each.error]
        for runner in failed:
            self._running.remove(runner)
            if isinstance(runner.error, UpstreamError):
                self.errors.append(runner.error)
            elif isinstance(runner.error, LimitError):
                # The others would be no better off, and need what there is.
                self._shortage = runner.error
                self._waiting.clear()
            elif runner.error:
                raise runner.error
        return bool(failed)

    def end(self) -> None:
        """Call off those that still run."""
        for runner in self._running:
            runner.leave()
        self._running.clear()


class _Runner(Generic[T]):
    """One who takes part."""

    def __init__(self, entrant: Entrant[T]) -> None:
        self.entrant = entrant
        self.started = monotonic()
        self.task: Task[None] | None = None
        self.reached: T | None = None
        self.error: Exception | None = None
        self._is_expected = False

    def run(self, budget: Deadline, *, last: bool) -> None:
        """Reach it."""
        try:
            self.reached = self.entrant.reach(budget, last=last)
        except Exception as exc:
            self.error = exc
        if self._is_expected:
            self.entrant.came_late(self.reached)

    def leave(self) -> None:
        """Give it up: what was reached goes back, and what may still be reached only if it is of use."""
        if self.reached is not None:
            self.entrant.left_over(self.reached)
        elif self.task and not self.error:
            self._is_expected = self.entrant.expects()
            if not self._is_expected:
                self.task.cancel()
