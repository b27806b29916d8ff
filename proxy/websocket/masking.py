"""
Mask and unmask payload in place (RFC 6455, section 5.3).

The work is one XOR pass over every byte that a client sends, so it belongs into C. The websockets
package brings a function for it; without it, the standard library does as well as it can.
"""

import os
from collections.abc import Callable, Iterator
from functools import cache

Buffer = memoryview | bytearray

apply_mask: Callable[[Buffer, bytes], bytes] | None
try:
    from websockets.speedups import apply_mask
except ImportError:
    apply_mask = None

_NO_KEY = bytes(4)
# Below this many bytes one XOR of big integers is faster than four translations.
_SMALL = 512


def mask(buffer: Buffer, key: bytes, phase: int = 0) -> None:
    """
    XOR a buffer with a masking key, in place; doing it twice gives back what was there.

    ``phase`` is where the buffer begins in its payload, so that a payload can be done in pieces.
    """
    if key == _NO_KEY:
        return
    phase &= 3
    if phase:
        key = key[phase:] + key[:phase]
    buffer[:] = xor(buffer, key) if apply_mask is None else apply_mask(buffer, key)


def _make_keys() -> Iterator[bytes]:
    while True:
        random = os.urandom(1024)  # one system call for 256 frames
        for start in range(0, len(random), 4):
            yield random[start : start + 4]


_keys = _make_keys()


def new_key() -> bytes:
    """Give a masking key that nobody can predict (RFC 6455, section 5.3)."""
    return next(_keys)


def xor(data: Buffer, key: bytes) -> bytes | bytearray:
    """XOR data with a repeated key by means of the standard library alone."""
    return _xor_small(data, key) if len(data) < _SMALL else _xor_large(data, key)


def _xor_small(data: Buffer, key: bytes) -> bytes:
    size = len(data)
    repeated = int.from_bytes(key * (size // 4 + 1), "little") & ((1 << 8 * size) - 1)
    return (int.from_bytes(data, "little") ^ repeated).to_bytes(size, "little")


def _xor_large(data: Buffer, key: bytes) -> bytearray:
    # A copy, because strides are fast on a bytearray and ten times slower on a memoryview of one.
    result = bytearray(data)
    for i, byte in enumerate(key):
        result[i::4] = result[i::4].translate(_xor_table(byte))
    return result


@cache
def _xor_table(byte: int) -> bytes:
    return bytes(i ^ byte for i in range(256))
