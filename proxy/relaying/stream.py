"""
One end of a relay: bytes in, bytes out, and what is kept of those that the socket did not take.

What may never be violated:

- Nothing waits but the last step of closing. A stream does one bounded operation, and the relay waits.
- What is kept goes out first, and in its order: what is ``unsent`` of the socket, and then what is in the
  pipe. Whoever sends while a stream is ``blocked`` would put bytes into the middle of others.
- A stream calls ``on_blocked`` in the moment in which it has to keep something, so nobody has to ask
  after each operation.
- Bytes that came early, with the handshake, come before those of the socket.
- A pipe that was handed over goes back to its pool once, whatever happens.
- Only an end that is clean becomes a FIN. When a process dies (kill -9, out of memory, a crash) the
  kernel closes its sockets, and would send one: the end of a transfer that is not at its end. So the
  socket of a stream is set to be reset when it is closed, and that is taken back right before a clean
  end.
- Watchers are closed before their socket, as its number may belong to another one at once.
"""

import fcntl
import os
import socket as std_socket
import struct
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any, Protocol

from proxy.errors import ProtocolError
from proxy.net.farewell import close_after_peer
from proxy.net.sock import GeventSocket, LoopSocket, take_over
from proxy.sharing.pipes import Pipe
from proxy.sharing.turns import TURNS
from proxy.tls.tlssocket import TlsSocket

BUFFER_SIZE = 64 * 1024
HEADROOM = 14  # bytes: the longest frame header of RFC 6455, section 5.2
_MORE = getattr(std_socket, "MSG_MORE", 0)
_RESET = struct.pack("ii", 1, 0)  # for SO_LINGER: whoever closes the socket, the peer gets a reset
_SOCKET, _LINGER = std_socket.SOL_SOCKET, std_socket.SO_LINGER
_FIN = struct.pack("ii", 0, 0)
_TCP_INFO = getattr(std_socket, "TCP_INFO", None)
_CLOSED = 7  # TCP_CLOSE, in the first byte of it: the connection is no more


class Ending(Enum):
    """How a relay ended."""

    FINISHED = "finished"  # both directions came to their end
    CUT = "cut"  # one leg broke, so the other is told that the rest is missing
    FAILED = "failed"  # the same, but it was our own fault
    IDLE = "idle"
    STOPPED = "stopped"  # the server is going away
    EVICTED = "evicted"  # an operator, or a change of users, ended it


class Buffer:
    """
    A piece of memory that bytes pass through.

    The payload begins at ``HEADROOM``, so that a stream which frames it can write the header in
    front, and send both at once without a copy.

    What will be framed is received into ``unframed``. It is that much shorter, so that the frame fits into
    the payload of whoever receives it, and into a whole number of TLS records.
    """

    __slots__ = ("payload", "unframed", "view")

    def __init__(self, size: int = BUFFER_SIZE) -> None:
        self.view = memoryview(bytearray(HEADROOM + size))
        self.payload = self.view[HEADROOM:]
        self.unframed = self.payload[:-HEADROOM]

    def first(self, count: int) -> "Buffer":
        """Give its first bytes, as a buffer that holds no more than so many."""
        first = Buffer.__new__(Buffer)
        first.view, first.payload, first.unframed = self.view, self.payload[:count], self.unframed[:count]
        return first


class Stream(Protocol):
    """
    One end of a relay. Its errors are ``OSError`` and ``ProtocolError``.

    A relay uses it in this order:

        to receive    ``recv_into`` or ``splice_in``, until the end; then ``stay``, while that is true
        to send       ``send`` or ``splice_out``; while it is ``blocked`` only ``flush``, when its socket is
                      writable; then ``end`` once, and no payload after it
        in between    ``tick``, twice a second
        at last       ``begin_close`` once, and ``finish_close``
    """

    reader: Any
    """The event loop's watcher for something to read; whoever waits has it to itself."""
    on_blocked: Callable[[], None]
    """What is called when something has to be kept."""

    @property
    def writer(self) -> Any:
        """The same for room to write."""

    @property
    def half_closes(self) -> bool:
        """True if ``end`` reaches the peer, and the peer can go on sending after it."""

    @property
    def buffered(self) -> bool:
        """True if there are bytes to receive of which the socket does not tell."""

    @property
    def blocked(self) -> bool:
        """True if something waits for the socket to be writable."""

    def recv_into(self, buffer: Buffer, *, bulk: bool) -> int | None:
        """
        Put payload into the buffer and return its size; 0 is the end, None is nothing now.

        With ``bulk`` no more than what has to be seen is taken, so that the rest can be spliced.
        """

    def spliceable(self) -> int:
        """Tell how many bytes may now be spliced from the socket; 0 if none."""

    def splice_in(self, pipe: Pipe, most: int) -> int | None:
        """Fill a pipe with payload; 0 is the end, None is nothing now."""

    def stay(self) -> bool:
        """After the end of what the peer sends: answer what still comes; False if nothing can."""

    def send(self, buffer: Buffer, count: int) -> None:
        """Send ``count`` bytes of payload; the buffer's content is lost."""

    @property
    def gives_pipes(self) -> bool:
        """True if payload can be spliced at all; ``spliceable`` tells how much of it can be now."""

    @property
    def takes_pipes(self) -> bool:
        """True if payload can be sent from a pipe."""

    @property
    def room(self) -> int:
        """How many bytes the socket is sure to take from a pipe at once."""

    def splice_out(self, pipe: Pipe, count: int) -> None:
        """Send the payload that is in a pipe, which belongs to the stream from here on."""

    def flush(self) -> None:
        """Send what was kept."""

    def end(self) -> None:
        """Tell the peer that no more bytes follow."""

    def tick(self, now: float, *, listening: bool) -> bool:
        """Do what is due at the time ``now``; False if the peer is dead."""

    @property
    def undelivered(self) -> int:
        """How many bytes an ending other than ``FINISHED`` would take away from a peer that takes them."""

    def begin_close(self, ending: Ending) -> None:
        """Tell the peer how it ended, and ``end`` if that was not said; waits for no answer."""

    def finish_close(self) -> None:
        """Wait until the peer knows, for a bounded time, and be closed."""


def ignore() -> None:
    """Stand in for a relay, while there is none."""


class TcpStream:
    """A plain socket."""

    __slots__ = ("_early", "_in_pipe", "_pipe", "_sock", "_takes_leave", "on_blocked", "reader")

    gives_pipes = True
    takes_pipes = True
    half_closes = True

    def __init__(self, sock: Any, early: bytes = b"") -> None:
        """Take a socket over, with bytes that were already received from it."""
        self._sock = take_over(sock)
        # This could be inherited from the listener, which would save one call in four. But then everything
        # that closes before there is a relay, and whoever else is given that listener, would have to take it
        # back.
        self._sock.setsockopt(_SOCKET, _LINGER, _RESET)
        self.reader = self._sock.reader
        self.on_blocked: Callable[[], None] = ignore
        self._early = early
        self._pipe: Pipe | None = None
        self._in_pipe = 0  # bytes that are in the pipe
        self._takes_leave = False

    @property
    def writer(self) -> Any:
        """The watcher for room to write."""
        return self._sock.writer

    @property
    def buffered(self) -> bool:
        """True if bytes came early."""
        return bool(self._early)

    @property
    def blocked(self) -> bool:
        """True if something waits for the socket to be writable."""
        return bool(self._sock.unsent or self._in_pipe)

    def recv_into(self, buffer: Buffer, *, bulk: bool) -> int | None:
        """Receive what is there."""
        if self._early:
            return self.receive(buffer.unframed)
        # As in ``receive``, written twice because every small message comes this way, and a call costs.
        try:
            count: int = self._sock.recv_into(buffer.unframed)
            return count
        except BlockingIOError:
            return None

    def receive(self, view: memoryview) -> int | None:
        """Receive into a piece of memory; 0 is the end, None is nothing now."""
        if self._early:
            data = self._early[: len(view)]
            self._early = self._early[len(view) :]
            view[: len(data)] = data
            return len(data)
        try:
            return int(self._sock.recv_into(view))
        except BlockingIOError:
            return None

    def spliceable(self) -> int:
        """Allow any number, once the early bytes are gone."""
        return 0 if self._early else 1 << 30

    def splice_in(self, pipe: Pipe, most: int) -> int | None:
        """Fill a pipe."""
        try:
            return pipe.fill(self._sock.fileno(), most)
        except BlockingIOError:
            return None

    def stay(self) -> bool:
        """Leave it to TCP: nothing comes after the end."""
        return False

    def send(self, buffer: Buffer, count: int) -> None:
        """Send the payload."""
        self.write(buffer.payload[:count])

    def write(self, data: memoryview | bytes, flags: int = 0) -> None:
        """Send what the socket takes, behind what was kept, and keep the rest."""
        self._sock.write(data, flags)
        if self._sock.unsent:
            self.on_blocked()

    @property
    def room(self) -> int:
        """What the send buffer has left, less a quarter: the kernel counts its own overhead, too."""
        size: int = self._sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_SNDBUF)
        return size - size // 4 - self._queued()

    def _queued(self) -> int:
        return int.from_bytes(fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def splice_out(self, pipe: Pipe, count: int, header: bytes = b"") -> None:
        """Send what is in the pipe, behind a header."""
        # First of all, so that the pipe is given back whatever happens.
        self._pipe, self._in_pipe = pipe, count
        if header:
            self.write(header, _MORE)
        if not self._sock.unsent:
            self._drain()

    def _drain(self) -> None:
        assert self._pipe is not None
        with suppress(BlockingIOError):
            self._in_pipe -= self._pipe.drain(self._sock.fileno(), self._in_pipe)
        if self._in_pipe:
            self.on_blocked()
        else:
            self._pipe.give_back()
            self._pipe = None

    def flush(self) -> None:
        """Send what was kept."""
        if self._sock.unsent:
            self._sock.flush()
        if self._in_pipe and not self._sock.unsent:
            self._drain()

    def end(self) -> None:
        """Send a FIN, and go on receiving."""
        self._sock.shutdown(std_socket.SHUT_WR)

    def end_both(self) -> None:
        """Tell a peer that has said all it had to say that no more bytes follow."""
        self.end()

    def tick(self, now: float, *, listening: bool) -> bool:
        """Look for a reset, which nobody sees who does not listen; the rest is up to TCP's keepalive."""
        error = 0 if listening else self._sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        return True

    @property
    def undelivered(self) -> int:
        """How many bytes the peer has not confirmed; 0 also if it takes none, or the system does not tell."""
        if _TCP_INFO is None or self.blocked:
            return 0
        with suppress(OSError):
            if self._sock.getsockopt(std_socket.IPPROTO_TCP, _TCP_INFO, 1)[0] != _CLOSED:
                return self._queued()
        return 0

    def begin_close(self, ending: Ending) -> None:
        """Close with a FIN, or with a reset if the relay was cut: a cut must not look like an end."""
        if ending is Ending.FINISHED:
            # No ``suppress``, which takes as long as the call.
            try:
                self._sock.setsockopt(_SOCKET, _LINGER, _FIN)
            except OSError:  # it has been closed
                pass
        self._sock.close()
        if self._pipe:
            self._pipe.give_back(empty=False)
            self._pipe = None

    def begin_farewell(self) -> None:
        """End in good order for a peer that may still be sending, in the place of ``begin_close``."""
        try:
            self._sock.setsockopt(_SOCKET, _LINGER, _FIN)
            self._sock.shutdown(std_socket.SHUT_WR)
        except OSError:  # it is gone
            self._sock.close()
        else:
            self._takes_leave = True

    def finish_close(self) -> None:
        """Give such a peer a moment to read what it was told."""
        if self._takes_leave:
            close_after_peer(self._sock)


class TlsStream(TcpStream):
    """A TLS socket, whose bytes have to pass through our memory, and which cannot half-close."""

    __slots__ = ()

    gives_pipes = False
    takes_pipes = False
    half_closes = False

    @property
    def buffered(self) -> bool:
        """True if bytes came early, or were received already: no event tells of those."""
        return bool(self._early or self._sock.pending)

    def recv_into(self, buffer: Buffer, *, bulk: bool) -> int | None:
        """Receive what is there."""
        return self.receive(buffer.payload)

    def receive(self, view: memoryview) -> int | None:
        """Receive as many records as are there, and fit, and may be decrypted now."""
        if self._early:
            return super().receive(view)
        try:
            count: int | None = self._sock.recv_into(view, TURNS.frames)
        except BlockingIOError:
            count = None
        TURNS.spend(self._sock.records)
        if self._sock.unsent:
            self.on_blocked()
        if count == 0 and self._sock.is_cut:
            raise ProtocolError("the connection ended without close_notify")
        return count

    def spliceable(self) -> int:
        """Allow none."""
        return 0

    def end(self) -> None:
        """Do nothing: a TLS end of one direction would lose what the other has to say."""

    def end_both(self) -> None:
        """Say so by TLS, as there is nothing to lose."""
        self._sock.notify_end()
        if self._sock.unsent:
            self.on_blocked()

    def begin_close(self, ending: Ending) -> None:
        """Say that a clean end is one, and close."""
        if ending is Ending.FINISHED and not self.blocked:
            with suppress(OSError):  # nobody may be left to hear it
                self._sock.notify_end()
        super().begin_close(ending)


def as_stream(end: Stream | GeventSocket | LoopSocket | TlsSocket) -> Stream:
    """Take a socket for the stream that it is."""
    if isinstance(end, TlsSocket):
        return TlsStream(end)
    return TcpStream(end) if isinstance(end, (GeventSocket, std_socket.socket, LoopSocket)) else end
