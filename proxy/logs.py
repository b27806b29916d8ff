"""
Logs that cannot stop the proxy.

A line is put into a bounded queue, and a native thread writes it: a terminal that is paused, a pipe
that nobody reads or a disk that is full blocks that thread and nothing else. What does not fit is
dropped and counted.
"""

import json
import logging
import os
import sys
import time
from _queue import SimpleQueue  # queue.SimpleQueue as it is in C: the patched one is for greenlets
from collections import OrderedDict
from contextlib import suppress

from gevent.monkey import get_original

from proxy.net.threads import start_thread

QUEUE_SIZE = 10_000  # lines
COLLAPSE = 30.0  # seconds for which a repeated error is only counted
_COLLAPSE_AT_MOST = 1000  # different errors, such as one a client
_FLUSH_TIMEOUT = 1.0  # seconds
_BATCH = 0.02  # seconds between two writes
_native_sleep = get_original("time", "sleep")


class LineWriter:
    """Writes lines to a file descriptor or a file, from a thread of its own."""

    def __init__(self, path: str = "") -> None:
        """Open the file, or take standard error; raises ``OSError``."""
        self.path = path
        self._fd = _open(path) if path else 2
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._taken_in = 0  # counted here
        self._written = 0  # counted in the thread: no counter has two writers
        self._dropped = 0
        self._told = 0
        start_thread(self._run)

    def write(self, line: str) -> None:
        """Write a line some time soon, or drop it if the log does not keep up."""
        if self._taken_in - self._written >= QUEUE_SIZE:
            self._dropped += 1
            return
        self._taken_in += 1
        self._queue.put(line)

    def reopen(self) -> None:
        """Go on in the file that has the name now: the old one may have been moved. Raises ``OSError``."""
        if self.path:
            new = _open(self.path)
            # In one step, and under the same number: the thread may be writing at this moment.
            os.dup2(new, self._fd, inheritable=False)
            os.close(new)

    def close(self) -> None:
        """Write what is left, and end the thread; nothing may be written after that."""
        self._queue.put(None)

    def flush(self) -> None:
        """Wait a moment for what is still to be written."""
        deadline = time.monotonic() + _FLUSH_TIMEOUT
        while self._written < self._taken_in and time.monotonic() < deadline:
            time.sleep(0.002)

    def _run(self) -> None:
        while True:
            taken = [self._queue.get()]
            while not self._queue.empty():
                taken.append(self._queue.get())
            lines = [line for line in taken if line is not None]
            count = len(lines)
            if self._dropped > self._told:
                dropped, self._told = self._dropped - self._told, self._dropped
                lines.insert(0, f"({dropped} log lines were dropped: the log did not keep up)")
            # Nobody is left to be told of an error here.
            with suppress(OSError):
                self._write_all("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
            self._written += count
            if None in taken:
                os.close(self._fd)
                return
            # Under load this makes batches: waking the thread for each line took a fifth of the
            # processor time of short connections.
            _native_sleep(_BATCH)

    def _write_all(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]


def _open(path: str) -> int:
    # A pipe that nobody reads is an error: to wait for a reader, here, would stop all of the proxy.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o640)
    os.set_blocking(fd, True)  # writing may wait, as that is the thread's business
    return fd


class _Handler(logging.Handler):
    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write(self.format(record))
        except Exception as exc:  # a log line must never be what fails
            self._writer.write(f"cannot format a log line: {exc!r}")


class TextFormatter(logging.Formatter):
    """``time level message``, on one line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Keep whatever the message holds on its line."""
        record.levelname = record.levelname.lower()
        return _one_line(super().formatMessage(record))


class JsonFormatter(TextFormatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        time_ = f"{self.formatTime(record, self.datefmt)}.{record.msecs:03.0f}Z"
        entry = {"time": time_, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class Collapse(logging.Filter):
    """
    Lets an error through once, and then counts its repetitions for a while.

    It looks at records that name what they are about, as ``extra={"collapse": name}``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide on a record, and tell of those that were held back."""
        subject = getattr(record, "collapse", None)
        if subject is None:
            return True
        key = (str(record.msg), str(subject))
        since, repeated = self._seen.get(key, (-COLLAPSE, 0))
        if record.created - since < COLLAPSE:
            self._seen[key] = (since, repeated + 1)
            return False
        if repeated:
            record.msg = f"{record.getMessage()} ({repeated} more like this since the last line)"
            record.args = ()
        self._seen[key] = (record.created, 0)
        if len(self._seen) > _COLLAPSE_AT_MOST:
            self._seen.popitem(last=False)
        return True


def set_up(writer: LineWriter, level: str, *, as_json: bool = False) -> None:
    """Send the log of this package to a writer."""
    handler = _Handler(writer)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    handler.addFilter(Collapse())
    logger = logging.getLogger("proxy")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(message: str) -> None:
    """Print a line for the one who started us."""
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)
