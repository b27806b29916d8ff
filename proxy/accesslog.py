"""
The access log: one line for each finished connection.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

Write = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """What became of one connection; bytes are payload, ``sent`` is from the client to the target."""

    id: int
    user: str
    client: str
    listener: str
    target: str
    upstream: str
    sent: int
    received: int
    ms: int
    end: str


class AccessLog:
    """Writes records as text or as JSON, one line each."""

    def __init__(self, write: Write, *, as_json: bool = False) -> None:
        self._write = write
        self._format = _as_json if as_json else _as_text

    def add(self, record: Record) -> None:
        """Write a record."""
        self._write(self._format(record, _now()))


def quoted(text: str) -> str:
    """Make foreign text safe for a log line: quoted where it could be taken for something else."""
    plain = text and text.isprintable() and not set(text) & set(" \"'\\=")
    return text if plain else json.dumps(text)


def _as_text(record: Record, time: str) -> str:
    fields = ((name, value) for name, value in asdict(record).items() if value != "")
    return f"{time} access " + " ".join(f"{name}={quoted(str(value))}" for name, value in fields)


def _as_json(record: Record, time: str) -> str:
    return json.dumps({"time": time, "log": "access", **asdict(record)})


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


NO_LOG = AccessLog(lambda line: None)
