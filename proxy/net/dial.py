"""
Connect to a host by name or address: Happy Eyeballs (RFC 8305), inside one deadline.

All addresses of a name are raced: IPv6 and IPv4 in turn, each next one starts when the one before failed
or did not answer within 250 ms, and the first to connect wins. Addresses that are found while the race is
on join it.

What may never be violated:

- Every address is judged (``check``) before anything is sent to it.
- Every socket that was opened is given to the caller or closed, whatever ends the race.
- Our own shortage is told as that (``LimitError``), and never as the target's fault.
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
from proxy.errors import DialError, LimitError, ProxyError, failure_of, is_shortage, reason_of
from proxy.net.deadline import Deadline, wait
from proxy.net.limits import shortage
from proxy.net.lookup import Found, look_up, look_up_all
from proxy.net.sock import LoopSocket, set_options, sockaddr_of

Check = Callable[[IPAddress], None]

ATTEMPT_DELAY = 0.25  # seconds: RFC 8305, section 5
MOST_ADDRESSES = 16  # of a name: whoever has a name server could make us try thousands for one request


def dial(address: Address, deadline: Deadline, check: Check = lambda ip: None) -> LoopSocket:
    """
    Connect to an address.

    ``check`` judges each IP address before it is used, and raises ``DialError`` to refuse it.
    Raises ``DialError``: for several addresses, with the first one's failure. Raises ``LimitError`` if
    one of them could not be tried, for want of something of ours.
    """
    if address.ip:
        check(address.ip)
        return _connect(address.ip, address, deadline)
    return _Race(address, deadline, check).run()


def interleave(ips: Iterable[IPAddress]) -> list[IPAddress]:
    """Let the families take turns, the first address's family first (RFC 8305, section 4)."""
    ips = list(ips)
    preferred = [ip for ip in ips if ip.version == ips[0].version]
    others = [ip for ip in ips if ip.version != ips[0].version]
    return [ip for pair in zip_longest(preferred, others) for ip in pair if ip is not None]


def _connect(ip: IPAddress, address: Address, deadline: Deadline) -> LoopSocket:
    family = std_socket.AF_INET if ip.version == 4 else std_socket.AF_INET6
    sock = sockaddr = None
    try:
        sockaddr = sockaddr_of(ip, address.port)
        sock = LoopSocket(family, std_socket.SOCK_STREAM)
        set_options(sock)
        _await_connection(sock, sockaddr, deadline)
        return sock
    except OSError as exc:
        if sock:
            sock.close()
        where = str(address) if ip == address.ip else f"{address} ({ip})"
        if is_shortage(exc) or _ports_are_used_up(exc, family, sockaddr):
            raise shortage(where, exc, "dial") from exc
        needs_interface = ip.version == 6 and ip.is_link_local and exc.errno == errno.EINVAL
        reason = "a link-local address needs its interface" if needs_interface else reason_of(exc)
        raise DialError(f"{where}: {reason}", failure_of(exc)) from exc
    except BaseException:
        if sock:
            sock.close()
        raise


def _ports_are_used_up(exc: OSError, family: int, sockaddr: tuple[Any, ...] | None) -> bool:
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
        return probe.connect_ex(sockaddr) == 0
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

    def __init__(self, address: Address, deadline: Deadline, check: Check) -> None:
        self._address = address
        self._deadline = deadline
        self._check = check
        self._known: set[IPAddress] = set()
        self._waiting: list[IPAddress] = []
        self._errors: list[ProxyError] = []
        self._refusals: list[DialError] = []
        self._runners: list[gevent.Greenlet[..., None]] = []
        self._attempts = 0  # how many are under way
        self._events: Queue[LoopSocket | ProxyError | Found] = Queue()
        self._is_over = False

    def run(self) -> LoopSocket:
        """Return the winner's socket; raises the first ``DialError`` when all have lost."""
        found = look_up(self._address.host, self._deadline)
        self._add(found.ips)
        if found.is_all and len(self._waiting) == 1:
            return _connect(self._waiting[0], self._address, self._deadline)
        try:
            if not found.is_all:
                self._runners.append(gevent.spawn(self._find_the_others))
            return self._run(found.is_all)
        finally:
            self._call_off()

    def _add(self, ips: list[IPAddress]) -> None:
        for ip in interleave(ip for ip in ips if ip not in self._known)[:MOST_ADDRESSES]:
            self._known.add(ip)
            try:
                self._check(ip)
                self._waiting.append(ip)
            except DialError as exc:
                self._refusals.append(exc)

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
        return (shortages or self._errors or self._refusals[-1:])[0]

    def _attempt(self, ip: IPAddress) -> None:
        try:
            sock = _connect(ip, self._address, self._deadline)
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
