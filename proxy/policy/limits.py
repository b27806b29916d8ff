"""
Who shares a limit, and token buckets for its rates; the caller passes the time.
"""

from dataclasses import dataclass
from math import exp

from proxy.address import Address
from proxy.settings.limits import Per

_ALMOST = 1e-9  # of what a bucket holds: what rounding takes away is not missing
_MEMORY = 3.0  # seconds


@dataclass(frozen=True, slots=True)
class Identity:
    """Those who share what a limit gives: a user, a client, or with neither of the two everybody."""

    user: str = ""
    client: str = ""


def identity_of(per: Per, user: str, client: Address) -> Identity:
    """Tell with whom somebody shares; who has no user is known by its address, of IPv6 by its /64."""
    if per is Per.ALL:
        return Identity()
    if per is Per.USER and user:
        return Identity(user=user)
    return Identity(client=client.network)


class Bucket:
    """
    Holds so much, and fills up again at a rate; what is taken beyond what it holds is a debt.

    It begins full. Amounts are bytes or connections, and ``rate`` is how much comes back in a second.
    """

    __slots__ = ("_at", "_level", "rate", "size")

    def __init__(self, rate: float, size: float, now: float) -> None:
        self.rate = rate
        self.size = size
        self._level = size
        self._at = now

    def level(self, now: float) -> float:
        """Tell how much it holds; below 0 it is in debt."""
        return min(self.size, self._level + (now - self._at) * self.rate)

    def is_full(self, now: float) -> bool:
        """Tell whether nothing of it is missing, so that it might as well be a new one."""
        return not self.wait(self.size, now)

    def wait(self, amount: float, now: float) -> float:
        """Tell how many seconds it takes until it holds so much; 0 if it does already."""
        missing = amount - self.level(now)
        return missing / self.rate if missing > _ALMOST * self.size else 0.0

    def take(self, amount: float, now: float) -> None:
        """Take so much, whether it is there or not; a negative amount is put back."""
        self._level = self.level(now) - amount
        self._at = now

    def become(self, rate: float, size: float, now: float) -> None:
        """Have another rate and size from now on; no debt stays that is more than it holds then."""
        level = self.level(now)
        self.rate, self.size = rate, size
        self._level = max(-size, min(size, level))
        self._at = now


class Meter:
    """How much there is of something in a second, of late: what was long ago counts for little."""

    __slots__ = ("_at", "_sum")

    def __init__(self, now: float) -> None:
        self._at = now
        self._sum = 0.0

    def add(self, amount: float, now: float) -> None:
        """Note that there was so much; a negative amount takes back what was noted."""
        self._sum = max(0.0, self._sum * exp((self._at - now) / _MEMORY) + amount)
        self._at = now

    def rate(self, now: float) -> float:
        """Tell how much there is in a second."""
        return self._sum * exp((self._at - now) / _MEMORY) / _MEMORY
