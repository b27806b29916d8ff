"""
A long wire between two network namespaces: packets take their time, and some get lost.

Each end is a TUN device, and a process carries the packets from one to the other, as the kernel may have
no module for that. TCP is the kernel's own at both ends, so its connects, windows and resets are those
of a real link. The carrier is good for about 500 Mbit/s.

Nothing of this has a name, so nothing can be left behind. A namespace and the device in it last as long as
a process or a descriptor refers to them; the carrier, and every ``Program``, ends with the process that
made it, however that ends.
"""

import contextlib
import ctypes
import fcntl
import math
import multiprocessing
import os
import random
import select
import signal
import struct
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.integration.peers import find, require
from tests.wire.processes import end_with_parent

T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # unshare(2)
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
MTU = 1500
FULL = 1000  # bytes: a packet longer than that carries data
AT_ONCE = 64  # packets taken from one end before the other has its turn
TIMEOUT = 20.0  # seconds for each command that sets something up

_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Law:
    """What a wire does to packets, the same in both directions."""

    delay: float = 0.025  # seconds each way
    rate: float = 0.0  # bytes a second; 0: any
    queue: int = 1 << 20  # bytes that may wait for their turn at that rate
    loss: float = 0.0  # share of the packets, from 0 to 1
    seed: int = 0  # with the same one, the same packets are lost


class End:
    """One end of a wire, with the address that the other end knows; or this machine's own loopback."""

    def __init__(self, address: str, namespace: int | None = None) -> None:
        self.address = address
        self._namespace = namespace

    @property
    def prefix(self) -> list[str]:
        """What to write before a command that shall run here."""
        if self._namespace is None:
            return []
        return [find("nsenter", "util-linux"), f"--net=/proc/{os.getpid()}/fd/{self._namespace}", "--"]

    def enter(self) -> None:
        """Have this thread make its sockets here from now on."""
        if self._namespace is not None:
            # os.setns is there from Python 3.12 on.
            _call("setns", self._namespace, CLONE_NEWNET)

    def run(self, function: Callable[[], T]) -> T:
        """Call a function here, and give what it gives: a socket stays where it was made."""
        if self._namespace is None:
            return function()

        def inside() -> T:
            self.enter()
            return function()

        return _in_a_thread(inside)


class Site:
    """Where the two ends of a load are, and the two nodes of a chain: here, all on the loopback."""

    near = far = End("127.0.0.1")
    helper: int | None = None  # the process id of what stands in for hardware


class Wire(Site):
    """A wire with two ends, which obeys a law until it is given another one."""

    def __init__(self, law: Law | None = None) -> None:
        self._law = law or Law()
        self._open: list[int] = []

    def obey(self, law: Law) -> None:
        """Have packets that are sent from now on treated by another law."""
        self._orders.send(law)
        if not self._orders.poll(TIMEOUT):
            raise TimeoutError("the carrier of the long wire does not answer")
        self._orders.recv()

    def __enter__(self) -> "Wire":
        require(os.geteuid() == 0, "a long wire needs root")
        require(os.access("/dev/net/tun", os.R_OK | os.W_OK), "a long wire needs /dev/net/tun")
        try:
            self.near, near = self._end("10.77.0.1", "10.77.0.2")
            self.far, far = self._end("10.77.0.2", "10.77.0.1")
        except (OSError, subprocess.SubprocessError) as error:
            self._close()
            require(False, f"a long wire cannot be made: {error}")
        taken, self._orders = _fork.Pipe()
        self._carrier = _fork.Process(target=_carry, args=((near, far), taken, self._law), daemon=True)
        self._carrier.start()
        self.helper = self._carrier.pid
        taken.close()
        for device in (near, far):
            self._open.remove(device)
            os.close(device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._inhabitants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._carrier.kill()
        self._carrier.join()
        self._orders.close()
        self._close()

    def _inhabitants(self) -> Iterator[int]:
        """Find all processes at the two ends, also those that have left their program's group."""
        ours = {os.fstat(namespace).st_ino for namespace in self._open}
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):  # it has just ended
                if os.stat(f"/proc/{name}/ns/net").st_ino in ours:
                    yield int(name)

    def _end(self, address: str, peer: str) -> tuple[End, int]:
        namespace, device = _in_a_thread(lambda: self._inside(address, peer))
        return End(address, namespace), device

    def _inside(self, address: str, peer: str) -> tuple[int, int]:
        """Make a namespace and the device in it, and stay there."""
        _call("unshare", CLONE_NEWNET)
        self._open.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        self._open.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        namespace, device = self._open[-2:]
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"wire", IFF_TUN | IFF_NO_PI))
        # What a connection met with is nothing that the next one shall know.
        Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")
        ip = find("ip", "iproute2")
        for command in (
            "link set lo up",
            f"link set wire mtu {MTU} txqueuelen 10000 up",
            f"address add {address} peer {peer} dev wire",
        ):
            subprocess.run([ip, *command.split()], check=True, capture_output=True, timeout=TIMEOUT)
        return namespace, device

    def _close(self) -> None:
        while self._open:
            os.close(self._open.pop())


def _in_a_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own, which alone goes elsewhere."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


# -- the carrier


def _carry(devices: tuple[int, int], orders: Connection, law: Law) -> None:
    """Carry packets both ways until somebody ends us."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever made the wire ends it
    ways = {source: Direction(source, sink, law) for source, sink in (devices, devices[::-1])}
    poll = select.epoll()
    for descriptor in (*devices, orders.fileno()):
        poll.register(descriptor, select.EPOLLIN)
    while True:
        first = min((way.due[0][0] for way in ways.values() if way.due), default=math.inf)
        wait = None if first == math.inf else max(0.0, first - time.monotonic())
        for descriptor, _ in poll.poll(wait):
            if descriptor in ways:
                ways[descriptor].take()
            else:
                law = orders.recv()
                for way in ways.values():
                    way.obey(law)
                orders.send(None)
        for way in ways.values():
            way.give()


class Direction:
    """The packets that are under way in one direction, in their order."""

    def __init__(self, source: int, sink: int, law: Law) -> None:
        self.due: deque[tuple[float, bytes]] = deque()
        self._source, self._sink = source, sink
        self._free = 0.0  # when all that was put on the wire has been sent
        self.obey(law)

    def obey(self, law: Law) -> None:
        """Treat packets by this law from now on."""
        self._law = law
        # Full packets are drawn for by themselves: which of them are lost shall not depend on how many
        # acknowledgements and handshakes lie between them.
        self._draw, self._draw_full = random.Random(law.seed), random.Random(~law.seed)

    def take(self) -> None:
        """Take what is there, though not so much that the other direction has to wait for long."""
        law = self._law
        for _ in range(AT_ONCE):
            try:
                packet = os.read(self._source, MTU)
            except BlockingIOError:
                return
            now = time.monotonic()
            begin = max(now, self._free)
            draw = self._draw_full if len(packet) > FULL else self._draw
            if law.loss and draw.random() < law.loss:
                continue
            if law.rate:
                if (begin - now) * law.rate > law.queue:
                    continue
                begin += len(packet) / law.rate
                self._free = begin
            self.due.append((begin + law.delay, packet))

    def give(self) -> None:
        """Deliver what has arrived."""
        now = time.monotonic()
        while self.due and self.due[0][0] <= now:
            with contextlib.suppress(OSError):  # the device's queue is full: lost, as on a real wire
                os.write(self._sink, self.due.popleft()[1])
