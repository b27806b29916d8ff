"""
The servers of a configuration, and how a new configuration replaces them.

A change has three steps. ``plan`` builds all that is new, and may take its time. ``open`` opens the
addresses that are new. Both may fail, and then nothing has happened. ``change`` then only moves
references: it cannot fail, and no connection comes in between.

A listener that keeps its name and its address keeps its server and its sockets. Where only the address
is the same, the new server gets a copy of the sockets; who waits in their queue is still served by the old.
Where the kernel chooses the port, the address is the same as long as the name is.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from types import MappingProxyType

from proxy.accesslog import NO_LOG, AccessLog
from proxy.address import AnyPlace, Place
from proxy.config import ProxyConfig
from proxy.errors import ProxyError, reason_of
from proxy.limiter import Limiter
from proxy.listening.listen import Acceptor
from proxy.listening.opening import BACKLOG, PATIENCE, Latecomers, Opening, close_to_clients, place_of
from proxy.metrics import Metrics
from proxy.net.sock import GeventSocket
from proxy.runtime import Runtime
from proxy.server import ProxyServer
from proxy.settings.limits import LimitConfig
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol

log = logging.getLogger(__name__)

MakeServer = Callable[[ServerConfig, AccessLog, Metrics, Limiter], ProxyServer]
MakeOpening = Callable[[ServerConfig], Opening]


def make_server(
    config: ServerConfig,
    access_log: AccessLog = NO_LOG,
    metrics: Metrics | None = None,
    limiter: Limiter | None = None,
) -> ProxyServer:
    """Make the server of a listener; raises ``ConfigError``."""
    # Imported only where one is configured: the HTTP libraries take 10 MB.
    if config.protocol is Protocol.WEBSOCKET:
        from proxy.websocket.server import WebSocketServer

        return WebSocketServer(config, access_log, metrics, limiter)
    if config.protocol is Protocol.MIXED:
        from proxy.mixed import MixedServer

        return MixedServer(config, access_log, metrics, limiter)
    from proxy.socks5.server import Socks5Server

    return Socks5Server(config, access_log, metrics, limiter)


def make_opening(config: ServerConfig) -> Opening:
    """Make the opening of a listener's addresses."""
    return Opening(config.endpoint, config.file_mode)


@dataclass
class Plan:
    """What a change is going to do."""

    metrics: Metrics  # those of before, and of the listeners that are new
    limits: tuple[LimitConfig, ...] = ()
    servers: list[ProxyServer] = field(default_factory=list)  # all of them afterwards
    renewed: dict[ProxyServer, Runtime] = field(default_factory=dict)  # those that serve on otherwise
    leaving: list[ProxyServer] = field(default_factory=list)
    openings: dict[ProxyServer, Opening] = field(default_factory=dict)  # of those that are new,
    sockets: dict[ProxyServer, list[GeventSocket]] = field(default_factory=dict)  # with what they listen on


class Listeners:
    """The servers that accept clients, and those that still have some."""

    def __init__(
        self,
        make: MakeServer,
        access_log: AccessLog,
        metrics: Metrics,
        arrived: Callable[[ProxyServer], object] = lambda server: None,
        make_opening: MakeOpening = make_opening,
        limiter: Limiter | None = None,
    ) -> None:
        """Take what to do when an address that a server waited for has come, and is open."""
        self._make = make
        self._access_log = access_log
        self._metrics = metrics
        self.limiter = limiter or Limiter()
        self._arrived = arrived
        self._make_opening = make_opening
        self.accepting: list[ProxyServer] = []
        self._leaving: list[ProxyServer] = []
        self._inherited: list[GeventSocket] = []
        self._latecomers = Latecomers()

    @property
    def all(self) -> list[ProxyServer]:
        """Those that accept, and then those that have left and still have connections."""
        return [*self.accepting, *(server for server in self._leaving if not server.is_idle)]

    def plan(self, config: ProxyConfig) -> Plan:
        """Build what another configuration needs, in any thread; raises ``ConfigError``."""
        present = {server.config.name: server for server in self.accepting}
        # This may be another thread, and may come to nothing: the metrics in use are not to change here.
        plan = Plan(self._metrics.copy(), config.limits)
        for listener in config.listeners:
            server = present.get(listener.name)
            if not server or not _can_stay(server.config, listener):
                server = self._make(listener, self._access_log, plan.metrics, self.limiter)
                plan.openings[server] = self._make_opening(listener)
            elif server.config != listener or _names_files(listener):
                plan.renewed[server] = server.runtime.under(listener)
            plan.servers.append(server)
        plan.leaving = [server for server in self.accepting if server not in plan.servers]
        return plan

    def open(
        self,
        plan: Plan,
        inherited: Iterable[GeventSocket] = (),
        at_hand: Mapping[str, Sequence[GeventSocket]] = MappingProxyType({}),
        *,
        patient: bool = False,
    ) -> None:
        """
        Open the addresses that are new; raises ``ProxyError``, and then nothing has changed.

        What is at hand is copied, with the clients that wait in it: the sockets of those who leave, and
        those that were ``inherited``, or are ``at_hand`` by the names of their listeners. Only who is
        ``patient`` gets a server for an address that is not there yet, or who has waited for it until now;
        but one that has several may have the others later.
        """
        within = PATIENCE if patient else None
        wanted = [place for each in plan.openings.values() for place in each.look_up(within)]
        self._inherit(inherited, wanted)
        leaving = [(place_of(each.socket), each) for server in plan.leaving for each in server.acceptors]
        here = {place_of(sock): sock for sock in chain(self._inherited, *at_hand.values())}
        here |= {place: acceptor.given for place, acceptor in leaving}
        awaited = [_place(server.config) for server in plan.leaving if server.missing]
        # As :1080 is in the way of 127.0.0.1:1080, whether we opened it or not.
        in_the_way = [
            acceptor
            for place, acceptor in leaving
            if place not in wanted and any(map(place.overlaps, wanted))
        ]
        try:
            for acceptor in in_the_way:
                acceptor.pause()
            for server, opening in plan.openings.items():
                own = [*at_hand.get(server.config.name, ()), *_of_predecessor(server.config, plan.leaving)]
                plan.sockets[server] = opening.open(here | _with_ports_left_open(own))
                if not (plan.sockets[server] or patient or _place(server.config) in awaited):
                    raise ProxyError(f"cannot listen on {opening.endpoint}: {opening.problem}")
        except BaseException:
            self.close(plan)
            for server in plan.leaving:
                self._resume(server, in_the_way)
            raise

    def _inherit(self, sockets: Iterable[GeventSocket], wanted: Sequence[AnyPlace]) -> None:
        """Keep sockets for good: only with them can an address be had again that a listener gives up."""
        for sock in sockets:
            self._inherited.append(sock)
            if place_of(sock) not in wanted:
                log.warning("no listener has the address of the inherited socket %s", place_of(sock))
                close_to_clients(sock)  # but not a Unix socket, whose clients wait

    def _resume(self, server: ProxyServer, paused: Sequence[Acceptor]) -> None:
        """Have a server accept again where it was paused; where somebody was quicker, it waits for that."""
        for acceptor in [each for each in server.acceptors if each in paused]:
            place = place_of(acceptor.socket)
            try:
                acceptor.resume()
            except OSError as exc:
                log.error("%s does not listen on %s any more: %s", server.config.name, place, reason_of(exc))
                server.acceptors.remove(acceptor)
                if server.opening:
                    server.opening.lose(place, exc)
                    self._expect(server, server.opening)

    def close(self, plan: Plan) -> None:
        """Give up what was opened for a change that does not come."""
        for sockets in plan.sockets.values():
            for sock in sockets:
                sock.close()

    def change(self, plan: Plan) -> None:
        """Serve as was planned, from now on."""
        for server, runtime in plan.renewed.items():
            server.use(runtime)
        for server in plan.leaving:
            server.stop_accepting()
            if server.opening:
                self._latecomers.forget(server.opening)
                server.opening = None
        self._metrics.listeners = plan.metrics.listeners
        self.limit(plan.limits)
        self._leaving = [*(server for server in self._leaving if not server.is_idle), *plan.leaving]
        self.accepting = plan.servers
        for server, opening in plan.openings.items():
            server.opening = opening
            server.accept_on(plan.sockets[server])
            if opening.missing:
                self._expect(server, opening)
        for server in self.accepting:
            for acceptor in server.acceptors:
                acceptor.set_mode(server.config.file_mode)
        self._close_what_nobody_has()

    def limit(self, limits: tuple[LimitConfig, ...]) -> None:
        """Have limits hold for all connections, also for those that live."""
        if limits != self.limiter.limits:
            self.limiter.change(limits)
            for server in self.all:
                for session in server.sessions:
                    session.limit_anew()

    def _expect(self, server: ProxyServer, opening: Opening) -> None:
        self._latecomers.expect(opening, partial(self._arrive, server))

    def _arrive(self, server: ProxyServer, sockets: list[GeventSocket]) -> None:
        server.accept_on(sockets)
        self._arrived(server)

    def _close_what_nobody_has(self) -> None:
        """Have clients refused where we inherited a socket, but have no listener any more."""
        in_use = {place_of(acceptor.socket) for server in self.accepting for acceptor in server.acceptors}
        for sock in self._inherited:
            if place_of(sock) not in in_use:
                close_to_clients(sock)

    def stop(self) -> None:
        """Accept nobody any more, wait for no address, and leave what was inherited as it was."""
        self._latecomers.stop()
        for server in self.all:
            server.stop_accepting()
        for sock in self._inherited:
            with suppress(OSError):
                sock.listen(BACKLOG)
            sock.close()
        self._inherited.clear()


def _place(config: ServerConfig) -> object:
    return config.endpoint.place or (config.endpoint.host, config.endpoint.port)


def _of_predecessor(config: ServerConfig, leaving: Iterable[ProxyServer]) -> list[GeventSocket]:
    """Give the sockets of the server of the same name and address that leaves."""
    wanted = config.name, _place(config)
    before = [each for each in leaving if (each.config.name, _place(each.config)) == wanted]
    return [acceptor.given for each in before for acceptor in each.acceptors]


def _with_ports_left_open(sockets: Iterable[GeventSocket]) -> dict[AnyPlace, GeventSocket]:
    """Give a listener's sockets as those of port 0, which leaves it to the kernel: it has chosen by now."""
    places = ((place_of(sock), sock) for sock in sockets)
    return {replace(place, port=0): sock for place, sock in places if isinstance(place, Place)}


def _can_stay(old: ServerConfig, new: ServerConfig) -> bool:
    return _place(old) == _place(new) and old.protocol is new.protocol


def _names_files(config: ServerConfig) -> bool:
    return bool(config.tls_cert or any(hop.files for each in config.all_upstreams for hop in each.hops))
