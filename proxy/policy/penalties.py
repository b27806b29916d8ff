"""
Addresses with recent failed logins, and for how long their logins are refused unchecked.

Each failure adds some seconds to the sum of an address, which falls by a second each second. Up to three
failures nothing happens. Above that, no login from there is checked, right or wrong, until the sum
has fallen to three of them.

The table is of a fixed size, and its memory is used page by page as addresses come: 32 MiB for a million.
An address has its place in one of many buckets, and only the program knows in which one. When a bucket is
full, the address with the least left in it makes room. To be forgotten is to be forgiven, so nobody suffers
from others.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from mmap import mmap

from proxy.address import Address, IPAddress

FREE = 3  # failures
MOST = 60.0  # seconds that a sum is at most

_WAYS = 8  # places of a bucket
_BUCKET_BITS = 18
_PLACES = _WAYS << _BUCKET_BITS
_64_BITS = (1 << 64) - 1
_SHOWN = 1000  # addresses that are told of, the latest


class Penalties:
    """The sums of all addresses, IPv6 ones by their /64; times are those of one clock, in seconds."""

    def __init__(self) -> None:
        self._keys = memoryview(mmap(-1, 8 * _PLACES)).cast("Q")  # 0 is nobody
        self._until = memoryview(mmap(-1, 8 * _PLACES)).cast("d")  # when the sum of each will have run off
        self._secret = int.from_bytes(os.urandom(8), "big") | 1
        self._latest: OrderedDict[str, int] = OrderedDict()  # networks with their keys
        self.refused = 0  # logins that were not judged

    def left(self, ip: IPAddress, now: float) -> float:
        """Tell the sum of an address."""
        if not self._latest:  # as mostly: nobody has failed
            return 0.0
        place = self._find(_key(ip))
        return max(0.0, self._until[place] - now) if place is not None else 0.0

    def wait(self, ip: IPAddress, penalty: float, now: float) -> float:
        """Tell for how many seconds no login from an address is judged, by this penalty for a failure."""
        return max(0.0, self.left(ip, now) - FREE * penalty) if penalty else 0.0

    def add(self, client: Address, penalty: float, now: float) -> None:
        """Note that a login failed."""
        assert client.ip is not None
        if not penalty:
            return
        self._set(client.network, _key(client.ip), min(now + self.left(client.ip, now) + penalty, now + MOST))

    def _set(self, network: str, key: int, until: float) -> None:
        place = self._find(key)
        if place is None:
            place = min(self._bucket(key), key=self._until.__getitem__)
            self._keys[place] = key
        self._until[place] = until
        self._latest[network] = key
        self._latest.move_to_end(network)
        if len(self._latest) > _SHOWN:
            self._latest.popitem(last=False)

    def known(self, now: float) -> list[tuple[str, int, float]]:
        """Give what there is of those that failed last, for another process to ``take_over``."""
        return [
            (network, key, self._until[place])
            for network, key in self._latest.items()
            if (place := self._find(key)) is not None and self._until[place] > now
        ]

    def take_over(self, known: Iterable[tuple[str, int, float]]) -> None:
        """Hold against them what another process does; both have the same clock."""
        for network, key, until in known:
            self._set(network, key, until)

    def forgive(self, ip: IPAddress, now: float) -> bool:
        """Take away all that an address has, and tell whether there was anything."""
        is_any = self.left(ip, now) > 0
        place = self._find(_key(ip))
        if place is not None:
            self._keys[place] = 0
            self._until[place] = 0.0
        return is_any

    def latest(self, now: float) -> Iterator[tuple[str, float]]:
        """Give addresses and what is left of their sums, those that failed last first."""
        for network, key in reversed(self._latest.items()):
            place = self._find(key)
            if place is not None and self._until[place] > now:
                yield network, self._until[place] - now

    def _find(self, key: int) -> int | None:
        for place in self._bucket(key):
            if self._keys[place] == key:
                return place
        return None

    def _bucket(self, key: int) -> range:
        # Multiply-shift hashing, which is as good as random for all who do not know the secret.
        bucket = (key * self._secret & _64_BITS) >> (64 - _BUCKET_BITS)
        return range(bucket * _WAYS, (bucket + 1) * _WAYS)


def _key(ip: IPv4Address | IPv6Address) -> int:
    # No network has addresses in ::/32, so the two kinds are never the same; 0 is nobody.
    return max(1, int(ip) >> 64 if isinstance(ip, IPv6Address) else int(ip))
