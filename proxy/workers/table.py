"""
How many connections each worker has at each listener: memory that all workers share.

Each writes its own row, and reads those of the others, so nothing has to be locked. Who has more than others
leaves the next client to them: the kernel wakes all who wait at a socket, and the first one to come gets it.
"""

import mmap
import os
import tempfile
from array import array
from zlib import crc32

from proxy.config import MOST_WORKERS

_COLUMNS = 256  # listeners share one if there are more, or if chance will have it
_ABSENT = 0xFFFFFFFF
_SIZE = MOST_WORKERS * _COLUMNS * array("I").itemsize

# Connections that one may have more than another without leaving any to it. With short ones the difference
# goes up and down by itself, and each that is left costs a turn of the event loop.
_LEAST_AHEAD = 3
_MOST_TURNS = 64  # for which a client is left
_MORE_TURNS = 1024  # for one that would only be refused


class Table:
    """The memory, which the supervisor makes and workers inherit."""

    def __init__(self, fd: int = -1) -> None:
        """Make it, or take over one that is there; raises ``OSError``."""
        is_new = fd < 0
        self.fd = _make_file() if is_new else fd
        self._cells = memoryview(mmap.mmap(self.fd, _SIZE)).cast("I")
        if is_new:
            for row in range(MOST_WORKERS):
                self.leave(row)

    def leave(self, row: int) -> None:
        """Have nobody in a row, to whom nothing may be left."""
        self._cells[row * _COLUMNS : (row + 1) * _COLUMNS] = array("I", [_ABSENT] * _COLUMNS)

    def put(self, row: int, column: int, count: int) -> None:
        """Say how many a worker has."""
        self._cells[row * _COLUMNS + column] = count

    def least(self, row: int, column: int) -> int:
        """Tell how few another worker has; more than anybody can have, if there is no other."""
        others = self._cells[column::_COLUMNS].tolist()
        del others[row]
        return min(others)


class Seat:
    """What one worker does with the clients of one listener."""

    def __init__(self, table: Table, row: int, listener: str) -> None:
        self._table = table
        self._row = row
        self._column = crc32(listener.encode()) % _COLUMNS
        self._left = 0  # how often the next client has been left to others

    def publish(self, count: int) -> None:
        """Say how many there are."""
        self._table.put(self._row, self._column, count)

    def leaves(self, count: int, most: int) -> bool:
        """
        Tell whether the next client is left to others in this turn, who have fewer than this ``count``.

        ``most`` is how many the worker may have; the others have as many, or one more or less.

        The further ahead, the more turns it is left for: as many as it takes to wake somebody up. But if
        nobody comes by then, it is taken.
        """
        self.publish(count)
        least = self._table.least(self._row, self._column)
        ahead = count - least
        if ahead < _LEAST_AHEAD or ahead < least // 8:
            self._left = 0
            return False
        is_full = count >= most > least + 1
        self._left += 1
        if self._left <= (_MORE_TURNS if is_full else min(ahead, _MOST_TURNS)):
            return True
        self._left = 0
        return False


def _make_file() -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("proxy-server")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, _SIZE)
    return fd
