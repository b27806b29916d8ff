"""
The running program: its listeners, logs, signals and orderly stop.
"""

import gc
import logging
import marshal
import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from resource import RLIM_INFINITY, RLIMIT_STACK
from time import monotonic
from types import TracebackType
from typing import Any

import gevent
from gevent.event import Event

from proxy import signals
from proxy.config import ProxyConfig
from proxy.errors import ProxyError
from proxy.limiter import Limiter
from proxy.listeners import Listeners, MakeOpening, MakeServer, Plan, make_opening, make_server
from proxy.logs import Logs
from proxy.metrics import Metrics
from proxy.net import lookup
from proxy.net.limits import BALLAST, limit_of, make_room
from proxy.net.sock import GeventSocket
from proxy.net.threads import NativeThreads
from proxy.server import ProxyServer, pool_size
from proxy.sharing.pipes import AVAILABLE, MOST_PIPES

log = logging.getLogger(__name__)

_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 1 << 20  # mallopt(3); bytes
_DEEP = 1500  # tuples: some 450 KiB of stack, where 130 are there at first; Python reads no more than 2000
_ORDINARY_STACK = 1 << 20  # bytes: hardly any system has less
_MOST_ROOM = 8192  # 20 bytes for each, 16 for its timer, and as many for its event
_NEW_OBJECTS = 10_000  # before the collector looks at them; some are always new when many clients come
_WITHOUT_SUPERVISOR = (
    "proxy.workers takes effect at the next start: several need a supervisor, which begins then"
)


class Companion:
    """What goes on beside a program: it is called at the turning points of its life, and may do something."""

    def opened(self) -> None:
        """Clients can connect; a ``ProxyError`` ends it all."""

    def ready(self) -> None:
        """The program serves."""

    def reloading(self) -> None:
        """SIGHUP came."""

    def replaced(self) -> Mapping[str, str]:
        """Another program is about to take this one's place; returns what it needs in its environment."""
        return {}

    def undo(self, why: str) -> None:
        """Go back to the configuration before, as this one does not work."""

    def reload(self) -> None:
        """Do what SIGHUP asks for."""
        log.warning("SIGHUP: there is no configuration file to read again")

    def reloaded(self) -> None:
        """It is done, whatever came of it."""

    def applied(self) -> None:
        """Another configuration is in effect."""

    def arrived(self) -> None:
        """A listener has an address that it waited for."""

    def stopping(self) -> None:
        """No more clients are accepted."""

    def stopped(self) -> None:
        """All connections have ended, and the program is about to."""


class App:
    """All listeners of a configuration, and then of others."""

    def __init__(
        self,
        config: ProxyConfig,
        make: MakeServer = make_server,
        *,
        patient: bool = False,
        make_opening: MakeOpening = make_opening,
        limiter: Limiter | None = None,
    ) -> None:
        """
        Build everything, but open nothing; raises ``ConfigError``.

        One that is ``patient`` starts without an address that is not there yet, and waits for it.
        """
        self.config = config
        self.metrics = Metrics()
        self.companion = Companion()
        self.inherited: list[GeventSocket] = []  # sockets that listen already, to be used instead of new ones
        self.at_hand: dict[
            str, list[GeventSocket]
        ] = {}  # by listener: the same, of a program before this one
        self._patient = patient
        self._said_of_room = ""
        self._logs = Logs()
        self._threads = NativeThreads(1)
        self._listeners = Listeners(
            make, self._logs.access, self.metrics, self._arrived, make_opening, limiter
        )
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
    def limiter(self) -> Limiter:
        """What is kept of the limits of the configuration."""
        return self._listeners.limiter

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
            _grow_the_stack()
            self._watch_signals()
            self._open()
            _spare_the_collector()
            self.companion.ready()
            self._stopping.wait()
            self.companion.stopping()
            self._wait_for_others()
            self._drain()
        finally:
            self._listeners.stop()
            self.companion.stopped()
            self._logs.finish()

    def _open(self) -> None:
        for note in (*self.reopen_logs(), *self._make_room()):
            log.warning("%s", note)
        self._make_room_in_the_loop()
        self._listeners.open(self._plan, self.inherited, self.at_hand, patient=self._patient)
        for sock in chain(*self.at_hand.values()):  # of which there are copies, as far as they are needed
            sock.close()
        self._listeners.change(self._plan)
        for server in self.servers:
            self._announce(server)
        for note in self._waits(self.servers):
            log.warning("%s", note)
        self._begin()
        self.companion.opened()
        self._opened.set()

    def _begin(self) -> None:
        """Do what else is to be done before clients are served."""

    def apply(self, config: ProxyConfig) -> tuple[str, ...]:
        """
        Serve new connections under another configuration; live ones keep theirs.

        The files that it names are read again. Returns what there is to say of it; raises
        ``ProxyError``, and then nothing has changed.
        """
        plan = self.plan(config)
        self.open(plan)
        try:
            self._check_not_stopping()
        except ProxyError:
            self._listeners.close(plan)
            raise
        is_later = config.workers > 1 and config.workers != self.config.workers
        notes = self.change(config, plan)
        return (*notes, _WITHOUT_SUPERVISOR) if is_later else notes

    def plan(self, config: ProxyConfig) -> Plan:
        """Build what a configuration needs, in a thread; raises ``ProxyError``."""
        self._check_not_stopping()
        plan = self._threads.run(partial(self._listeners.plan, config))
        self._check_not_stopping()
        return plan

    def open(self, plan: Plan) -> None:
        """Open what is new; raises ``ProxyError``, and then nothing has changed."""
        self._listeners.open(plan)

    def change(self, config: ProxyConfig, plan: Plan) -> tuple[str, ...]:
        """Serve as was planned, when all addresses are open; returns what there is to say of it."""
        # Nothing waits here, so no connection sees half of it.
        self._listeners.change(plan)
        self.config = config
        return self._settle(plan)

    def _check_not_stopping(self) -> None:
        if self.draining:
            raise ProxyError("the server is stopping, so its configuration stays as it is")

    def _settle(self, plan: Plan) -> tuple[str, ...]:
        """Do what a change of the listeners entails."""
        notes = (*self.reopen_logs(), *self._waits(plan.sockets), *self._make_room())
        for server in plan.leaving:
            log.info("%s does not listen on %s any more", server.config.name, server.config.endpoint)
        for server in plan.sockets:
            self._announce(server)
        if self.config.on_user_change == "close":
            for server in self.servers:
                server.end_sessions_of_changed(self.config.auth_users)
        self.companion.applied()
        return notes

    def reopen_logs(self) -> tuple[str, ...]:
        """Open the log files anew, as they may have been moved; returns what there is to say of it."""
        return self._logs.change(self.config)

    def _arrived(self, server: ProxyServer) -> None:
        self._announce(server)
        self.companion.arrived()

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
        log.info("%s listens on %s (%s), upstream: %s", config.name, where, server.offers, ways or "direct")
        # Whom a Unix socket is open to, its mode says.
        exposed = [one for one in server.addresses if one.ip and not one.ip.is_loopback]
        if exposed and (warning := server.exposure(exposed[0])):
            log.warning("%s %s", config.name, warning)

    # -- the process

    def _make_room(self) -> tuple[str, ...]:
        """Have enough descriptors for the configuration; returns what there is to say of it that is new."""
        listeners = self._share.listeners
        note = make_room(
            connections=sum(pool_size(each) for each in listeners),
            listeners=len(listeners),
            pipes=MOST_PIPES if AVAILABLE and self.config.splice == "auto" else 0,
            lookups=lookup.THREADS,
            raced=sum(pool_size(each) * max(len(each.all_upstreams) - 1, 0) for each in listeners),
            spares=sum(way.most_spares for each in listeners for way in each.all_upstreams),
        )
        news = () if note in ("", self._said_of_room) else (note,)
        self._said_of_room = note
        return news

    @property
    def _share(self) -> ProxyConfig:
        """The part of the configuration that one process serves."""
        return self.config

    def _make_room_in_the_loop(self) -> None:
        _make_room_in_the_loop(2 * sum(pool_size(each) for each in self.config.listeners))

    def _watch_signals(self) -> None:
        handlers: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGUSR1: self._report,
            signal.SIGUSR2: _say_what_does_it,
            signal.SIGHUP: self._hang_up,
        }
        self._watchers = [gevent.signal_handler(number, handler) for number, handler in handlers.items()]
        signals.unblock()

    def stop(self) -> None:
        """Stop in good order, or at once if that was said before."""
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
        else:
            try:
                self.companion.reloading()
                self.companion.reload()
            finally:
                self.companion.reloaded()  # else the service manager would wait for it

    def _wait_for_others(self) -> None:
        """Let those send their clients elsewhere who see that this one stops, before any is refused."""
        if self.config.drain_delay:
            log.info("stopping in %g s: until then clients are accepted", self.config.drain_delay)
            self._at_once.wait(self.config.drain_delay)

    def _drain(self) -> None:
        servers = self.servers
        live = sum(len(server.sessions) for server in servers)
        log.info("stopping: live connections (%d) have %g s to finish", live, self.config.drain_timeout)
        self._listeners.stop()
        drained = [gevent.spawn(one.shutdown, self.config.drain_timeout) for one in servers]
        done: list[Any] = [gevent.spawn(gevent.joinall, drained), self._at_once]
        gevent.wait(done, count=1)
        log.info("stopped")

    def _report(self) -> None:
        self._opened.wait()
        for server in self.servers:
            log.info(
                "%s: connections: %d live, %d in all", server.config.name, len(server.sessions), server.total
            )


def _say_what_does_it() -> None:
    # The default action would end the program of an operator who is used to nginx, where it is an upgrade.
    # No other signal is sent by habit: whoever sends SIGQUIT, or set an alarm before us, wants an end.
    log.warning("SIGUSR2: it does nothing here; an upgrade is begun by proxy-server ctl upgrade")


def _give_memory_back() -> None:
    """
    Have the C library give large blocks back as soon as they are freed.

    glibc keeps one heap for each of some threads, and what is freed there stays: threads that come and
    go left 16 MiB, a password hash's, in one after the other. Other C libraries have no such setting.
    """
    with suppress(ImportError, OSError, AttributeError):
        from ctypes import CDLL  # which a small build of Python may lack

        CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def _grow_the_stack() -> None:
    """
    Have the kernel make the stack as large now as it will ever be wanted.

    Where there is no memory to grow it by, the program is killed, wherever it is at that moment.
    """
    most, _ = limit_of(RLIMIT_STACK)
    if most != RLIM_INFINITY and most < _ORDINARY_STACK:
        return  # there may be no room for that
    marshal.loads(b")\x01" * _DEEP + b"N")  # one in another: reading them goes as deep


def _make_room_in_the_loop(sockets: int) -> None:
    """
    Have libev allocate now what it will need for so many sockets, but for 8192 at most.

    It has arrays by descriptor, of those to tell the kernel about, of timers and of what has happened, and
    ends the program where it cannot have a larger one. All else that finds no memory is a client that is
    not served.
    """
    loop, count = gevent.get_hub().loop, min(sockets, _MOST_ROOM)
    timers: list[Any] = [loop.timer(60) for _ in range(count)]
    for timer in timers:
        timer.start(_nothing)
        timer.feed(0, _nothing)
    for timer in timers:
        timer.stop()
        timer.close()
    # None of these need be open: libev asks the kernel only in its next turn, and then nobody waits for them.
    watcher: Any = loop.io(0, 1)
    for watcher.fd in range(count):
        watcher.start(_nothing)
        watcher.stop()
    watcher.close()


def _nothing() -> None:
    pass


def _spare_the_collector() -> None:
    """Have garbage looked for less often: a connection leaves none, as nothing of it refers to itself."""
    gc.freeze()  # what is there by now stays
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


def _log_error(
    context: object, kind: type[BaseException], value: BaseException, traceback: TracebackType | None
) -> None:
    """Take what leaves a greenlet uncaught: one line, where gevent would print a traceback."""
    if issubclass(kind, gevent.GreenletExit):
        return
    if issubclass(kind, MemoryError):
        BALLAST.give_up()
        return
    about = {"collapse": ("internal error", f"{kind.__name__}: {value}")}
    log.error("internal error: %s: %s", kind.__name__, value, extra=about)
    log.debug("internal error in %s", context, exc_info=(kind, value, traceback))
