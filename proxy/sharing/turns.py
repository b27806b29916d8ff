"""
How long bulk work may take in one turn of the event loop, and what is left for later turns.

While an operation runs nobody else is served. One that splices a megabyte takes 0.1 ms; 64 KiB may be one
frame or ten thousand, which take 25 ms to decode; and there may be a thousand of each at once. So whoever
has much to do takes turns with the others: all of them together have a slice of each turn, and what is
beyond it waits here.

What may never be violated:

- Between two turns the loop looks at its sockets. So a small message is behind one slice and one operation,
  and never behind all that waits.
- Those who wait are served in the order in which they came, one operation each, and before those who come
  by an event. So nobody waits for ever.
- Somebody is served in every turn, whatever the others have used.
- What is small costs no look at the clock. What is not is counted before its time is known, by how many
  frames or bytes it was, so that many first operations in one turn are bounded too.

Fewer and bigger operations cost less, and those who move much among themselves feel nothing of it. But a
new connection, and one of small messages, wait for a turn at each step. So as long as there are any, all
that is bulk has less of each turn, and in smaller pieces.
"""

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

import gevent


class Share(NamedTuple):
    """What those who move much have of each turn."""

    slice: float  # seconds, for all of them together
    most: int  # bytes that one operation may move


# With the second, beside 4 + 4 bulk streams, a small connection's p99 is 0.66 times and a new one's 0.57
# times what they were with 0.2 ms and 1 MiB, and the throughput 0.72 times. The size matters more than the
# slice.
ALONE = Share(0.0002, 1024 * 1024)
BESIDE_SMALL = Share(0.0001, 640 * 1024)
_MEMORY = 50  # turns, each shorter than a millisecond, after which there is nobody small any more

FRAMES_AT_A_TIME = 64  # of 1 KiB they are a whole read
FEW_FRAMES = 4  # that any operation may decode, as a small message would have to wait otherwise
_FRAME = 4e-6  # seconds, about, to decode one
_BYTE = 1e-9  # seconds, about, to copy one


class Turns:
    """Those who wait for a turn, and what is left of the present one's slice."""

    def __init__(self) -> None:
        self.share = ALONE
        self.is_full = False  # the slice is used up, so that operations should be small
        self.small_came = False  # set by whoever has just come, or moves little
        self._since_small = _MEMORY  # turns
        self._spent = 0.0  # seconds of the slice
        self._waiting: OrderedDict[Callable[[], None], None] = OrderedDict()
        self._timer: Any = None

    @property
    def others_wait(self) -> bool:
        """True if somebody waits for a turn."""
        return bool(self._waiting)

    @property
    def has_room(self) -> bool:
        """True if what takes long may be done at once: there is time left, and nobody waits."""
        return not self.is_full and not self._waiting

    @property
    def frames(self) -> int:
        """How many frames an operation may decode now."""
        return FEW_FRAMES if self.is_full else FRAMES_AT_A_TIME

    def spend(self, frames: int) -> None:
        """Note how many frames an operation has decoded."""
        if frames > FEW_FRAMES:
            self._spend(frames * _FRAME)

    def spend_bytes(self, count: int) -> None:
        """Note how many bytes an operation has copied, where they were many."""
        self._spend(count * _BYTE)

    def do(self, operation: Callable[[], object]) -> None:
        """Do an operation at once, and take the time that it needs off the slice."""
        before = self._spent
        began = monotonic()
        operation()
        beyond = before + monotonic() - began - self._spent  # beyond what it has noted itself
        if beyond > 0:
            self._spend(beyond)

    def _spend(self, seconds: float) -> None:
        if not self._spent and not self._timer:  # which else comes at the end of this turn
            gevent.get_hub().loop.run_callback(self._renew)
        self._spent += seconds
        self.is_full = self._spent >= self.share.slice

    def _renew(self) -> None:
        self._spent = 0.0
        self.is_full = False
        self._since_small = 0 if self.small_came else self._since_small + 1
        self.small_came = False
        self.share = BESIDE_SMALL if self._since_small < _MEMORY else ALONE

    def later(self, operation: Callable[[], None]) -> None:
        """Do an operation in a later turn, after those of the others who wait."""
        self._waiting[operation] = None
        if self._timer is None:
            # Not a callback: the loop may run many of those before it looks at its sockets again. Of what has
            # happened in a turn, this comes last.
            self._timer = gevent.get_hub().loop.timer(0.0, 1e-9, priority=-1)
            self._timer.start(self._run)

    def forget(self, operation: Callable[[], None]) -> None:
        """Do it in no turn."""
        self._waiting.pop(operation, None)

    def _run(self) -> None:
        self._renew()
        # No more than there are now: those who come again meanwhile are for the next turn.
        for _ in range(len(self._waiting)):
            self.do(self._waiting.popitem(last=False)[0])
            if self.is_full or not self._waiting:
                break
        self._renew()
        if not self._waiting:
            self._timer.close()
            self._timer = None


TURNS = Turns()
