"""
TLS over a ``LoopSocket``, or inside of other TLS.

OpenSSL turns records into bytes and back in memory, and the socket stays ours.

``ssl.SSLSocket`` reads from the kernel itself, twice for each record of at most 16 KiB, and once more to
find that there is no other. Here one receive brings as many records as are there, and one send takes as
many.

What may never be violated:

- There is no way past TLS to the peer. So this is no subclass, and has no ``send``.
- OpenSSL is given one whole record at a time, and what it makes of it is taken out at once. So it is not
  asked for what it does not have, which it would say by an exception, and its memory stays small.
- What TLS itself wants to say goes out in its order, behind what is ``unsent``. A peer that makes it
  answer without an end (KeyUpdate, RFC 8446, section 4.6.3), and takes none of it, is cut off.
- Payload that came before an end or a failure is given out first.

Nobody can read a byte of a record before its last one is there, and 16 KiB take 130 ms at 1 Mbit/s. So
after a pause the first record is as long as a segment, and each one longer by that than the one before.
"""

import socket as std_socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from time import monotonic
from typing import Any

from proxy.errors import ProtocolError
from proxy.net.deadline import next_turn, wait
from proxy.net.limits import check_descriptors, check_memory
from proxy.net.sock import LoopSocket, take_over
from proxy.tls.contexts import ClientContext, describe

_HEADER = 5  # bytes: type, version, length (RFC 8446, section 5.1)
_PAYLOAD = 1 << 14  # bytes: the most that a record carries
_OVERHEAD = 32  # bytes: what a record has besides, with AES-GCM
_SEGMENT = 1369  # bytes that fit into a segment of TCP over IPv6 on Ethernet, with all that is around them
_PAUSE = 0.025  # seconds, in which 64 KiB take their way at 20 Mbit/s
_RECORD = _HEADER + _PAYLOAD + 2048  # bytes: the longest that is allowed (RFC 5246, section 6.2.3)
_MOST_UNSENT = 256 * 1024  # bytes: several times what a stream keeps by itself
_MANY = 64  # records
_QUICKACK = getattr(std_socket, "TCP_QUICKACK", None)

_scratch = memoryview(bytearray(1))
_NOTHING = memoryview(b"")


@cache
def _wire(depth: int) -> memoryview:
    """
    Give the memory for what has just been received: records with 64 KiB in them.

    It is everybody's: nobody waits while there is something in it. But TLS inside of TLS has both in hand.
    """
    return memoryview(bytearray(65 * 1024))


class RefusedCertificateError(ProtocolError):
    """The peer's certificate is not good enough; ``certificate`` is what it says."""

    def __init__(self, message: str, certificate: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.certificate = certificate


def accept_tls(sock: Any, context: ssl.SSLContext, early: bytes = b"") -> "TlsSocket":
    """
    Do the server's handshake, of which ``early`` was received already.

    Raises ``ProtocolError``, and ``OSError`` where TCP fails.
    """
    tls = TlsSocket(take_over(sock), context, server_side=True)
    tls.feed(early)
    return _shake_hands(tls)


def connect_tls(sock: Any, context: ClientContext, host: str) -> "TlsSocket":
    """Do the client's handshake, naming the host; raises like ``accept_tls``."""
    keep = partial(context.keep_session, host)
    session = context.session_with(host)
    try:
        tls = TlsSocket(take_over(sock), context, keep, server_hostname=host, session=session)
        return _shake_hands(tls, context)
    except BaseException:
        context.forget_session(host)  # it may be what the server does not like
        raise


def _shake_hands(tls: "TlsSocket", context: ClientContext | None = None) -> "TlsSocket":
    try:
        tls.do_handshake()
    except ssl.SSLError as exc:
        check_memory("TLS handshake")  # OpenSSL says many things then, such as "internal error"
        if isinstance(exc, ssl.SSLCertVerificationError):
            check_descriptors("TLS handshake")  # authorities are read from files when they are wanted
            why = describe(exc, context)
            raise RefusedCertificateError(f"TLS handshake: {why}", tls.certificate) from exc
        raise ProtocolError(f"TLS handshake: {describe(exc)}") from exc
    return tls


class TlsSocket:
    """
    A TLS connection: what cannot be done at once raises ``BlockingIOError``, but in ``do_handshake``.

    Its other errors are ``OSError`` and ``ProtocolError``.
    """

    __slots__ = (
        "_failure", "_has_ended", "_incoming", "_is_partly_read", "_keep_session", "_longest", "_outgoing",
        "_rest", "_sock", "_tls", "_wire", "_written", "depth", "is_cut", "pending", "records",
    )  # fmt: skip

    def __init__(
        self,
        sock: "LoopSocket | TlsSocket",
        context: ssl.SSLContext,
        keep_session: Callable[[ssl.SSLSession], None] | None = None,
        **side: Any,
    ) -> None:
        """
        Take a socket over; ``side`` is what ``SSLContext.wrap_bio`` has to know.

        When a server gives a session that can be resumed, ``keep_session`` is called with it.
        """
        self._sock = sock
        self.depth: int = sock.depth + 1 if isinstance(sock, TlsSocket) else 0
        self._wire = _wire(self.depth)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: Any = context.wrap_bio(self._incoming, self._outgoing, **side)
        self._keep_session = keep_session
        self._rest = _NOTHING  # received, and not decrypted
        self._is_partly_read = False  # OpenSSL has the rest of a record that did not fit
        self._has_ended = False
        self._failure: Exception | None = None
        self._longest = _SEGMENT  # bytes in the next record, unless there was a pause
        self._written = 0.0  # when more than a segment was written last
        self.is_cut = False  # it has ended without close_notify (RFC 8446, section 6.1)
        self.pending = False  # there is something to receive of which the kernel does not know
        self.records = 0  # how many ``recv_into`` has decrypted, when it was called last

    # -- what the socket does for it

    @property
    def reader(self) -> Any:
        """The watcher for something to read."""
        return self._sock.reader

    @property
    def writer(self) -> Any:
        """The watcher for room to write."""
        return self._sock.writer

    @property
    def unsent(self) -> bytes:
        """What the kernel did not take yet, encrypted."""
        return self._sock.unsent

    def flush(self) -> None:
        """Send of that what the kernel takes."""
        self._sock.flush()

    def fileno(self) -> int:
        """Give the descriptor, or -1."""
        return self._sock.fileno()

    def getsockopt(self, *which: int) -> Any:
        """Ask the kernel."""
        return self._sock.getsockopt(*which)

    def setsockopt(self, *which: Any) -> None:
        """Tell the kernel."""
        self._sock.setsockopt(*which)

    def close(self) -> None:
        """Close the socket without a word."""
        self._sock.close()

    # -- handshake

    @property
    def version(self) -> str:
        """Which TLS is spoken, such as TLSv1.3."""
        return self._tls.version() or ""

    @property
    def certificate(self) -> Mapping[str, Any]:
        """
        What the peer's certificate says, in the words of ``ssl.SSLSocket.getpeercert``.

        That one tells nothing of a certificate that was refused or not looked at, and nothing else that is
        public does. So this is empty where Python has no such object inside.
        """
        chain = getattr(self._tls._sslobj, "get_unverified_chain", lambda: None)()
        says: Mapping[str, Any] = chain[0].get_info() if chain else {}
        return says

    def feed(self, early: bytes) -> None:
        """Take what was received before the handshake began."""
        self._incoming.write(early)

    def do_handshake(self) -> None:
        """Block until the handshake is done; raises ``ssl.SSLError``, and ``OSError`` where TCP fails."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._say()
                self._hear()
            except ssl.SSLError:
                with suppress(OSError):
                    self._say()  # the alert, which tells the peer why
                raise
        is_modern = self._tls.version() == "TLSv1.3"
        self._rest = memoryview(self._incoming.read())
        self.pending = bool(_end_of_record(self._rest, 0))
        is_server = self._tls.server_side
        if self._outgoing.pending and not (is_modern and is_server):  # else tickets, for the first answer
            self._say()
        elif is_server and not self._rest:
            self._acknowledge()
        if self._tls.session_reused:
            self._keep_session = None  # it serves on: to copy another one takes as long as a signature
        elif not is_modern:
            self._offer_session()

    def _acknowledge(self) -> None:
        """
        Have the kernel tell the peer at once that its last word has arrived, as none of ours does.

        By itself it waits 40 ms, and without TCP_NODELAY a peer's request waits for that (RFC 9293, section
        3.7.4: Nagle's algorithm).
        """
        if _QUICKACK is not None:
            try:
                self.setsockopt(std_socket.IPPROTO_TCP, _QUICKACK, 1)
            except OSError:  # no TCP
                pass

    def _hear(self) -> None:
        while self.unsent:
            wait(self.writer)
            self.flush()
        while True:
            try:
                count = self._sock.recv_into(self._wire)
                break
            except BlockingIOError:
                if self._sock.pending:  # TLS outside of this one has more in hand
                    next_turn()
                else:
                    wait(self.reader)
        if count:
            self._incoming.write(self._wire[:count])
        else:
            self._incoming.write_eof()

    def _say(self) -> None:
        if self._outgoing.pending:
            self._sock.write(self._outgoing.read())

    def _offer_session(self) -> None:
        session = self._tls.session if self._keep_session else None
        if self._keep_session and session and session.has_ticket:
            self._keep_session(session)
            self._keep_session = None

    # -- receiving

    def recv(self, count: int) -> bytes:
        """Receive up to ``count`` bytes; b"" at the end."""
        buffer = bytearray(count)
        return bytes(buffer[: self.recv_into(memoryview(buffer))])

    def recv_into(self, view: memoryview, most: int = _MANY) -> int:
        """Receive what is there, of at most so many records; 0 is the end."""
        size = len(view)
        self.records = start = 0
        self.pending = False
        filled = self._tls.read(size, view) if self._is_partly_read else 0
        data = self._rest
        end = _end_of_record(data, 0) if data else 0
        if not end and not filled:
            data = self._receive(size)
            end = _end_of_record(data, 0)
        while end and filled < size and self.records < most:
            self._incoming.write(data[start:end])
            self.records += 1
            start = end
            try:
                count = self._tls.read(size - filled, view[filled:])
                filled += count
                self._has_ended = not count
            except ssl.SSLWantReadError:
                self._answer()
            except ssl.SSLZeroReturnError:  # as 0, but after our own close_notify
                self._has_ended = True
            except ssl.SSLError as exc:
                self._fail(exc)
            # A small message is one record, and all that there is: for it, nothing more is asked or kept.
            end = 0 if start == len(data) or self._is_over else _end_of_record(data, start)
        if start == len(data):
            self._rest = _NOTHING
        else:
            self._leave(data, start)
        self._is_partly_read = filled == size and bool(self._tls.pending())
        self.pending = bool(end or self._is_partly_read or self._sock.pending or (filled and self._is_over))
        if filled or self._has_ended:
            return filled
        raise self._failure or BlockingIOError

    @property
    def _is_over(self) -> bool:
        return self._has_ended or self._failure is not None

    def _receive(self, size: int) -> memoryview:
        """Receive what will fit when it is decrypted, or at least a record, behind the rest that was left."""
        if self._is_over:
            return _NOTHING
        if left := len(self._rest):
            self._wire[:left] = self._rest
        most = size + size // _PAYLOAD * _OVERHEAD
        count = self._sock.recv_into(self._wire[left : max(most, _RECORD)])
        if not count:
            self._has_ended = self.is_cut = True
            return _NOTHING
        return self._wire[: left + count]

    def _leave(self, data: memoryview, start: int) -> None:
        """Leave what was not decrypted for the next time: a copy, if it lies in the memory of all."""
        if self._is_over:
            self._rest = _NOTHING
        elif data is self._rest:
            self._rest = data[start:]
        else:
            self._rest = memoryview(bytes(data[start:]))

    def _answer(self) -> None:
        """See to a record that had no payload but something for TLS: it may want an answer."""
        self._offer_session()
        try:
            self._say()
        except OSError as exc:  # which the kernel says only once
            self._failure = exc
        if len(self.unsent) > _MOST_UNSENT:
            self._failure = ProtocolError("TLS: the peer keeps asking for answers, and reads none")

    def _fail(self, exc: ssl.SSLError) -> None:
        with suppress(OSError):
            self._say()  # the alert, which tells the peer why
        self._failure = ProtocolError(f"TLS: {describe(exc)}")

    def is_quiet(self) -> bool:
        """Tell if the peer is there and has said nothing; if not, the connection is only good for closing."""
        try:
            self.recv_into(_scratch)
        except BlockingIOError:
            return True
        except (OSError, ProtocolError):
            pass
        return False

    # -- sending

    def write(self, data: memoryview | bytes, flags: int = 0) -> None:
        """Send what the kernel takes, and keep the rest as ``unsent``."""
        if len(data) <= _SEGMENT:
            self._tls.write(data)
            self._sock.write(self._outgoing.read())
            return
        now = monotonic()
        size = _SEGMENT if now - self._written > _PAUSE else self._longest
        # Record by record, so that no more than one is ever in the memory of OpenSSL, which does not give
        # it back before the end of the connection.
        records = []
        start = 0
        while start < len(data):
            self._tls.write(data[start : start + size])
            records.append(self._outgoing.read())
            start += size
            size = min(size + _SEGMENT, _PAYLOAD)
        self._written, self._longest = now, size
        self._sock.write(b"".join(records))

    def shutdown(self, how: int) -> None:
        """End TCP, in one direction or both; before that of our own, TLS says that it is no cut."""
        if how == std_socket.SHUT_WR:
            self.notify_end()
        self._sock.shutdown(how)

    def notify_end(self) -> None:
        """Send close_notify (RFC 8446, section 6.1), and wait for no answer."""
        with suppress(ssl.SSLError):  # that there is no answer
            self._tls.unwrap()
        self._say()
        if isinstance(self._sock, TlsSocket):
            self._sock.notify_end()


def _end_of_record(data: memoryview, start: int) -> int:
    """Tell where the record ends that begins at ``start``, or 0 if its end is not there."""
    there = len(data) - start
    if there < _HEADER:
        return 0
    length = _HEADER + (data[start + 3] << 8 | data[start + 4])
    if length > _RECORD:
        return len(data)  # OpenSSL will say what is wrong with it
    return start + length if length <= there else 0
