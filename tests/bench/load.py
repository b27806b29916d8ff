"""
The load: processes in pairs, a near one that connects through the proxy to a far one.

Each does one thing for ever and notes what it has done in memory that it shares with the benchmark,
which reads it at two moments and then ends them all. So there is nothing to agree upon, and whatever
comes before the first moment, such as buffers that fill, is not measured.

It must cost little, for it shares the machine with what is measured: what arrives is discarded in the
kernel, what is sent was made before.
"""

import errno
import mmap
import multiprocessing
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from tests.integration.longwire import End, Site
from tests.wire.processes import end_with_parent
from tests.wire.sockets import Door

BLOCK = 1 << 20
MESSAGE = bytes(64)
PAGE = bytes(64 * 1024)
FREE_PORT_TIMEOUT = 65.0  # seconds
READY_TIMEOUT = 30.0  # seconds until all connections of a process must be open
LIFE = 100  # seconds, after which a process ends even if nobody ends it
KEPT = 1 << 18  # latencies

Take = Callable[[], socket.socket]

_fork = multiprocessing.get_context("fork")


class LoadFailed(Exception):
    """The load cannot go on through this proxy; the text says why."""


class Tally:
    """What one process has done, readable by the one that started it."""

    def __init__(self) -> None:
        self.count = memoryview(mmap.mmap(-1, 8)).cast("q")
        self.latencies = memoryview(mmap.mmap(-1, 8 * KEPT)).cast("q")  # nanoseconds, the latest ones
        self.messages, self._report = _fork.Pipe(duplex=False)

    def ready(self) -> None:
        """Say that everything is open and the work begins."""
        self._report.send("")

    def failed(self, reason: str) -> None:
        """Say why the work cannot go on."""
        self._report.send(reason)

    def add(self, latency: int) -> None:
        """Note one thing done, and the nanoseconds it took."""
        done = self.count[0]
        self.latencies[done % KEPT] = latency
        self.count[0] = done + 1

    def since(self, start: int, end: int) -> list[int]:
        """Give the latencies noted between two counts."""
        return [self.latencies[number % KEPT] for number in range(max(start, end - KEPT), end)]


class Way:
    """How a near process reaches a far one: through a SOCKS5 server, or without one."""

    def __init__(self, door: Door | None, target: Door) -> None:
        self.door = door or target
        self._greeting = b"\x05\x01\x00" if door else b""  # RFC 1928, section 3: no authentication
        address = socket.inet_aton(target[0])
        self._request = struct.pack("!BBBB4sH", 5, 1, 0, 1, address, target[1])  # section 4: CONNECT

    def steps(self) -> Generator[socket.socket, None, socket.socket]:
        """Open a connection, yielding it wherever it has to be readable before the next step."""
        sock = socket.socket()
        sock.connect(self.door)
        if not self._greeting:
            return sock
        sock.send(self._greeting)
        yield sock
        expect(sock.recv(2), b"\x05\x00")
        sock.send(self._request)
        yield sock
        expect(sock.recv(64)[:2], b"\x05\x00")
        return sock

    def __call__(self) -> socket.socket:
        """Open a connection."""
        return run(self.steps())


def run(steps: Generator[socket.socket, None, socket.socket]) -> socket.socket:
    """Go through the steps without a loop: the socket blocks where it is not yet readable."""
    try:
        while True:
            next(steps)
    except StopIteration as finished:
        sock: socket.socket = finished.value
        return sock


def expect(got: bytes, wanted: bytes) -> None:
    """Check what a peer says."""
    if got != wanted:
        raise ConnectionError(f"expected {wanted.hex(' ')}, got {got.hex(' ') or 'the end of the stream'}")


def listen(host: str = "127.0.0.1") -> socket.socket:
    """Listen on a free port, once there is one: connections that are closed hold theirs for a minute."""
    until = time.monotonic() + FREE_PORT_TIMEOUT
    while True:
        try:
            return socket.create_server((host, 0), backlog=4096)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise
            time.sleep(0.5)


class Entrance:
    """Where a far process takes its connections."""

    def __init__(self, end: End) -> None:
        self.listener = end.run(lambda: listen(end.address))
        self.address: Door = self.listener.getsockname()

    def __call__(self) -> socket.socket:
        return self.listener.accept()[0]


# -- what near and far processes do; the count of connections and the tally come from the benchmark


def pour(take: Take, count: int, tally: Tally) -> None:
    """Send without end on every connection."""
    block = memoryview(bytes(BLOCK))
    socks = {sock.fileno(): sock for sock in (take() for _ in range(count))}
    writable = watch(socks, select.EPOLLOUT)
    for sock in socks.values():
        sock.setblocking(False)
    tally.ready()
    while True:
        for fd, _ in writable.poll():
            try:
                socks[fd].send(block)
            except BlockingIOError:
                pass


def drain(take: Take, count: int, tally: Tally) -> None:
    """Read without end from every connection, and count the bytes."""
    room = bytearray(BLOCK)
    socks = {sock.fileno(): sock for sock in (take() for _ in range(count))}
    readable = watch(socks, select.EPOLLIN)
    tally.ready()
    while True:
        for fd, _ in readable.poll():
            # tcp(7): with MSG_TRUNC the bytes are thrown away, not copied.
            got = socks[fd].recv_into(room, BLOCK, socket.MSG_TRUNC)
            if not got:
                raise ConnectionError("the stream ended")
            tally.count[0] += got


def ask(take: Take, count: int, tally: Tally) -> None:
    """Keep one message under way on every connection; count and time its round trips."""
    socks = {sock.fileno(): sock for sock in (take() for _ in range(count))}
    readable = watch(socks, select.EPOLLIN)
    tally.ready()
    sent = [0] * (max(socks) + 1)
    now = time.perf_counter_ns
    for fd in socks:
        sent[fd] = now()
        os.write(fd, MESSAGE)
    while True:
        for fd, _ in readable.poll():
            read_answer(fd)
            moment = now()
            tally.add(moment - sent[fd])
            sent[fd] = moment
            os.write(fd, MESSAGE)


def ask_slowly(take: Take, count: int, tally: Tally) -> None:
    """Make one round trip after another on one connection, with pauses."""
    sock = take()
    tally.ready()
    while True:
        start = time.perf_counter_ns()
        sock.send(MESSAGE)
        read_answer(sock.fileno())
        tally.add(time.perf_counter_ns() - start)
        time.sleep(0.001)


def read_answer(fd: int) -> None:
    """Read one message, whose pieces hardly ever come apart."""
    left = len(MESSAGE)
    while left:
        got = len(os.read(fd, left))
        if not got:
            raise ConnectionError("the stream ended")
        left -= got


def answer(take: Take, count: int, tally: Tally) -> None:
    """Send back whatever comes."""
    socks = {sock.fileno(): sock for sock in (take() for _ in range(count))}
    readable = watch(socks, select.EPOLLIN)
    tally.ready()
    while True:
        for fd, _ in readable.poll():
            got = os.read(fd, 4096)
            if not got:
                raise ConnectionError("the stream ended")
            os.write(fd, got)


def visit(way: Way, count: int, tally: Tally) -> None:
    """Open a connection, exchange a byte and close it, so many at a time; count and time them."""
    readable = select.epoll()
    visits: dict[int, Generator[socket.socket, None, None]] = {}

    def begin() -> None:
        steps = one_visit(way, tally)
        fd = next(steps).fileno()
        readable.register(fd, select.EPOLLIN)
        visits[fd] = steps

    for _ in range(count):
        begin()
    tally.ready()
    while True:
        for fd, _ in readable.poll():
            if next(visits[fd], None) is None:
                begin()  # the closed one has left the epoll by itself


def visit_slowly(way: Way, count: int, tally: Tally) -> None:
    """Make one visit after another, with pauses."""
    tally.ready()
    while True:
        for _ in one_visit(way, tally):
            pass
        time.sleep(0.001)


def visit_together(way: Way, count: int, tally: Tally) -> None:
    """Make one visit each, all at the same time, as a browser does; note how long they took."""
    began = threading.Barrier(count)

    def go(_: int) -> int:
        began.wait()
        start = time.perf_counter_ns()
        sock = way()
        sock.send(b"?")
        expect(sock.recv(2), b"?")
        taken = time.perf_counter_ns() - start
        sock.close()
        return taken

    with ThreadPoolExecutor(count) as pool:
        for taken in pool.map(go, range(count)):
            tally.add(taken)
    tally.ready()
    while True:
        signal.pause()


def read_page(take: Take, count: int, tally: Tally) -> None:
    """Ask for a page; note how long its first byte took, and all of it."""
    sock = take()
    sock.send(b".")  # some proxies tell of a connection before they have made it
    expect(sock.recv(2), b".")
    start = time.perf_counter_ns()
    sock.send(b"?")
    left = len(PAGE)
    while left:
        got = len(sock.recv(left))
        if not got:
            raise ConnectionError("the page ended early")
        if left == len(PAGE):
            tally.add(time.perf_counter_ns() - start)
        left -= got
    tally.add(time.perf_counter_ns() - start)
    tally.ready()
    while True:
        signal.pause()


def give_page(take: Take, count: int, tally: Tally) -> None:
    """Send a page to who asks for it."""
    sock = take()
    tally.ready()
    while asked := sock.recv(64):
        sock.sendall(PAGE if asked == b"?" else asked)
    signal.pause()


def one_visit(way: Way, tally: Tally) -> Generator[socket.socket, None, None]:
    """Open a connection, exchange a byte and close it, yielding wherever it has to be readable."""
    start = time.perf_counter_ns()
    sock = yield from way.steps()
    sock.send(b"?")
    yield sock
    expect(sock.recv(2), b"?")
    tally.add(time.perf_counter_ns() - start)
    sock.close()


def welcome(entrance: Entrance, count: int, tally: Tally) -> None:
    """Take every visitor, and send back what it sends until it leaves."""
    readable = select.epoll()
    listening = entrance.listener.fileno()
    readable.register(listening, select.EPOLLIN)
    visitors: dict[int, socket.socket] = {}
    tally.ready()
    while True:
        for fd, _ in readable.poll():
            if fd == listening:
                sock = entrance()
                visitors[sock.fileno()] = sock
                readable.register(sock, select.EPOLLIN)
            elif got := visitors[fd].recv(64):
                visitors[fd].send(got)
            else:
                visitors.pop(fd).close()


def hold(take: Take, count: int, tally: Tally) -> None:
    """Hold connections on which nothing happens."""
    socks = [take() for _ in range(count)]
    tally.ready()
    while socks:
        signal.pause()


def call(way: Way, count: int, tally: Tally) -> None:
    """Hold connections to the door itself, each as soon as it has said something."""
    socks = [socket.create_connection(way.door) for _ in range(count)]
    for sock in socks:
        expect(sock.recv(2), b"!")
    tally.ready()
    while socks:
        signal.pause()


def wait(entrance: Entrance, count: int, tally: Tally) -> None:
    """Do nothing, as nobody comes."""
    tally.ready()
    while True:
        signal.pause()


def watch(socks: dict[int, socket.socket], events: int) -> select.epoll:
    """Make an epoll that waits for the same events of all sockets."""
    poll = select.epoll()
    for fd in socks:
        poll.register(fd, events)
    return poll


# -- processes

Do = Callable[..., None]


class Worker:
    """A process that does one of the above."""

    def __init__(self, do: Do, take: Take, count: int, end: End) -> None:
        self.tally = Tally()
        self._process = _fork.Process(target=_work, args=(do, take, count, self.tally, end), daemon=True)
        self._process.start()

    def wait_ready(self) -> None:
        """Wait until all its connections are open."""
        if not self.tally.messages.poll(READY_TIMEOUT):
            raise LoadFailed(f"connections are not open after {READY_TIMEOUT:g} s")
        self.check()

    def check(self) -> None:
        """Fail if it could not go on."""
        while self.tally.messages.poll():
            if reason := self.tally.messages.recv():
                raise LoadFailed(reason)
        if not self._process.is_alive():
            raise LoadFailed(f"a process of the load ended with {self._process.exitcode}")

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()


def _work(do: Do, take: Take, count: int, tally: Tally, end: End) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(LIFE)
    try:
        end.enter()
        do(take, count, tally)
    except OSError as exc:
        tally.failed(str(exc))


class Proxy(Protocol):
    """What is measured."""

    @property
    def door(self) -> Door | None:
        """Where it takes SOCKS5 connections; none if there is no proxy at all."""

    @property
    def site(self) -> Site:
        """Where the near and the far processes are."""


class Crew:
    """Pairs of processes that share the connections of one kind of load among them."""

    def __init__(self, proxy: Proxy, near: Do, far: Do, connections: int, pairs: int = 1) -> None:
        site = proxy.site
        self.near: list[Worker] = []
        self.far: list[Worker] = []
        for number in range(pairs):
            share = len(range(number, connections, pairs))
            entrance = Entrance(site.far)
            self.far.append(Worker(far, entrance, share, site.far))
            entrance.listener.close()
            self.near.append(Worker(near, Way(proxy.door, entrance.address), share, site.near))

    @property
    def workers(self) -> Sequence[Worker]:
        """All processes."""
        return [*self.near, *self.far]

    def wait_ready(self) -> None:
        """Wait until all connections are open."""
        for worker in self.workers:
            worker.wait_ready()

    def check(self) -> None:
        """Fail if one could not go on."""
        for worker in self.workers:
            worker.check()

    def end(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.end()
