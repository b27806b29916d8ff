"""What RFC 6455 forbids, and what it says the answer is, for either role."""

from typing import NamedTuple

import pytest

from tests.wire.websocket import BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, close_payload, frame

RSV1, RSV2, RSV3 = 0x40, 0x20, 0x10

Codes = tuple[int, ...]


class Violation(NamedTuple):
    """Frames that no peer may send; of the last one, perhaps only the beginning."""

    frames: tuple[tuple[int, bytes], ...]
    codes: Codes = (1002,)
    raw_header: bytes = b""

    def written(self, key: bytes | None) -> bytes:
        """Give the bytes of the frames, masked if there is a key."""
        said = b"".join(frame(first, payload, key) for first, payload in self.frames)
        if not self.raw_header:
            return said
        first, second, *rest = self.raw_header
        return said + bytes([first, second | (0 if key is None else 0x80), *rest]) + (key or b"")


def violation(
    number: str, name: str, *frames: tuple[int, bytes], codes: Codes = (1002,)
) -> pytest.ParameterSet:
    return pytest.param(Violation(frames, codes), id=f"{number} {name}")


def bad_length(name: str, raw: str) -> pytest.ParameterSet:
    return pytest.param(Violation((), raw_header=bytes.fromhex(raw)), id=f"section 5.2 {name}")


def closing(code: int) -> pytest.ParameterSet:
    return violation("D112", f"close code {code}", (FIN | CLOSE, close_payload(code)))


def bad_reason(name: str, reason: bytes) -> pytest.ParameterSet:
    return violation(
        "D114", f"a reason with {name}", (FIN | CLOSE, close_payload(1000, reason)), codes=(1007,)
    )


VIOLATIONS = [
    violation("D95", "RSV1", (FIN | RSV1 | BINARY, b"x")),
    violation("D95", "RSV2", (FIN | RSV2 | BINARY, b"x")),
    violation("D95", "RSV3", (FIN | RSV3 | BINARY, b"x")),
    violation("D95", "RSV1 in a ping", (FIN | RSV1 | PING, b"")),
    violation("D95", "RSV1 in a continuation", (BINARY, b""), (FIN | RSV1 | CONTINUATION, b"x")),
    *(
        violation("D96", f"opcode {opcode:X}", (FIN | opcode, b"x"))
        for opcode in (*range(0x3, 0x8), *range(0xB, 0x10))
    ),
    violation("D97", "a ping of 126 bytes", (FIN | PING, b"x" * 126)),
    violation("D97", "a pong of 126 bytes", (FIN | PONG, b"x" * 126)),
    violation("D97", "a close of 126 bytes", (FIN | CLOSE, close_payload(1000, b"x" * 124))),
    violation("D97", "a ping of 65536 bytes", (FIN | PING, b"x" * 65536)),
    violation("D98", "a fragmented ping", (PING, b"x")),
    violation("D98", "a fragmented pong", (PONG, b"x")),
    violation("D98", "a fragmented close", (CLOSE, close_payload(1000))),
    violation("D102", "a continuation of nothing", (FIN | CONTINUATION, b"x")),
    violation("D102", "a first fragment of nothing", (CONTINUATION, b"x")),
    violation("D102", "a message in a message", (BINARY, b""), (FIN | BINARY, b"x")),
    violation("D102", "text in a message", (BINARY, b""), (FIN | TEXT, b"x"), codes=(1002, 1003)),
    violation("D110", "text", (FIN | TEXT, b"Hello"), codes=(1003,)),
    violation("D110", "empty text", (FIN | TEXT, b""), codes=(1003,)),
    violation("D110", "a fragment of text", (TEXT, b"Hel"), codes=(1003,)),
    violation("D111", "text that is not UTF-8", (FIN | TEXT, b"\xff\xfe"), codes=(1003, 1007)),
    *map(closing, (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)),
    violation("D113", "a close of one byte", (FIN | CLOSE, b"\x03")),
    bad_reason("no UTF-8", b"\xff"),
    bad_reason("half a character", b"good\xc3"),
    bad_reason("a surrogate", b"\xed\xa0\x80"),
    # RFC 6455, section 5.2: the shortest form, and the most significant bit is 0.
    bad_length("a 64-bit length with its highest bit", "82 7f 8000000000000000"),
    bad_length("125 in 16 bits", "82 7e 007d"),
    bad_length("65535 in 64 bits", "82 7f 000000000000ffff"),
    bad_length("0 in 64 bits", "82 7f 0000000000000000"),
]
