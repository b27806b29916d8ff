"""
Durations, counts and rates as people write them: ``500ms``, ``5m``, ``64k``, ``10/s``.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal

MOST = 10_000_000  # of whatever is counted; more is a slip of the pen

_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 366 * 24 * 3600.0
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_duration(text: str) -> float:
    """Read a duration such as ``30``, ``500ms``, ``30s``, ``5m`` or ``1h`` as seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", text.strip(), re.ASCII)
    if not match:
        raise ValueError("not a duration: write seconds, or a number with ms, s, m or h, such as 30s")
    seconds = float(match[1]) * _DURATIONS[match[2] or "s"]
    if not math.isfinite(seconds) or seconds > _LONGEST:
        raise ValueError("the duration is longer than a year")
    return seconds


def write_duration(seconds: float) -> str:
    """Write a duration in the largest unit in which it reads back exactly."""
    if not seconds:
        return "0"
    for unit, length in reversed(_DURATIONS.items()):
        text = f"{round(seconds / length)}{unit}"
        if parse_duration(text) == seconds:
            return text
    return f"{Decimal(repr(seconds)):f}"


def parse_size(text: str) -> int:
    """Read a number such as ``1024``, ``64k``, ``2m`` or ``1g``; k is 1024."""
    match = re.fullmatch(r"(\d{1,15})\s*([kmg]?)", text.strip().lower(), re.ASCII)
    if not match:
        raise ValueError("not a number: write digits, or digits with k, m or g, such as 64k")
    return int(match[1]) * _SIZES[match[2]]


@dataclass(frozen=True)
class Rate:
    """So many in a second (``s``), a minute (``m``) or an hour (``h``)."""

    count: int
    unit: str

    @property
    def per_second(self) -> float:
        """How many that are in a second."""
        return self.count / _DURATIONS[self.unit]

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"


def parse_rate(text: str) -> Rate:
    """Read a rate such as ``10/s``, ``5/m`` or ``100/h``."""
    match = re.fullmatch(r"(\d{1,15})\s*/\s*([smh])", text.strip(), re.ASCII)
    if not match:
        raise ValueError("not a rate: write a count and a unit, such as 10/s, 5/m or 100/h")
    return Rate(check_count(int(match[1]), least=1), match[2])


def check_count(number: int, least: int) -> int:
    """Give a number of things back; raises ``ValueError`` for one that nobody can mean."""
    if not least <= number <= MOST:
        raise ValueError(f"must be at least {least} and at most {MOST}")
    return number
