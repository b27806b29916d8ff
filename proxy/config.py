"""
The configuration as values: frozen, and right if they exist.

The field names are those of the INI file, and a field's type is all that the file has to know of it: with it
stands the kind of the setting (``settings.py``). Durations are seconds. Secrets stay out of every ``repr``.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from ipaddress import ip_address
from itertools import combinations
from typing import Annotated, ClassVar
from urllib.parse import quote

from proxy.address import (
    UNIX_SCHEME,
    Address,
    Endpoint,
    IPAddress,
    UnixAddress,
    canonical_host,
    is_unix,
    split_authority,
)
from proxy.errors import ConfigError, NotAClientError, ProtocolError
from proxy.networks import Networks
from proxy.settings import (
    BANDWIDTH,
    HEADERS,
    NAMES,
    NETWORKS,
    PORTS,
    RATE,
    SOME_NAMES,
    TARGETS,
    TEXT,
    File,
    FileMode,
    Interface,
    Location,
    Penalty,
    Seconds,
    Secret,
    Settings,
    SettingsError,
    SomeSeconds,
    SourceAddress,
    UrlPath,
    at_least,
    members,
    one_of,
    up_to,
)
from proxy.targets import ANY_PORT, ANYWHERE, Ports, Targets, Word
from proxy.units import Rate
from proxy.users import Users, to_bytes

NOWHERE = Networks()
DIRECT = "direct"  # the name of the upstream that is always there

_NO_HEADER = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

_AS_IT_IS = "/?%#[]@!$&'()*+,;=:"  # what stays in a path whose other characters are escaped


class Protocol(str, Enum):
    """What a door speaks."""

    SOCKS5 = "socks5"
    WEBSOCKET = "websocket"
    HTTP = "http"  # an upstream's
    MIXED = "mixed"  # a listener's: SOCKS5, SOCKS4 and HTTP proxy clients


# The schemes of their addresses; the first is meant where none is written.
LISTENER_SCHEMES = {
    Protocol.SOCKS5: ("tcp", "socks5"),
    Protocol.WEBSOCKET: ("ws", "wss"),
    Protocol.MIXED: ("tcp", "socks5", "http", "https"),
}
PROXY_SCHEMES = {
    Protocol.SOCKS5: ("tcp", "socks5"),
    Protocol.WEBSOCKET: ("ws", "wss"),
    Protocol.HTTP: ("http", "https"),
}
ListenerProtocol = Annotated[Protocol, members(*LISTENER_SCHEMES)]
ProxyProtocol = Annotated[Protocol, members(*PROXY_SCHEMES)]
_SECURE = {"ws": "wss", "http": "https"}


class UpstreamType(str, Enum):
    """How an upstream is spoken to."""

    DIRECT = "direct"
    SOCKS5 = "socks5"
    HTTP = "http"
    WEBSOCKET = "websocket"


_TUNNELS = (UpstreamType.SOCKS5, UpstreamType.HTTP)  # through which one can speak with another proxy


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


class UpstreamAuth(str, Enum):
    """How a WebSocket upstream is told who we are: by our own headers, or as any server may want it."""

    HEADERS = "headers"
    BASIC = "basic"


class Family(str, Enum):
    """Of which family the addresses are that are connected to; without ``_ONLY``, the others come second."""

    AUTO = "auto"
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    IPV4_ONLY = "ipv4_only"
    IPV6_ONLY = "ipv6_only"


_VERSIONS = {Family.IPV4: 4, Family.IPV4_ONLY: 4, Family.IPV6: 6, Family.IPV6_ONLY: 6}


@dataclass(frozen=True)
class Egress(Settings):
    """
    How connections leave this machine: from one of its addresses, by one of its interfaces, in which family.

    Whatever is left out is for the system to choose.
    """

    source: SourceAddress = ""
    interface: Interface = ""
    family: Family = Family.AUTO

    def _problems(self) -> Iterator[ConfigError]:
        try:
            ip = self.source_ip
        except ValueError:  # which its kind complains of
            return
        if ip and self.preferred not in (0, ip.version):
            yield ConfigError("family", f"is {self.family.value}, and source is an IPv{ip.version} address")
        if ip and ip.is_link_local and ip.version == 6 and not (ip.scope_id or self.interface):
            yield ConfigError("source", "a link-local address needs its interface: write fe80::1%eth1")

    def __str__(self) -> str:
        places = {"from": self.source, "by": self.interface}
        return " ".join(f"{word} {place}" for word, place in places.items() if place)

    @cached_property
    def source_ip(self) -> IPAddress | None:
        """The source as an address."""
        return ip_address(self.source) if self.source else None

    @property
    def preferred(self) -> int:
        """The IP version that is tried first: 4 or 6, or 0 for that of the name's first address."""
        return _VERSIONS.get(self.family, 0)

    def why_not(self, version: int) -> str:
        """Say why addresses of an IP version are out of reach; nothing, if they are not."""
        if self.source_ip and self.source_ip.version != version:
            return f"source {self.source} does not reach IPv{version}"
        if self.family in (Family.IPV4_ONLY, Family.IPV6_ONLY) and self.preferred != version:
            return f"family = {self.family.value} leaves IPv{version} out"
        return ""


ANYHOW = Egress()

# Of a Unix socket: it is there for a server of another user, who can be made a member of the group.
_MODE = "0660"


class Guard(str, Enum):
    """Which targets need a rule that names them; ``auto`` is: as who can come to a listener calls for."""

    AUTO = "auto"
    OFF = "off"
    METADATA = "metadata"
    SELF = "self"
    PRIVATE = "private"


class Per(str, Enum):
    """Who shares what a limit gives: those of one user, those of one address, or everybody."""

    USER = "user"
    CLIENT = "client"
    ALL = "all"


Splice = Annotated[str, one_of("auto", "off")]
AUTO = "auto"
Spare = Annotated[str | int, up_to(64, or_word=AUTO)]
_SPARES = 8  # with auto
Headers = Annotated[tuple[str, ...], HEADERS]


@dataclass(frozen=True)
class ClientConfig(Settings):
    """How a client reaches one proxy, and as whom."""

    server_addr: Location
    protocol: ProxyProtocol = Protocol.SOCKS5
    username: str = ""
    password: Secret = field(default="", repr=False)
    timeout: SomeSeconds = 30.0
    tls_ca: File = ""
    tls_verify: bool = True
    ping_interval: Seconds = 30.0
    auth: UpstreamAuth = UpstreamAuth.HEADERS
    host: str = ""
    sni: str = ""
    tls_cert: File = ""
    tls_key: File = ""
    headers: Headers = field(default=(), repr=False)
    egress: Egress = ANYHOW

    def _problems(self) -> Iterator[ConfigError]:
        yield from _credential_problems("username", self.username, "password", self.password, self.protocol)
        try:
            endpoint = self.endpoint
        except ConfigError as exc:
            yield exc
            return
        if not endpoint.host or not endpoint.port:
            yield ConfigError("server_addr", "a proxy's address needs a host and a port")
        elif endpoint.address.ip and (why_not := self.egress.why_not(endpoint.address.ip.version)):
            yield ConfigError("server_addr", f"cannot be reached: {why_not}")
        schemes = PROXY_SCHEMES[self.protocol]
        if endpoint.scheme not in schemes:
            yield ConfigError(
                "server_addr", f"a {self.protocol.value} proxy is at {schemes[0]}:// or {schemes[1]}://"
            )
        if endpoint.scheme not in _SECURE.values():
            for name in ("sni", "tls_ca", "tls_cert", "tls_key"):
                if getattr(self, name):
                    yield ConfigError(name, "only a wss:// or https:// proxy_address uses TLS")
        if self.protocol is not Protocol.WEBSOCKET:
            for name in ("auth", "host"):
                if getattr(self, name) not in ("", UpstreamAuth.HEADERS):
                    yield ConfigError(name, "only websocket upstreams have this setting")
        if bool(self.tls_cert) != bool(self.tls_key):
            missing, present = ("tls_key", "tls_cert") if self.tls_cert else ("tls_cert", "tls_key")
            yield ConfigError(missing, f"{present} is set, so this must be set too")
        if self.auth is UpstreamAuth.BASIC and ":" in self.username:
            yield ConfigError("username", "has a colon, which HTTP takes for its end (RFC 7617)")
        yield from self._name_problems()
        yield from self._header_problems()

    def _name_problems(self) -> Iterator[ConfigError]:
        for name in ("host", "sni"):
            value = getattr(self, name)
            host, port = split_authority(value) or ("", None)
            try:
                is_one = canonical_host(host) == host.lower() and (
                    port is None or (name == "host" and port.isdecimal())
                )
            except ProtocolError:
                is_one = False
            if value and not is_one:
                yield ConfigError(name, "is no host name in ASCII, alone")

    def _header_problems(self) -> Iterator[ConfigError]:
        if self.headers and self.protocol is Protocol.SOCKS5:
            yield ConfigError("headers", "only websocket and http upstreams have this setting")
        # A login of another kind, such as a token, may be given in full, but not beside one that we write.
        if self.protocol is Protocol.HTTP:
            name, login = "Proxy-Authorization", "the login"
        else:
            name, login = "Authorization", "the login, by auth = basic,"
        is_ours = self.username and (self.protocol is Protocol.HTTP or self.auth is UpstreamAuth.BASIC)
        if is_ours and any(header.lower().startswith(f"{name.lower()}:") for header in self.headers):
            yield ConfigError("headers", f"has {name}, which {login} is written in: set one of them")

    @property
    def endpoint(self) -> Endpoint:
        """The proxy's address, parsed."""
        return _parse_endpoint("server_addr", self.server_addr, PROXY_SCHEMES[self.protocol][0])


@dataclass(frozen=True)
class UpstreamConfig(Settings):
    """
    A way out.

    ``retry_count`` is how many further attempts follow a failed one, and ``spare`` how many connections to
    the proxy may be ready at most, or ``auto``. ``via`` is another one, by which its proxy is reached.
    ``source``, ``interface`` and ``family`` say how connections leave this machine: those to the proxy, or
    those of a direct one to its targets.
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

    def _problems(self) -> Iterator[ConfigError]:
        if self.type is UpstreamType.DIRECT:
            foreign = ("proxy_address", "proxy_username", "proxy_password", "host", "sni", "via", "headers")
            if self.files or any(getattr(self, name) for name in foreign):
                what = "proxy_address, credentials, headers, TLS settings or via"
                yield ConfigError("type", f"a direct upstream has no {what}")
        elif not self.proxy_address:
            yield ConfigError("proxy_address", f"a {self.type.value} upstream needs one")
            login = ("proxy_username", self.proxy_username, "proxy_password", self.proxy_password)
            yield from _credential_problems(*login, Protocol(self.type.value))
        else:
            yield from self._client_problems()

        if self.via and self.via.type not in _TUNNELS:
            yield ConfigError("via", f"leads through a socks5 or http upstream, and {self.via.name} is none")
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
        )

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names, which may change without it."""
        return tuple(filter(None, (self.tls_ca, self.tls_cert, self.tls_key)))


ALLOW, BLOCK = "allow", "block"  # what a rule may do, if it names no ways out
GUARD = "guard"  # the last rule, which is always there


@dataclass(frozen=True)
class RuleConfig(Settings):
    """
    Where those may go whom it is for, and by which way: the first rule that matches decides.

    ``to`` are the targets, ``port`` their ports; an empty list chooses all. ``action`` is to allow, by the
    ways out of the listener, or to block, or else the names of ways out, which are then in
    ``upstream_config``, in order of preference. With ``resolve`` a name is judged by its addresses wherever
    it goes; with ``report`` the rule only says what it would have done.
    """

    name: str
    to: Annotated[Targets, TARGETS] = ANYWHERE
    port: Annotated[Ports, PORTS] = ANY_PORT
    user: Annotated[tuple[str, ...], NAMES] = ()
    from_: Annotated[Networks, NETWORKS] = NOWHERE
    listener: Annotated[tuple[str, ...], NAMES] = ()
    action: Annotated[tuple[str, ...], SOME_NAMES] = (ALLOW,)
    resolve: bool = False
    report: bool = False
    upstream_config: tuple[UpstreamConfig, ...] = ()

    def _problems(self) -> Iterator[ConfigError]:
        if self.name == GUARD:
            yield ConfigError("", f"{GUARD} is the rule that is built in: give this one another name")
        if len(self.action) > 1 and {ALLOW, BLOCK} & set(self.action):
            yield ConfigError("action", f"is {ALLOW}, or {BLOCK}, or a list of ways out")

    @property
    def is_block(self) -> bool:
        """True if what it matches is refused."""
        return self.action == (BLOCK,)

    @property
    def leads(self) -> bool:
        """True if it names ways out."""
        return self.action not in ((ALLOW,), (BLOCK,))

    @property
    def effect(self) -> str:
        """What it does, in the word that counts it; one that only reports would do so."""
        effect = "lead" if self.leads else self.action[0]
        return f"would_{effect}" if self.report else effect

    def covers(self, other: "RuleConfig") -> bool:
        """Tell whether nothing is left for the other one where this one stands before it."""
        lists = ((self.user, other.user), (self.listener, other.listener))
        return (
            not self.report
            and all(not mine or (its and set(its) <= set(mine)) for mine, its in lists)
            and (not self.from_ or (bool(other.from_) and self.from_.covers(other.from_)))
            and self.port.covers(other.port)
            and self.to.covers(other.to)
            # What is open here is not for an address that is looked up there.
            and not (other.resolve and other.to.has_addresses and self.to and not self.resolve)
        )


DIRECT_UPSTREAM = UpstreamConfig(DIRECT, UpstreamType.DIRECT)


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
    clients: Annotated[Networks, NETWORKS] = NOWHERE
    client_address: ClientAddress = ClientAddress.SOCKET
    trusted: Annotated[Networks, NETWORKS] = NOWHERE
    splice: Splice = "auto"
    users_file: File = ""
    guard: Guard = Guard.AUTO
    login_penalty: Penalty = 5.0
    login_exempt: Annotated[Networks, NETWORKS] = NOWHERE
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
            yield ConfigError("mode", "is that of a Unix socket, and only a listener at unix:/path has one")
        if self.clients and self.is_unix and self.client_address is ClientAddress.SOCKET:
            yield ConfigError(
                "clients", "nobody has an address at a Unix socket: its mode says who may connect"
            )
        if self.protocol is not Protocol.WEBSOCKET:
            for foreign in ("path", "answer"):
                if getattr(self, foreign) not in ("", AnswerTime.WHEN_CONNECTED):
                    yield ConfigError(foreign, "only websocket listeners have this setting")
        for tls in ("tls_cert", "tls_key"):
            if getattr(self, tls) and self.protocol is Protocol.SOCKS5:
                yield ConfigError(tls, "only websocket and mixed listeners have this setting")
        if self.client_address is ClientAddress.X_FORWARDED_FOR and self.protocol is Protocol.SOCKS5:
            yield ConfigError("client_address", "x_forwarded_for is HTTP's, and this listener speaks SOCKS5")
        if self.client_address is ClientAddress.SOCKET and self.trusted:
            yield ConfigError("trusted", "has no effect while client_address is socket")
        if self.client_address is not ClientAddress.SOCKET and not (self.trusted or self.is_unix):
            what = f"is missing: whose word counts with client_address = {self.client_address.value}"
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
            yield ConfigError("listen_addr", "has a path, which goes into the setting path")
        elif endpoint.scheme in _SECURE.values() and not self.tls_cert:
            yield ConfigError("tls_cert", f"a {endpoint.scheme}:// listener needs tls_cert and tls_key")
        # Without a scheme, tls_cert decides; with one, the two must not contradict each other.
        elif self.tls_cert and written in _SECURE:
            yield ConfigError("listen_addr", f"with tls_cert it is {_SECURE[written]}://, not {written}://")

    @property
    def endpoint(self) -> Endpoint:
        """The address to listen on, parsed."""
        return _parse_endpoint("listen_addr", self.listen_addr, LISTENER_SCHEMES[self.protocol][0])

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


@dataclass(frozen=True)
class LimitConfig(Settings):
    """
    How much those may have who share it, and whom it is for; whoever is not chosen by a list is not meant.

    ``new`` is how many connections may be made in a time, and so many at once; ``bandwidth`` is bytes a
    second in each direction. None of them is no limit.
    """

    name: str
    per: Per
    connections: Annotated[int | None, at_least(1)] = None
    new: Annotated[Rate | None, RATE] = None
    bandwidth: Annotated[int | None, BANDWIDTH] = None
    user: Annotated[tuple[str, ...], NAMES] = ()
    from_: Annotated[Networks, NETWORKS] = NOWHERE
    listener: Annotated[tuple[str, ...], NAMES] = ()

    def _problems(self) -> Iterator[ConfigError]:
        if self.connections is None and self.new is None and self.bandwidth is None:
            yield ConfigError("", "limits nothing: set connections, new or bandwidth")


MOST_WORKERS = 64

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
                control = _parse_endpoint("control.listen_addr", self.control_listen_addr, "tcp")
            except ConfigError as exc:
                yield exc
            else:
                if control.scheme != "tcp":
                    yield ConfigError("control.listen_addr", "is written host:port, without a scheme")
                places.append(("control", control))
        for (first, one), (second, other) in combinations(places, 2):
            if one.overlaps(other):
                yield ConfigError(f"{second}.listen_addr", f"is the address of [{first}] too")


def _credential_problems(
    name_field: str, username: str, password_field: str, password: str, protocol: Protocol
) -> Iterator[ConfigError]:
    """Complain of credentials that the protocol cannot carry."""
    if bool(username) != bool(password):
        missing = password_field if username else name_field
        yield ConfigError(missing, "a user name and a password come together")
    if protocol is Protocol.HTTP and ":" in username:
        yield ConfigError(name_field, "has a colon, which HTTP takes for its end (RFC 7617)")
    for field_name, text in ((name_field, username), (password_field, password)):
        if len(to_bytes(text)) > 255:
            yield ConfigError(field_name, "is longer than 255 bytes")
        if protocol is Protocol.WEBSOCKET and (text != text.strip() or _NO_HEADER.search(text)):
            yield ConfigError(
                field_name,
                "travels in an HTTP header: no control characters, no blanks at its ends, only UTF-8",
            )


def _path_problems(path: str) -> Iterator[ConfigError]:
    """Complain of a path that no client would ever ask for."""
    if not path.startswith("/"):
        yield ConfigError("path", "must begin with /")
    elif not re.fullmatch(r"[\x21-\x7e]*", path):
        yield ConfigError("path", f"has only ASCII characters, and no blanks: write {quote(path, _AS_IT_IS)}")
    elif "#" in path:
        yield ConfigError(
            "path", "has a #, behind which nothing is ever asked for: take it out, or write %23"
        )
    elif {".", ".."} & set(path.partition("?")[0].split("/")):
        yield ConfigError("path", "has . or .. as a part, which clients resolve before they ask")


def _parse_endpoint(field_name: str, text: str, scheme: str) -> Endpoint:
    try:
        return Endpoint.parse(text, scheme=scheme)
    except ValueError as exc:
        raise ConfigError(field_name, str(exc)) from None
