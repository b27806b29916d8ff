"""
Open the addresses of a listener: those that are there now, and the others when they come.

An interface that is not up yet, an address that DHCP brings, a name server that does not answer at boot:
none of these is a mistake, and each passes. So an ``Opening`` remembers what it could not open yet, and
``Latecomers`` tries that again.
"""

import errno
import logging
import os
import socket as std_socket
from _thread import LockType
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import gevent
from gevent import socket
from gevent.monkey import get_original

from proxy.address import AnyPlace, Endpoint, Place, UnixAddress
from proxy.errors import LimitError, ProxyError, failure_of, reason_of
from proxy.listening.unixsocket import UnixSocket
from proxy.net.limits import from_reserve
from proxy.net.sock import name_of_interface, set_options, sockaddr_of, zone_of
from proxy.net.threads import NativeThreads, start_thread

log = logging.getLogger(__name__)

BACKLOG = 1024  # connections: a burst of clients waits here while we accept
RETRY = 1.0  # seconds until what is not there is looked for again
PATIENCE = 2.0  # seconds for which one name's lookup may hold up the start of everything else

# The address, its family or its interface is not there.
_NOT_THERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENODEV}

_getaddrinfo = get_original("socket", "getaddrinfo")
_allocate_lock: Callable[[], LockType] = get_original("_thread", "allocate_lock")
_threads = NativeThreads(8)


class Opening:
    """
    An endpoint, as far as it could be opened.

    An empty host is every address, IPv4 and IPv6; a name is every address of it.
    """

    def __init__(self, endpoint: Endpoint, mode: int = 0) -> None:
        """Take what is to be the mode of a Unix socket's file."""
        self.endpoint = endpoint
        self._mode = mode
        self.problem = ""  # why something is missing, in the system's words
        self._port = endpoint.port  # and the same for all, where the kernel chooses it
        self._places: Sequence[AnyPlace] | None = None  # unless they are still to be looked up
        self._opened: list[AnyPlace] = []

    @property
    def missing(self) -> list[str]:
        """The addresses that could not be opened yet; or the name, while it could not be looked up."""
        if self._places is None:
            return [str(self.endpoint)]
        return [str(place) for place in self._places if place not in self._opened]

    def look_up(self, within: float | None = None) -> Sequence[AnyPlace]:
        """
        Find out which addresses it has, in a thread where that may take its time.

        There are none as long as no name server answers, or none in so many seconds; raises ``ProxyError``
        if there is no such name.
        """
        if isinstance(self.endpoint.place, UnixAddress):
            self._places = [self.endpoint.place]
        elif self._places is None and (self.endpoint.place or not self.endpoint.host):
            self._places = find(self.endpoint)
        elif self._places is None:
            with _threads.job(lambda: find(self.endpoint), key=self.endpoint) as lookup:
                lookup.outcome.wait(within)
                if not lookup.outcome.ready():
                    self.problem = "the name lookup takes its time"
                    return []
                try:
                    self._places = lookup.get()
                except std_socket.gaierror as exc:
                    if exc.errno != std_socket.EAI_AGAIN:
                        raise self._error(exc) from exc
                    self.problem = reason_of(exc)
        return self._places or []

    def open(self, at_hand: Mapping[AnyPlace, socket.socket] | None = None) -> list[socket.socket]:
        """
        Open what is there by now, after ``look_up``, and has not been opened; return it.

        Sockets ``at_hand`` that listen in the right place already are copied. Raises ``ProxyError`` that
        names the address and the cause for what is not merely missing, and then nothing was opened.
        """
        opened: dict[AnyPlace, socket.socket] = {}
        try:
            for place in self._places or []:
                if place not in self._opened:
                    self._open_place(place, opened, at_hand or {})
        except BaseException as exc:
            for sock in opened.values():
                sock.close()
            if isinstance(exc, OSError):
                raise self._error(exc) from exc
            raise
        self._opened += opened
        return list(opened.values())

    def lose(self, place: AnyPlace, exc: OSError) -> None:
        """Take an address for missing that had been opened."""
        self._opened = [each for each in self._opened if each != place]
        self.problem = reason_of(exc)

    def _open_place(
        self,
        place: AnyPlace,
        opened: dict[AnyPlace, socket.socket],
        at_hand: Mapping[AnyPlace, socket.socket],
    ) -> None:
        try:
            if place in at_hand:
                sock = _copy(at_hand[place])
            elif isinstance(place, UnixAddress):
                sock = _bind_unix(place.path, self._mode)
            else:
                sock = _bind(place, self._port)
            opened[place] = sock
            listen_on(sock)
            if isinstance(place, Place):
                self._port = sock.getsockname()[1]
        except OSError as exc:
            if exc.errno not in _NOT_THERE:
                raise
            self.problem = reason_of(exc)

    def _error(self, exc: OSError) -> ProxyError:
        self.problem = reason_of(exc)
        return ProxyError(f"cannot listen on {self.endpoint}: {reason_of(exc)}", failure_of(exc))


def find(endpoint: Endpoint) -> list[Place]:
    """
    Tell which addresses an endpoint has.

    For a name this asks the system, which may block, and raises ``OSError``.
    """
    if not endpoint.host:
        return [_every_address(endpoint.port)]
    if isinstance(place := endpoint.place, Place):
        # By the name of its interface, as ``place_of`` has it.
        is_number = place.zone.isdecimal()
        return [replace(place, zone=name_of_interface(int(place.zone))) if is_number else place]
    how = (0, std_socket.SOCK_STREAM, 0, std_socket.AI_PASSIVE)
    found = _getaddrinfo(endpoint.host, endpoint.port, *how)
    return list(dict.fromkeys(_place(info[4]) for info in found))


def find_within(seconds: float, endpoint: Endpoint) -> list[Place]:
    """Do the same in so many seconds, in any thread; what is not known by then is left out."""
    if endpoint.place or not endpoint.host:
        return find(endpoint)
    found: list[Place] = []
    done = _allocate_lock()
    done.acquire()

    def look_up() -> None:
        with suppress(OSError):
            found.extend(find(endpoint))
        done.release()

    with suppress(LimitError):  # there are no more threads
        start_thread(look_up)
    return found if done.acquire(timeout=seconds) else []


def bind(endpoint: Endpoint, mode: int = 0) -> list[socket.socket]:
    """
    Open the listening sockets of an endpoint; what is missing of a name is told in the log.

    Raises ``ProxyError`` that names the address and the cause, also if nothing of it is there.
    """
    opening = Opening(endpoint, mode)
    opening.look_up()
    socks = opening.open()
    if not socks:
        raise ProxyError(f"cannot listen on {endpoint}: {opening.problem}")
    for place in opening.missing:
        log.warning("nothing listens on %s: %s", place, opening.problem)
    return socks


def place_of(sock: socket.socket) -> AnyPlace:
    """Tell where a socket listens."""
    name = sock.getsockname()
    if sock.family == std_socket.AF_UNIX:
        return UnixAddress(name)
    is_everywhere = sock.family == std_socket.AF_INET6 and name[0] == "::"
    return _place(name, both_families=is_everywhere and not _is_ipv6_only(sock))


def _place(sockaddr: tuple[Any, ...], *, both_families: bool = False) -> Place:
    return Place(sockaddr[0].partition("%")[0], sockaddr[1], zone_of(sockaddr), both_families)


def _is_ipv6_only(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(std_socket.IPPROTO_IPV6, std_socket.IPV6_V6ONLY))


def _every_address(port: int) -> Place:
    """Have one socket for both families, where the system has both."""
    try:
        # From the reserve, as what has no descriptor would look like a system that has no IPv6.
        from_reserve(lambda: std_socket.socket(std_socket.AF_INET6, std_socket.SOCK_STREAM)).close()
        return Place("::", port, both_families=True)
    except OSError:
        return Place("0.0.0.0", port)


def _bind(place: Place, port: int) -> socket.socket:
    family = std_socket.AF_INET6 if place.is_ipv6 else std_socket.AF_INET
    sock = socket.socket(family, std_socket.SOCK_STREAM)
    try:
        sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 1)
        if place.is_ipv6:
            sock.setsockopt(std_socket.IPPROTO_IPV6, std_socket.IPV6_V6ONLY, not place.both_families)
        sock.bind(sockaddr_of(place.ip, port))
        return sock
    except BaseException:
        sock.close()
        raise


def _bind_unix(path: str, mode: int) -> socket.socket:
    sock = UnixSocket()
    try:
        sock.listen_at(path, mode, BACKLOG)
        return sock
    except BaseException:
        sock.close()
        raise


def _copy(sock: socket.socket) -> socket.socket:
    return sock.copy() if isinstance(sock, UnixSocket) else socket.socket(fileno=os.dup(sock.fileno()))


def listen_on(sock: socket.socket) -> None:
    """Have the kernel take connections on a socket that has its address; raises ``OSError``."""
    # So that it can make room for another one (``Acceptor.pause``), if it was not us who opened it.
    sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 1)
    set_options(sock)  # accepted sockets inherit them, which saves the system calls on every connection
    sock.listen(BACKLOG)


def close_to_clients(sock: socket.socket) -> None:
    """
    Have the kernel refuse clients, whoever else has the socket too; ``listen_on`` opens it again.

    The address stays the socket's, but is not in the way of another one any more. A Unix socket is left as it
    is, as Linux would refuse its clients for ever.
    """
    if sock.family == std_socket.AF_UNIX:
        return
    with suppress(OSError):  # elsewhere than on Linux, where no address is in another one's way
        sock.shutdown(std_socket.SHUT_RDWR)


class Latecomers:
    """Openings of which something is still missing; as soon as that is there, it is opened and handed on."""

    def __init__(self) -> None:
        self._expected: dict[Opening, Callable[[list[socket.socket]], None]] = {}

    def expect(self, opening: Opening, use: Callable[[list[socket.socket]], None]) -> None:
        """Try what is missing again until nothing is."""
        if opening not in self._expected:
            gevent.spawn(self._run, opening)  # for each, as the lookup of one may hang
        self._expected[opening] = use

    def forget(self, opening: Opening) -> None:
        """Try it no more."""
        self._expected.pop(opening, None)

    def stop(self) -> None:
        """Try nothing more."""
        self._expected.clear()

    def _run(self, opening: Opening) -> None:
        while opening in self._expected:
            gevent.sleep(RETRY)
            if opening in self._expected:
                self._try(opening)

    def _try(self, opening: Opening) -> None:
        problem = opening.problem
        try:
            opening.look_up()
            socks = opening.open()
        except ProxyError:
            socks = []
        use = self._expected.get(opening)
        if not use:  # while its name was looked up
            for sock in socks:
                sock.close()
            return
        if not opening.missing:
            self.forget(opening)
        elif opening.problem != problem:
            log.warning("still waiting for %s: %s", ", ".join(opening.missing), opening.problem)
        if socks:
            use(socks)
