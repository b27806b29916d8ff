"""
Sets of addresses, as networks in CIDR notation.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

from proxy.address import IPAddress


class Networks:
    """
    A set of addresses that never changes; equal if it was written with the same networks in the same order.

    To tell whether an address is in it takes one look for each length of prefix, however many there are.
    """

    __slots__ = ("_prefixes", "_texts")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Read addresses and networks; raises ``ValueError`` that names the one at fault."""
        # By the size of an address in bits, and by how many bits of it are behind the prefix.
        self._prefixes: dict[int, dict[int, set[int]]] = {}
        written = []
        for text in texts:
            network = _network(text)
            size = network.max_prefixlen
            behind = size - network.prefixlen
            prefixes = self._prefixes.setdefault(size, {}).setdefault(behind, set())
            prefixes.add(int(network.network_address) >> behind)
            written.append(str(network))
        self._texts = tuple(written)

    def __contains__(self, ip: IPAddress | None) -> bool:
        if ip is None or ip.max_prefixlen not in self._prefixes:
            return False
        number = int(ip)
        # No any(): each connection asks this, and a generator takes twice as long.
        for behind, prefixes in self._prefixes[ip.max_prefixlen].items():
            if number >> behind in prefixes:
                return True
        return False

    def covers(self, other: "Networks") -> bool:
        """Tell whether each network of the other one is in one of these."""
        return all(
            any(
                behind <= most and number >> (most - behind) in prefixes
                for most, prefixes in self._prefixes.get(size, {}).items()
            )
            for size, its in other._prefixes.items()
            for behind, numbers in its.items()
            for number in numbers
        )

    def __bool__(self) -> bool:
        return bool(self._texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and self._texts == other._texts

    def __hash__(self) -> int:
        return hash(self._texts)

    def __str__(self) -> str:
        return ", ".join(self._texts)

    def __repr__(self) -> str:
        return f"Networks({list(self._texts)})"


NO_NETWORKS = Networks()


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is not an address or a network such as 10.0.0.0/8 or 2001:db8::/32"
        ) from None
    if isinstance(network, IPv6Network) and (mapped := network.network_address.ipv4_mapped) is not None:
        # As an address in it comes here: as the IPv4 address inside.
        return IPv4Network((int(mapped), max(network.prefixlen - 96, 0)), strict=False)
    return network
