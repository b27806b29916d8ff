"""
A listener: where clients come in, and what applies to their connections.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated
from urllib.parse import quote

from proxy.address import UNIX_SCHEME, Address, Endpoint, IPAddress, UnixAddress, is_unix
from proxy.errors import ConfigError, NotAClientError
from proxy.networks import NO_NETWORKS, Networks
from proxy.settings.checked import Settings
from proxy.settings.kinds import (
    NETWORKS,
    File,
    FileMode,
    Location,
    Penalty,
    Seconds,
    SomeSeconds,
    UrlPath,
    at_least,
    one_of,
)
from proxy.settings.protocols import LISTENER_SCHEMES, SECURE, ListenerProtocol, Protocol, parse_endpoint
from proxy.settings.rules import RuleConfig
from proxy.settings.upstream import DIRECT_UPSTREAM, UpstreamConfig
from proxy.targets import Word
from proxy.users import Users

Splice = Annotated[str, one_of("auto", "off")]

# Of a Unix socket: it is there for a server of another user, who can be made a member of the group.
_MODE = "0660"
_AS_IT_IS = "/?%#[]@!$&'()*+,;=:"  # what stays in a path whose other characters are escaped


class Strategy(str, Enum):
    """In which order a listener's upstreams are tried."""

    FAILOVER = "failover"
    ROUND_ROBIN = "round_robin"
    RANDOM = "random"


class Overload(str, Enum):
    """What happens to clients above ``max_connections``."""

    WAIT = "wait"
    REFUSE = "refuse"


class AuthPolicy(str, Enum):
    """Whether a listener asks for credentials; ``auto`` is: when there are users."""

    AUTO = "auto"
    REQUIRED = "required"
    NONE = "none"


class AnswerTime(str, Enum):
    """When a WebSocket client gets its 101: with its target, or before, as it cannot take a refusal."""

    WHEN_CONNECTED = "when_connected"
    AT_ONCE = "at_once"


class ClientAddress(str, Enum):
    """Whose word counts on who a client is."""

    SOCKET = "socket"
    X_FORWARDED_FOR = "x_forwarded_for"
    PROXY_PROTOCOL = "proxy_protocol"


class Guard(str, Enum):
    """Which targets need a rule that names them; ``auto`` is: as who can come to a listener calls for."""

    AUTO = "auto"
    OFF = "off"
    METADATA = "metadata"
    SELF = "self"
    PRIVATE = "private"


@dataclass(frozen=True)
class ServerConfig(Settings):
    """
    One listener, with all that its connections need.

    ``auth_users`` maps names to passwords, plain or hashed, those of ``users_file`` among them.
    ``upstream_config`` is in order of preference; empty, or with ``enable_upstream`` off, connections go
    out directly. ``mode`` is, in octal, that of a Unix socket's file. ``rules`` are those of all listeners.
    """

    listen_addr: Location
    protocol: ListenerProtocol
    name: str = ""
    mode: FileMode = ""
    auth_users: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: SomeSeconds = 30.0
    upstream_config: tuple[UpstreamConfig, ...] = ()
    enable_upstream: bool = True
    strategy: Strategy = Strategy.FAILOVER
    handshake_timeout: SomeSeconds = 10.0
    idle_timeout: Seconds = 7200.0
    max_connections: Annotated[int, at_least(1)] = 1024
    overload: Overload = Overload.WAIT
    auth: AuthPolicy = AuthPolicy.AUTO
    path: UrlPath = ""
    ping_interval: Seconds = 30.0
    answer: AnswerTime = AnswerTime.WHEN_CONNECTED
    tls_cert: File = ""
    tls_key: File = ""
    clients: Annotated[Networks, NETWORKS] = NO_NETWORKS
    client_address: ClientAddress = ClientAddress.SOCKET
    trusted: Annotated[Networks, NETWORKS] = NO_NETWORKS
    splice: Splice = "auto"
    users_file: File = ""
    guard: Guard = Guard.AUTO
    login_penalty: Penalty = 5.0
    login_exempt: Annotated[Networks, NETWORKS] = NO_NETWORKS
    rules: tuple[RuleConfig, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.auth_users, Users):
            object.__setattr__(self, "auth_users", Users(self.auth_users))
        super().__post_init__()
        if self.is_unix and not self.mode:
            object.__setattr__(self, "mode", _MODE)

    def _problems(self) -> Iterator[ConfigError]:
        yield from self._address_problems()
        if self.mode and not self.is_unix:
            yield ConfigError("mode", "applies to Unix sockets only, and this listener is not at unix:/path")
        if self.clients and self.is_unix and self.client_address is ClientAddress.SOCKET:
            yield ConfigError(
                "clients", "clients of a Unix socket have no address: its mode says who may connect"
            )
        if self.protocol is not Protocol.WEBSOCKET:
            for foreign in ("path", "answer"):
                if getattr(self, foreign) not in ("", AnswerTime.WHEN_CONNECTED):
                    yield ConfigError(foreign, "only websocket listeners have this setting")
        for tls in ("tls_cert", "tls_key"):
            if getattr(self, tls) and self.protocol is Protocol.SOCKS5:
                yield ConfigError(tls, "only websocket and mixed listeners have this setting")
        if self.client_address is ClientAddress.X_FORWARDED_FOR and self.protocol is Protocol.SOCKS5:
            yield ConfigError("client_address", "x_forwarded_for needs HTTP, and this listener speaks SOCKS5")
        if self.client_address is ClientAddress.SOCKET and self.trusted:
            yield ConfigError("trusted", "has no effect while client_address is socket")
        if self.client_address is not ClientAddress.SOCKET and not (self.trusted or self.is_unix):
            how = self.client_address.value
            what = f"is missing: it names the proxies that may report addresses (client_address = {how})"
            yield ConfigError("trusted", what)
        if bool(self.tls_cert) != bool(self.tls_key):
            missing, present = ("tls_key", "tls_cert") if self.tls_cert else ("tls_cert", "tls_key")
            yield ConfigError(missing, f"{present} is set, so this must be set too")
        if self.path:
            yield from _path_problems(self.path)
        assert isinstance(self.auth_users, Users)
        yield from self.auth_users.problems
        if self.auth is AuthPolicy.REQUIRED and not (self.auth_users or self.users_file):
            yield ConfigError("auth", "authentication is required, but [auth_users] has no users")

    def _address_problems(self) -> Iterator[ConfigError]:
        try:
            endpoint = self.endpoint
        except ConfigError as exc:
            yield exc
            return
        if endpoint.scheme == UNIX_SCHEME:
            return
        written = self.listen_addr.lower().partition("://")[0]
        if endpoint.scheme not in LISTENER_SCHEMES[self.protocol]:
            what = f"a {self.protocol.value} listener cannot listen on {endpoint.scheme}://"
            yield ConfigError("listen_addr", what)
        elif endpoint.path != "/":
            yield ConfigError(
                "listen_addr", "has a path, which belongs in the setting path of a configuration file"
            )
        elif endpoint.scheme in SECURE.values() and not self.tls_cert:
            yield ConfigError("tls_cert", f"is missing: {endpoint.scheme}:// needs tls_cert and tls_key")
        # Without a scheme, tls_cert decides; with one, the two must not contradict each other.
        elif self.tls_cert and written in SECURE:
            yield ConfigError("listen_addr", f"with tls_cert it is {SECURE[written]}://, not {written}://")

    @property
    def endpoint(self) -> Endpoint:
        """The address to listen on, parsed."""
        return parse_endpoint("listen_addr", self.listen_addr, LISTENER_SCHEMES[self.protocol][0])

    @property
    def is_unix(self) -> bool:
        """True if it listens on a Unix socket."""
        return is_unix(self.listen_addr)

    @property
    def file_mode(self) -> int:
        """The mode of a Unix socket's file."""
        return int(self.mode or _MODE, 8)

    def trusts(self, sender: Address) -> bool:
        """Tell whether a sender's word on who the client is counts, as it does at a Unix socket."""
        return isinstance(sender, UnixAddress) or sender.ip in self.trusted

    def check_client(self, ip: IPAddress | None) -> None:
        """Raise ``NotAClientError`` for one who may not come in."""
        if self.clients and ip not in self.clients:
            raise NotAClientError

    @property
    def needs_auth(self) -> bool:
        """True if clients must log in; where there is a file of users, also while it has none."""
        return self.auth is not AuthPolicy.NONE and bool(self.auth_users or self.users_file)

    def punishes(self, client: Address) -> bool:
        """Tell whether a login of this client that fails has a penalty."""
        ip = client.ip
        if not self.login_penalty or ip is None or ip in self.login_exempt:
            return False
        # Who comes from this machine may be anybody, if nothing tells us who it is.
        return not ip.is_loopback or self.client_address is not ClientAddress.SOCKET

    @property
    def is_local(self) -> bool:
        """True if only this machine reaches it, and does so for itself."""
        if self.client_address is not ClientAddress.SOCKET:
            return False
        host = self.endpoint.host
        ip = self.endpoint.address.ip if host else None
        return self.is_unix or host == "localhost" or (ip is not None and ip.is_loopback)

    @property
    def guarded(self) -> Word | None:
        """Which targets need a rule that names them."""
        if self.guard is Guard.OFF or (self.guard is Guard.AUTO and self.is_local):
            return None
        if self.guard is Guard.AUTO:
            return Word.METADATA if self.needs_auth else Word.SELF
        return Word(self.guard.value)

    @property
    def own_rules(self) -> tuple[RuleConfig, ...]:
        """The rules that its clients may meet."""
        return tuple(each for each in self.rules if not each.listener or self.name in each.listener)

    @property
    def ways(self) -> tuple[UpstreamConfig, ...]:
        """The ways out of those for whom no rule names others."""
        return (self.upstream_config if self.enable_upstream else ()) or (DIRECT_UPSTREAM,)

    @property
    def all_ways(self) -> tuple[tuple[UpstreamConfig, ...], ...]:
        """The same, and those that rules name, each once."""
        led = (rule.upstream_config for rule in self.own_rules if rule.leads and self.enable_upstream)
        return tuple(dict.fromkeys((self.ways, *led)))

    @property
    def all_upstreams(self) -> tuple[UpstreamConfig, ...]:
        """All that are in them, each once."""
        return tuple(dict.fromkeys(one for ways in self.all_ways for one in ways))


# The settings of a listener that stand in [proxy], for all; max_connections may stand in its own section too.
SHARED = (
    "timeout",
    "handshake_timeout",
    "idle_timeout",
    "max_connections",
    "overload",
    "enable_upstream",
    "splice",
    "users_file",
    "guard",
    "login_penalty",
    "login_exempt",
)


def _path_problems(path: str) -> Iterator[ConfigError]:
    """Complain of a path that no client would ever ask for."""
    if not path.startswith("/"):
        yield ConfigError("path", "must begin with /")
    elif not re.fullmatch(r"[\x21-\x7e]*", path):
        yield ConfigError("path", f"has only ASCII characters, and no blanks: write {quote(path, _AS_IT_IS)}")
    elif "#" in path:
        yield ConfigError(
            "path", "has a #, and clients never send what follows it: take it out, or write %23"
        )
    elif {".", ".."} & set(path.partition("?")[0].split("/")):
        yield ConfigError("path", "has . or .. as a part, which clients resolve before they ask")
