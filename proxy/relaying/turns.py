"""
What is left for a later turn of the event loop, and how much of it a turn takes.

An operation has a bound in bytes, but 64 KiB may be one frame or ten thousand, which take 25 ms to
decode, and they may come from each of a thousand connections at once. While the loop decodes them nobody
else is served. So frames have a bound of their own, for one operation and for one turn, whoever they come
from, and what is beyond it waits here.

What may never be violated:

- Between two turns the loop looks at its sockets. So a small message is behind one turn, and never behind
  all that waits.
- Those who wait are served in the order in which they came, one operation each. So nobody waits for ever.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent

FRAMES_AT_A_TIME = 64  # of 1 KiB they are a whole read; to decode one takes 2 to 7 µs
FRAMES_A_TURN = 256
FEW_FRAMES = 4  # that any operation may decode, as a small message would have to wait otherwise
_SLICE = 0.001  # seconds of a turn that those who wait have together


class Turns:
    """Those who have more to do, and the frames that are left of this turn."""

    def __init__(self) -> None:
        self.is_full = False  # enough was decoded in this turn, so that operations should be small
        self._frames = 0  # how many were decoded in this turn
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer: Any = None

    @property
    def frames(self) -> int:
        """How many frames an operation may decode now."""
        return FEW_FRAMES if self.is_full else FRAMES_AT_A_TIME

    def spend(self, frames: int) -> None:
        """Note how many frames an operation has decoded."""
        if frames > FEW_FRAMES:
            if not self._frames:
                gevent.get_hub().loop.run_callback(self._renew)
            self._frames += frames
            self.is_full = self._frames >= FRAMES_A_TURN

    def _renew(self) -> None:
        self._frames = 0
        self.is_full = False

    def later(self, operation: Callable[[], None]) -> None:
        """Do an operation in a later turn, after those of the others who wait."""
        self._waiting.append(operation)
        if self._timer is None:
            # Not a callback: the loop may run many of those before it looks at its sockets again.
            self._timer = gevent.get_hub().loop.timer(0.0, 1e-9)
            self._timer.start(self._run)

    def _run(self) -> None:
        until = monotonic() + _SLICE
        # No more than there are now: those who come again meanwhile are for the next turn.
        for _ in range(len(self._waiting)):
            self._waiting.popleft()()
            if self.is_full or monotonic() >= until:
                break
        if not self._waiting:
            self._timer.close()
            self._timer = None


TURNS = Turns()
