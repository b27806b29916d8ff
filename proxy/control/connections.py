"""
The live connections: filtered and sorted as requested, with the rate of each.

Nothing is measured while nobody asks. While somebody polls, all connections are sampled once a second,
however many clients poll; a rate is the difference of two samples. Only the rows that
are shown are written out: that is most of the work where there are thousands.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import nlargest, nsmallest
from operator import itemgetter
from time import monotonic
from typing import Any, TypeVar

from proxy.session import Session

T = TypeVar("T")
Pair = tuple[float, float]  # sent, received

_APART = 0.9  # seconds between two looks, or somewhat more: who asks each second is not always on time
_FORGOTTEN = 10.0  # seconds after which a look says nothing of now any more
_NOTHING = (0.0, 0.0)

_TEXTS: dict[str, Callable[[Session], str]] = {
    "user": lambda session: session.wanted.user if session.wanted else "",
    "client": lambda session: str(session.client),
    "listener": lambda session: session.runtime.config.name,
    "target": lambda session: str(session.wanted.target) if session.wanted else "",
    "upstream": lambda session: session.via,
}
# A client comes from many ports, and is the same.
_GROUPS = _TEXTS | {"client": lambda session: session.client.host}
_NUMBERS: dict[str, Callable[[Session, "Rates"], float]] = {
    # Ids may be names; who came first has the lowest one.
    "id": lambda session, rates: session.started,
    "age": lambda session, rates: -session.started,
    "sent": lambda session, rates: moved(session)[0],
    "received": lambda session, rates: moved(session)[1],
    "rate": lambda session, rates: sum(rates.of(session.id) or _NOTHING),
    "sent_rate": lambda session, rates: (rates.of(session.id) or _NOTHING)[0],
    "received_rate": lambda session, rates: (rates.of(session.id) or _NOTHING)[1],
}
_SORTS = (*_NUMBERS, *_TEXTS)
_GROUP_SORTS = ("name", "live", "sent", "received", "rate", "sent_rate", "received_rate")


class Rates:
    """How many bytes a second each connection moves, between the last two looks."""

    def __init__(self) -> None:
        self._time: float | None = None  # of the last look
        self._moved: dict[int | str, Pair] = {}  # until then
        self._is_known = False
        self._rates: dict[int | str, Pair] = {}  # of those that moved anything

    def look(self, live: Iterable[Session], now: float) -> None:
        """Take a look at all of them, unless there was one just now."""
        seconds = _FORGOTTEN if self._time is None else now - self._time
        if seconds < _APART:
            return
        before, self._moved = self._moved, {session.id: moved(session) for session in live}
        self._time, self._is_known, self._rates = now, seconds < _FORGOTTEN, {}
        if self._is_known:
            for number, (sent, received) in self._moved.items():
                sent_before, received_before = before.get(number, _NOTHING)
                if sent != sent_before or received != received_before:
                    rates = (sent - sent_before) / seconds, (received - received_before) / seconds
                    self._rates[number] = rates

    def of(self, number: int | str) -> Pair | None:
        """Tell what a connection sends and receives; None if that is not known yet."""
        if not self._is_known or number not in self._moved:
            return None
        return self._rates.get(number, _NOTHING)


@dataclass(frozen=True)
class Query:
    """Which of the connections, how many, in which order; or the sums of groups of them."""

    sort: str = "id"
    is_descending: bool = False
    limit: int | None = None
    words: tuple[str, ...] = ()  # that stand somewhere in a connection, all of them
    of: Mapping[str, str] = field(default_factory=dict)  # what is exactly this
    group: str = ""

    @property
    def is_choosy(self) -> bool:
        """True if not all connections match."""
        return bool(self.words or self.of)

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> "Query":
        """Read it from a request; raises ``ValueError``."""
        if unknown := given.keys() - {"sort", "limit", "filter", "group", *_GROUPS}:
            raise ValueError(f"there is no {', '.join(sorted(unknown))}")
        group = given.get("group", "")
        if group and group not in _GROUPS:
            raise ValueError(f"group must be one of {', '.join(_GROUPS)}")
        sort, known = given.get("sort", "name" if group else "id"), _GROUP_SORTS if group else _SORTS
        if sort.removeprefix("-") not in known:
            raise ValueError(f"sort must be one of {', '.join(known)}, or one of them with a - before it")
        limit = given.get("limit")
        if limit is not None and not re.fullmatch("[0-9]{1,9}", limit):
            raise ValueError("limit must be a number")
        return cls(
            sort.removeprefix("-"),
            sort.startswith("-"),
            int(limit) if limit else None,
            tuple(given.get("filter", "").casefold().split()),
            {name: value for name, value in given.items() if name in _GROUPS},
            group,
        )


Key = tuple[Any, ...]  # to sort by


@dataclass(frozen=True)
class Listing:
    """What was found, as far as it may be shown; those of several processes can be added up."""

    live: int = 0
    matching: int = 0
    rows: tuple[tuple[Key, dict[str, Any]], ...] = ()
    groups: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def __add__(self, other: "Listing") -> "Listing":
        groups = {name: dict(each) for name, each in self.groups.items()}
        for name, each in other.groups.items():
            _add(groups, name, each)
        return Listing(
            self.live + other.live, self.matching + other.matching, (*self.rows, *other.rows), groups
        )

    def describe(self, query: Query) -> dict[str, Any]:
        """Give it in the order, and as many rows, as are asked for."""
        about: dict[str, Any] = {"live": self.live, "matching": self.matching}
        if query.group:
            shown = _first(self.groups.values(), query, lambda row: _value(row, query.sort))
            return about | {"group": query.group, "total": len(self.groups), "groups": shown}
        return about | {"connections": [row for _, row in _first(self.rows, query, itemgetter(0))]}


def list_connections(sessions: Iterable[Session], rates: Rates, query: Query) -> Listing:
    """Find the live connections that are asked for."""
    live, now = list(sessions), monotonic()
    rates.look(live, now)
    found = [session for session in live if _matches(session, query)] if query.is_choosy else live
    if query.group:
        return Listing(len(live), len(found), groups=_groups(found, rates, query.group))
    sort = query.sort

    def key(session: Session) -> Key:
        value = _TEXTS[sort](session) if sort in _TEXTS else _NUMBERS[sort](session, rates)
        return value, session.started  # whose value is the same are sorted by age

    keyed = [(key(session), session) for session in found]
    rows = tuple((key, _row(session, rates, now)) for key, session in _first(keyed, query, itemgetter(0)))
    return Listing(len(live), len(found), rows)


def moved(session: Session) -> tuple[int, int]:
    """Tell how many bytes a connection has moved from the client, and to it."""
    return (session.relay.sent, session.relay.received) if session.relay else (0, 0)


def _matches(session: Session, query: Query) -> bool:
    if any(_GROUPS[name](session) != value for name, value in query.of.items()):
        return False
    text = "\n".join(read(session) for read in _TEXTS.values()).casefold()
    return all(word in text for word in query.words)


def _first(rows: Iterable[T], query: Query, key: Callable[[T], Any]) -> list[T]:
    if query.limit is None:
        return sorted(rows, key=key, reverse=query.is_descending)
    return (nlargest if query.is_descending else nsmallest)(query.limit, rows, key)


def _value(row: Mapping[str, Any], sort: str) -> Any:
    """Give what a group is sorted by, and its name where that is the same."""
    if sort == "rate":
        return (row["sent_rate"] or 0.0) + (row["received_rate"] or 0.0), row["name"]
    return 0.0 if row[sort] is None else row[sort], row["name"]


def _row(session: Session, rates: Rates, now: float) -> dict[str, Any]:
    return {
        "id": session.id,
        "state": "open" if session.relay else "dialling" if session.wanted else "handshake",
        **{name: read(session) for name, read in _TEXTS.items()},
        "age": now - session.started,
        **_amounts(session, rates),
    }


def _groups(found: Iterable[Session], rates: Rates, by: str) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for session in found:
        _add(groups, _GROUPS[by](session), {"live": 1, **_amounts(session, rates)})
    return groups


def _amounts(session: Session, rates: Rates) -> dict[str, Any]:
    sent, received = moved(session)
    sent_rate, received_rate = rates.of(session.id) or (None, None)
    return {"sent": sent, "received": received, "sent_rate": sent_rate, "received_rate": received_rate}


def _add(groups: dict[str, dict[str, Any]], name: str, more: Mapping[str, Any]) -> None:
    if (group := groups.get(name)) is None:
        groups[name] = {"name": name, **more}
        return
    for key in ("live", "sent", "received"):
        group[key] += more[key]
    for key in ("sent_rate", "received_rate"):
        if more[key] is not None:
            group[key] = (group[key] or 0.0) + more[key]
