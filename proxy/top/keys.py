"""
The keys: how each changes the state, and what else it does.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import quote

from proxy.top.picture import room
from proxy.top.state import GROUP_SORTS, GROUPS, MOST_ROWS, SORTS, State, path
from proxy.top.updates import put


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
    count = len(state.names)
    if not count:
        return state
    page = max(1, room(state) - 1)
    steps = {"up": -1, "down": 1, "pageup": -page, "pagedown": page, "home": -count, "end": count}
    # The first step only brings the cursor up.
    at = state.at + steps[key] if state.at >= 0 or steps[key] > 0 else 0
    return put(state, min(max(at, 0), count - 1))


def _is_short(state: State) -> bool:
    """Tell whether the cursor came near the end of what was asked for, and there is more."""
    if not state.sample:
        return False
    listing, known = state.sample.listing, len(state.sample.rows)
    there: int = listing["total" if "groups" in listing else "matching"]
    return state.at + room(state) > known < min(there, MOST_ROWS)


def _anew(state: State, **changes: Any) -> State:
    """Change what is listed, and begin at its top."""
    return replace(state, selected="", at=-1, first=0, **changes)


def _next_sort(state: State, step: int) -> State:
    sorts = GROUP_SORTS if state.group else SORTS
    return _anew(state, sort=sorts[(sorts.index(state.sort) + step) % len(sorts)], is_turned=False)


def _next_group(state: State) -> State:
    group = GROUPS[(GROUPS.index(state.group) + 1) % len(GROUPS)]
    return _grouped(state, group)


def _grouped(state: State, group: str, **changes: Any) -> State:
    sort = state.sort if state.sort in (GROUP_SORTS if group else SORTS) else "rate"
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
