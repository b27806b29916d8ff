"""
What a supervisor hands over to the program that replaces it, in an unnamed file.

That may be another version. If it cannot read this, the trial start fails, before anything is given away.
"""

import os
import pickle
import socket as std_socket
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gevent import socket

from proxy import __version__
from proxy.control.snapshot import Snapshot
from proxy.errors import ProxyError
from proxy.listening.unixsocket import UnixSocket
from proxy.supervisor import HANDED, TRIAL


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
        raise ProxyError(f"the state of the old program cannot be read: {exc}") from exc
    if not isinstance(handover, Handover):
        raise ProxyError("the state of the old program is not in the expected form")
    return handover


def is_trial() -> bool:
    """Tell whether this process is only to try whether the program works."""
    return os.environ.pop(TRIAL, "") == "1"


def adopt(fd: int) -> socket.socket:
    """Take a socket that came over."""
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    if sock.family == std_socket.AF_UNIX and sock.getsockname():
        return UnixSocket.found(sock.detach())
    return sock
