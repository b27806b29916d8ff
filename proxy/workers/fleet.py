"""
A program that serves by workers: it has the listeners, and serves no client itself.

Its servers are complete, but accept nobody (``HeldAcceptor``): with them the addresses are opened, waited for
and given up as in any program. Workers get copies of the sockets.

What may never be violated:

- A change is planned by all and then made by all, or by none. It is made where nobody else is started or
  told of sockets (``_changing``), so each worker has every socket once.
- To make a planned change does not fail. A worker that does not do so is killed, and comes back with the
  configuration that is in effect by then.
- What was counted stays counted: of a worker that is gone, what it said last (``past``).
- A worker that ends unasked is replaced after a pause, which doubles as long as they do not live.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from secrets import token_bytes
from time import monotonic
from typing import Any, TypeVar

import gevent
from gevent import socket
from gevent.lock import RLock

from proxy import __version__, signals
from proxy.accesslog import AccessLog
from proxy.address import Address
from proxy.app import App
from proxy.config import ProxyConfig
from proxy.control.snapshot import Snapshot
from proxy.errors import ProxyError, reason_of
from proxy.limiter import Limiter
from proxy.listeners import make_server
from proxy.listening import ours
from proxy.listening.fullness import Fullness, describe
from proxy.listening.listen import Acceptor
from proxy.listening.opening import close_to_clients, listen_on, place_of
from proxy.metrics import Metrics
from proxy.server import ProxyServer
from proxy.settings.listener import ServerConfig
from proxy.workers.handle import Handle, begin_worker
from proxy.workers.handover import Handover, OldWorker, adopt, take_place, try_out
from proxy.workers.limits import Ledger, share_out
from proxy.workers.link import GoneError
from proxy.workers.table import Table
from proxy.workers.worker import Orders, share_of

log = logging.getLogger(__name__)

T = TypeVar("T")

START = 30.0  # seconds for a worker to serve
ANSWER = 10.0  # seconds after which one that does not answer is killed
_LOOK, _SOON = 1.0, 0.25  # seconds between two looks at all; while they share a bandwidth
_LATE = 2.0  # seconds by which a look comes too late to judge anybody
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds until a worker is replaced
AFTER_CHANGE = 10.0  # seconds in which deaths speak against a change
DEATHS = 3
_BREATH = 0.2  # seconds for an answer to reach who asked for an upgrade
_SECRET_BYTES = 32
_PARTING = 3.0  # seconds for workers to end, beyond the drain


class HeldAcceptor(Acceptor):
    """Has a listening socket on which only workers accept."""

    def __init__(self, fleet: "Fleet", *given: Any) -> None:
        super().__init__(*given)
        self._fleet = fleet
        self.is_handed_out = False

    def start_accepting(self) -> None:
        """Leave that to workers."""

    def take_waiting(self) -> None:
        """Leave that to workers."""

    def pause(self) -> None:
        """Have the kernel refuse clients until ``resume``."""
        self._fleet.tell_all("pause", place_of(self.socket))
        close_to_clients(self.socket)

    def resume(self) -> None:
        """Have clients accepted again; raises ``OSError``, and then it is closed."""
        place = place_of(self.socket)
        try:
            listen_on(self.socket)
        except OSError:
            self.close()
            raise
        self._fleet.tell_all("resume", place)


class Fleet(App):
    """A program whose clients are served by workers."""

    def __init__(
        self, config: ProxyConfig, handover: Handover | None = None, *, patient: bool = False
    ) -> None:
        """Build everything, but open nothing; raises ``ConfigError``."""
        super().__init__(config, self._make, patient=patient)
        self._before = handover or Handover()
        self.upgraded: dict[str, Any] | None = None
        self.past = self._before.past  # of workers that are gone
        self.deaths = self._before.deaths  # of workers, unasked
        self._table = Table()
        self._numbers = count(self._before.next_number)
        self._ticket_secret = token_bytes(_SECRET_BYTES)  # each configuration has its own
        self._crew: dict[int, Handle] = {}  # by row
        self._leaving: list[Handle] = []
        self._changing = RLock()
        self._has_begun = False
        self._pauses: dict[int, float] = {}  # by row
        self._changed_at: float | None = None  # a change that deaths may speak against
        self._deaths_since = 0
        self._fullness: dict[str, Fullness] = {}
        self._live: Snapshot = Snapshot()

    def _make(
        self, config: ServerConfig, access_log: AccessLog, metrics: Metrics, limiter: Limiter
    ) -> ProxyServer:
        server = make_server(config, access_log, metrics, limiter)
        server.make_acceptor = partial(HeldAcceptor, self)
        return server

    @property
    def handles(self) -> list[Handle]:
        """All workers, also those that only finish what they have."""
        return [*self._crew.values(), *self._leaving]

    @property
    def _serving(self) -> list[Handle]:
        return [each for each in self.handles if each.is_serving]

    def _held(self) -> Iterator[tuple[str, HeldAcceptor]]:
        """Give what listens, each with the name of its listener."""
        for server in self._listeners.accepting:
            for each in server.acceptors:
                assert isinstance(each, HeldAcceptor)
                yield server.config.name, each

    def _note_handed_out(self) -> None:
        for _, each in self._held():
            each.is_handed_out = True

    # -- asking them

    def ask_all(self, name: str, *values: Any, within: float = ANSWER) -> list[tuple[Handle, Any]]:
        """Ask all at the same time, and return what those answer that do."""
        asked = {
            each: gevent.spawn(_or_gone, each.ask, name, *values, within=within) for each in self._serving
        }
        gevent.joinall(list(asked.values()))
        told = [(each, greenlet.value) for each, greenlet in asked.items()]
        return [(each, value) for each, value in told if not isinstance(value, GoneError)]

    def tell_all(self, name: str, *values: Any) -> None:
        """Have those that serve do something, and wait until they have."""
        for each in self._serving:
            _or_gone(each.ask, name, *values, within=ANSWER)

    def report(self, within: float) -> None:
        """Have all say what they have counted."""
        places = ours.every()
        asked = [gevent.spawn(_or_gone, each.report, places, within=within) for each in self._serving]
        gevent.joinall(asked)

    # -- their life

    def _make_room_in_the_loop(self) -> None:
        """Leave that to workers."""

    def _begin(self) -> None:
        old = self._adopt()
        started = [gevent.spawn(self._start, row) for row in range(self.config.workers)]
        gevent.joinall(started)
        error = next((each.get() for each in started if each.get()), None)
        if error:
            for handle in self._crew.values():
                handle.is_leaving = True
                handle.kill()
            if not old:
                raise error
            # The new program does not work, but the old workers do.
            log.error("the upgrade failed, and the workers before it serve on: %s", error)
            self._leaving = [each for each in self._leaving if each not in old]
            self._crew = {each.row: each for each in old}
        for handle in old if not error else ():
            handle.leave()
        if self._before.upgrades:
            self._note_upgrade(self._before.upgrades, self._before.version, str(error or ""))
        self._has_begun = True
        log.info("%d workers serve: %s", len(self._crew), _pids(self._crew.values()))
        gevent.spawn(self._look_after)

    def _start(self, row: int) -> ProxyError | None:
        """Start a worker; returns why it does not serve, if so."""
        try:
            number, ledger = next(self._numbers), Ledger(self.limiter)
            answers = {"failed": partial(self._note_failure, number)}
            process = begin_worker(self._table)
            handle = self._crew[row] = Handle(number, row, process, ledger, answers, self._ended)
            handle.ask("hello", within=START)
            with self._changing:
                penalties = self.limiter.penalties.known(monotonic())
                config = share_of(self.config, row)
                orders = Orders(number, row, config, self._ticket_secret, penalties, ours.every())
                held = list(self._held())
                names, sockets = [name for name, _ in held], [each.given for _, each in held]
                handle.ask("serve", orders, names, sockets=sockets, within=START)
                self._note_handed_out()
                handle.is_serving = True
        except GoneError:
            why = handle.fate if handle.is_gone else "no answer"
            return ProxyError(f"worker {number} did not start: {why}")
        except ProxyError as exc:
            return exc
        return None

    def _ended(self, handle: Handle) -> None:
        """Take note that a worker has ended, and replace it if it should not have."""
        self.past += handle.snapshot.what_was()
        if handle in self._leaving:
            self._leaving.remove(handle)
            return
        if self._crew.get(handle.row) is handle:
            del self._crew[handle.row]
            self._table.leave(handle.row)
        if self.draining or handle.is_leaving or not self._has_begun:
            return
        self.deaths += 1
        lived = monotonic() - handle.began
        log.error(
            "worker %d ended unasked after %.1f s (%s), and %d connections with it; another one is started",
            handle.number,
            lived,
            handle.fate,
            handle.snapshot.live.total(),
        )
        pause = FIRST_PAUSE if lived > LONGEST_PAUSE else self._pauses.get(handle.row, FIRST_PAUSE)
        self._pauses[handle.row] = min(2 * pause, LONGEST_PAUSE)
        gevent.spawn(self._replace, handle.row, pause)
        self._hold_against_the_change()

    def _replace(self, row: int, pause: float) -> None:
        gevent.sleep(pause)
        if self.draining or row >= self.config.workers or row in self._crew:
            return
        if error := self._start(row):
            log.error("%s", error)
            if row in self._crew:
                self._crew[row].kill()
            else:
                gevent.spawn(self._replace, row, LONGEST_PAUSE)  # there was no process at all

    def _hold_against_the_change(self) -> None:
        if self._changed_at is None or monotonic() - self._changed_at > AFTER_CHANGE:
            return
        self._deaths_since += 1
        if self._deaths_since >= DEATHS:
            self._changed_at = None
            gevent.spawn(self._undo)

    def _undo(self) -> None:
        why = f"{DEATHS} workers ended within {AFTER_CHANGE:g} s of the last change of the configuration"
        log.error("%s: it is taken back", why)
        self.companion.undo(why)
        self._changed_at = None  # what was gone back to is not gone back from

    # -- looking after them

    def _look_after(self) -> None:
        while not self.draining:
            shared = any(each.bandwidth for each in self.limiter.limits) and self._live.flows
            pause = _SOON if shared else _LOOK
            before = monotonic()
            gevent.sleep(pause)
            is_late = monotonic() - before > pause + _LATE
            self.look(is_late=is_late)

    def look(self, *, is_late: bool = False) -> None:
        """Have all report, tell each what others have found out, and end those that do not answer."""
        asked_at = monotonic()
        serving = self._serving
        said = {each.number: each.snapshot for each in serving}
        self.report(within=ANSWER)
        silent = [each for each in serving if each.snapshot is said[each.number] and not each.is_gone]
        if not is_late and monotonic() - asked_at >= ANSWER:
            for each in silent:
                if each.is_serving and not each.link.is_over:
                    log.error("worker %d has not answered for %g s: it is killed", each.number, ANSWER)
                    each.kill()
        self._live = sum((each.snapshot for each in self._serving), Snapshot())
        self._spread_news()
        shares = share_out(self.limiter, {each.number: each.snapshot for each in self._serving})
        for each in self._serving:
            if shares[each.number]:
                each.link.tell("take", shares[each.number])
        self._note_fullness()

    def _spread_news(self) -> None:
        latest = {key: each.state for key, each in self._live.upstreams.items()}
        for each in self._serving:
            known = each.snapshot.upstreams
            if news := [
                (key, state)
                for key, state in latest.items()
                if key in known and state.since > known[key].state.since
            ]:
                each.link.tell("learn", news)

    def _note_fullness(self) -> None:
        for gone in self._fullness.keys() - {each.config.name for each in self._listeners.accepting}:
            self._fullness.pop(gone).end()
        for server in self._listeners.accepting:
            name = server.config.name
            is_full = self._live.live[name] >= server.config.max_connections
            fullness = self._fullness.get(name)
            if not fullness:
                fullness = self._fullness[name] = Fullness(partial(self._describe_fullness, name))
            if is_full is not fullness.is_full:
                self.metrics.listener(name).filled += is_full
                fullness.become(is_full)

    def _describe_fullness(self, name: str) -> str:
        config = next(each.config for each in self._listeners.accepting if each.config.name == name)
        return describe(config, self._live.live[name], is_full=self._fullness[name].is_full)

    def _note_failure(self, number: int, client: Address, penalty: float) -> None:
        self.limiter.penalties.add(client, penalty, monotonic())
        for each in self.handles:
            if each.number != number:
                each.link.tell("failed", client, penalty)

    # -- changing

    def apply(self, config: ProxyConfig) -> tuple[str, ...]:
        """Have all serve new connections under another configuration, or none; raises ``ProxyError``."""
        with self._changing:
            plan = self.plan(config)
            workers = [each for each in self._serving if each.row < config.workers and not each.is_leaving]
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
            notes = self.change(config, plan)
            self._ticket_secret = secret
            self._note_handed_out()
            self._changed_at, self._deaths_since = monotonic(), 0
            self._fit_crew()
            return notes

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
                log.error("worker %d could not change: %s; it is started anew", worker.number, reason_of(exc))
            worker.kill()

    def _fit_crew(self) -> None:
        """Have as many workers as the configuration says."""
        for row, handle in list(self._crew.items()):
            if row >= self.config.workers:
                self._leaving.append(self._crew.pop(row))
                self._table.leave(row)
                handle.leave()
        for row in range(self.config.workers):
            if row not in self._crew:
                gevent.spawn(self._replace, row, 0.0)

    def _arrived(self, server: ProxyServer) -> None:
        with self._changing:
            held = [each for _, each in self._held() if each in server.acceptors]
            new = [each.given for each in held if not each.is_handed_out]
            for each in self._serving:
                _or_gone(each.ask, "arrived_at", server.config.name, sockets=new, within=ANSWER)
            self._note_handed_out()
        super()._arrived(server)

    def reopen_logs(self) -> tuple[str, ...]:
        """Open the log files anew, in all; returns what there is to say of it."""
        for each in self.handles:
            each.link.tell("reopen_logs")
        return super().reopen_logs()

    # -- giving place to another program

    def upgrade(self, outcomes: Counter[str]) -> int:
        """
        Have the program's file started anew in this process, and workers of it take over.

        Returns the number of this upgrade: ``upgraded`` says what came of it, in the new program or, if it
        does not come to that, in this one. Raises ``ProxyError`` if the new program does not get ready.
        """
        with self._changing:
            self.report(within=ANSWER)
            handover = self._handover(outcomes, {})
            try_out(handover)
        gevent.spawn_later(_BREATH, self._give_place, outcomes)
        return handover.upgrades

    def _give_place(self, outcomes: Counter[str]) -> None:
        with self._changing:
            if self.draining:
                return
            log.info("the program is started anew, and its workers take over")
            handles = self.handles
            received = {each: each.link.leave_off() for each in handles}
            handover = self._handover(outcomes, received)
            listening = [fd for several in handover.listening.values() for fd in several]
            environment = self.companion.replaced()
            self._logs.finish()
            signals.block()
            try:
                take_place(handover, environment, [*listening, *(each.link.fileno() for each in handles)])
            except OSError as exc:
                signals.unblock()
                signals.unblock_interrupt()
                for each in handles:
                    each.link.start()
                self.companion.reloaded()
                problem = f"{sys.executable}: {reason_of(exc)}"
                log.error("the program cannot be started anew, and this one goes on: %s", problem)
                self._note_upgrade(handover.upgrades, __version__, problem)

    def _note_upgrade(self, number: int, before: str, problem: str) -> None:
        status = "failed" if problem else "done"
        self.upgraded = {
            "number": number, "status": status, "from": before, "to": __version__, "problem": problem
        }  # fmt: skip

    def _handover(self, outcomes: Counter[str], received: Mapping[Handle, bytes]) -> Handover:
        listening: dict[str, list[int]] = {}
        for name, acceptor in self._held():
            listening.setdefault(name, []).append(acceptor.given.fileno())
        now = monotonic()
        workers = [
            OldWorker(
                each.number,
                each.row,
                each.pid,
                each.link.fileno(),
                received.get(each, b""),
                each.snapshot,
                now - each.began,
                each.is_leaving,
            )
            for each in self.handles
            if each.is_serving
        ]
        return Handover(
            upgrades=self._before.upgrades + 1,
            next_number=next(self._numbers),
            workers=workers,
            listening=listening,
            past=self.past,
            deaths=self.deaths,
            filled={name: one.filled for name, one in self.metrics.listeners.items()},
            penalties=self.limiter.penalties.known(now),
            refusals=self.limiter.refusals,
            outcomes=outcomes,
        )

    def take_over(self) -> None:
        """Go on with what the program before has handed over."""
        before = self._before
        self.limiter.penalties.take_over(before.penalties)
        self.limiter.refusals.update(before.refusals)
        for name, filled in before.filled.items():
            self.metrics.listener(name).filled = filled
        self.at_hand = [adopt(fd) for several in before.listening.values() for fd in several]

    def _adopt(self) -> list[Handle]:
        """Have the workers of the program before; returns those that shall give place to ours."""
        gevent.get_hub().loop.install_sigchld()
        old = []
        for each in self._before.workers:
            ledger = Ledger(self.limiter)
            answers = {"failed": partial(self._note_failure, each.number)}
            process = each.pid, adopt(each.link), each.received
            handle = Handle(each.number, each.row, process, ledger, answers, self._ended)
            handle.snapshot, handle.began = each.snapshot, monotonic() - each.age
            handle.is_serving, handle.is_leaving = True, each.is_leaving
            handle.link.tell("count_anew")
            self._leaving.append(handle)
            if not each.is_leaving:
                old.append(handle)
        return old

    def try_worker(self) -> None:
        """Have one worker get ready, without clients; raises ``ProxyError``."""
        if error := self._start(0):
            raise error
        self._crew[0].kill()

    # -- the end

    def stop(self) -> None:
        """Stop in good order, or at once if that was said before."""
        is_again = self.draining
        super().stop()
        if is_again:
            for each in self.handles:
                each.leave()

    def _drain(self) -> None:
        self.report(within=1.0)
        live = sum(each.snapshot.live.total() for each in self.handles)
        log.info("stopping: %d connections have %g s to finish", live, self.config.drain_timeout)
        for each in self.handles:
            if not each.is_leaving:
                each.leave()
        self._listeners.stop()
        over = monotonic() + self.config.drain_timeout + _PARTING
        while self.handles and monotonic() < over:
            gevent.sleep(0.02)
        for each in self.handles:
            log.warning("worker %d has not ended in time: it is killed", each.number)
            each.kill()
        log.info("stopped")

    def _report(self) -> None:
        self._opened.wait()
        self.report(within=1.0)
        counted = sum((each.snapshot for each in self.handles), self.past)
        for server in self.servers:
            name = server.config.name
            total = counted.listeners[name].accepted if name in counted.listeners else 0
            log.info("%s: %d connections live, %d in all", name, counted.live[name], total)


def _or_gone(act: Callable[..., T], *values: Any, **options: Any) -> T | GoneError:
    try:
        return act(*values, **options)
    except GoneError as exc:
        return exc


def _or_error(act: Callable[..., T], *values: Any, **options: Any) -> T | ProxyError:
    try:
        return act(*values, **options)
    except ProxyError as exc:
        return exc


def _pids(handles: Iterable[Handle]) -> str:
    return ", ".join(f"{each.number} is process {each.pid}" for each in handles)
