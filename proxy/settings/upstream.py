"""
An upstream: a proxy, or ``direct``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated

from proxy.errors import ConfigError
from proxy.settings.checked import Settings, SettingsError
from proxy.settings.client import TLS_CA, ClientConfig, Headers, Term, UpstreamAuth, credential_problems
from proxy.settings.egress import ANYHOW, Egress, Family
from proxy.settings.kinds import (
    TEXT,
    File,
    Interface,
    Location,
    Seconds,
    Secret,
    SomeSeconds,
    SourceAddress,
    at_least,
    up_to,
)
from proxy.settings.protocols import Protocol

DIRECT = "direct"  # the name of the upstream that is always there
AUTO = "auto"
Spare = Annotated[str | int, up_to(64, or_word=AUTO)]
_SPARES = 8  # with auto


class UpstreamType(str, Enum):
    """How an upstream is spoken to."""

    DIRECT = "direct"
    SOCKS5 = "socks5"
    HTTP = "http"
    WEBSOCKET = "websocket"


_TUNNELS = (UpstreamType.SOCKS5, UpstreamType.HTTP)  # through which one can speak with another proxy


@dataclass(frozen=True)
class UpstreamConfig(Settings):
    """
    A way out.

    ``retry_count`` is how many further attempts follow a failed one, and ``spare`` how many connections to
    the proxy may be ready at most, or ``auto``. ``via`` is another one, by which its proxy is reached.
    ``source``, ``interface`` and ``family`` say how connections leave this machine: those to the proxy, or
    those of a direct one to its targets. ``authorities`` is what messages call ``tls_ca``.
    """

    name: str
    type: UpstreamType
    proxy_address: Location = ""
    proxy_username: str = ""
    proxy_password: Secret = field(default="", repr=False)
    timeout: SomeSeconds = 10.0
    retry_count: Annotated[int, at_least(0)] = 2
    tls_ca: File = ""
    tls_verify: bool = True
    ping_interval: Seconds = 30.0
    via: Annotated["UpstreamConfig | None", TEXT] = None
    spare: Spare = AUTO
    auth: UpstreamAuth = UpstreamAuth.HEADERS
    host: str = ""
    sni: str = ""
    tls_cert: File = ""
    tls_key: File = ""
    headers: Headers = field(default=(), repr=False)
    source: SourceAddress = ""
    interface: Interface = ""
    family: Family = Family.AUTO
    authorities: Term = TLS_CA

    def _problems(self) -> Iterator[ConfigError]:
        if self.type is UpstreamType.DIRECT:
            foreign = ("proxy_address", "proxy_username", "proxy_password", "host", "sni", "via", "headers")
            if self.files or any(getattr(self, name) for name in foreign):
                what = "proxy_address, credentials, headers, TLS settings or via"
                yield ConfigError("type", f"a direct upstream has no {what}")
        elif not self.proxy_address:
            yield ConfigError("proxy_address", f"is missing: type = {self.type.value} needs one")
            login = ("proxy_username", self.proxy_username, "proxy_password", self.proxy_password)
            yield from credential_problems(*login, Protocol(self.type.value))
        else:
            yield from self._client_problems()

        if self.via and self.via.type not in _TUNNELS:
            yield ConfigError(
                "via", f"must name a socks5 or http upstream, and {self.via.name} is another type"
            )
        yield from self._egress_problems()

    def _egress_problems(self) -> Iterator[ConfigError]:
        try:
            egress = self.egress
        except SettingsError as exc:
            yield from exc.problems
            return
        for name in Egress.kinds:
            if self.via and getattr(egress, name) != getattr(ANYHOW, name):
                yield ConfigError(name, f"it is reached via {self.via.name}, which says how it leaves")

    @property
    def egress(self) -> Egress:
        """How it leaves this machine, or its proxy is reached."""
        return Egress(self.source, self.interface, self.family)

    @property
    def is_plain(self) -> bool:
        """True if it goes out directly, as the system does it."""
        return self.type is UpstreamType.DIRECT and self.egress == ANYHOW

    @property
    def hops(self) -> "tuple[UpstreamConfig, ...]":
        """Itself, and those that it is reached via, the last of which is connected to from here."""
        return (self, *(self.via.hops if self.via else ()))

    @property
    def most_spares(self) -> int:
        """How many connections may be ready at most, before they are needed."""
        if self.type is UpstreamType.DIRECT:
            return 0
        return _SPARES if isinstance(self.spare, str) else self.spare

    def _client_problems(self) -> Iterator[ConfigError]:
        names = {"server_addr": "proxy_address", "username": "proxy_username", "password": "proxy_password"}
        try:
            _ = self.client_config
        except SettingsError as exc:
            yield from (ConfigError(names.get(each.field, each.field), str(each)) for each in exc.problems)

    @property
    def client_config(self) -> ClientConfig:
        """The same, as the client that dials it wants it."""
        return ClientConfig(
            server_addr=self.proxy_address,
            protocol=Protocol(self.type.value),
            username=self.proxy_username,
            password=self.proxy_password,
            timeout=self.timeout,
            tls_ca=self.tls_ca,
            tls_verify=self.tls_verify,
            ping_interval=self.ping_interval,
            auth=self.auth,
            host=self.host,
            sni=self.sni,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            headers=self.headers,
            egress=self.egress,
            authorities=self.authorities,
        )

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names, which may change without it."""
        return tuple(filter(None, (self.tls_ca, self.tls_cert, self.tls_key)))


DIRECT_UPSTREAM = UpstreamConfig(DIRECT, UpstreamType.DIRECT)
