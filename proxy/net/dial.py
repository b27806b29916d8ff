"""
Connect to a host by name or address: Happy Eyeballs (RFC 8305), inside one deadline.

All addresses of a name are raced: IPv6 and IPv4 in turn, each next one starts when the one before failed
or did not answer within 250 ms, and the first to connect wins. Addresses that are found while the race is
on join it. An upstream may have a family tried first, or left out.

What may never be violated:

- Every address is judged (``check``) before anything is sent to it.
- Every socket that was opened is given to the caller or closed, whatever ends the race.
- Our own shortage is told as that (``LimitError``), and never as the target's fault; and so is it where this
  machine cannot do what an upstream's settings want (``EgressError``).
- A name that is an address takes none of this machinery: one socket, one connect, no thread.
"""

import errno
import os
import socket as std_socket
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any

import gevent
from gevent.queue import Empty, Queue

from proxy.address import Address, IPAddress
from proxy.errors import (
    DialError,
    EgressError,
    Failure,
    LimitError,
    ProxyError,
    failure_of,
    is_shortage,
    reason_of,
)
from proxy.net.deadline import Deadline, wait
from proxy.net.egress import leave_by
from proxy.net.limits import shortage
from proxy.net.lookup import Found, look_up, look_up_all
from proxy.net.sock import LoopSocket, set_options, sockaddr_of
from proxy.settings.egress import ANYHOW, Egress

Check = Callable[[IPAddress], None]

ATTEMPT_DELAY = 0.25  # seconds: RFC 8305, section 5
MOST_ADDRESSES = 16  # of a name: whoever has a name server could make us try thousands for one request


def dial(
    address: Address, deadline: Deadline, check: Check = lambda ip: None, egress: Egress = ANYHOW
) -> LoopSocket:
    """
    Connect to an address, leaving this machine as ``egress`` says.

    ``check`` judges each IP address before it is used, and raises ``DialError`` to refuse it.
    Raises ``DialError``: for several addresses, with the first one's failure. Raises ``LimitError`` if
    one of them could not be tried, for want of something of ours, and ``EgressError`` if this machine has
    not what ``egress`` wants.
    """
    if address.ip:
        check(address.ip)
        if why_not := egress.why_not(address.ip.version):
            raise DialError(f"{address}: {why_not}", Failure.NETWORK_UNREACHABLE)
        return _connect(address.ip, address, deadline, egress)
    return _Race(address, deadline, check, egress).run()


def interleave(ips: Iterable[IPAddress], preferred: int = 0) -> list[IPAddress]:
    """
    Let the families take turns (RFC 8305, section 4).

    The preferred IP version comes first, or, if that is 0, the first address's.
    """
    ips = list(ips)
    first = preferred or (ips[0].version if ips else 0)
    one, other = ([ip for ip in ips if (ip.version == first) is is_first] for is_first in (True, False))
    return [ip for pair in zip_longest(one, other) for ip in pair if ip is not None]


def _connect(ip: IPAddress, address: Address, deadline: Deadline, egress: Egress) -> LoopSocket:
    family = std_socket.AF_INET if ip.version == 4 else std_socket.AF_INET6
    sock = sockaddr = None
    try:
        sockaddr = sockaddr_of(ip, address.port)
        sock = LoopSocket(family, std_socket.SOCK_STREAM)
        set_options(sock)
        leave_by(sock, egress)
        _await_connection(sock, sockaddr, deadline)
        return sock
    except OSError as exc:
        if sock:
            sock.close()
        if isinstance(exc, EgressError):
            raise
        where = str(address) if ip == address.ip else f"{address} ({ip})"
        if is_shortage(exc) or _ports_are_used_up(exc, family, sockaddr, egress):
            raise shortage(where, exc, "dial") from exc
        raise DialError(
            f"{f'{where} {egress}'.strip()}: {_reason(exc, ip, egress)}", failure_of(exc)
        ) from exc
    except BaseException:
        if sock:
            sock.close()
        raise


def _reason(exc: OSError, ip: IPAddress, egress: Egress) -> str:
    if exc.errno == errno.EINVAL and ip.version == 6 and ip.is_link_local and not egress.interface:
        return "a link-local address needs its interface"
    if exc.errno == errno.EINVAL and egress.source:
        return "there is no way from there"  # as from the loopback to anywhere else
    return reason_of(exc)


def _ports_are_used_up(exc: OSError, family: int, sockaddr: tuple[Any, ...] | None, egress: Egress) -> bool:
    """
    Tell whether all local ports to an address are in use.

    The error is the same where we have no address of its family. Datagrams have ports of their own, so one
    that can be connected tells the two apart.
    """
    if sockaddr is None or exc.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
        return False
    try:
        probe = LoopSocket(family, std_socket.SOCK_DGRAM)
    except OSError:
        return False
    try:
        leave_by(probe, egress)
        return probe.connect_ex(sockaddr) == 0
    except OSError:
        return False
    finally:
        probe.close()


def _await_connection(sock: LoopSocket, sockaddr: tuple[Any, ...], deadline: Deadline) -> None:
    error = sock.connect_ex(sockaddr)
    if error == errno.EINPROGRESS:
        # A host on this machine has answered by now, and the second call says what.
        error = sock.connect_ex(sockaddr)
    if error == errno.EALREADY:
        with deadline.limit("connect"):
            wait(sock.writer)
        error = sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


class _Race:
    """
    Attempts at the addresses of a name, of which the first to connect wins.

    Each attempt runs in a greenlet, and so does the lookup that goes on beside them. What comes of one is an
    event:

        a socket       It has won, and the others are called off.
        an error       That attempt has lost: the next one begins at once.
        addresses      They wait behind those that are known, and no more will come.
        none in time   The next attempt begins (``ATTEMPT_DELAY``). If nothing is left to try: all have lost.
    """

    def __init__(self, address: Address, deadline: Deadline, check: Check, egress: Egress) -> None:
        self._address = address
        self._deadline = deadline
        self._check = check
        self._egress = egress
        self._known: set[IPAddress] = set()
        self._waiting: list[IPAddress] = []
        self._errors: list[ProxyError] = []
        self._refusals: list[DialError] = []
        self._left_out: list[DialError] = []  # one for a family that does not take part
        self._runners: list[gevent.Greenlet[..., None]] = []
        self._attempts = 0  # how many are under way
        self._events: Queue[LoopSocket | ProxyError | Found] = Queue()
        self._is_over = False

    def run(self) -> LoopSocket:
        """Return the winner's socket; raises the first ``DialError`` when all have lost."""
        # Where IPv4 is of no use, there is nothing to go on with before the answer for IPv6 is there.
        find = look_up_all if self._egress.why_not(4) else look_up
        found = find(self._address.host, self._deadline)
        self._add(found.ips)
        if found.is_all and len(self._waiting) == 1:
            return _connect(self._waiting[0], self._address, self._deadline, self._egress)
        try:
            if not found.is_all:
                self._runners.append(gevent.spawn(self._find_the_others))
            return self._run(found.is_all)
        finally:
            self._call_off()

    def _add(self, ips: list[IPAddress]) -> None:
        new = [ip for ip in ips if ip not in self._known and not self._is_left_out(ip)]
        for ip in interleave(new, self._egress.preferred)[:MOST_ADDRESSES]:
            self._known.add(ip)
            try:
                self._check(ip)
                self._waiting.append(ip)
            except DialError as exc:
                self._refusals.append(exc)

    def _is_left_out(self, ip: IPAddress) -> bool:
        why_not = self._egress.why_not(ip.version)
        if why_not and not self._left_out:
            what = f"{self._address} has IPv{ip.version} addresses only, and {why_not}"
            self._left_out.append(DialError(what, Failure.NETWORK_UNREACHABLE))
        return bool(why_not)

    def _run(self, is_all: bool) -> LoopSocket:
        is_next_due = True
        while True:
            if self._waiting and is_next_due:
                self._attempts += 1
                self._runners.append(gevent.spawn(self._attempt, self._waiting.pop(0)))
            if is_all and not self._attempts:
                raise self._error()
            try:
                # With nothing under way, more addresses are waited for no longer than an attempt is.
                event = self._events.get(
                    timeout=ATTEMPT_DELAY if self._waiting or not self._attempts else None
                )
            except Empty:
                if not self._waiting:
                    raise self._error() from None
                is_next_due = True
                continue
            if isinstance(event, Found):
                self._add(event.ips)
                is_all = True
                is_next_due = not self._attempts
                continue
            if not isinstance(event, ProxyError):
                return event
            self._errors.append(event)
            self._attempts -= 1
            is_next_due = True

    def _error(self) -> ProxyError:
        """Choose what to tell when all have lost: a shortage of ours, or else the first failure."""
        shortages = [error for error in self._errors if isinstance(error, LimitError)]
        return (shortages or self._errors or self._refusals[:1] or self._left_out)[0]

    def _attempt(self, ip: IPAddress) -> None:
        try:
            sock = _connect(ip, self._address, self._deadline, self._egress)
        except (DialError, LimitError) as exc:
            self._events.put(exc)
            return
        if self._is_over:
            sock.close()
        else:
            self._events.put(sock)

    def _find_the_others(self) -> None:
        try:
            self._events.put(look_up_all(self._address.host, self._deadline))
        except (DialError, LimitError):
            self._events.put(Found([], is_all=True))

    def _call_off(self) -> None:
        # Nothing here blocks: a greenlet that is killed while it waited would leave sockets behind.
        self._is_over = True
        gevent.killall(self._runners, block=False)
        while not self._events.empty():
            late = self._events.get()
            if not isinstance(late, (ProxyError, Found)):
                late.close()
