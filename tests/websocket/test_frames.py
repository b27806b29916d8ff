"""The frame codec against RFC 6455 and against the frames of the websockets package."""

import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from websockets import frames as peer
from websockets.streams import StreamReader

from proxy.errors import ProtocolError
from proxy.websocket.frames import (
    MAX_HEADER,
    Close,
    CloseCode,
    Decoder,
    Empty,
    FrameError,
    Opcode,
    Payload,
    Ping,
    Pong,
    encode_close,
    encode_control,
    encode_header,
    header_size,
)
from proxy.websocket.masking import mask

Events = list[Any]  # what the decoder gives, with payload as bytes

KEY = bytes.fromhex("37fa213d")  # of the examples in RFC 6455, section 5.7


def feed(decoder: Decoder, data: bytes) -> Events:
    """Feed one piece and take its events, with payload as bytes."""
    view = memoryview(bytearray(data))
    return [bytes(e.data) if isinstance(e, Payload) else e for e in decoder.feed(view)]


def size_of(events: Iterable[object]) -> int:
    """Tell how many bytes of payload there are."""
    return sum(len(event.data) for event in events if isinstance(event, Payload))


def joined(events: Events) -> Events:
    """Join payload that came in pieces, for where it was cut says nothing."""
    result: Events = []
    for event in events:
        if isinstance(event, bytes) and result and isinstance(result[-1], bytes):
            result[-1] += event
        else:
            result.append(event)
    return result


def outcome(pieces: list[bytes], *, masked: bool) -> tuple[Events, CloseCode | None]:
    """Decode pieces to the end or to an error: the events, and the code of the error."""
    decoder = Decoder(masked=masked)
    events: Events = []
    try:
        for piece in pieces:
            for event in decoder.feed(memoryview(bytearray(piece))):
                events.append(bytes(event.data) if isinstance(event, Payload) else event)
    except FrameError as error:
        return joined(events), error.code
    return joined(events), None


def decode(data: bytes, *, masked: bool = False) -> Events:
    events, code = outcome([data], masked=masked)
    assert code is None
    return events


def code_of(data: bytes, *, masked: bool = False) -> CloseCode:
    """Feed bytes that are wrong, and give the close code; they must give out nothing."""
    events, code = outcome([data], masked=masked)
    assert events == []
    assert code is not None
    return code


def by_peer(opcode: int, payload: bytes, *, fin: bool = True, mask: bool = False) -> bytes:
    """Encode a frame with the independent implementation."""
    return peer.Frame(peer.Opcode(opcode), payload, fin).serialize(mask=mask)


def read_by_peer(data: bytes, *, masked: bool) -> peer.Frame:
    """Decode one frame with the independent implementation."""
    reader = StreamReader()
    reader.feed_data(data)
    parser = peer.Frame.parse(reader.read_exact, mask=masked)
    try:
        while True:
            next(parser)
    except StopIteration as finished:
        frame: peer.Frame = finished.value
    frame.check()
    assert not reader.buffer, "the peer did not take the whole frame"
    return frame


# RFC 6455, section 5.7, with binary in place of text where the example is text.


@pytest.mark.parametrize(
    ("data", "masked", "events"),
    [
        ("82 05 48 65 6c 6c 6f", False, [b"Hello"]),
        ("82 85 37 fa 21 3d 7f 9f 4d 51 58", True, [b"Hello"]),
        ("02 03 48 65 6c  80 02 6c 6f", False, [b"Hello"]),
        ("89 05 48 65 6c 6c 6f", False, [Ping(b"Hello")]),
        ("8a 85 37 fa 21 3d 7f 9f 4d 51 58", True, [Pong(b"Hello")]),
    ],
)
def test_reads_the_examples_of_the_rfc(data: str, masked: bool, events: Events) -> None:
    assert decode(bytes.fromhex(data), masked=masked) == events


def test_writes_the_examples_of_the_rfc() -> None:
    assert encode_header(Opcode.TEXT, 5).hex() == "8105"
    assert encode_header(Opcode.TEXT, 5, KEY).hex() == "818537fa213d"
    assert encode_header(Opcode.CONTINUATION, 2).hex() == "8002"
    assert encode_control(Opcode.PING, b"Hello").hex() == "890548656c6c6f"
    assert encode_control(Opcode.PONG, b"Hello", key=KEY).hex() == "8a8537fa213d7f9f4d5158"
    assert encode_header(Opcode.BINARY, 256).hex() == "827e0100"
    assert encode_header(Opcode.BINARY, 65536).hex() == "827f0000000000010000"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
@pytest.mark.parametrize("key", [None, KEY])
def test_another_implementation_reads_our_headers(size: int, key: bytes | None) -> None:
    header = encode_header(Opcode.BINARY, size, key)
    assert len(header) == header_size(header) <= MAX_HEADER
    assert read_by_peer(header + bytes(size), masked=key is not None).opcode == peer.Opcode.BINARY


@given(payload=st.binary(max_size=125), key=st.none() | st.binary(min_size=4, max_size=4))
def test_another_implementation_reads_our_control_frames(payload: bytes, key: bytes | None) -> None:
    frame = read_by_peer(encode_control(Opcode.PING, payload, key=key), masked=key is not None)
    assert (frame.opcode, frame.data) == (peer.Opcode.PING, payload)


@pytest.mark.parametrize("size", [1, 125, 126, 127, 65535, 65536, 100_000])
@pytest.mark.parametrize("masked", [False, True])
def test_reads_the_frames_of_another_implementation(size: int, masked: bool) -> None:
    payload = bytes(i & 0xFF for i in range(size))
    assert decode(by_peer(2, payload, mask=masked), masked=masked) == [payload]


# What is wrong with a frame.


def test_an_unmasked_client_frame_gives_out_nothing() -> None:
    """CASES D93."""
    assert code_of(by_peer(2, b"secret", mask=False), masked=True) == 1002
    assert code_of(by_peer(9, b"ping", mask=False), masked=True) == 1002


def test_a_masked_server_frame_gives_out_nothing() -> None:
    """CASES D93, the other way round: RFC 6455, section 5.1."""
    assert code_of(by_peer(2, b"secret", mask=True), masked=False) == 1002


@pytest.mark.parametrize("first", [0xC2, 0xA2, 0x92, 0xF2, 0xC9, 0x98])
def test_a_reserved_bit_is_an_error_at_once(first: int) -> None:
    """CASES D95."""
    assert code_of(bytes([first])) == 1002


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF])
def test_an_unknown_opcode_is_an_error_at_once(opcode: int) -> None:
    """CASES D96."""
    assert code_of(bytes([0x80 | opcode])) == 1002


@pytest.mark.parametrize("opcode", [8, 9, 10])
@pytest.mark.parametrize("length", [126, 127])
def test_a_control_frame_longer_than_125_is_an_error_at_its_second_byte(opcode: int, length: int) -> None:
    """CASES D97."""
    assert code_of(bytes([0x80 | opcode, length])) == 1002
    assert len(decode(by_peer(9, bytes(125)))) == 1


@pytest.mark.parametrize("opcode", [8, 9, 10])
def test_a_fragmented_control_frame_is_an_error_at_once(opcode: int) -> None:
    """CASES D98."""
    assert code_of(bytes([opcode])) == 1002


def test_a_continuation_needs_a_start() -> None:
    """CASES D102."""
    assert code_of(b"\x80") == 1002
    assert code_of(b"\x00") == 1002
    whole = by_peer(2, b"a", fin=False) + by_peer(0, b"b")
    assert outcome([whole + by_peer(0, b"c")], masked=False) == ([b"ab"], 1002)


@pytest.mark.parametrize("first", [0x82, 0x02, 0x81, 0x01])
def test_a_message_does_not_begin_inside_another(first: int) -> None:
    """CASES D102."""
    assert outcome([by_peer(2, b"a", fin=False), bytes([first])], masked=False) == ([b"a"], 1002)


def test_a_ping_between_fragments_comes_out_in_its_place() -> None:
    """CASES D103."""
    data = by_peer(2, b"a", fin=False) + by_peer(9, b"now") + by_peer(0, b"b")
    assert decode(data) == [b"a", Ping(b"now"), b"b"]


@pytest.mark.parametrize("data", [b"\x81", b"\x01", by_peer(1, b"text"), by_peer(1, b"\xff\xfe")])
def test_text_is_refused_as_soon_as_it_is_seen(data: bytes) -> None:
    """CASES D110, D111."""
    assert code_of(data) == 1003


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_close_code_that_may_not_be_sent_is_an_error(code: int) -> None:
    """CASES D112."""
    assert code_of(b"\x88\x02" + code.to_bytes(2, "big")) == 1002
    with pytest.raises(ValueError, match="may not be sent"):
        encode_close(code)


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_every_other_close_code_is_taken(code: int) -> None:
    """CASES D112."""
    assert decode(by_peer(8, peer.Close(code, "bye").serialize())) == [Close(code, "bye")]


def test_half_a_close_code_is_an_error() -> None:
    """CASES D113."""
    assert code_of(b"\x88\x01") == 1002


def test_a_close_reason_must_be_utf_8() -> None:
    """CASES D114."""
    assert code_of(b"\x88\x04\x03\xe8\xff\xfe") == 1007


def test_a_close_may_be_empty() -> None:
    assert decode(b"\x88\x00") == [Close(None)]
    assert encode_close(None) == b"\x88\x00"


def test_a_close_says_its_code() -> None:
    """CASES D115."""
    assert encode_close(1000).hex() == "880203e8"


@given(
    code=st.sampled_from(CloseCode),
    reason=st.text(),
    key=st.none() | st.binary(min_size=4, max_size=4),
)
def test_another_implementation_reads_our_close(code: CloseCode, reason: str, key: bytes | None) -> None:
    frame = read_by_peer(encode_close(code, reason, key=key), masked=key is not None)
    close = peer.Close.parse(frame.data)
    assert close.code == code
    assert reason.startswith(close.reason)
    assert close.reason == reason or 119 < len(close.reason.encode()) <= 123


@pytest.mark.parametrize(
    ("reason", "sent"),
    [("x" * 124, "x" * 123), ("é" * 62, "é" * 61), ("漢" * 42, "漢" * 41), ("😀" * 31, "😀" * 30)],
)
def test_a_close_reason_that_is_too_long_is_cut_between_characters(reason: str, sent: str) -> None:
    """RFC 6455, sections 5.5 and 5.5.1: at most 125 bytes with the code, and UTF-8."""
    assert peer.Close.parse(read_by_peer(encode_close(1000, reason), masked=False).data).reason == sent


def test_what_follows_a_close_is_ignored() -> None:
    """CASES D116."""
    decoder = Decoder(masked=False)
    assert feed(decoder, by_peer(8, b"") + by_peer(2, b"late")) == [Close(None)]
    assert decoder.closed
    assert decoder.at_boundary
    assert feed(decoder, by_peer(9, b"late") + b"\xff\xff") == []


def test_an_unsolicited_pong_is_no_error() -> None:
    """CASES D123."""
    assert decode(by_peer(10, b"")) == [Pong(b"")]


@pytest.mark.parametrize(
    "data",
    [
        "82 7f 80",  # 64 bits, the highest one set
        "82 7e 00 7d",  # 125 in 16 bits
        "82 7e 00 00",
        "82 7f 00 00 00 00 00 00",  # less than 65536 in 64 bits
    ],
)
def test_a_length_has_one_form_and_a_wrong_one_is_noticed_early(data: str) -> None:
    """RFC 6455, section 5.2: the minimal number of bytes, and the most significant bit is 0."""
    raw = bytes.fromhex(data)
    assert code_of(raw) == 1002
    assert outcome([raw[:-1]], masked=False) == ([], None)


@pytest.mark.parametrize("data", ["82 7e 00 7e", "82 7e ff ff", "82 7f 00 00 00 00 00 01 00 00", "82 7f 7f"])
def test_the_shortest_form_is_no_error(data: str) -> None:
    assert outcome([bytes.fromhex(data)], masked=False) == ([], None)


def test_an_error_comes_after_what_stood_before_it() -> None:
    assert outcome([by_peer(2, b"good") + b"\x83"], masked=False) == ([b"good"], 1002)


def test_an_error_is_a_protocol_error_with_a_text() -> None:
    with pytest.raises(ProtocolError, match="opcode"):
        feed(Decoder(masked=False), b"\x83")


# Messages without a byte.


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (by_peer(2, b""), [Empty()]),
        (by_peer(2, b"", fin=False) + by_peer(0, b"", fin=False) + by_peer(0, b""), [Empty()]),
        (by_peer(2, b"", fin=False) + by_peer(9, b"x") + by_peer(0, b""), [Ping(b"x"), Empty()]),
        (by_peer(2, b"", fin=False) + by_peer(0, b"a"), [b"a"]),
        (by_peer(2, b"a", fin=False) + by_peer(0, b""), [b"a"]),
        (by_peer(2, b"a") + by_peer(2, b""), [b"a", Empty()]),
        (by_peer(2, b"", fin=False), []),
    ],
)
def test_only_a_whole_message_without_a_byte_is_empty(data: bytes, events: Events) -> None:
    assert decode(data) == events


# Where the stream may be cut.


def test_knows_whether_a_frame_has_begun() -> None:
    """CASES D120."""
    decoder = Decoder(masked=True)
    frame = by_peer(2, b"Hello", mask=True)
    assert decoder.at_boundary
    for i, byte in enumerate(frame, 1):
        feed(decoder, bytes([byte]))
        assert decoder.at_boundary == (i == len(frame))


def test_knows_whether_a_message_is_open() -> None:
    """CASES D120."""
    decoder = Decoder(masked=False)
    feed(decoder, by_peer(2, b"a", fin=False))
    assert decoder.at_boundary
    assert decoder.in_message
    feed(decoder, by_peer(9, b""))
    assert decoder.in_message
    feed(decoder, by_peer(0, b"b"))
    assert not decoder.in_message


TEN_FRAMES = [
    by_peer(2, b"first", mask=True),
    by_peer(9, b"ping", mask=True),
    by_peer(2, bytes(range(200)), mask=True),
    by_peer(2, b"", mask=True),
    by_peer(2, b"fragment", fin=False, mask=True),
    by_peer(10, b"", mask=True),
    by_peer(0, b"", fin=False, mask=True),
    by_peer(0, b"the rest", mask=True),
    by_peer(9, b"", mask=True),
    by_peer(8, peer.Close(1001, "off").serialize(), mask=True),
]
TEN_EVENTS = [
    b"first",
    Ping(b"ping"),
    bytes(range(200)),
    Empty(),
    b"fragment",
    Pong(b""),
    b"the rest",
    Ping(b""),
    Close(1001, "off"),
]


@pytest.mark.parametrize("cut", range(len(b"".join(TEN_FRAMES)) + 1))
def test_a_script_may_be_cut_at_any_byte(cut: int) -> None:
    """CASES D122."""
    script = b"".join(TEN_FRAMES)
    assert outcome([script[:cut], script[cut:]], masked=True) == (TEN_EVENTS, None)


def test_a_script_may_come_byte_by_byte() -> None:
    """CASES D122."""
    script = b"".join(TEN_FRAMES)
    assert outcome([bytes([byte]) for byte in script], masked=True) == (TEN_EVENTS, None)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


CUTS = st.lists(st.integers(0, 400), max_size=8)


@given(data=st.binary(max_size=200), cuts=CUTS, masked=st.booleans())
def test_random_bytes_mean_the_same_in_any_pieces(data: bytes, cuts: list[int], masked: bool) -> None:
    """Only a FrameError may come out: ``outcome`` catches no other."""
    assert outcome(pieces_of(data, cuts), masked=masked) == outcome([data], masked=masked)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, Events]:
    """Give bytes by the other implementation, and the events that they stand for."""
    data = b""
    events: Events = []
    for payloads in draw(st.lists(st.lists(st.binary(max_size=140), min_size=1, max_size=4), max_size=4)):
        for i, payload in enumerate(payloads):
            data += by_peer(0 if i else 2, payload, fin=i == len(payloads) - 1, mask=True)
            events += [payload] if payload else []
            if i == len(payloads) - 1 and not any(payloads):
                events.append(Empty())
            if draw(st.booleans()):
                ping = draw(st.binary(max_size=125))
                data += by_peer(9, ping, mask=True)
                events.append(Ping(ping))
    return data, joined(events)


@given(conversation=conversations(), cuts=CUTS)
def test_understands_another_implementation_in_any_pieces(
    conversation: tuple[bytes, Events],
    cuts: list[int],
) -> None:
    data, events = conversation
    assert outcome(pieces_of(data, cuts), masked=True) == (events, None)


# What it costs.


def test_payload_is_a_view_into_what_was_fed() -> None:
    data = memoryview(bytearray(by_peer(2, b"Hello", mask=True)))
    (event,) = Decoder(masked=True).feed(data)
    assert isinstance(event, Payload)
    assert event.data.obj is data.obj
    assert bytes(data[6:]) == b"Hello"  # unmasked in place, behind the header


def test_tiny_frames_leave_nothing_behind() -> None:
    """CASES D108, the decoder's part."""
    batch, decoder, total = by_peer(2, b"x") * 1000, Decoder(masked=False), 0
    feed(decoder, batch)
    tracemalloc.start()
    try:
        for _ in range(50):
            total += size_of(decoder.feed(memoryview(bytearray(batch))))
        assert total == 50_000
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("masked", [False, True])
def test_a_frame_of_a_gigabyte_passes_in_constant_memory(masked: bool) -> None:
    """CASES D125."""
    size, step = 1 << 30, 256 * 1024
    decoder, buffer = Decoder(masked=masked), memoryview(bytearray(step))
    header = encode_header(Opcode.BINARY, size, KEY if masked else None)
    tracemalloc.start()
    try:
        assert feed(decoder, header) == []
        moved = 0
        while not decoder.at_boundary:
            moved += size_of(decoder.feed(buffer))
        assert moved == size
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_payload_may_take_another_way() -> None:
    decoder = Decoder(masked=False)
    frame = by_peer(2, b"spliced away") + by_peer(2, b"")
    head = frame[: header_size(frame)]
    assert feed(decoder, head) == []
    assert decoder.payload_left == 12
    decoder.skip(12)
    assert decoder.at_boundary
    assert feed(decoder, frame[len(head) + 12 :]) == [Empty()]
    with pytest.raises(ValueError, match="not payload"):
        decoder.skip(1)


def test_a_control_frame_that_is_too_long_is_not_written() -> None:
    with pytest.raises(ValueError, match="125"):
        encode_control(Opcode.PING, bytes(126))


# The short way for small messages.


@given(
    payload=st.binary(min_size=0, max_size=400),
    key=st.binary(min_size=4, max_size=4) | st.none(),
    masked=st.booleans(),
    cut=st.integers(0, 3),
    more=st.binary(max_size=3),
)
def test_the_short_way_takes_what_the_long_way_takes_or_nothing(
    payload: bytes, key: bytes | None, masked: bool, cut: int, more: bytes
) -> None:
    data = encode_header(Opcode.BINARY, len(payload), key)
    body = bytearray(payload)
    if key:
        mask(body, key)
    wire = (data + body)[: len(data) + len(body) - cut] + more
    assume(wire)
    short = Decoder(masked=masked)
    taken = short.take_whole(memoryview(bytearray(wire)))
    if taken is not None:
        assert feed(Decoder(masked=masked), wire) == [bytes(taken)]
        assert short.at_boundary
    elif bool(key) == masked and not cut and not more:
        assert not payload


@given(data=st.binary(min_size=1, max_size=300), masked=st.booleans())
def test_the_short_way_is_no_way_round_the_rules(data: bytes, masked: bool) -> None:
    taken = Decoder(masked=masked).take_whole(memoryview(bytearray(data)))
    if taken is not None:
        assert feed(Decoder(masked=masked), data) == [bytes(taken)]


@pytest.mark.parametrize(
    "before",
    ["02 01 61", "82 02 61", "82", "88 00"],
    ids=["in a message", "in a frame", "in a header", "after a Close"],
)
def test_the_short_way_takes_nothing_where_no_new_message_may_begin(before: str) -> None:
    decoder = Decoder(masked=False)
    feed(decoder, bytes.fromhex(before))
    assert decoder.take_whole(memoryview(bytearray.fromhex("82 01 62"))) is None
