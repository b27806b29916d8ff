"""
One time budget over many blocking steps.

A timeout per read lets a peer that sends a byte now and then hold a connection for ever, so nothing here
has one: a ``Deadline`` is made once and handed along, and cuts whatever blocks when it is over.

What may never be violated:

- A step has no more time than the whole.
- Nobody is judged for a time in which we could not run, because this process was stopped, or the machine
  was. What a peer sent in time may still wait in its socket, so the deadline moves, and there is time to
  read it. It moves by its own length at most.
- What cuts a block is seen by nobody in between: it is no ``Exception``, and outside it becomes
  ``TimeoutError``.
"""

from contextlib import AbstractContextManager
from time import monotonic
from typing import Any

import gevent

_LATE = 0.25  # seconds: a timer that rings later than this says that we could not run


class Deadline:
    """
    A point in time, ``seconds`` from now.

    ``asker`` is the one on whose behalf time is spent until then: native threads are shared out by it.
    """

    __slots__ = ("_ends", "_seconds", "_whole", "asker")

    def __init__(self, seconds: float, asker: str = "", *, whole: "Deadline | None" = None) -> None:
        self._ends = monotonic() + seconds
        self._seconds = seconds
        self._whole = whole  # of which this is a step
        self.asker = asker

    def remaining(self) -> float:
        """Tell how many seconds are left, 0.0 if none."""
        return max(0.0, self._ends - monotonic())

    def within(self, seconds: float) -> "Deadline":
        """Make a deadline for one step: no later than this one."""
        return Deadline(min(seconds, self.remaining()), self.asker, whole=self)

    def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the deadline."""
        gevent.sleep(min(seconds, self.remaining()))

    def limit(self, step: str) -> AbstractContextManager[None]:
        """Run a block until the deadline, and then raise ``TimeoutError`` in it, naming the step."""
        return _Limit(self, step)

    def excuse_lateness(self) -> None:
        """Move it, if it should have come long ago: by as much as we are late, and its own length at most."""
        now = monotonic()
        late = now - self._ends
        if late > _LATE:
            self._move(now + min(late, self._seconds))

    def _move(self, ends: float) -> None:
        self._ends = max(self._ends, ends)
        if self._whole:  # a step gets no more time than the whole
            self._whole._move(ends)


class _Limit:
    """A running deadline around a block."""

    __slots__ = ("_deadline", "_expired", "_step", "_timer")

    def __init__(self, deadline: Deadline, step: str) -> None:
        self._deadline = deadline
        self._step = step

    def __enter__(self) -> None:
        remaining = self._deadline.remaining()
        if not remaining:
            raise TimeoutError(f"{self._step} timed out")
        self._expired = _Expired()
        self._start(gevent.getcurrent(), remaining)

    def _start(self, greenlet: Any, seconds: float) -> None:
        self._timer: Any = gevent.get_hub().loop.timer(seconds)
        # The loop's time is that of its last turn, which may be long ago. ``update`` looks at the clock.
        self._timer.start(self._ring, greenlet, update=True)

    def _ring(self, greenlet: Any) -> None:
        self._deadline.excuse_lateness()
        remaining = self._deadline.remaining()
        if remaining:
            self._timer.close()
            self._start(greenlet, remaining)
        else:
            greenlet.throw(self._expired)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._timer.close()
        if error is self._expired:
            raise TimeoutError(f"{self._step} timed out") from None


class _Expired(BaseException):
    """Not an Exception, so that no library in between takes it for an error of its own."""


def wait(watcher: Any) -> None:
    """Block until an event of the loop, such as a socket that can be read."""
    gevent.get_hub().wait(watcher)


def next_turn() -> None:
    """Let everybody else have a turn of the event loop, which looks at its sockets before it comes back."""
    gevent.sleep(1e-9)  # not 0: many of those would run before it looks
