"""
Listen on an address, and hand each connection to a greenlet of a bounded pool.
"""

import errno
import logging
import os
import socket as std_socket
from collections.abc import Iterable
from typing import Any, cast

from gevent import socket
from gevent.server import StreamServer

from proxy.address import Endpoint
from proxy.errors import ProxyError, failure_of, is_shortage, reason_of
from proxy.net.limits import FOR_FILES, RESERVE, from_reserve, shortage
from proxy.net.places import Handler, Places
from proxy.net.sock import Sock
from proxy.net.stream import address_of

log = logging.getLogger(__name__)

BACKLOG = 1024  # connections: a burst of clients waits here while we accept
_PAUSE = 0.1  # seconds without accepting, when there is no room for another client

# Errors of a client that left while it waited; on Linux, its network's errors come by accept too (accept(2)).
_ALREADY_GONE = {
    *(errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO, errno.ENOPROTOOPT, errno.EPERM),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EOPNOTSUPP),
    *(errno.ETIMEDOUT, getattr(errno, "ENONET", errno.EPROTO)),
}


def bind(endpoint: Endpoint, inherited: Iterable[socket.socket] = ()) -> list[socket.socket]:
    """
    Open the listening sockets of an endpoint.

    An empty host is every address, IPv4 and IPv6; a name is every address of it. A socket that is
    inherited and listens there already is taken. Raises ``ProxyError`` that names the address and
    the cause.
    """
    listening: dict[tuple[int, Any], socket.socket] = {
        (sock.family, sock.getsockname()[:2]): sock for sock in inherited
    }
    socks: list[socket.socket] = []
    try:
        for family, sockaddr in _places(endpoint):
            port = socks[0].getsockname()[1] if socks else sockaddr[1]
            sock = listening.get((family, (sockaddr[0], port)))
            socks.append(_prepare(sock) if sock else _bind_one(family, (sockaddr[0], port, *sockaddr[2:])))
    except OSError as exc:
        for sock in socks:
            sock.close()
        raise ProxyError(f"cannot listen on {endpoint}: {reason_of(exc)}", failure_of(exc)) from exc
    return socks


def _places(endpoint: Endpoint) -> list[tuple[int, Any]]:
    if not endpoint.host:
        # One socket for both families, where the system has both.
        return [_every_address(endpoint.port)]
    flags = std_socket.AI_PASSIVE
    found = std_socket.getaddrinfo(endpoint.host, endpoint.port, 0, std_socket.SOCK_STREAM, 0, flags)
    return list(dict.fromkeys((info[0], info[4]) for info in found))


def _every_address(port: int) -> tuple[int, Any]:
    try:
        std_socket.socket(std_socket.AF_INET6, std_socket.SOCK_STREAM).close()
        return std_socket.AF_INET6, ("::", port, 0, 0)
    except OSError:
        return std_socket.AF_INET, ("0.0.0.0", port)


def _bind_one(family: int, sockaddr: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, std_socket.SOCK_STREAM)
    try:
        sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 1)
        if family == std_socket.AF_INET6:
            both = sockaddr[0] == "::"
            sock.setsockopt(std_socket.IPPROTO_IPV6, std_socket.IPV6_V6ONLY, not both)
        sock.bind(sockaddr)
        return _prepare(sock)
    except BaseException:
        sock.close()
        raise


def _prepare(sock: socket.socket) -> socket.socket:
    # Accepted sockets inherit these two, which saves their system calls on every connection.
    sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE, 1)
    sock.setsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY, 1)
    sock.listen(BACKLOG)
    return sock


class SocketServer(StreamServer):
    """Accepts on one listening socket while its pool has places."""

    def do_read(self) -> Any:
        """Accept a client, if one is there."""
        listening: Any = self.socket
        if RESERVE.is_short:
            RESERVE.fill()
        try:
            fileno, peer = listening._accept()
        except BlockingIOError:
            return None
        except OSError as exc:
            accepted = self._accept_after(exc)
            if not accepted:
                return None
            fileno, peer = accepted
        return Sock(listening.family, std_socket.SOCK_STREAM, 0, fileno), peer

    def _accept_after(self, exc: OSError) -> Any:
        """Accept what could not be accepted, if that is to be; raises what is a bug."""
        if exc.errno in _ALREADY_GONE:
            return None
        if not is_shortage(exc):
            raise exc
        where = address_of(self.address) if isinstance(self.address, tuple) else self.address
        shortage(f"cannot accept on {where}", exc)
        listening: Any = self.socket
        try:
            return from_reserve(listening._accept, leave=FOR_FILES)
        except BlockingIOError:
            return None
        except OSError:
            # Nothing says when there is room again: until then the socket would be readable all the time.
            self.stop_accepting()
            self._timer: Any = self.loop.timer(_PAUSE)
            self._timer.start(self._go_on)
            return None

    def _go_on(self) -> None:
        if self.started:
            self.start_accepting()


class Acceptor(SocketServer):
    """
    Accepts clients for a handler.

    When the pool is full nothing is accepted, and clients wait in the kernel's queue.
    """

    def __init__(self, sock: socket.socket, handler: Handler, places: Places) -> None:
        super().__init__(sock, cast(Any, handler), spawn=places)
        self._handler = handler
        self._places = places

    def do_handle(self, client: Any, peer: Any) -> None:
        """Have a client served."""
        self._places.serve(self._handler, client, address_of(peer))

    def copy_socket(self) -> socket.socket:
        """Copy the socket: those who wait in its queue are not lost when this one closes."""
        return socket.socket(fileno=os.dup(self.socket.fileno()))

    def finish(self) -> None:
        """
        Stop accepting, after taking what already waits in the kernel's queue.

        Those clients are connected as far as they can tell: closing would reset them.
        """
        self.stop_accepting()
        while not self._places.full():
            try:
                waiting = self.do_read()
            except OSError:
                break
            if waiting is None:
                break
            self.do_handle(*waiting)
        self.close()
