"""
How much may be had in a time: buckets that fill up again, by a time that is given.
"""

_ALMOST = 1e-9  # of what a bucket holds: what rounding takes away is not missing


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
        """Take so much, whether it is there or not."""
        self._level = self.level(now) - amount
        self._at = now

    def become(self, rate: float, size: float, now: float) -> None:
        """Have another rate and size from now on; no debt stays that is more than it holds then."""
        level = self.level(now)
        self.rate, self.size = rate, size
        self._level = max(-size, min(size, level))
        self._at = now
