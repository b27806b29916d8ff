"""
Which sections and settings a configuration file may have, and what to say of any others.

A setting is a field of a class in ``settings`` or ``config``, whose type says what kind it is. Here they
are assigned to sections.
"""

import re
from collections.abc import Collection, Mapping

from proxy.address import is_unix
from proxy.config import ProxyConfig
from proxy.redact import REDACTED, without_query
from proxy.settings.kinds import ADDRESS, HEADERS, PATH, SECRET, TEXT, Kind, did_you_mean, nearest
from proxy.settings.limits import LimitConfig
from proxy.settings.listener import SHARED, ServerConfig
from proxy.settings.rules import RuleConfig
from proxy.settings.upstream import UpstreamConfig

Path = tuple[str, ...]  # of a section: ("proxy",) or ("listeners", "web")

MANY = "__many__"
_RESERVED = (MANY, "___many___")  # in a configspec these stand for any name, so no name can be one of them
NAMED = ("listeners", "upstreams", "rules", "limits")  # which have a section for each of them
_CONTROL = "control_"  # with which the fields of [control] begin

_program, _listener = ProxyConfig.kinds, ServerConfig.kinds
_own = {key: kind for key, kind in _listener.items() if key != "name" and key not in SHARED}

# All settings by their sections, in the order in which they are printed; [auth_users] has any.
SETTINGS: Mapping[str, Mapping[str, Kind]] = {
    "proxy": {key: _listener[key] for key in SHARED}
    | {key: kind for key, kind in _program.items() if not key.startswith(_CONTROL)},
    "auth_users": {MANY: SECRET},
    "listeners": _own | {"upstream": TEXT, "max_connections": _listener["max_connections"]},
    "control": {
        key.removeprefix(_CONTROL): kind for key, kind in _program.items() if key.startswith(_CONTROL)
    },
    "upstreams": {key: kind for key, kind in UpstreamConfig.kinds.items() if key != "name"},
    # from is a word of Python's, so the field has a mark behind it.
    "rules": {key.rstrip("_"): kind for key, kind in RuleConfig.kinds.items() if key != "name"},
    "limits": {key.rstrip("_"): kind for key, kind in LimitConfig.kinds.items() if key != "name"},
}


def settings_of(path: Path) -> Mapping[str, Kind]:
    """List the settings that a section may have, each with its kind."""
    is_section = path and (path[0] in NAMED) == (len(path) > 1)
    return SETTINGS.get(path[0], {}) if is_section else {}


def kind_of(path: Path, key: str) -> Kind | None:
    """Tell of what kind a setting is; None for one that there cannot be."""
    known = settings_of(path)
    return known.get(key) or known.get(MANY)


def is_secret(path: Path, key: str) -> bool:
    """Tell whether a setting is, or has in it, a password or a token."""
    # Above the first section there can be no setting; but there may be one in a file that is damaged.
    kinds = [SETTINGS.get(home, {}).get(key) for home in path[:1] or SETTINGS]
    return path == ("auth_users",) or any(kind is not None and kind.is_secret for kind in kinds)


def shown(path: Path, key: str, value: str) -> str:
    """Give a value as others may see it."""
    kind = kind_of(path, key)
    if is_secret(path, key) or not knows(path, key):
        # What is shown is a file itself, and so there are headers in it.
        hidden = f"{REDACTED}: {REDACTED}" if kind is HEADERS else REDACTED
        return hidden if value else ""
    if path[0] == "listeners" and kind is ADDRESS and is_unix(value):
        return value
    if kind in (ADDRESS, PATH):
        value = without_query(value)
    # With credentials, which do not belong there.
    return REDACTED if kind is ADDRESS and "@" in value else value


def knows(path: Path, key: str = "") -> bool:
    """Tell whether there can be such a section, or such a setting in it."""
    if not path or path[0] not in SETTINGS or (len(path) > 1 and _why_no_child(path)):
        return False
    return not key or kind_of(path, key) is not None


def why_no_section(path: Path, depth: int, keys: set[str]) -> str:
    """Say why there can be no section of this name in this place; nothing, if there can."""
    name = path[-1]
    if depth > 2:
        return "a section has one or two brackets, not more"
    if depth == 1:
        return "" if name in SETTINGS else _why_unknown_section(name, keys)
    if not path[0]:
        is_known = name in SETTINGS
        return f"has too many brackets: write [{name}]" if is_known else _why_unknown_section(name, keys)
    return _why_no_child(path, keys)


def _why_no_child(path: Path, keys: Collection[str] = ()) -> str:
    name = path[-1]
    if path[0] not in NAMED:
        hint = f"write [{name}]" if name in SETTINGS else "write its settings as key = value"
        return f"there are no sections inside [{path[0]}]: {hint}"
    if name in SETTINGS and not {"protocol", "listen_addr", "type"}.intersection(keys):
        return f"this would be a part of [{path[0]}]: write [{name}]"
    if name in _RESERVED or not re.fullmatch(r"[\w.-]+", name):
        return "a name consists of letters, digits, and the characters _ . -"
    return ""


def _why_unknown_section(name: str, keys: set[str]) -> str:
    for kind, marks in (
        ("listeners", {"protocol", "listen_addr"}),
        ("upstreams", {"type", "proxy_address"}),
        ("limits", {"per"}),
        ("rules", {"to", "action"}),
    ):
        if keys & marks:
            return f"is in the wrong place: write it with two brackets, [[name]], below [{kind}]"
    return f"unknown section{did_you_mean(name, SETTINGS, '[{}]')}"


def why_no_key(path: Path, key: str) -> str:
    """Say why a key does not belong into a section, and where it does; nothing, if it does belong."""
    known = settings_of(path)
    if key in _RESERVED:
        return "this name cannot be used"
    if key in known or MANY in known:
        return ""
    if key in SETTINGS:
        return f"is a section: write [{key}] on a line of its own"
    homes = _homes_of(key)
    if len(path) == 1 and path[0] in NAMED:
        homes = [home for home in homes if path[0] in home] or homes
    if homes:
        return f"unknown key here: it belongs into {' or '.join(homes)}"
    return f"unknown key{did_you_mean(key, known)}" if path else "is before the first section"


def meant_by(path: Path, key: str) -> str:
    """Give the setting that a key is likely to be which is unknown everywhere; nothing, if none is near."""
    return "" if key in SETTINGS or _homes_of(key) else nearest(key, settings_of(path))


def _homes_of(key: str) -> list[str]:
    homes = sorted((section for section, known in SETTINGS.items() if key in known), key=NAMED.__contains__)
    return [f"a section [[name]] below [{each}]" if each in NAMED else f"[{each}]" for each in homes]
