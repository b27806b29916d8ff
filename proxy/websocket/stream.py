"""
A TCP connection's bytes in WebSocket frames: one end of a relay (RFC 6455).

What may never be violated:

- What we send ourselves (Pong, Ping, Close) must never come into the middle of a frame: while a frame is
  in flight, control frames wait, and follow it.
- A cut is never taken for an end: not inside a frame, not inside a message, and not without the empty
  message or a Close from a peer that agreed on half-close.
- Payload that came before a failure is good, and is given out before the failure is raised.
- An operation decodes a bounded number of frames, and the rest is kept for a later turn
  (``sharing.turns``). While there is such a rest nothing more is received.

What the peer sends:

    open          payload may come
    ended         There is no more: an empty message (with half-close), a Close, or TCP's end (without).
    told          ``recv_into`` has returned 0 for that. Until then we are ``buffered``, as no event comes
                  for it.
    failed        It was cut off, or broke the RFC. Whoever receives gets that error.
    closed        Its Close was received. Nothing that follows is looked at.

What it takes from us:

    open          payload and control frames
    end sent      after the empty message: control frames only
    deaf          Nothing more, as a control frame could not be sent. That raises nothing by itself: the
                  peer may have said something before. But when TCP ends, it was a cut.
    close sent    nothing more

What happens:

    an empty message    With half-close it has ended; without, it is a message like others, of nothing.
    a Ping              The last one of a read is answered, when all of the read is decoded.
    a Close             Of code 1000 or none: it has ended. With another code, or inside a message: failed.
    TCP's end           Without half-close, and between two messages: it has ended. Else: failed.
    a wrong byte        Failed. Our own Close says why.
    silence             ``_Keepalive`` asks by a Ping. Silent for two intervals, it is dead.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from proxy.errors import ProtocolError, reason_of
from proxy.net.deadline import Deadline, next_turn, wait
from proxy.relaying.stream import BUFFER_SIZE, HEADROOM, Buffer, Ending, TcpStream
from proxy.sharing.pipes import Pipe
from proxy.sharing.turns import TURNS
from proxy.websocket.frames import (
    Close,
    CloseCode,
    Decoder,
    Empty,
    Event,
    FrameError,
    Opcode,
    Payload,
    Ping,
    encode_close,
    encode_control,
    encode_header,
)
from proxy.websocket.masking import mask, new_key

CLOSE_TIMEOUT = 5.0  # seconds for the peer to answer our Close
_LAST_WORD = 1.0  # seconds for it to close TCP after that, and for us to send
_PONGS = 16  # that may wait; RFC 6455, section 5.5.3, asks only for the last
_HEADER = 10  # bytes, of a long frame without a mask: all that has to be seen of one that will be spliced

_CODES = {
    Ending.FINISHED: (CloseCode.NORMAL, ""),
    Ending.CUT: (CloseCode.INTERNAL_ERROR, "the connection behind the proxy broke"),
    Ending.FAILED: (CloseCode.INTERNAL_ERROR, "the proxy failed"),
    Ending.IDLE: (CloseCode.GOING_AWAY, "idle"),
    Ending.STOPPED: (CloseCode.GOING_AWAY, "the proxy is stopping"),
    Ending.EVICTED: (CloseCode.POLICY_VIOLATION, "ended by the proxy"),
}

_SMALL_READ = 4096  # bytes
_NOTHING = memoryview(b"")

# What comes after the end is looked at and thrown away; nobody waits between the two.
_discarded = Buffer()


class CutError(ProtocolError):
    """The peer's stream was cut off: this is not its end."""


class WebSocketStream:
    """
    A WebSocket in a relay; ``server`` says which side we are.

    ``half_close`` says that both sides agreed that an empty message is the end of one direction.
    Without it, only the end of everything can be told.
    """

    def __init__(self, tcp: TcpStream, *, server: bool, half_close: bool, ping_interval: float) -> None:
        self._tcp = tcp
        self._server = server
        self._half_close = half_close
        self._decoder = Decoder(masked=server)
        self._ended = False
        self._told_end = False
        self._failure: ProtocolError | None = None
        self._peer_close: Close | None = None
        self._tcp_ended = False
        self._deaf: OSError | None = None  # the error that says so
        self._rest = _NOTHING  # what was received and is still to be decoded
        self._read_size = BUFFER_SIZE
        self._ping: bytes | None = None  # the payload of the last one, which is not answered yet
        self._control: deque[bytes] = deque(maxlen=_PONGS)
        self._end_sent = False
        self._close_sent = False
        self._keepalive = _Keepalive(ping_interval)
        self.reader = tcp.reader
        # A client's frames are masked, so they have to pass through our memory.
        self.gives_pipes = not server and tcp.gives_pipes
        self.takes_pipes = server and tcp.takes_pipes

    @property
    def writer(self) -> Any:
        """The watcher for room to write."""
        return self._tcp.writer

    @property
    def on_blocked(self) -> Callable[[], None]:
        """What is called when something has to be kept."""
        return self._tcp.on_blocked

    @on_blocked.setter
    def on_blocked(self, callback: Callable[[], None]) -> None:
        self._tcp.on_blocked = callback

    @property
    def half_closes(self) -> bool:
        """True if the peer understands an end of one direction, and is still there."""
        return self._half_close and not self._peer_close and not self._tcp_ended

    @property
    def buffered(self) -> bool:
        """True if something was received that was not given out yet."""
        if self._rest or self._failure:
            return True
        return self._tcp.buffered or (self._ended and not self._told_end)

    @property
    def blocked(self) -> bool:
        """True while a frame is in flight, or a control frame behind it."""
        return self._tcp.blocked

    # -- receiving

    def recv_into(self, buffer: Buffer, *, bulk: bool) -> int | None:
        """Receive payload; whatever else arrives is dealt with here."""
        if self._ended:
            self._told_end = True
            return 0
        if self._failure:
            raise self._failure
        if self._rest:
            data = self._rest[: len(buffer.payload)]
        else:
            see = self._read_size
            if bulk and self._decoder.at_boundary and not self._server:
                see = _HEADER
            count = self._tcp.receive(buffer.payload[:see])
            if count is None:
                return None
            data = buffer.payload[:count]
        payload = self._decode(buffer, data) if data else self._tcp_end()
        if self._ended and not payload:
            self._told_end = True
            return 0
        return payload or None

    def spliceable(self) -> int:
        """Allow the rest of the frame at hand, if it is not masked."""
        if self._server or self._rest or not self._tcp.spliceable():
            return 0
        return self._decoder.payload_left

    def splice_in(self, pipe: Pipe, most: int) -> int | None:
        """Fill a pipe with payload of the frame at hand."""
        count = self._tcp.splice_in(pipe, most)
        if count == 0:
            self._tcp_end()
        if count:
            self._keepalive.heard = True
            self._decoder.skip(count)
        return count

    def stay(self) -> bool:
        """Answer what comes after the end of stream; False if the peer is gone or has said Close."""
        if self._failure:
            raise self._failure
        if not self._peer_close and not self._tcp_ended:
            data = self._rest
            if not data:
                count = self._tcp.receive(_discarded.payload[: self._read_size])
                data = _discarded.payload[: count or 0]
                if count == 0:
                    self._tcp_end()
            if data and self._decode(_discarded, data):
                raise self._fail(FrameError("payload after the end of stream"))
        return not self._peer_close and not self._tcp_ended

    def _tcp_end(self) -> int:
        self._tcp_ended = True
        if self._deaf:
            # The kernel tells of an error once. After that it looks like an end.
            raise self._fail(CutError(reason_of(self._deaf)))
        if not self._decoder.at_boundary:
            raise self._fail(CutError("the connection ended in the middle of a frame"))
        if self._decoder.in_message:
            raise self._fail(CutError("the connection ended in the middle of a message"))
        if self._half_close:
            raise self._fail(CutError("the connection ended without a Close frame"))
        self._ended = True
        return 0

    def _decode(self, buffer: Buffer, data: memoryview) -> int:
        """Move payload to the front of the buffer, and return its size; some frames may be left for later."""
        self._keepalive.heard = True
        whole = self._decoder.take_whole(data)
        if whole is not None:
            size = len(whole)
            buffer.payload[:size] = whole
            if self._rest:
                self._rest = self._rest[len(data) :]
            return size
        size = 0
        try:
            for event in self._decoder.feed(data, TURNS.frames):
                if isinstance(event, Payload):
                    if self._ended:
                        raise FrameError("payload after the end of stream")
                    end = size + len(event.data)
                    buffer.payload[size:end] = event.data
                    size = end
                else:
                    self._handle(event)
        except ProtocolError as exc:
            self._fail(exc)
            if not size:  # else that goes first
                raise
        finally:
            self._keep_rest(data)
        if self._ping is not None and not self._rest:
            ping, self._ping = self._ping, None
            self._send_control(encode_control(Opcode.PONG, ping, key=self._key()))
        return size

    def _keep_rest(self, data: memoryview) -> None:
        """Keep what was left of the frames that came at once, for a later turn of the event loop."""
        TURNS.spend(self._decoder.frames)
        rest = self._decoder.rest
        if self._decoder.closed:
            self._rest = _NOTHING
        elif self._rest:  # this was its beginning, or all of it
            self._rest = self._rest[len(data) - len(rest) :]
        elif rest:
            # A peer whose frames are crumbs is read in small pieces, so that little has to be kept. That is
            # copied once, as the buffer in which it came is everybody's.
            self._read_size = _SMALL_READ
            self._rest = memoryview(bytearray(rest))
        else:
            self._read_size = BUFFER_SIZE
            self._rest = _NOTHING

    def _handle(self, event: Event) -> None:
        if isinstance(event, Ping):
            self._ping = event.payload  # the last one of a read is answered (RFC 6455, section 5.5.3)
        elif isinstance(event, Empty):
            self._ended = self._ended or self._half_close
        elif isinstance(event, Close):
            self._peer_close = event
            if event.code not in (None, CloseCode.NORMAL):
                why = f": {event.reason}" if event.reason else ""
                raise CutError(f"the peer closed with code {event.code}{why}")
            if self._decoder.in_message:
                raise CutError("the peer closed in the middle of a message")
            self._ended = True

    def _fail(self, exc: ProtocolError) -> ProtocolError:
        self._failure = exc
        return exc

    # -- sending

    def send(self, buffer: Buffer, count: int) -> None:
        """Send the payload as one binary message."""
        key = self._key()
        header = encode_header(Opcode.BINARY, count, key)
        if key:
            mask(buffer.payload[:count], key)
        start = HEADROOM - len(header)
        buffer.view[start:HEADROOM] = header
        self._tcp.write(buffer.view[start : HEADROOM + count])

    @property
    def room(self) -> int:
        """Always 0, so that frames stay short: many clients refuse long messages."""
        return 0

    def splice_out(self, pipe: Pipe, count: int) -> None:
        """Send what is in the pipe as one binary message: only its header passes through here."""
        self._tcp.splice_out(pipe, count, encode_header(Opcode.BINARY, count))

    def end(self) -> None:
        """Send the empty message, if it was agreed on."""
        if self._half_close:
            self._end_sent = True
            self._tcp.write(self._empty())

    def _empty(self) -> bytes:
        return encode_header(Opcode.BINARY, 0, self._key())

    def flush(self) -> None:
        """Send the rest of the frame in flight, and the control frames that waited for its end."""
        self._tcp.flush()
        while self._control and not self._tcp.blocked:
            self._tcp.write(self._control.popleft())

    def _send_control(self, frame: bytes) -> None:
        if self._tcp.blocked:
            self._control.append(frame)
        elif not self._deaf:
            try:
                self._tcp.write(frame)
            except OSError as exc:
                # Not raised: the answer to a Ping must not cost the payload that came with the Ping.
                self._deaf = exc

    def _key(self) -> bytes | None:
        return None if self._server else new_key()

    # -- keeping alive, and ending

    def tick(self, now: float, *, listening: bool) -> bool:
        """Show life when that is due; False if the peer has been silent for two intervals."""
        due, alive = self._keepalive.tick(now, listening=listening, blocked=self._tcp.blocked)
        if due and not self._peer_close:
            self._send_control(encode_control(due, b"", key=self._key()))
        if not alive:
            self._tcp_ended = True  # as good as: there is nobody to say Close to
        return self._tcp.tick(now, listening=listening) and alive

    @property
    def undelivered(self) -> int:
        """How many bytes a reset would take away; a Close takes nothing, it comes behind them."""
        return self._tcp.undelivered if self._tcp_ended else 0

    def begin_close(self, ending: Ending) -> None:
        """Send Close, with the code that says how it ended."""
        # A Close would come into the middle of a frame in flight, and where TCP has ended nobody reads it.
        if self._tcp.blocked or self._tcp_ended:
            self._tcp.begin_close(ending)
            return
        code, reason = self._close_code(ending)
        last = encode_close(code, reason, key=self._key())
        if ending is Ending.FINISHED and self.half_closes and not self._end_sent:
            last = self._empty() + last  # one segment instead of two
        try:
            self._tcp.write(last)
            self._close_sent = True
        except OSError:  # there was nobody left to tell
            self._tcp.begin_close(ending)

    def _close_code(self, ending: Ending) -> tuple[int | None, str]:
        if isinstance(self._failure, FrameError):
            return self._failure.code, str(self._failure)
        if self._peer_close:
            return self._peer_close.code, ""
        return _CODES[ending]

    def finish_close(self) -> None:
        """Finish the closing handshake (RFC 6455, section 7.1.1), and close TCP: the server first."""
        if not self._close_sent:
            return
        try:
            with suppress(OSError, ProtocolError):
                self._finish()
        finally:
            # A Close that could not be sent must not leave a FIN in its place.
            self._tcp.begin_close(Ending.CUT if self._tcp.blocked else Ending.FINISHED)

    def _finish(self) -> None:
        buffer = _discarded
        if self._tcp.blocked or not self._decoder.closed:
            with Deadline(CLOSE_TIMEOUT).limit("Close"):
                while self._tcp.blocked:
                    wait(self.writer)
                    self._tcp.flush()
                while not self._decoder.closed and not self._failure:
                    data = self._rest
                    if data:
                        next_turn()
                    else:
                        data = buffer.payload[: self._receive(buffer)]
                    if not data:
                        break
                    for _ in self._decoder.feed(data, TURNS.frames):
                        pass
                    self._keep_rest(data)
        if self._server:
            if self._decoder.closed and not self._tcp.receive(buffer.payload):
                return  # nothing came behind its Close
            self._tcp.end()
        # A peer that is still sending gets a moment: unread bytes would turn our FIN into a reset.
        with Deadline(_LAST_WORD).limit("end"):
            while self._receive(buffer):
                pass

    def _receive(self, buffer: Buffer) -> int:
        count = None
        while count is None:
            # Wait first: the peer has only just been told, so nothing can be there.
            if self._tcp.buffered:
                next_turn()
            else:
                wait(self.reader)
            count = self._tcp.receive(buffer.payload[: self._read_size])
        return count


class _Keepalive:
    """
    When to show life, and when a silent peer is dead.

    Any frame is life. A peer is judged, after a Ping, only while we listen and are not blocked in sending:
    one that has to take our bytes first cannot answer.

    While we do not listen, because whoever our bytes are for takes none, the servers between us and the
    peer see nothing move, and most of them close what is silent for a minute. The way to the peer is free,
    so it gets a Pong that it did not ask for and need not answer (RFC 6455, section 5.5.3).
    """

    __slots__ = ("_interval", "_judging", "_pinged", "_since", "heard")

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._since: float | None = None  # when a frame was heard last, or life shown, or this began
        self._judging = True
        self._pinged = False
        self.heard = True

    def tick(self, now: float, *, listening: bool, blocked: bool) -> tuple[Opcode | None, bool]:
        """Tell which frame is due, if any, and whether the peer is alive."""
        if not self._interval:
            return None, True
        judging = listening and not blocked
        if self._since is None or judging is not self._judging or (judging and self.heard):
            self._since, self._judging, self._pinged, self.heard = now, judging, False, False
        silent = now - self._since
        if silent < self._interval:
            return None, True
        if not judging:
            self._since = now
            return (None if blocked else Opcode.PONG), True
        if not self._pinged:
            self._pinged = True
            return Opcode.PING, True
        return None, silent < 2 * self._interval
