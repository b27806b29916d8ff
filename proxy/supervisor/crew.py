"""
The workers of a supervisor: how they begin, end, and are replaced.

Each has a row, below the number of workers that there shall be. Those that only finish what they have are
beside these.

What may never be violated:

- A worker that ends unasked is replaced after a pause, which doubles as long as they do not live. Nothing but
  another configuration cuts it short.
- What was counted stays counted: of a worker that is gone, what it said last (``past``).
- Deaths soon after a change speak against it, and take it back.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from time import monotonic
from typing import Any, TypeVar

import gevent

from proxy.address import Address
from proxy.control.snapshot import Snapshot
from proxy.errors import ProxyError
from proxy.limiter import Limiter
from proxy.listening import ours
from proxy.supervisor.handle import Handle, begin_worker
from proxy.supervisor.handover import Handover, adopt
from proxy.workers.limits import Ledger
from proxy.workers.link import GoneError
from proxy.workers.table import Table

log = logging.getLogger(__name__)

T = TypeVar("T")

START = 30.0  # seconds for a worker to serve
ANSWER = 10.0  # seconds after which one that does not answer is killed
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds until a worker is replaced
AFTER_CHANGE = 10.0  # seconds in which deaths speak against a change
DEATHS = 3


class Crew:
    """All of them."""

    def __init__(
        self, limiter: Limiter, have_serve: Callable[[Handle], object], undo: Callable[[str], object]
    ) -> None:
        """
        Take what they count in.

        ``have_serve`` has one serve that has begun; it raises ``ProxyError``. ``undo`` takes the last
        change back, for a reason.
        """
        self.past = Snapshot()  # of workers that are gone
        self.deaths = 0  # of workers, unasked
        self.problem = ""  # why workers of a program before this one serve on
        self.is_stopping = False  # from then on none is replaced
        self._limiter = limiter
        self._have_serve = have_serve
        self._undo = undo
        self._table = Table()
        self._numbers = count(1)
        self._size = 0
        self._by_row: dict[int, Handle] = {}
        self._leaving: list[Handle] = []
        self._before = Handover()
        self._has_begun = False
        self._pauses: dict[int, float] = {}  # by row
        self._awaited: dict[int, gevent.Greenlet[..., None]] = {}  # that come after a pause, by row
        self._changed_at: float | None = None  # a change that deaths may speak against
        self._deaths_since = 0

    @property
    def handles(self) -> list[Handle]:
        """All workers, also those that only finish what they have."""
        return [*self._by_row.values(), *self._leaving]

    @property
    def serving(self) -> list[Handle]:
        """Those that can be asked."""
        return [each for each in self.handles if each.is_serving]

    def take_number(self) -> int:
        """Give a number that no worker has had."""
        return next(self._numbers)

    # -- asking them

    def ask_all(self, name: str, *values: Any, within: float = ANSWER) -> list[tuple[Handle, Any]]:
        """Ask all at the same time, and return what those answer that do."""
        asked = {each: gevent.spawn(or_gone, each.ask, name, *values, within=within) for each in self.serving}
        gevent.joinall(list(asked.values()))
        told = [(each, greenlet.value) for each, greenlet in asked.items()]
        return [(each, value) for each, value in told if not isinstance(value, GoneError)]

    def tell_all(self, name: str, *values: Any) -> None:
        """Have those that serve do something, and wait until they have."""
        for each in self.serving:
            or_gone(each.ask, name, *values, within=ANSWER)

    def report(self, within: float) -> None:
        """Have all say what they have counted."""
        places = ours.every()
        asked = [gevent.spawn(or_gone, each.report, places, within=within) for each in self.serving]
        gevent.joinall(asked)

    # -- their beginning

    def take_over(self, before: Handover) -> None:
        """Go on with the workers of the program before, which give place to ours when these serve."""
        self.past, self.deaths = before.past, before.deaths
        self._numbers = count(before.next_number)
        self._before = before

    def begin(self, size: int) -> None:
        """Start so many; raises ``ProxyError`` if one does not serve, but not in another program's place."""
        old = self._adopt()
        self._size = size
        started = [gevent.spawn(self._start, row) for row in range(size)]
        gevent.joinall(started)
        error = next((each.get() for each in started if each.get()), None)
        if error and (old or not self._before.upgrades):
            for handle in self._by_row.values():
                handle.is_leaving = True
                handle.kill()
            if not old:
                raise error
            # The new program does not work, but the old workers do.
            log.error("the upgrade failed, and the old workers continue: %s", error)
            self.problem = str(error)
            self._leaving = [each for each in self._leaving if each not in old]
            self._by_row = {each.row: each for each in old}
        elif error:  # and no worker was left before, so this is a death as any other
            log.error("%s", error)
        for handle in old if not error else ():
            handle.leave()
        self._has_begun = True
        for handle in self._by_row.values():
            if not handle.has_begun:
                handle.kill()
        self.resize(size)
        log.info("the workers serve: %s", _pids(self._by_row.values()))

    def _adopt(self) -> list[Handle]:
        """Have the workers of the program before; returns those that shall give place to ours."""
        gevent.get_hub().loop.install_sigchld()
        old = []
        for each in self._before.workers:
            handle = self._handle(each.number, each.row, (each.pid, adopt(each.link), each.received))
            handle.snapshot, handle.began = each.snapshot, monotonic() - each.age
            handle.has_begun, handle.is_leaving = True, each.is_leaving
            handle.link.tell("count_anew")
            self._leaving.append(handle)
            if not each.is_leaving:
                old.append(handle)
        return old

    def try_one(self) -> None:
        """Have one worker get ready, without clients; raises ``ProxyError``."""
        if error := self._start(0):
            raise error
        self._by_row[0].kill()

    def _start(self, row: int) -> ProxyError | None:
        """Start a worker; returns why it does not serve, if so."""
        try:
            return self._make_ready(self._enlist(row))
        except ProxyError as exc:
            return exc

    def _enlist(self, row: int) -> Handle:
        """Begin a worker's process; raises ``ProxyError``."""
        process = begin_worker(self._table)
        handle = self._by_row[row] = self._handle(self.take_number(), row, process)
        return handle

    def _make_ready(self, handle: Handle) -> ProxyError | None:
        """Have it serve; returns why it does not, if so."""
        try:
            handle.ask("hello", within=START)
            self._have_serve(handle)
        except GoneError as exc:
            if handle.link.is_over:
                handle.ended.wait()
            why = handle.fate if handle.is_gone else str(exc)
            return ProxyError(f"worker {handle.number} did not start: {why}")
        except ProxyError as exc:
            return exc
        return None

    def _handle(self, number: int, row: int, process: Any) -> Handle:
        answers = {"failed": partial(self._note_failure, number)}
        return Handle(number, row, process, Ledger(self._limiter), answers, self._ended)

    def _note_failure(self, number: int, client: Address, penalty: float) -> None:
        """Have a login that failed at one count at all."""
        self._limiter.penalties.add(client, penalty, monotonic())
        for each in self.handles:
            if each.number != number:
                each.link.tell("failed", client, penalty)

    # -- their end

    def _ended(self, handle: Handle) -> None:
        """Take note that a worker has ended, and replace it if it should not have."""
        self.past += handle.snapshot.what_was()
        if handle in self._leaving:
            self._leaving.remove(handle)
            return
        if self._by_row.get(handle.row) is handle:
            del self._by_row[handle.row]
            self._table.leave(handle.row)
        if self.is_stopping or handle.is_leaving or not self._has_begun:
            return
        self.deaths += 1
        lived = monotonic() - handle.began
        log.error(
            "worker %d ended unexpectedly after %.1f s (%s), with its connections (%d); another is started",
            handle.number,
            lived,
            handle.fate,
            handle.snapshot.live.total(),
        )
        pause = FIRST_PAUSE if lived > LONGEST_PAUSE else self._pauses.get(handle.row, FIRST_PAUSE)
        self._pauses[handle.row] = min(2 * pause, LONGEST_PAUSE)
        self._replace_after(pause, handle.row)
        self._hold_against_the_change()

    def _replace_after(self, pause: float, row: int) -> None:
        self._awaited[row] = gevent.spawn_later(pause, self._replace, row)

    def _replace(self, row: int) -> None:
        del self._awaited[row]
        if self.is_stopping or row >= self._size or row in self._by_row:
            return
        try:
            handle = self._enlist(row)
        except ProxyError as exc:
            log.error("%s", exc)
            self._replace_after(LONGEST_PAUSE, row)
            return
        error = self._make_ready(handle)
        if error and not handle.is_gone:  # else there is nothing more to say, and nobody to end
            log.error("%s", error)
            handle.kill()

    def _hold_against_the_change(self) -> None:
        if self._changed_at is None or monotonic() - self._changed_at > AFTER_CHANGE:
            return
        self._deaths_since += 1
        if self._deaths_since >= DEATHS:
            self._changed_at = None
            gevent.spawn(self._take_back)

    def _take_back(self) -> None:
        why = f"{DEATHS} workers ended within {AFTER_CHANGE:g} s of the last change of the configuration"
        log.error("%s: it is taken back", why)
        self._undo(why)
        self._changed_at = None  # what was gone back to is not gone back from

    def note_change(self) -> None:
        """Take note that the configuration has become another one, with which those may live that did not."""
        self._changed_at, self._deaths_since = monotonic(), 0
        self._await_none()
        self._pauses.clear()

    def _await_none(self) -> None:
        for each in self._awaited.values():
            each.kill(block=False)
        self._awaited.clear()

    def resize(self, size: int) -> None:
        """Have so many workers; those that come after a pause come then."""
        self._size = size
        for row, handle in list(self._by_row.items()):
            if row >= size:
                self._leaving.append(self._by_row.pop(row))
                self._table.leave(row)
                handle.leave()
        for row in range(size):
            if row not in self._by_row and row not in self._awaited:
                self._replace_after(0.0, row)

    def give_up_starting(self) -> None:
        """Have none but those that serve, until ``resize``."""
        self._await_none()
        for each in self.handles:
            if not each.has_begun:
                each.is_leaving = True
                each.kill()
                if self._by_row.get(each.row) is each:  # which `resize` gives to another one
                    self._leaving.append(self._by_row.pop(each.row))
                    self._table.leave(each.row)

    def count_live(self, listener: str) -> int:
        """Count the connections of a listener, as all said last."""
        return sum(each.snapshot.live[listener] for each in self.handles)

    def leave(self, *, at_once: bool = False) -> None:
        """Have all stop in good order, or at once."""
        for each in self.handles:
            if at_once or not each.is_leaving:
                each.leave()
            if at_once:
                each.link.tell("stop_at_once")  # which one signal does not say, where it is the first

    def see_off(self, within: float) -> None:
        """Wait until all have ended, and kill those that have not in time."""
        over = monotonic() + within
        while self.handles and monotonic() < over:
            gevent.sleep(0.02)
        for each in self.handles:
            log.warning("worker %d has not ended in time: it is killed", each.number)
            each.kill()


def or_gone(act: Callable[..., T], *values: Any, **options: Any) -> T | GoneError:
    """Do something, and return the error if the worker is gone."""
    try:
        return act(*values, **options)
    except GoneError as exc:
        return exc


def _pids(handles: Iterable[Handle]) -> str:
    return ", ".join(f"{each.number} is process {each.pid}" for each in handles)
