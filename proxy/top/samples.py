"""
What the server answered, and how fast it went between two answers.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

Object = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """What the server answered at a time."""

    time: float
    status: Object
    listing: Object

    @property
    def rows(self) -> list[Object]:
        """The connections, or their groups."""
        rows: list[Object] = self.listing["groups" if "groups" in self.listing else "connections"]
        return rows


class Rate(NamedTuple):
    """How fast it all goes, a second."""

    sent: float
    received: float
    began: float
    failed: float


def is_other(before: Object, now: Object) -> bool:
    """Tell whether it is another process that answers; a clock that was set makes none of it."""
    return before["pid"] != now["pid"] or now["uptime"] < before["uptime"]  # type: ignore[no-any-return]


def rate(before: Sample, now: Sample) -> Rate:
    """Say how fast it all went from one sample to the next."""
    seconds = now.time - before.time
    old, new = before.status, now.status
    failed = [sum(each["failed"] for each in one["listeners"]) for one in (old, new)]
    counts = [(new[name] - old[name]) / seconds for name in ("sent", "received", "total")]
    # Counts of listeners that went away are missed, and nothing goes backwards.
    return Rate(*(max(0.0, each) for each in (*counts, (failed[1] - failed[0]) / seconds)))


def listener_rates(before: Sample | None, now: Sample) -> dict[str, tuple[float, float]]:
    """Say how many bytes a second each listener sent and received, if it was there before."""
    if before is None:
        return {}
    seconds = now.time - before.time
    old = {each["name"]: each for each in before.status["listeners"]}
    rates = {}
    for each in now.status["listeners"]:
        if last := old.get(each["name"]):
            sent, received = (max(0.0, each[way] - last[way]) / seconds for way in ("sent", "received"))
            rates[each["name"]] = (sent, received)
    return rates


def name_of(row: Object) -> str:
    """Name a connection by its id, and a group by its name."""
    return str(row["id"] if "id" in row else row["name"])
