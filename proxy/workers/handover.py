"""
What a supervisor hands over to the program that takes its place: `ctl upgrade`.

The program's file may be another one by then. So it is tried first, in a process of its own that is given all
of this, and has to get a worker ready; then it is started in the same process, which keeps its descriptors.
"""

import os
import pickle
import signal
import socket as std_socket
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent import socket
from gevent.event import AsyncResult

from proxy import __version__
from proxy.control.snapshot import Snapshot
from proxy.errors import ProxyError, reason_of
from proxy.listening.unixsocket import UnixSocket
from proxy.workers import HANDED, TRIAL

PATIENCE = 30.0  # seconds for the new program to be tried
_MOST_SAID = 300  # characters of what it says


@dataclass(frozen=True)
class OldWorker:
    """A worker that serves on until new ones do."""

    number: int
    row: int
    pid: int
    link: int  # its descriptor
    received: bytes  # from it, and not answered yet
    snapshot: Snapshot
    age: float
    is_leaving: bool


@dataclass(frozen=True)
class Handover:
    """All of it."""

    version: str = __version__
    upgrades: int = 0
    next_number: int = 1
    workers: Sequence[OldWorker] = ()
    listening: Mapping[str, Sequence[int]] = field(default_factory=dict)  # descriptors, by listener
    past: Snapshot = field(default_factory=Snapshot)
    deaths: int = 0
    filled: Mapping[str, int] = field(default_factory=dict)
    penalties: Sequence[tuple[str, int, float]] = ()
    refusals: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def write(self) -> int:
        """Write it into a file without a name, and return its descriptor."""
        with tempfile.TemporaryFile() as file:
            pickle.dump(self, file)
            file.flush()
            fd = os.dup(file.fileno())
        os.lseek(fd, 0, os.SEEK_SET)
        return fd


def received() -> Handover | None:
    """Take what was handed over to this process, if anything was; raises ``ProxyError``."""
    fd = os.environ.pop(HANDED, "")
    if not fd:
        return None
    try:
        with open(int(fd), "rb") as file:
            handover = pickle.load(file)
    except Exception as exc:
        raise ProxyError(f"what the program before hands over cannot be read: {exc}") from exc
    if not isinstance(handover, Handover):
        raise ProxyError("what the program before hands over is something else")
    return handover


def is_trial() -> bool:
    """Tell whether this process is only to try whether the program works."""
    return os.environ.pop(TRIAL, "") == "1"


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
        raise ProxyError(f"the new program cannot be started, so this one goes on: {reason_of(exc)}") from exc
    finally:
        said.close()
        for each in (fd, output):
            os.close(each)
    if code:
        why = lines[-1][:_MOST_SAID] if lines else "it says nothing"
        raise ProxyError(f"the new program does not get ready, so this one goes on: {why}")


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
            f"the new program does not get ready in {PATIENCE:g} s, so this one goes on"
        ) from None
    finally:
        watcher.close()


def take_place(handover: Handover, environment: Mapping[str, str], keep: Sequence[int]) -> None:
    """Start the program anew in this process; raises ``OSError``, and then this one goes on."""
    fd = handover.write()
    for each in (fd, *keep):
        os.set_inheritable(each, True)
    try:
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            {**os.environ, **environment, HANDED: str(fd)},
        )
    finally:  # it did not come to that
        for each in keep:
            os.set_inheritable(each, False)
        os.close(fd)


def adopt(fd: int) -> socket.socket:
    """Take a socket that came over."""
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    if sock.family == std_socket.AF_UNIX and sock.getsockname():
        return UnixSocket.found(sock.detach())
    return sock
