"""
Sockets, from the first byte of a handshake to the last of a relay.

A ``Channel`` is a socket during its handshake: plain blocking reads through a small buffer, so that
a handshake costs few system calls and bytes that came early are kept. A ``Stream`` is one end of a
relay; ``TcpStream`` is what a channel becomes, with those early bytes in front.
"""

import os
import select
import socket as std_socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any, Protocol

import gevent
from gevent import socket
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original

from proxy.address import Address
from proxy.errors import ClientLeftError
from proxy.net.deadline import Deadline
from proxy.net.threads import Workers

Socket = socket.socket
Lock = BoundedSemaphore
spawn = gevent.spawn

BUFFER_SIZE = 64 * 1024
HEADROOM = 14  # the longest frame header of RFC 6455, section 5.2
_READ, _WRITE = 1, 2
_NO_LINGER = struct.pack("ii", 1, 0)
_LOOK_AGAIN = 0.1  # seconds
_poll = get_original("select", "poll")


class Ending(Enum):
    """How a relay ended."""

    FINISHED = "finished"  # both directions came to their end
    CUT = "cut"  # one leg broke, so the other is told that the rest is missing
    IDLE = "idle"
    STOPPED = "stopped"  # the server is going away
    EVICTED = "evicted"  # an operator, or a change of users, ended it


class Buffer:
    """
    A pooled piece of memory for one read or write.

    The payload begins at ``HEADROOM``, so that a stream which frames it can write the header in
    front, and send both at once without a copy.
    """

    __slots__ = ("data", "payload", "view")

    def __init__(self) -> None:
        self.data = bytearray(HEADROOM + BUFFER_SIZE)
        self.view = memoryview(self.data)
        self.payload = self.view[HEADROOM:]


class BufferPool:
    """Buffers in waiting; an idle connection holds none."""

    def __init__(self, keep: int = 64) -> None:
        self._free: list[Buffer] = []
        self._keep = keep

    @contextmanager
    def borrow(self) -> Iterator[Buffer]:
        """Lend a buffer for the block."""
        buffer = self._free.pop() if self._free else Buffer()
        try:
            yield buffer
        finally:
            if len(self._free) < self._keep:
                self._free.append(buffer)


class Stream(Protocol):
    """
    One end of a relay. Its errors are ``OSError`` and ``ProtocolError``.

    One greenlet reads and one writes; ``farewell`` and ``close`` come after both have ended.
    """

    @property
    def half_closes(self) -> bool:
        """True if ``end`` reaches the peer, and the peer can go on sending after it."""

    def wait_readable(self) -> None:
        """Block until ``recv_into`` may find something."""

    def recv_into(self, buffer: Buffer) -> int | None:
        """Put payload into the buffer and return its size; 0 is the end, None is nothing now."""

    def stay(self) -> None:
        """After the end of what the peer sends: go on answering it, until it is closed."""

    def sendall(self, buffer: Buffer, count: int) -> None:
        """Send ``count`` bytes of payload; the buffer's content is lost."""

    def end(self) -> None:
        """Tell the peer that no more bytes follow."""

    def tick(self, now: float) -> bool:
        """Do what is due at the time ``now``; False if the peer is dead."""

    def farewell(self, ending: Ending) -> None:
        """Tell the peer how it ended, without waiting for an answer."""

    def close(self) -> None:
        """Close, in the way that the farewell calls for."""


class Channel:
    """A connected socket during its handshake."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.early = b""

    def recv(self, count: int) -> bytes:
        """Receive up to ``count`` bytes; b"" at the end."""
        if not self.early:
            self.early = self.sock.recv(4096)
        data, self.early = self.early[:count], self.early[count:]
        return data

    def read_exact(self, count: int) -> bytes:
        """Receive exactly ``count`` bytes; raises ``EOFError`` if the peer ends before."""
        while len(self.early) < count:
            data = self.sock.recv(4096)
            if not data:
                raise EOFError("the peer closed the connection")
            self.early += data
        return self.recv(count) if count else b""

    def push_back(self, data: bytes) -> None:
        """Put bytes back in front of what is still to be read."""
        self.early = data + self.early

    def send(self, data: bytes) -> int:
        """Send all of ``data``."""
        self.sock.sendall(data)
        return len(data)

    def stream(self) -> "TcpStream":
        """Turn the socket over to a relay, with the bytes that came early."""
        return TcpStream(self.sock, self.early)

    def close(self) -> None:
        """
        Close after a last word to the peer.

        Linux resets a connection that is closed with unread bytes, and a reset can overtake what we
        just sent; so the peer gets a moment to read it.
        """
        with suppress(OSError), Deadline(1.0).limit("last word"):
            if not isinstance(self.sock, ssl.SSLSocket):
                self.sock.shutdown(std_socket.SHUT_WR)
            left = BUFFER_SIZE
            while left > 0 and (data := self.sock.recv(4096)):
                left -= len(data)
        self.sock.close()

    def abort(self) -> None:
        """Close at once."""
        self.sock.close()

    @contextmanager
    def watched(self, grace: float) -> Iterator[None]:
        """
        Raise ``ClientLeftError`` in the block when the peer goes away.

        A reset ends the block at once, a FIN after ``grace`` seconds: in some protocols it can also
        come from a client that has said all it has to say and waits for the answer.
        """
        left = _Left()
        poll = _poll()  # not gevent's, which knows nothing of RDHUP, and could not run in the hub
        poll.register(self.sock.fileno(), getattr(select, "POLLRDHUP", 0))
        waiter = gevent.getcurrent()
        patience = grace

        def look() -> None:
            nonlocal patience
            events = sum(flags for _, flags in poll.poll(0))
            gone = events & (select.POLLHUP | select.POLLERR)
            if events:
                patience -= _LOOK_AGAIN
            if gone or (events and patience <= 0):
                timer.stop()
                waiter.throw(left)

        timer = gevent.get_hub().loop.timer(_LOOK_AGAIN, _LOOK_AGAIN)
        timer.start(look)
        try:
            yield
        except _Left as exc:
            if exc is not left:
                raise
            raise ClientLeftError("the client left") from None
        finally:
            timer.stop()
            timer.close()


class _Left(BaseException):
    """Not an Exception, so that no library between takes it for a failure of its own."""


class TcpStream:
    """A TCP or TLS socket in a relay."""

    def __init__(self, sock: socket.socket, early: bytes = b"") -> None:
        self.sock = sock
        self._early = early
        self.half_closes = not isinstance(sock, ssl.SSLSocket)  # TLS has none that works in practice
        self._abort = False
        sock.settimeout(0.0)
        hub = gevent.get_hub()
        self._wait: Callable[[Any], None] = hub.wait
        self._readable = hub.loop.io(sock.fileno(), _READ)
        self._writable = hub.loop.io(sock.fileno(), _WRITE)

    def wait_readable(self) -> None:
        """Block until there are bytes, or the end."""
        if not self._early and not self._pending():
            self._wait(self._readable)

    def _pending(self) -> int:
        # Bytes that TLS has already decrypted: no event of the socket will tell of them.
        return self.sock.pending() if isinstance(self.sock, ssl.SSLSocket) else 0

    def recv_into(self, buffer: Buffer) -> int | None:
        """Receive what is there."""
        if self._early:
            return self._take_early(buffer)
        try:
            return int(self.sock.recv_into(buffer.payload))
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self._wait(self._writable)
            return None

    def _take_early(self, buffer: Buffer) -> int:
        count = min(len(self._early), BUFFER_SIZE)
        buffer.payload[:count] = self._early[:count]
        self._early = self._early[count:]
        return count

    def stay(self) -> None:
        """Return at once: TCP itself answers the peer."""

    def sendall(self, buffer: Buffer, count: int) -> None:
        """Send the payload."""
        self.send(buffer.payload[:count])

    def send(self, data: memoryview) -> None:
        """Send all of the bytes, waiting as long as it takes."""
        while data:
            try:
                data = data[self.sock.send(data) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(self._writable)
            except ssl.SSLWantReadError:
                self._wait(self._readable)

    def end(self) -> None:
        """Send a FIN, and go on receiving."""
        if self.half_closes:
            self.sock.shutdown(std_socket.SHUT_WR)

    def tick(self, now: float) -> bool:
        """Leave it to TCP's own keepalive."""
        return True

    def farewell(self, ending: Ending) -> None:
        """Choose between FIN and reset: a cut must not look like an end."""
        self._abort = ending is not Ending.FINISHED

    def close(self) -> None:
        """Close with a FIN, or with a reset if the relay was cut."""
        self._readable.close()
        self._writable.close()
        if self._abort:
            with suppress(OSError):
                self.sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_LINGER, _NO_LINGER)
        self.sock.close()


def as_stream(end: Stream | Socket) -> Stream:
    """Take a plain socket for the stream that it is."""
    return TcpStream(end) if isinstance(end, Socket) else end


class StdioStream:
    """
    Standard input and output as one end of a relay.

    They may be files or a terminal that others share, which must not be made non-blocking: native
    threads read and write them.
    """

    half_closes = True

    def __init__(self, stdin: int = 0, stdout: int = 1) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._workers = Workers(2)

    def wait_readable(self) -> None:
        """Return at once: ``recv_into`` does the waiting."""

    def recv_into(self, buffer: Buffer) -> int:
        """Read what is there, and wait for it."""
        data = self._workers.run(lambda: os.read(self._stdin, BUFFER_SIZE))
        buffer.payload[: len(data)] = data
        return len(data)

    def stay(self) -> None:
        """Return at once: nothing comes after the end of a file."""

    def sendall(self, buffer: Buffer, count: int) -> None:
        """Write the payload."""
        self._workers.run(lambda: self._write(buffer.payload[:count]))

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._stdout, data) :]

    def end(self) -> None:
        """Close standard output, so that its reader sees the end."""
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stdout)

    def tick(self, now: float) -> bool:
        """Return at once: files do not go stale."""
        return True

    def farewell(self, ending: Ending) -> None:
        """Return at once: the exit code tells how it ended."""

    def close(self) -> None:
        """Leave the descriptors open: they are not ours."""


def address_of(sockaddr: Any) -> Address:
    """Turn what ``getpeername`` and ``getsockname`` give into an address."""
    if not isinstance(sockaddr, tuple) or not sockaddr:
        return Address("0.0.0.0", 0)
    return Address(sockaddr[0].partition("%")[0], sockaddr[1])
