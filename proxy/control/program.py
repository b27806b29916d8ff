"""
The running program as the control interface sees it, if it is a single process.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from time import monotonic
from typing import Any, Protocol

from proxy.address import IPAddress
from proxy.control.connections import Listing, Query, Rates, list_connections, moved
from proxy.control.snapshot import Flow, Ready, Snapshot, measure
from proxy.errors import ProxyError
from proxy.limiter import Limiter
from proxy.metrics import ListenerMetrics, Metrics, Refusal
from proxy.relaying.stream import Ending
from proxy.server import ProxyServer
from proxy.session import Session

log = logging.getLogger(__name__)

Held = Callable[[], AbstractContextManager[None]]


class Running(Protocol):
    """The part of ``App`` that is looked at."""

    metrics: Metrics

    @property
    def limiter(self) -> Limiter: ...

    @property
    def servers(self) -> Sequence[ProxyServer]: ...

    @property
    def draining(self) -> bool: ...

    @property
    def draining_for(self) -> float: ...

    def reopen_logs(self) -> Sequence[str]: ...


class Program:
    """All that can be asked of it; where others serve, ``Together`` asks them."""

    def __init__(self, app: Running) -> None:
        self.app = app
        self._rates = Rates()

    @property
    def workers(self) -> Sequence[Mapping[str, Any]]:
        """The processes that serve, if they are others than this one."""
        return ()

    @property
    def deaths(self) -> int:
        """How many of these have ended unexpectedly."""
        return 0

    @property
    def upgrade(self) -> Mapping[str, Any] | None:
        """What came of the last upgrade."""
        return None

    def snapshot(self) -> Snapshot:
        """Count all up."""
        # Copies, to which is added what the connections have moved that live.
        listeners = {name: ListenerMetrics() + one for name, one in self.app.metrics.listeners.items()}
        live = Counter[str]()
        for session in self._sessions():
            name, (sent, received) = session.runtime.config.name, moved(session)
            live[name] += 1
            listeners[name].sent += sent
            listeners[name].received += received
        upstreams = {
            (server.config.name, each.name): Ready(each.health.state, len(each.health.spares))
            for server in reversed(self.app.servers)  # of those with the same name the first counts
            for each in server.runtime.upstreams
        }
        flows = {
            account.key: Flow(
                account.sent.used, account.received.used, account.sent.waiting, account.received.waiting
            )
            for account in self.app.limiter.accounts
            if account.sent and account.received
        }
        refused, refusals = self.app.limiter.penalties.refused, tuple(self.app.metrics.refusals)
        return Snapshot(listeners, live, upstreams, flows, refused, measure(), refusals)

    def connections(self, query: Query) -> Listing:
        """Describe the live connections that are asked for."""
        return list_connections(self._sessions(), self._rates, query)

    def refusals(self) -> Iterable[Refusal]:
        """Give the latest clients that got no connection, the last one at the end."""
        return self.snapshot().refusals

    def end_connection(self, name: str) -> bool:
        """End a connection by its id, and tell whether there is one."""
        session = next((each for each in self._sessions() if str(each.id) == name), None)
        if session:
            log.info("%s: connection %s is ended by an operator", session, session.id)
            session.stop(Ending.EVICTED)
        return session is not None

    def forgive(self, client: IPAddress) -> bool:
        """Take away what is held against an address, and tell whether there was anything."""
        return self.app.limiter.penalties.forgive(client, monotonic())

    def begin_upgrade(self, outcomes: Counter[str], held: Held) -> int:
        """
        Have another program take the place of this one, and give the number of that; or ``ProxyError``.

        The configuration is ``held`` as it is meanwhile.
        """
        raise ProxyError("there are no workers that could take over: set workers in [proxy], or restart it")

    def _sessions(self) -> Iterator[Session]:
        for server in self.app.servers:
            yield from server.sessions
