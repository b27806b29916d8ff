"""
Logs that cannot stop the proxy.

A line is put into a bounded queue, and a native thread writes it: a terminal that is paused, a pipe
that nobody reads or a disk that is full blocks that thread and nothing else. It goes on when it can,
with the lines that have waited. What does not fit into the queue is counted, and told then.
"""

import logging
import os
import time
from _queue import SimpleQueue  # queue.SimpleQueue as it is in C: the patched one is for greenlets
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from select import PIPE_BUF

import gevent
from gevent.monkey import get_original

from proxy.accesslog import AccessLog, nowhere
from proxy.collapse import Collapse
from proxy.config import ProxyConfig
from proxy.errors import LimitError, reason_of
from proxy.lines import JsonFormatter, TextFormatter, make_record, say_in_json
from proxy.net import descriptors
from proxy.net.limits import from_reserve
from proxy.net.threads import start_thread

QUEUE_SIZE = 10_000  # lines
_FLUSH_TIMEOUT = 1.0  # seconds
_BATCH = 0.02  # seconds between two writes
_TRY_AGAIN = 0.5  # seconds between two attempts to write where it fails
_OPEN_AGAIN = 1.0  # seconds between two attempts to open an access log

_native_sleep = get_original("time", "sleep")
_native_lock = get_original("_thread", "allocate_lock")

log = logging.getLogger(__name__)


class Logs:
    """The log and the access log of a program, which are written as its configuration says."""

    def __init__(self) -> None:
        self.access = AccessLog(nowhere)
        self._config: ProxyConfig | None = None
        self._stderr = LineWriter()
        self._file: LineWriter | None = None  # of the access log, if it has one
        self._opener: gevent.Greenlet[[], None] | None = None  # while it could not be opened

    def change(self, config: ProxyConfig) -> tuple[str, ...]:
        """
        Write the logs where, and as, a configuration says; returns what there is to say of it.

        A file is opened anew, also under the same name: the old one may have been moved.
        """
        self._config = config
        as_json, path = config.log_format == "json", config.access_log
        set_up(self._stderr, config.log_level, as_json=as_json)
        old, notes = self._file, tuple[str, ...]()
        try:
            self._file = self._open(path)
        except (OSError, LimitError) as exc:
            where = self._file.path if self._file else "stderr"
            if where == path:
                where = "the file that had this name before"
            notes = (f"access_log {path}: {reason_of(exc)}; it is written to {where} until it can be opened",)
            self._opener = self._opener or gevent.spawn(self._open_later)
        writer = self._file or self._stderr
        writer.formatter = self._stderr.formatter
        self.access.change(nowhere if path == "off" else writer.write, as_json=as_json)
        if old and old is not self._file:
            old.close()
        return notes

    def finish(self) -> None:
        """Write all that is to be written yet, and open nothing any more."""
        if self._opener:
            self._opener.kill(block=False)
        self.flush()

    def flush(self) -> None:
        """Write all that is to be written yet."""
        finish()
        if self._file:
            self._file.flush()

    def _open(self, path: str) -> "LineWriter | None":
        if path in ("-", "off"):
            return None
        if self._file and self._file.path == path:
            self._file.reopen()
            return self._file
        return LineWriter(path, partial(_tell_of_access_log, path))

    def _open_later(self) -> None:
        # Its folder may be mounted later, its disk be full, its reader be about to start.
        while True:
            gevent.sleep(_OPEN_AGAIN)
            if self._config and not self.change(self._config):
                break
        self._opener = None
        if self._file:
            log.info("access_log %s is open", self._file.path)


def _tell_of_access_log(path: str, trouble: str) -> None:
    about = {"collapse": (path, trouble)}
    if trouble:
        log.error("access_log %s: %s; its lines wait until it can be written", path, trouble, extra=about)
    else:
        log.info("access_log %s is written again", path, extra=about)


class LineWriter:
    """
    Writes lines to a file descriptor or a file, from a thread of its own.

    A line may come from any thread. ``on_trouble`` is called in the event loop when writing begins to
    fail, with the cause, and with an empty text when it succeeds again.
    """

    def __init__(self, path: str = "", on_trouble: Callable[[str], None] | None = None) -> None:
        """Open the file, or take standard error; raises ``OSError`` and ``LimitError``."""
        self.path = path
        self.formatter: logging.Formatter = TextFormatter()  # of the writer's own lines
        self._fd = _open(path) if path else 2
        self._queue: SimpleQueue[str | _Mark | None] = SimpleQueue()
        self._lock = _native_lock()  # of the next one
        self._lost = 0
        self._why = ""
        self._trouble = ""  # why the last attempt to write failed, if it did
        self._on_trouble = on_trouble
        self._loop = gevent.get_hub().loop if on_trouble else None
        try:
            start_thread(self._run)
        except LimitError:
            if path:
                os.close(self._fd)
            raise

    def write(self, line: str) -> None:
        """Write a line some time soon, or count it as lost if the log does not keep up."""
        if self._queue.qsize() < QUEUE_SIZE:
            self._queue.put(line)
        else:
            with self._lock:
                self._lost += 1
                self._why = self._trouble or "the log did not keep up"

    def reopen(self) -> None:
        """Go on in the file that has the name now: the old one may have been moved. Raises ``OSError``."""
        if self.path:
            new = _open(self.path)
            # In one step, and under the same number: the thread may be writing at this moment.
            os.dup2(new, self._fd, inheritable=False)
            os.close(new)

    def close(self) -> None:
        """Write what is left, as soon as that can be done, and end; nothing may be written after that."""
        self._queue.put(None)

    def flush(self) -> None:
        """Wait a moment for what is still to be written, unless nothing can be written just now."""
        mark = _Mark()
        self._queue.put(mark)
        deadline = time.monotonic() + _FLUSH_TIMEOUT
        while not mark.is_reached and not self._trouble and time.monotonic() < deadline:
            time.sleep(0.002)

    def _run(self) -> None:
        while True:
            taken = [self._queue.get()]
            while len(taken) < QUEUE_SIZE and not self._queue.empty():
                taken.append(self._queue.get())
            for text in _whole(line for line in taken if isinstance(line, str)):
                self._write_all(text)
            for mark in taken:
                if isinstance(mark, _Mark):
                    mark.is_reached = True
            if None in taken:
                os.close(self._fd)
                return
            # Under load this makes batches: waking the thread for each line took a fifth of the
            # processor time of short connections.
            _native_sleep(_BATCH)

    def _write_all(self, data: bytes) -> None:
        data = self._account_of_lost() + data
        while data:
            try:
                data = data[descriptors.write(self._fd, data) :]
                self._went("")
            except OSError as exc:
                # A disk is full for a while: the lines wait in the queue, as they do for a slow reader.
                self._went(reason_of(exc))
                _native_sleep(_TRY_AGAIN)

    def _account_of_lost(self) -> bytes:
        with self._lock:
            lost, self._lost, why = self._lost, 0, self._why
        if not lost:
            return b""
        record = make_record(logging.WARNING, f"(log lines lost: {lost}: {why})")
        return f"{self.formatter.format(record)}\n".encode()

    def _went(self, trouble: str) -> None:
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if self._on_trouble and self._loop:
            self._loop.run_callback_threadsafe(self._on_trouble, trouble)


def _whole(lines: Iterable[str]) -> Iterator[bytes]:
    """
    Put lines together, but not more than go through a pipe as one.

    Other processes may write there too, such as workers: then none is in the middle of another's line.
    """
    together: list[bytes] = []
    size = 0
    for line in lines:
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        if size + len(data) > PIPE_BUF:
            yield b"".join(together)
            together.clear()
            size = 0
        together.append(data)
        size += len(data)
    yield b"".join(together)


class _Mark:
    """A place in a queue; the thread says when it has come there."""

    is_reached = False


def _open(path: str) -> int:
    # A pipe that nobody reads is an error: to wait for a reader, here, would stop all of the proxy.
    fd = from_reserve(lambda: os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o640))
    os.set_blocking(fd, True)  # writing may wait, as that is the thread's business
    return fd


class _Handler(logging.Handler):
    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self.writer = writer
        self.collapse = Collapse(self.handle)
        self.addFilter(self.collapse)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.writer.write(self.format(record))
        except Exception as exc:  # a log line must never be what fails
            text = f"cannot format a log line: {type(exc).__name__}: {reason_of(exc)}: {record.msg!r}"
            self.writer.write(self.format(make_record(logging.ERROR, text)))


def set_up(writer: LineWriter, level: str, *, as_json: bool = False) -> None:
    """Send the log of this package to a writer, in another form from now on if it goes there already."""
    writer.formatter = JsonFormatter() if as_json else TextFormatter()
    say_in_json(as_json)
    logger = logging.getLogger("proxy")
    if not any(handler.writer is writer for handler in _handlers()):
        logger.handlers[:] = [_Handler(writer)]
    for handler in _handlers():
        handler.setFormatter(writer.formatter)
    logger.setLevel(level.upper())
    logger.propagate = False


def finish() -> None:
    """Write all that is to be written yet."""
    for handler in _handlers():
        handler.collapse.finish()
        handler.writer.flush()


def _handlers() -> list[_Handler]:
    return [each for each in logging.getLogger("proxy").handlers if isinstance(each, _Handler)]
