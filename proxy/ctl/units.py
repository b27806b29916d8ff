"""
Sizes, durations and times, formatted for people.
"""

import time

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def size(count: int) -> str:
    """Write a number of bytes with three digits or so: 0 B, 1.5 KiB, 23 MiB."""
    value, power = float(count), 0
    while value >= 999.5 and power < len(_SIZES) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.1f} {_SIZES[power]}" if power and value < 9.95 else f"{value:.0f} {_SIZES[power]}"


def span(seconds: float) -> str:
    """Write a duration in its two largest units: 5 s, 2 m 10 s, 3 d 4 h."""
    whole = max(0, int(seconds))
    parts = []
    for unit, length in _SPANS:
        count, whole = divmod(whole, length)
        parts.append((count, unit))
    first = next((at for at, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [part for part in parts[first : first + 2] if part[0] or part is parts[first]]
    return " ".join(f"{count} {unit}" for count, unit in shown)


def moment(seconds: float) -> str:
    """Write a time of day, as the clock here shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
