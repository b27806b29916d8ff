"""
One time budget over many blocking steps.

A timeout per read lets a peer that sends a byte now and then hold a connection for ever, so nothing
here has one: a ``Deadline`` is made once and handed along, and cuts whatever blocks when it is over.
"""

from time import monotonic
from typing import Any

import gevent


class Deadline:
    """
    A point in time, ``seconds`` from now.

    ``asker`` is on whose behalf time is spent until then: native threads are shared out by it.
    """

    __slots__ = ("_ends", "asker")

    def __init__(self, seconds: float, asker: str = "") -> None:
        self._ends = monotonic() + seconds
        self.asker = asker

    def remaining(self) -> float:
        """Tell how many seconds are left, 0.0 if none."""
        return max(0.0, self._ends - monotonic())

    def within(self, seconds: float) -> "Deadline":
        """Make a deadline for one step: no later than this one."""
        return Deadline(min(seconds, self.remaining()), self.asker)

    def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the deadline."""
        gevent.sleep(min(seconds, self.remaining()))

    def limit(self, step: str) -> "_Limit":
        """Run a block until the deadline, and then raise ``TimeoutError`` in it, naming the step."""
        return _Limit(self.remaining(), step)


class _Limit:
    """A running deadline around a block."""

    __slots__ = ("_expired", "_remaining", "_step", "_timer")

    def __init__(self, remaining: float, step: str) -> None:
        self._remaining = remaining
        self._step = step

    def __enter__(self) -> None:
        if not self._remaining:
            raise TimeoutError(f"{self._step} timed out")
        self._expired = _Expired()
        self._timer: Any = gevent.get_hub().loop.timer(self._remaining)
        # update: the time of the last turn of the loop may be long ago.
        self._timer.start(gevent.getcurrent().throw, self._expired, update=True)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._timer.close()
        if error is self._expired:
            raise TimeoutError(f"{self._step} timed out") from None


class _Expired(BaseException):
    """Not an Exception, so that no library in between takes it for an error of its own."""


def wait(watcher: Any) -> None:
    """Block until an event of the loop, such as a socket that can be read."""
    gevent.get_hub().wait(watcher)
