"""The bars that our program has to pass, each a ratio to a peer in the same run or a limit of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.medians import Rounds, median, ratio

Results = Mapping[str, Mapping[str, Rounds]]  # by work and contender


@dataclass(frozen=True)
class Bar:
    """A limit on a figure of ours; where there is a peer, on how many times the peer's it is."""

    about: str
    works: Sequence[str]
    figure: str
    contender: str
    limit: float
    peer: str = ""
    at_least: bool = False
    scale: float = 1.0
    unit: str = "×"

    def values(self, results: Results) -> list[float]:
        """Give what was measured, a value for each work that was."""
        needed = {self.contender, self.peer or self.contender}
        measured = [results.get(work, {}) for work in self.works]
        return [self._value(each) for each in measured if all(map(each.get, needed))]

    def _value(self, measured: Mapping[str, Rounds]) -> float:
        ours = measured[self.contender]
        if self.peer:
            return ratio(ours, measured[self.peer], self.figure)
        return median(ours, self.figure) * self.scale

    def passes(self, value: float) -> bool:
        """Tell whether a value is good enough; one that is no number is not."""
        return value >= self.limit if self.at_least else value <= self.limit

    @property
    def wanted(self) -> str:
        """Say what is wanted."""
        amount = f"{'≥' if self.at_least else '≤'} {self.limit:g}{self.unit}"
        return f"{amount} {self.peer}".rstrip()


ALL_BULK = ["down-1", "down-16", "up-1", "up-16"]
DOWN, UP = ALL_BULK[:2], ALL_BULK[2:]
ONE_TRIP = ["trips-1", "trips-1-core"]
DIRECT, CHAIN = "SOCKS5 → direct", "SOCKS5 → WebSocket → direct"

BARS = [
    Bar(f"{DIRECT}, bulk: throughput", ALL_BULK, "rate", "ours", 3, "microsocks", at_least=True),
    Bar(f"{DIRECT}, bulk: throughput", ALL_BULK, "rate", "ours", 1.3, "dante", at_least=True),
    Bar(f"{DIRECT}, bulk: CPU per GiB", ALL_BULK, "cpu", "ours", 0.15, "microsocks"),
    Bar(f"{DIRECT}, bulk: CPU per GiB", ALL_BULK, "cpu", "ours", 0.5, "dante"),
    Bar(f"{CHAIN}, down: throughput", DOWN, "rate", "chain", 4, "v2ray", at_least=True),
    Bar(f"{CHAIN}, down: CPU per GiB", DOWN, "cpu", "chain", 0.2, "v2ray"),
    Bar(f"{CHAIN}, up: throughput", UP, "rate", "chain", 2.5, "v2ray", at_least=True),
    Bar(f"{CHAIN}, up: CPU per GiB", UP, "cpu", "chain", 0.4, "v2ray"),
    Bar("round trips, 64 connections: rate", ["trips-64"], "rate", "ours", 1.1, "microsocks", at_least=True),
    Bar("round trips, 64 connections: CPU each", ["trips-64"], "cpu", "ours", 0.7, "microsocks"),
    Bar("round trips, 64 connections: rate", ["trips-64"], "rate", "chain", 1.3, "v2ray", at_least=True),
    Bar("round trips, 1 connection: p50", ONE_TRIP, "p50", "ours", 1.15, "microsocks"),
    Bar("round trips, 1 connection: p50", ONE_TRIP, "p50", "chain", 1.0, "v2ray"),
    Bar("short connections: CPU each", ["short"], "cpu", "ours", 1.7, "microsocks"),
    Bar("short connections: CPU each", ["short"], "cpu", "ours", 0.55, "dante"),
    Bar("short connections: CPU each", ["short"], "cpu", "chain", 1.0, "v2ray"),
    Bar("idle connection, SOCKS5 → direct", ["idle"], "each", "ours", 10, scale=1 / 1024, unit=" KiB"),
    Bar(
        "idle connection, WebSocket → direct",
        ["idle"],
        "each, exit",
        "chain",
        14,
        scale=1 / 1024,
        unit=" KiB",
    ),
    Bar("memory before the first", ["idle"], "before", "ours", 40, scale=1 / (1 << 20), unit=" MiB"),
    Bar("memory before the first", ["idle"], "before", "chain", 40, scale=1 / (1 << 20), unit=" MiB"),
    Bar("small tunnel's p99 under bulk", ["under-bulk"], "p99", "ours", 20, scale=1e3, unit=" ms"),
    Bar("small tunnel's p99 under bulk", ["under-bulk"], "p99", "chain", 20, scale=1e3, unit=" ms"),
    Bar("new handshakes' p99 under bulk", ["under-bulk"], "handshake p99", "ours", 50, scale=1e3, unit=" ms"),
    Bar(
        "new handshakes' p99 under bulk", ["under-bulk"], "handshake p99", "chain", 50, scale=1e3, unit=" ms"
    ),
]
