"""
How a supervisor and a worker talk: each asks the other, over a socket that only the two have.

A message is a pickled value with its length before it: both ends are this program, started by the same
user. Sockets go along with one (``SCM_RIGHTS``).

What may never be violated:

- Questions are taken up in the order in which they came. Those that may take their time are answered by a
  greenlet of their own, and hold up nobody; the others are answered before the next one is read.
- Who asks gets an answer, or an error: ``GoneError`` as soon as the other end is gone.
- To tell never waits: a greenlet writes. So it may be done where nothing may wait, and nothing is overtaken.
"""

import array
import pickle
import socket as std_socket
import struct
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import gevent
from gevent import socket
from gevent.event import AsyncResult, Event

from proxy.errors import ProxyError
from proxy.net.limits import BALLAST

_HEAD = struct.Struct("!IH")  # how long a message is, and how many sockets come with it
_MOST_SOCKETS = 250  # at a time: Linux takes 253
_AT_ONCE = 1 << 18  # bytes
_LATE = 0.25  # seconds: who wakes later than this could not run
_REST = 0.1  # seconds until it is tried again to read, where there was no memory to do it
_CLOSED_IN_CHILDREN: int = getattr(std_socket, "MSG_CMSG_CLOEXEC", 0)


class GoneError(ProxyError):
    """The other end is gone, or does not answer."""


Answers = Mapping[str, Callable[..., Any]]


class Link:
    """One end of it."""

    def __init__(
        self,
        sock: socket.socket,
        answers: Answers,
        slow: Container[str] = (),
        on_end: Callable[[], object] = lambda: None,
        received: bytes = b"",
    ) -> None:
        """
        Take what answers each question, by its name; ``slow`` ones may wait.

        ``received`` is what has come before from the other end.
        A function that takes sockets gets those of a message as ``sockets``. ``on_end`` is called once,
        when the other end is gone.
        """
        self._sock = sock
        self._answers = answers
        self._slow = slow
        self._on_end = on_end
        # Of a program before this one there may be answers on the way.
        self._numbers = count(time.monotonic_ns())
        self._asked: dict[int, AsyncResult[Any]] = {}
        self._outbox: deque[tuple[bytes, Sequence[socket.socket]]] = deque()
        self._has_mail = Event()
        self._received = bytearray(received)
        self._sockets: deque[int] = deque()  # descriptors that came, and whose message has not been read
        self.is_over = False
        self._greenlets: list[gevent.Greenlet[..., Any]] = []
        self._is_left_off = False
        self._is_writing = False

    def start(self) -> None:
        """Begin to answer, or go on with it."""
        self._greenlets = [gevent.spawn(self._run), gevent.spawn(self._write)]

    def fileno(self) -> int:
        """Give the descriptor."""
        return self._sock.fileno()

    def leave_off(self) -> bytes:
        """Answer nothing more, say what there is to say, and return what has come and is not answered."""
        reader, writer = self._greenlets
        self._is_left_off = True
        reader.kill()
        while (self._outbox or self._is_writing) and not writer.dead:
            gevent.sleep(0.001)
        writer.kill()
        self._is_left_off = False
        return bytes(self._received)

    def ask(
        self, name: str, *values: Any, sockets: Sequence[socket.socket] = (), within: float | None = None
    ) -> Any:
        """Ask, and wait for the answer; raises what the other end raises, or ``GoneError``."""
        number = next(self._numbers)
        outcome: AsyncResult[Any] = AsyncResult()
        self._asked[number] = outcome
        try:
            if self.is_over:
                raise GoneError("it is gone")
            self._send((number, name, values), sockets)
            asked_at = time.monotonic()
            outcome.wait(within)  # which a deadline of the caller's may end, and that is not ours
            if within and time.monotonic() - asked_at > within + _LATE:
                # We were stopped meanwhile, and the other end most likely too: as in a container that is
                # paused. Its answer may be there, and not read yet.
                outcome.wait(within)
            if not outcome.ready():
                raise GoneError(f"there was no answer for {within:g} s")
            return outcome.get()
        finally:
            self._asked.pop(number, None)

    def tell(self, name: str, *values: Any, sockets: Sequence[socket.socket] = ()) -> None:
        """Say something that has no answer; nothing happens if the other end is gone."""
        if not self.is_over:
            self._send((0, name, values), sockets)

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._sock.shutdown(std_socket.SHUT_RDWR)

    # -- bytes

    def _send(self, message: tuple[int, str, Any], sockets: Sequence[socket.socket] = ()) -> None:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._outbox.append((_HEAD.pack(len(data), len(sockets)) + data, sockets))
        self._has_mail.set()

    def _write(self) -> None:
        while not self.is_over:
            self._has_mail.wait()
            self._has_mail.clear()
            while self._outbox:
                data, sockets = self._outbox.popleft()
                self._is_writing = True
                try:
                    for first in range(0, len(sockets), _MOST_SOCKETS):
                        some = sockets[first : first + _MOST_SOCKETS]
                        rights = array.array("i", [each.fileno() for each in some])
                        kind = (std_socket.SOL_SOCKET, std_socket.SCM_RIGHTS, rights)
                        # Some go along with the first byte, and others with the next.
                        data = data[self._sock.sendmsg([data[:1]], [kind]) :]
                    self._sock.sendall(data)
                except OSError:
                    self.close()  # as its reader notices, who says so to all
                    return
                finally:
                    self._is_writing = False

    def _run(self) -> None:
        try:
            goes_on = True
            while goes_on:
                try:
                    message = self._receive()
                    if message:
                        self._take(*message)
                    goes_on = bool(message)
                except MemoryError:
                    # What could not be read is still there, and who asked in vain asks again.
                    BALLAST.give_up()
                    gevent.sleep(_REST)
        finally:
            if not self._is_left_off:
                self._finish()

    def _finish(self) -> None:
        self.is_over = True
        self._has_mail.set()
        self._sock.close()
        for fd in self._sockets:
            std_socket.close(fd)
        for outcome in list(self._asked.values()):
            outcome.set_exception(GoneError("it is gone"))
        self._on_end()

    def _receive(self) -> tuple[tuple[int, str, Any], list[socket.socket]] | None:
        """Read a message; None at the end."""
        if not self._fill(_HEAD.size):
            return None
        length, sockets = _HEAD.unpack_from(self._received)
        if not self._fill(_HEAD.size + length):
            return None
        message = pickle.loads(self._received[_HEAD.size : _HEAD.size + length])
        del self._received[: _HEAD.size + length]
        return message, [socket.socket(fileno=self._sockets.popleft()) for _ in range(sockets)]

    def _fill(self, length: int) -> bool:
        room = std_socket.CMSG_SPACE(_MOST_SOCKETS * array.array("i").itemsize)
        while len(self._received) < length:
            try:
                data, rights, _, _ = self._sock.recvmsg(_AT_ONCE, room, _CLOSED_IN_CHILDREN)
            except OSError:
                return False
            for level, kind, packed in rights:
                if (level, kind) == (std_socket.SOL_SOCKET, std_socket.SCM_RIGHTS):
                    fds = array.array("i")
                    fds.frombytes(packed[: len(packed) - len(packed) % fds.itemsize])
                    self._sockets += fds
            if not data:
                return False
            self._received += data
        return True

    # -- questions and answers

    def _take(self, message: tuple[int, str, Any], sockets: list[socket.socket]) -> None:
        number, name, values = message
        if not name:
            if outcome := self._asked.get(number):
                is_error, value = values
                outcome.set_exception(value) if is_error else outcome.set(value)
        elif name in self._slow:
            gevent.spawn(self._answer, number, name, values, sockets)
        else:
            self._answer(number, name, values, sockets)

    def _answer(self, number: int, name: str, values: Any, sockets: list[socket.socket]) -> None:
        try:
            more = {"sockets": sockets} if sockets else {}
            said = (False, self._answers[name](*values, **more))
        except Exception as exc:
            if isinstance(exc, MemoryError):
                BALLAST.give_up()
            if not number:
                raise
            said = (True, as_error(exc))
        if number and not self.is_over:
            self._send((number, "", said))


def as_error(exc: Exception) -> ProxyError:
    """Make an error that can be sent: of the program's own the words and the failure are kept."""
    if type(exc) is ProxyError:
        return exc
    if isinstance(exc, ProxyError):
        return ProxyError(str(exc), exc.failure)
    return ProxyError(f"internal error: {type(exc).__name__}: {exc}")
