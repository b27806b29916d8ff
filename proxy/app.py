"""
The running program: its listeners, its logs, signals, and an end in good order.
"""

import gc
import logging
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from proxy import signals
from proxy.accesslog import AccessLog, nowhere
from proxy.config import ProxyConfig
from proxy.errors import ProxyError, reason_of
from proxy.listeners import Listeners, MakeServer, Plan, make_server
from proxy.logs import LineWriter, finish, set_up
from proxy.metrics import Metrics
from proxy.net import lookup
from proxy.net.limits import RESERVE, RESERVED, raise_limit
from proxy.net.splice import AVAILABLE, MOST_PIPES
from proxy.net.stream import Socket
from proxy.net.threads import Workers
from proxy.server import ProxyServer, places

log = logging.getLogger(__name__)

_OPEN_AGAIN = 1.0  # seconds between two attempts to open an access log
_OWN_DESCRIPTORS = 64  # logs, the control interface and its clients, the file and its versions
_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 1 << 20  # mallopt(3); bytes
_NEW_OBJECTS = 10_000  # before the collector looks at them; some are always new when many clients come

Act = Callable[[], object]


@dataclass
class Hooks:
    """What others do at the turning points of a program's life, in the order in which they came."""

    opened: list[Act] = field(default_factory=list)  # clients can connect; ``ProxyError`` ends it all
    ready: list[Act] = field(default_factory=list)
    reloading: list[Act] = field(default_factory=list)  # SIGHUP came:
    reload: list[Act] = field(default_factory=list)  # this is what it does,
    reloaded: list[Act] = field(default_factory=list)  # and it is done, whatever came of it
    applied: list[Act] = field(default_factory=list)  # another configuration is in effect
    arrived: list[Act] = field(default_factory=list)  # a listener has an address that it waited for
    stopping: list[Act] = field(default_factory=list)  # no more clients are accepted
    stopped: list[Act] = field(default_factory=list)


class App:
    """All listeners of a configuration, and then of others."""

    def __init__(
        self,
        config: ProxyConfig,
        make: MakeServer = make_server,
        hooks: Hooks | None = None,
        *,
        patient: bool = False,
    ) -> None:
        """
        Build everything, but open nothing; raises ``ConfigError``.

        One that is ``patient`` starts without an address that is not there yet, and waits for it.
        """
        self.config = config
        self.metrics = Metrics()
        self.inherited: list[Socket] = []  # sockets that listen already, to be used instead of new ones
        self._hooks = hooks or Hooks()
        self._patient = patient
        self._stderr = LineWriter()
        self._file: LineWriter | None = None  # of the access log, if it has one
        self._opens_log = False  # because it could not be opened until now
        self._access_log = AccessLog(nowhere)
        self._workers = Workers(1)
        self._listeners = Listeners(make, self._access_log, self.metrics, self._arrived)
        self._plan = self._listeners.plan(config)
        self._opened = Event()
        self._stopping = Event()
        self._told_to_stop = 0.0
        self._at_once = Event()

    @property
    def servers(self) -> list[ProxyServer]:
        """Those that accept clients, and then those that only have some left."""
        return self._listeners.all

    @property
    def draining(self) -> bool:
        """True once it was told to stop."""
        return self._stopping.is_set()

    @property
    def draining_for(self) -> float:
        """How many seconds ago it was told so."""
        return monotonic() - self._told_to_stop if self.draining else 0.0

    def run(self) -> None:
        """Serve until a signal says to stop; raises ``ProxyError`` when an address cannot be had."""
        gevent.get_hub().handle_error = _log_error  # type: ignore[method-assign,assignment]
        try:
            # SIGTERM or SIGINT before this ends the program in the ordinary way; the others have waited.
            _give_memory_back()
            self._watch_signals()
            self._open()
            _spare_the_collector()
            _act(self._hooks.ready)
            self._stopping.wait()
            _act(self._hooks.stopping)
            self._drain()
        finally:
            self._listeners.stop()
            _act(self._hooks.stopped)
            finish()
            if self._file:
                self._file.flush()

    def _open(self) -> None:
        for note in self.reopen_logs():
            log.warning("%s", note)
        self._make_room()
        self._listeners.open(self._plan, self.inherited, patient=self._patient)
        self._listeners.change(self._plan)
        for server in self.servers:
            self._announce(server)
        for note in self._waits(self.servers):
            log.warning("%s", note)
        _act(self._hooks.opened)
        self._opened.set()

    def apply(self, config: ProxyConfig) -> tuple[str, ...]:
        """
        Serve new connections under another configuration; live ones keep theirs.

        The files that it names are read again. Returns what there is to say of it; raises
        ``ProxyError``, and then nothing has changed.
        """
        self._check_not_stopping()
        plan = self._workers.run(partial(self._listeners.plan, config))
        self._check_not_stopping()
        self._listeners.open(plan)
        try:
            self._check_not_stopping()
        except ProxyError:
            self._listeners.close(plan)
            raise
        # From here on nothing waits, so no connection sees half of it.
        self._listeners.change(plan)
        self.config = config
        return self._settle(plan)

    def _check_not_stopping(self) -> None:
        if self.draining:
            raise ProxyError("the server is stopping, so its configuration stays as it is")

    def _settle(self, plan: Plan) -> tuple[str, ...]:
        """Do what a change of the listeners entails."""
        notes = (*self.reopen_logs(), *self._waits(plan.sockets))
        self._make_room()
        for server in plan.leaving:
            log.info("%s does not listen on %s any more", server.config.name, server.config.endpoint)
        for server in plan.sockets:
            self._announce(server)
        if self.config.on_user_change == "close":
            for server in self.servers:
                server.end_sessions_of_changed(self.config.listeners[0].auth_users)
        _act(self._hooks.applied)
        return notes

    # -- logs

    def reopen_logs(self) -> tuple[str, ...]:
        """Write the logs where, and as, the configuration says; returns what there is to say of it."""
        as_json, path = self.config.log_format == "json", self.config.access_log
        set_up(self._stderr, self.config.log_level, as_json=as_json)
        old, notes = self._file, tuple[str, ...]()
        try:
            self._file = self._open_file(path)
        except OSError as exc:
            where = self._file.path if self._file else "stderr"
            notes = (f"access_log {path}: {reason_of(exc)}; it is written to {where} until it can be opened",)
            if not self._opens_log:
                self._opens_log = True
                gevent.spawn(self._open_log_later)
        writer = self._file or self._stderr
        writer.formatter = self._stderr.formatter
        self._access_log.change(nowhere if path == "off" else writer.write, as_json=as_json)
        if old and old is not self._file:
            old.close()
        return notes

    def _open_log_later(self) -> None:
        # Its folder may be mounted later, its disk be full, its reader be about to start.
        while self._opens_log and not self.draining:
            gevent.sleep(_OPEN_AGAIN)
            if not self.reopen_logs():
                self._opens_log = False
                if self._file:
                    log.info("access_log %s is open", self._file.path)

    def _open_file(self, path: str) -> LineWriter | None:
        if path in ("-", "off"):
            return None
        if self._file and self._file.path == path:
            self._file.reopen()
            return self._file
        return LineWriter(path, partial(self._tell_of_access_log, path))

    def _tell_of_access_log(self, path: str, trouble: str) -> None:
        about = {"collapse": (path, trouble)}
        if trouble:
            log.error("access_log %s: %s; its lines wait until it can be written", path, trouble, extra=about)
        else:
            log.info("access_log %s is written again", path, extra=about)

    def _arrived(self, server: ProxyServer) -> None:
        self._announce(server)
        _act(self._hooks.arrived)

    def _waits(self, servers: Iterable[ProxyServer]) -> tuple[str, ...]:
        """Say which listeners wait for an address, and why."""
        return tuple(
            f"{server.config.name} waits for {', '.join(server.missing)}: {server.opening.problem}"
            for server in servers
            if server.opening and server.missing
        )

    def _announce(self, server: ProxyServer) -> None:
        if not server.addresses:
            return
        config = server.config
        ways = ", ".join(one.name for one in config.upstream_config) if config.enable_upstream else ""
        where = ", ".join(map(str, server.addresses))
        log.info(
            "%s listens on %s (%s), going out by %s", config.name, where, server.offers, ways or "direct"
        )
        exposed = [one for one in server.addresses if not ip_address(one.host).is_loopback]
        if exposed and (warning := server.exposure(exposed[0])):
            log.warning("%s %s", config.name, warning)

    # -- the process

    def _make_room(self) -> None:
        """Allow as many descriptors as the system lets us have, and tell if that may not be enough."""
        RESERVE.keep(RESERVED)
        needed = _descriptors_needed(self.config)
        limit = raise_limit(needed)
        if limit < needed:
            log.warning(
                "max_connections may need %d file descriptors, but the limit is %d: raise it (ulimit -Hn, "
                "LimitNOFILE), or lower max_connections",
                needed,
                limit,
            )

    def _watch_signals(self) -> None:
        handlers: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGUSR1: self._report,
            signal.SIGHUP: self._hang_up,
        }
        self._watchers = [gevent.signal_handler(number, handler) for number, handler in handlers.items()]
        signals.heed()

    def _stop(self) -> None:
        if self._stopping.is_set():
            log.info("stopping at once")
            self._at_once.set()
        else:
            self._told_to_stop = monotonic()
        self._stopping.set()

    def _hang_up(self) -> None:
        # Its two duties are independent: a file that is refused does not keep logrotate waiting.
        self._opened.wait()
        for note in self.reopen_logs():
            log.warning("%s", note)
        if self.draining:
            log.info("SIGHUP: no reload, because the server is stopping")
        elif not self._hooks.reload:
            log.warning("SIGHUP: there is no configuration file to read again")
        else:
            try:
                _act(self._hooks.reloading)
                _act(self._hooks.reload)
            finally:
                _act(self._hooks.reloaded)  # else the service manager would wait for it

    def _drain(self) -> None:
        servers = self.servers
        live = sum(len(server.sessions) for server in servers)
        log.info("stopping: %d connections have %g s to finish", live, self.config.drain_timeout)
        self._listeners.stop()
        drained = [gevent.spawn(one.shutdown, self.config.drain_timeout) for one in servers]
        done: list[Any] = [gevent.spawn(gevent.joinall, drained), self._at_once]
        gevent.wait(done, count=1)
        log.info("stopped")

    def _report(self) -> None:
        self._opened.wait()
        for server in self.servers:
            log.info(
                "%s: %d connections live, %d in all", server.config.name, len(server.sessions), server.total
            )


def _descriptors_needed(config: ProxyConfig) -> int:
    """Count what all connections may need at their peak, with what is needed beside them."""
    connections = sum(places(each) for each in config.listeners)
    # A client's socket, and two for its target: while it is dialled, two addresses of it are raced.
    needed = 3 * connections
    needed += 2 * min(2 * connections, MOST_PIPES) if AVAILABLE and config.splice == "auto" else 0
    needed += 2 * min(2 * connections, lookup.THREADS)  # a name server, and the file that says where it is
    needed += 2 * 2 * len(config.listeners)  # two families, and their copies while they change hands
    return needed + RESERVED + _OWN_DESCRIPTORS


def _give_memory_back() -> None:
    """
    Have the C library give large blocks back as soon as they are freed.

    glibc keeps one heap for each of some threads, and what is freed there stays: threads that come and
    go left 16 MiB, a password hash's, in one after the other. Other C libraries have no such setting.
    """
    with suppress(ImportError, OSError, AttributeError):
        from ctypes import CDLL  # which a small build of Python may lack

        CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def _spare_the_collector() -> None:
    """Have garbage looked for less often: a connection leaves none, as nothing of it refers to itself."""
    gc.freeze()  # what is there by now stays
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


def _act(hooks: list[Act]) -> None:
    for act in hooks:
        act()


def _log_error(context: object, kind: type[BaseException], value: BaseException, traceback: object) -> None:
    """Take what leaves a greenlet uncaught: one line, where gevent would print a traceback."""
    if issubclass(kind, gevent.GreenletExit):
        return
    about = {"collapse": ("internal error", f"{kind.__name__}: {value}")}
    log.error("internal error: %s: %s", kind.__name__, value, extra=about)
    log.debug("internal error in %s", context, exc_info=(kind, value, None))
