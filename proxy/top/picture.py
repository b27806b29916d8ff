"""
Draw a state: exactly as many lines as the terminal has, and as wide.
"""

from dataclasses import replace

from proxy.ctl.cells import harmless
from proxy.ctl.units import size, span
from proxy.top import rows
from proxy.top.samples import Rate, Sample, name_of
from proxy.top.state import State
from proxy.top.tables import Line, Row, Span, fit, table

_ENDLESS = 100_000  # lines
_BARS = "▁▂▃▄▅▆▇█"
_SPOKEN = {"sent_rate": "up", "received_rate": "down"}

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


def draw(state: State) -> list[Line]:
    """Make the lines of the picture: exactly as many as there is room for."""
    if state.sample is None:
        lines = [[Span(f" {harmless(state.problem) or 'asking the server'}", "bad" if state.problem else "")]]
    elif state.has_help:
        lines = [*_summary(state, state.sample), [], *([Span(f"  {each}")] for each in _HELP.splitlines())]
    else:
        lines = _all(state, state.sample)
    lines = [*lines, *([] for _ in range(state.lines))][: max(0, state.lines - 1)]
    return [*(fit(line, state.columns) for line in lines), fit(_foot(state), state.columns)]


def draw_all(state: State) -> list[Line]:
    """Make the lines for what is no terminal: all that there is, and no more."""
    assert state.sample is not None
    sample, state = state.sample, replace(state, lines=_ENDLESS)
    lines = [fit(line, state.columns) for line in _all(state, sample)]
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


def _summary(state: State, sample: Sample) -> list[Line]:
    status = sample.status
    version = status["version"]
    since = status["uptime" if status["state"] == "running" else "draining_for"]
    is_well = not state.problem and status["state"] == "running"
    lines = [
        [
            Span(f" {harmless(status['program'])}", "strong"),
            Span(f"  process {status['pid']}"),
            Span(f"  {status['state']} for {span(since)}", "" if is_well else "bad"),
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
    value = f"{size(int(getattr(rate, way)))}/s" if rate else "-"
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
    for columns, found in (
        (rows.LISTENERS, rows.listeners(state.before, state.sample)),
        (rows.UPSTREAMS, rows.upstreams(state.sample)),
    ):
        share = left // 2 if columns is rows.LISTENERS and state.sample.status["upstreams"] else left
        if not found or share < 3:
            continue
        fits = share - 2 if len(found) <= share - 2 else share - 3
        block = table(columns, found[:fits], state.columns)
        if len(found) > fits:
            block.append([Span(f" and {len(found) - fits} more", "faint")])
        lines += [[], *block]
        left -= len(block) + 1
    return [*lines, []] if lines or left > 1 else lines


def _list(state: State, sample: Sample) -> list[Line]:
    columns = rows.group_columns(state.group) if state.group else rows.CONNECTIONS
    cells = rows.group if state.group else rows.connection
    is_answer = state.group == sample.listing.get("group", "")  # to what is asked now
    shown = sample.rows[state.first : state.first + room(state)] if is_answer else []
    listed = [
        Row(cells(each), "turned" if state.at == at else "") for at, each in enumerate(shown, state.first)
    ]
    return table(columns, listed, state.columns, rows.sorted_by(state.sort, columns))


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
        if name_of(row) == state.doomed and "client" in row:
            user = f"{harmless(row['user'])} " if row["user"] else ""
            return f" ({user}{harmless(row['client'])} to {harmless(row['target'] or 'nowhere yet')})"
    return ""
