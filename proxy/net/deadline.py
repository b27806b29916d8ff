"""
One time budget over many blocking steps.

A timeout per read lets a peer that sends a byte now and then hold a connection for ever, so nothing
here has one: a ``Deadline`` is made once and handed along, and cuts whatever blocks when it is over.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import gevent


class Deadline:
    """A point in time, ``seconds`` from now."""

    __slots__ = ("_ends",)

    def __init__(self, seconds: float) -> None:
        self._ends = monotonic() + seconds

    def remaining(self) -> float:
        """Tell how many seconds are left, 0.0 if none."""
        return max(0.0, self._ends - monotonic())

    def within(self, seconds: float) -> "Deadline":
        """Make a deadline for one step: no later than this one."""
        return Deadline(min(seconds, self.remaining()))

    def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the deadline."""
        gevent.sleep(min(seconds, self.remaining()))

    @contextmanager
    def limit(self, step: str) -> Iterator[None]:
        """Run the block until the deadline, and then raise ``TimeoutError`` in it, naming the step."""
        remaining = self.remaining()
        if not remaining:
            raise TimeoutError(f"{step} timed out")
        # gevent.Timeout is no Exception, so no library in between takes it for an error of its own.
        timer = gevent.Timeout(remaining)
        timer.start()
        try:
            yield
        except gevent.Timeout as expired:
            if expired is not timer:
                raise
            raise TimeoutError(f"{step} timed out") from None
        finally:
            timer.close()


def wait(watcher: Any) -> None:
    """Block until an event of the loop, such as a socket that can be read."""
    gevent.get_hub().wait(watcher)
