"""
Upgrading to another version of the program, in both roles: the old one and the new one (``ctl upgrade``).

The program's file may be another one by now. So it is tried first, in a process of its own that is given all
that is handed over, and has to get a worker ready; then it is started in this process, which keeps its
descriptors.

What may never be violated:

- As long as it may still fail, nothing has been given away: who cannot be replaced goes on.
- The new program has what this one had: sockets, workers, counters, penalties, numbers.
- A signal is for this program or for the new one, and never for neither.
"""

import logging
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import gevent
from gevent.event import AsyncResult

from proxy import __version__, signals
from proxy.control.program import Held
from proxy.errors import ProxyError, reason_of
from proxy.supervisor import HANDED, TRIAL
from proxy.supervisor.crew import ANSWER
from proxy.supervisor.fleet import Fleet
from proxy.supervisor.handle import Handle
from proxy.supervisor.handover import Handover, OldWorker, adopt

log = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds for the new program to be tried
_MOST_SAID = 300  # characters of what it says
_BREATH = 0.2  # seconds for an answer to reach who asked for an upgrade


class Upgrade:
    """What a fleet has to do with the programs before and after it."""

    def __init__(self, fleet: Fleet, before: Handover) -> None:
        """Take over what the program before hands over."""
        self._fleet = fleet
        self._before = before
        self._number = before.upgrades  # of the last one
        self._failed: dict[str, Any] | None = None
        fleet.crew.take_over(before)
        fleet.limiter.penalties.take_over(before.penalties)
        fleet.limiter.refusals.update(before.refusals)
        for name, filled in before.filled.items():
            fleet.metrics.listener(name).filled = filled
        fleet.at_hand = {name: [adopt(fd) for fd in fds] for name, fds in before.listening.items()}

    @property
    def outcome(self) -> Mapping[str, Any] | None:
        """What came of the last one."""
        if self._failed or not self._before.upgrades:
            return self._failed
        return _outcome(self._before.upgrades, self._before.version, self._fleet.crew.problem)

    def begin(self, outcomes: Counter[str], held: Held) -> int:
        """
        Have the program's file started anew in this process, and workers of it take over.

        Returns the number of this upgrade: ``outcome`` says what came of it, in the new program or, if it
        does not come to that, in this one. Raises ``ProxyError`` if the new program does not get ready.
        """
        with held(), self._fleet.changing:
            self._fleet.crew.report(within=ANSWER)
            handover = self._handover(outcomes, {})
            try_out(handover)
        gevent.spawn_later(_BREATH, self._give_place, outcomes, held)
        return handover.upgrades

    def _give_place(self, outcomes: Counter[str], held: Held) -> None:
        fleet = self._fleet
        try:
            # What is in effect is what the new program reads, whose sockets are here: nobody is in its way.
            with held(), fleet.changing:
                signals.block(signal.SIGTERM)  # what comes from now on is for the new program,
                gevent.sleep(_BREATH)  # and what has come before is taken by now
                try:
                    if not fleet.draining:
                        self._start_anew(outcomes)
                finally:
                    signals.unblock()
                    signals.unblock_interrupt()
        except ProxyError as exc:
            log.error("the program cannot be restarted, and this one continues: %s", exc)
            self._number += 1
            self._failed = _outcome(self._number, __version__, str(exc))

    def _start_anew(self, outcomes: Counter[str]) -> None:
        """Start the program anew in this process; raises ``ProxyError`` if that was not to be."""
        fleet = self._fleet
        log.info("the program is restarted, and its workers take over")
        fleet.crew.give_up_starting()
        handles = fleet.crew.serving
        received = {each: each.link.leave_off() for each in handles}
        try:
            handover = self._handover(outcomes, received)
            listening = [fd for several in handover.listening.values() for fd in several]
            environment = fleet.companion.replaced()
            fleet.flush_logs()
            take_place(handover, environment, [*listening, *(each.link.fileno() for each in handles)])
        except Exception as exc:  # whatever it is, those who serve are not to be left alone
            for each in handles:
                each.link.start()
            fleet.crew.resize(fleet.config.workers)
            fleet.companion.reloaded()
            raise ProxyError(f"{sys.executable}: {reason_of(exc)}") from exc

    def _handover(self, outcomes: Counter[str], received: Mapping[Handle, bytes]) -> Handover:
        fleet, now = self._fleet, monotonic()
        listening: dict[str, list[int]] = {}
        for name, acceptor in fleet.held():
            listening.setdefault(name, []).append(acceptor.given.fileno())
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
            for each in fleet.crew.serving
        ]
        gone = [each.snapshot.what_was() for each in fleet.crew.handles if not each.is_serving]
        return Handover(
            upgrades=self._number + 1,
            next_number=fleet.crew.take_number(),
            workers=workers,
            listening=listening,
            past=sum(gone, fleet.crew.past),
            deaths=fleet.crew.deaths,
            filled={name: one.filled for name, one in fleet.metrics.listeners.items()},
            penalties=fleet.limiter.penalties.known(now),
            refusals=fleet.limiter.refusals,
            outcomes=outcomes,
        )


def _outcome(number: int, before: str, problem: str) -> dict[str, Any]:
    status = "failed" if problem else "done"
    return {"number": number, "status": status, "from": before, "to": __version__, "problem": problem}


def try_out(handover: Handover) -> None:
    """Have the new program try whether it can take over; raises ``ProxyError`` that says why not."""
    fd = handover.write()
    said = tempfile.TemporaryFile()  # noqa: SIM115
    output = os.dup(said.fileno())
    try:
        for each in (fd, output):
            os.set_inheritable(each, True)
        gevent.get_hub().loop.install_sigchld()
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            {**os.environ, HANDED: str(fd), TRIAL: "1"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setpgroup=0,
        )
        code = _wait(pid)
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").strip().splitlines()
    except OSError as exc:
        raise ProxyError(
            f"the new program cannot be started, so this one continues: {reason_of(exc)}"
        ) from exc
    finally:
        said.close()
        for each in (fd, output):
            os.close(each)
    if code:
        why = lines[-1][:_MOST_SAID] if lines else "it says nothing"
        raise ProxyError(f"the new program does not get ready, so this one continues: {why}")


def _wait(pid: int) -> int:
    """Wait for a process, and give its exit code; one that takes too long is killed."""
    watcher: Any = gevent.get_hub().loop.child(pid)
    ended: AsyncResult[int] = AsyncResult()
    watcher.start(lambda: ended.set(watcher.rstatus))
    try:
        status: int = ended.get(timeout=PATIENCE)  # type: ignore[assignment]
        return os.waitstatus_to_exitcode(status)
    except gevent.Timeout:
        os.kill(pid, signal.SIGKILL)
        raise ProxyError(
            f"the new program does not get ready in {PATIENCE:g} s, so this one continues"
        ) from None
    finally:
        watcher.close()


def take_place(handover: Handover, environment: Mapping[str, str], keep: Sequence[int]) -> None:
    """Start the program anew in this process; raises ``OSError``, and then this one goes on."""
    fd = handover.write()
    try:
        for each in (fd, *keep):
            os.set_inheritable(each, True)
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            {**os.environ, **environment, HANDED: str(fd)},
        )
    finally:  # it did not come to that
        for each in keep:
            os.set_inheritable(each, False)
        os.close(fd)
