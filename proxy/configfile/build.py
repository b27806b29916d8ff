"""
Build a configuration from the contents of a file, and report everything that is wrong with it.

configobj reads the lines that are left, with a configspec for each value; the dataclasses check how values
go together. A setting that was refused is not reported again: whatever is missing without it follows
from the first mistake.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

from configobj import ConfigObj, ConfigObjError

from proxy import selfcheck
from proxy.accesslog import quoted
from proxy.config import ProxyConfig
from proxy.configfile.configspec import CONFIGSPEC, VALIDATOR
from proxy.configfile.usersfile import read_users
from proxy.configtext import syntax
from proxy.configtext.outline import Outline
from proxy.configtext.sections import Path, kind_of
from proxy.configtext.syntax import NO_CLOSING_QUOTE, QUOTE_IT
from proxy.errors import ConfigError
from proxy.settings.checked import SettingsError
from proxy.settings.kinds import FILE, did_you_mean
from proxy.settings.limits import LimitConfig, Per
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import LISTENER_SCHEMES, Protocol
from proxy.settings.rules import ALLOW, BLOCK, RuleConfig
from proxy.settings.upstream import DIRECT, DIRECT_UPSTREAM, UpstreamConfig, UpstreamType
from proxy.tls.contexts import check_readable, client_context, server_context
from proxy.users import OF_OTHERS, Users, check_user, is_of_others

TLS_FILES = ("tls_cert", "tls_key", "tls_ca")
NAMED_FILES = (*TLS_FILES, "users_file")  # which may change without the file

_NO_FILES = ("", "-", "off")  # what an access_log may be instead

T = TypeVar("T")


class Builder:
    """Build a configuration from the outline of a file, adding to its problems."""

    def __init__(self, outline: Outline, folder: str, *, with_files: bool) -> None:
        self._outline = outline
        self._folder = folder
        self._with_files = with_files
        self._known_users: Mapping[str, str] = {}

    def build(self) -> ProxyConfig | None:
        """Build the configuration, or report why there is none."""
        conf = self._validate()
        proxy, control = (self._values((name,), conf[name]) for name in ("proxy", "control"))
        more = self._users_in_file(proxy.get("users_file", ""), conf)
        users = Users(self._checked_users(conf["auth_users"]) | more)
        self._known_users = {**conf["auth_users"], **more}
        upstreams: dict[str, UpstreamConfig | None] = {}
        for name in conf["upstreams"]:
            self._add_upstream(name, conf["upstreams"], upstreams)
        rules = tuple(filter(None, (self._rule(name, conf, upstreams) for name in conf["rules"])))
        self._look_at_rules(rules)
        shared = _only(ServerConfig, proxy) | {"auth_users": users, "rules": rules}
        listeners = [
            self._listener(name, shared | self._values(("listeners", name), each), upstreams)
            for name, each in conf["listeners"].items()
        ]
        values = _only(ProxyConfig, proxy) | {
            "listeners": tuple(filter(None, listeners)),
            "auth_users": users,
            "users_in_file": frozenset(more),
            "upstreams": tuple(filter(None, (upstreams[name] for name in conf["upstreams"]))),
            "rules": rules,
            "limits": tuple(filter(None, (self._limit(name, conf) for name in conf["limits"]))),
            **{f"control_{key}": value for key, value in control.items()},
        }
        config = self._make(ProxyConfig, (), values)
        if config and self._with_files:
            for problem in selfcheck.problems(config):
                self._outline.report_at(*_place_in_file(problem.field), str(problem))
            for warning in selfcheck.warnings(config):
                self._outline.warn_at(*_place_in_file(warning.field), str(warning))
        return config

    def _validate(self) -> dict[str, Any]:
        """Let configobj read and check the values; those that it refuses are reported and left out."""
        conf = self._parse(list(self._outline.lines))
        self._compare(conf)
        for path, key, outcome in _failures(conf.validate(VALIDATOR, preserve_errors=True)):
            self._outline.report_at(path, key, str(outcome) if outcome else "is missing")
            _section(conf, path).pop(key, None)
        return {name: section.dict() for name, section in conf.items()}

    def _parse(self, lines: list[str]) -> ConfigObj:
        try:
            return ConfigObj(lines, configspec=CONFIGSPEC, interpolation=False)
        except ConfigObjError as exc:
            places = {line: place for place, line in self._outline.places.items()}
            for error in exc.errors:
                place = places.get(error.line_number, ((), ""))
                is_open = syntax.lacks_a_quote(lines[error.line_number - 1].partition("=")[2])
                what = NO_CLOSING_QUOTE if is_open else "cannot be read: check the quotes and commas"
                self._outline.refuse(error.line_number, what, *place)
                lines[error.line_number - 1] = ""
            return self._parse(lines)

    def _compare(self, conf: ConfigObj) -> None:
        # Two readers have to agree: a setting is what stands in the file, or the file is refused.
        outline = self._outline
        for path, key in outline.places.keys() - outline.refused:
            value = _section(conf, path).get(key) if key else ""
            if value is None or value != outline.secrets.get((path, key), value):
                outline.report_at(path, key, f"cannot be read: {QUOTE_IT}")

    def _checked_users(self, users: Mapping[str, str]) -> dict[str, str]:
        """Take the users who can be, and report the others."""
        for name, password in users.items():
            try:
                check_user(name, password)
            except ConfigError as exc:
                self._outline.report_at(("auth_users",), name, str(exc))
            if is_of_others(password):
                self._outline.warn_at(("auth_users",), name, OF_OTHERS)
        return {name: users[name] for name in users if (("auth_users",), name) not in self._outline.refused}

    def _users_in_file(self, path: str, conf: Mapping[str, Any]) -> dict[str, str]:
        """Read the users of a file, or report what is wrong with it."""
        if not path or not self._with_files:
            return {}
        read = read_users(path, conf["auth_users"])
        self._outline.problems += read.problems
        self._outline.warnings += read.warnings
        return read.users

    def _add_upstream(
        self,
        name: str,
        sections: Mapping[str, Mapping[str, Any]],
        made: dict[str, UpstreamConfig | None],
        before: tuple[str, ...] = (),
    ) -> None:
        """Make an upstream, and first the one that it is reached via; ``before`` are those that want it."""
        if name in made:
            return
        via, way = sections[name].get("via") or "", (*before, name)
        if via in way:
            self._outline.report_at(
                ("upstreams", name), "via", f"leads in a circle: {' via '.join((*way, via))}"
            )
        elif via in sections:
            self._add_upstream(via, sections, made, way)
        elif via:
            self._outline.report_at(("upstreams", name), "via", _why_no_upstream(via, sections))
        made[name] = self._upstream(name, {**sections[name], "via": made.get(via)})

    def _upstream(self, name: str, section: Mapping[str, Any]) -> UpstreamConfig | None:
        path = ("upstreams", name)
        if name == DIRECT:
            self._outline.report_at(path, "", f"{DIRECT} is built in: give this upstream another name")
        values = self._values(path, section)
        self._try_files(path, values)
        return self._make(UpstreamConfig, path, {"name": name, **values}, type=UpstreamType)

    def _listener(
        self, name: str, values: dict[str, Any], upstreams: Mapping[str, UpstreamConfig | None]
    ) -> ServerConfig | None:
        path, refused = ("listeners", name), self._outline.refused
        wanted = values.pop("upstream", [DIRECT])
        values["upstream_config"] = self._ways(path, "upstream", wanted, upstreams)
        if any(section == ("auth_users",) for section, _ in refused):
            values.pop("auth", None)  # which may need a user
        self._try_files(path, values)
        values = {"name": name, "listen_addr": ":0", **values}
        listener = self._make(ServerConfig, path, values, protocol=LISTENER_SCHEMES)
        if listener is None:
            refused.add((("listeners",), ""))
            with suppress(ConfigError):  # its address is compared with the others' all the same
                return ServerConfig(values["listen_addr"], values.get("protocol", Protocol.SOCKS5), name)
        return listener

    def _rule(
        self, name: str, conf: Mapping[str, Any], upstreams: Mapping[str, UpstreamConfig | None]
    ) -> RuleConfig | None:
        path = ("rules", name)
        values = self._chosen(path, conf)
        action = values.get("action", (ALLOW,))
        if not {ALLOW, BLOCK} & set(action):
            values["upstream_config"] = self._ways(path, "action", action, upstreams, (ALLOW, BLOCK))
        return self._make(RuleConfig, path, {"name": name, **values})

    def _ways(
        self,
        path: Path,
        key: str,
        wanted: Iterable[str],
        upstreams: Mapping[str, UpstreamConfig | None],
        words: Sequence[str] = (),
    ) -> tuple[UpstreamConfig, ...]:
        """
        Find the upstreams that a setting lists, and report those that are not there.

        In their place the setting takes ``words``, of which a report reminds.
        """
        known = {DIRECT: DIRECT_UPSTREAM, **upstreams}
        for unknown in (each for each in wanted if each not in known):
            if (("upstreams",), "") not in self._outline.refused:
                self._outline.report_at(path, key, _why_no_upstream(unknown, known, words))
        return tuple(one for each in wanted if (one := known.get(each)))

    def _look_at_rules(self, rules: Sequence[RuleConfig]) -> None:
        """Warn of what a rule can hardly be meant to do."""
        for number, rule in enumerate(rules):
            path = ("rules", rule.name)
            if before := next((each for each in rules[:number] if each.covers(rule)), None):
                self._outline.warn_at(
                    path, "", f"is never reached: all that it is for, {before.name} decides"
                )
            if rule.is_block and rule.to.has_names and not rule.to.has_addresses:
                what = "blocks names only: who asks for their addresses comes there all the same"
                self._outline.warn_at(path, "to", what)
            if rule.resolve and not rule.to.has_addresses:
                what = "has no effect: to has no address, network or word"
                self._outline.warn_at(path, "resolve", what)

    def _chosen(self, path: Path, conf: Mapping[str, Any]) -> dict[str, Any]:
        """Take the values of a section that says whom it is for, and look for those."""
        values = self._values(path, conf[path[0]][path[1]])
        for listener in (each for each in values.get("listener", ()) if each not in conf["listeners"]):
            if (("listeners",), "") not in self._outline.refused:
                hint = did_you_mean(listener, conf["listeners"])
                self._outline.report_at(path, "listener", f"there is no {listener} in [listeners]{hint}")
        if strangers := [each for each in values.get("user", ()) if each not in self._known_users]:
            where = "[auth_users] and users_file" if conf["proxy"].get("users_file") else "[auth_users]"
            self._outline.warn_at(path, "user", f"not in {where}: {', '.join(map(quoted, strangers))}")
        if "from" in values:
            values["from_"] = values.pop("from")
        return values

    def _limit(self, name: str, conf: Mapping[str, Any]) -> LimitConfig | None:
        path = ("limits", name)
        values = self._chosen(path, conf)
        if any(section == path for section, _ in self._outline.refused):
            # Of what was refused one might be all that it limits.
            values.setdefault("connections", 1)
        return self._make(LimitConfig, path, {"name": name, **values}, per=Per)

    def _try_files(self, path: Path, values: Mapping[str, Any]) -> None:
        """Report what is wrong with the TLS files that a section names, whatever else is."""
        if not self._with_files or values.get("protocol") is Protocol.SOCKS5:
            return
        cert, key, ca = (values.get(each) for each in TLS_FILES)
        tries: list[Callable[[], object]] = [
            partial(check_readable, each, values[each]) for each in TLS_FILES if values.get(each)
        ]
        if cert and key:
            tries.append(partial(server_context, cert, key))
        if ca:
            tries.append(partial(client_context, ca))
        for each in tries:
            try:
                each()
            except ConfigError as exc:
                self._outline.report_at(path, exc.field, str(exc))

    def _values(self, path: Path, section: Mapping[str, Any]) -> dict[str, Any]:
        """Take the values that were given; the names of files are put into the folder of this one."""
        values = {key: value for key, value in section.items() if value is not None}
        for key, value in values.items():
            if kind_of(path, key) is FILE and value not in _NO_FILES:
                values[key] = os.path.join(self._folder, os.path.expanduser(value))
        return values

    def _make(
        self, kind: Callable[..., T], path: Path, values: dict[str, Any], **choices: Iterable[object]
    ) -> T | None:
        """
        Make a value of a section, or report what is wrong with it.

        If what decides about the others is not known, that is what is wrong with each of its ``choices``.
        """
        options = [{**values, key: one} for key, many in choices.items() if key not in values for one in many]
        complaints: list[list[tuple[str, str]]] = []
        for option in options or [values]:
            try:
                made = kind(**option)
                complaints.append([])
            except SettingsError as exc:
                complaints.append([(each.field, str(each)) for each in exc.problems])
        for field, message in complaints[0]:
            if all((field, message) in each for each in complaints):
                # A field whose name is a word of Python's has a mark behind it.
                place = (path, field.rstrip("_")) if path else _place_in_file(field)
                self._outline.report_at(*place, message)
        return None if options or complaints[0] else made


def _why_no_upstream(name: str, known: Iterable[str], words: Sequence[str] = ()) -> str:
    if not re.fullmatch(r"[\w.; \t-]+", name):
        return "is not a name from [upstreams]"  # an address, perhaps, and with a password in it
    if re.search(r"[; \t]", name):
        return f'there is no upstream "{name}": names are separated by commas'
    or_word = f", and it is not {' or '.join(words)}" if words else ""
    return f"there is no {name} in [upstreams]{or_word}{did_you_mean(name, (*known, *words))}"


def _failures(outcome: Any, path: Path = ()) -> Iterator[tuple[Path, str, Any]]:
    """Walk the result of a validation: an exception is a wrong value, False a missing one."""
    for key, inner in outcome.items() if isinstance(outcome, dict) else ():
        if isinstance(inner, dict):
            yield from _failures(inner, (*path, key))
        elif inner is not True:
            yield path, key, inner


def _section(conf: ConfigObj, path: Path) -> Any:
    for name in path:
        conf = conf.get(name, {})
    return conf


def _only(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {key: value for key, value in values.items() if key in names}


def _place_in_file(name: str) -> tuple[Path, str]:
    """Split the name that ``ProxyConfig`` has for a place, such as ``listeners.web.listen_addr``."""
    section, _, key = name.rpartition(".")
    return (tuple(section.split(".", 1)), key) if section else ((key,), "")
