"""
Counters and histograms, and their text for Prometheus.

Counting is on the path of every connection, so it is an addition to a plain attribute; everything else is
done when somebody asks. No label depends on a user or a target, of which there may be any number.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.errors import Failure

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds

STAGES = HANDSHAKE, TARGET = ("handshake", "target")
CLIENT_LEFT = "client left"
CAUSES = (*(failure.value for failure in Failure), CLIENT_LEFT)
MOST_REFUSALS = 200  # that are remembered
ENDINGS = ("finished", "cut", "failed", "idle", "stopped", "evicted")  # the values of Ending

Labels = Mapping[str, str]


class Histogram:
    """How many durations were at most so long."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)  # the last one is of those above all bounds
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def __add__(self, other: "Histogram") -> "Histogram":
        both = Histogram()
        both.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        both.sum = self.sum + other.sum
        return both


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    A client that got no connection, and why; what is not known is empty.

    ``cause`` is one of the few that are counted, ``reason`` what the access log says.
    """

    time: float  # Unix time, in seconds
    client: str
    user: str
    listener: str
    target: str
    upstream: str
    stage: str
    cause: str
    reason: str
    rule: str
    limit: str


class ListenerMetrics:
    """
    What happened at one listener; bytes are those of connections that have ended.

    The latest refusals are those of all listeners.
    """

    def __init__(self, refusals: "deque[Refusal] | None" = None) -> None:
        self.refusals: deque[Refusal] = deque(maxlen=MOST_REFUSALS) if refusals is None else refusals
        self.accepted = 0
        self.filled = 0  # how often the limit was reached
        self.sent = 0
        self.received = 0
        self.handshakes = Histogram()
        self.dials = Histogram()
        self.failures: Counter[tuple[str, str]] = Counter()  # by stage and cause
        self.endings: Counter[str] = Counter()
        self.rules: Counter[tuple[str, str]] = Counter()  # by name and action
        self.spares: dict[str, Counter[str]] = {}  # those of each upstream, by what became of them

    def __add__(self, other: "ListenerMetrics") -> "ListenerMetrics":
        both = ListenerMetrics()
        both.accepted, both.filled = self.accepted + other.accepted, self.filled + other.filled
        both.sent, both.received = self.sent + other.sent, self.received + other.received
        both.handshakes, both.dials = self.handshakes + other.handshakes, self.dials + other.dials
        both.failures, both.endings = self.failures + other.failures, self.endings + other.endings
        both.rules = self.rules + other.rules
        for one in (self, other):
            for upstream, more in dict(one.spares).items():  # to which another thread may add
                both.spares_of(upstream).update(more)
        return both

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what another process has counted; one of an earlier version may not count everything yet."""
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)

    def spares_of(self, upstream: str) -> Counter[str]:
        """Give what became of the connections that an upstream had ready, to count on."""
        return self.spares.setdefault(upstream, Counter())


class Metrics:
    """The metrics of all listeners, which outlive them: a counter never falls."""

    def __init__(
        self,
        listeners: Mapping[str, ListenerMetrics] | None = None,
        refusals: deque[Refusal] | None = None,
    ) -> None:
        self.listeners = dict(listeners or {})
        self.refusals: deque[Refusal] = deque(maxlen=MOST_REFUSALS) if refusals is None else refusals

    def copy(self) -> "Metrics":
        """Give others that count into the same numbers, for listeners that may yet come to nothing."""
        return Metrics(self.listeners, self.refusals)

    def listener(self, name: str) -> ListenerMetrics:
        """Give the metrics of a listener."""
        return self.listeners.setdefault(name, ListenerMetrics(self.refusals))


# What is rendered


@dataclass(frozen=True)
class Family:
    """One metric with all its label values, for ``render``."""

    name: str
    kind: str  # counter | gauge | histogram
    help: str
    samples: list[tuple[Labels, float | Histogram]] = field(default_factory=list)


def listener_families(listeners: Mapping[str, ListenerMetrics]) -> Iterator[Family]:
    """Make the families that are counted at listeners."""

    def each(name: str) -> list[tuple[Labels, float | Histogram]]:
        return [({"listener": key}, getattr(one, name)) for key, one in listeners.items()]

    yield Family("proxy_connections_total", "counter", "Client connections accepted.", each("accepted"))
    yield Family(
        "proxy_limit_reached_total", "counter", "How often max_connections was reached.", each("filled")
    )
    yield Family(
        "proxy_handshake_seconds", "histogram", "Time from accept to a complete request.", each("handshakes")
    )
    yield Family(
        "proxy_dial_seconds", "histogram", "Time from a request to its connected target.", each("dials")
    )
    yield Family(
        "proxy_failures_total",
        "counter",
        "Clients that got no connection, by stage and cause.",
        [
            ({"listener": key, "stage": stage, "cause": cause.replace(" ", "_")}, one.failures[stage, cause])
            for key, one in listeners.items()
            for stage in STAGES
            for cause in CAUSES
        ],
    )
    yield Family(
        "proxy_tunnels_total",
        "counter",
        "Relayed connections that have ended, by how they ended.",
        [
            ({"listener": key, "ending": ending}, one.endings[ending])
            for key, one in listeners.items()
            for ending in ENDINGS
        ],
    )


def render(families: Iterable[Family]) -> str:
    """Write metrics in the text format of Prometheus, version 0.0.4."""
    return "".join(f"{line}\n" for family in families for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, value in family.samples:
        if isinstance(value, Histogram):
            yield from _histogram_lines(family.name, labels, value)
        else:
            yield _sample(family.name, labels, value)


def _histogram_lines(name: str, labels: Labels, histogram: Histogram) -> Iterator[str]:
    count = 0
    for bound, more in zip((*map(str, BOUNDS), "+Inf"), histogram.counts, strict=True):
        count += more
        yield _sample(f"{name}_bucket", {**labels, "le": bound}, count)
    yield _sample(f"{name}_sum", labels, histogram.sum)
    yield _sample(f"{name}_count", labels, count)


def _sample(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value!r}" if inside else f"{name} {value!r}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
