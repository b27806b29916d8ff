"""
The servers of a configuration, and how they become those of another one.

A change has three steps. ``plan`` builds all that is new, and may take its time. ``open`` opens the
addresses that are new. Both may fail, and then nothing has happened. ``change`` then only moves
references: it cannot fail, and no connection comes in between.

A listener that keeps its name and its address keeps its server and its sockets. Where only the address
is the same, the sockets go over to the new server, with the clients that wait in them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from proxy.accesslog import NO_LOG, AccessLog
from proxy.config import Protocol, ProxyConfig, ServerConfig
from proxy.metrics import Metrics
from proxy.net.listen import bind
from proxy.net.stream import Socket
from proxy.server import ProxyServer, build_runtime
from proxy.session import Runtime

MakeServer = Callable[[ServerConfig, AccessLog, Metrics], ProxyServer]


def make_server(
    config: ServerConfig, access_log: AccessLog = NO_LOG, metrics: Metrics | None = None
) -> ProxyServer:
    """Make the server of a listener; raises ``ConfigError``."""
    # Imported only where one is configured: the HTTP libraries take 10 MB.
    if config.protocol is Protocol.WEBSOCKET:
        from proxy.websocket.server import WebSocketServer

        return WebSocketServer(config, access_log, metrics)
    from proxy.socks5.server import Socks5Server

    return Socks5Server(config, access_log, metrics)


@dataclass
class Plan:
    """What a change is going to do."""

    metrics: Metrics  # those of before, and of the listeners that are new
    servers: list[ProxyServer] = field(default_factory=list)  # all of them afterwards
    renewed: dict[ProxyServer, Runtime] = field(default_factory=dict)  # those that serve on otherwise
    leaving: list[ProxyServer] = field(default_factory=list)
    sockets: dict[ProxyServer, Sequence[Socket]] = field(default_factory=dict)  # of those that are new


class Listeners:
    """The servers that accept clients, and those that still have some."""

    def __init__(self, make: MakeServer, access_log: AccessLog, metrics: Metrics) -> None:
        self._make = make
        self._access_log = access_log
        self._metrics = metrics
        self.accepting: list[ProxyServer] = []
        self._leaving: list[ProxyServer] = []

    @property
    def all(self) -> list[ProxyServer]:
        """Those that accept, and then those that have left and still have connections."""
        self._leaving = [server for server in self._leaving if server.sessions]
        return [*self.accepting, *self._leaving]

    def plan(self, config: ProxyConfig) -> Plan:
        """Build what another configuration needs, in any thread; raises ``ConfigError``."""
        present = {server.config.name: server for server in self.accepting}
        # This may be another thread, and may come to nothing: the metrics in use are not to change here.
        plan = Plan(self._metrics.copy())
        for listener in config.listeners:
            server = present.get(listener.name)
            if not server or not _can_stay(server.config, listener):
                plan.servers.append(self._make(listener, self._access_log, plan.metrics))
                continue
            plan.servers.append(server)
            if server.config != listener or _names_files(listener):
                plan.renewed[server] = build_runtime(
                    listener, self._access_log, server.metrics, server.memory
                )
        plan.leaving = [server for server in self.accepting if server not in plan.servers]
        return plan

    def open(self, plan: Plan, inherited: Iterable[Socket] = ()) -> None:
        """Open the addresses that are new; raises ``ProxyError``."""
        new = [server for server in plan.servers if server not in self.accepting]
        # Some are in the way of others, as 127.0.0.1:1080 is of :1080: these have to leave before.
        later = {server: _in_the_way(server, plan.leaving) for server in new}
        closed: list[ProxyServer] = []
        try:
            for server in new:
                if not later[server]:
                    plan.sockets[server] = self._open(server, plan.leaving, inherited)
            for server in filter(later.get, new):
                closed += [old for old in later[server] if old not in closed]
                for old in later[server]:
                    old.stop_accepting()
                plan.sockets[server] = bind(server.config.endpoint)
        except BaseException:
            self.close(plan)
            for old in closed:
                old.listen()
            raise

    def _open(
        self, server: ProxyServer, leaving: Iterable[ProxyServer], inherited: Iterable[Socket]
    ) -> Sequence[Socket]:
        for old in leaving:
            if _place(old.config) == _place(server.config):
                return old.copy_sockets()
        return bind(server.config.endpoint, inherited)

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
        for server, sockets in plan.sockets.items():
            server.accept_on(sockets)
        self._metrics.listeners = plan.metrics.listeners
        self._leaving += plan.leaving
        self.accepting = plan.servers


def _place(config: ServerConfig) -> tuple[str, int]:
    return config.endpoint.host, config.endpoint.port


def _can_stay(old: ServerConfig, new: ServerConfig) -> bool:
    return _place(old) == _place(new) and old.protocol is new.protocol


def _names_files(config: ServerConfig) -> bool:
    return bool(config.tls_cert or any(each.tls_ca for each in config.upstream_config))


def _in_the_way(server: ProxyServer, leaving: Iterable[ProxyServer]) -> list[ProxyServer]:
    """Find those whose address is another one, but which cannot be open at the same time."""
    here = server.config.endpoint
    return [
        old
        for old in leaving
        if _place(old.config) != _place(server.config) and old.config.endpoint.overlaps(here)
    ]
