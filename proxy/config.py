"""
The configuration as values: frozen, and right if they exist.

The field names are those of the INI file. Durations are seconds. Secrets stay out of every ``repr``.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import combinations
from typing import ParamSpec
from urllib.parse import quote

from proxy.address import Endpoint
from proxy.errors import ConfigError
from proxy.units import check_count

DIRECT = "direct"  # the name of the upstream that is always there

_NO_HEADER = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

# What ``proxy-server -hash-password`` prints: scrypt$log2(n)$r$p$salt$hash, the last two in URL-safe Base64;
# with $long before them if the password has more than 64 bytes.
_BASE64 = r"(?=[\w-]{2})(?:[\w-]{4})*(?:[\w-]{2}(?:==)?|[\w-]{3}=?)?"
_SCRYPT = re.compile(rf"scrypt\$(?:1\d|20)\$[1-9]\d?\$[1-9]\d?\$(?:long\$)?{_BASE64}\${_BASE64}", re.ASCII)

_AS_IT_IS = "/?%#[]@!$&'()*+,;=:"  # what stays in a path whose other characters are escaped

_Params = ParamSpec("_Params")


class Protocol(str, Enum):
    """What a door speaks."""

    SOCKS5 = "socks5"
    WEBSOCKET = "websocket"


class UpstreamType(str, Enum):
    """How an upstream is spoken to."""

    DIRECT = "direct"
    SOCKS5 = "socks5"
    WEBSOCKET = "websocket"


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


# The settings of [proxy] that take one word of a few.
CHOICES = {
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("text", "json"),
    "splice": ("auto", "off"),
    "on_user_change": ("keep", "close"),
}


class SettingsError(ConfigError):
    """All the settings of one value that cannot be right together; it reads as the first of them."""

    def __init__(self, problems: tuple[ConfigError, ...]) -> None:
        super().__init__(problems[0].field, str(problems[0]))
        self.problems = problems


@dataclass(frozen=True)
class ClientConfig:
    """How a client reaches one proxy, and as whom."""

    server_addr: str
    protocol: Protocol = Protocol.SOCKS5
    username: str = ""
    password: str = field(default="", repr=False)
    timeout: float = 30.0
    tls_ca: str = ""
    tls_verify: bool = True
    ping_interval: float = 30.0

    def __post_init__(self) -> None:
        _refuse(_not_words(self, protocol=Protocol))
        _refuse(self._problems())

    def _problems(self) -> Iterator[ConfigError]:
        yield from _caught(_require_positive, "timeout", self.timeout)
        yield from _caught(_require_not_negative, "ping_interval", self.ping_interval)
        yield from _caught(
            check_credentials, "username", self.username, "password", self.password, self.protocol
        )
        yield from _caught(self._check_address)

    def _check_address(self) -> None:
        endpoint = self.endpoint
        if not endpoint.host or not endpoint.port:
            raise ConfigError("server_addr", "a proxy's address needs a host and a port")
        schemes = ("ws", "wss") if self.protocol is Protocol.WEBSOCKET else ("tcp", "socks5")
        if endpoint.scheme not in schemes:
            raise ConfigError(
                "server_addr", f"a {self.protocol.value} proxy is at {schemes[0]}:// or {schemes[1]}://"
            )

    @property
    def endpoint(self) -> Endpoint:
        """The proxy's address, parsed."""
        scheme = "ws" if self.protocol is Protocol.WEBSOCKET else "tcp"
        return _parse_endpoint("server_addr", self.server_addr, scheme)


@dataclass(frozen=True)
class UpstreamConfig:
    """A way out. ``retry_count`` is how many further attempts follow a failed one."""

    name: str
    type: UpstreamType
    proxy_address: str = ""
    proxy_username: str = ""
    proxy_password: str = field(default="", repr=False)
    timeout: float = 10.0
    retry_count: int = 2
    tls_ca: str = ""
    tls_verify: bool = True
    ping_interval: float = 30.0

    def __post_init__(self) -> None:
        _refuse(_not_words(self, type=UpstreamType))
        _refuse(self._problems())

    def _problems(self) -> Iterator[ConfigError]:
        yield from _caught(_require_count, "retry_count", self.retry_count, 0)
        if self.type is UpstreamType.DIRECT:
            yield from _caught(_require_positive, "timeout", self.timeout)
            if self.proxy_address or self.proxy_username or self.proxy_password or self.tls_ca:
                yield ConfigError("type", "a direct upstream has no proxy_address, credentials or tls_ca")
        elif not self.proxy_address:
            yield from _caught(_require_positive, "timeout", self.timeout)
            yield ConfigError("proxy_address", f"a {self.type.value} upstream needs one")
            login = ("proxy_username", self.proxy_username, "proxy_password", self.proxy_password)
            yield from _caught(check_credentials, *login, Protocol(self.type.value))
        else:
            yield from self._client_problems()

    def _client_problems(self) -> Iterator[ConfigError]:
        names = {"server_addr": "proxy_address", "username": "proxy_username", "password": "proxy_password"}
        try:
            config = self.client_config
        except SettingsError as exc:
            yield from (ConfigError(names.get(each.field, each.field), str(each)) for each in exc.problems)
            return
        if self.tls_ca and config.endpoint.scheme != "wss":
            yield ConfigError("tls_ca", "only a wss:// proxy_address uses TLS")

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
        )


@dataclass(frozen=True)
class ServerConfig:
    """
    One listener, with all that its connections need.

    ``auth_users`` maps names to passwords, plain or hashed. ``upstream_config`` is in order of
    preference; empty, or with ``enable_upstream`` off, connections go out directly.
    """

    listen_addr: str
    protocol: Protocol
    name: str = ""
    auth_users: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 30.0
    upstream_config: tuple[UpstreamConfig, ...] = ()
    enable_upstream: bool = True
    strategy: Strategy = Strategy.FAILOVER
    handshake_timeout: float = 10.0
    idle_timeout: float = 7200.0
    max_connections: int = 1024
    overload: Overload = Overload.WAIT
    auth: AuthPolicy = AuthPolicy.AUTO
    path: str = ""
    ping_interval: float = 30.0
    tls_cert: str = ""
    tls_key: str = ""
    splice: str = "auto"

    def __post_init__(self) -> None:
        _refuse(_not_words(self, protocol=Protocol, strategy=Strategy, overload=Overload, auth=AuthPolicy))
        _refuse(self._problems())

    def _problems(self) -> Iterator[ConfigError]:
        for positive in ("timeout", "handshake_timeout"):
            yield from _caught(_require_positive, positive, getattr(self, positive))
        for duration in ("idle_timeout", "ping_interval"):
            yield from _caught(_require_not_negative, duration, getattr(self, duration))
        yield from _caught(_require_count, "max_connections", self.max_connections, 1)
        yield from _caught(self._check_address)
        if self.protocol is Protocol.SOCKS5:
            for foreign in ("path", "tls_cert", "tls_key"):
                if getattr(self, foreign):
                    yield ConfigError(foreign, "only websocket listeners have this setting")
        if bool(self.tls_cert) != bool(self.tls_key):
            missing, present = ("tls_key", "tls_cert") if self.tls_cert else ("tls_cert", "tls_key")
            yield ConfigError(missing, f"{present} is set, so this must be set too")
        if self.path:
            yield from _caught(_check_path, self.path)
        if self.splice not in CHOICES["splice"]:
            yield ConfigError("splice", f"is none of {', '.join(CHOICES['splice'])}")
        for username, password in self.auth_users.items():
            yield from _caught(check_user, username, password)
        if self.auth is AuthPolicy.REQUIRED and not self.auth_users:
            yield ConfigError("auth", "authentication is required, but [auth_users] has no users")

    def _check_address(self) -> None:
        endpoint = self.endpoint
        if self.protocol is Protocol.SOCKS5 and endpoint.scheme not in ("tcp", "socks5"):
            raise ConfigError("listen_addr", f"a socks5 listener cannot listen on {endpoint.scheme}://")
        if self.protocol is Protocol.WEBSOCKET and endpoint.scheme not in ("ws", "wss"):
            raise ConfigError("listen_addr", f"a websocket listener cannot listen on {endpoint.scheme}://")
        if endpoint.path != "/":
            raise ConfigError("listen_addr", "has a path, which goes into the setting path")
        if endpoint.scheme == "wss" and not self.tls_cert:
            raise ConfigError("tls_cert", "a wss:// listener needs tls_cert and tls_key")
        # Without a scheme, tls_cert decides; with one, the two must not contradict each other.
        if self.tls_cert and self.listen_addr.lower().startswith("ws://"):
            raise ConfigError("listen_addr", "with tls_cert it is wss://, not ws://")

    @property
    def endpoint(self) -> Endpoint:
        """The address to listen on, parsed."""
        scheme = "ws" if self.protocol is Protocol.WEBSOCKET else "tcp"
        return _parse_endpoint("listen_addr", self.listen_addr, scheme)

    @property
    def needs_auth(self) -> bool:
        """True if clients must log in."""
        return self.auth is not AuthPolicy.NONE and bool(self.auth_users)


@dataclass(frozen=True)
class ProxyConfig:
    """
    A whole configuration file.

    Its users are those of each of its listeners. The ``field`` of its errors is the place in the file,
    such as ``control.token``.
    """

    listeners: tuple[ServerConfig, ...]
    upstreams: tuple[UpstreamConfig, ...] = ()
    auth_users: Mapping[str, str] = field(default_factory=dict, repr=False)
    drain_timeout: float = 30.0
    reload_interval: float = 1.0
    history_size: int = 20
    state_dir: str = ""
    log_level: str = "info"
    log_format: str = "text"
    access_log: str = "-"
    splice: str = "auto"
    on_user_change: str = "keep"
    control_listen_addr: str = ""
    control_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        _refuse(self._problems())

    def _problems(self) -> Iterator[ConfigError]:
        for duration in ("drain_timeout", "reload_interval"):
            yield from _caught(_require_not_negative, f"proxy.{duration}", getattr(self, duration))
        yield from _caught(_require_count, "proxy.history_size", self.history_size, 1)
        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                yield ConfigError(f"proxy.{name}", f"is none of {', '.join(words)}")
        if not self.access_log:
            yield ConfigError("proxy.access_log", "is empty: write - for stderr, a path, or off")
        if not self.listeners:
            yield ConfigError("listeners", "there is no listener: add a [[name]] section under [listeners]")
        yield from self._control_problems()
        yield from self._address_problems()

    def _control_problems(self) -> Iterator[ConfigError]:
        if self.control_listen_addr:
            yield from _caught(_check_control_address, self.control_listen_addr)
            if not self.control_token:
                yield ConfigError("control.token", "is missing: a control listen_addr needs one")
        if not re.fullmatch(r"(?! )[\x20-\x7e]*(?<! )", self.control_token):
            yield ConfigError(
                "control.token",
                "travels in an HTTP header: only ASCII characters that can be seen, no blanks at its ends",
            )

    def _address_problems(self) -> Iterator[ConfigError]:
        places = [(f"listeners.{each.name}", each.endpoint) for each in self.listeners]
        if self.control_listen_addr and not tuple(_caught(_check_control_address, self.control_listen_addr)):
            places.append(("control", Endpoint.parse(self.control_listen_addr)))
        for (first, one), (second, other) in combinations(places, 2):
            if one.overlaps(other):
                yield ConfigError(f"{second}.listen_addr", f"is the address of [{first}] too")


def check_user(username: str, password: str) -> None:
    """Raise ``ConfigError`` for a user who could never log in (RFC 1929, section 2)."""
    for what, text in (("user name", username), ("password", password)):
        if not 1 <= len(to_bytes(text)) <= 255:
            raise ConfigError(username, f"a {what} has 1 to 255 bytes")
    if password.startswith("scrypt$") and not _SCRYPT.fullmatch(password):
        raise ConfigError(
            username, "begins like a password hash, but is none: copy all that -hash-password prints"
        )


def check_credentials(
    name_field: str, username: str, password_field: str, password: str, protocol: Protocol
) -> None:
    """Raise ``ConfigError`` for credentials that the protocol cannot carry."""
    if bool(username) != bool(password):
        missing = password_field if username else name_field
        raise ConfigError(missing, "a user name and a password come together")
    for field_name, text in ((name_field, username), (password_field, password)):
        if len(to_bytes(text)) > 255:
            raise ConfigError(field_name, "is longer than 255 bytes")
        if protocol is Protocol.WEBSOCKET and (text != text.strip() or _NO_HEADER.search(text)):
            raise ConfigError(
                field_name,
                "travels in an HTTP header: no control characters, no blanks at its ends, only UTF-8",
            )


def to_bytes(text: str) -> bytes:
    """Encode a user name or password; bytes that came in as such from a command line come out again."""
    return text.encode("utf-8", "surrogateescape")


def _refuse(problems: Iterable[ConfigError]) -> None:
    found = tuple(problems)
    if found:
        raise SettingsError(found)


def _not_words(config: object, **kinds: type[Enum]) -> Iterator[ConfigError]:
    """Take each word for the member that it is the value of, and complain of those that are none."""
    for name, kind in kinds.items():
        try:
            object.__setattr__(config, name, kind(getattr(config, name)))
        except ValueError:
            yield ConfigError(name, f"is none of {', '.join(each.value for each in kind)}")


def _caught(
    check: Callable[_Params, None], *args: _Params.args, **kwargs: _Params.kwargs
) -> tuple[ConfigError, ...]:
    try:
        check(*args, **kwargs)
    except ConfigError as exc:
        return (exc,)
    return ()


def _check_path(path: str) -> None:
    """Raise ``ConfigError`` for a path that no client would ever ask for."""
    if not path.startswith("/"):
        raise ConfigError("path", "must begin with /")
    if not re.fullmatch(r"[\x21-\x7e]*", path):
        raise ConfigError("path", f"has only ASCII characters, and no blanks: write {quote(path, _AS_IT_IS)}")
    if "#" in path:
        raise ConfigError(
            "path", "has a #, behind which nothing is ever asked for: take it out, or write %23"
        )
    if {".", ".."} & set(path.partition("?")[0].split("/")):
        raise ConfigError("path", "has . or .. as a part, which clients resolve before they ask")


def _check_control_address(text: str) -> None:
    if _parse_endpoint("control.listen_addr", text, "tcp").scheme != "tcp":
        raise ConfigError("control.listen_addr", "is written host:port, without a scheme")


def _parse_endpoint(field_name: str, text: str, scheme: str) -> Endpoint:
    try:
        return Endpoint.parse(text, scheme=scheme)
    except ValueError as exc:
        raise ConfigError(field_name, str(exc)) from None


def _require_positive(field_name: str, seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ConfigError(field_name, "must be more than 0")


def _require_not_negative(field_name: str, seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise ConfigError(field_name, "must not be negative")


def _require_count(field_name: str, number: int, least: int) -> None:
    try:
        check_count(number, least)
    except ValueError as exc:
        raise ConfigError(field_name, str(exc)) from None
