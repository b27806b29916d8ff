"""
What a configuration file may have: the configspec, the checks it names, and what to say of the rest.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable
from enum import Enum
from importlib import resources

from configobj import ConfigObj
from configobj.validate import ValidateError, Validator

from proxy.address import Endpoint
from proxy.config import (
    CHOICES,
    DIRECT,
    AuthPolicy,
    Overload,
    Protocol,
    Strategy,
    UpstreamType,
)
from proxy.configfile.syntax import QUOTE_IT
from proxy.redact import REDACTED, without_query
from proxy.units import check_count, parse_duration, parse_size

Path = tuple[str, ...]  # of a section: ("proxy",) or ("listeners", "web")

SPEC = ConfigObj(
    resources.files("proxy.configfile").joinpath("configspec.ini").read_text("utf-8").splitlines(),
    interpolation=False,
    list_values=False,
    _inspec=True,
)
ENUMS: dict[str, type[Enum]] = {
    "protocol": Protocol,
    "type": UpstreamType,
    "strategy": Strategy,
    "overload": Overload,
    "auth": AuthPolicy,
}
FILES = ("access_log", "tls_cert", "tls_key", "tls_ca")  # their relative paths start at the file's folder
NO_FILES = ("", "-", "off")  # what an access_log may be instead

_MANY = "__many__"
_RESERVED = (_MANY, "___many___")  # in a configspec these stand for any name, so no name can be one of them
_YES = ("yes", "true", "on", "1")
_NO = ("no", "false", "off", "0")


def is_secret(path: Path, key: str) -> bool:
    """Tell whether a setting is a password or a token."""
    home = {"proxy_password": "upstreams", "token": "control"}.get(key)
    # Above the first section there can be no setting; but there may be one in a file that is damaged.
    return path == ("auth_users",) or (home is not None and path[:1] in ((), (home,)))


def shown(path: Path, key: str, value: str) -> str:
    """Give a value as others may see it."""
    if is_secret(path, key) or not knows(path, key):
        return REDACTED if value else ""
    if key not in ("proxy_address", "listen_addr"):
        return value
    address = without_query(value)
    return REDACTED if "@" in address else address  # with credentials, which do not belong there


def knows(path: Path, key: str = "") -> bool:
    """Tell whether there can be such a section, or such a setting in it."""
    if not path or path[0] not in SPEC.sections or (len(path) > 1 and _why_no_child(path)):
        return False
    return not key or key in keys_of(path) or _MANY in keys_of(path)


def keys_of(path: Path) -> tuple[str, ...]:
    """List the keys that a section may have; [auth_users] takes any."""
    spec = SPEC[path[0]][_MANY] if len(path) > 1 else SPEC[path[0]]
    return tuple(spec.scalars)


def why_no_section(path: Path, depth: int, keys: set[str]) -> str:
    """Say why there can be no section of this name in this place; nothing, if there can."""
    name = path[-1]
    if depth > 2:
        return "a section has one or two brackets, not more"
    if depth == 1:
        return "" if name in SPEC.sections else _why_unknown_section(name, keys)
    if not path[0]:
        is_known = name in SPEC.sections
        return f"has too many brackets: write [{name}]" if is_known else _why_unknown_section(name, keys)
    return _why_no_child(path, keys)


def _why_no_child(path: Path, keys: Collection[str] = ()) -> str:
    name = path[-1]
    if _MANY not in SPEC[path[0]].sections:
        hint = f"write [{name}]" if name in SPEC.sections else "write its settings as key = value"
        return f"there are no sections inside [{path[0]}]: {hint}"
    if name in SPEC.sections and not {"protocol", "listen_addr", "type"}.intersection(keys):
        return f"this would be a part of [{path[0]}]: write [{name}]"
    if name in _RESERVED or not re.fullmatch(r"[\w.-]+", name):
        return "a name consists of letters, digits, and the characters _ . -"
    return ""


def _why_unknown_section(name: str, keys: set[str]) -> str:
    for kind, marks in (("listeners", {"protocol", "listen_addr"}), ("upstreams", {"type", "proxy_address"})):
        if keys & marks:
            return f"stands in the wrong place: write it with two brackets, [[name]], below [{kind}]"
    return f"unknown section{did_you_mean(name, SPEC.sections, '[{}]')}"


def why_no_key(path: Path, key: str) -> str:
    """Say why a key does not belong into a section, and where it does; nothing, if it does belong."""
    known = keys_of(path) if path else ()
    if key in _RESERVED:
        return "this name cannot be used"
    if key in known or _MANY in known:
        return ""
    if key in SPEC.sections:
        return f"is a section: write [{key}] on a line of its own"
    homes = _homes_of(key)
    if path in (("listeners",), ("upstreams",)):
        homes = [home for home in homes if path[0] in home] or homes
    if homes:
        return f"unknown key here: it belongs into {' or '.join(homes)}"
    return f"unknown key{did_you_mean(key, known)}" if path else "stands before the first section"


def _homes_of(key: str) -> list[str]:
    sections = [f"[{name}]" for name in ("proxy", "control") if key in SPEC[name].scalars]
    several = [name for name in ("listeners", "upstreams") if key in SPEC[name][_MANY].scalars]
    return sections + [f"a section [[name]] below [{name}]" for name in several]


def did_you_mean(text: str, known: Iterable[str], form: str = "{}") -> str:
    """Suggest the nearest known name, if one is near."""
    close = difflib.get_close_matches(text, list(known), n=1)
    return f"; did you mean {form.format(close[0])}?" if close else ""


# The checks that configspec.ini names


def _check(parse: Callable[..., object]) -> Callable[..., object]:
    """Make a check for the validator of a function that reads text or raises ``ValueError``."""

    def check(value: str | list[str], *args: str) -> object:
        if isinstance(value, list):
            raise ValidateError(f"has a comma: {QUOTE_IT}")
        try:
            return parse(value, *args)
        except ValueError as exc:
            raise ValidateError(str(exc)) from None

    return check


def _duration(text: str, kind: str = "") -> float:
    seconds = parse_duration(text)
    if kind == "positive" and not seconds:
        raise ValueError("must be more than 0")
    return seconds


def _number(text: str, minimum: str, kind: str = "") -> int | None:
    if kind == "optional" and not text:
        return None
    return check_count(parse_size(text), int(minimum))


def _address(text: str, kind: str = "") -> str:
    if text or kind != "optional":
        # Which schemes fit here is for the dataclasses to say; ws may have all that any other has.
        Endpoint.parse(text, scheme="ws")
    return text


def _switch(text: str) -> bool:
    if text.lower() not in (*_YES, *_NO):
        raise ValueError("is neither yes nor no")
    return text.lower() in _YES


def _choice(words: Iterable[str]) -> Callable[[str], str]:
    known = tuple(words)

    def check(text: str) -> str:
        if text not in known:
            raise ValueError(f"is none of {', '.join(known)}{did_you_mean(text.lower(), known)}")
        return text

    return check


def _names(value: str | list[str]) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not all(names) or not names:
        raise ValidateError(f"is empty, or has an empty name: list upstreams, or write {DIRECT}")
    if len(set(names)) < len(names):
        raise ValidateError("has the same upstream twice")
    return names


_WORDS = {name: tuple(each.value for each in kind) for name, kind in ENUMS.items()} | CHOICES
VALIDATOR = Validator(
    {name: _check(_choice(words)) for name, words in _WORDS.items()}
    | {
        "duration": _check(_duration),
        "number": _check(_number),
        "address": _check(_address),
        "switch": _check(_switch),
        "text": _check(str),
        "names": _names,
    }
)
