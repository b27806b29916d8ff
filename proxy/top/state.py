"""
All that a picture depends on, and what is asked of the server for it.
"""

from dataclasses import dataclass
from urllib.parse import urlencode

from proxy.top.samples import Rate, Sample, name_of

MOST_ROWS = 1000  # that are asked for, however far somebody scrolls
SORTS = ("rate", "sent_rate", "received_rate", "sent", "received", "age", "user", "client", "target")
GROUP_SORTS = ("rate", "sent_rate", "received_rate", "sent", "received", "live", "name")
GROUPS = ("", "user", "client", "target", "upstream", "listener")
_ASCENDING = {"user", "client", "target", "name"}


@dataclass(frozen=True)
class State:
    """All that a picture depends on."""

    columns: int = 80
    lines: int = 24
    sample: Sample | None = None
    before: Sample | None = None
    rates: tuple[Rate, ...] = ()  # the newest last
    problem: str = ""  # why there is no newer sample
    sort: str = "rate"
    is_turned: bool = False
    group: str = ""
    words: str = ""
    within: tuple[str, str] | None = None  # a group, and which one of it
    selected: str = ""  # an id, or the name of a group
    at: int = -1  # its row; none below 0
    first: int = 0  # row that is shown
    typing: str | None = None  # what a filter is to be
    doomed: str = ""  # the id of a connection that is to be ended, if that is meant
    said: str = ""
    is_paused: bool = False
    has_help: bool = False

    @property
    def names(self) -> list[str]:
        """The names of the rows that are there, shown or not."""
        return [name_of(row) for row in self.sample.rows] if self.sample else []


def path(state: State) -> str:
    """Say what to ask the server for: no more than is shown."""
    descending = (state.sort not in _ASCENDING) != state.is_turned
    query = {"sort": "-" * descending + state.sort, "limit": str(_wanted(state))}
    if state.words:
        query["filter"] = state.words
    if state.within:
        query[state.within[0]] = state.within[1]
    if state.group:
        query["group"] = state.group
    return f"/connections?{urlencode(query)}"


def _wanted(state: State) -> int:
    # A page more, so that a step down has something to show at once.
    return min(MOST_ROWS, state.first + 2 * state.lines)
