"""
Log lines, as text or JSON, also before the log is open.
"""

import json
import logging
import sys
import time
from contextlib import suppress
from typing import Any

_MOST_SAID = 2000  # characters of a line for the one who started us


class TextFormatter(logging.Formatter):
    """``time level message``, on one line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Keep whatever the message holds on its line."""
        record.levelname = record.levelname.lower()
        return _one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """Indent a traceback, so that no line of it is taken for one of the log."""
        return "\n".join("  " + _one_line(line) for line in super().formatException(ei).splitlines())


class JsonFormatter(TextFormatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        time_ = f"{self.formatTime(record, self.datefmt)}.{record.msecs:03.0f}Z"
        entry = {"time": time_, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def make_record(level: int, text: str) -> logging.LogRecord:
    """Make a record of the log's own."""
    return logging.LogRecord(__name__, level, "", 0, text, None, None)


_said_as: list[logging.Formatter] = []  # JSON, or nothing for plain lines


def say(message: str, level: int = logging.ERROR) -> None:
    """
    Print a line for the one who started us.

    Some of it may have been written by others: it cannot steer a terminal, and is not too long.
    """
    line = _one_line(message[:_MOST_SAID]) + (" ..." if message[_MOST_SAID:] else "")
    if _said_as:
        line = line.removeprefix(f"{logging.getLevelName(level).lower()}: ")
        line = _said_as[0].format(make_record(level, line))
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def begin(*, as_json: bool) -> None:
    """Say what is logged until ``set_up``, and what is said, in the form that the log will have."""
    say_in_json(as_json)
    logger = logging.getLogger("proxy")
    if not logger.handlers:
        logger.addHandler(_Sayer())
        logger.propagate = False


class _Sayer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}", record.levelno)


def say_in_json(yes: bool) -> None:
    """Say lines as JSON from now on, or as they are."""
    _said_as[:] = [JsonFormatter()] if yes else []


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
