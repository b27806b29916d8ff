"""
What a service manager is told, and what it hands over: sd_notify(3) and sd_listen_fds(3).

Without a service manager all of this does nothing.
"""

import logging
import os
import socket as std_socket
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic_ns

import gevent
from gevent import socket

log = logging.getLogger(__name__)

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Tells the service manager how the program is."""

    def __init__(self) -> None:
        """Take the address out of the environment, so that no child speaks for us."""
        path = os.environ.pop("NOTIFY_SOCKET", "")
        # An @ stands for the NUL with which an abstract name begins.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        # Kept open: a program that has no descriptor left must not be taken for one that hangs.
        self._sock = socket.socket(std_socket.AF_UNIX, std_socket.SOCK_DGRAM) if path else None
        self._status = ""
        self._watchdog = _watchdog_seconds()

    def ready(self) -> None:
        """Say that clients are served, or are again after a reload."""
        self._send("READY=1")

    def waiting_for(self, addresses: Sequence[str]) -> None:
        """Say for which addresses listeners wait, if that is not known already."""
        status = f"waiting for {', '.join(addresses)}" if addresses else ""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload begins; ``ready`` ends it, however it went."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the drain begins."""
        self._send("STOPPING=1")

    def start_watchdog(self) -> None:
        """Show from now on that the event loop is alive, if that is watched."""
        if self._address and self._watchdog:
            gevent.spawn(self._keep_telling, self._watchdog / 2)

    def _keep_telling(self, period: float) -> None:
        while True:
            self._send("WATCHDOG=1")
            gevent.sleep(period)

    def _send(self, state: str) -> None:
        if self._sock is None:
            return
        try:
            # A service manager that does not read must not stop us.
            self._sock.settimeout(1.0)
            self._sock.sendto(state.encode(), self._address)
        except OSError as exc:
            log.debug("cannot tell the service manager %s: %s", state.partition("\n")[0], exc.strerror)


def _watchdog_seconds() -> float:
    microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
    ours = pid in ("", str(os.getpid()))
    return int(microseconds) / 1e6 if ours and microseconds.isdecimal() else 0.0


def inherited_sockets() -> list[socket.socket]:
    """Take over the listening sockets that the service manager opened for us; once, at the start."""
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    taken = (_take(fd) for fd in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)))
    return [sock for sock in taken if sock]


def _take(fd: int) -> socket.socket | None:
    with suppress(OSError):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_ACCEPTCONN)
        if listens and (sock.family in (std_socket.AF_INET, std_socket.AF_INET6) or _has_path(sock)):
            return sock
        sock.close()
    log.warning("descriptor %d, which was handed over to us, is no listening TCP or Unix socket", fd)
    return None


def _has_path(sock: socket.socket) -> bool:
    """Tell whether it is a Unix socket for streams, and no abstract one, which has no file and so no mode."""
    is_unix = sock.family == std_socket.AF_UNIX and sock.type == std_socket.SOCK_STREAM
    return is_unix and str(sock.getsockname()).startswith("/")
