"""
How events from outside change the state: a new sample, a failed one, another size of the terminal.

Whatever comes, the cursor stays on the item it was on.
"""

from dataclasses import replace

from proxy.top.picture import room
from proxy.top.samples import Sample, is_other, rate
from proxy.top.state import State

_KEPT = 300  # samples, for the curves


def resize(state: State, columns: int, lines: int) -> State:
    """Go on in a terminal of another size."""
    if (columns, lines) == (state.columns, state.lines):
        return state
    return _follow(replace(state, columns=columns, lines=lines))


def take(state: State, sample: Sample) -> State:
    """Go on with a new sample."""
    last = state.sample
    is_anew = last is not None and is_other(last.status, sample.status)
    seconds = sample.time - last.time if last else 0.0
    if last is None or is_anew or seconds <= 0:
        state = replace(state, before=None, rates=() if is_anew else state.rates)
    else:
        state = replace(state, before=last, rates=(*state.rates, rate(last, sample))[-_KEPT:])
    said = "the server was restarted" if is_anew else state.said
    return _follow(replace(state, sample=sample, problem="", said=said))


def miss(state: State, problem: str) -> State:
    """Say why there is no sample; the last one stays to be seen."""
    return replace(state, problem=problem)


def _follow(state: State) -> State:
    """Keep the cursor on what it was on, or else on its row."""
    names = state.names
    if state.at < 0 or not names:
        return replace(state, at=-1, selected="", first=min(state.first, max(0, len(names) - 1)))
    at = names.index(state.selected) if state.selected in names else min(state.at, len(names) - 1)
    return put(state, at)


def put(state: State, at: int) -> State:
    """Put the cursor on a row, and scroll no further than it needs."""
    shown = max(1, room(state))
    first = min(max(state.first, at - shown + 1), at)
    return replace(state, at=at, selected=state.names[at], first=first)
