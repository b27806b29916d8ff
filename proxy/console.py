"""
Standard input, output and error, as the command line uses them, and its exit codes.

Nothing can be assumed of the three: they may be closed, non-blocking, or on a full disk.
"""

import getpass
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from proxy.errors import ProxyError, reason_of
from proxy.net import descriptors

# Ended as asked; failed at run time; bad usage or configuration; and a signal's number is added to the last.
OK, FAILED, BAD_USAGE, KILLED = 0, 1, 2, 128

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_READ_SIZE = 4096  # bytes
_MOST = 1 << 20  # bytes of a line
_COLUMNS = 80  # of a terminal that does not say how many it has
_ERASE = "\x1b[K"  # what stands behind the cursor (ECMA-48, EL)


class OutputError(ProxyError):
    """Standard output cannot be written; ``unwanted`` if whoever read it has had enough."""

    def __init__(self, exc: OSError) -> None:
        super().__init__(f"standard output: {reason_of(exc)}")
        self.unwanted = isinstance(exc, BrokenPipeError)


class InputError(ProxyError):
    """What stands on standard input cannot be used."""


class _Raw(io.RawIOBase):
    """A descriptor that takes all that is written, and stays open."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        descriptors.write_all(self._fd, data)
        return len(data)


class _Output(_Raw):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as exc:
            raise OutputError(exc) from exc


def take_over() -> None:
    """Make ``print`` wait where a descriptor is not ready, and fail where it cannot be written."""
    for fd in (_STDIN, _STDOUT, _STDERR):
        _open_if_closed(fd)
    sys.stdout = _text(_Output(_STDOUT), sys.stdout)
    sys.stderr = _text(_Raw(_STDERR), sys.stderr)


def _open_if_closed(fd: int) -> None:
    """Have no socket get the number of a standard descriptor."""
    try:
        os.fstat(fd)
    except OSError:
        # It is the lowest number that is free. What is printed then fails, and is not lost in silence.
        os.open(os.devnull, os.O_WRONLY if fd == _STDERR else os.O_RDONLY)


def _text(raw: _Raw, given: Any) -> io.TextIOWrapper:
    encoding = getattr(given, "encoding", None) or "utf-8"
    lines = raw.isatty() or raw.fileno() == _STDERR
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines)


def flush() -> None:
    """Write what was printed; raises ``OutputError``."""
    sys.stdout.flush()


def give_up_output() -> None:
    """Let all that is still to be printed go nowhere: it could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """
    Give what tells how far something has come, on a line of a terminal that is gone afterwards.

    Nothing is told where standard error is no terminal. An empty text takes the line away, so that something
    else can be printed.
    """
    is_shown = os.isatty(_STDERR) and os.environ.get("TERM", "dumb") != "dumb"

    def tell(text: str) -> None:
        if is_shown:
            with suppress(OSError):
                columns = os.get_terminal_size(_STDERR).columns or _COLUMNS
                print(f"\r{text[: columns - 1]}{_ERASE}", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        tell("")


def read_secret(prompt: str, again: str = "") -> str:
    """
    Ask for a line without showing it, or read it from standard input; raises ``InputError``.

    Who types it may be asked ``again``.
    """
    if os.isatty(_STDIN):
        line = getpass.getpass(prompt)
        if again and getpass.getpass(again) != line:
            raise InputError("the two are not the same")
        return line
    data = b""
    while b"\n" not in data and len(data) < _MOST and (more := descriptors.read(_STDIN, _READ_SIZE)):
        data += more
    try:
        return data.partition(b"\n")[0].removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8") from None
