"""
The access log: one line for each finished connection.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from time import gmtime, strftime, time

Write = Callable[[str], None]

# Bytes of what others chose: a line has less than 1 kB, whoever asks for what.
MOST_OF_A_USER = 120
MOST_OF_A_TARGET = 265  # the longest there are


@dataclass(frozen=True)
class Record:
    """What became of one connection; bytes are payload, ``sent`` is from the client to the target."""

    id: int | str
    user: str
    client: str
    listener: str
    target: str
    upstream: str
    rule: str
    sent: int
    received: int
    ms: int
    end: str


def nowhere(line: str) -> None:
    """Write nothing."""


class AccessLog:
    """Writes records as text or as JSON, one line each."""

    def __init__(self, write: Write, *, as_json: bool = False) -> None:
        self.change(write, as_json=as_json)

    def change(self, write: Write, *, as_json: bool = False) -> None:
        """Write elsewhere, or otherwise, from now on."""
        self._write = write
        self._format = _as_json if as_json else _as_text
        self.is_on = write is not nowhere

    def add(self, record: Record) -> None:
        """Write a record."""
        self._write(self._format(record, _now()))


def shortened(text: str, most: int = 250) -> str:
    """
    Leave the middle out of foreign text that is too long for a log line.

    What remains takes at most ``most`` bytes, or twice as many if all of it has to be escaped.
    """
    if text.isascii() and text.isprintable():
        plain = text
    elif len(json.dumps(text)) <= 2 * most:
        return text
    else:
        plain = ascii(text)[1:-1]
    half = most // 2 - 3
    return plain if len(plain) <= most else f"{plain[:half]} ... {plain[-half:]}"


def quoted(text: str) -> str:
    """Make foreign text safe for a log line: quoted where it could be taken for something else."""
    plain = text and text.isprintable() and not set(text) & set(" \"'\\=")
    return text if plain else json.dumps(text)


def _as_text(record: Record, when: str) -> str:
    # Spelt out: a loop over the fields would take as long as the rest of a short connection's log.
    user = f" user={quoted(shortened(record.user, MOST_OF_A_USER))}" if record.user else ""
    target = f" target={shortened(record.target, MOST_OF_A_TARGET)}" if record.target else ""
    upstream = f" upstream={quoted(record.upstream)}" if record.upstream else ""
    rule = f" rule={record.rule}" if record.rule else ""
    return (
        f"{when} access id={record.id}{user} client={record.client} listener={record.listener}"
        f"{target}{upstream}{rule} sent={record.sent} received={record.received}"
        f" ms={record.ms} end={quoted(shortened(record.end))}"
    )


def _as_json(record: Record, when: str) -> str:
    short = replace(
        record,
        user=shortened(record.user, MOST_OF_A_USER),
        target=shortened(record.target, MOST_OF_A_TARGET),
        end=shortened(record.end),
    )
    return json.dumps({"time": when, "log": "access", **asdict(short)})


def _now() -> str:
    now = time()
    return f"{_second(int(now))}.{int(now % 1 * 1000):03}Z"


@lru_cache(1)
def _second(now: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(now))


NO_LOG = AccessLog(nowhere)
