"""
One direction of a relay: it moves bytes from its source to its sink, and waits for one of the two.

What may never be violated:

- A direction waits for its source or for its sink, never for both. That is all the backpressure there is,
  and it needs no queue: a direction whose sink is blocked does not listen to its source.
- An operation never waits, and leaves nothing in the buffer: what the sink's socket does not take, the sink
  keeps. Only therefore can all directions share one buffer.
- When both directions are stalled, their pipes hold ``MOST_IN_PIPES`` together, and not each.
- Whoever moves much, or flushes, does it in a turn that has room for it, or waits for one.
- Who has a limit of bandwidth moves payload only when all its throttles have let it through, and pays for
  each operation. That holds up payload alone: what goes the other way, and what the streams say themselves
  (Ping, Pong, Close, the end of a direction), waits for nothing. And a wait for us is not a peer's silence.
- To move little costs no timer and no look at the clock. Who moves much is timed, which is two looks for an
  operation.

How it moves bytes:

    copying     through the shared buffer. When one read finds ``BULK``, and both ends allow it: bulk
    bulk        The source has to be seen before it can be spliced (it is a WebSocket, and a frame begins), so
                only the header is copied. If enough of that frame is left: splicing at once, else copying
    splicing    inside the kernel, as much as is there. When that was little, or there is no pipe: copying

How far the end of its source has come:

    OPEN        The source may send more.
    OVER        It has ended. The sink may still keep what came before, so the end waits.
    TOLD        The sink was told to ``end``. It may keep that, too, as an end can be some bytes (a frame).
    ENDED       The sink has passed everything on. When both directions are here, the relay is FINISHED.

What happens, and what it does:

    the source can be read    One operation. After its end: have it answer what still comes (``stay``). If the
                              last one moved ``MUCH``, and the turn has no room for more: wait for a turn.
    the source has more       It is in no socket, so no event will tell: wait for a turn (``turns``).
    its turn comes            What the event would have had it do. After ``MUCH``, while others wait: wait for
                              the next turn, as there is probably more. Else: listen again.
    a throttle is closed      Its source is not listened to until it is let through: then it waits for a turn.
    the sink is blocked       It is held: listen to the sink instead of the source.
    the sink can be written   Flush, or wait for a turn with room for that. When nothing is kept any more:
                              listen to the source, or pass its end on.
    the source fails          CUT. Nothing is left of it: the kernel gives what came before the error first.
    the sink fails            Stop, and tell the relay that it has broken off (``Relay.break_off``).
"""

import errno
import logging
from collections.abc import Callable
from typing import Protocol

from proxy.errors import ProtocolError, is_shortage, reason_of
from proxy.net.limits import BALLAST
from proxy.relaying.stream import BUFFER_SIZE, Buffer, Ending, Stream, ignore
from proxy.sharing import pipes
from proxy.sharing.throttle import Place, Throttle
from proxy.sharing.turns import TURNS

log = logging.getLogger(__name__)

BULK = 32 * 1024  # bytes found at once: more will come, and to splice it is cheaper than to copy it
WORTH_A_SPLICE = 8 * 1024  # bytes
# One operation moves more than this only if the sink is sure to take it all, so that nothing stays in a pipe.
# When one direction holds nearly all of it, the other one copies a little at a time instead of waiting.
MOST_IN_PIPES = 256 * 1024  # bytes
MUCH = 8 * 1024  # bytes in one operation: whoever moves that takes turns with others

OPEN, OVER, TOLD, ENDED = range(4)

_buffer = Buffer()
_small_buffer = Buffer(MUCH)


class Joined(Protocol):
    """What a direction knows of the relay that it is one of two of."""

    is_over: bool
    broken: str
    had_ended: bool

    def stop(self, ending: Ending, detail: str = "") -> None:
        """End the relay; the first reason wins."""

    def ended(self) -> None:
        """Note that one direction has come to its end."""

    def break_off(self, why: str, *, had_ended: bool) -> None:
        """Note that one side takes nothing more."""


class Direction:
    """One direction of a relay: a source, a sink, and which of them it waits for."""

    __slots__ = (
        "_blamed", "_bulk", "_found_much", "_moves_much", "_places", "_reader", "_relay", "_sink",
        "_sink_name", "_source", "_source_name", "_waits_for_turn", "_zero_copy", "held", "in_pipe",
        "is_throttled", "moved", "opposite", "stage",
    )  # fmt: skip

    opposite: "Direction"

    def __init__(
        self,
        relay: Joined,
        source: Stream,
        sink: Stream,
        source_name: str,
        sink_name: str,
        *,
        zero_copy: bool,
    ) -> None:
        self._relay = relay
        self._source = source
        self._sink = sink
        self._source_name = source_name
        self._sink_name = sink_name
        self._blamed = source_name  # the end whose error it is, if the operation under way raises one
        self._reader = source.reader
        self._zero_copy = zero_copy and source.gives_pipes and sink.takes_pipes
        self._bulk = False  # bulk or splicing, whichever the source allows
        self._found_much = False  # the last splice took all that one pipe holds
        self._moves_much = False  # so it takes turns with others
        self._waits_for_turn = False
        self._places: tuple[Place, ...] = ()  # at the throttles that it shares
        self.is_throttled = False  # it waits for one of them
        self.stage = OPEN
        self.moved = 0
        self.held = False  # it waits for its sink
        self.in_pipe = 0  # bytes, at most, that it holds in a pipe meanwhile

    # -- waiting

    def start(self) -> None:
        """Begin to wait."""
        self._sink.on_blocked = self._hold
        self._listen()

    def _listen(self) -> None:
        if self._source.buffered:
            self._wait_for_turn()
        else:
            self._reader.start(self._on_event)

    @property
    def _on_event(self) -> Callable[[], object]:
        """What is done when the source can be read; who moves little needs no look at the turn."""
        if self._moves_much:
            return self._receive
        return self._move_throttled if self._places else self._move

    def limit(self, throttles: tuple[Throttle, ...]) -> None:
        """Share what these throttles let through, and no others."""
        if throttles == tuple(place.throttle for place in self._places):
            return
        was_throttled = self._leave_throttles()
        self._places = tuple(Place(each, self._come_through) for each in throttles)
        if self._reader.active:
            self._reader.callback = self._on_event
        elif was_throttled:
            self._listen()

    def _leave_throttles(self) -> bool:
        """Wait for none of them, and tell whether it did."""
        was_throttled, self.is_throttled = self.is_throttled, False
        for place in self._places:
            place.throttle.forget(place)
        return was_throttled

    def _come_through(self) -> None:
        """Go on, as a throttle has let it through."""
        self.is_throttled = False
        self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        """Wait for a turn instead of an event, to do what the event would have us do."""
        if not self._relay.is_over:
            (self._sink.writer if self.held else self._reader).stop()
            self._waits_for_turn = True
            TURNS.later(self._take_turn)

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        if self.held:
            self._sink.writer.start(self._resume)
            self._flush()
            return
        before = self.moved
        goes_on = self._move_throttled() if self._places else self._move()
        if goes_on and not self.held and not self._waits_for_turn and not self._relay.is_over:
            # While others wait, who had much stays in the queue: the next turn will tell if there is more. To
            # listen in between would be two system calls for each operation.
            if self.moved - before >= MUCH and TURNS.others_wait:
                self._wait_for_turn()
            else:
                self._reader.start(self._on_event)

    def pause(self) -> None:
        """Wait for nothing any more."""
        self._stop_listening()
        self._release()

    def _stop_listening(self) -> None:
        self._reader.stop()
        if self._waits_for_turn:
            self._waits_for_turn = False
            TURNS.forget(self._take_turn)
        if self._places:
            self._leave_throttles()

    def let_go(self) -> None:
        """Forget the others, when all is over."""
        self._sink.on_blocked = ignore
        self._places = ()
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

    @property
    def _listens(self) -> bool:
        return self._reader.active or (self._waits_for_turn and not self.held)

    def tick(self, now: float) -> None:
        """Let the source do what is due."""
        if self._relay.is_over:
            return
        try:
            self._blamed = self._source_name
            if not self._source.tick(now, listening=self._listens):
                self._relay.stop(Ending.CUT, f"{self._source_name}: no answer to pings")
        except OSError as exc:
            # A stream looks for errors only while nobody listens to it, so this direction is held. What the
            # source said before it broke is here or in its socket, and can be delivered; only what goes the
            # other way, to the source, cannot.
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
        if isinstance(exc, MemoryError):
            # Bytes may be lost by now, so it is over whatever else fails.
            self._relay.stop(Ending.FAILED, "no memory")
            BALLAST.give_up()
        elif isinstance(exc, OSError) and is_shortage(exc):
            self._relay.stop(Ending.FAILED, reason_of(exc))
        elif isinstance(exc, OSError) and self._blamed is self._sink_name:
            self.lose(exc)
        elif isinstance(exc, (OSError, ProtocolError)):
            # A source that fails has nothing left: the kernel gives what came before the failure first. And
            # where a sink finds a protocol broken, it is by what the source has said.
            blamed = self._source_name if isinstance(exc, ProtocolError) else self._blamed
            self._relay.stop(Ending.CUT, self._relay.broken or f"{blamed}: {reason_of(exc)}")
        else:
            log.debug("relay failed", exc_info=exc)
            self._relay.stop(Ending.FAILED, f"internal error: {type(exc).__name__}: {exc}")
        # A stream may keep its failure, whose traceback leads back to it: together they would stay until the
        # garbage is looked for, and 3 KiB of each are much when thousands are cut at once.
        exc.__traceback__ = None

    # -- moving

    def _receive(self) -> None:
        """Do one operation on what the source has, in a turn with room for it, as the last one moved much."""
        if TURNS.has_room:
            TURNS.do(self._move_throttled if self._places else self._move)
        else:
            self._wait_for_turn()

    def _move_throttled(self) -> bool:
        """Do one operation if all throttles let it through, and pay; else wait for them, and return False."""
        if self.stage:
            return self._move()  # which moves no payload any more
        for place in self._places:
            if not place.throttle.ask(place):
                for each in self._places:
                    each.throttle.pass_on(each)
                self._reader.stop()
                self.is_throttled = True
                return False
        before = self.moved
        goes_on = self._move()
        for place in self._places:
            place.throttle.pay(place, self.moved - before)
        return goes_on

    def _move(self) -> bool:
        """Do one operation on what the source has; False if nothing is left to listen for."""
        source = self._source
        self._blamed = self._source_name
        try:
            if self.stage:
                if not source.stay():
                    self._reader.stop()
                    return False
            else:
                count = self._splice() if self._bulk and source.spliceable() else self._copy()
                if count:
                    self.moved += count
                    if (count >= MUCH) is not self._moves_much:
                        self._moves_much = not self._moves_much
                        if self._reader.active:
                            self._reader.callback = self._on_event
                    elif not self._moves_much:
                        TURNS.small_came = True
                elif count == 0:
                    self.stage = OVER
                    if not self.held:
                        self._end()
            # Also if there was no payload: the rest of a control frame may be decrypted already.
            if source.buffered and not self.held:
                self._wait_for_turn()
        except Exception as exc:
            self._cut(exc)
            return False
        return True

    def _copy(self) -> int | None:
        little = TURNS.is_full or self.opposite.in_pipe > MOST_IN_PIPES - BUFFER_SIZE
        buffer = _small_buffer if little else _buffer
        if self._places:
            buffer = buffer.first(self._share)
        count = self._source.recv_into(buffer, bulk=self._bulk)
        if self._bulk:
            # This was only the beginning of a frame, and says how much of it is left.
            left = self._source.spliceable()
            if count is None and left >= WORTH_A_SPLICE:
                return self._splice()
            self._bulk = left >= WORTH_A_SPLICE
        if count:
            if count >= MUCH:
                TURNS.spend_bytes(count)
                # Whose share is less than BULK never finds that much.
                if count >= BULK or self._places:
                    self._bulk = self._zero_copy
            self._blamed = self._sink_name
            self._sink.send(buffer, count)
        return count

    @property
    def _share(self) -> int:
        """How many bytes the throttles let it move in one operation."""
        return min(place.throttle.share for place in self._places)

    def _splice(self) -> int | None:
        there = self._source.spliceable()
        if self._places:
            there = min(there, self._share)
        most = min(there, max(0, MOST_IN_PIPES - self.opposite.in_pipe))
        pipe = None
        if self._found_much and there > most:
            # To ask for the sink's room is a system call, so only a direction that could use it does.
            room = self._sink.room
            if room > max(most, WORTH_A_SPLICE) and (pipe := pipes.BIG_PIPES.take()):
                most = min(there, room, TURNS.share.most)
        if pipe is None and most >= WORTH_A_SPLICE:
            pipe = pipes.PIPES.take()
        if pipe is None:
            self._bulk = False
            return self._copy()
        try:
            count = self._source.splice_in(pipe, most)
        except BaseException:
            pipe.give_back()
            raise
        if not count:
            pipe.give_back()
            return count
        self._bulk = count >= min(BULK, most // 2)
        self._found_much = count >= MOST_IN_PIPES
        self._blamed = self._sink_name
        self._sink.splice_out(pipe, count)  # from here on the pipe is the sink's, to give back as well
        self.in_pipe = count if self.held else 0
        return count

    def _resume(self) -> None:
        """Go on where the sink was blocked, in a turn that has room for it."""
        if TURNS.has_room:
            TURNS.do(self._flush)
        else:
            self._wait_for_turn()

    def _flush(self) -> None:
        self._blamed = self._sink_name
        try:
            self._sink.flush()
            if self._sink.blocked:
                return
            self._release()
            if self.stage and self.stage is not ENDED:
                self._end()
            if not self.held and not self._relay.is_over:
                self._listen()
        except Exception as exc:
            self._cut(exc)

    def _end(self) -> None:
        """Pass the end of the source on, as far as that goes now."""
        self._blamed = self._sink_name
        relay = self._relay
        if relay.broken:
            # The kernel tells of an error once, and has told the other direction. Here it looks like an end,
            # which it is only if the peer had ended before it broke off.
            if not self._sink.blocked:
                if relay.had_ended:
                    self._sink.end()
                relay.stop(Ending.CUT, relay.broken)
            return
        if self.stage is OVER:
            self.stage = TOLD
            if self.opposite.stage is not ENDED:  # else it is closed next, which says this too
                self._sink.end()
        if not self._sink.blocked:
            self.stage = ENDED
            relay.ended()
