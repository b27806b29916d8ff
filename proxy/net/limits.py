"""
The resources that the system gives this process, and what happens when they run out.

A shortage of descriptors, memory or ports is our own. It raises ``LimitError``, which is neither the
target's fault nor an upstream's, so nobody is blamed, made to rest or passed over for it.

Some descriptors are kept in reserve, so that there is always one to accept a client with: it is then
told, in its own protocol, that there is no room, and gives the descriptor back.
"""

import errno
import logging
import math
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TypeVar

from gevent.monkey import get_original

from proxy.errors import LimitError, is_shortage, reason_of

log = logging.getLogger(__name__)

T = TypeVar("T")

RESERVED = 20  # descriptors: some clients at a time can be told that there is no room,
FOR_FILES = 4  # and these are left for the configuration file and what it names
_OWN = 64  # descriptors: logs, the control interface and its clients, the file and its versions
_BALLAST = 4 << 20  # bytes of memory
_SOME = 1 << 20  # bytes of memory: much more than a handshake takes
_REST = 1.0  # seconds for which nobody is let in, once there was none
_BETWEEN_LOOKS = 32  # clients: much less than they could take, each with its stacks and buffers
_PIECES_BETWEEN_LOOKS = 16  # of 64 KiB at most
_ENOUGH = 1 << 20  # descriptors: more than any machine can make use of

# gevent's close waits for the next turn of its loop, but these are wanted at once.
_close = get_original("os", "close")


def make_room(
    *, connections: int, listeners: int, pipes: int, lookups: int, raced: int = 0, spares: int = 0
) -> str:
    """
    Allow as many descriptors as the system lets us have; returns a warning if these may not be enough.

    What may be needed is counted at its peak, of each the most that there may be at a time: ``raced`` are
    the upstreams that are reached beside others, ``spares`` those connections to them that are ready.
    """
    RESERVE.keep(RESERVED)
    with suppress(MemoryError):  # it is asked for again
        BALLAST.keep()
    # A client's socket, and two for its target: while it is dialled, two addresses of it are raced.
    needed = 3 * connections + raced + spares
    needed += 2 * min(2 * connections, pipes)  # the ends of a pipe, one for each direction
    needed += 2 * min(2 * connections, lookups)  # a name server, and the file that says where it is
    needed += 2 * 2 * listeners  # two families, and their copies while they change hands
    needed += RESERVED + _OWN
    limit = raise_limit(needed)
    if limit < needed:
        return (
            f"max_connections may need {needed} file descriptors, but the limit is {limit}: raise it "
            "(ulimit -Hn, LimitNOFILE), or lower max_connections"
        )
    return ""


def raise_limit(needed: int) -> int:
    """Allow as many descriptors as the system lets us have, within reason; returns how many these are."""
    soft, hard = limit_of(resource.RLIMIT_NOFILE)
    most = max(needed, _ENOUGH)
    # The first may be refused where no hard limit is set but the kernel has its own.
    for wanted in (most if hard == resource.RLIM_INFINITY else min(most, hard), needed):
        if soft in (-1, resource.RLIM_INFINITY) or wanted <= soft:
            break
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
    soft, _ = limit_of(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else soft


def limit_of(what: int) -> tuple[int, int]:
    """Tell a limit, soft and hard; where a sandbox does not let us ask, there is none."""
    try:
        return resource.getrlimit(what)
    except OSError:
        return resource.RLIM_INFINITY, resource.RLIM_INFINITY


class Ballast:
    """
    Memory that is held back, for what has to go on when there is no more.

    libev and greenlet end the program where they cannot have memory: greenlet even to switch from one to
    another. So nobody new is let in as soon as there is little, and that is looked at before something fails.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._held: bytes | None = None
        self._since = math.inf  # when it was given up
        self._clients = 0  # that came or went
        self._pieces = 0  # that were kept

    def keep(self) -> None:
        """Hold it; raises ``MemoryError``."""
        # As nothing is ever written into it, it takes only room among the addresses: bytes are asked
        # for as zeros, which the kernel has at hand, where a bytearray would write them itself.
        self._held = self._held or bytes(_BALLAST)

    def give_up(self) -> None:
        """Let others have it, as something found no memory."""
        self._held = None
        self._since = self._clock()
        what = "no memory is left: new clients wait, and some may have been closed; lower max_connections"
        log.error("%s", what, extra={"collapse": ("no memory", what)})

    def allows_another(self) -> bool:
        """
        Tell whether there is memory for another client, to serve it or to be done with it.

        If not, that is looked at again after a second.
        """
        if self._since < math.inf:
            if self._clock() - self._since > _REST:
                self._since = math.inf if self._has_as_much_again() else self._clock()
        else:
            # To look takes some 8 us, a fiftieth of what a short connection takes.
            self._clients += 1
            if self._clients % _BETWEEN_LOOKS == 0 and not self._has_as_much_again():
                self.give_up()
        return self._since == math.inf

    def leave_some(self) -> None:
        """
        Raise ``MemoryError`` if there is little, and what was given up is nearly used up too.

        To be called before something is kept that can be done without: what was given up is for greenlets.
        """
        if self._since == math.inf:
            self._pieces += 1
            if self._pieces % _PIECES_BETWEEN_LOOKS == 0 and not self._has_as_much_again():
                self.give_up()
        if self._since < math.inf:
            bytes(_BALLAST // 2)

    def _has_as_much_again(self) -> bool:
        """Tell whether it is held, and could be so twice."""
        try:
            self.keep()
            bytes(_BALLAST)
        except MemoryError:
            self._held = None
            return False
        return True


BALLAST = Ballast()


def shortage(what: str, exc: OSError, kind: str = "") -> LimitError:
    """
    Make the error that says that we are short of something, and tell the operator how to help that.

    Of one ``kind`` it is told once, whatever it hits. Not for native threads.
    """
    reason = reason_of(exc)
    log.warning("%s: %s: %s", what, reason, _cure(exc.errno), extra={"collapse": (reason, kind or what)})
    return LimitError(f"{what}: {reason}")


def untold_shortage(what: str, exc: OSError) -> LimitError:
    """Make the same error, with the cure in it, for whoever is going to tell it."""
    return LimitError(f"{what}: {reason_of(exc)}: {_cure(exc.errno)}")


def _cure(number: int | None) -> str:
    if number == errno.EMFILE:
        soft, _ = limit_of(resource.RLIMIT_NOFILE)
        present = "" if soft == resource.RLIM_INFINITY else f" of {soft} descriptors"
        return f"raise the limit{present} (ulimit -n, LimitNOFILE), or lower max_connections"
    if number == errno.ENFILE:
        return "raise the limit of the whole machine (fs.file-max)"
    if number in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
        return "all local ports to this address are in use: widen net.ipv4.ip_local_port_range"
    return "this machine is short of memory"


class _Reserve:
    """Descriptors that are there to be closed when no other one is to be had."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self._wanted = 0

    @property
    def is_short(self) -> bool:
        """True if some of it has been spent."""
        return len(self._held) < self._wanted

    def keep(self, count: int) -> None:
        """Keep so many from now on, as far as there are any."""
        self._wanted = count
        self.fill()

    def fill(self) -> None:
        """Take back what was spent, as far as there is any."""
        with suppress(OSError):
            while self.is_short:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def spend(self, *, leave: int = 0) -> bool:
        """Free one descriptor, but leave some; False if there is none to free."""
        if len(self._held) <= leave:
            return False
        _close(self._held.pop())
        return True


RESERVE = _Reserve()


def from_reserve(act: Callable[[], T], *, leave: int = 0) -> T:
    """Do what needs a descriptor, with one of the reserve if there is no other; raises ``OSError``."""
    while True:
        try:
            return act()
        except OSError as exc:
            if exc.errno not in (errno.EMFILE, errno.ENFILE) or not RESERVE.spend(leave=leave):
                raise


def check_descriptors(what: str) -> None:
    """Raise ``LimitError`` if no descriptor is to be had, for what fails then with another error."""
    try:
        _close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as exc:
        if is_shortage(exc):
            raise shortage(what, exc) from exc


def check_memory(what: str) -> None:
    """Raise ``LimitError`` if hardly any memory is to be had, for what fails then with another error."""
    try:
        bytes(_SOME)
    except MemoryError as exc:
        BALLAST.give_up()
        raise LimitError(f"{what}: no memory") from exc
