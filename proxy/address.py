"""
Host and port, checked once: an ``Address`` that exists is fit for a socket, a header and a log line.

The host is either an IP address in its canonical text, or an ASCII name in lower case. Whatever
spelling a client, a file or a command line uses, it becomes the canonical one here, so that rules
judge the address, no lookup is made for one, and the log has the name that was dialled.

A dot at the end of a name stays, because it means something where the name is looked up: that no
search list applies.
"""

import codecs
import os
import re
import socket
from dataclasses import dataclass, field
from encodings import ascii as ascii_codec
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from proxy.errors import ProtocolError
from proxy.idn import to_ascii

IPAddress = IPv4Address | IPv6Address

UNIX_SCHEME = "unix"
MAX_UNIX_PATH = 107  # bytes: unix(7) has 108, one of them for the NUL at the end
MAX_NAME = 255  # bytes: the length byte of RFC 1928, section 5

# RFC 1123, section 2.1, and the underscore, which names in the wild have.
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?", re.ASCII)
# What the C library takes for a number in the last part of an IPv4 address: 127.1, 0x7f.1, 2130706433.
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?", re.ASCII)

_URL = re.compile(r"(?:(?P<scheme>[^:/?#]+)://)?(?P<authority>[^/?#]*)(?P<path>.*)")
_AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*:[^\[\]]*)\]|(?P<host>[^\[\]:]*))(?::(?P<port>[^:]*))?")

_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")  # RFC 3986, section 2.3

_set = object.__setattr__

DEFAULT_PORTS = {"tcp": 1080, "socks5": 1080, "http": 80, "https": 443, "ws": 80, "wss": 443}


# A small Python may come without the codec that it passes every host name through. Names are ASCII
# here before that, so ASCII will do in its place; where there is the codec, it is found first.
codecs.register(lambda encoding: ascii_codec.getregentry() if encoding == "idna" else None)


@dataclass(frozen=True, slots=True, init=False)
class Address:
    """
    A host and a TCP port. Raises ``ProtocolError`` for what cannot be one.

    ``zone`` is the interface that a link-local address belongs to (RFC 4007, section 11). It means
    nothing on another machine, so it never comes from a host's text.
    """

    host: str
    port: int
    zone: str = ""
    ip: IPAddress | None = field(init=False, repr=False, compare=False)  # None for a name

    # Written out, as every connection makes three: the one of a dataclass would set the host twice.
    def __init__(self, host: str, port: int, zone: str = "") -> None:
        host, ip = _read_host(host)
        if not 0 <= port <= 65535:
            raise ProtocolError(f"port {port} is not between 0 and 65535")
        _set(self, "host", host)
        _set(self, "port", port)
        _set(self, "zone", zone)
        _set(self, "ip", IPv6Address(f"{host}%{zone}") if zone else ip)

    def __str__(self) -> str:
        if ":" not in self.host:
            return f"{self.host}:{self.port}"
        return f"[{self.host}%{self.zone}]:{self.port}" if self.zone else f"[{self.host}]:{self.port}"

    @property
    def network(self) -> str:
        """Who it is, as far as an address tells: whoever has an IPv6 address has its whole /64."""
        if not isinstance(self.ip, IPv6Address):
            return self.host
        return f"{IPv6Address(int(self.ip) >> 64 << 64)}/64"


@dataclass(frozen=True, slots=True, init=False)
class UnixAddress(Address):
    """
    The path of a Unix socket; a client that came to one has none, and no address at all.

    It is a ``Place`` to listen on, too.
    """

    path: str = ""

    def __init__(self, path: str = "") -> None:
        Address.__init__(self, "unix", 0)
        _set(self, "path", path)

    def overlaps(self, other: "AnyPlace") -> bool:
        """Tell whether this machine cannot listen on both at once."""
        return self == other

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else "unix"


def canonical_host(host: str) -> str:
    """
    Check a host and give it its one spelling.

    IP addresses come out canonical, names as ASCII in lower case. Raises ``ProtocolError`` for an
    empty or overlong host, for brackets and zones, and for characters that no host name has.
    """
    return _read_host(host)[0]


# Remembered, because every connection asks this of the same few hosts. What raises is not, and what
# does not is short, so strangers can fill this with 1 MB at most.
@lru_cache(1024)
def _read_host(host: str) -> tuple[str, IPAddress | None]:
    # Before anything else is done for it: some of that takes more than linear time.
    if len(host) > MAX_NAME or len(host.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise ProtocolError(f"the host name is longer than {MAX_NAME} bytes")
    ip = _parse_ip(host)
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            raise ProtocolError("an IPv6 zone has no meaning on another machine")
        ip = ip.ipv4_mapped or ip
    if ip is not None:
        return str(ip), ip
    name = host.lower() if host.isascii() else to_ascii(host)
    if not name:
        raise ProtocolError("the host name is empty")
    if len(name) > MAX_NAME:
        raise ProtocolError(f"the host name is longer than {MAX_NAME} bytes")
    if not _NAME.fullmatch(name):
        raise ProtocolError("the host name has characters or labels that no host name may have")
    if _NUMERIC_END.fullmatch(name):
        ip = _from_c_notation(name)
        return str(ip), ip
    return name, None


def read_ip(text: str) -> IPAddress | None:
    """
    Read an IP address that is written in full, as a log has it; None for what is none.

    The short spellings of the C library are refused: ``1.2.3`` would be 1.2.0.3, which hardly anybody means.
    """
    try:
        return Address(text, 0).ip if _parse_ip(text) else None
    except ProtocolError:
        return None


def _parse_ip(host: str) -> IPAddress | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _from_c_notation(name: str) -> IPv4Address:
    # The C library would read these as addresses without asking any DNS server: so do we, and early.
    try:
        return IPv4Address(socket.inet_aton(name.removesuffix(".")))
    except OSError as exc:
        raise ProtocolError("the host is neither a name nor an IP address") from exc


def asks_for(target: str, path: str) -> bool:
    """
    Tell whether a request target is this path, however the two are spelt (RFC 3986, section 6.2.2).

    A query counts only where the path has one.
    """
    place, _, query = target.partition("?")
    wanted, _, wanted_query = path.partition("?")
    # No spelling has more than three letters for one, and no work is done for what is longer.
    is_place = len(place) <= 3 * len(wanted) and _spell(place) == _spell(wanted)
    return is_place and (not wanted_query or _spell(query) == _spell(wanted_query))


def _spell(target: str) -> str:
    """Write %xx in capitals, and what needs no %xx without it."""
    return _ESCAPE.sub(lambda escape: _letter(escape[0]), target)


def _letter(escape: str) -> str:
    letter = chr(int(escape[1:], 16))
    return letter if _UNRESERVED.fullmatch(letter) else escape.upper()


UNIX = UnixAddress()  # a client of a Unix socket
UNKNOWN = Address("0.0.0.0", 0)  # where a protocol wants an address and there is none to tell


@dataclass(frozen=True)
class Endpoint:
    """
    Where a proxy listens or is reached, as a user writes it.

    An empty host means every address of this machine; a link-local one has its zone behind a ``%``.
    ``path`` is the request target of a WebSocket URL, the file of a Unix socket, and ``/`` otherwise.
    """

    scheme: str
    host: str
    port: int
    path: str = "/"

    @classmethod
    def parse(cls, text: str, *, scheme: str = "tcp") -> "Endpoint":
        """
        Read ``host:port``, ``:port``, ``[::1]:port``, ``unix:/path``, or a URL.

        The schemes of URLs are tcp, socks5, http, https, ws and wss.

        ``scheme`` is assumed where none is written. Raises ``ValueError`` with a text that says
        what would be right.
        """
        url = _URL.fullmatch(text)
        if not url or re.search(r"[\x00-\x20\x7f]", text):
            raise ValueError("an address has no blanks and no control characters")
        if is_unix(text):
            return cls(UNIX_SCHEME, "", 0, _unix_path(text))
        scheme = (url["scheme"] or scheme).lower()
        if scheme not in DEFAULT_PORTS:
            raise ValueError(f"the scheme must be one of {', '.join(DEFAULT_PORTS)}")
        if "@" in url["authority"]:
            raise ValueError("credentials do not go into the address: there are settings for them")
        path = url["path"] if url["path"].startswith("/") else "/" + url["path"]
        if scheme not in ("ws", "wss") and path != "/":
            raise ValueError("only ws:// and wss:// addresses have a path")
        if not path.isascii():
            raise ValueError("a path has only ASCII characters: write the others as %XX")
        if "#" in path:
            raise ValueError("an address has no fragment: nothing begins with #")
        authority = split_authority(url["authority"])
        if not authority:
            raise ValueError("this is not host:port, :port, or an IPv6 address in brackets, [::1]:port")
        host, port = authority
        default_port = str(DEFAULT_PORTS[scheme]) if url["scheme"] else ""
        number = _parse_port(default_port if port is None else port)
        canonical = _canonical_ipv6 if ":" in host else canonical_host
        return cls(scheme, canonical(host) if host else "", number, path)

    @property
    def address(self) -> Address:
        """Host and port, to dial."""
        host, _, zone = self.host.partition("%")
        return Address(host, self.port, zone)

    @property
    def server_name(self) -> str:
        """
        What TLS and HTTP call the host.

        It has no zone (RFC 6874, section 3), and not the dot of an absolute name (RFC 6066, section 3).
        """
        return self.host.partition("%")[0].removesuffix(".")

    def __str__(self) -> str:
        if self.scheme == UNIX_SCHEME:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.scheme in ("ws", "wss"):
            return f"{self.scheme}://{host}:{self.port}{self.path}"
        return f"{host}:{self.port}"

    @property
    def place(self) -> "AnyPlace | None":
        """The place to listen on, or None for a name: it may have several, which a lookup finds."""
        if self.scheme == UNIX_SCHEME:
            return UnixAddress(self.path)
        if not self.host:
            return Place("::", self.port, both_families=True)
        host, _, zone = self.host.partition("%")
        return Place(host, self.port, zone) if _parse_ip(host) else None

    def overlaps(self, other: "Endpoint") -> bool:
        """Tell whether this machine cannot listen on both at once, as far as that shows without a lookup."""
        if self.place and other.place:
            return self.place.overlaps(other.place)
        same_port = self.port == other.port != 0
        return same_port and (self.host == other.host or "" in (self.host, other.host))


@dataclass(frozen=True, slots=True)
class Place:
    """
    One address on which a socket listens, as the kernel tells it from others.

    An IPv6 socket is kept to IPv6, so that ``[::]:1080`` and ``0.0.0.0:1080`` stand side by side. Only
    the one of ``:1080`` takes clients of ``both_families``.
    """

    host: str
    port: int
    zone: str = ""  # of a link-local address: its interface
    both_families: bool = False

    @property
    def is_every_address(self) -> bool:
        """True if it is a whole family's, or both."""
        return self.host in ("::", "0.0.0.0")

    @property
    def ip(self) -> IPAddress:
        """The address, with its zone."""
        return ip_address(f"{self.host}%{self.zone}" if self.zone else self.host)

    @property
    def is_ipv6(self) -> bool:
        """True if its socket is one for IPv6, maybe beside IPv4."""
        return ":" in self.host

    def overlaps(self, other: "AnyPlace") -> bool:
        """Tell whether this machine cannot listen on both at once."""
        if isinstance(other, UnixAddress):
            return False
        return self.port == other.port != 0 and (self.covers(other) or other.covers(self))

    def covers(self, other: "Place") -> bool:
        """Tell whether clients of the other address, at the same port, come here."""
        if self.is_every_address:
            return self.both_families or self.is_ipv6 == other.is_ipv6
        return (self.host, self.zone) == (other.host, other.zone)

    def __str__(self) -> str:
        if self.both_families:
            return f":{self.port}"
        host = f"{self.host}%{self.zone}" if self.zone else self.host
        return f"[{host}]:{self.port}" if self.is_ipv6 else f"{host}:{self.port}"


AnyPlace = Place | UnixAddress


def is_unix(text: str) -> bool:
    """Tell whether a text means a Unix socket."""
    return text.startswith(f"{UNIX_SCHEME}:")


def _unix_path(text: str) -> str:
    path = text.removeprefix(f"{UNIX_SCHEME}:")
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError("a Unix socket is written with its whole path: unix:/run/proxy-server/socks.sock")
    if len(os.fsencode(path)) > MAX_UNIX_PATH:
        raise ValueError(
            f"the path is longer than {MAX_UNIX_PATH} bytes, the most that a Unix socket may have"
        )
    return f"/{path.lstrip('/')}"  # of which unix:///path has three


def split_authority(text: str) -> tuple[str, str | None] | None:
    """Split ``host:port``, an IPv6 address in brackets (RFC 3986, section 3.2); None for what is none."""
    match = _AUTHORITY.fullmatch(text)
    return (match["ipv6"] or match["host"] or "", match["port"]) if match else None


def _canonical_ipv6(text: str) -> str:
    host, mark, zone = text.partition("%")
    zone = re.sub("^25(?=[A-Za-z])", "", zone)  # the % as a URL writes it (RFC 6874, section 2)
    host = canonical_host(host)
    is_link_local = ":" in host and IPv6Address(host).is_link_local
    if is_link_local and not zone:
        raise ValueError(f"the interface of a link-local address is missing: write [{host}%eth0]")
    if mark and not (is_link_local and re.fullmatch(r"[^%/]+", zone)):
        raise ValueError("only a link-local IPv6 address has an interface, behind one %")
    return host + mark + zone


def _parse_port(text: str) -> int:
    if not text:
        raise ValueError("the port is missing: write host:port, :port or [::1]:port")
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError("the port is not a number from 0 to 65535")
    return int(text)
