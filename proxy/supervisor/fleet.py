"""
A program that serves by workers: it has the listeners, and serves no client itself.

Its servers are complete, but accept nobody (``HeldAcceptor``): with them the addresses are opened, waited for
and given up as in any program. Workers get copies of the sockets.

What may never be violated:

- A change is planned by all and then made by all, or by none. It is made where nobody else is started or
  told of sockets (``changing``), so each worker has every socket once.
- To make a planned change does not fail. A worker that does not do so is killed, and comes back with the
  configuration that is in effect by then.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from secrets import token_bytes
from time import monotonic
from typing import Any, TypeVar

import gevent
from gevent import socket
from gevent.lock import RLock

from proxy.accesslog import AccessLog
from proxy.app import App
from proxy.config import ProxyConfig
from proxy.errors import ProxyError, reason_of
from proxy.limiter import Limiter
from proxy.listeners import make_server
from proxy.listening import ours
from proxy.listening.listen import Acceptor
from proxy.listening.opening import close_to_clients, listen_on, place_of
from proxy.metrics import Metrics
from proxy.server import ProxyServer
from proxy.settings.listener import ServerConfig
from proxy.supervisor.crew import ANSWER, START, Crew, or_gone
from proxy.supervisor.handle import Handle
from proxy.supervisor.lookout import Lookout
from proxy.workers.link import GoneError
from proxy.workers.worker import Orders, share_of

log = logging.getLogger(__name__)

T = TypeVar("T")

_SECRET_BYTES = 32
_PARTING = 3.0  # seconds for workers to end, beyond the drain
_STILL_SUPERVISED = (
    "proxy.workers: one worker serves from now on, but its supervisor ends at the next restart only"
)


class HeldAcceptor(Acceptor):
    """Has a listening socket on which only workers accept."""

    def __init__(self, crew: Crew, *given: Any) -> None:
        super().__init__(*given)
        self._crew = crew
        self.is_handed_out = False

    def start_accepting(self) -> None:
        """Leave that to workers."""

    def take_waiting(self) -> None:
        """Leave that to workers."""

    def pause(self) -> None:
        """Have the kernel refuse clients until ``resume``."""
        self._crew.tell_all("pause", place_of(self.socket))
        close_to_clients(self.socket)

    def resume(self) -> None:
        """Have clients accepted again; raises ``OSError``, and then it is closed."""
        place = place_of(self.socket)
        try:
            listen_on(self.socket)
        except OSError:
            self.close()
            raise
        self._crew.tell_all("resume", place)


class Fleet(App):
    """A program whose clients are served by workers."""

    def __init__(self, config: ProxyConfig, *, patient: bool = False) -> None:
        """Build everything, but open nothing; raises ``ConfigError``."""
        super().__init__(config, self._make, patient=patient)
        self.crew = Crew(self.limiter, self._have_serve, lambda why: self.companion.undo(why))
        self.changing = RLock()
        self._lookout = Lookout(self.crew, self.limiter, self.metrics, lambda: self._listeners.accepting)
        self._ticket_secret = token_bytes(_SECRET_BYTES)  # each configuration has its own

    def _make(
        self, config: ServerConfig, access_log: AccessLog, metrics: Metrics, limiter: Limiter
    ) -> ProxyServer:
        server = make_server(config, access_log, metrics, limiter)
        server.make_acceptor = lambda *given: HeldAcceptor(self.crew, *given)
        server.count_elsewhere = lambda: self.crew.count_live(config.name)
        return server

    def held(self) -> Iterator[tuple[str, HeldAcceptor]]:
        """Give what listens, each with the name of its listener."""
        for server in self._listeners.accepting:
            for each in server.acceptors:
                assert isinstance(each, HeldAcceptor)
                yield server.config.name, each

    def _note_handed_out(self) -> None:
        for _, each in self.held():
            each.is_handed_out = True

    # -- the beginning

    @property
    def _share(self) -> ProxyConfig:
        """What the first worker serves, as none serves more: for it, too, there have to be descriptors."""
        return share_of(self.config, 0)

    def _make_room_in_the_loop(self) -> None:
        """Leave that to workers."""

    def _begin(self) -> None:
        self.crew.begin(self.config.workers)
        gevent.spawn(self._lookout.run)

    def _have_serve(self, worker: Handle) -> None:
        """Have a worker serve that has begun; raises ``ProxyError``."""
        with self.changing:
            penalties = self.limiter.penalties.known(monotonic())
            config = share_of(self.config, worker.row)
            orders = Orders(worker.number, worker.row, config, self._ticket_secret, penalties, ours.every())
            held = list(self.held())
            names, sockets = [name for name, _ in held], [each.given for _, each in held]
            worker.ask("serve", orders, names, sockets=sockets, within=START)
            self._note_handed_out()
            worker.has_begun = True

    # -- changing

    def apply(self, config: ProxyConfig) -> tuple[str, ...]:
        """Have all serve new connections under another configuration, or none; raises ``ProxyError``."""
        with self.changing:
            plan = self.plan(config)
            workers = [
                each for each in self.crew.serving if each.row < config.workers and not each.is_leaving
            ]
            secret = token_bytes(_SECRET_BYTES)
            self._have_planned(workers, config, secret)
            try:
                self.open(plan)
                self._check_not_stopping()
            except ProxyError:
                self._listeners.close(plan)
                for each in workers:
                    each.link.tell("forget")
                raise
            # First, as workers count their connections anew when they change.
            self._listeners.limit(plan.limits)
            given = [(server.config.name, sock) for server, socks in plan.sockets.items() for sock in socks]
            for each in workers:
                self._have_changed(each, given)
            is_other = config != self.config
            is_last = config.workers == 1 < self.config.workers
            notes = self.change(config, plan)
            self._ticket_secret = secret
            self._note_handed_out()
            if is_other:  # a reload that changes nothing cannot be taken back
                self.crew.note_change()
            self.crew.resize(config.workers)
            return (*notes, _STILL_SUPERVISED) if is_last else notes

    def _have_planned(self, workers: Sequence[Handle], config: ProxyConfig, secret: bytes) -> None:
        asked = [
            gevent.spawn(_or_error, each.ask, "plan", share_of(config, each.row), secret, within=START)
            for each in workers
        ]
        gevent.joinall(asked)
        # One that is gone comes back with whatever is in effect by then.
        errors = [each.value for each in asked if each.value and not isinstance(each.value, GoneError)]
        if errors:
            for each in workers:
                each.link.tell("forget")
            raise errors[0]

    def _have_changed(self, worker: Handle, given: Sequence[tuple[str, socket.socket]]) -> None:
        try:
            names, sockets = [name for name, _ in given], [sock for _, sock in given]
            worker.ask("change", names, sockets=sockets, within=ANSWER)
        except ProxyError as exc:
            if not worker.link.is_over:
                log.error("worker %d could not change: %s; it is restarted", worker.number, reason_of(exc))
            worker.kill()

    def _arrived(self, server: ProxyServer) -> None:
        with self.changing:
            held = [each for _, each in self.held() if each in server.acceptors]
            new = [each.given for each in held if not each.is_handed_out]
            for each in self.crew.serving:
                or_gone(each.ask, "arrived_at", server.config.name, sockets=new, within=ANSWER)
            self._note_handed_out()
        super()._arrived(server)

    def reopen_logs(self) -> tuple[str, ...]:
        """Open the log files anew, in all; returns what there is to say of it."""
        for each in self.crew.handles:
            each.link.tell("reopen_logs")
        return super().reopen_logs()

    def flush_logs(self) -> None:
        """Have all be written that is to be written yet."""
        self._logs.flush()

    # -- the end

    def stop(self) -> None:
        """Stop in good order, or at once if that was said before."""
        if self.crew.is_stopping:
            self.crew.leave(at_once=True)
        self.crew.is_stopping = True
        super().stop()

    def _drain(self) -> None:
        self.crew.report(within=1.0)
        live = sum(each.snapshot.live.total() for each in self.crew.handles)
        log.info("stopping: live connections (%d) have %g s to finish", live, self.config.drain_timeout)
        self.crew.leave()
        self._listeners.stop()
        self.crew.see_off(self.config.drain_timeout + _PARTING)
        log.info("stopped")

    def _report(self) -> None:
        self._opened.wait()
        self.crew.report(within=1.0)
        counted = sum((each.snapshot for each in self.crew.handles), self.crew.past)
        for server in self.servers:
            name = server.config.name
            total = counted.listeners[name].accepted if name in counted.listeners else 0
            log.info("%s: connections: %d live, %d in all", name, counted.live[name], total)


def _or_error(act: Callable[..., T], *values: Any, **options: Any) -> T | ProxyError:
    try:
        return act(*values, **options)
    except ProxyError as exc:
        return exc
