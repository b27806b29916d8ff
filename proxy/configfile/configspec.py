"""
The configspec by which configobj checks the values of a file: each setting has its own check.
"""

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from configobj import ConfigObj
from configobj.validate import ValidateError, Validator

from proxy.configtext.sections import MANY, NAMED, SETTINGS
from proxy.configtext.syntax import QUOTE_IT
from proxy.settings.kinds import Kind
from proxy.settings.limits import LimitConfig
from proxy.settings.listener import SHARED, ServerConfig
from proxy.settings.upstream import DIRECT, UpstreamConfig

_REQUIRED = {
    (section, each.name)
    for section, kind in (("listeners", ServerConfig), ("upstreams", UpstreamConfig), ("limits", LimitConfig))
    for each in fields(kind)
    if each.default is MISSING
}


def _check(kind: Kind, *, may_be_empty: bool = False) -> Callable[[str | list[str]], Any]:
    """Make a check for the validator."""

    def check(value: str | list[str]) -> Any:
        if kind.has_commas:
            value = [value] if isinstance(value, str) and value else list(value)
        elif kind.is_list:
            # In quotes it is one text.
            value = ", ".join(value) if isinstance(value, list) else value
            value = [part.strip() for part in value.split(",")] if value else []
        elif isinstance(value, list):
            raise ValidateError(f"has a comma: {QUOTE_IT}")
        if may_be_empty and not value:
            return None
        try:
            return kind.parse(value)
        except ValueError as exc:
            raise ValidateError(str(exc)) from None

    return check


def _names(value: str | list[str]) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not all(names) or not names:
        raise ValidateError(f"is empty, or has an empty name: list upstreams, or write {DIRECT}")
    if len(set(names)) < len(names):
        raise ValidateError("has the same upstream twice")
    return names


def _configspec() -> tuple[ConfigObj, Validator]:
    """Make what configobj checks a file with: its every setting has a check of its own."""
    checks, spec = {}, {}
    for section, known in SETTINGS.items():
        lines = {}
        for key, kind in known.items():
            # The default of a setting is that of its field.
            name = f"{section}_{key}"
            lines[key] = name if (section, key) in _REQUIRED or key == MANY else f"{name}(default=None)"
            # A listener need not have a limit of its own, and [limits] need not limit everything.
            may_be_empty = (section == "listeners" and key in SHARED) or section == "limits"
            checks[name] = _check(kind, may_be_empty=may_be_empty and (section, key) not in _REQUIRED)
        spec[section] = {MANY: lines} if section in NAMED else lines
    return ConfigObj(spec, interpolation=False, list_values=False, _inspec=True), Validator(
        checks | {"listeners_upstream": _names}
    )


CONFIGSPEC, VALIDATOR = _configspec()
