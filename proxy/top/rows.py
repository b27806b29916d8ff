"""
The tables of the picture: listeners, upstreams, connections and their groups, as rows of text.
"""

from collections.abc import Sequence

from proxy.ctl import show
from proxy.ctl.units import size, span
from proxy.top.samples import Object, Sample, listener_rates
from proxy.top.tables import Column, Row

CONNECTIONS = (
    Column("ID", 6, 8, 5, right=True),
    Column("USER", 10, 16, 2),
    Column("CLIENT", 17, 47, 3),
    Column("LISTENER", 8, 12, 8),
    Column("TARGET", 19, 60, 0),
    Column("UPSTREAM", 8, 14, 7),
    Column("AGE", 9, 9, 6, right=True),
    Column("UP/S", 8, 8, 1, right=True),
    Column("DOWN/S", 8, 8, 1, right=True),
    Column("SENT", 8, 8, 9, right=True),
    Column("RECEIVED", 8, 8, 9, right=True),
)
_SORTED_BY = {
    "rate": {"UP/S", "DOWN/S"},
    "user": {"USER"},
    "client": {"CLIENT"},
    "target": {"TARGET"},
    "age": {"AGE"},
    "live": {"LIVE"},
    "sent_rate": {"UP/S"},
    "received_rate": {"DOWN/S"},
    "sent": {"SENT"},
    "received": {"RECEIVED"},
}
LISTENERS = (
    Column("LISTENER", 8, 20, 0),
    Column("SPEAKS", 6, 16, 5),
    Column("ADDRESS", 12, 60, 4),
    Column("LIVE", 5, 14, 1, right=True),
    Column("UP/S", 8, 8, 2, right=True),
    Column("DOWN/S", 8, 8, 2, right=True),
    Column("TOTAL", 6, 12, 6, right=True),
    Column("FAILED", 6, 12, 3, right=True),
)
UPSTREAMS = (
    Column("UPSTREAM", 8, 20, 0),
    Column("OF", 8, 16, 3),
    Column("ADDRESS", 12, 60, 2),
    Column("HEALTH", 8, 120, 1),
)


def listeners(before: Sample | None, now: Sample) -> list[Row]:
    """Give a row for each listener."""
    rates = listener_rates(before, now)
    rows = []
    for each in now.status["listeners"]:
        waits = each.get("waits_for", ())
        address = ", ".join([*each["addresses"], *(f"{one} (waiting)" for one in waits)]) or "closed"
        cells = [
            each["name"],
            each["protocol"] + (" (TLS)" if each["tls"] else ""),
            address,
            f"{each['live']} of {each['max_connections']}",
            *map(_speed, rates.get(each["name"], (None, None))),
            str(each["total"]),
            str(each["failed"]),
        ]
        rows.append(Row(cells, "bad" if waits else ""))
    return rows


def upstreams(now: Sample) -> list[Row]:
    """Give a row for each upstream, those that are down first: they are looked for."""
    ordered = sorted(now.status["upstreams"], key=lambda each: each["health"] != "down")
    return [
        Row(
            [each["name"], each["listener"], each["address"] or each["type"], show.health(each)],
            "bad" if each["health"] == "down" else "",
        )
        for each in ordered
    ]


def group_columns(group: str) -> tuple[Column, ...]:
    """Give the columns of a table of groups."""
    names = {"ID", "USER", "CLIENT", "LISTENER", "TARGET", "UPSTREAM", "AGE"}
    numbers = [each for each in CONNECTIONS if each.head not in names]
    return (Column(group.upper(), 12, 60, 0), Column("LIVE", 6, 8, 1, right=True), *numbers)


def sorted_by(sort: str, columns: Sequence[Column]) -> set[str]:
    """Name the heads of the columns by which rows are sorted."""
    return {columns[0].head} if sort == "name" else _SORTED_BY[sort]


def connection(each: Object) -> list[str]:
    """Give the texts of a connection's row."""
    return [
        str(each["id"]),
        each["user"] or "-",
        each["client"],
        each["listener"],
        each["target"] or "-",
        each["upstream"] or f"({each['state']})",
        span(each["age"]),
        *_amounts(each),
    ]


def group(each: Object) -> list[str]:
    """Give the texts of a group's row."""
    return [each["name"] or "-", str(each["live"]), *_amounts(each)]


def _amounts(each: Object) -> list[str]:
    rates = [_speed(each[f"{way}_rate"]) for way in ("sent", "received")]
    return [*rates, *(size(each[way]) for way in ("sent", "received"))]


def _speed(rate: float | None) -> str:
    return "-" if rate is None else size(int(rate))
