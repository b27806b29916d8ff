"""
A worker process: a program like any other, which is given its configuration and its sockets.

Its supervisor is at the other end of a link. When that is gone, for whatever reason, the worker ends as it
would on SIGTERM.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from time import monotonic
from typing import Any

import gevent
from gevent import socket
from gevent.event import AsyncResult

from proxy.accesslog import AccessLog
from proxy.address import Address, AnyPlace, IPAddress, Place
from proxy.app import App, Companion
from proxy.config import ProxyConfig
from proxy.console import FAILED, OK
from proxy.control.connections import Listing, Query
from proxy.control.program import Program
from proxy.control.snapshot import Named, Snapshot
from proxy.errors import ProxyError
from proxy.health import State
from proxy.limiter import Limiter
from proxy.lines import begin
from proxy.listeners import Plan, make_server
from proxy.listening import ours
from proxy.listening.listen import Acceptor, Handler, PassesOver
from proxy.listening.opening import Opening, place_of
from proxy.listening.pool import Pool
from proxy.metrics import Metrics
from proxy.server import ProxyServer
from proxy.settings.listener import ServerConfig
from proxy.tls import tickets
from proxy.workers import VARIABLE
from proxy.workers.limits import Share, SharedLimiter
from proxy.workers.link import GoneError, Link
from proxy.workers.table import Seat, Table

log = logging.getLogger(__name__)

_LAST_WORDS = 1.0  # seconds for them to be heard
_OOM_SCORE = 100  # thousandths of the memory that there may be (proc_pid_oom_score_adj(5))
_MOST_OOM_SCORE = 1000

# What the supervisor says, for all, would be said here once more.
_SAID_BY_SUPERVISOR = ("proxy.app", "proxy.listeners", "proxy.listening.fullness")


@dataclass(frozen=True)
class Orders:
    """All that a worker is told at its beginning."""

    number: int
    row: int  # of the table
    config: ProxyConfig
    ticket_secret: bytes = field(repr=False)
    penalties: Sequence[tuple[str, int, float]]
    ours: Sequence[Place]


class Given(Opening):
    """The addresses of a listener, which the supervisor has opened, or will: nothing is opened here."""

    def __init__(self, config: ServerConfig, shelf: dict[str, list[socket.socket]]) -> None:
        super().__init__(config.endpoint, config.file_mode)
        self._name = config.name
        self._shelf = shelf
        self._places = ()

    def look_up(self, within: float | None = None) -> Sequence[AnyPlace]:
        """Know of none."""
        return ()

    def open(self, at_hand: object = None) -> list[socket.socket]:
        """Take what was given."""
        return self._shelf.pop(self._name, [])


class SharingAcceptor(Acceptor):
    """Accepts on a socket on which others accept too, and leaves clients to those who have fewer."""

    # At a time: more would leave nothing to others, and with one each client wakes everybody once more.
    max_accept = 16

    def __init__(
        self,
        seat: Seat,
        server: ProxyServer,
        sock: socket.socket,
        handler: Handler,
        pool: Pool,
        passes_over: PassesOver,
    ) -> None:
        super().__init__(sock, handler, pool, passes_over)
        self._seat = seat
        self._server = server
        self._jobs = pool
        self._publish()
        pool.watchers.append(self._publish)

    def close(self) -> None:
        """Close the listening socket; what goes on after that is nothing to the others."""
        super().close()
        if self._publish in self._jobs.watchers:
            self._jobs.watchers.remove(self._publish)

    def do_read(self) -> Any:
        """Accept a client, if one is there that is not for others."""
        is_for_others = self._seat.leaves(len(self._jobs), self._server.config.max_connections)
        return None if is_for_others else super().do_read()

    def _publish(self) -> None:
        """Have the others know how many connections there are."""
        self._seat.publish(len(self._jobs))

    def pause(self) -> None:
        """Accept nobody until ``resume``; the supervisor has the kernel refuse them."""
        self.take_waiting()

    def resume(self) -> None:
        """Accept again."""
        self.start_accepting()


class Worker(Companion):
    """This process: it does what the supervisor asks."""

    def __init__(self, sock: socket.socket, table: Table) -> None:
        self._table = table
        self._orders: AsyncResult[Orders] = AsyncResult()
        self._ready: AsyncResult[None] = AsyncResult()
        self._shelf: dict[str, list[socket.socket]] = {}
        self._planned: tuple[ProxyConfig, Plan] | None = None
        self._limiter = SharedLimiter()
        self._app: App
        self._told: Program
        self._has_begun = False  # before, there is neither
        questions = (
            self.hello, self.serve, self.plan, self.change, self.forget, self.arrived_at, self.pause,
            self.resume, self.report, self.connections, self.end_connection, self.forgive,
            self.failed, self.learn, self.take, self.reopen_logs, self.count_anew, self.stop_at_once,
        )  # fmt: skip
        answers = {each.__name__: each for each in questions}
        self._link = self._limiter.link = Link(sock, answers, ("serve", "plan"), self._lost)

    def run(self) -> None:
        """Serve until the supervisor says to stop, or is gone."""
        self._link.start()
        orders: Orders = self._orders.get()  # type: ignore[assignment]
        for name in _SAID_BY_SUPERVISOR:
            logging.getLogger(name).setLevel(logging.ERROR)
        begin(as_json=orders.config.log_format == "json")
        ProxyServer.ids = (f"{orders.number}-{number}" for number in count(1))
        self._limiter.penalties.take_over(orders.penalties)
        ours.note_others(orders.ours)
        tickets.share(orders.ticket_secret)
        try:
            self._app = App(
                orders.config,
                partial(self._make, orders.row),
                patient=True,
                make_opening=partial(Given, shelf=self._shelf),
                limiter=self._limiter,
            )
            self._told = Program(self._app)
            self._app.companion = self
            self._has_begun = True
            self._app.run()
        except ProxyError as exc:
            self._ready.set_exception(exc)
            gevent.sleep(0)
            raise

    def _make(
        self, row: int, config: ServerConfig, access_log: AccessLog, metrics: Metrics, limiter: Limiter
    ) -> ProxyServer:
        server = make_server(config, access_log, metrics, limiter)
        seat = Seat(self._table, row, config.name)
        server.make_acceptor = partial(SharingAcceptor, seat, server)
        return server

    def _acceptors(self) -> Iterable[SharingAcceptor]:
        for server in self._app.servers:
            for each in server.acceptors:
                assert isinstance(each, SharingAcceptor)
                yield each

    def _lost(self) -> None:
        if not self._has_begun:
            os._exit(FAILED)  # it has served nobody yet
        if not self._app.draining:
            self._app.stop()

    # -- the turning points of its life

    def ready(self) -> None:
        """Say so."""
        self._ready.set(None)

    def reload(self) -> None:
        """Leave that to the supervisor, which gets a SIGHUP of its own if it was meant for all."""

    def stopped(self) -> None:
        """Leave nothing uncounted."""
        with suppress(GoneError):
            self._link.ask("last_words", self.report(()), within=_LAST_WORDS)

    # -- what the supervisor asks

    def hello(self) -> None:
        """Say that the program is there."""

    def serve(self, orders: Orders, names: Sequence[str], *, sockets: Sequence[socket.socket] = ()) -> None:
        """Begin; it is ready when this returns."""
        self._put(names, sockets)
        self._orders.set(orders)
        self._ready.get()

    def plan(self, config: ProxyConfig, ticket_secret: bytes) -> None:
        """Build what another configuration needs; raises ``ProxyError``."""
        tickets.share(ticket_secret)
        self._planned = config, self._app.plan(config)

    def change(self, names: Sequence[str], *, sockets: Sequence[socket.socket] = ()) -> None:
        """Serve as was planned, on these sockets too."""
        assert self._planned
        self._put(names, sockets)
        config, plan = self._planned
        self._planned = None
        self._app.open(plan)
        self._app.change(config, plan)

    def forget(self) -> None:
        """Do not do what was planned."""
        self._planned = None

    def arrived_at(self, name: str, *, sockets: Sequence[socket.socket] = ()) -> None:
        """Accept on addresses, too, that a listener waited for."""
        for server in self._app.servers:
            if server.config.name == name and server.opening:
                server.accept_on(sockets)
                return
        for sock in sockets:
            sock.close()

    def pause(self, place: AnyPlace) -> None:
        """Accept nobody at an address."""
        for each in self._acceptors():
            if place_of(each.socket) == place:
                each.pause()

    def resume(self, place: AnyPlace) -> None:
        """Accept there again."""
        for each in self._acceptors():
            if place_of(each.socket) == place:
                each.resume()

    def report(self, places: Sequence[Place]) -> Snapshot:
        """Count all up; and know where the supervisor listens, by now."""
        ours.note_others(places)
        snapshot = self._told.snapshot()
        for one in snapshot.listeners.values():
            one.filled = 0  # when all are, the supervisor counts
        return snapshot

    def connections(self, query: Query) -> Listing:
        """Describe the live connections that are asked for."""
        return self._told.connections(query)

    def end_connection(self, name: str) -> bool:
        """End a connection."""
        return self._told.end_connection(name)

    def forgive(self, client: IPAddress) -> None:
        """Hold nothing against an address any more."""
        self._limiter.penalties.forgive(client, monotonic())

    def failed(self, client: Address, penalty: float) -> None:
        """Note that a login failed elsewhere."""
        self._limiter.penalties.add(client, penalty, monotonic())

    def learn(self, news: Sequence[tuple[Named, State]]) -> None:
        """Take over what others have found out of upstreams."""
        known = dict(news)
        for server in self._app.servers:
            for each in server.runtime.upstreams:
                if state := known.get((server.config.name, each.name)):
                    each.health.learn(state)

    def take(self, shares: Sequence[Share]) -> None:
        """Take what may be moved here from now on."""
        self._limiter.take(shares)

    def count_anew(self) -> None:
        """Tell a new supervisor of all connections that count for limits."""
        for server in self._app.servers:
            for session in server.sessions:
                session.limit_anew()

    def reopen_logs(self) -> None:
        """Open the log files anew; the supervisor says what there is to say of it."""
        if self._has_begun:  # else they are still to be opened
            self._app.reopen_logs()

    def stop_at_once(self) -> None:
        """Wait for no connection; of two signals it might see one only."""
        if self._has_begun:
            for _ in range(2):
                self._app.stop()

    def _put(self, names: Sequence[str], sockets: Sequence[socket.socket]) -> None:
        for name, sock in zip(names, sockets, strict=True):
            self._shelf.setdefault(name, []).append(sock)


def share_of(config: ProxyConfig, row: int) -> ProxyConfig:
    """Give one of several workers its part of a configuration that holds for all together."""
    count = config.workers
    listeners = tuple(
        replace(each, max_connections=each.max_connections // count + (row < each.max_connections % count))
        for each in config.listeners
    )
    limits = tuple(
        replace(each, bandwidth=each.bandwidth and -(-each.bandwidth // count)) for each in config.limits
    )
    # The supervisor has waited for others before it tells its workers to stop.
    return replace(config, listeners=listeners, limits=limits, workers=1, drain_delay=0.0)


def run(descriptors: str) -> int:
    """Be a worker, and return the exit code: the descriptors are those of its link and of the table."""
    try:
        link, table = map(int, descriptors.split(","))
        for fd in (link, table):
            os.set_inheritable(fd, False)
        worker = Worker(socket.socket(fileno=link), Table(table))
    except (OSError, ValueError):
        raise ProxyError(f"{VARIABLE} is set, which is for processes that it starts itself") from None
    _offer_to_go_first()
    try:
        worker.run()
    except ProxyError:
        return FAILED  # the supervisor says why
    return OK


def _offer_to_go_first() -> None:
    """
    Have the kernel end a worker, which is replaced, before the supervisor, with which all ends.

    Where memory runs out it takes the largest process, and the supervisor is often a bit larger.
    """
    with suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        adjusted = min(int(file.read()) + _OOM_SCORE, _MOST_OOM_SCORE)
        file.seek(0)
        file.write(str(adjusted))
