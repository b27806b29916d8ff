"""
Accept on listening sockets, and hand each connection to a greenlet of a bounded pool.
"""

import errno
import logging
import socket as std_socket
from collections.abc import Callable
from typing import Any, cast

from gevent import socket
from gevent.server import StreamServer

from proxy.address import UNIX, Address, Place
from proxy.errors import is_shortage, reason_of
from proxy.listening import ours
from proxy.listening.opening import close_to_clients, listen_on, place_of
from proxy.listening.pool import Job, Pool
from proxy.listening.unixsocket import UnixSocket
from proxy.net.limits import BALLAST, FOR_FILES, RESERVE, from_reserve, shortage
from proxy.net.sock import LoopSocket, address_of

log = logging.getLogger(__name__)

Handler = Callable[[LoopSocket, Address], Job]
PassesOver = Callable[[Address], bool]

_PAUSE = 0.1  # seconds without accepting, when there is no room for another client

# Errors of a client that left while it waited; on Linux, its network's errors come by accept too (accept(2)).
_ALREADY_GONE = {
    *(errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO, errno.ENOPROTOOPT, errno.EPERM),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EOPNOTSUPP),
    *(errno.ETIMEDOUT, getattr(errno, "ENONET", errno.EPROTO)),
}


class SocketServer(StreamServer):
    """Accepts on one listening socket."""

    def __init__(self, sock: socket.socket, handle: Any, spawn: Any = None) -> None:
        super().__init__(sock, handle, spawn=spawn)
        self.given = sock  # gevent works with the bare socket inside it
        place = place_of(sock)
        self._place = place if isinstance(place, Place) else None  # a Unix socket is nobody's target
        if self._place:
            ours.add(self._place)

    def close(self) -> None:
        """Close the listening socket."""
        self.stop_accepting()
        self.given.close()  # before the bare one: a Unix socket's file has its inode as long as that is open
        super().close()
        if self._place:
            ours.remove(self._place)
            self._place = None

    def do_read(self) -> Any:
        """Accept a client, if one is there."""
        listening: Any = self.socket
        if RESERVE.is_short:
            RESERVE.fill()
        if not self.has_memory():
            self.rest()
            return None
        try:
            fileno, peer = listening._accept()
        except BlockingIOError:
            return None
        except OSError as exc:
            accepted = self._accept_after(exc)
            if not accepted:
                return None
            fileno, peer = accepted
        return LoopSocket(listening.family, std_socket.SOCK_STREAM, 0, fileno), peer

    def has_memory(self) -> bool:
        """Tell whether there is memory to serve one."""
        return BALLAST.allows_another()

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
            self.rest()
            return None

    def rest(self, seconds: float = _PAUSE) -> None:
        """Accept nobody for so long."""
        # Nothing says when there is room again: until then the socket would be readable all the time.
        self.stop_accepting()
        self._timer: Any = self.loop.timer(seconds)
        self._timer.start(self._go_on, update=True)

    def _go_on(self) -> None:
        if self.started:
            self.start_accepting()


class Acceptor(SocketServer):
    """
    Accepts clients for a handler.

    When the pool is full nothing is accepted, and clients wait in the kernel's queue.
    """

    def __init__(
        self,
        sock: socket.socket,
        handler: Handler,
        pool: Pool,
        passes_over: PassesOver = lambda client: False,
    ) -> None:
        """Take what tells of a client that is to be closed at once, as that is cheaper than to serve it."""
        super().__init__(sock, cast(Any, handler))
        self._handler = handler
        self._pool = pool
        self._passes_over = passes_over

    def full(self) -> bool:
        """Tell whether nobody else can be served now, and go on when that is over."""
        is_full = self._pool.is_full
        if is_full:
            self._pool.when_free(self._go_on)
        return is_full

    def do_handle(self, client: Any, peer: Any) -> None:
        """Have a client served, by a handler that closes its socket."""
        # Whoever comes to a Unix socket may have given a name to its own end, but that says nothing.
        who = address_of(peer) if isinstance(peer, tuple) else UNIX
        if self._passes_over(who):
            client.close()
        else:
            self._pool.start(self._handler(client, who))

    def set_mode(self, mode: int) -> None:
        """Change who may connect to a Unix socket, unless the service manager made it."""
        if isinstance(self.given, UnixSocket):
            try:
                self.given.set_mode(mode)
            except OSError as exc:
                log.error("the mode of %s stays as it was: %s", place_of(self.socket), reason_of(exc))

    def keep_file(self) -> None:
        """Leave a Unix socket's file at the end: somebody keeps the socket for the next start."""
        if isinstance(self.given, UnixSocket):
            self.given.keep_file()

    def pause(self) -> None:
        """
        Have the kernel refuse clients until ``resume``, while the address stays ours.

        So another address can be opened that this one is in the way of; and if that fails, nobody can
        have taken this one, nor does it need the rights any more that a port below 1024 takes.
        """
        self.take_waiting()
        close_to_clients(self.socket)

    def resume(self) -> None:
        """Accept again; raises ``OSError``, and then it is closed."""
        try:
            listen_on(self.socket)
        except OSError:
            self.close()
            raise
        self.start_accepting()

    def finish(self) -> None:
        """Stop accepting, after taking what already waits in the kernel's queue."""
        if isinstance(self.given, UnixSocket):
            self.given.leave_file()
        self.take_waiting()
        self.close()

    def take_waiting(self) -> None:
        """Accept nobody any more, but those who wait in the kernel's queue, as far as there is room."""
        # Those clients are connected as far as they can tell: closing would reset them.
        self.stop_accepting()
        while not self._pool.is_full:
            try:
                waiting = self.do_read()
            except OSError:
                break
            if waiting is None:
                break
            self.do_handle(*waiting)


MakeAcceptor = Callable[[socket.socket, Handler, Pool, PassesOver], Acceptor]
