"""
Sets of targets, as a rule names them: by name, by address, by port.
"""

import re
from collections.abc import Callable, Iterable
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Network, ip_network

from proxy.address import IPAddress, canonical_host
from proxy.errors import ProtocolError
from proxy.networks import Networks

IsOwn = Callable[[IPAddress], bool]  # tells whether an address is one of this machine's


class Word(str, Enum):
    """A word for addresses that are nobody's on the Internet; each contains those before it."""

    METADATA = "metadata"  # link-local, and where clouds tell a machine its secrets
    SELF = "self"  # this machine
    PRIVATE = "private"  # the networks around it

    def has(self, ip: IPAddress, is_own: IsOwn) -> bool:
        """Tell whether it contains an address, as it is after ``stands_for``."""
        level = _level(ip)
        if level <= _WORDS.index(self):
            return True
        return self is not Word.METADATA and is_own(ip)


_WORDS = tuple(Word)
_NETWORKS = (
    # RFC 3927 and RFC 4291, in which nearly all clouds have it; then those of AWS and Google by IPv6, of
    # Alibaba, of Azure, and of Oracle.
    Networks([
        "169.254.0.0/16", "fe80::/10",
        "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192",
    ]),
    Networks(["127.0.0.0/8", "0.0.0.0/8", "::1", "::"]),
    # RFC 1918, RFC 6598, RFC 4193. 198.18.0.0/15 is none of them: resolvers that make up addresses take it.
    Networks(["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"]),
)  # fmt: skip


@lru_cache(1024)
def _level(ip: IPAddress) -> int:
    """Find the first word that contains an address whatever machine this is."""
    return next((level for level, networks in enumerate(_NETWORKS) if ip in networks), len(_NETWORKS))


# IPv6 addresses that lead to an IPv4 address: how many bits of them say so, what these are, and how far to
# the left of the end that one stands. The last 32 bits of Teredo's are inverted.
_MAPPED, _COMPATIBLE = (96, 0xFFFF, 0), (96, 0, 0)  # RFC 4291, sections 2.5.5.2 and 2.5.5.1
_NAT64, _LOCAL_NAT64 = (96, 0x0064_FF9B << 64, 0), (48, 0x0064_FF9B_0001, 0)  # RFC 6052, RFC 8215
_6TO4 = (16, 0x2002, 80)  # RFC 3056
_TEREDO = (32, 0x2001_0000, 0)  # RFC 4380
_LAST_32_BITS = (1 << 32) - 1


@lru_cache(1024)
def stands_for(ip: IPAddress) -> IPAddress:
    """Give the IPv4 address to which an IPv6 address leads, if it does, or else the address itself."""
    if isinstance(ip, IPv4Address):
        return ip
    number = int(ip)
    if number <= 1:  # these are :: and ::1
        return ip
    for form in (_MAPPED, _COMPATIBLE, _NAT64, _LOCAL_NAT64, _6TO4, _TEREDO):
        bits, prefix, shift = form
        if number >> (128 - bits) == prefix:
            inside = number >> shift & _LAST_32_BITS
            return IPv4Address(inside ^ _LAST_32_BITS if form is _TEREDO else inside)
    return ip


_INSIDE = tuple(
    IPv6Network((prefix << (128 - bits), bits)) for bits, prefix, _ in (_NAT64, _LOCAL_NAT64, _6TO4, _TEREDO)
)


class Targets:
    """
    Names, domains, addresses, networks and words; empty, it is every target.

    To tell whether one is among them takes as many looks as its name has labels, or as there are lengths of
    prefixes, however many there are.
    """

    __slots__ = ("_domains", "_names", "_texts", "networks", "word")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Read them; raises ``ValueError`` that names the one at fault."""
        names, domains, networks, words, written = set(), set(), [], [], []
        for text in texts:
            if text in _WORDS:
                words.append(Word(text))
                written.append(text)
            elif text.startswith("*."):
                domains.add(_name(text[2:], text))
                written.append(f"*.{_name(text[2:], text)}")
            elif network := _network(text):
                networks.append(network)
                written.append(network)
            else:
                names.add(_name(text, text))
                written.append(_name(text, text))
        self._names = frozenset(names)
        self._domains = frozenset(domains)
        self.networks = Networks(networks)
        self.word = max(words, key=_WORDS.index, default=None)  # which contains the others
        self._texts = tuple(written)

    def has_name(self, host: str) -> bool:
        """Tell whether a name is among them, or is in a domain that is."""
        host = host.removesuffix(".")
        if host in self._names:
            return True
        rest = host if self._domains else ""
        while rest:
            if rest in self._domains:
                return True
            rest = rest.partition(".")[2]
        return False

    def has_ip(self, ip: IPAddress, is_own: IsOwn) -> bool:
        """Tell whether an address is among them, as it is after ``stands_for``."""
        return ip in self.networks or (self.word is not None and self.word.has(ip, is_own))

    @property
    def addresses(self) -> tuple[str, ...]:
        """All that are no names, as they are written."""
        return tuple(each for each in self._texts if each in _WORDS or _network(each))

    @property
    def has_addresses(self) -> bool:
        """True if there is more than names."""
        return bool(self.networks) or self.word is not None

    @property
    def has_names(self) -> bool:
        """True if there are names or domains."""
        return bool(self._names or self._domains)

    def covers(self, other: "Targets") -> bool:
        """Tell whether all that is in the other one is in this one too, as far as that shows."""
        if not self:
            return True
        if not other or (
            other.word and (not self.word or _WORDS.index(self.word) < _WORDS.index(other.word))
        ):
            return False
        return (
            all(map(self.has_name, other._names))
            and all(any(_is_within(each, mine) for mine in self._domains) for each in other._domains)
            and self.networks.covers(other.networks)
        )

    def __bool__(self) -> bool:
        return bool(self._texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Targets) and self._texts == other._texts

    def __hash__(self) -> int:
        return hash(self._texts)

    def __str__(self) -> str:
        return ", ".join(self._texts)

    def __repr__(self) -> str:
        return f"Targets({list(self._texts)})"


def _network(text: str) -> str:
    """Read an address or a network, in whatever spelling; gives nothing for what is none."""
    host = text.removeprefix("[").removesuffix("]")
    try:
        host = canonical_host(host)
    except ProtocolError:
        if "/" not in text:
            return ""
    try:
        network = ip_network(host, strict=False)
    except ValueError:
        if "/" in text:
            raise ValueError(f"{text!r} is not a network such as 10.0.0.0/8 or 2001:db8::/32") from None
        return ""
    if isinstance(network, IPv6Network) and any(network.subnet_of(each) for each in _INSIDE):
        raise ValueError(f"{text!r} is judged as the IPv4 addresses inside: write these")
    return str(network) if network.num_addresses > 1 else str(network.network_address)


def _name(host: str, text: str) -> str:
    try:
        name = canonical_host(host).removesuffix(".")
    except ProtocolError as exc:
        cure = ": for any target leave it empty" if text == "*" else ""
        raise ValueError(f"{text!r} is not a name, a *.domain, an address or a network{cure}") from exc
    if _network(name):
        raise ValueError(f"{text!r} is not a *.domain: addresses have none")
    return name


def _is_within(domain: str, other: str) -> bool:
    return domain == other or domain.endswith(f".{other}")


class Ports:
    """Ports and ranges of them; empty, it is every port."""

    __slots__ = ("_ranges",)

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Read ``22`` and ``8000-8999``; raises ``ValueError`` that names the one at fault."""
        self._ranges = tuple(map(_range, texts))

    def __contains__(self, port: int) -> bool:
        return any(first <= port <= last for first, last in self._ranges)

    def covers(self, other: "Ports") -> bool:
        """Tell whether all that is in the other one is in one range of this one, or this is every port."""
        if not self:
            return True
        return bool(other) and all(
            any(first <= low and high <= last for first, last in self._ranges) for low, high in other._ranges
        )

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ports) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(self._ranges)

    def __str__(self) -> str:
        return ", ".join(str(one) if one == last else f"{one}-{last}" for one, last in self._ranges)

    def __repr__(self) -> str:
        return f"Ports({str(self)!r})"


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})(?:[ \t]*-[ \t]*([0-9]{1,5}))?", text)
    first = int(match[1]) if match else 0
    last = int(match[2] or first) if match else 0
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"{text!r} is not a port from 1 to 65535 or a range such as 8000-8999")
    return first, last


ANYWHERE = Targets()
ANY_PORT = Ports()
