"""
Bandwidth that many share: who moves bytes asks first, pays afterwards, and waits its turn meanwhile.

What may never be violated:

- Nobody is let through while the bucket is in debt, and only one at a time: so the debt is never more than
  one operation's.
- Of those who wait, the one that has had the fewest bytes is next, however many an operation of it moves. So
  all who want more than there is get the same. Who has wanted nothing for a while has saved nothing by that.
- Who needs several throttles asks one after the other, and need not come back to those that have let it
  through. So nobody waits for ever. Meanwhile they let others through, who may not need what it waits for;
  what all of these owe together is no more than a bucket holds.
- Who does not wait is not held up: a throttle has a timer of its own, and delays nobody elsewhere.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from time import monotonic
from typing import Any

import gevent

from proxy.policy.limits import Bucket, Meter

# Seconds' worth of bytes that a bucket holds, and that one operation moves at most while nobody waits. More
# would be less even over short times; less would be more operations, and time lost when the loop is late.
CHUNK_TIME = 0.05
# Where many wait, each gets less at a time, so that all have their turn soon; but not less than this, or a
# splice's worth, as each operation costs the same.
_LEAST_TIME = 1 / 64
_LEAST = 32 * 1024  # bytes


def start_timer(seconds: float, act: Callable[[], None]) -> Any:
    """Have a function called once, by the event loop; ``close`` what this returns."""
    timer = gevent.get_hub().loop.timer(seconds)
    timer.start(act, update=True)
    return timer


class Throttle:
    """So many bytes a second, for all who share it."""

    __slots__ = (
        "_admitted", "_bucket", "_came", "_clock", "_had", "_meter", "_passed", "_start_timer", "_timer",
        "_waiting",
    )  # fmt: skip

    def __init__(
        self,
        rate: int,
        clock: Callable[[], float] = monotonic,
        start_timer: Callable[[float, Callable[[], None]], Any] = start_timer,
    ) -> None:
        self._clock = clock
        self._start_timer = start_timer
        self._bucket = Bucket(rate, rate * CHUNK_TIME, clock())
        self._meter = Meter(clock())
        self._admitted: Place | None = None  # who was let through, and has not paid yet
        self._passed = 0  # those who were let through, and wait for another throttle
        self._waiting: list[tuple[float, int, Place]] = []  # a heap
        self._came = 0  # how many have waited, which decides between equals
        self._had = 0.0  # bytes that each has had who always wants more, more or less
        self._timer: Any = None

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self._bucket.rate

    @rate.setter
    def rate(self, rate: int) -> None:
        self._bucket.become(rate, rate * CHUNK_TIME, self._clock())
        if self._timer:
            self._timer.close()
            self._timer = None
            self._let_next()

    @property
    def used(self) -> float:
        """How many bytes a second have come through, of late."""
        return self._meter.rate(self._clock())

    @property
    def waiting(self) -> int:
        """How many wait to be let through."""
        return len(self._waiting)

    @property
    def share(self) -> int:
        """How many bytes one operation may move now, at least 1."""
        rate = self._bucket.rate
        share = rate * CHUNK_TIME / (len(self._waiting) + self._passed + 1)
        return max(1, int(max(share, min(_LEAST, rate * _LEAST_TIME))))

    @property
    def is_idle(self) -> bool:
        """True if nothing is owed to it, so that a new one would be no different."""
        return self._bucket.is_full(self._clock())

    def ask(self, place: "Place") -> bool:
        """Let somebody through, now or later; tell whether that is now."""
        if self._admitted is place or place.has_passed:
            return True
        if self._admitted is None and not self._waiting and not self._bucket.wait(0, self._clock()):
            self._admit(place)
            return True
        if not place.waits:
            place.waits = True
            self._came += 1
            heappush(self._waiting, (max(place.had, self._had), self._came, place))
        self._let_next()
        return False

    def _admit(self, place: "Place") -> None:
        self._admitted = place
        self._had = place.had = max(place.had, self._had)

    def pass_on(self, place: "Place") -> None:
        """Let others through while one that was let through waits for another throttle."""
        if self._admitted is place:
            self._admitted = None
            place.has_passed = True
            self._passed += 1
            self._let_next()

    def pay(self, place: "Place", count: int) -> None:
        """Take what somebody has moved out of the bucket, and let the next one through when that is paid."""
        now = self._clock()
        self._bucket.take(count, now)
        self._meter.add(count, now)
        place.had += count
        # By half of what is everybody's due: so those who always want more stay ahead of this, and those who
        # are new, of whom there may always be more, are not before them for ever.
        self._had += count / (2 * (len(self._waiting) + 1))
        self._come_back(place)
        if self._admitted is place:
            self._admitted = None
        self._let_next()

    def forget(self, place: "Place") -> None:
        """Let somebody through no more."""
        if place.waits:
            place.waits = False
            self._waiting = [each for each in self._waiting if each[2] is not place]
            heapify(self._waiting)
        self._come_back(place)
        if self._admitted is place:
            self._admitted = None
            # Not the next one at once: this may be in the middle of an operation that is not paid yet.
            self._wait(0.0)

    def _come_back(self, place: "Place") -> None:
        self._passed -= place.has_passed
        place.has_passed = False

    def _let_next(self) -> None:
        if self._waiting and self._admitted is None and self._timer is None:
            if wait := self._bucket.wait(0, self._clock()):
                self._wait(wait)
            else:
                _, _, place = heappop(self._waiting)
                place.waits = False
                self._admit(place)
                place.come_through()

    def _wait(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._start_timer(seconds, self._run)

    def _run(self) -> None:
        self._timer.close()
        self._timer = None
        self._let_next()


class Place:
    """One of those who share a throttle; ``come_through`` is called when it was not let through at once."""

    __slots__ = ("come_through", "had", "has_passed", "throttle", "waits")

    def __init__(self, throttle: Throttle, come_through: Callable[[], object]) -> None:
        self.throttle = throttle
        self.come_through = come_through
        self.had = 0.0  # bytes
        self.has_passed = False  # and waits for another throttle
        self.waits = False
