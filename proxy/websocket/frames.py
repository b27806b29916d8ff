"""
WebSocket frames, without I/O (RFC 6455, sections 5 and 7.4).

The decoder is fed whatever arrived and gives out payload as it comes, as views into what it was
fed: no message is ever collected, so a frame may declare any length and costs nothing. Only a
header and a control frame, of at most 125 bytes, wait for their missing bytes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from proxy.errors import ProtocolError
from proxy.websocket.masking import mask

MAX_HEADER = 14  # bytes: 2, then 8 of length, then 4 of masking key
MAX_CONTROL = 125  # bytes of payload

# The first byte of a header ...
_FIN = 0x80
_RESERVED = 0x70
_OPCODE = 0x0F
_WHOLE_BINARY = 0x82  # the first byte of a binary message that is one frame
_CONTROL = 0x08  # set in the opcodes of control frames
# ... and the second: two of its lengths say that the true one follows, in 16 or 64 bits.
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
    """The peer's last frame; the code is None if it gave none."""

    code: int | None


Event = Payload | Empty | Ping | Pong | Close

_NOTHING = memoryview(b"")
_OPCODES = frozenset(Opcode)
_CLOSE_CODES = frozenset(CloseCode)


class Decoder:
    """
    The reading half of a connection: feed it bytes, take events.

    ``masked`` says which side we are: a server reads masked frames, a client reads unmasked ones.
    ``in_message`` says that a fragmented message is open: continuations are to come. ``closed`` says
    that a Close was received; whatever follows it is ignored. After a ``FrameError`` a decoder is spent.

    ``frames`` says how many the last feed had, those not complete included, and ``rest`` what it left.
    """

    __slots__ = (
        *("closed", "frames", "in_message", "rest"),
        *("_masked", "_head", "_opcode", "_key", "_left", "_phase", "_control", "_empty"),
    )

    def __init__(self, *, masked: bool) -> None:
        self.in_message = False
        self.closed = False
        self.frames = 0
        self.rest = _NOTHING
        self._masked = masked
        self._head = b""  # of a header that is not complete yet
        self._opcode = 0
        self._key = b""
        self._left = 0  # payload bytes still to come; at 0 the next byte begins a header
        self._phase = 0  # payload bytes gone by, to find the place in the key
        self._control = b""  # of a control frame that is not complete yet, still masked
        self._empty = True  # the message at hand has had no payload so far

    @property
    def at_boundary(self) -> bool:
        """No frame has begun, so an end of the TCP stream cuts none here."""
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
        # There is but one header for a length, and whatever else stands there is for ``feed`` to judge.
        begin = 6 if self._masked else 2
        form = length = len(data) - begin
        if length >= _LENGTH_16:
            form, begin, length = _LENGTH_16, begin + 2, length - 2
            if not _LENGTH_16 <= length < 1 << 16 or int.from_bytes(data[2:4], "big") != length:
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
        head = self._head + data[: MAX_HEADER - len(self._head)]
        self._check_first_byte(head[0])
        if len(head) > 1:
            self._check_second_byte(head)
            _check_length(head)
        size = header_size(head)
        if len(head) < size:
            self._head = head
            return data[len(data) :]
        rest = data[size - len(self._head) :]
        self._head = b""
        self._begin_frame(head[:size])
        return rest

    def _check_first_byte(self, byte: int) -> None:
        opcode = byte & _OPCODE
        if byte & _RESERVED:
            raise FrameError("a reserved bit is set, but no extension was agreed on")
        if opcode not in _OPCODES:
            raise FrameError(f"unknown opcode {opcode:#x}")
        if opcode & _CONTROL:
            if not byte & _FIN:
                raise FrameError("a control frame is fragmented")
        elif self.in_message != (opcode == Opcode.CONTINUATION):
            raise FrameError("a message begins inside another, or goes on without a beginning")
        elif opcode == Opcode.TEXT:
            raise FrameError("a text message, where only binary ones are taken", CloseCode.UNSUPPORTED_DATA)

    def _check_second_byte(self, head: bytes) -> None:
        length = head[1] & _LENGTH
        if bool(head[1] & _MASKED) != self._masked:
            raise FrameError("a client frame is not masked" if self._masked else "a server frame is masked")
        if head[0] & _CONTROL and length > MAX_CONTROL:
            raise FrameError(f"a control frame has more than {MAX_CONTROL} bytes of payload")
        if head[0] & _OPCODE == Opcode.CLOSE and length == 1:
            raise FrameError("a close code has one byte")

    def _begin_frame(self, head: bytes) -> None:
        self._opcode = head[0] & _OPCODE
        self._left = _parse_length(head)
        self._key = head[-4:]
        self._phase = 0
        if not self._opcode & _CONTROL:
            self.in_message = not head[0] & _FIN
            self._empty = self._empty or self._opcode != Opcode.CONTINUATION

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


def _check_length(head: bytes) -> None:
    # As soon as the bytes allow: what is missing of the header is not waited for.
    form = head[1] & _LENGTH
    if form == _LENGTH_64 and len(head) > 2 and head[2] & 0x80:
        raise FrameError("a 64-bit length has its highest bit set")
    if (form == _LENGTH_64 and head[2:8] == bytes(6)) or (
        form == _LENGTH_16 and len(head) >= 4 and _parse_length(head) < _LENGTH_16
    ):
        raise FrameError("a length is not in its shortest form")


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
        payload[2:].decode()
    except UnicodeDecodeError as exc:
        raise FrameError("a close reason is not UTF-8", CloseCode.INVALID_DATA) from exc
    return Close(code)


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
