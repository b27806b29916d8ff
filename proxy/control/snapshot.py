"""
What a process has counted until now, and what it has at the moment: plain numbers, which can be added up.

``Program`` is what the control interface needs of a running program, and ``Alone`` is one of a single
process. Where several serve, each takes its own snapshot, and what is told is their sum.
"""

import logging
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Protocol

from proxy.address import IPAddress
from proxy.control.connections import Listing, Query, Rates, list_connections, moved
from proxy.errors import ProxyError
from proxy.health import State
from proxy.limiter import Limiter
from proxy.metrics import ListenerMetrics, Metrics, Refusal
from proxy.policy.limits import Identity
from proxy.relaying.stream import Ending
from proxy.server import ProxyServer
from proxy.session import Session

log = logging.getLogger(__name__)

Named = tuple[str, str]  # a listener, and one of its upstreams
Held = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Ready:
    """How an upstream is, and how many connections to it are ready, and were, by what became of them."""

    state: State
    spares: int
    outcomes: Counter[str]

    def __add__(self, other: "Ready") -> "Ready":
        latest = max(self.state, other.state, key=lambda each: each.since)
        return Ready(latest, self.spares + other.spares, self.outcomes + other.outcomes)


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
        )

    def what_was(self) -> "Snapshot":
        """Leave only what is counted for good, as the process is no more."""
        # What it alone knew of an upstream nobody goes by any more.
        gone = {
            key: replace(each, spares=0, state=replace(each.state, answered_at=0.0, failed_at=0.0))
            for key, each in self.upstreams.items()
        }
        return replace(self, live=Counter(), upstreams=gone, flows={}, process=Process(self.process.cpu))


def _merged(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> dict[Any, Any]:
    both = {key: one[key] + other[key] for key in one.keys() & other.keys()}
    return {**one, **other, **both}


class Running(Protocol):
    """The running program, as far as it is looked at."""

    metrics: Metrics

    @property
    def limiter(self) -> Limiter:
        """What is kept of the limits."""

    @property
    def servers(self) -> Sequence[ProxyServer]:
        """The servers of all listeners, and those that still have connections."""

    @property
    def draining(self) -> bool:
        """True once it has been told to stop."""

    @property
    def draining_for(self) -> float:
        """How many seconds ago it was told so."""

    def reopen_logs(self) -> Sequence[str]:
        """Open the log files anew; returns what there is to say of it."""


NO_WORKERS = "there are no workers that could take over: set workers in [proxy], or restart it"


class Program(Running, Protocol):
    """The same, whether it serves by itself or has others that do."""

    @property
    def workers(self) -> Sequence[Mapping[str, Any]]:
        """The processes that serve, if they are others than this one."""

    @property
    def deaths(self) -> int:
        """How many of these have ended unasked."""

    def snapshot(self) -> Snapshot:
        """Count all up."""

    def connections(self, query: Query) -> Listing:
        """Describe the live connections that are asked for."""

    def refusals(self) -> Iterable[Refusal]:
        """Give the latest clients that got no connection, the last one at the end."""

    def end_connection(self, name: str) -> bool:
        """End a connection by its id, and tell whether there is one."""

    def forgive(self, client: IPAddress) -> bool:
        """Take away what is held against an address, and tell whether there was anything."""

    @property
    def upgrade(self) -> Mapping[str, Any] | None:
        """What came of the last upgrade."""

    def begin_upgrade(self, outcomes: Counter[str], held: Held) -> int:
        """
        Have another program take the place of this one, and give the number of that; or ``ProxyError``.

        The configuration is ``held`` as it is meanwhile.
        """


class Alone:
    """A program of one process."""

    def __init__(self, app: Running) -> None:
        self._app = app
        self._rates = Rates()
        self.metrics = app.metrics
        self.reopen_logs = app.reopen_logs

    @property
    def servers(self) -> Sequence[ProxyServer]:
        """The servers of all listeners, and those that still have connections."""
        return self._app.servers

    @property
    def limiter(self) -> Limiter:
        """What is kept of the limits."""
        return self._app.limiter

    @property
    def draining(self) -> bool:
        """True once it has been told to stop."""
        return self._app.draining

    @property
    def draining_for(self) -> float:
        """How many seconds ago it was told so."""
        return self._app.draining_for

    @property
    def workers(self) -> Sequence[Mapping[str, Any]]:
        """The processes that serve, if they are others than this one."""
        return ()

    @property
    def deaths(self) -> int:
        """How many of these have ended unasked."""
        return 0

    def snapshot(self) -> Snapshot:
        """Count all up."""
        # Copies, to which is added what the connections have moved that live.
        listeners = {name: ListenerMetrics() + one for name, one in self._app.metrics.listeners.items()}
        live = Counter[str]()
        for session in self._sessions():
            name, (sent, received) = session.runtime.config.name, moved(session)
            live[name] += 1
            listeners[name].sent += sent
            listeners[name].received += received
        upstreams = {
            (server.config.name, each.name): Ready(
                each.health.state, len(each.health.spares), Counter(each.health.spares.counts)
            )
            for server in reversed(self._app.servers)  # of those with the same name the first counts
            for each in server.runtime.upstreams
        }
        flows = {
            account.key: Flow(
                account.sent.used, account.received.used, account.sent.waiting, account.received.waiting
            )
            for account in self._app.limiter.accounts
            if account.sent and account.received
        }
        return Snapshot(listeners, live, upstreams, flows, self._app.limiter.penalties.refused, measure())

    def connections(self, query: Query) -> Listing:
        """Describe the live connections that are asked for."""
        return list_connections(self._sessions(), self._rates, query)

    def refusals(self) -> Iterable[Refusal]:
        """Give the latest clients that got no connection, the last one at the end."""
        return self._app.metrics.refusals

    def end_connection(self, name: str) -> bool:
        """End a connection by its id, and tell whether there is one."""
        session = next((each for each in self._sessions() if str(each.id) == name), None)
        if session:
            log.info("%s: connection %s is ended by an operator", session, session.id)
            session.stop(Ending.EVICTED)
        return session is not None

    def forgive(self, client: IPAddress) -> bool:
        """Take away what is held against an address, and tell whether there was anything."""
        return self._app.limiter.penalties.forgive(client, monotonic())

    @property
    def upgrade(self) -> Mapping[str, Any] | None:
        """What came of the last upgrade."""
        return None

    def begin_upgrade(self, outcomes: Counter[str], held: Held) -> int:
        """Have another program take the place of this one; raises ``ProxyError``."""
        raise ProxyError(NO_WORKERS)

    def _sessions(self) -> Iterator[Session]:
        for server in self._app.servers:
            yield from server.sessions
