"""
The addresses of a name, as the C library knows them, without waiting for more of them than is needed.

Only the C library knows the hosts file, mDNS and the search list of this machine. It is asked for both
families at once: then it puts their addresses in order (RFC 6724), and both are those of one host. But it
answers when it has both answers, and there are resolvers that never give the one for IPv6. So when it
takes longer or fails, it is asked for IPv4 alone, and once that answer has been there for a moment, one
goes on with it (RFC 8305, section 3). What comes later is not lost: see ``dial``.

What may never be violated:

- The event loop never waits for the C library, which can only be asked in native threads. They are
  bounded, and shared out by who asks, so those of one whose names hang leave some to the others.
- All addresses are those of one host, whichever question they answer.
- "There is no such name" is told only when the resolver said so, and not when it failed.
- Each who waited for a lookup gets an error of its own.

There is no cache: knowing when the network has changed is harder than one more lookup.
"""

import errno
import os
import socket as std_socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any

import gevent
from gevent.monkey import get_original

from proxy.address import IPAddress
from proxy.errors import DialError, Failure, is_shortage, reason_of
from proxy.net.deadline import Deadline
from proxy.net.limits import shortage
from proxy.net.threads import Job, NativeThreads

# A name that hangs holds one of each for as long as the resolver tries, which is 10 s and more. A thread
# takes up to 50 kB, and one who asks for many gets half of them, which is 8 MB.
_THREADS, _IPV4_THREADS = 320, 64
THREADS = _THREADS + _IPV4_THREADS

PATIENCE = 0.05  # seconds until IPv4 is asked for alone, which nearly all names are spared
RESOLUTION_DELAY = 0.05  # seconds: RFC 8305, section 3

_NO_SUCH_NAME = {
    std_socket.EAI_NONAME,
    getattr(std_socket, "EAI_NODATA", None),
    getattr(std_socket, "EAI_ADDRFAMILY", None),
}

_threads = NativeThreads(_THREADS)
_ipv4_threads = NativeThreads(_IPV4_THREADS)
_close = get_original("os", "close")  # gevent's is not for threads
_native_getaddrinfo: Callable[..., list[Any]] = get_original("socket", "getaddrinfo")


@dataclass(frozen=True)
class Found:
    """Addresses of a name, the preferred one first, and whether these are all of them."""

    ips: list[IPAddress]
    is_all: bool


def look_up(host: str, deadline: Deadline) -> Found:
    """
    Find addresses to begin with; simultaneous lookups of one name share it.

    Raises ``DialError`` with ``NAME_NOT_FOUND`` or ``NAME_TIMED_OUT``, and ``LimitError``.
    """
    with _lookup(host, deadline) as both:
        both.outcome.wait(PATIENCE)
        if _has_answer(both) or not both.is_begun:
            return Found(both.get(), is_all=True)
        # With a search list the two questions could end at different hosts, so this one is asked without it.
        # As the first one is still open, no file had the name. Without the list, one label is no name at all.
        complete = host if "." not in host or host.endswith(".") else f"{host}."
        ipv4_alone = partial(_ask_system, complete, std_socket.AF_INET)
        with _ipv4_threads.job(ipv4_alone, deadline.asker, host) as ipv4:
            gevent.wait((both.outcome, ipv4.outcome), count=1)
            if not _has_answer(both):
                ipv4.outcome.wait()
            if ipv4.succeeded:
                both.outcome.wait(RESOLUTION_DELAY)
                if not both.succeeded:
                    return Found(ipv4.get(), is_all=both.outcome.ready())
        return Found(both.get(), is_all=True)


def look_up_all(host: str, deadline: Deadline) -> Found:
    """Wait for all addresses; raises like ``look_up``."""
    with _lookup(host, deadline) as both:
        return Found(both.get(), is_all=True)


@contextmanager
def _lookup(host: str, deadline: Deadline) -> Iterator[Job[list[IPAddress]]]:
    ask_for_both = partial(_ask_system, host, std_socket.AF_UNSPEC)
    with _threads.job(ask_for_both, deadline.asker, host) as both:
        try:
            with deadline.limit("name lookup"):
                yield both
        except TimeoutError as exc:
            held_up = "" if both.is_begun else ", behind others that are slow"
            raise DialError(f"the lookup of {host} timed out{held_up}", Failure.NAME_TIMED_OUT) from exc
        except DialError as exc:
            # Everybody who waited has that same error, but what is noted on an error is about one connection.
            raise DialError(str(exc), exc.failure) from exc
        except OSError as exc:
            if is_shortage(exc):
                raise shortage(f"{host} cannot be looked up", exc, "lookup") from exc
            raise


def _has_answer(job: Job[list[IPAddress]]) -> bool:
    # Any other error is none: where only one of the two answers could be had, the C library may report that.
    no_such_name = getattr(job.error, "failure", None) is Failure.NAME_NOT_FOUND
    return job.succeeded or no_such_name


def _ask_system(host: str, family: int) -> list[IPAddress]:
    try:
        found = _getaddrinfo(host, family)
    except std_socket.gaierror as exc:
        if exc.errno == std_socket.EAI_MEMORY:
            raise OSError(errno.ENOMEM, reason_of(exc)) from exc
        # Without a descriptor for its files and its socket, the C library says that no server answered. So
        # look whether there is one: this raises the shortage if not.
        _close(os.open(os.devnull, os.O_RDONLY))
        # Only some of the errors are an answer. After the others the name may resolve in a moment.
        is_answer = exc.errno in _NO_SUCH_NAME
        failure = Failure.NAME_NOT_FOUND if is_answer else Failure.NAME_TIMED_OUT
        raise DialError(f"{host} does not resolve: {reason_of(exc)}", failure) from exc
    except OSError as exc:
        if is_shortage(exc):
            raise
        raise DialError(f"{host} cannot be looked up: {reason_of(exc)}", Failure.NAME_TIMED_OUT) from exc
    return list(dict.fromkeys(_ip_of(info[4]) for info in found))


def _ip_of(sockaddr: tuple[Any, ...]) -> IPAddress:
    # The fourth part is the zone of a link-local address (RFC 3493, section 3.3).
    host, zone = sockaddr[0].partition("%")[0], sockaddr[3] if len(sockaddr) == 4 else 0
    return ip_address(f"{host}%{zone}" if zone else host)


def _getaddrinfo(host: str, family: int) -> list[Any]:
    # In bytes, so that no codec is asked (``idna`` for a text).
    return _native_getaddrinfo(host.encode("ascii"), None, family, std_socket.SOCK_STREAM)
