"""
What a service manager is told, and what it hands over: sd_notify(3) and sd_listen_fds(3).

Without a service manager all of this does nothing.
"""

import array
import logging
import os
import socket as std_socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain, repeat
from time import monotonic_ns
from urllib.parse import quote, unquote

import gevent
from gevent import socket

log = logging.getLogger(__name__)

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_LONGEST_NAME = 255  # of a descriptor; without control characters and colons


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
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        # What it keeps for the next start, by listener; from the last one we know only the names.
        self._kept: dict[str, object] = dict.fromkeys(filter(None, names))
        self._environment = {"NOTIFY_SOCKET": path} | {
            name: os.environ[name] for name in ("WATCHDOG_USEC", "WATCHDOG_PID") if name in os.environ
        }
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

    @property
    def is_there(self) -> bool:
        """True if there is a service manager."""
        return self._sock is not None

    @property
    def environment(self) -> Mapping[str, str]:
        """What a program that takes our place has to have in its environment, to be what we are."""
        return {**self._environment, "LISTEN_FDNAMES": ":".join(self._kept)} if self._address else {}

    def keep(self, listening: Mapping[str, Sequence[socket.socket]]) -> None:
        """
        Have the listening sockets kept for the next start, by the names of their listeners, and no others.

        One that keeps nothing (FileDescriptorStoreMax=0) closes what it is given.
        """
        wanted = {
            quote(name, safe="")[:_LONGEST_NAME]: sockets for name, sockets in listening.items() if sockets
        }
        for name in list(self._kept):
            if name not in wanted or self._kept[name] != _places(wanted[name]):
                del self._kept[name]
                self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")
        for name, sockets in wanted.items():
            if name not in self._kept:
                self._kept[name] = _places(sockets)
                # Also while we have the kernel refuse clients there for a moment, it is to be kept.
                self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", sockets)

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

    def _send(self, state: str, sockets: Sequence[socket.socket] = ()) -> None:
        if self._sock is None:
            return
        try:
            # A service manager that does not read must not stop us.
            self._sock.settimeout(1.0)
            fds = array.array("i", [each.fileno() for each in sockets])
            rights = [(std_socket.SOL_SOCKET, std_socket.SCM_RIGHTS, fds)] if sockets else []
            self._sock.sendmsg([state.encode()], rights, 0, self._address)
        except OSError as exc:
            log.debug("cannot tell the service manager %s: %s", state.partition("\n")[0], exc.strerror)


def _watchdog_seconds() -> float:
    microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
    ours = pid in ("", str(os.getpid()))
    return int(microseconds) / 1e6 if ours and microseconds.isdecimal() else 0.0


def _places(sockets: Sequence[socket.socket]) -> list[object]:
    return [each.getsockname() for each in sockets]


def inherited_sockets() -> list[tuple[str, socket.socket]]:
    """
    Take over the listening sockets that the service manager opened or kept for us; once, at the start.

    Each has a name, which is that of its listener where it is one of those that we have had kept.
    """
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    names = map(unquote, os.environ.get("LISTEN_FDNAMES", "").split(":"))
    fds = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count))
    taken = ((name, _take(fd)) for name, fd in zip(chain(names, repeat("")), fds, strict=False))
    return [(name, sock) for name, sock in taken if sock]


def _take(fd: int) -> socket.socket | None:
    with suppress(OSError):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_ACCEPTCONN)
        if listens and (sock.family in (std_socket.AF_INET, std_socket.AF_INET6) or _has_path(sock)):
            return sock
        sock.close()
    log.warning("descriptor %d, which was handed over to us, is not a listening TCP or Unix socket", fd)
    return None


def _has_path(sock: socket.socket) -> bool:
    """Tell whether it is a Unix socket for streams, and no abstract one, which has no file and so no mode."""
    is_unix = sock.family == std_socket.AF_UNIX and sock.type == std_socket.SOCK_STREAM
    return is_unix and str(sock.getsockname()).startswith("/")
