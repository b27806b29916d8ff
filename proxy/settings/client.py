"""
How a proxy is reached, and as whom.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, NewType

from proxy.address import Endpoint, canonical_host, split_authority
from proxy.errors import ConfigError, ProtocolError
from proxy.settings.checked import Settings
from proxy.settings.egress import ANYHOW, Egress
from proxy.settings.kinds import HEADERS, File, Location, Seconds, Secret, SomeSeconds
from proxy.settings.protocols import PROXY_SCHEMES, SECURE, Protocol, ProxyProtocol, parse_endpoint
from proxy.users import to_bytes

Headers = Annotated[tuple[str, ...], HEADERS]
Term = NewType("Term", str)  # no setting, but what messages call one
TLS_CA = Term("tls_ca")
_NO_HEADER = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class UpstreamAuth(str, Enum):
    """How a WebSocket upstream is told who we are: by our own headers, or as any server may want it."""

    HEADERS = "headers"
    BASIC = "basic"


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
    authorities: Term = TLS_CA

    def _problems(self) -> Iterator[ConfigError]:
        yield from credential_problems("username", self.username, "password", self.password, self.protocol)
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
                "server_addr", f"for {self.protocol.value} it begins with {schemes[0]}:// or {schemes[1]}://"
            )
        if endpoint.scheme not in SECURE.values():
            for name in ("sni", "tls_ca", "tls_cert", "tls_key"):
                if getattr(self, name):
                    yield ConfigError(name, "only a wss:// or https:// proxy is reached by TLS")
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
                yield ConfigError(name, "is not a plain host name in ASCII")

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
        return parse_endpoint("server_addr", self.server_addr, PROXY_SCHEMES[self.protocol][0])

    @property
    def trusts_system(self) -> bool:
        """True if the system's authorities have to vouch for the proxy."""
        return self.endpoint.scheme in SECURE.values() and self.tls_verify and not self.tls_ca


def credential_problems(
    name_field: str, username: str, password_field: str, password: str, protocol: Protocol
) -> Iterator[ConfigError]:
    """Complain of credentials that the protocol cannot carry."""
    if bool(username) != bool(password):
        missing = password_field if username else name_field
        yield ConfigError(missing, "set a user name and a password, or neither")
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
