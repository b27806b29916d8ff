"""
Two streams joined: bytes move both ways at once, until both directions have ended.

A relay runs in callbacks of the event loop, and no greenlet has to wait for its end. Each time a socket is
ready, a direction (``direction.py``) does one bounded operation, and those who move much take turns
(``turns``): so a small connection is behind a slice of a turn, and never behind all the big ones. A greenlet
for each direction would be simpler to read, but an idle connection took 30 KiB that way, and 10 with one
greenlet that waits for the end; it takes 3 like this.

What may never be violated:

- A cut never looks like an end. Only an end that the source itself gave is passed on as one, or the
  silence of a source that can give no other.
- What a peer said before it broke off is delivered, and only then is the other one cut off too. A server that
  has heard enough answers and closes, and its reset, which comes right behind the answer, is mostly noticed
  first by whoever is still sending to it.
- Once a relay is over nothing moves, and the first reason that was given for its end stands.
- An idle connection costs no timer: a sweep looks at every relay twice a second.

How it ends:

    both directions ended     FINISHED.
    a source fails            CUT.
    we fail ourselves         FAILED: no memory, or a bug.
    a sink fails              The other direction delivers what that peer said before it broke, and ends the
                              relay. If one of the two had ended already: CUT.
    silence                   When the other direction has ended, but the source cannot know that: give it up
                              after ``LINGER`` without a byte, or ``LINGER_AT_MOST`` in all (``Relay.tick``).
                              While nobody moves anything for ``idle_timeout``: IDLE.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

import gevent
from gevent.hub import Waiter

from proxy.net.sock import GeventSocket
from proxy.relaying.direction import ENDED, Direction
from proxy.relaying.stream import Ending, Stream, as_stream
from proxy.sharing import pipes
from proxy.sharing.throttle import Throttle

T = TypeVar("T")

LINGER = 1.0  # seconds without a byte, once one direction goes on alone with a peer that cannot know
LINGER_AT_MOST = 10.0  # seconds
_SWEEP = 0.5  # seconds
_LATE = 0.25  # seconds


@dataclass(frozen=True)
class Transfer:
    """What a relay moved, in bytes, and how it ended."""

    sent: int  # from the client to the target
    received: int  # from the target to the client
    ending: Ending
    detail: str = ""


class DataForwarder:
    """Relays between pairs of streams, and the sweep that watches over them."""

    def __init__(self, idle_timeout: float = 0.0, *, zero_copy: bool = True) -> None:
        self.idle_timeout = idle_timeout
        self._zero_copy = zero_copy and pipes.AVAILABLE
        self._live: set[Relay] = set()
        self._sweeper: gevent.Greenlet[..., None] | None = None
        self._missed = 0.0  # seconds in which this process did not run

    def forward_data(self, client: Stream | GeventSocket, target: Stream | GeventSocket) -> Transfer:
        """Relay until both directions have ended, and close both ends."""
        return self.run(self.relay(as_stream(client), as_stream(target)))

    def relay(self, client: Stream, target: Stream) -> "Relay":
        """Make a relay, for ``run``."""
        return Relay(client, target, self.idle_timeout, zero_copy=self._zero_copy, clock=self._clock)

    def run(self, relay: "Relay") -> Transfer:
        """Run a relay to its end."""
        try:
            self.start(relay)
            relay.wait()
        finally:
            transfer = self.finish(relay)
        return transfer

    def start(self, relay: "Relay") -> None:
        """Have a relay begin, and return; ``finish`` it when it is over, or to have it over."""
        self._live.add(relay)
        if not self._sweeper:
            self._sweeper = gevent.spawn(self._sweep)
        relay.start()

    def finish(self, relay: "Relay") -> Transfer:
        """Close both ends of a relay, which may block for a moment, and tell what it has moved."""
        try:
            return relay.finish()
        finally:
            self._live.discard(relay)

    def _sweep(self) -> None:
        period = min(_SWEEP, self.idle_timeout / 4 or _SWEEP)
        while self._live:
            asleep = monotonic()
            gevent.sleep(period)
            late = monotonic() - asleep - period
            if late > max(period, _LATE):
                # We were stopped, or kept from running. A peer's bytes may have waited in its socket all that
                # time, and they are read only after this: so nobody is judged now, and time has stood still.
                self._missed += late
                continue
            now = self._clock()
            for relay in list(self._live):
                relay.tick(now)
        self._sweeper = None

    def _clock(self) -> float:
        return monotonic() - self._missed


class Relay:
    """Two streams joined. The first is the client's; both belong to the relay."""

    __slots__ = (
        "_clock", "_detail", "_down", "_ending", "_idle_timeout", "_lingering_since", "_moved_at",
        "_moved_before", "_on_over", "_streams", "_up", "broken", "had_ended", "is_over",
    )  # fmt: skip

    def __init__(
        self,
        client: Stream,
        target: Stream,
        idle_timeout: float,
        *,
        zero_copy: bool,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._streams = (client, target)
        self._up = Direction(self, client, target, "client", "target", zero_copy=zero_copy)
        self._down = Direction(self, target, client, "target", "client", zero_copy=zero_copy)
        self._up.opposite, self._down.opposite = self._down, self._up
        self._idle_timeout = idle_timeout
        self._on_over: tuple[Callable[[Any], object], object] | None = None
        self.is_over = False
        self._ending = Ending.FINISHED
        self._detail = ""
        self.broken = ""  # why one side takes nothing more; what it said before may still be on its way
        self.had_ended = False  # that side had also come to its end before it broke
        self._clock = clock
        self._moved_before = 0
        self._moved_at = clock()
        self._lingering_since: float | None = None

    @property
    def sent(self) -> int:
        """Bytes moved from the client to the target so far."""
        return self._up.moved

    @property
    def received(self) -> int:
        """Bytes moved from the target to the client so far."""
        return self._down.moved

    def start(self) -> None:
        """Begin to move bytes."""
        self._up.start()
        self._down.start()

    def limit(self, sent: tuple[Throttle, ...], received: tuple[Throttle, ...]) -> None:
        """Have each direction share what these throttles let through, from now on; nothing else limits it."""
        self._up.limit(sent)
        self._down.limit(received)

    def when_over(self, act: Callable[[T], object], what: T) -> None:
        """Have a function called with something, in the event loop, as soon as it is over."""
        self._on_over = act, what

    def wait(self) -> None:
        """Block until it is over."""
        waiter: Any = Waiter()
        self.when_over(waiter.switch, None)
        waiter.get()

    def finish(self) -> Transfer:
        """Close both ends, and tell what became of it; one that is not over is stopped."""
        self.stop(Ending.STOPPED)
        self._on_over = None
        try:
            self._part()
        finally:
            # They refer to one another in a circle. Cut, it is freed at once, and not by the collector.
            self._up.let_go()
            self._down.let_go()
        return Transfer(self.sent, self.received, self._ending, self._detail)

    def _part(self) -> None:
        """
        Tell both how it ended, and close both, whatever happens to one of them.

        Both are told before either is closed: to close waits for a peer, and the other one need not.
        """
        client, target = self._streams
        try:
            if self._ending in (Ending.CUT, Ending.FAILED):
                self._deliver()
        finally:
            try:
                client.begin_close(self._ending)
            finally:
                try:
                    target.begin_close(self._ending)
                finally:
                    try:
                        client.finish_close()
                    finally:
                        target.finish_close()

    def _deliver(self) -> None:
        """
        Wait until the peers have what was sent to them, as long as they go on taking it.

        The reset that comes next would overtake it, and throw away what our own side still holds.
        """
        left, pause = self._undelivered, 0.001
        began = taken = monotonic()
        while left and monotonic() - taken < LINGER and monotonic() - began < LINGER_AT_MOST:
            gevent.sleep(pause)
            pause = min(2 * pause, 0.05)
            before, left = left, self._undelivered
            if left < before:
                taken = monotonic()

    @property
    def _undelivered(self) -> int:
        client, target = self._streams
        return client.undelivered + target.undelivered

    def stop(self, ending: Ending, detail: str = "") -> None:
        """End the relay; the first reason wins."""
        if not self.is_over:
            self.is_over = True
            self._ending, self._detail = ending, detail
            self._up.pause()
            self._down.pause()
            # Not at once: we may be called by a stream, which would be closed in the middle of its work.
            self._have_it_told()

    def _have_it_told(self) -> None:
        gevent.get_hub().loop.run_callback(self._tell)

    def _tell(self) -> None:
        if self._on_over:
            act, what = self._on_over
            act(what)
            self._on_over = None

    def ended(self) -> None:
        """Note that one direction has come to its end."""
        if self._up.stage is ENDED and self._down.stage is ENDED:
            self.stop(Ending.FINISHED)
        else:
            self._linger(self._clock())

    def break_off(self, why: str, *, had_ended: bool) -> None:
        """Note that one side takes nothing more; the other direction may still deliver what it said."""
        if self.broken or self._up.stage is ENDED or self._down.stage is ENDED:
            self.stop(Ending.CUT, self.broken or why)
        else:
            self.broken, self.had_ended = why, had_ended
            self._linger(self._clock())

    def tick(self, now: float) -> None:
        """Do what is due: end it when it is idle, has lingered enough, or when a peer is dead."""
        if self.is_over:
            # The streams are being closed. A Ping behind a Close, for instance, would break the protocol.
            if self._on_over:  # there was no memory to tell of it
                self._have_it_told()
            return
        moved = self.sent + self.received
        if moved != self._moved_before or self._up.is_throttled or self._down.is_throttled:
            self._moved_before, self._moved_at = moved, now
        quiet = now - self._moved_at
        lingered = self._linger(now)
        held = self._up.held or self._down.held
        # A sink that was blocked already before the break has had its time. In a chain of proxies, each of
        # them would otherwise add its own.
        patience = quiet if held else min(quiet, lingered)
        if self.broken and (patience >= LINGER or lingered >= LINGER_AT_MOST):
            self.stop(Ending.CUT, self.broken)
        elif min(quiet, lingered) >= LINGER and not held:
            # Such a peer can give no other end than silence.
            self.stop(Ending.FINISHED)
        elif lingered >= LINGER_AT_MOST:
            # It has not ended. What it still has to say is lost, so this must not look like an end.
            self.stop(Ending.CUT, self._who_was_late)
        elif self._idle_timeout and quiet >= self._idle_timeout:
            self.stop(Ending.IDLE)
        self._up.tick(now)
        self._down.tick(now)

    @property
    def _who_was_late(self) -> str:
        for direction, sink in ((self._down, "client"), (self._up, "target")):
            if direction.held:
                return f"{sink}: the rest was not taken in time"
        return f"{'client' if self._down.stage is ENDED else 'target'}: the rest did not end in time"

    def _linger(self, now: float) -> float:
        """
        Tell for how long one direction has gone on alone with a peer that cannot know it.

        A peer cannot know it that can be told of an end only by closing, or has closed itself, or is broken.
        """
        alone = self._up.stage is ENDED or self._down.stage is ENDED
        if not self.broken and (not alone or all(stream.half_closes for stream in self._streams)):
            return 0.0
        if self._lingering_since is None:
            self._lingering_since = now
        return now - self._lingering_since
