"""
Connections to an upstream that are made ready before a client needs them.

How many there are depends on what was taken lately: as many as were taken before another one could have been
made, and half as many each time one grows old that nobody took. An upstream that nobody has used for a while
has none, and neither has one that fails. One that is near gets new ones only now and then.

What may never be violated:

- Nothing was sent on a spare but what comes before a request, and nothing is taken for one on which its
  upstream has said more than that.
- A spare that has gone costs its client a dial, and nobody is blamed for it: many a server ends a connection
  on which nothing is asked for. So those that die young are not kept as long.
- There is one who makes them (``begin``), or nobody; whoever still connects under the configuration before
  may take one.
- Their age is told by a clock that goes on while the machine sleeps, as the other end's does.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from proxy.net.deadline import Deadline
from proxy.net.threads import Task
from proxy.relaying.channel import Channel

IN_USE = 30.0  # seconds since one was taken, after which none is kept ready
LONGEST = 8.0  # seconds that one is kept: a far end of our kind would end it after 10
SHORTEST = 1.0  # seconds; where none can be kept for that, there are none
MEMORY = 60.0  # seconds for which it is remembered that they do not last
LOOK = 0.5  # seconds between two looks at them
SLOW = 1.0  # seconds that one takes to make as long as it is not known
NEAR = 0.01  # seconds in which an upstream is reached that is so near that spares hardly matter

OUTCOMES = ("taken", "expired", "died")


def _clock() -> float:
    """Tell the time in seconds, with those in which the machine slept, where the system counts them."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Maker(Protocol):
    """Who makes them: the upstream itself."""

    def make_spare(self) -> Channel | None:
        """Make one, if that is possible."""

    def is_silent(self) -> bool:
        """Ask for a sign of life, and tell if there is none."""


class Spares:
    """The connections of one upstream that are ready."""

    def __init__(
        self, most: int, clock: Callable[[], float] = _clock, counts: Counter[str] | None = None
    ) -> None:
        self.counts = Counter[str]() if counts is None else counts  # what became of them
        self._most = most
        self.clock = clock
        self._ready: deque[tuple[float, Channel]] = deque()  # each with when it was begun; the oldest first
        self._making = 0
        self._wanted = 0
        self._takes: deque[float] = deque(maxlen=most)
        self._peak = 0  # as many were taken at once since the last time that some were made
        self._taken_at = -math.inf
        self._effort = SLOW
        self._lasts = LONGEST  # for how long one is kept
        self._shortened_at = -math.inf
        self._maker: Maker | None = None
        self._is_tended = False
        self._asked: dict[Channel, float] = {}  # those on which a request was made, and when

    def __len__(self) -> int:
        return len(self._ready)

    def begin(self, maker: Maker) -> None:
        """Have them made by this one from now on."""
        self._maker = maker

    def end(self) -> None:
        """Make no more, and close those that are there."""
        self._maker = None
        self.drop()

    def drop(self) -> None:
        """Close those that are there, and make no more until somebody has reached the upstream again."""
        self._wanted = self._peak = 0
        while self._ready:
            self._ready.popleft()[1].leave()

    def take(self, effort: float | None = None) -> Channel | None:
        """Give one that is ready, if any; ``effort`` is how many seconds it takes to make another."""
        now = self.clock()
        self._effort = SLOW if effort is None else effort
        self._note(now)
        while self._ready:
            begun, channel = self._ready.popleft()
            if now - begun > self._lasts:
                self._close(channel, "expired")
            elif not channel.is_quiet():
                self._bury(channel, now - begun, now)
            else:
                self.counts["taken"] += 1
                self.fill()
                return channel
        return None

    def _note(self, now: float) -> None:
        while self._takes and now - self._takes[0] > self._effort:
            self._takes.popleft()
        self._takes.append(now)
        self._peak = max(self._peak, len(self._takes))
        self._taken_at = now

    def fill(self) -> None:
        """Have as many made as are wanted, as the upstream has just been reached."""
        self._wanted, self._peak = max(self._wanted, self._peak), 0
        if not self._is_tended and self._wanted and self._maker:
            self._is_tended = True
            Task(self._tend)
        elif self._effort < NEAR:
            return  # to have one made costs more than it saves; the next look is early enough
        self._make_up()

    def _make_up(self) -> None:
        if self._maker is None or self._lasts < SHORTEST:
            return
        for _ in range(self._lacking):
            self._making += 1
            Task(partial(self._make, self._maker))

    @property
    def _lacking(self) -> int:
        return self._wanted - len(self._ready) - self._making

    def _make(self, maker: Maker) -> None:
        begun = self.clock()
        self.arrive(maker.make_spare(), begun)

    def expect(self) -> bool:
        """Tell if one is wanted that somebody makes who does not need it. Then it has to ``arrive``."""
        is_wanted = self._maker is not None and self._lacking > 0
        self._making += is_wanted
        return is_wanted

    def arrive(self, channel: Channel | None, begun: float) -> None:
        """Take one that was expected; None if it could not be made."""
        self._making -= 1
        if channel:
            self.offer(channel, begun)
        else:
            self._wanted = 0

    def offer(self, channel: Channel, begun: float) -> None:
        """Take one that nobody needs, or close it."""
        if self._maker and self._lacking > 0:
            self._ready.append((begun, channel))
        else:
            channel.leave()

    @contextmanager
    def asking(self, channel: Channel) -> Iterator[None]:
        """Watch a spare on which a request is made: its upstream may have vanished since it was reached."""
        self._asked[channel] = self.clock()
        try:
            yield
        finally:
            del self._asked[channel]

    # -- from time to time

    def _tend(self) -> None:
        while self._maker and self.clock() - self._taken_at < IN_USE:
            Deadline(LOOK).pause(LOOK)
            self.look()
        self.drop()
        self._is_tended = False

    def look(self) -> None:
        """See which are still good until the next look, and have others made for those that are not."""
        now = self.clock()
        if now - self._shortened_at > MEMORY:
            self._lasts = LONGEST
        has_expired = False
        for _ in range(len(self._ready)):
            begun, channel = self._ready.popleft()
            if now + LOOK - begun > self._lasts:
                self._close(channel, "expired")
                has_expired = True
            elif not channel.is_quiet():
                self._bury(channel, now - begun, now)
            else:
                self._ready.append((begun, channel))
        if has_expired:
            self._wanted = min(self._wanted, max(1, self._wanted // 2))
        if now - self._taken_at < IN_USE:
            self._make_up()
        unheard = [each for each, since in self._asked.items() if now - since > LOOK and each.is_unheard]
        if unheard and self._maker:
            Task(partial(self._suspect, self._maker, unheard))

    def _suspect(self, maker: Maker, unheard: list[Channel]) -> None:
        if maker.is_silent():
            for channel in unheard:
                if channel in self._asked and channel.is_unheard:
                    channel.hang_up()

    def _bury(self, channel: Channel, age: float, now: float) -> None:
        # Where several have died at once, the oldest tells for how long they last.
        self._lasts = max(age / 2, self._lasts if self._shortened_at == now else 0.0)
        self._shortened_at = now
        self._close(channel, "died")

    def _close(self, channel: Channel, outcome: str) -> None:
        self.counts[outcome] += 1
        channel.leave()
