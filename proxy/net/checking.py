"""
Native threads for password checks: expensive, and anybody can ask for one.

After a wrong password, its asker waits eight times as long as the check took, but 8 s at most: guessing costs
us a ninth of a processor. What waits is bounded in time, not in number, so that everybody is answered before
a handshake is over: whoever would wait for longer is told at once.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

import gevent

from proxy.errors import LimitError
from proxy.net.threads import Job, NativeThreads

T = TypeVar("T")

MOST_WAIT = 4.0  # seconds
_REST = 8  # times as long as a check that was in vain
_USUAL = 0.1  # seconds that a check takes, as long as none was made
_LONGEST = 1.0  # seconds: what takes longer was held up, as by a stop of the process, and judges nobody


class Checkers(NativeThreads):
    """Threads for functions whose answer is yes or no, shared among those who ask."""

    def __init__(self, size: int, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(size)
        self._clock = clock
        self._takes = _USUAL  # seconds: what the last check took
        self._began: dict[Job[Any], float] = {}
        self._resting: dict[str, Any] = {}  # by who it is: the timer that ends it
        # Seconds from one check to the next, of those who have some waiting.
        self._paces: dict[str, float] = {}

    @contextmanager
    def job(self, function: Callable[[], T], asker: str = "", key: Hashable = None) -> "Iterator[Job[T]]":
        """Begin it, or have it wait its turn; raises ``LimitError`` if that would be too late."""
        if key not in self._shared and len(self._waiting(asker)) >= self._most_waiting(asker):
            raise _too_many(asker)
        try:
            with super().job(function, asker, key) as job:
                yield job
        finally:
            self._forget_if_done(asker)

    def _waiting(self, asker: str) -> "list[Job[Any]]":
        return list(dict.fromkeys(self._queues.get(asker, ())))  # those who share one stand in it for each

    def _most_waiting(self, asker: str) -> int:
        return int(MOST_WAIT / self._paces.get(asker, self._takes))

    def _may_begin(self, asker: str) -> bool:
        return asker not in self._resting and super()._may_begin(asker)

    def _begin(self, job: "Job[Any]", asker: str) -> None:
        self._began[job] = self._clock()
        super()._begin(job, asker)

    def _end(self, job: "Job[Any]", asker: str, outcome: Any) -> None:
        took = self._clock() - self._began.pop(job)
        if isinstance(outcome, bool):  # otherwise there was no thread for it, which takes no time
            self._takes = self._paces[asker] = min(max(0.001, took), _LONGEST)
        if asker and outcome is False:
            self._paces[asker] *= 1 + _REST
            self._resting[asker] = timer = gevent.get_hub().loop.timer(_REST * self._takes)
            timer.start(self._rise, asker)
        for late in self._waiting(asker)[self._most_waiting(asker) :]:
            self._refuse(late, asker)
        self._forget_if_done(asker)
        super()._end(job, asker, outcome)

    def _rise(self, asker: str) -> None:
        self._resting.pop(asker).close()
        self._forget_if_done(asker)
        if asker in self._queues and self._may_begin(asker):
            self._begin(self._queues[asker][0], asker)

    def _forget_if_done(self, asker: str) -> None:
        if asker not in self._resting and asker not in self._queues:
            self._paces.pop(asker, None)

    def _refuse(self, job: "Job[Any]", asker: str) -> None:
        """End one that waits, unless it is somebody else's too."""
        if set(job.askers) == {asker}:
            for each in job.askers:
                self._unqueue(job, each)
            job.is_begun = True  # it stands in no queue any more
            self._shared.pop(job.key, None)
            job.fail(_too_many(asker))


def _too_many(asker: str) -> LimitError:
    return LimitError(f"too many checks are waiting for {asker or 'one client'}")
