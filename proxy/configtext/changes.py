"""
Say what changed between two texts of a configuration, without a secret.
"""

import difflib
from collections.abc import Iterable, Iterator

from proxy.accesslog import quoted
from proxy.configtext.document import Document, Place, dotted, redact
from proxy.configtext.sections import NAMED, Path, is_secret, shown

_MOST_NAMES = 10
_MOST_CHANGES = 20
_MOST_CHARACTERS = 60  # of a value

Settings = dict[Place, str]


def summary(old: str, new: str) -> str:
    """Name what changed, on one line."""
    before, after = Document(old), Document(new)
    was, now = before.settings(), after.settings()
    changes = [
        *_users(_passwords(was), _passwords(now)),
        *_sections(before.sections, after.sections),
        *_settings(was, now, {*before.sections} & {*after.sections}),
    ]
    if not changes:
        return "comments and order only" if old != new else "nothing"
    more = [f"and {len(changes) - _MOST_CHANGES} more"] if len(changes) > _MOST_CHANGES else []
    return ", ".join(changes[:_MOST_CHANGES] + more)


def diff(old: str, new: str, old_name: str, new_name: str) -> str:
    """Compare two texts line by line, without their secrets; what is not shown is said to have changed."""
    # The lines themselves are compared. They stand behind a NUL, and are cut off again.
    before, after = ([f"{seen}\0{line}" for seen, line in redact(text)] for text in (old, new))
    gone: set[str] = set()
    told = []
    for line in difflib.unified_diff(before, after, old_name, new_name, lineterm=""):
        seen = line.partition("\0")[0]
        if seen.startswith("-"):
            gone.add(seen[1:])
        elif seen.startswith("@@"):
            gone.clear()
        elif seen.startswith("+") and seen[1:] in gone:
            seen += "  # changed"
        told.append(f"{seen}\n")
    return "".join(told)


def _passwords(found: Settings) -> dict[str, str]:
    return {key: value for (path, key), value in found.items() if path == ("auth_users",)}


def _users(was: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    if signed := _signed(map(quoted, was), map(quoted, now)):
        yield f"users {_some(signed)}"
    others = [quoted(name) for name in now if name in was and was[name] != now[name]]
    if others:
        yield f"password of {_some(others)}"


def _sections(before: Iterable[Path], after: Iterable[Path]) -> Iterator[str]:
    for kind in NAMED:
        was, now = (
            [path[1] for path in each if path[0] == kind and len(path) > 1] for each in (before, after)
        )
        if signed := _signed(was, now):
            yield f"{kind} {_some(signed)}"


def _signed(was: Iterable[str], now: Iterable[str]) -> list[str]:
    """Name what came and what went."""
    old, new = dict.fromkeys(was), dict.fromkeys(now)
    return [f"+{name}" for name in new if name not in old] + [f"-{name}" for name in old if name not in new]


def _settings(was: Settings, now: Settings, in_both: set[Path]) -> Iterator[str]:
    # What stands in a section that came or went is said by its name; [proxy] and [control] have none.
    for place in dict.fromkeys((*now, *was)):
        path, _ = place
        is_told = len(path) > 1 and path not in in_both
        if path != ("auth_users",) and not is_told and was.get(place) != now.get(place):
            yield _change(place, was.get(place), now.get(place))


def _change(place: Place, old: str | None, new: str | None) -> str:
    name = dotted(place)
    if new is None:
        return f"{name} unset"
    if is_secret(*place):
        return f"{name} changed"
    new, old = shown(*place, new), None if old is None else shown(*place, old)
    if new == old:
        return f"{name} changed"
    return f"{name} {_short(old)} -> {_short(new)}" if old is not None else f"{name} = {_short(new)}"


def _short(text: str) -> str:
    text = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
    return text if text.isprintable() and text else quoted(text)


def _some(names: list[str]) -> str:
    more = [f"and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return " ".join(names[:_MOST_NAMES] + more)
