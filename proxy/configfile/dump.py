"""
A configuration as the text of a file.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from typing import Any

from proxy.config import ProxyConfig
from proxy.configtext import syntax
from proxy.configtext.sections import Path, settings_of, shown
from proxy.networks import Networks
from proxy.settings.limits import LimitConfig
from proxy.settings.listener import ServerConfig
from proxy.settings.rules import RuleConfig
from proxy.settings.upstream import DIRECT, UpstreamConfig
from proxy.targets import Ports, Targets
from proxy.units import write_duration

_Named = ServerConfig | UpstreamConfig | RuleConfig | LimitConfig


def dump(config: ProxyConfig) -> str:
    """Write a configuration with all its defaults as the text of a file, its secrets redacted."""
    # All that listeners share comes from [proxy], so any of them will do.
    first = config.listeners[0]
    users = ["[auth_users]"]
    for name, password in config.auth_users.items():
        if name in config.users_in_file:
            continue
        users.append(f"{syntax.quote_key(name)} = {syntax.quote(shown(('auth_users',), name, password))}")
    blocks = [
        _write_section(("proxy",), lambda key: getattr(config if hasattr(config, key) else first, key)),
        "\n".join(users),
        *_write_sections("listeners", config.listeners),
        _write_section(("control",), lambda key: getattr(config, f"control_{key}")),
        *_write_sections("upstreams", config.upstreams),
        *_write_sections("rules", config.rules),
        *_write_sections("limits", config.limits),
    ]
    return "\n\n".join(blocks) + "\n"


def _write_sections(kind: str, sections: Sequence[_Named]) -> Iterator[str]:
    yield f"[{kind}]"
    for each in sections:
        yield _write_section((kind, each.name), partial(_value_of, each))


def _value_of(section: _Named, key: str) -> Any:
    """Give what stands in the file for a field, which is called otherwise where Python has such a word."""
    if isinstance(section, ServerConfig) and key == "upstream":
        return [each.name for each in section.upstream_config] or [DIRECT]
    value = getattr(section, "from_" if key == "from" else key)
    if isinstance(value, UpstreamConfig):  # via
        return value.name
    return "" if value is None else value


def _write_section(path: Path, get: Callable[[str], Any]) -> str:
    lines = ["[" * len(path) + path[-1] + "]" * len(path)]
    for key, kind in settings_of(path).items():
        value = _write_value(shown(path, key, get(key)), has_commas=kind.has_commas)
        lines.append(f"{key} = {value}".rstrip())
    return "\n".join(lines)


def _write_value(value: Any, *, has_commas: bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (list, tuple)):
        return ", ".join(syntax.quote(each, always=has_commas) for each in value)
    if isinstance(value, (Networks, Targets, Ports)):
        return str(value)
    if isinstance(value, float):
        return write_duration(value)
    return syntax.quote(str(value))
