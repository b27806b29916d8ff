"""
A socket during its handshake: plain blocking reads through a small buffer.

What may never be violated:

- Bytes that come early belong to the relay: ``stream`` hands them over, with the socket, which the
  channel then closes no more.
- No read has a timeout. Whoever reads does so under a ``Deadline``.
- ``close`` gives the peer a moment to read what it was told; only ``abort`` does not.

The buffer is there because a handshake would otherwise cost a system call for each field.
"""

import select
import socket as std_socket
import sys
from contextlib import suppress
from time import monotonic
from typing import Any

import gevent
from gevent.monkey import get_original

from proxy.address import Address
from proxy.errors import ClientLeftError, ProtocolError
from proxy.net.deadline import next_turn, wait
from proxy.net.farewell import close_after_peer
from proxy.net.sock import take_over
from proxy.relaying.stream import TcpStream, TlsStream
from proxy.tls.tlssocket import TlsSocket

_READ_SIZE = 4096  # bytes: more than any handshake needs at once
# Each byte of a peer that sends one at a time costs as much as a whole request. So after some such pieces the
# next ones are left to gather for a moment.
_CRUMB = 64  # bytes
_CRUMBS = 32
_GATHER = 0.05  # seconds
_LOOK_AGAIN = 0.1  # seconds
_TCP_INFO = getattr(std_socket, "TCP_INFO", None) if sys.platform == "linux" else None
_UNACKED = slice(24, 28)  # tcpi_unacked, in segments (linux/tcp.h)
_poll = get_original("select", "poll")


class Channel:
    """A connected socket during its handshake."""

    __slots__ = ("_asked", "_crumbs", "_early", "_handed_over", "client", "heard", "sock", "waits_since")

    def __init__(self, sock: Any, client: Address | None = None) -> None:
        self.client = client
        self.sock = take_over(sock)
        self.heard = False  # the peer has sent something, or something of its request
        self.waits_since = 0.0  # for that, if something came before it
        self._early = b""  # what was received and not read yet
        self._crumbs = 0  # pieces that were smaller than ``_CRUMB``
        self._asked = False  # we sent last, so the answer has to be waited for
        self._handed_over = False

    @property
    def network(self) -> str:
        """Who is at the other end, as far as an address tells: threads are shared out by it."""
        return self.client.network if self.client else ""

    def await_request(self) -> None:
        """Take note that what comes before a request is done, and that nothing of it was heard yet."""
        self.heard = bool(self._early)
        self.waits_since = monotonic()

    def recv(self, count: int) -> bytes:
        """Receive up to ``count`` bytes; b"" at the end."""
        if not self._early:
            self._early = self._receive()
        data, self._early = self._early[:count], self._early[count:]
        return data

    def read_exact(self, count: int) -> bytes:
        """Receive exactly ``count`` bytes; raises ``EOFError`` if the peer ends before."""
        while len(self._early) < count:
            data = self._receive()
            if not data:
                raise EOFError("the peer closed the connection")
            self._early += data
        data, self._early = self._early[:count], self._early[count:]
        return data

    def _receive(self) -> bytes:
        if self._asked:
            self._asked = False
            self._wait()
        while True:
            try:
                data: bytes = self.sock.recv(_READ_SIZE)
                break
            except BlockingIOError:
                self._wait()
        self.heard = self.heard or bool(data)
        if 0 < len(data) < _CRUMB:
            self._crumbs += 1
            if self._crumbs > _CRUMBS:
                gevent.sleep(_GATHER)
        return data

    def _wait(self) -> None:
        if self.sock.pending:
            next_turn()
        else:
            wait(self.sock.reader)

    @property
    def has_early(self) -> bool:
        """True if something has come that was not read yet."""
        return bool(self._early) or self.sock.pending

    def take_early(self) -> bytes:
        """Give away what has come and was not read yet."""
        early, self._early = self._early, b""
        return early

    def push_back(self, data: bytes) -> None:
        """Put bytes back in front of what is still to be read."""
        self._early = data + self._early

    def send(self, data: bytes) -> int:
        """Send all of ``data``."""
        # The answer is hardly ever there at once: to wait for it costs less than to look first.
        self._asked = True
        self.sock.write(data)
        while self.sock.unsent:
            wait(self.sock.writer)
            self.sock.flush()
        return len(data)

    def stream(self) -> TcpStream:
        """Hand the socket over to a relay, with the bytes that came early."""
        self._handed_over = True
        make = TlsStream if isinstance(self.sock, TlsSocket) else TcpStream
        return make(self.sock, self._early)

    def close(self) -> None:
        """Close after a last word to the peer, which gets a moment to read it."""
        try:
            self.sock.shutdown(std_socket.SHUT_WR)
        except (OSError, ProtocolError):  # it is closed already, or the peer is gone
            self.sock.close()
        else:
            close_after_peer(self.sock)

    def hang_up(self) -> None:
        """Let whoever reads from it or watches it find that the peer has left."""
        with suppress(OSError):
            self.sock.shutdown(std_socket.SHUT_RDWR)

    def is_quiet(self) -> bool:
        """Tell if the peer is there and has said nothing; if not, the connection is only good for closing."""
        quiet: bool = not self._early and self.sock.is_quiet()
        return quiet

    @property
    def is_unheard(self) -> bool:
        """True if the peer's kernel has not acknowledged what we sent; False where that cannot be known."""
        if _TCP_INFO is None:
            return False
        try:
            info = self.sock.getsockopt(std_socket.IPPROTO_TCP, _TCP_INFO, _UNACKED.stop)
        except OSError:
            return False
        return any(info[_UNACKED])

    def leave(self) -> None:
        """Close a connection on which nothing was asked for, in good order but without a wait."""
        with suppress(OSError, ProtocolError):
            self.sock.shutdown(std_socket.SHUT_WR)
        self.sock.close()

    def abort(self) -> None:
        """Close at once; a socket that was handed over stays open."""
        if not self._handed_over:
            self.sock.close()

    def watched(self, grace: float) -> "_Watch":
        """
        Raise ``ClientLeftError`` in a block when the peer goes away.

        The socket is looked at every 0.1 s. A reset ends the block then, a FIN after ``grace`` seconds: in
        some protocols it can also come from a client that has said all it has to say.
        """
        return _Watch(self.sock, grace)


class _Watch:
    """Looks at a socket from time to time, while a block is busy with something else."""

    __slots__ = ("_left", "_patience", "_sock", "_timer", "_waiter")

    def __init__(self, sock: Any, patience: float) -> None:
        self._sock = sock
        self._patience = patience

    def __enter__(self) -> None:
        self._left = _Left()
        self._waiter = gevent.getcurrent()
        self._timer: Any = gevent.get_hub().loop.timer(_LOOK_AGAIN, _LOOK_AGAIN)
        self._timer.start(self._look, update=True)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._timer.close()
        if error is self._left:
            raise ClientLeftError("the client left") from None

    def _look(self) -> None:
        # Not gevent's poll, which knows nothing of RDHUP, and could not run in the hub.
        poll = _poll()
        poll.register(self._sock, getattr(select, "POLLRDHUP", 0))
        events = sum(flags for _, flags in poll.poll(0))
        if events:
            self._patience -= _LOOK_AGAIN
        if events & (select.POLLHUP | select.POLLERR) or (events and self._patience <= 0):
            self._timer.stop()
            self._waiter.throw(self._left)


class _Left(BaseException):
    """Not an Exception, so that no library between takes it for a failure of its own."""
