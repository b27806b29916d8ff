"""
Servers that a tunnel ends at, under a test's control.

A behaviour is a function of the accepted socket, run in a thread of its own; what it returns waits in
``Target.results``. A target listens on both loopback addresses with one port.
"""

import contextlib
import hashlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from tests.wire.sockets import CHUNK, TIMEOUT, free_port, is_silent, read_to_end, reset

PASSIVE = 120.0  # seconds in which a target that waits for bytes gets some

AnyTarget = TypeVar("AnyTarget", bound="Target")
Behaviour = Callable[[socket.socket], Any]


class Target:
    """A TCP server whose connections all behave as one function says, on loopback or at an IPv4 address."""

    def __init__(
        self, behave: Behaviour, *, host: str = "", port: int | None = None, backlog: int = 512
    ) -> None:
        self.behave = behave
        self.results: queue.Queue[Any] = queue.Queue()
        self.accepted = 0
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self.port = free_port() if port is None else port
        self._listeners = list(_listen(host, self.port, backlog))

    def result(self, timeout: float = TIMEOUT) -> Any:
        """Wait for what the next finished connection returned; raise what it raised."""
        value = self.results.get(timeout=timeout)
        if isinstance(value, BaseException):
            raise value
        return value

    def __enter__(self: AnyTarget) -> AnyTarget:
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in self._listeners:
            _close(listener)
        with self._lock:
            for connection in self._connections:
                _close(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # the target is being closed
            with self._lock:
                self._connections.add(connection)
                self.accepted += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.closing(connection):
            try:
                connection.settimeout(PASSIVE)
                self.results.put(self.behave(connection))
            except OSError as error:
                self.results.put(error)
            finally:
                with self._lock:
                    self._connections.discard(connection)


class Listener:
    """A target whose connections wait in the kernel until a test takes them, and knows if there were none."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._taken: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "Listener":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, *self._taken):
            sock.close()

    def accept(self) -> socket.socket:
        """Take the next connection."""
        self._listener.settimeout(TIMEOUT)
        sock, _ = self._listener.accept()
        self._taken.append(sock)
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    @property
    def untouched(self) -> bool:
        """True if no connection has been made that was not taken."""
        return is_silent(self._listener, 0)


def _listen(at: str, port: int, backlog: int) -> Iterator[socket.socket]:
    hosts = [(socket.AF_INET, at or "127.0.0.1")]
    if not at and socket.has_dualstack_ipv6():
        hosts.append((socket.AF_INET6, "::1"))
    for family, host in hosts:
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            sock.close()
            if family == socket.AF_INET:
                raise
            continue  # a namespace without IPv6
        sock.listen(backlog)
        yield sock


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
    sock.close()


def echo(connection: socket.socket) -> int:
    """Send everything back, and end when the peer does."""
    count = 0
    while data := connection.recv(CHUNK):
        connection.sendall(data)
        count += len(data)
    return count


def sink(connection: socket.socket) -> tuple[int, str]:
    """Read to the end; give how much it was, and its SHA-256."""
    digest = hashlib.sha256()
    count = 0
    while data := connection.recv(CHUNK):
        digest.update(data)
        count += len(data)
    return count, digest.hexdigest()


def source(data: bytes) -> Behaviour:
    """Send data, and end."""
    return lambda connection: connection.sendall(data)


def banner(text: bytes) -> Behaviour:
    """Speak first, as SSH and SMTP servers do, then echo."""

    def behave(connection: socket.socket) -> int:
        connection.sendall(text)
        return echo(connection)

    return behave


def exchange(down: bytes, up_size: int) -> Behaviour:
    """Send ``down`` while reading ``up_size`` bytes; give the SHA-256 of what was read."""

    def behave(connection: socket.socket) -> str:
        sender = threading.Thread(target=_send_quietly, args=(connection, down), daemon=True)
        sender.start()
        digest = receive_digest(connection.recv, up_size)
        sender.join(TIMEOUT)
        return digest

    return behave


def _send_quietly(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the reader finds the same fault, and says it
        connection.sendall(data)


def receive_digest(receive: Callable[[int], bytes], size: int) -> str:
    """Receive exactly ``size`` bytes, and give their SHA-256; raise at an early end."""
    digest = hashlib.sha256()
    while size:
        data = receive(min(size, CHUNK))
        if not data:
            raise ConnectionError(f"the stream ended {size} bytes early")
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()


def answer_after_end(data: bytes) -> Behaviour:
    """Read to the end of the stream, and only then send; give what was read."""

    def behave(connection: socket.socket) -> bytes:
        received = read_to_end(connection)
        connection.sendall(data)
        return received

    return behave


def end_then_read(connection: socket.socket) -> tuple[int, str]:
    """Half-close at once, and read on; give how much it was, and its SHA-256."""
    connection.shutdown(socket.SHUT_WR)
    return sink(connection)


def close_after_accept(connection: socket.socket) -> None:
    """Do nothing, so that the connection is closed."""


def reset_after(data: bytes) -> Behaviour:
    """Wait for one byte, send data, and reset the connection."""

    def behave(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(data)
        reset(connection)

    return behave


def hold(connection: socket.socket) -> bytes:
    """Say nothing until the peer does or leaves; give what it said."""
    return connection.recv(CHUNK)


def when(go: threading.Event, behave: Behaviour) -> Behaviour:
    """Behave only after an event; the peer may send meanwhile, but nothing is read."""

    def wait(connection: socket.socket) -> Any:
        assert go.wait(TIMEOUT), "the test never said go"
        return behave(connection)

    return wait


@contextlib.contextmanager
def mute() -> Iterator[int]:
    """Give the port of a listener that leaves its connections to the kernel, and so says nothing."""
    with Listener() as listener:
        yield listener.port


@contextlib.contextmanager
def blackhole(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Give the port of a listener whose queue is full: a connection to it is neither made nor refused."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.3)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                break
        else:
            raise AssertionError("the queue of the listener does not fill")
        yield listener.getsockname()[1]


class Scripted(Target):
    """A server that answers each thing it reads with the next of its lines, and then closes."""

    def __init__(self, *answers: bytes, **settings: Any) -> None:
        super().__init__(self._play, **settings)
        self.answers = answers

    def _play(self, connection: socket.socket) -> list[bytes]:
        heard = []
        for answer in self.answers:
            heard.append(connection.recv(CHUNK))
            connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(2)
        with contextlib.suppress(OSError):
            connection.recv(CHUNK)  # closing with unread bytes would reset what was said
        return heard
