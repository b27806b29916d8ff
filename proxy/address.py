"""
Host and port, checked once: an ``Address`` that exists is fit for a socket, a header and a log line.

The host is either an IP address in its canonical text, or an ASCII name. Whatever spelling of an IP
address a client uses, it becomes the canonical one here, so that rules judge the address and no
lookup is made for it.
"""

import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from proxy.errors import ProtocolError

MAX_NAME = 255  # bytes: the length byte of RFC 1928, section 5
REDACTED = "********"  # in place of a secret

# RFC 1123, section 2.1, and the underscore, which names in the wild have.
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)
# What the C library takes for a number in the last part of an IPv4 address: 127.1, 0x7f.1, 2130706433.
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?", re.ASCII)

_URL = re.compile(r"(?:(?P<scheme>[^:/?#]+)://)?(?P<authority>[^/?#]*)(?P<path>.*)")
_AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*:[^\[\]]*)\]|(?P<host>[^\[\]:]*))(?::(?P<port>[^:]*))?")

_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")  # RFC 3986, section 2.3

DEFAULT_PORTS = {"tcp": 1080, "socks5": 1080, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port. Raises ``ProtocolError`` for what cannot be one."""

    host: str
    port: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", canonical_host(self.host))
        if not 0 <= self.port <= 65535:
            raise ProtocolError(f"port {self.port} is not between 0 and 65535")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ip(self) -> IPv4Address | IPv6Address | None:
        """The IP address, or None for a name."""
        return _parse_ip(self.host)


@lru_cache(4096)
def canonical_host(host: str) -> str:
    """
    Check a host and give it its one spelling.

    IP addresses come out canonical, names as ASCII by IDNA. Raises ``ProtocolError`` for an empty
    or overlong host, for brackets and zones, and for characters that no host name has.
    """
    ip = _parse_ip(host)
    if ip is not None:
        if isinstance(ip, IPv6Address) and ip.scope_id is not None:
            raise ProtocolError("an IPv6 zone has no meaning on another machine")
        return str(getattr(ip, "ipv4_mapped", None) or ip)
    name = host if host.isascii() else _to_ascii(host)
    if not name:
        raise ProtocolError("the host name is empty")
    if len(name) > MAX_NAME:
        raise ProtocolError(f"the host name is longer than {MAX_NAME} bytes")
    if not _NAME.fullmatch(name):
        raise ProtocolError("the host name has characters or labels that no host name may have")
    if _NUMERIC_END.fullmatch(name):
        return _from_c_notation(name)
    return name


# Remembered, because every connection asks this of the same few addresses a dozen times.
@lru_cache(4096)
def _parse_ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _to_ascii(host: str) -> str:
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError as exc:
        raise ProtocolError("the host name cannot be written in ASCII (IDNA)") from exc


def _from_c_notation(name: str) -> str:
    # The C library would read these as addresses without asking any DNS server: so do we, and early.
    try:
        return str(IPv4Address(socket.inet_aton(name.removesuffix("."))))
    except OSError as exc:
        raise ProtocolError("the host is neither a name nor an IP address") from exc


def asks_for(target: str, path: str) -> bool:
    """
    Tell whether a request target is this path, however the two are spelt (RFC 3986, section 6.2.2).

    A query counts only where the path has one.
    """
    place, _, query = _spell(target).partition("?")
    wanted, _, wanted_query = _spell(path).partition("?")
    return place == wanted and wanted_query in ("", query)


def _spell(target: str) -> str:
    """Write %xx in capitals, and what needs no %xx without it."""
    return _ESCAPE.sub(lambda escape: _letter(escape[0]), target)


def _letter(escape: str) -> str:
    letter = chr(int(escape[1:], 16))
    return letter if _UNRESERVED.fullmatch(letter) else escape.upper()


def without_query(text: str) -> str:
    """Give an address as others may see it: what stands behind a ? may be a token."""
    place, mark, query = text.partition("?")
    return f"{place}{mark}{REDACTED}" if query else text


UNKNOWN = Address("0.0.0.0", 0)  # where a protocol wants an address and there is none to tell


@dataclass(frozen=True)
class Endpoint:
    """
    Where a proxy listens or is reached, as a user writes it.

    An empty host means every address of this machine. ``path`` is the request target of a
    WebSocket URL, and ``/`` otherwise.
    """

    scheme: str
    host: str
    port: int
    path: str = "/"

    @classmethod
    def parse(cls, text: str, *, scheme: str = "tcp") -> "Endpoint":
        """
        Read ``host:port``, ``:port``, ``[::1]:port`` or a tcp, socks5, ws or wss URL.

        ``scheme`` is assumed where none is written. Raises ``ValueError`` with a text that says
        what would be right.
        """
        url = _URL.fullmatch(text)
        if not url or not re.fullmatch(r"[\x21-\x7e]*", text):
            raise ValueError("an address has no blanks and only ASCII characters")
        scheme = (url["scheme"] or scheme).lower()
        if scheme not in DEFAULT_PORTS:
            raise ValueError(f"the scheme is none of {', '.join(DEFAULT_PORTS)}")
        if "@" in url["authority"]:
            raise ValueError("credentials do not go into the address: there are settings for them")
        path = url["path"] if url["path"].startswith("/") else "/" + url["path"]
        if scheme in ("tcp", "socks5") and path != "/":
            raise ValueError("only ws:// and wss:// addresses have a path")
        if "#" in path:
            raise ValueError("an address has no fragment: nothing begins with #")
        authority = _AUTHORITY.fullmatch(url["authority"])
        if not authority:
            raise ValueError("this is no host:port, no :port, and no IPv6 address in brackets, [::1]:port")
        default_port = str(DEFAULT_PORTS[scheme]) if url["scheme"] else ""
        port = _parse_port(default_port if authority["port"] is None else authority["port"])
        host = authority["ipv6"] or authority["host"].lower()
        return cls(scheme, canonical_host(host) if host else "", port, path)

    @property
    def address(self) -> Address:
        """Host and port, to dial."""
        return Address(self.host, self.port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.scheme in ("ws", "wss"):
            return f"{self.scheme}://{host}:{self.port}{self.path}"
        return f"{host}:{self.port}"

    def overlaps(self, other: "Endpoint") -> bool:
        """Tell whether this machine cannot listen on both at once."""
        if self.port != other.port or self.port == 0:
            return False
        return self._covers(other) or other._covers(self)

    def _covers(self, other: "Endpoint") -> bool:
        if self.host in ("", other.host):
            return True
        # An IPv6 socket is kept to IPv6, so each wildcard covers its own family only.
        wildcard = "::" if ":" in other.host else "0.0.0.0"
        return bool(other.host) and self.host == wildcard


def _parse_port(text: str) -> int:
    if not text:
        raise ValueError("the port is missing: write host:port, :port or [::1]:port")
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError("the port is not a number from 0 to 65535")
    return int(text)
