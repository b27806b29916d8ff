"""The bars that our program has to pass, each a ratio to a peer in the same run or a limit of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.medians import Rounds, median, ratio, surplus

Results = Mapping[str, Mapping[str, Rounds]]  # by work and contender


@dataclass(frozen=True)
class Bar:
    """
    A limit on a figure of ours; where there is a peer, on how many times the peer's it is.

    Where there is another contender ``beyond`` which ours goes, only what it has more counts.
    """

    about: str
    works: Sequence[str]
    figure: str
    contender: str
    limit: float
    peer: str = ""
    at_least: bool = False
    scale: float = 1.0
    unit: str = "×"
    beyond: str = ""

    def values(self, results: Results) -> list[float]:
        """Give what was measured, a value for each work that was."""
        needed = {self.contender, *filter(None, (self.peer, self.beyond))}
        measured = [results.get(work, {}) for work in self.works]
        return [self._value(each) for each in measured if all(map(each.get, needed))]

    def _value(self, measured: Mapping[str, Rounds]) -> float:
        ours = measured[self.contender]
        if self.beyond:
            ours = surplus(ours, measured[self.beyond], self.figure)
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
ALL_FAR_BULK = ["far-down", "far-up", "far-down-lossy", "far-up-lossy"]
ONE_TRIP = ["trips-1", "trips-1-core"]
DIRECT, CHAIN, TLS = "SOCKS5 → direct", "SOCKS5 → WebSocket → direct", "SOCKS5 → wss:// → direct"
FAR = "50 ms away"

BARS = [
    Bar(f"{DIRECT}, bulk: throughput", ALL_BULK, "rate", "ours", 3, "microsocks", at_least=True),
    Bar(f"{DIRECT}, bulk: throughput", ALL_BULK, "rate", "ours", 1.3, "dante", at_least=True),
    Bar(f"{DIRECT}, bulk: CPU per GiB", ALL_BULK, "cpu", "ours", 0.15, "microsocks"),
    Bar(f"{DIRECT}, bulk: CPU per GiB", ALL_BULK, "cpu", "ours", 0.5, "dante"),
    Bar(f"{CHAIN}, down: throughput", DOWN, "rate", "chain", 4, "v2ray", at_least=True),
    Bar(f"{CHAIN}, down: CPU per GiB", DOWN, "cpu", "chain", 0.2, "v2ray"),
    Bar(f"{CHAIN}, up: throughput", UP, "rate", "chain", 2.5, "v2ray", at_least=True),
    Bar(f"{CHAIN}, up: CPU per GiB", UP, "cpu", "chain", 0.4, "v2ray"),
    Bar(f"{TLS}, bulk: throughput", ["down-1", "up-1"], "rate", "chain-tls", 3, "v2ray-tls", at_least=True),
    Bar(f"{TLS}, bulk: CPU per GiB", ["down-4", "up-4"], "cpu", "chain-tls", 0.45, "v2ray-tls"),
    Bar("round trips, 64 connections: rate", ["trips-64"], "rate", "ours", 1.1, "microsocks", at_least=True),
    Bar("round trips, 64 connections: CPU each", ["trips-64"], "cpu", "ours", 0.7, "microsocks"),
    Bar("round trips, 64 connections: rate", ["trips-64"], "rate", "chain", 1.3, "v2ray", at_least=True),
    Bar(
        "round trips, 64 connections: rate",
        ["trips-64"],
        "rate",
        "chain-tls",
        1.2,
        "v2ray-tls",
        at_least=True,
    ),
    Bar("round trips, 64 connections: CPU each", ["trips-64"], "cpu", "chain-tls", 0.7, "v2ray-tls"),
    Bar("round trips, 1 connection: p50", ONE_TRIP, "p50", "ours", 1.15, "microsocks"),
    Bar("round trips, 1 connection: p50", ONE_TRIP, "p50", "chain", 1.0, "v2ray"),
    Bar("round trips, 1 connection: p50", ONE_TRIP, "p50", "chain-tls", 0.95, "v2ray-tls"),
    Bar("short connections: CPU each", ["short"], "cpu", "ours", 1.15, "microsocks"),
    Bar("short connections: CPU each", ["short"], "cpu", "ours", 0.55, "dante"),
    Bar("short connections: CPU each", ["short"], "cpu", "chain", 0.85, "v2ray"),
    Bar("short connections: CPU each", ["short"], "cpu", "chain-tls", 1.15, "v2ray-tls"),
    Bar("short connections, busy all the time: CPU each", ["busy"], "cpu", "ours-workers", 1.05, "ours"),
    Bar("idle connection, SOCKS5 → direct", ["idle"], "each", "ours", 8, scale=1 / 1024, unit=" KiB"),
    Bar(
        "idle connection, WebSocket → direct",
        ["idle"],
        "each, exit",
        "chain",
        14,
        scale=1 / 1024,
        unit=" KiB",
    ),
    Bar(
        "idle connection, what wss:// adds at the entry",
        ["idle"],
        "each, entry",
        "chain-tls",
        1.2,
        "openssl",
        beyond="chain",
    ),
    Bar(
        "idle connection, what wss:// adds at the exit",
        ["idle"],
        "each, exit",
        "chain-tls",
        1.2,
        "openssl",
        beyond="chain",
    ),
    Bar("memory before the first", ["idle"], "before", "ours", 40, scale=1 / (1 << 20), unit=" MiB"),
    Bar("memory before the first", ["idle"], "before", "chain", 40, scale=1 / (1 << 20), unit=" MiB"),
    Bar("small tunnel's p50 beside bulk", ["under-bulk"], "p50", "ours", 1, scale=1e3, unit=" ms"),
    Bar("small tunnel's p50 beside bulk", ["under-bulk"], "p50", "chain", 1, scale=1e3, unit=" ms"),
    Bar("small tunnel's p50 beside bulk", ["under-bulk"], "p50", "chain-tls", 1, scale=1e3, unit=" ms"),
    Bar("small tunnel's p99 beside bulk", ["under-bulk"], "p99", "ours", 1.5, "dante"),
    Bar("new connections' p99 beside bulk", ["under-bulk"], "handshake p99", "ours", 1.5, "dante"),
    Bar("bulk beside these: throughput", ["under-bulk"], "rate", "ours", 1.3, "dante", at_least=True),
    Bar("small tunnel's p99 beside bulk", ["under-bulk"], "p99", "chain", 20, scale=1e3, unit=" ms"),
    Bar(
        "new connections' p99 beside bulk",
        ["under-bulk"],
        "handshake p99",
        "chain",
        50,
        scale=1e3,
        unit=" ms",
    ),
    Bar(f"{FAR}, first byte, 1 client", ["first-1"], "p50", "chain-tls", 1.1, "none"),
    Bar(f"{FAR}, first byte, 1 client", ["first-1"], "p50", "chain-socks", 1.1, "none"),
    Bar(f"{FAR}, first byte, the last of 8 at once", ["first-8"], "last", "chain-tls", 1.3, "none"),
    Bar(f"{FAR}, first byte, the last of 8 at once", ["first-8"], "last", "chain-socks", 1.3, "none"),
    Bar(f"{FAR}, first byte of a page at 2 Mbit/s", ["far-page"], "first", "chain-tls", 1.1, "none"),
    Bar(f"{FAR}, bulk: throughput", ALL_FAR_BULK, "rate", "chain-tls", 0.95, "none", at_least=True),
]
