"""
Move bytes between two streams, both ways at once, until both have ended.

This is the portable way: one greenlet a direction, which borrows a pooled buffer only while there
are bytes to move. Backpressure needs no code: a direction that cannot send does not receive.

Time is watched from outside: a sweep looks at every relay twice a second, so that moving a byte
costs no timer and no look at the clock.
"""

import logging
from dataclasses import dataclass
from time import monotonic

import gevent
from gevent.event import Event

from proxy.errors import ProtocolError, reason_of
from proxy.net.stream import Buffer, BufferPool, Ending, Socket, Stream, as_stream

log = logging.getLogger(__name__)

# A direction that moves this much without ever waiting lets others run. Not sleep(0): the loop
# looks at sockets and timers only after 50 of those, which others feel as a lag of 100 ms.
FAIR_SHARE = 256 * 1024  # bytes
_A_TURN = 1e-9  # seconds

LINGER = 1.0  # seconds without a byte, once one direction ended and the peer could not be told
LINGER_AT_MOST = 10.0  # seconds
_SWEEP = 0.5  # seconds


@dataclass(frozen=True)
class Transfer:
    """What a relay moved, in bytes, and how it ended."""

    sent: int  # from the client to the target
    received: int  # from the target to the client
    ending: Ending
    detail: str = ""


class DataForwarder:
    """Relays between pairs of streams, and the sweep that watches over them."""

    def __init__(self, idle_timeout: float = 0.0) -> None:
        self.idle_timeout = idle_timeout
        self._live: set[Relay] = set()
        self._sweeper: gevent.Greenlet[..., None] | None = None
        self._buffers = BufferPool()

    def forward_data(self, client: Stream | Socket, target: Stream | Socket) -> Transfer:
        """Relay until both directions have ended, and close both ends."""
        return self.run(self.relay(as_stream(client), as_stream(target)))

    def relay(self, client: Stream, target: Stream) -> "Relay":
        """Make a relay, for ``run``."""
        return Relay(client, target, self._buffers, self.idle_timeout)

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
            gevent.sleep(period)
            now = monotonic()
            for relay in list(self._live):
                relay.tick(now)
        self._sweeper = None


class Relay:
    """Two streams joined. The first is the client's; both belong to the relay."""

    def __init__(self, client: Stream, target: Stream, buffers: BufferPool, idle_timeout: float) -> None:
        self.buffers = buffers
        self._streams = (client, target)
        self._up = _Direction(self, client, target, "client", "target")
        self._down = _Direction(self, target, client, "target", "client")
        self._idle_timeout = idle_timeout
        self._over = Event()
        self._ending = Ending.FINISHED
        self._detail = ""
        self._moved_before = 0
        self._moved_at = monotonic()
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
        pumps = [gevent.spawn(self._up.run), gevent.spawn(self._down.run)]
        try:
            self._over.wait()
        except BaseException:
            self.stop(Ending.STOPPED)
            raise
        finally:
            gevent.killall(pumps)
            for stream in self._streams:
                stream.farewell(self._ending)
            for stream in self._streams:
                stream.close()
        return Transfer(self.sent, self.received, self._ending, self._detail)

    def stop(self, ending: Ending, detail: str = "") -> None:
        """End the relay; the first one to say why is right."""
        if not self._over.is_set():
            self._ending, self._detail = ending, detail
            self._over.set()

    def ended(self, direction: "_Direction") -> None:
        """Note that one direction has come to its end."""
        other = self._down if direction is self._up else self._up
        if other.ended:
            self.stop(Ending.FINISHED)
        else:
            self._linger(monotonic())

    def tick(self, now: float) -> None:
        """Do what is due: end it when it is idle, has lingered enough, or when a peer is dead."""
        moved = self.sent + self.received
        if moved != self._moved_before:
            self._moved_before, self._moved_at = moved, now
        quiet = now - self._moved_at
        lingered = self._linger(now)
        if min(quiet, lingered) >= LINGER or lingered >= LINGER_AT_MOST:
            self.stop(Ending.FINISHED)
        if self._idle_timeout and quiet >= self._idle_timeout:
            self.stop(Ending.IDLE)
        for stream, name in zip(self._streams, ("client", "target"), strict=True):
            if not stream.tick(now):
                self.stop(Ending.CUT, f"{name}: no sign of life")

    def _linger(self, now: float) -> float:
        """
        Tell for how long one direction goes on alone with a peer that knows nothing of it.

        Such a peer cannot be told of an end without closing, or has closed itself.
        """
        alone = self._up.ended or self._down.ended
        if not alone or all(stream.half_closes for stream in self._streams):
            return 0.0
        if self._lingering_since is None:
            self._lingering_since = now
        return now - self._lingering_since


class _Direction:
    """One direction of a relay."""

    def __init__(self, relay: Relay, source: Stream, sink: Stream, source_name: str, sink_name: str) -> None:
        self._relay = relay
        self._source = source
        self._sink = sink
        self._source_name = source_name
        self._sink_name = sink_name
        self._unfair = 0
        self.moved = 0
        self.ended = False

    def run(self) -> None:
        """Move bytes until the end of the source, and then pass the end on."""
        at = self._source_name
        try:
            self._move()
            at = self._sink_name
            self._sink.end()
            self.ended = True
            self._relay.ended(self)
            at = self._source_name
            self._source.stay()
        except _SinkError as exc:
            self._cut(self._sink_name, exc.error)
        except (OSError, ProtocolError) as exc:
            self._cut(at, exc)
        except Exception as exc:
            log.debug("relay failed", exc_info=True)
            self._cut("internal error", exc)

    def _cut(self, name: str, exc: Exception) -> None:
        self._relay.stop(Ending.CUT, f"{name}: {reason_of(exc)}")

    def _move(self) -> None:
        more = True
        while more:
            self._source.wait_readable()
            with self._relay.buffers.borrow() as buffer:
                more = self._burst(buffer)

    def _burst(self, buffer: Buffer) -> bool:
        """Move what is there; False at the end of the source."""
        while (count := self._source.recv_into(buffer)) is not None:
            if not count:
                return False
            try:
                self._sink.sendall(buffer, count)
            except (OSError, ProtocolError) as exc:
                raise _SinkError(exc) from exc
            self.moved += count
            self._unfair += count
            if self._unfair >= FAIR_SHARE:
                self._unfair = 0
                gevent.sleep(_A_TURN)
        self._unfair = 0
        return True


class _SinkError(Exception):
    """The sink failed, not the source."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
