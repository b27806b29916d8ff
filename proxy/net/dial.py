"""
Connect to a host by name or address: Happy Eyeballs (RFC 8305), inside one deadline.

All addresses of a name are raced: IPv6 and IPv4 in turn, each next one starts when the one before
failed or did not answer within 250 ms, and the first to connect wins. A name that is an address
takes none of this machinery: one socket, one connect, no thread.

We ask the C library for both families at once instead of racing two DNS queries (RFC 8305,
section 3): it alone knows the hosts file, mDNS and the search list of this machine.
No cache: knowing when the network has changed is harder than one more lookup.
"""

import errno
import os
import socket as std_socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import zip_longest

import gevent
from gevent.event import AsyncResult
from gevent.monkey import get_original
from gevent.queue import Empty, Queue

from proxy.address import Address
from proxy.errors import DialError, Failure, LimitError, ProxyError, failure_of, is_shortage, reason_of
from proxy.net.deadline import Deadline, wait
from proxy.net.limits import shortage
from proxy.net.sock import Sock
from proxy.net.threads import Workers

IPAddress = IPv4Address | IPv6Address
Check = Callable[[IPAddress], None]

ATTEMPT_DELAY = 0.25  # seconds: RFC 8305, section 5
LOOKUP_THREADS = 128  # a slow name holds one for as long as the resolver tries: 10 s and more

_getaddrinfo = get_original("socket", "getaddrinfo")
_workers = Workers(LOOKUP_THREADS)
_lookups: "dict[str, AsyncResult[list[IPAddress]]]" = {}


def dial(address: Address, deadline: Deadline, check: Check = lambda ip: None) -> Sock:
    """
    Connect to an address.

    ``check`` judges each IP address before it is used, and raises ``DialError`` to refuse it.
    Raises ``DialError``: for several addresses, with the first one's failure. Raises ``LimitError`` if
    one of them could not be tried, for want of something of ours.
    """
    ip = address.ip
    candidates = [ip] if ip else interleave(resolve(address.host, deadline))
    allowed = _allowed(candidates, check)
    if len(allowed) == 1:
        return _connect(allowed[0], address, deadline)
    return _Race(allowed, address, deadline).run()


def _allowed(candidates: list[IPAddress], check: Check) -> list[IPAddress]:
    allowed, refusal = [], None
    for ip in candidates:
        try:
            check(ip)
            allowed.append(ip)
        except DialError as exc:
            refusal = exc
    if not allowed and refusal:
        raise refusal
    return allowed


def resolve(host: str, deadline: Deadline) -> list[IPAddress]:
    """
    Look a name up in a thread of its own; simultaneous lookups of one name share it.

    Raises ``DialError`` with ``NAME_NOT_FOUND`` or ``NAME_TIMED_OUT``, and ``LimitError``.
    """
    lookup = _lookups.get(host)
    if lookup is None:
        lookup = _lookups[host] = AsyncResult()
        # A greenlet of its own: whoever asked first may be gone before the others are served.
        gevent.spawn(_look_up, host, lookup)
    try:
        with deadline.limit("name lookup"):
            return lookup.get()  # type: ignore[return-value]
    except TimeoutError as exc:
        raise DialError(f"the lookup of {host} timed out", Failure.NAME_TIMED_OUT) from exc


def _look_up(host: str, lookup: "AsyncResult[list[IPAddress]]") -> None:
    try:
        lookup.set(_workers.run(lambda: _ask_system(host)))
    except Exception as exc:
        lookup.set_exception(exc)
    finally:
        del _lookups[host]


def _ask_system(host: str) -> list[IPAddress]:
    try:
        found = _getaddrinfo(host, None, 0, std_socket.SOCK_STREAM)
    except std_socket.gaierror as exc:
        # EAI_AGAIN: no server gave an answer. Anything else: the answer is that there is none.
        again = exc.errno == std_socket.EAI_AGAIN
        failure = Failure.NAME_TIMED_OUT if again else Failure.NAME_NOT_FOUND
        if exc.errno == std_socket.EAI_MEMORY:
            raise LimitError(f"{host} cannot be looked up: {reason_of(exc)}") from exc
        raise DialError(f"{host} does not resolve: {reason_of(exc)}", failure) from exc
    except (OSError, UnicodeError) as exc:
        if isinstance(exc, OSError) and is_shortage(exc):
            raise shortage(f"{host} cannot be looked up", exc) from exc
        raise DialError(f"{host} cannot be looked up: {reason_of(exc)}", Failure.NAME_TIMED_OUT) from exc
    return list(dict.fromkeys(ip_address(info[4][0].partition("%")[0]) for info in found))


def interleave(ips: Iterable[IPAddress]) -> list[IPAddress]:
    """Let the families take turns, the first address's family first (RFC 8305, section 4)."""
    ips = list(ips)
    preferred = [ip for ip in ips if ip.version == ips[0].version]
    others = [ip for ip in ips if ip.version != ips[0].version]
    return [ip for pair in zip_longest(preferred, others) for ip in pair if ip is not None]


def _connect(ip: IPAddress, address: Address, deadline: Deadline) -> Sock:
    family = std_socket.AF_INET if ip.version == 4 else std_socket.AF_INET6
    sock = None
    try:
        sock = Sock(family, std_socket.SOCK_STREAM)
        sock.setsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY, 1)
        sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE, 1)
        _await_connection(sock, (str(ip), address.port), deadline)
        return sock
    except OSError as exc:
        if sock:
            sock.close()
        where = str(address) if str(ip) == address.host else f"{address} ({ip})"
        if is_shortage(exc) or _ports_are_used_up(exc, family, (str(ip), address.port)):
            raise shortage(where, exc) from exc
        raise DialError(f"{where}: {reason_of(exc)}", failure_of(exc)) from exc
    except BaseException:
        if sock:
            sock.close()
        raise


def _ports_are_used_up(exc: OSError, family: int, sockaddr: tuple[str, int]) -> bool:
    """
    Tell whether all local ports to an address are in use.

    Where we have no address of its family the error is the same. Datagrams have ports of their own.
    """
    if exc.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
        return False
    try:
        probe = Sock(family, std_socket.SOCK_DGRAM)
    except OSError:
        return False
    try:
        return probe.connect_ex(sockaddr) == 0
    finally:
        probe.close()


def _await_connection(sock: Sock, sockaddr: tuple[str, int], deadline: Deadline) -> None:
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


@dataclass(frozen=True)
class _Outcome:
    sock: Sock | None = None
    error: ProxyError | None = None


class _Race:
    """Attempts at several addresses, of which the first to connect wins."""

    def __init__(self, ips: list[IPAddress], address: Address, deadline: Deadline) -> None:
        self._waiting = ips
        self._address = address
        self._deadline = deadline
        self._runners: list[gevent.Greenlet[..., None]] = []
        self._outcomes: Queue[_Outcome] = Queue()

    def run(self) -> Sock:
        """Return the winner's socket; raises the first ``DialError`` when all have lost."""
        errors: list[ProxyError] = []
        try:
            while len(errors) < len(self._runners) or self._waiting:
                if self._waiting:
                    self._runners.append(gevent.spawn(self._attempt, self._waiting.pop(0)))
                try:
                    outcome = self._outcomes.get(timeout=ATTEMPT_DELAY if self._waiting else None)
                except Empty:
                    continue
                if outcome.sock:
                    return outcome.sock
                if outcome.error:
                    errors.append(outcome.error)
            raise next((each for each in errors if isinstance(each, LimitError)), errors[0])
        finally:
            self._call_off()

    def _attempt(self, ip: IPAddress) -> None:
        try:
            self._outcomes.put(_Outcome(sock=_connect(ip, self._address, self._deadline)))
        except (DialError, LimitError) as exc:
            self._outcomes.put(_Outcome(error=exc))

    def _call_off(self) -> None:
        gevent.killall(self._runners)
        while not self._outcomes.empty():
            late = self._outcomes.get()
            if late.sock:
                late.sock.close()
