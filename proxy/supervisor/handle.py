"""
A worker as its supervisor sees it: a process, a link to it, and what it said last.
"""

import logging
import os
import signal
import socket as std_socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.monkey import get_original

from proxy.control.snapshot import Snapshot
from proxy.errors import ProxyError, reason_of
from proxy.workers import VARIABLE
from proxy.workers.limits import Ledger
from proxy.workers.link import Answers, Link
from proxy.workers.table import Table

log = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds for a process to end whose link has ended
_LOOK = 0.02  # seconds between two looks whether it has

_waitpid = get_original("os", "waitpid")


class Handle:
    """One worker."""

    def __init__(
        self,
        number: int,
        row: int,
        process: "tuple[int, socket.socket, bytes]",
        ledger: Ledger,
        answers: Answers,
        on_end: "Callable[[Handle], object]",
    ) -> None:
        """
        Take a process that has just begun, or that came over; ``on_end`` is called when it has ended.

        It is given as its id, the link's socket, and what has come by that already.
        """
        self.number = number
        self.row = row
        self.ledger = ledger
        self.snapshot = Snapshot()
        self.began = monotonic()
        self.has_begun = False  # to serve
        self.is_leaving = False  # as it was told to
        self._is_killed = False  # by us
        self.ended = Event()
        self._on_end = on_end
        self._code: int | None = None
        self.pid, sock, received = process
        # Before the event loop has a turn, as it is told of the death of each child once.
        self._watcher = gevent.get_hub().loop.child(self.pid)
        self._watcher.start(self._note_end)
        answers = {**answers, **ledger.answers, "last_words": self._hear}
        self.link = Link(sock, answers, on_end=lambda: gevent.spawn(self._end), received=received)
        self.link.start()

    @property
    def is_serving(self) -> bool:
        """True when it can be asked."""
        return self.has_begun and not self.link.is_over

    @property
    def is_gone(self) -> bool:
        """True when the process has ended."""
        return self._code is not None

    @property
    def fate(self) -> str:
        """How it ended."""
        if self._code is None or self._code >= 0:
            return f"exit code {self._code}"
        if self._code == -signal.SIGKILL and not self._is_killed:
            return "killed by SIGKILL, as where memory runs out: dmesg knows"
        try:
            return f"killed by {signal.Signals(-self._code).name}"
        except ValueError:
            return f"killed by signal {-self._code}"

    def ask(self, name: str, *values: Any, sockets: Sequence[socket.socket] = (), within: float) -> Any:
        """Ask it something; raises ``GoneError``, and what it raises."""
        return self.link.ask(name, *values, sockets=sockets, within=within)

    def report(self, *values: Any, within: float) -> Snapshot:
        """Ask what it has counted."""
        self.snapshot = self.ask("report", *values, within=within)
        return self.snapshot

    def leave(self) -> None:
        """Tell it to stop in good order, or at once if it was told before."""
        self.is_leaving = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._is_killed = True
        self._signal(signal.SIGKILL)

    def describe(self) -> dict[str, Any]:
        """Describe it."""
        state = "draining" if self.is_leaving else "running" if self.has_begun else "starting"
        return {
            "id": self.number,
            "pid": self.pid,
            "state": state,
            "live": self.snapshot.live.total(),
            "uptime": monotonic() - self.began,
            "cpu": self.snapshot.process.cpu,
            "memory": self.snapshot.process.memory,
        }

    def _hear(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def _signal(self, number: int) -> None:
        if not self.is_gone:
            os.kill(self.pid, number)

    def _note_end(self) -> None:
        self._code = os.waitstatus_to_exitcode(self._watcher.rstatus)
        self._watcher.close()

    def _end(self) -> None:
        deadline = monotonic() + _PATIENCE
        while not self.is_gone:
            if monotonic() > deadline:
                self.kill()
            gevent.sleep(_LOOK)
            self._look()
        self.ledger.close()
        self._on_end(self)
        self.ended.set()

    def _look(self) -> None:
        """Notice the end of one that ended while another program was in our place."""
        with suppress(ChildProcessError):
            pid, status = _waitpid(self.pid, os.WNOHANG)
            if pid and self._code is None:
                self._code = os.waitstatus_to_exitcode(status)


def begin_worker(table: Table) -> tuple[int, socket.socket, bytes]:
    """Start a process that is a worker; raises ``ProxyError``."""
    gevent.get_hub().loop.install_sigchld()
    try:
        ours, theirs = socket.socketpair(std_socket.AF_UNIX, std_socket.SOCK_STREAM)
        with theirs:
            try:
                return _spawn((theirs.fileno(), table.fd)), ours, b""
            except OSError:
                ours.close()
                raise
    except OSError as exc:
        raise ProxyError(f"cannot start a worker: {reason_of(exc)}") from exc


def _spawn(descriptors: Sequence[int]) -> int:
    """Start this program again as a worker, with these descriptors, and return its process id."""
    # As it was started, so that whoever lists processes sees what belongs together. In a group of its own: a
    # Ctrl-C at a terminal is for the supervisor.
    command = [sys.executable, *sys.orig_argv[1:]]
    variable = {VARIABLE: ",".join(map(str, descriptors))}
    no_input = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    for fd in descriptors:
        os.set_inheritable(fd, True)
    try:
        return os.posix_spawn(
            sys.executable, command, {**os.environ, **variable}, file_actions=no_input, setpgroup=0
        )
    finally:
        for fd in descriptors:
            os.set_inheritable(fd, False)
