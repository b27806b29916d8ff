"""
The configuration as frozen values, which are valid if they exist.

This is the whole configuration; its parts, from ``settings``, are exported here for users of the library.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Annotated, ClassVar

from proxy.errors import ConfigError
from proxy.settings.checked import Settings
from proxy.settings.client import ClientConfig, UpstreamAuth
from proxy.settings.egress import ANYHOW, Egress, Family
from proxy.settings.kinds import File, Location, Seconds, Secret, at_least, one_of
from proxy.settings.limits import LimitConfig, Per
from proxy.settings.listener import (
    AnswerTime,
    AuthPolicy,
    ClientAddress,
    Guard,
    Overload,
    ServerConfig,
    Splice,
    Strategy,
)
from proxy.settings.protocols import Protocol, parse_endpoint
from proxy.settings.rules import RuleConfig
from proxy.settings.upstream import UpstreamConfig, UpstreamType

# The names that docs/api.md promises; our own modules import each from where it stands.
__all__ = [
    "ANYHOW",
    "AnswerTime",
    "AuthPolicy",
    "ClientAddress",
    "ClientConfig",
    "Egress",
    "Family",
    "Guard",
    "LimitConfig",
    "Overload",
    "Per",
    "Protocol",
    "ProxyConfig",
    "RuleConfig",
    "ServerConfig",
    "Strategy",
    "UpstreamAuth",
    "UpstreamConfig",
    "UpstreamType",
]

MOST_WORKERS = 64


@dataclass(frozen=True)
class ProxyConfig(Settings):
    """
    A whole configuration file.

    Its users are those of each of its listeners; ``users_in_file`` are in a file of their own. The ``field``
    of its errors is the place in the file, such as ``control.token``.
    """

    listeners: tuple[ServerConfig, ...]
    upstreams: tuple[UpstreamConfig, ...] = ()
    auth_users: Mapping[str, str] = field(default_factory=dict, repr=False)
    users_in_file: frozenset[str] = field(default=frozenset(), repr=False)
    rules: tuple[RuleConfig, ...] = ()
    limits: tuple[LimitConfig, ...] = ()
    drain_timeout: Seconds = 30.0
    drain_delay: Seconds = 0.0
    workers: Annotated[int, at_least(1)] = 1
    reload_interval: Seconds = 1.0
    history_size: Annotated[int, at_least(1)] = 20
    state_dir: str = ""
    log_level: Annotated[str, one_of("debug", "info", "warning", "error")] = "info"
    log_format: Annotated[str, one_of("text", "json")] = "text"
    access_log: File = "-"
    splice: Splice = "auto"
    on_user_change: Annotated[str, one_of("keep", "close")] = "keep"
    control_listen_addr: Location = ""
    control_token: Secret = field(default="", repr=False)

    _place: ClassVar[str] = "proxy."

    def _problems(self) -> Iterator[ConfigError]:
        if not self.access_log:
            yield ConfigError("proxy.access_log", "is empty: write - for stderr, a path, or off")
        if not self.listeners:
            yield ConfigError("listeners", "there is no listener: add a [[name]] section under [listeners]")
        if self.workers > MOST_WORKERS:
            yield ConfigError("proxy.workers", f"is more than {MOST_WORKERS}: one for each core is enough")
        for each in self.listeners:
            if each.max_connections < self.workers:
                what = f"is less than the {self.workers} workers that share it"
                yield ConfigError(f"listeners.{each.name}.max_connections", what)
        if self.control_listen_addr and not self.control_token:
            yield ConfigError("control.token", "is missing: a control listen_addr needs one")
        if not re.fullmatch(r"(?! )[\x20-\x7e]*(?<! )", self.control_token):
            yield ConfigError(
                "control.token",
                "travels in an HTTP header: only ASCII characters that can be seen, no blanks at its ends",
            )
        yield from self._address_problems()

    def _address_problems(self) -> Iterator[ConfigError]:
        places = [(f"listeners.{each.name}", each.endpoint) for each in self.listeners]
        if self.control_listen_addr:
            try:
                control = parse_endpoint("control.listen_addr", self.control_listen_addr, "tcp")
            except ConfigError as exc:
                yield exc
            else:
                if control.scheme != "tcp":
                    yield ConfigError("control.listen_addr", "must be host:port, without a scheme")
                places.append(("control", control))
        for (first, one), (second, other) in combinations(places, 2):
            if one.overlaps(other):
                yield ConfigError(f"{second}.listen_addr", f"is the address of [{first}] too")
