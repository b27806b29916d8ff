"""
A snapshot of a process: its counters, and what it has at the moment, as plain numbers that can be added up.

Where several processes serve, each takes its own snapshot, and their sum is reported. Snapshots are also
pickled for another version of the program (``ctl upgrade``), which cannot read a class that was renamed,
moved or given other fields.
"""

import os
import resource
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from proxy.health import State
from proxy.metrics import MOST_REFUSALS, ListenerMetrics, Refusal
from proxy.policy.limits import Identity

Named = tuple[str, str]  # a listener, and one of its upstreams


@dataclass(frozen=True)
class Ready:
    """How an upstream is, and how many connections to it are ready."""

    state: State
    spares: int

    def __add__(self, other: "Ready") -> "Ready":
        # One may know why it could not even be tried, of which there is no time.
        latest = max(self.state, other.state, key=lambda each: (each.since, each.problem != ""))
        return Ready(latest, self.spares + other.spares)


@dataclass(frozen=True)
class Flow:
    """What the connections that share a limit move, in bytes a second, and how many directions wait."""

    sent: float = 0.0
    received: float = 0.0
    sent_waiting: int = 0
    received_waiting: int = 0

    @property
    def waiting(self) -> int:
        """How many wait in all."""
        return self.sent_waiting + self.received_waiting

    def __add__(self, other: "Flow") -> "Flow":
        return Flow(
            self.sent + other.sent,
            self.received + other.received,
            self.sent_waiting + other.sent_waiting,
            self.received_waiting + other.received_waiting,
        )


@dataclass(frozen=True)
class Process:
    """What the operating system has given: seconds, descriptors and bytes, where it tells."""

    cpu: float = 0.0
    files: int | None = None
    memory: int | None = None

    def __add__(self, other: "Process") -> "Process":
        return Process(self.cpu + other.cpu, _sum(self.files, other.files), _sum(self.memory, other.memory))


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None and other is None else (one or 0) + (other or 0)


def measure() -> Process:
    """Measure this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    try:
        files = len(os.listdir("/proc/self/fd"))
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:  # not Linux
        return Process(cpu)
    return Process(cpu, files, pages * resource.getpagesize())


@dataclass
class Snapshot:
    """All of it, by listener; bytes are those of all connections, those that live too."""

    listeners: dict[str, ListenerMetrics] = field(default_factory=dict)
    live: Counter[str] = field(default_factory=Counter)
    upstreams: dict[Named, Ready] = field(default_factory=dict)
    flows: dict[tuple[str, Identity], Flow] = field(default_factory=dict)  # by limit
    penalized: int = 0  # logins that were not judged
    process: Process = field(default_factory=Process)
    refusals: tuple[Refusal, ...] = ()  # the latest, the last one at the end

    def __add__(self, other: "Snapshot") -> "Snapshot":
        listeners = dict(self.listeners)
        for name, more in other.listeners.items():
            listeners[name] = listeners[name] + more if name in listeners else more
        return Snapshot(
            listeners,
            self.live + other.live,
            _merged(self.upstreams, other.upstreams),
            _merged(self.flows, other.flows),
            self.penalized + other.penalized,
            self.process + other.process,
            tuple(sorted(self.refusals + other.refusals, key=lambda each: each.time)[-MOST_REFUSALS:]),
        )

    def what_was(self) -> "Snapshot":
        """Leave only what is counted for good, as the process is no more."""
        return replace(self, live=Counter(), upstreams={}, flows={}, process=Process(self.process.cpu))


def _merged(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> dict[Any, Any]:
    both = {key: one[key] + other[key] for key in one.keys() & other.keys()}
    return {**one, **other, **both}
