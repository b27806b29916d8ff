"""
Move bytes between two streams, both ways at once, until both have ended.

A relay runs in callbacks of the event loop, while one greenlet waits for its end: each time a socket
is ready, a direction does one bounded operation, so many connections share the loop fairly and a
small one is never behind a big one. Backpressure needs no queue: a direction whose sink is blocked
stops listening to its source.

A direction copies through one buffer, which all of them share, because no operation waits in the
middle. Where it finds much at once and both ends allow it, it goes over to splicing.

Time is watched from outside: a sweep looks at every relay twice a second, so that moving a byte
costs no timer and no look at the clock.

What a peer said before it broke off is delivered, and then the other one is cut off too. A server that
has heard enough answers and closes, and its reset, which comes right behind the answer, is mostly
noticed first by whoever is still sending to it.
"""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import gevent
from gevent.hub import Waiter

from proxy.errors import ProtocolError, reason_of
from proxy.net import splice
from proxy.net.sock import GeventSocket
from proxy.net.stream import BUFFER_SIZE, Buffer, Ending, Stream, as_stream, ignore
from proxy.net.turns import TURNS

log = logging.getLogger(__name__)

LINGER = 1.0  # seconds without a byte, once one direction goes on alone with a peer that cannot know
LINGER_AT_MOST = 10.0  # seconds
BULK = 32 * 1024  # bytes found at once: more will come, and splicing is cheaper than copying
WORTH_A_SPLICE = 8 * 1024  # bytes
# What both directions of a stalled relay may hold in pipes: one operation moves more only if the sink is sure
# to take it all. When one direction holds nearly all of it, the other copies a little at a time.
MOST_IN_PIPES = 256 * 1024  # bytes
_LITTLE = 16 * 1024  # bytes
_SWEEP = 0.5  # seconds
_LATE = 0.25  # seconds

_buffer = Buffer()
_small_buffer = Buffer(_LITTLE)


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
        self._zero_copy = zero_copy and splice.AVAILABLE
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
        self._live.add(relay)
        if not self._sweeper:
            self._sweeper = gevent.spawn(self._sweep)
        try:
            return relay.run()
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
        *("_clock", "_detail", "_down", "_end", "_ending", "_idle_timeout", "_lingering_since", "_moved_at"),
        *("_moved_before", "_streams", "_up", "broken", "had_ended", "is_over"),
    )

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
        self._up = _Direction(self, client, target, "client", "target", zero_copy=zero_copy)
        self._down = _Direction(self, target, client, "target", "client", zero_copy=zero_copy)
        self._up.opposite, self._down.opposite = self._down, self._up
        self._idle_timeout = idle_timeout
        self._end: Any = Waiter()
        self.is_over = False  # once it was stopped nothing moves any more
        self._ending = Ending.FINISHED
        self._detail = ""
        self.broken = ""  # why one side takes nothing more, though it may have said something before,
        self.had_ended = False  # and even come to its end
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

    def run(self) -> Transfer:
        """Block until it is over."""
        try:
            self._up.start()
            self._down.start()
            self._end.get()
        except BaseException:
            self.stop(Ending.STOPPED)
            raise
        finally:
            try:
                self._part()
            finally:
                # They refer to one another in a circle: cut, it is freed at once, and not by the collector.
                self._up.let_go()
                self._down.let_go()
        return Transfer(self.sent, self.received, self._ending, self._detail)

    def _part(self) -> None:
        """Tell both how it ended, and close both: whatever happens to one, the other gets its due."""
        client, target = self._streams
        try:
            if self._ending is Ending.CUT:
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
        """End the relay; the first one to say why is right."""
        if not self.is_over:
            self.is_over = True
            self._ending, self._detail = ending, detail
            self._up.pause()
            self._down.pause()
            # Not at once: this may be a callback of a stream that run would close under its feet.
            gevent.get_hub().loop.run_callback(self._end.switch, None)

    def ended(self) -> None:
        """Note that one direction has come to its end."""
        if self._up.ended and self._down.ended:
            self.stop(Ending.FINISHED)
        else:
            self._linger(self._clock())

    def break_off(self, why: str, *, had_ended: bool) -> None:
        """Note that one side takes nothing more; the other direction may still deliver what it said."""
        if self.broken or self._up.ended or self._down.ended:
            self.stop(Ending.CUT, self.broken or why)
        else:
            self.broken, self.had_ended = why, had_ended
            self._linger(self._clock())

    def tick(self, now: float) -> None:
        """Do what is due: end it when it is idle, has lingered enough, or when a peer is dead."""
        if self.is_over:  # the ends are being closed, and no more than what they say then may be said
            return
        moved = self.sent + self.received
        if moved != self._moved_before:
            self._moved_before, self._moved_at = moved, now
        quiet = now - self._moved_at
        lingered = self._linger(now)
        held = self._up.held or self._down.held
        # Who took nothing already before the break has had its time: in a chain each hop would add its own.
        patience = quiet if held else min(quiet, lingered)
        if self.broken and (patience >= LINGER or lingered >= LINGER_AT_MOST):
            self.stop(Ending.CUT, self.broken)
        elif min(quiet, lingered) >= LINGER and not held:
            # Silence is all the end that such a peer can give.
            self.stop(Ending.FINISHED)
        elif lingered >= LINGER_AT_MOST:
            # It is not at its end: what it still has to say is lost, and nobody may take that for all.
            late = "the rest was not taken in time" if held else "the rest did not end in time"
            self.stop(Ending.CUT, late)
        elif self._idle_timeout and quiet >= self._idle_timeout:
            self.stop(Ending.IDLE)
        self._up.tick(now)
        self._down.tick(now)

    def _linger(self, now: float) -> float:
        """
        Tell for how long one direction goes on alone with a peer that cannot know it.

        Such a peer cannot be told of an end without closing, or has closed itself, or is broken.
        """
        alone = self._up.ended or self._down.ended
        if not self.broken and (not alone or all(stream.half_closes for stream in self._streams)):
            return 0.0
        if self._lingering_since is None:
            self._lingering_since = now
        return now - self._lingering_since


class _Direction:
    """
    One direction of a relay: a source, a sink, and what to wait for.

    It waits for the source to be readable, or, while the sink is blocked, for the sink to be
    writable; never for both.
    """

    __slots__ = (
        *("_at", "_reader", "_relay", "_sink", "_sink_name", "_source", "_source_name"),
        *("_bulk", "_full", "_over", "_told", "_waits", "_zero_copy"),
        *("ended", "held", "in_pipe", "moved", "opposite"),
    )

    opposite: "_Direction"

    def __init__(
        self, relay: Relay, source: Stream, sink: Stream, source_name: str, sink_name: str, *, zero_copy: bool
    ) -> None:
        self._relay = relay
        self._source = source
        self._sink = sink
        self._source_name = source_name
        self._sink_name = sink_name
        self._at = source_name  # whose error it would be
        self._zero_copy = zero_copy and sink.takes_pipes
        self._bulk = False
        self._full = False  # the last splice found as much as it could take
        self._over = False  # the source has come to its end,
        self._told = False  # the sink was told,
        self.ended = False  # and has passed it on
        self.moved = 0
        self._reader = source.reader
        self._waits = False  # for a later turn, without an event
        self.held = False  # it waits for its sink, which does not take what there is
        self.in_pipe = 0  # bytes that it waits with, or fewer, if they are in a pipe

    # -- waiting

    def start(self) -> None:
        """Begin to wait."""
        self._sink.on_blocked = self._hold
        self._listen()

    def _listen(self) -> None:
        self._reader.start(self._receive)
        if self._source.buffered:
            self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        if not self._waits:
            self._waits = True
            TURNS.later(self._receive_in_turn)

    def pause(self) -> None:
        """Wait for nothing any more."""
        self._stop_listening()
        self._release()

    def _stop_listening(self) -> None:
        self._reader.stop()
        self._waits = False

    def let_go(self) -> None:
        """Forget the others, when all is over."""
        self._sink.on_blocked = ignore
        del self._relay, self.opposite

    def _hold(self) -> None:
        """Wait for the sink, which is blocked, instead of the source."""
        if not self.held and not self._relay.is_over:
            self._stop_listening()
            self.held = True
            self._sink.writer.start(self._resume)

    def _release(self) -> None:
        if self.held:
            self.held = False
            self.in_pipe = 0
            self._sink.writer.stop()

    def tick(self, now: float) -> None:
        """Let the source do what is due."""
        if self._relay.is_over:
            return
        try:
            self._at = self._source_name
            if not self._source.tick(now, listening=self._reader.active):
                self._relay.stop(Ending.CUT, f"{self._source_name}: no sign of life")
        except OSError as exc:
            # Nobody listens to it just now, because the sink takes nothing. What it said before it broke is
            # here or in its socket, and can be delivered; what goes to it cannot.
            self.opposite.lose(exc)
        except Exception as exc:
            self._cut(exc)

    def lose(self, exc: OSError) -> None:
        """Stop, because the sink takes nothing more; the opposite direction ends the relay."""
        self.pause()
        # A reset that comes behind a FIN is EPIPE, and any other one is ECONNRESET (tcp_reset in Linux).
        self._relay.break_off(f"{self._sink_name}: {reason_of(exc)}", had_ended=exc.errno == errno.EPIPE)

    def _cut(self, exc: Exception) -> None:
        """End the relay, or this direction: in a callback no caller would take an exception."""
        if isinstance(exc, OSError) and self._at is self._sink_name:
            self.lose(exc)
        elif isinstance(exc, (OSError, ProtocolError)):
            # A source that fails has nothing left: the kernel gives what came before the failure first.
            self._relay.stop(Ending.CUT, self._relay.broken or f"{self._at}: {reason_of(exc)}")
        else:
            log.debug("relay failed", exc_info=exc)
            self._relay.stop(Ending.CUT, f"internal error: {type(exc).__name__}: {exc}")

    # -- moving

    def _receive(self) -> None:
        """Move once what the source has."""
        if self._waits:  # its turn will come, whatever events there are
            return
        source = self._source
        self._at = self._source_name
        try:
            if self._over:
                if not source.stay():
                    self._reader.stop()
                    return
            else:
                count = self._splice() if self._bulk and source.spliceable() else self._copy()
                if count:
                    self.moved += count
                elif count == 0:
                    self._over = True
                    if not self.held:
                        self._end()
            # Also if there was no payload: the rest of a control frame may be decrypted already.
            if source.buffered and self._reader.active:
                self._wait_for_turn()
        except Exception as exc:
            self._cut(exc)

    def _receive_in_turn(self) -> None:
        if self._waits:
            self._waits = False
            self._receive()

    def _copy(self) -> int | None:
        buffer = _small_buffer if self.opposite.in_pipe > MOST_IN_PIPES - BUFFER_SIZE else _buffer
        count = self._source.recv_into(buffer, bulk=self._bulk)
        if self._bulk:
            # Of a frame only the beginning was taken, to see what it is.
            self._bulk = self._source.spliceable() >= WORTH_A_SPLICE
        if count:
            if count >= BULK:
                self._bulk = self._zero_copy
            self._at = self._sink_name
            self._sink.send(buffer, count)
        return count

    def _splice(self) -> int | None:
        pipe, room = self._take_pipe()
        if pipe is None:
            self._bulk = False
            return self._copy()
        try:
            count = self._source.splice_in(pipe, room)
        except BaseException:
            pipe.give_back()
            raise
        if not count:
            pipe.give_back()
            return count
        self._bulk = count >= min(BULK, room)
        self._full = count >= MOST_IN_PIPES
        self._at = self._sink_name
        self._sink.splice_out(pipe, count)
        self.in_pipe = count if self.held else 0
        return count

    def _take_pipe(self) -> tuple[splice.Pipe | None, int]:
        """Take a pipe, if there is one and it is worth it, and tell how much may go into it."""
        there, room = self._source.spliceable(), MOST_IN_PIPES - self.opposite.in_pipe
        if self._full and there > room:
            sure = self._sink.room
            if sure > room and (pipe := splice.BIG_PIPES.take()):
                return pipe, min(there, sure)
        room = min(there, room)
        return splice.PIPES.take() if room >= WORTH_A_SPLICE else None, room

    def _resume(self) -> None:
        """Go on where the sink was blocked."""
        self._at = self._sink_name
        try:
            self._sink.flush()
            if self._sink.blocked:
                return
            self._release()
            if self._over and not self.ended:
                self._end()
            if not self.held and not self._relay.is_over:
                self._listen()
        except Exception as exc:
            self._cut(exc)

    def _end(self) -> None:
        """Pass the end of the source on."""
        self._at = self._sink_name
        if self._relay.broken:
            # The kernel tells an error once, and that was to the other direction. Here it looks like an end,
            # which it is only if the peer had ended before it broke off.
            if not self._sink.blocked:
                if self._relay.had_ended:
                    self._sink.end()
                self._relay.stop(Ending.CUT, self._relay.broken)
            return
        if not self._told:
            self._told = True
            if not self.opposite.ended:  # else it is closed next, which says this too
                self._sink.end()
        if not self._sink.blocked:
            self.ended = True
            self._relay.ended()
