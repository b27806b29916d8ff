"""
Pipes, through which the kernel moves bytes from one socket to another without copying (splice(2)).

What may never be violated:

- A pipe is empty whenever it is filled. So EAGAIN can only mean that the source has nothing, and never
  that the pipe is full. (That cannot be told by bytes: it is full of slots, and 60 small segments do it.)
- A pipe is taken only while bytes are in flight, so an idle connection holds none.
- A pipe that is given back with something in it is closed: the bytes would go to somebody else.
- Connections that are stalled hold a bounded number of pipes. Whoever gets none copies.
"""

import errno
import fcntl
import os
import sys
from contextlib import suppress

from gevent.monkey import get_original

# gevent's close waits for the next turn of its loop; these descriptors are nobody else's.
_close = get_original("os", "close")

PIPE_SIZE = 256 * 1024  # bytes
BIG_PIPE_SIZE = 1024 * 1024  # bytes: what an ordinary user may have by default (pipe(7))
_MOST_PIPES = 256  # so that stalled connections hold at most 64 MiB of them
_MOST_BIG_PIPES = 4  # hardly anything stays in them, so they are enough for any number of connections
_MOST_WAITING = 32  # of each kind, for the next who needs one

_SET_SIZE = getattr(fcntl, "F_SETPIPE_SZ", 1031)
_GET_SIZE = getattr(fcntl, "F_GETPIPE_SZ", 1032)
_FLAGS = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK


def is_available() -> bool:
    """Tell whether the system has it, and lets us: some sandboxes filter system calls that few make."""
    if sys.platform != "linux" or not hasattr(os, "splice"):
        return False
    ends: list[int] = []
    try:
        for _ in range(2):
            ends += os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.splice(ends[0], ends[3], 1, flags=_FLAGS)
    except OSError as exc:  # as nothing is in the pipe
        return exc.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES)
    finally:
        for each in ends:
            _close(each)
    return True


AVAILABLE = is_available()


class Pipe:
    """A non-blocking pipe."""

    __slots__ = ("_pool", "_reader", "_writer", "size")

    def __init__(self, size: int = PIPE_SIZE, pool: "PipePool | None" = None) -> None:
        """Raises ``OSError`` when the system, or this user, has no more to give."""
        self._pool = pool
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # An ordinary user may have only so much memory in pipes. What cannot be had is done without.
        for each in (size, PIPE_SIZE):
            with suppress(OSError):
                fcntl.fcntl(self._writer, _SET_SIZE, each)
                break
        self.size = fcntl.fcntl(self._writer, _GET_SIZE)

    def fill(self, source: int, most: int) -> int:
        """Move what a socket has into the empty pipe; raises ``BlockingIOError`` if it has nothing."""
        return os.splice(source, self._writer, min(most, self.size), flags=_FLAGS)

    def drain(self, sink: int, count: int) -> int:
        """Move bytes to a socket, as many as it takes; raises ``BlockingIOError`` if it takes none."""
        return os.splice(self._reader, sink, count, flags=_FLAGS)

    def read(self, count: int) -> bytes:
        """Take bytes out, into memory."""
        return os.read(self._reader, count)

    def give_back(self, *, empty: bool = True) -> None:
        """Return it to its pool; one that is not empty can serve nobody else."""
        assert self._pool is not None
        self._pool.give_back(self, empty=empty)

    def close(self) -> None:
        """Close both ends, with whatever is still in it."""
        _close(self._reader)
        _close(self._writer)


class PipePool:
    """The pipes of this process."""

    def __init__(self, most: int = _MOST_PIPES, size: int = PIPE_SIZE) -> None:
        self._free: list[Pipe] = []
        self._most = most
        self._size = size
        self.lent = 0

    def take(self) -> Pipe | None:
        """Take an empty pipe; None if there is none to be had: then copying has to do."""
        if self._free:
            self.lent += 1
            return self._free.pop()
        if self.lent >= self._most:
            return None
        try:
            pipe = Pipe(self._size, self)
        except OSError:
            return None
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe, *, empty: bool = True) -> None:
        """Take a pipe back."""
        self.lent -= 1
        if empty and len(self._free) < _MOST_WAITING:
            self._free.append(pipe)
        else:
            pipe.close()


PIPES = PipePool()
MOST_PIPES = _MOST_PIPES + _MOST_BIG_PIPES + 2 * _MOST_WAITING  # of both
# For those that move much: each operation wakes both peers, so fewer and bigger ones cost less. With 16
# streams they took 0.21 instead of 0.51 CPU seconds per GiB.
BIG_PIPES = PipePool(_MOST_BIG_PIPES, BIG_PIPE_SIZE)
