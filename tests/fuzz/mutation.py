"""Inputs for a parser: right ones, put together anew and spoilt in a few places."""

from collections.abc import Sequence
from random import Random

ODD = (
    *(bytes([each]) for each in b"\0\n\r\t :,\"'#[]=%\x7f\x80\xff"),
    b"\r\n",
    "é".encode(),
    "。".encode(),
)
LENGTHS = (0, 1, 125, 126, 127, 128, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**63 - 1, 2**63)
MOST = 20_000  # bytes of an input: more than any head may have


def make(random: Random, seeds: Sequence[bytes]) -> bytes:
    """Make an input from right ones; one in eight stays right."""
    data = bytearray(random.choice(seeds))
    if random.random() < 0.25:
        data += random.choice(seeds)
    for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        random.choice(_WAYS)(random, data, seeds)
    return bytes(data[:MOST])


def pieces(random: Random, data: bytes) -> list[bytes]:
    """Cut an input into random pieces, often at a few places, sometimes everywhere."""
    if random.random() < 0.1:
        return [data[place : place + 1] for place in range(len(data))]
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(1, 5)))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if end > begin]


def _flip(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _write(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _insert(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    place = random.randrange(len(data) + 1)
    data[place:place] = random.choice(ODD)


def _truncate(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    del data[random.randrange(len(data) + 1) :]


def _remove(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    place = random.randrange(len(data) + 1)
    del data[place : place + random.randrange(1, 9)]


def _repeat(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    begin = random.randrange(len(data) + 1)
    part = bytes(data[begin : begin + random.randrange(1, 40)])
    data[begin:begin] = part * random.choice((1, 1, 2, 3, 10, 300))


def _splice(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = random.choice(seeds)
    data[random.randrange(len(data) + 1) :] = other[random.randrange(len(other) + 1) :]


def _swap(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Change the places of two lines."""
    lines = bytes(data).splitlines(keepends=True)
    if len(lines) > 1:
        one, other = random.randrange(len(lines)), random.randrange(len(lines))
        lines[one], lines[other] = lines[other], lines[one]
        data[:] = b"".join(lines)


def _declare(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Write a length from the edge of what fits, in some width or in digits."""
    length, place = random.choice(LENGTHS), random.randrange(len(data) + 1)
    width = random.choice((0, 1, 2, 4, 8))
    text = (length % 256**width).to_bytes(width, "big") if width else str(length).encode()
    data[place : place + len(text)] = text


_WAYS = (_flip, _write, _insert, _truncate, _remove, _repeat, _splice, _swap, _declare)
