"""
WebSocket frames, without I/O (RFC 6455, sections 5 and 7.4).

The decoder is fed whatever arrived, in any pieces, and gives out payload as it comes.

What may never be violated:

- No message is ever collected, so a frame may declare any length and costs nothing. Payload is given out
  as views into what was fed; only a header and a control frame, of at most 125 bytes, wait for what they
  lack.
- The first byte that cannot be right is refused as soon as it is there, also while the rest of its header
  is missing: whoever waited for more could be kept waiting.
- What stood before a fault is good, and is given out before the fault is raised.
- Payload is unmasked in place, so each byte is fed exactly once, and may not be looked at before.

Between two bytes a decoder is in one of four places:

    between two frames           the next byte begins a header; the connection may end here
                                 (``at_boundary``)
    in a header                  ``_head`` has what is there of it
    in a data frame              ``_left`` bytes of it are to come, and are given out as they do
    in a control frame           ``_left`` bytes of it are to come, and ``_control`` has those before

Control frames may stand between the frames of a message (section 5.4), so whether a message is open is a
state of its own: ``in_message``. After a Close everything is ignored, and after a ``FrameError`` a
decoder is spent.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from proxy.errors import ProtocolError
from proxy.websocket.masking import mask

MAX_HEADER = 14  # bytes: 2, then 8 of length, then 4 of masking key
MAX_CONTROL = 125  # bytes of payload

# The first byte of a header:
_FIN = 0x80
_RESERVED = 0x70
_OPCODE = 0x0F
_WHOLE_BINARY = 0x82  # the first byte of a binary message that is one frame
_CONTROL = 0x08  # set in the opcodes of control frames
# The second byte. Two of its lengths say that the true one follows, in 16 or 64 bits.
_MASKED = 0x80
_LENGTH = 0x7F
_LENGTH_16 = 126
_LENGTH_64 = 127
_SIZES = [2] * _LENGTH_16 + [4, 10]  # of a header without a key


class Opcode(IntEnum):
    """What a frame is (RFC 6455, section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """The registered codes that may stand in a Close frame (RFC 6455, section 7.4, and IANA)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014


class FrameError(ProtocolError):
    """The peer broke RFC 6455; ``code`` is what the Close frame that answers it says."""

    def __init__(self, message: str, code: CloseCode = CloseCode.PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Payload:
    """Some bytes of a data message, never none."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class Empty:
    """A whole data message without a byte: end of stream, between peers that agreed on half-close."""


@dataclass(frozen=True, slots=True)
class Ping:
    """A Ping, to be answered by a Pong with the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """A Pong, asked for or not."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The peer's last frame; the code is None if it gave none, and the reason is for people."""

    code: int | None
    reason: str = ""


Event = Payload | Empty | Ping | Pong | Close

_NOTHING = memoryview(b"")
_OPCODES = frozenset(Opcode)
_CLOSE_CODES = frozenset(CloseCode)


class Decoder:
    """
    The reading half of a connection: feed it bytes, take events.

    ``masked`` says which side we are: a server reads masked frames, a client reads unmasked ones.
    ``in_message`` says that a fragmented message is open: continuations are to come. ``closed`` says
    that a Close was received.

    ``frames`` says how many the last feed had, those not complete included, and ``rest`` what it left.
    """

    __slots__ = (
        "_control", "_empty", "_head", "_key", "_left", "_masked", "_opcode", "_phase",
        "closed", "frames", "in_message", "rest",
    )  # fmt: skip

    def __init__(self, *, masked: bool) -> None:
        self.in_message = False
        self.closed = False
        self.frames = 0
        self.rest = _NOTHING
        self._masked = masked
        self._head = b""  # what is there of a header that is not complete yet
        self._opcode = 0
        self._key = b""
        self._left = 0  # payload bytes of this frame that are still to come
        self._phase = 0  # payload bytes of it that have gone by, to find the place in the key
        self._control = b""  # what is there of a control frame that is not complete yet, still masked
        self._empty = True  # the message at hand has had no payload so far

    @property
    def at_boundary(self) -> bool:
        """True if no frame has begun, so that an end of the TCP stream cuts none here."""
        return not self._left and not self._head

    @property
    def payload_left(self) -> int:
        """How many bytes of the data frame at hand are still to come."""
        return 0 if self._opcode & _CONTROL else self._left

    def feed(self, data: memoryview, most: int | None = None) -> Iterator[Event]:
        """
        Decode what arrived, or its first frames; payload is unmasked in place and given out as views into it.

        Exhaust the iterator before feeding again. Raises ``FrameError`` at the first byte that
        cannot be right, after the events of what stood before it.
        """
        self.frames, self.rest = 0, _NOTHING
        while data and not self.closed:
            if self.frames == most:
                self.rest = data
                return
            self.frames += 1
            if not self._left:
                data = self._take_header(data)
                if self._head:
                    return
            chunk, data = data[: self._left], data[self._left :]
            self._left -= len(chunk)
            event = self._control_event(chunk) if self._opcode & _CONTROL else self._data_event(chunk)
            if event is not None:
                yield event

    def take_whole(self, data: memoryview) -> memoryview | None:
        """
        Decode what is exactly one whole binary message in one frame; None if it is anything else.

        This is what a small message nearly always is; ``feed`` would do the same in more steps.
        """
        if self._left or self._head or self.in_message or self.closed:
            return None
        # Only one header is right for so many bytes; whatever else stands there is for ``feed`` to judge. To
        # encode that header and to compare the two would be shorter, but take a small message from 0.25 to
        # 0.7 µs.
        begin = 6 if self._masked else 2
        length = form = len(data) - begin
        if length >= _LENGTH_16:
            # The true length follows, and is not a shorter one in this longer form.
            begin += 2
            length -= 2
            form = _LENGTH_16
            if length < _LENGTH_16 or int.from_bytes(data[2:4], "big") != length:
                return None
        if length < 1 or data[0] != _WHOLE_BINARY or data[1] != (form | _MASKED if self._masked else form):
            return None
        payload = data[begin:]
        if self._masked:
            mask(payload, bytes(data[begin - 4 : begin]))
        return payload

    def skip(self, count: int) -> None:
        """Take note of payload that went another way, unseen: at most ``payload_left`` bytes of it."""
        if not 0 < count <= self.payload_left:
            raise ValueError("these bytes are not payload of the frame at hand")
        self._left -= count
        self._phase += count
        self._empty = False

    def _take_header(self, data: memoryview) -> memoryview:
        """Take a header, or a piece of one, and begin its frame when it is whole; return what follows it."""
        known = len(self._head)
        head = self._head + data[: MAX_HEADER - known]
        self._check(head)
        size = header_size(head)
        if len(head) < size:
            self._head = head
            return _NOTHING
        self._head = b""
        self._opcode = head[0] & _OPCODE
        self._left = _parse_length(head)
        self._key = head[size - 4 : size]
        self._phase = 0
        if not self._opcode & _CONTROL:
            self.in_message = not head[0] & _FIN
            self._empty = self._empty or self._opcode != Opcode.CONTINUATION
        return data[size - known :]

    def _check(self, head: bytes) -> None:
        """Refuse what cannot be right of a header, of which any number of bytes may still be missing."""
        opcode = head[0] & _OPCODE
        # Section 5.2: the reserved bits "MUST be 0 unless an extension is negotiated", and we negotiate none.
        if head[0] & _RESERVED:
            raise FrameError("a reserved bit is set, but no extension was agreed on")
        if opcode not in _OPCODES:
            raise FrameError(f"unknown opcode {opcode:#x}")
        if opcode & _CONTROL:
            # Section 5.5: a control frame "MUST have a payload length of 125 bytes or less and MUST NOT be
            # fragmented".
            if not head[0] & _FIN:
                raise FrameError("a control frame is fragmented")
        # Section 5.4: the frames of two messages may not be mixed.
        elif self.in_message != (opcode == Opcode.CONTINUATION):
            raise FrameError("a message begins inside another one, or continues without a beginning")
        elif opcode == Opcode.TEXT:
            raise FrameError("a text message, where only binary ones are taken", CloseCode.UNSUPPORTED_DATA)
        if len(head) < 2:
            return
        form = head[1] & _LENGTH
        # Section 5.1: a client MUST mask all its frames, and a server MUST NOT mask any.
        if bool(head[1] & _MASKED) != self._masked:
            raise FrameError("a client frame is not masked" if self._masked else "a server frame is masked")
        if opcode & _CONTROL and form > MAX_CONTROL:
            raise FrameError(f"a control frame has more than {MAX_CONTROL} bytes of payload")
        if opcode == Opcode.CLOSE and form == 1:
            raise FrameError("a close code has one byte")
        # Section 5.2: the most significant bit "MUST be 0", and "the minimal number of bytes MUST be used".
        if form == _LENGTH_64 and len(head) > 2 and head[2] & 0x80:
            raise FrameError("a 64-bit length has its highest bit set")
        if (form == _LENGTH_64 and head[2:8] == bytes(6)) or (
            form == _LENGTH_16 and len(head) >= 4 and _parse_length(head) < _LENGTH_16
        ):
            raise FrameError("a length is not in its shortest form")

    def _data_event(self, chunk: memoryview) -> Payload | Empty | None:
        if chunk:
            if self._masked:
                mask(chunk, self._key, self._phase)
                self._phase += len(chunk)
            self._empty = False
            return Payload(chunk)
        over = not self._left and not self.in_message
        return Empty() if over and self._empty else None

    def _control_event(self, chunk: memoryview) -> Ping | Pong | Close | None:
        self._control += chunk
        if self._left:
            return None
        payload, self._control = bytearray(self._control), b""
        if self._masked:
            mask(payload, self._key)
        if self._opcode == Opcode.PING:
            return Ping(bytes(payload))
        if self._opcode == Opcode.PONG:
            return Pong(bytes(payload))
        self.closed = True
        return _parse_close(bytes(payload))


def header_size(head: bytes) -> int:
    """Tell how long a header is, from its first two bytes; at least two, without the second."""
    if len(head) < 2:
        return 2
    size = _SIZES[head[1] & _LENGTH]
    return size + 4 if head[1] & _MASKED else size


def _parse_length(head: bytes) -> int:
    form = head[1] & _LENGTH
    if form == _LENGTH_16:
        return int.from_bytes(head[2:4], "big")
    if form == _LENGTH_64:
        return int.from_bytes(head[2:10], "big")
    return form


def _parse_close(payload: bytes) -> Close:
    if not payload:
        return Close(None)
    code = int.from_bytes(payload[:2], "big")
    if not _may_be_sent(code):
        raise FrameError(f"close code {code} may not be sent")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError as exc:
        raise FrameError("a close reason is not UTF-8", CloseCode.INVALID_DATA) from exc


def _may_be_sent(code: int) -> bool:
    # 3000 to 3999 are for libraries, 4000 to 4999 for private use (RFC 6455, section 7.4.2).
    return code in _CLOSE_CODES or 3000 <= code <= 4999


def encode_header(opcode: Opcode, length: int, key: bytes | None = None) -> bytes:
    """Encode the header of a whole message; a client gives the masking key, and masks the payload itself."""
    first = opcode | _FIN
    masked = 0 if key is None else _MASKED
    if length < _LENGTH_16:
        head = bytes((first, masked | length))
    elif length < 1 << 16:
        head = struct.pack("!BBH", first, masked | _LENGTH_16, length)
    else:
        head = struct.pack("!BBQ", first, masked | _LENGTH_64, length)
    return head if key is None else head + key


def encode_control(opcode: Opcode, payload: bytes, *, key: bytes | None = None) -> bytes:
    """Encode a whole control frame."""
    if len(payload) > MAX_CONTROL:
        raise ValueError(f"a control frame has room for {MAX_CONTROL} bytes")
    body = bytearray(payload)
    if key is not None:
        mask(body, key)
    return encode_header(opcode, len(body), key) + body


def encode_close(code: int | None, reason: str = "", *, key: bytes | None = None) -> bytes:
    """Encode a Close frame; a reason that is too long is cut, and without a code there is none."""
    if code is None:
        return encode_control(Opcode.CLOSE, b"", key=key)
    if not _may_be_sent(code):
        raise ValueError(f"close code {code} may not be sent")
    # Cut between characters: half of one at the end would not be UTF-8.
    text = reason.encode()[: MAX_CONTROL - 2].decode(errors="ignore").encode()
    return encode_control(Opcode.CLOSE, struct.pack("!H", code) + text, key=key)
