"""
The running program: servers made from a configuration, signals, and an end in good order.
"""

import logging
import resource
import signal
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import gevent
from gevent.event import Event

from proxy.accesslog import NO_LOG, AccessLog
from proxy.config import Protocol, ProxyConfig, ServerConfig
from proxy.logs import LineWriter, set_up
from proxy.server import ProxyServer

log = logging.getLogger(__name__)

_OWN_DESCRIPTORS = 64

MakeServer = Callable[[ServerConfig, AccessLog], ProxyServer]


def make_server(config: ServerConfig, access_log: AccessLog = NO_LOG) -> ProxyServer:
    """Make the server of a listener; raises ``ConfigError``."""
    # Imported only where one is configured: the HTTP libraries take 10 MB.
    if config.protocol is Protocol.WEBSOCKET:
        from proxy.websocket.server import WebSocketServer

        return WebSocketServer(config, access_log)
    from proxy.socks5.server import Socks5Server

    return Socks5Server(config, access_log)


class App:
    """All listeners of a configuration."""

    def __init__(self, config: ProxyConfig, make: MakeServer = make_server) -> None:
        """Build everything, but open nothing; raises ``ConfigError``."""
        self._config = config
        self._stderr = LineWriter()
        set_up(self._stderr, config.log_level, as_json=config.log_format == "json")
        access_log = self._open_access_log()
        self._servers = [make(listener, access_log) for listener in config.listeners]
        self._stopping = Event()
        self._at_once = Event()

    def _open_access_log(self) -> AccessLog:
        path = self._config.access_log
        if path == "off":
            return NO_LOG
        writer = self._stderr
        if path != "-":
            try:
                writer = LineWriter(path)
            except OSError as exc:
                log.warning("access_log %s: %s; writing it to stderr", path, exc.strerror)
        return AccessLog(writer.write, as_json=self._config.log_format == "json")

    def run(self) -> None:
        """Serve until a signal says to stop; raises ``ProxyError`` when an address cannot be had."""
        gevent.get_hub().handle_error = _log_error  # type: ignore[method-assign,assignment]
        try:
            self._make_room()
            for server in self._servers:
                server.listen()
                self._announce(server)
            # Only now: a signal that comes before this ends the program in the ordinary way.
            self._watch_signals()
            self._stopping.wait()
            self._drain()
        finally:
            for server in self._servers:
                server.stop_accepting()
            self._stderr.flush()

    def _announce(self, server: ProxyServer) -> None:
        config = server.config
        ways = ", ".join(one.name for one in config.upstream_config) if config.enable_upstream else ""
        where = ", ".join(map(str, server.addresses))
        scheme = "wss" if config.tls_cert else config.protocol.value
        log.info("%s listens on %s (%s), going out by %s", config.name, where, scheme, ways or "direct")
        exposed = [one for one in server.addresses if not ip_address(one.host).is_loopback]
        if exposed and not config.needs_auth:
            log.warning(
                "%s is an open proxy: anyone who reaches %s can use it; set users in [auth_users] or "
                "with -username, or listen on 127.0.0.1",
                config.name,
                exposed[0],
            )

    def _make_room(self) -> None:
        """Allow as many descriptors as the connections may need, if the system lets us."""
        needed = _OWN_DESCRIPTORS + sum(2 * server.config.max_connections for server in self._servers)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < needed:
            soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            log.warning(
                "max_connections needs %d file descriptors, but the limit is %d: raise it (ulimit -Hn), "
                "or lower max_connections",
                needed,
                soft,
            )

    def _watch_signals(self) -> None:
        handlers: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGUSR1: self._report,
            signal.SIGHUP: lambda: log.warning("SIGHUP: this version cannot reload: restart it"),
        }
        self._watchers = [gevent.signal_handler(number, handler) for number, handler in handlers.items()]

    def _stop(self) -> None:
        if self._stopping.is_set():
            log.info("stopping at once")
            self._at_once.set()
        self._stopping.set()

    def _drain(self) -> None:
        live = sum(len(server.sessions) for server in self._servers)
        log.info("stopping: %d connections have %g s to finish", live, self._config.drain_timeout)
        drained = [gevent.spawn(one.shutdown, self._config.drain_timeout) for one in self._servers]
        done: list[Any] = [gevent.spawn(gevent.joinall, drained), self._at_once]
        gevent.wait(done, count=1)
        log.info("stopped")

    def _report(self) -> None:
        for server in self._servers:
            log.info(
                "%s: %d connections live, %d in all", server.config.name, len(server.sessions), server.total
            )


def _log_error(context: object, kind: type[BaseException], value: BaseException, traceback: object) -> None:
    """Take what leaves a greenlet uncaught: one line, where gevent would print a traceback."""
    if issubclass(kind, gevent.GreenletExit):
        return
    log.error("internal error: %s: %s", kind.__name__, value, extra={"collapse": kind.__name__})
    log.debug("internal error in %s", context, exc_info=(kind, value, None))
