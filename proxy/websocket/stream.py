"""
A TCP connection's bytes in WebSocket frames: one end of a relay (RFC 6455).

The relay's two greenlets meet here in one place: both may have something to send, data on one side,
Pong and Ping on the other. So sending takes a lock, and control frames are sent by a greenlet of
their own, behind the frame in flight: the reader never waits for the writer, or two peers that
write and do not read would stand still for ever.
"""

import os
from collections import deque
from contextlib import suppress

from proxy.errors import ProtocolError
from proxy.net.deadline import Deadline
from proxy.net.stream import HEADROOM, Buffer, Ending, Lock, TcpStream, spawn
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
from proxy.websocket.masking import mask

CLOSE_TIMEOUT = 5.0  # seconds for the peer to answer our Close
_LAST_WORD = 1.0  # seconds for it to close TCP after that, and for us to send
_PONGS = 16  # that may wait; RFC 6455, section 5.5.3, asks only for the last

_CODES = {
    Ending.FINISHED: (CloseCode.NORMAL, ""),
    Ending.CUT: (CloseCode.INTERNAL_ERROR, "the connection behind the proxy broke"),
    Ending.IDLE: (CloseCode.GOING_AWAY, "idle"),
    Ending.STOPPED: (CloseCode.GOING_AWAY, "the proxy is stopping"),
    Ending.EVICTED: (CloseCode.POLICY_VIOLATION, "ended by the proxy"),
}


class CutError(ProtocolError):
    """The peer's TCP connection ended where its stream had not."""


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
        self._ended = False  # the peer sends no more payload
        self._failure: Exception | None = None
        self._peer_close: Close | None = None
        self._tcp_ended = False
        self._sending = Lock(1)
        self._torn = False  # part of a frame is out: nothing can follow it but the rest
        self._control: deque[bytes] = deque(maxlen=_PONGS)
        self._close_sent = False
        self._keepalive = _Keepalive(ping_interval)

    @property
    def half_closes(self) -> bool:
        """True if the peer understands an end of one direction, and is still there."""
        return self._half_close and not self._peer_close and not self._tcp_ended

    # -- receiving

    def wait_readable(self) -> None:
        """Block until something may have arrived."""
        if self._ended or self._failure:
            return
        self._keepalive.listening = True
        try:
            self._tcp.wait_readable()
        finally:
            self._keepalive.listening = False

    def recv_into(self, buffer: Buffer) -> int | None:
        """Receive payload; whatever else arrives is dealt with here."""
        while not self._ended:
            if self._failure:
                raise self._failure
            count = self._tcp.recv_into(buffer)
            if count is None:
                return None
            payload = self._decode(buffer, count) if count else self._tcp_end()
            if payload:
                return payload
        return 0

    def stay(self) -> None:
        """Answer Pings until the peer has sent Close or is gone; payload now breaks the agreement."""
        buffer = Buffer()
        while not self._peer_close and not self._tcp_ended:
            self._ended = False
            self.wait_readable()
            if self.recv_into(buffer):
                raise FrameError("payload after the end of stream")

    def _tcp_end(self) -> int:
        self._tcp_ended = True
        if not self._decoder.at_boundary:
            raise CutError("the connection ended in the middle of a frame")
        if self._half_close:
            raise CutError("the connection ended without a Close frame")
        self._ended = True
        return 0

    def _decode(self, buffer: Buffer, count: int) -> int:
        """Move payload to the front of the buffer, and return its size."""
        self._keepalive.heard = True
        size = 0
        try:
            for event in self._decoder.feed(buffer.payload[:count]):
                if isinstance(event, Payload):
                    if self._ended:
                        raise FrameError("payload after the end of stream")
                    end = size + len(event.data)
                    buffer.payload[size:end] = event.data
                    size = end
                else:
                    self._handle(event)
        except ProtocolError as exc:
            self._failure = exc  # what came before it is good, and goes first
            if not size:
                raise
        return size

    def _handle(self, event: Event) -> None:
        if isinstance(event, Ping):
            self._send_control(encode_control(Opcode.PONG, event.payload, key=self._key()))
        elif isinstance(event, Empty):
            self._ended = self._ended or self._half_close
        elif isinstance(event, Close):
            self._peer_close = event
            if event.code not in (None, CloseCode.NORMAL):
                raise CutError(f"the peer closed with code {event.code}")
            self._ended = True

    # -- sending

    def sendall(self, buffer: Buffer, count: int) -> None:
        """Send the payload as one binary message."""
        key = self._key()
        header = encode_header(Opcode.BINARY, count, key)
        if key:
            mask(buffer.payload[:count], key)
        start = HEADROOM - len(header)
        buffer.view[start:HEADROOM] = header
        self._send(buffer.view[start : HEADROOM + count])

    def end(self) -> None:
        """Send the empty message, if it was agreed on."""
        if self._half_close:
            self._send(memoryview(encode_header(Opcode.BINARY, 0, self._key())))

    def _send(self, frame: memoryview) -> None:
        with self._sending:
            self._keepalive.sending = True
            self._torn = True
            self._tcp.send(frame)
            self._torn = False
            self._keepalive.sending = False

    def _send_control(self, frame: bytes) -> None:
        self._control.append(frame)
        if len(self._control) == 1:
            spawn(self._flush_control)

    def _flush_control(self) -> None:
        # An error here is one that the relay's own greenlets will meet.
        with suppress(OSError):
            while self._control and not self._close_sent:
                self._send(memoryview(self._control[0]))
                self._control.popleft()

    def _key(self) -> bytes | None:
        return None if self._server else os.urandom(4)

    # -- keeping alive, and ending

    def tick(self, now: float) -> bool:
        """Send a Ping when one is due; False if the peer has been silent for two intervals."""
        due, alive = self._keepalive.tick(now)
        if due:
            self._send_control(encode_control(Opcode.PING, b"", key=self._key()))
        self._torn = self._torn or not alive
        return alive

    def farewell(self, ending: Ending) -> None:
        """Send Close, with the code that says how it ended."""
        code, reason = self._close_code(ending)
        gone = self._torn or self._tcp_ended or isinstance(self._failure, OSError)
        self._tcp.farewell(Ending.CUT if gone and ending is not Ending.FINISHED else Ending.FINISHED)
        if gone:
            return
        # No error is of interest any more: whatever happens, the connection is closed next.
        with suppress(OSError), Deadline(_LAST_WORD).limit("Close"):
            self._send(memoryview(encode_close(code, reason, key=self._key())))
            self._close_sent = True

    def _close_code(self, ending: Ending) -> tuple[int | None, str]:
        if isinstance(self._failure, FrameError):
            return self._failure.code, str(self._failure)
        if self._peer_close:
            return self._peer_close.code, ""
        return _CODES[ending]

    def close(self) -> None:
        """Finish the closing handshake (RFC 6455, section 7.1.1), and close TCP: the server first."""
        with suppress(OSError, ProtocolError):
            if self._close_sent:
                self._await_close()
        self._tcp.close()

    def _await_close(self) -> None:
        buffer = Buffer()
        if not self._peer_close and not self._failure:
            with Deadline(CLOSE_TIMEOUT).limit("Close"):
                while not self._decoder.closed and self._receive(buffer):
                    pass
        if self._server:
            self._tcp.end()
            if self._decoder.closed and not self._tcp.half_closes:
                return  # TLS: only closing says that it is closed
        # A peer that is still sending gets a moment: unread bytes would turn our FIN into a reset.
        with Deadline(_LAST_WORD).limit("end"):
            while self._tcp_receive(buffer):
                pass

    def _receive(self, buffer: Buffer) -> int:
        count = self._tcp_receive(buffer)
        for _ in self._decoder.feed(buffer.payload[:count]):
            pass
        return count

    def _tcp_receive(self, buffer: Buffer) -> int:
        while (count := self._tcp.recv_into(buffer)) is None:
            self._tcp.wait_readable()
        return count


class _Keepalive:
    """
    When to ping, and when a silent peer is dead.

    Any frame is life. Silence counts only while we listen and are not blocked in sending: a peer
    that has to take our bytes first cannot answer.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._heard_at: float | None = None
        self._pinged = False
        self.heard = True
        self.listening = False
        self.sending = False

    def tick(self, now: float) -> tuple[bool, bool]:
        """Tell whether a Ping is due, and whether the peer is alive."""
        if not self._interval:
            return False, True
        if self.heard or self.sending or not self.listening or self._heard_at is None:
            self._heard_at, self.heard, self._pinged = now, False, False
        silent = now - self._heard_at
        due = silent >= self._interval and not self._pinged
        self._pinged = self._pinged or due
        return due, silent < 2 * self._interval
