"""
Read and write descriptors that others gave us, waiting as a blocking one would.

They can be non-blocking without our doing: the flag belongs to the open file, which we share with a shell,
with ssh, or with whoever has the same terminal. So "not now" is no end, and no error. All this blocks the
thread that calls it, with all its greenlets.
"""

import os
import select

from gevent.monkey import get_original

_poll = get_original("select", "poll")


def read(fd: int, count: int) -> bytes:
    """Read up to ``count`` bytes; b"" is the end."""
    while True:
        try:
            return os.read(fd, count)
        except BlockingIOError:
            _wait(fd, select.POLLIN)


def write(fd: int, data: bytes | memoryview) -> int:
    """Write some of ``data``, and return how much."""
    while True:
        try:
            return os.write(fd, data)
        except BlockingIOError:
            _wait(fd, select.POLLOUT)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data``."""
    rest = memoryview(data)
    while rest:
        rest = rest[write(fd, rest) :]


def _wait(fd: int, events: int) -> None:
    poll = _poll()
    poll.register(fd, events)
    poll.poll()
