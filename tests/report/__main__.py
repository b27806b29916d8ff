"""
Measure the figures by which the program is judged, on real runs, and print them.

``make report``. It ends with 1 if a figure misses its bar.
"""

import hashlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from itertools import product
from statistics import median
from typing import NamedTuple

from proxy.console import progress
from tests.integration.programs import Proxy, socks_door, upstream, web_door
from tests.wire import clients, targets
from tests.wire.clients import OPEN, Tunnel
from tests.wire.targets import Target

CONNECTIONS = 250  # through each door by each way out
TRANSFERS = 50  # the same
LARGEST = 1 << 20  # bytes
AT_ONCE = 16
DOWN = (1.0, 2.0, 4.0, 6.0, 9.0)  # seconds that an upstream is down, in one run each
POLL = 0.02  # seconds between two connections that look
GIVE_UP = 30.0  # seconds
BANDWIDTH = 2 << 20  # bytes a second
SECONDS = 5

DOORS = ("socks5", "websocket")
WAYS = ("direct", "socks5", "websocket")


class Figure(NamedTuple):
    """One line of the report."""

    name: str
    value: str
    bar: str
    passed: bool


class House:
    """A node with both doors for each way out, the nodes it goes out by, and a target that echoes."""

    def __init__(self, stack: ExitStack) -> None:
        self.target = stack.enter_context(Target(targets.echo))
        far = Proxy({"listeners": {"socks5": socks_door(), "websocket": web_door()}})
        self._far = stack.enter_context(far)
        near = {
            f"{door}-{way}": (socks_door if door == "socks5" else web_door)(upstream=way)
            for door, way in product(DOORS, WAYS)
        }
        ways = {way: upstream(way, self._far.door(way)) for way in WAYS if way != "direct"}
        self._near = stack.enter_context(Proxy({"listeners": near, "upstreams": ways}))

    def open(self, door: str, way: str) -> Tunnel:
        """Open a tunnel to the target."""
        return OPEN[door](self._near.door(f"{door}-{way}"), "127.0.0.1", self.target.port)


def success_rate(house: House) -> Figure:
    """Connect many times, and see one byte come back each time."""
    succeeded, tried = _try_all(CONNECTIONS, lambda door, way: _greets(house.open(door, way)))
    rate = f"{100 * succeeded / tried:.2f} % of {tried}"
    return Figure("connection success rate", rate, "100 %", succeeded == tried)


def integrity(house: House) -> Figure:
    """Send random bytes both ways, and compare their hashes."""
    succeeded, tried = _try_all(TRANSFERS, lambda door, way: _echoes(house.open(door, way)))
    rate = f"{100 * succeeded / tried:.2f} % of {tried}"
    return Figure("transfer integrity", rate, "100 %", succeeded == tried)


def _try_all(count: int, attempt: Callable[[str, str], bool]) -> tuple[int, int]:
    pairs = list(product(DOORS, WAYS)) * count
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(lambda pair: _succeeds(attempt, *pair), pairs)), len(pairs)


def _succeeds(attempt: Callable[[str, str], bool], door: str, way: str) -> bool:
    try:
        return attempt(door, way)
    except (OSError, clients.SocksRefused, clients.HttpRefused) as exc:
        print(f"{door} by {way}: {exc}", file=sys.stderr)
        return False


def _greets(tunnel: Tunnel) -> bool:
    try:
        tunnel.sendall(b"?")
        return tunnel.recv(1) == b"?"
    finally:
        tunnel.close()


def _echoes(tunnel: Tunnel) -> bool:
    data = os.urandom(random.randrange(LARGEST))

    def send() -> None:
        with suppress(OSError):  # the reader finds the same fault
            tunnel.sendall(data)
            tunnel.end()

    sender = threading.Thread(target=send)
    sender.start()
    received = hashlib.sha256()
    try:
        while piece := tunnel.recv(1 << 16):
            received.update(piece)
    finally:
        sender.join()
        tunnel.close()
    return received.digest() == hashlib.sha256(data).digest()


# Faults


class Pair:
    """A node that goes out by a preferred upstream and a backup, or by the first alone."""

    def __init__(self, stack: ExitStack, *, alone: bool, kind: str = "websocket") -> None:
        self._stack = stack
        # What goes through the preferred one ends here, and what goes through the other one there.
        self.target = stack.enter_context(Target(targets.echo))
        door = web_door() if kind == "websocket" else socks_door()
        self.home = Proxy({"listeners": {"web": door}}, starts=False)
        stack.enter_context(self.home)
        self.home.wait_listening(self.home.door("web")[1])
        address = self.home.url("web") if kind == "websocket" else f"127.0.0.1:{self.home.door('web')[1]}"
        ways = {"home": {"type": kind, "proxy_address": address}}
        if not alone:
            backup = stack.enter_context(Proxy({"listeners": {"web": web_door()}}))
            ways["backup"] = {"type": "websocket", "proxy_address": backup.url("web")}
        self.node = stack.enter_context(
            Proxy({"listeners": {"socks": socks_door(upstream=list(ways))}, "upstreams": ways})
        )

    def connects(self) -> bool:
        """Tell whether a connection succeeds now."""
        with suppress(OSError, clients.SocksRefused):
            return _greets(clients.socks5(self.node.door("socks"), "127.0.0.1", self.target.port))
        return False

    def is_home(self) -> bool:
        """Tell whether a connection goes by the preferred upstream now."""
        before = self._count()
        return self.connects() and self._count() > before

    def _count(self) -> int:
        time.sleep(0.05)  # log lines are written in batches
        return self.home.log.count(" access ")

    def kill(self) -> None:
        """End the preferred upstream as a power cut does."""
        self.home.process.send_signal(signal.SIGKILL)
        self.home.process.wait()

    def revive(self) -> None:
        """Start it again, and wait until it listens."""
        self.home.start()
        self.home.wait_listening(self.home.door("web")[1])


def _until(condition: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > GIVE_UP:
            return GIVE_UP
        time.sleep(POLL)
    return time.monotonic() - began


def _stay_down(pair: Pair, seconds: float) -> None:
    """Leave the upstream down for a while, during which clients go on trying."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pair.connects()
        time.sleep(0.1)


def switch_over() -> list[Figure]:
    """Kill the preferred upstream, and see how long a connection takes; and how long until its return."""
    away, back = [], []
    for seconds in DOWN:
        with ExitStack() as stack:
            pair = Pair(stack, alone=False)
            assert pair.connects()
            pair.kill()
            away.append(_until(pair.connects))
            _stay_down(pair, seconds)
            pair.revive()
            back.append(_until(pair.is_home))
    return [
        _seconds("switch-over when an upstream dies", away),
        _seconds("return to the preferred upstream", back),
    ]


# How a gateway can be silent: its packets vanish, or its kernel accepts and its program says nothing.
SILENT: dict[str, tuple[str, Callable[[], AbstractContextManager[int]]]] = {
    "vanished-socks5": ("socks5", targets.blackhole),
    "vanished-http": ("http", targets.blackhole),
    "vanished-wss": ("websocket", targets.blackhole),
    "mute-socks5": ("socks5", targets.mute),
    "mute-wss": ("websocket", targets.mute),
}


def silence() -> Figure:
    """Prefer a silent upstream, and see how much longer clients take than by the backup, also the first."""
    times = []
    for kind, hole in SILENT.values():
        with ExitStack() as stack:
            port = stack.enter_context(hole())
            target = stack.enter_context(Target(targets.echo))
            backup = stack.enter_context(Proxy({"listeners": {"web": web_door()}}))
            scheme = "wss://" if kind == "websocket" else ""
            ways = {
                "dead": {"type": kind, "proxy_address": f"{scheme}127.0.0.1:{port}"},
                "backup": {"type": "websocket", "proxy_address": backup.url("web")},
            }
            doors = {"both": socks_door(upstream=list(ways)), "alone": socks_door(upstream="backup")}
            node = stack.enter_context(Proxy({"listeners": doors, "upstreams": ways}))

            def connect(door: str, node: Proxy = node, target: Target = target) -> float:
                began = time.monotonic()
                assert _greets(clients.socks5(node.door(door), "127.0.0.1", target.port))
                return time.monotonic() - began

            alone = min(connect("alone") for _ in range(3))
            first = connect("both")
            with ThreadPoolExecutor(8) as pool:
                times += [took - alone for took in (first, *pool.map(connect, ["both"] * 8))]
    return _seconds("what a silent preferred upstream costs a client", times, runs="clients")


def awakening() -> Figure:
    """Freeze the preferred upstream, have it go on, and see how long it takes until it is used again."""
    times = []
    for seconds in DOWN:
        with ExitStack() as stack:
            pair = Pair(stack, alone=False, kind="socks5")
            assert pair.connects()
            pair.home.process.send_signal(signal.SIGSTOP)
            stack.callback(pair.home.process.send_signal, signal.SIGCONT)
            _stay_down(pair, seconds)
            pair.home.process.send_signal(signal.SIGCONT)
            times.append(_until(pair.is_home))
    return _seconds("return to the preferred upstream when it was silent", times)


def recovery() -> Figure:
    """Kill the only upstream, start it again, and see how long it takes until a connection succeeds."""
    times = []
    for seconds in DOWN:
        with ExitStack() as stack:
            pair = Pair(stack, alone=True)
            pair.kill()
            _stay_down(pair, seconds)
            pair.revive()
            times.append(_until(pair.connects))
    return _seconds("recovery when the only upstream returns", times)


def bandwidth() -> list[Figure]:
    """Have clients of one user want more than it may have, and see what they get, and how evenly."""
    return [_bandwidth(door, count) for door in DOORS for count in (1, AT_ONCE)]


def _bandwidth(door: str, count: int) -> Figure:
    listeners = {"socks5": socks_door(), "websocket": web_door()}
    limits = {"fair": {"per": "user", "bandwidth": BANDWIDTH}}
    with (
        Target(targets.source(bytes(8 * SECONDS * BANDWIDTH))) as target,
        Proxy({"listeners": listeners, "limits": limits}) as node,
        ExitStack() as stack,
    ):
        tunnels = [OPEN[door](node.door(door), "127.0.0.1", target.port) for _ in range(count)]
        received = [0] * count

        def receive(number: int) -> None:
            with suppress(OSError):
                while size := len(tunnels[number].recv(LARGEST)):
                    received[number] += size

        for number, tunnel in enumerate(tunnels):
            stack.callback(tunnel.close)
            threading.Thread(target=receive, args=[number], daemon=True).start()
        began = time.monotonic()
        time.sleep(SECONDS)
        got, elapsed = list(received), time.monotonic() - began
    off = sum(got) / elapsed / BANDWIDTH - 1
    slowest = min(got) / sum(got) * count
    return Figure(
        f"bandwidth that {count} by {door} share, over {SECONDS} s",
        f"{100 * off:+.1f} %, the slowest has {slowest:.2f} of the mean",
        "5 %, 0.80",
        abs(off) <= 0.05 and slowest >= 0.8,
    )


def _seconds(name: str, times: list[float], runs: str = "runs") -> Figure:
    value = f"{median(times):.2f} s (at most {max(times):.2f} s in {len(times)} {runs})"
    return Figure(name, value, "1 s", max(times) <= 1.0)


def main() -> int:
    """Measure, print, and tell whether all bars were passed."""
    with progress() as tell:
        tell("starting nodes")
        with ExitStack() as stack:
            house = House(stack)
            tell("1 of 7: success rate")
            figures = [success_rate(house)]
            tell("2 of 7: integrity")
            figures += [integrity(house)]
        faults: list[Callable[[], Figure | list[Figure]]] = [
            recovery,
            switch_over,
            silence,
            awakening,
            bandwidth,
        ]
        for number, measure in enumerate(faults, 3):
            tell(f"{number} of 7: {measure.__name__.replace('_', '-')}")
            measured = measure()
            figures += [measured] if isinstance(measured, Figure) else measured
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        mark = "" if figure.passed else "   MISSED"
        print(f"{figure.name:{width}}  {figure.value}, bar {figure.bar}{mark}")
    return 0 if all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
