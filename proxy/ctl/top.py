"""
What ``ctl top`` shows, and what its keys do: a state, and what becomes of it.

There is no terminal and no server in here. Whoever has them brings samples and keys, draws the lines that
come of the state, and does what a key asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from proxy.ctl import show
from proxy.ctl.cells import cut, harmless, pad, width

Object = dict[str, Any]

_MOST_ROWS = 1000  # that are asked for, however far somebody scrolls
_ENDLESS = 100_000  # lines
_KEPT = 300  # samples, for the curves
_BARS = "▁▂▃▄▅▆▇█"
_SORTS = ("rate", "sent_rate", "received_rate", "sent", "received", "age", "user", "client", "target")
_GROUP_SORTS = ("rate", "sent_rate", "received_rate", "sent", "received", "live", "name")
_GROUPS = ("", "user", "client", "target", "upstream", "listener")
_ASCENDING = {"user", "client", "target", "name"}
_SPOKEN = {"sent_rate": "up", "received_rate": "down"}


class Quit(NamedTuple):
    """A key asked to leave."""


class Look(NamedTuple):
    """A key changed what is to be seen, so that a sample is wanted now."""


class End(NamedTuple):
    """A connection is to be ended."""

    id: str

    @property
    def path(self) -> str:
        """What is asked of the server."""
        return f"/connections/{quote(self.id, safe='')}"


Action = Quit | Look | End | None


class Span(NamedTuple):
    """A part of a line, and how it looks: plain, strong, faint, bad, or turned (light and dark)."""

    text: str
    look: str = ""


Line = list[Span]


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


def resize(state: State, columns: int, lines: int) -> State:
    """Go on in a terminal of another size."""
    if (columns, lines) == (state.columns, state.lines):
        return state
    return _follow(replace(state, columns=columns, lines=lines))


# -- samples


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
    return min(_MOST_ROWS, state.first + 2 * state.lines)


def take(state: State, sample: Sample) -> State:
    """Go on with a new sample."""
    last = state.sample
    is_other = last is not None and _is_other(last.status, sample.status)
    seconds = sample.time - last.time if last else 0.0
    if last is None or is_other or seconds <= 0:
        state = replace(state, before=None, rates=() if is_other else state.rates)
    else:
        state = replace(state, before=last, rates=(*state.rates, _rate(last, sample))[-_KEPT:])
    said = "the server was started anew" if is_other else state.said
    return _follow(replace(state, sample=sample, problem="", said=said))


def _is_other(before: Object, now: Object) -> bool:
    """Tell whether it is another process that answers; a clock that was set makes none of it."""
    return before["pid"] != now["pid"] or now["uptime"] < before["uptime"]  # type: ignore[no-any-return]


def miss(state: State, problem: str) -> State:
    """Say why there is no sample; the last one stays to be seen."""
    return replace(state, problem=problem)


def _rate(before: Sample, now: Sample) -> Rate:
    seconds = now.time - before.time
    old, new = before.status, now.status
    failed = [sum(each["failed"] for each in one["listeners"]) for one in (old, new)]
    counts = [(new[name] - old[name]) / seconds for name in ("sent", "received", "total")]
    # Counts of listeners that went away are missed, and nothing goes backwards.
    return Rate(*(max(0.0, each) for each in (*counts, (failed[1] - failed[0]) / seconds)))


def _follow(state: State) -> State:
    """Keep the cursor on what it was on, or else on its row."""
    names = [_name(row) for row in state.sample.rows] if state.sample else []
    if state.at < 0 or not names:
        return replace(state, at=-1, selected="", first=min(state.first, max(0, len(names) - 1)))
    at = names.index(state.selected) if state.selected in names else min(state.at, len(names) - 1)
    return _put(state, at, names)


def _put(state: State, at: int, names: Sequence[str]) -> State:
    shown = max(1, room(state))
    first = min(max(state.first, at - shown + 1), at)
    return replace(state, at=at, selected=names[at], first=first)


def _name(row: Object) -> str:
    return str(row["id"] if "id" in row else row["name"])


# -- keys


def press(state: State, key: str) -> tuple[State, Action]:
    """Do what a key means: a character, or the name of a key such as ``up``."""
    if state.typing is not None:
        return _type(state, state.typing, key)
    if state.doomed:
        action = End(state.doomed) if key == "y" else None
        return replace(state, doomed="", said="" if action else "nothing was ended"), action
    state = replace(state, said="")
    if key in ("q", "Q"):
        return state, Quit()
    if key in _MOVES:
        moved = _move(state, key)
        return moved, Look() if _is_short(moved) else None
    if state.has_help:
        return replace(state, has_help=False), None
    change = _CHANGES.get(key)
    if change is None:
        return state, None
    changed = change(state)
    asks_anew = path(replace(changed, first=0)) != path(replace(state, first=0))
    return changed, Look() if asks_anew else None


def _type(state: State, typed: str, key: str) -> tuple[State, Action]:
    if key == "escape":
        return replace(state, typing=None), None
    if key == "enter":
        return _anew(state, typing=None, words=typed.strip()), Look()
    if key == "backspace":
        return replace(state, typing=typed[:-1]), None
    return replace(state, typing=typed + key if len(key) == 1 else typed), None


_MOVES = ("up", "down", "pageup", "pagedown", "home", "end")


def _move(state: State, key: str) -> State:
    names = [_name(row) for row in state.sample.rows] if state.sample else []
    if not names:
        return state
    page = max(1, room(state) - 1)
    steps = {"up": -1, "down": 1, "pageup": -page, "pagedown": page, "home": -len(names), "end": len(names)}
    # The first step only brings the cursor up.
    at = state.at + steps[key] if state.at >= 0 or steps[key] > 0 else 0
    return _put(state, min(max(at, 0), len(names) - 1), names)


def _is_short(state: State) -> bool:
    """Tell whether the cursor came near the end of what was asked for, and there is more."""
    if not state.sample:
        return False
    listing, known = state.sample.listing, len(state.sample.rows)
    there: int = listing["total" if "groups" in listing else "matching"]
    return state.at + room(state) > known < min(there, _MOST_ROWS)


def _anew(state: State, **changes: Any) -> State:
    """Change what is listed, and begin at its top."""
    return replace(state, selected="", at=-1, first=0, **changes)


def _next_sort(state: State, step: int) -> State:
    sorts = _GROUP_SORTS if state.group else _SORTS
    return _anew(state, sort=sorts[(sorts.index(state.sort) + step) % len(sorts)], is_turned=False)


def _next_group(state: State) -> State:
    group = _GROUPS[(_GROUPS.index(state.group) + 1) % len(_GROUPS)]
    return _grouped(state, group)


def _grouped(state: State, group: str, **changes: Any) -> State:
    sort = state.sort if state.sort in (_GROUP_SORTS if group else _SORTS) else "rate"
    return _anew(state, group=group, sort=sort, is_turned=state.is_turned and sort == state.sort, **changes)


def _enter(state: State) -> State:
    if not state.group or state.at < 0:
        return state
    return _grouped(state, "", within=(state.group, state.selected))


def _leave(state: State) -> State:
    """Take back one thing: the group that was entered, the filter, or the cursor."""
    if state.within:
        return _grouped(state, state.within[0], within=None)
    if state.words:
        return _anew(state, words="")
    return replace(state, at=-1, selected="")


def _doom(state: State) -> State:
    if state.group:
        return replace(state, said="Enter shows the connections of a group; one of those can be ended")
    if state.at < 0:
        return replace(state, said="choose a connection first, with the arrow keys")
    return replace(state, doomed=state.selected)


_CHANGES: dict[str, Callable[[State], State]] = {
    "s": lambda state: _next_sort(state, 1),
    "S": lambda state: _next_sort(state, -1),
    "r": lambda state: _anew(state, is_turned=not state.is_turned),
    "g": _next_group,
    "/": lambda state: replace(state, typing=state.words),
    "enter": _enter,
    "escape": _leave,
    "k": _doom,
    "p": lambda state: replace(state, is_paused=not state.is_paused),
    "h": lambda state: replace(state, has_help=True),
    "?": lambda state: replace(state, has_help=True),
}

_HELP = """\
s, S        sort by the next column, or the one before
r           turn the order around
g           group by user, client, target, upstream, listener, or not
Enter       show the connections of the group
/           filter: words that stand somewhere in a connection
Esc         leave the group, or else clear the filter, or else put the cursor away
arrows      choose a connection (also PgUp, PgDn, Home, End)
k           end the connection that is chosen; there is a question first
p           pause, and go on
q           leave

up is what clients send, down is what they receive"""


# -- the picture


class _Column(NamedTuple):
    head: str
    least: int  # columns of the terminal
    most: int
    rank: int  # those of the highest go first where there is no room
    right: bool = False


_CONNECTIONS = (
    _Column("ID", 6, 8, 5, right=True),
    _Column("USER", 10, 16, 2),
    _Column("CLIENT", 17, 47, 3),
    _Column("LISTENER", 8, 12, 8),
    _Column("TARGET", 19, 60, 0),
    _Column("UPSTREAM", 8, 14, 7),
    _Column("AGE", 9, 9, 6, right=True),
    _Column("UP/S", 8, 8, 1, right=True),
    _Column("DOWN/S", 8, 8, 1, right=True),
    _Column("SENT", 8, 8, 9, right=True),
    _Column("RECEIVED", 8, 8, 9, right=True),
)
_SORTED_BY = {
    "user": "USER",
    "client": "CLIENT",
    "target": "TARGET",
    "age": "AGE",
    "live": "LIVE",
    "sent_rate": "UP/S",
    "received_rate": "DOWN/S",
    "sent": "SENT",
    "received": "RECEIVED",
}
_LISTENERS = (
    _Column("LISTENER", 8, 20, 0),
    _Column("SPEAKS", 6, 16, 5),
    _Column("ADDRESS", 12, 60, 4),
    _Column("LIVE", 5, 14, 1, right=True),
    _Column("UP/S", 8, 8, 2, right=True),
    _Column("DOWN/S", 8, 8, 2, right=True),
    _Column("TOTAL", 6, 12, 6, right=True),
    _Column("FAILED", 6, 12, 3, right=True),
)
_UPSTREAMS = (
    _Column("UPSTREAM", 8, 20, 0),
    _Column("OF", 8, 16, 3),
    _Column("ADDRESS", 12, 60, 2),
    _Column("HEALTH", 8, 120, 1),
)


def draw(state: State) -> list[Line]:
    """Make the lines of the picture: exactly as many as there is room for."""
    if state.sample is None:
        lines = [[Span(f" {harmless(state.problem) or 'asking the server'}", "bad" if state.problem else "")]]
    elif state.has_help:
        lines = [*_summary(state, state.sample), [], *([Span(f"  {each}")] for each in _HELP.splitlines())]
    else:
        lines = _all(state, state.sample)
    lines = [*lines, *([] for _ in range(state.lines))][: max(0, state.lines - 1)]
    return [*(_fitted(line, state.columns) for line in lines), _fitted(_foot(state), state.columns)]


def picture(state: State, sample: Sample) -> list[Line]:
    """Make the lines for what is no terminal: all that there is, and no more."""
    state = replace(take(state, sample), lines=_ENDLESS)
    lines = [_fitted(line, state.columns) for line in _all(state, sample)]
    if more := sample.listing["matching"] - len(sample.rows):
        lines.append([Span(f" and {more} more")])
    return lines


def _all(state: State, sample: Sample) -> list[Line]:
    return [*_summary(state, sample), *_blocks(state), *_list(state, sample)]


def room(state: State) -> int:
    """Tell how many connections have room in the picture."""
    if state.sample is None:
        return 0
    others = len(_summary(state, state.sample)) + len(_blocks(state))
    return max(0, state.lines - others - 2)  # the heads, and the foot


def _fitted(line: Line, columns: int) -> Line:
    fitted = []
    for span in line:
        text = cut(span.text, columns)
        fitted.append(Span(text, span.look))
        columns -= width(text)
    if line and line[-1].look == "turned":
        fitted.append(Span(" " * columns, "turned"))
    return [span for span in fitted if span.text]


def _summary(state: State, sample: Sample) -> list[Line]:
    status = sample.status
    version = status["version"]
    since = status["uptime" if status["state"] == "running" else "draining_for"]
    is_well = not state.problem and status["state"] == "running"
    lines = [
        [
            Span(f" {harmless(status['program'])}", "strong"),
            Span(f"  process {status['pid']}"),
            Span(f"  {status['state']} for {show.span(since)}", "" if is_well else "bad"),
            Span(f"  configuration {version['number']} from {harmless(version['source'])}"),
        ]
    ]
    if state.problem:
        lines.append([Span(f" no answer, asking again: {harmless(state.problem)}", "bad")])
    if not status.get("file", {"in_effect": True})["in_effect"]:
        lines.append([Span(f" the file is not in effect: {harmless(status['file']['problem'])}", "bad")])
    rate = state.rates[-1] if state.rates and not state.problem else None
    counts = f" connections {status['live']} live, {status['total']} in all"
    if rate:
        counts += f"   {_each(rate.began)} new, {_each(rate.failed)} failed a second"
    return [*lines, [Span(counts)], _curve(state, rate, "sent"), _curve(state, rate, "received")]


def _each(count: float) -> str:
    return f"{count:.0f}" if count >= 10 or count == int(count) else f"{count:.1f}"


def _curve(state: State, rate: Rate | None, way: str) -> Line:
    """Show how fast it goes one way, and how it came there."""
    name = "up" if way == "sent" else "down"
    value = f"{show.size(int(getattr(rate, way)))}/s" if rate else "-"
    head = f" {name:4} {value:>10}  "
    values = [getattr(each, way) for each in state.rates[-max(0, state.columns - len(head) - 1) :]]
    # A curve of less than a KiB a second would make a mountain of a ping.
    most = max([*values, 1024.0])
    bars = (_BARS[min(len(_BARS) - 1, int(each / most * len(_BARS)))] for each in values)
    return [Span(head), Span("".join(bars), "good" if way == "received" else "other")]


def _blocks(state: State) -> list[Line]:
    """Show the listeners and the upstreams, with half of the room at most."""
    assert state.sample is not None
    left = (state.lines - len(_summary(state, state.sample)) - 3) // 2
    lines: list[Line] = []
    for columns, rows in (
        (_LISTENERS, _listeners(state, state.sample)),
        (_UPSTREAMS, _upstreams(state.sample)),
    ):
        share = left // 2 if columns is _LISTENERS and state.sample.status["upstreams"] else left
        if not rows or share < 3:
            continue
        fits = share - 2 if len(rows) <= share - 2 else share - 3
        block = _table(state, columns, [row for row, _ in rows[:fits]], [look for _, look in rows[:fits]])
        if len(rows) > fits:
            block.append([Span(f" and {len(rows) - fits} more", "faint")])
        lines += [[], *block]
        left -= len(block) + 1
    return [*lines, []] if lines or left > 1 else lines


def _listeners(state: State, sample: Sample) -> list[tuple[list[str], str]]:
    before = {each["name"]: each for each in (state.before.status["listeners"] if state.before else ())}
    seconds = sample.time - state.before.time if state.before else 1.0
    rows = []
    for each in sample.status["listeners"]:
        old = before.get(each["name"])
        rates = [max(0.0, each[way] - old[way]) / seconds if old else None for way in ("sent", "received")]
        waits = each.get("waits_for", ())
        address = ", ".join([*each["addresses"], *(f"{one} (waiting)" for one in waits)]) or "closed"
        cells = [
            each["name"],
            each["protocol"] + (" (TLS)" if each["tls"] else ""),
            address,
            f"{each['live']} of {each['max_connections']}",
            *map(_speed, rates),
            str(each["total"]),
            str(each["failed"]),
        ]
        rows.append((cells, "bad" if waits else ""))
    return rows


def _upstreams(sample: Sample) -> list[tuple[list[str], str]]:
    """Show those that are down first: they are looked for."""
    ordered = sorted(sample.status["upstreams"], key=lambda each: each["health"] != "down")
    return [
        (
            [each["name"], each["listener"], each["address"] or each["type"], show.health(each)],
            "bad" if each["health"] == "down" else "",
        )
        for each in ordered
    ]


def _list(state: State, sample: Sample) -> list[Line]:
    rows = sample.rows[state.first : state.first + room(state)]
    if state.group != sample.listing.get("group", ""):
        rows = []  # the answer to what was asked before
    cells = [_group(each) if state.group else _connection(each) for each in rows]
    looks = ["turned" if state.at == at else "" for at, _ in enumerate(rows, state.first)]
    columns = _group_columns(state.group) if state.group else _CONNECTIONS
    return _table(state, columns, cells, looks, state.sort)


def _group_columns(group: str) -> tuple[_Column, ...]:
    names = {"ID", "USER", "CLIENT", "LISTENER", "TARGET", "UPSTREAM", "AGE"}
    numbers = [each for each in _CONNECTIONS if each.head not in names]
    return (_Column(group.upper(), 12, 60, 0), _Column("LIVE", 6, 8, 1, right=True), *numbers)


def _connection(each: Object) -> list[str]:
    return [
        str(each["id"]),
        each["user"] or "-",
        each["client"],
        each["listener"],
        each["target"] or "-",
        each["upstream"] or f"({each['state']})",
        show.span(each["age"]),
        *_amounts(each),
    ]


def _group(each: Object) -> list[str]:
    return [each["name"] or "-", str(each["live"]), *_amounts(each)]


def _amounts(each: Object) -> list[str]:
    rates = [_speed(each[f"{way}_rate"]) for way in ("sent", "received")]
    return [*rates, *(show.size(each[way]) for way in ("sent", "received"))]


def _speed(rate: float | None) -> str:
    return "-" if rate is None else show.size(int(rate))


def _table(
    state: State,
    columns: Sequence[_Column],
    rows: Sequence[Sequence[str]],
    looks: Sequence[str],
    sort: str | None = None,
) -> list[Line]:
    """Align columns; a table that is sorted keeps its widths, whatever comes and goes in it."""
    texts = [[harmless(cell) for cell in row] for row in rows]
    widths = [
        each.most if sort else min(each.most, max([width(row[at]) for row in texts] + [len(each.head)]))
        for at, each in enumerate(columns)
    ]
    widths = _squeezed(columns, widths, state.columns - 1)
    marked = {_SORTED_BY.get(sort or "", "")} | ({"UP/S", "DOWN/S"} if sort == "rate" else set())
    if sort == "name":
        marked.add(columns[0].head)
    heads = [Span(" ", "head")]
    for each, size in zip(columns, widths, strict=True):
        if size:
            gap = Span("  ", "head") if len(heads) > 1 else Span("", "head")
            head = pad(each.head, size, right=each.right)
            heads += [gap, Span(head, "mark" if each.head in marked else "head")]
    lines = [heads]
    for row, look in zip(texts, looks, strict=True):
        cells = [
            pad(text, size, right=each.right)
            for each, text, size in zip(columns, row, widths, strict=True)
            if size
        ]
        lines.append([Span(" " + "  ".join(cells), look)])
    return lines


def _squeezed(columns: Sequence[_Column], wanted: Sequence[int], most: int) -> list[int]:
    """Choose widths that have room together, 0 for a column that has none."""
    least = [min(each.least, size) for each, size in zip(columns, wanted, strict=True)]
    widths, left = [0] * len(columns), most + 2
    for at in sorted(range(len(columns)), key=lambda at: columns[at].rank):
        if left < least[at] + 2:
            break
        widths[at] = least[at]
        left -= least[at] + 2
    growing = [at for at, size in enumerate(widths) if 0 < size < wanted[at]]
    while left > 0 and growing:
        for at in growing[:left]:
            widths[at] += 1
        left -= len(growing[:left])
        growing = [at for at in growing if widths[at] < wanted[at]]
    return widths


def _foot(state: State) -> Line:
    if state.typing is not None:
        return [Span(" filter: ", "strong"), Span(harmless(state.typing)), Span(" ", "cursor")]
    if state.doomed:
        return [Span(f" end connection {harmless(state.doomed)}{_whose(state)}? y or n", "bad")]
    if state.said:
        return [Span(f" {harmless(state.said)}", "strong")]
    parts = []
    if state.is_paused:
        parts.append("PAUSED")
    if state.sample and "matching" in state.sample.listing:
        listing = state.sample.listing
        matching = listing["matching"]
        if state.words or state.within:
            parts.append(f"{matching} of {listing['live']}")
    if state.within:
        parts.append(f"{state.within[0]} {harmless(state.within[1]) or '-'}")
    if state.words:
        parts.append(f"filter {harmless(state.words)}")
    about = Span(f" {', '.join(parts)} " if parts else "", "strong")
    sort = _SPOKEN.get(state.sort, state.sort)
    turned = " (turned)" if state.is_turned else ""
    keys = f" q quit  h help  s sort: {sort}{turned}  g group: {state.group or 'no'}  / filter  k end"
    return [about, Span(keys, "faint")]


def _whose(state: State) -> str:
    for row in state.sample.rows if state.sample else ():
        if _name(row) == state.doomed and "client" in row:
            user = f"{harmless(row['user'])} " if row["user"] else ""
            return f" ({user}{harmless(row['client'])} to {harmless(row['target'] or 'nowhere yet')})"
    return ""
