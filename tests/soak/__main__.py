"""
Keep a node busy for twenty minutes, and see that it holds no more at the end than after the first.

``make soak`` does so; ``MINUTES=5 TUNNELS=500`` choose. Two in three tunnels go directly, the others through
a gateway, and idle all the time. Beside them short connections come and go, bulk flows, the configuration is
changed while it runs, and a second gateway is stopped and started again and again. Everything stays on this
machine.
"""

import asyncio
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from proxy.console import progress
from tests.integration.programs import Proxy, run_proxy, socks_door, upstream, web_door
from tests.wire import clients
from tests.wire.clients import SocksRefused, Tunnel
from tests.wire.processes import descriptors_of
from tests.wire.sockets import read_exact

MINUTES = 20.0
TUNNELS = 2000
EVERY = 10.0  # seconds between two lines
GROWTH = 1.05  # of the private memory, from the end of the first minute on
SETTLE = 3.0  # seconds until what is held is taken for normal
QUIET = 30.0  # seconds in which what came and went may go
BULK = os.urandom(1 << 20)


@dataclass
class Held:
    """What a process holds."""

    memory: int  # bytes that are its own
    descriptors: int

    @classmethod
    def by(cls, pid: int) -> "Held":
        """Look at a process."""
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        private = (line.split() for line in lines if line.startswith("Private_"))
        return cls(sum(int(words[1]) for words in private) << 10, sum(1 for _ in descriptors_of(pid)))

    def __str__(self) -> str:
        return f"{self.memory / (1 << 20):.1f} MiB, {self.descriptors} descriptors"


@dataclass
class Load:
    """What comes and goes beside the idle tunnels, and how often it did."""

    home: Proxy
    target: int
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("short", "refused", "bulk MiB", "changes", "flaps"), 0)
    )
    faults: list[str] = field(default_factory=list)

    def short(self) -> None:
        """Say a word by each way, and hear it back; the gateway that flaps may be down."""
        for way in ("direct", "chain", "flapping"):
            try:
                tunnel = clients.socks5(self.home.door(way), "127.0.0.1", self.target)
                tunnel.sendall(b"hello")
                if read_exact(tunnel, 5) != b"hello":
                    raise ValueError("another answer")
                tunnel.close()
                self.counts["short"] += 1
            except (SocksRefused, OSError, EOFError):
                if way != "flapping":
                    raise
                self.counts["refused"] += 1

    def bulk(self) -> None:
        """Send a megabyte by the chain, and have it back."""
        tunnel = clients.socks5(self.home.door("chain"), "127.0.0.1", self.target)
        sender = threading.Thread(target=tunnel.sendall, args=(BULK,), daemon=True)
        sender.start()
        if read_exact(tunnel, len(BULK)) != BULK:
            raise ValueError("other bytes came back")
        sender.join()
        tunnel.close()
        self.counts["bulk MiB"] += 1
        time.sleep(0.2)  # it is no benchmark

    def change(self) -> None:
        """Change a setting in the file and in effect."""
        self.counts["changes"] += 1
        setting = ("proxy.timeout", f"{20 + self.counts['changes'] % 9}s")
        done = run_proxy("ctl", "-c", str(self.home.config_path), "set", *setting)
        if done.returncode:
            raise ValueError(f"ctl set: {done.stderr.decode()}")
        time.sleep(2)

    def repeat(self, action: Callable[[], None], stop: threading.Event) -> threading.Thread:
        """Do something again and again, in a thread."""

        def go() -> None:
            while not stop.is_set():
                try:
                    action()
                except Exception as exc:
                    self.faults.append(f"{action.__name__}: {type(exc).__name__}: {exc}")
                    return

        thread = threading.Thread(target=go, daemon=True)
        thread.start()
        return thread


@contextmanager
def echoing() -> Iterator[int]:
    """Run a server in a thread that gives back what it gets, to thousands at a time."""
    ready: queue.Queue[tuple[int, Callable[[], object]]] = queue.Queue()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=1024)
        ready.put((server.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(stop.set)))
        await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    port, stop = ready.get(timeout=10)
    try:
        yield port
    finally:
        stop()
        thread.join(10)


def soak(seconds: float, tunnels: int, first: float, every: float = EVERY) -> list[str]:
    """Keep a node busy, and give what was wrong; ``first`` is when what it holds is taken for normal."""
    with ExitStack() as stack:
        many = {"max_connections": 2 * tunnels + 100}
        gateway = stack.enter_context(Proxy({"proxy": many, "listeners": {"web": web_door()}}))
        flapping = stack.enter_context(Proxy({"listeners": {"web": web_door()}}))
        ways = {
            "steady": upstream("websocket", gateway.url("web")),
            "flapping": upstream("websocket", flapping.url("web")),
        }
        doors = {
            "direct": socks_door(),
            "chain": socks_door(upstream="steady"),
            "flapping": socks_door(upstream="flapping"),
        }
        config = {
            "control": {},
            "proxy": {"idle_timeout": "0", **many},
            "listeners": doors,
            "upstreams": ways,
        }
        home = stack.enter_context(Proxy(config))
        target = stack.enter_context(echoing())
        load = Load(home, target)
        idle = []
        with progress() as tell:
            for n in range(tunnels):
                tell(f"opening tunnel {n + 1} of {tunnels}")
                idle.append(_open(stack, home, target, "chain" if n % 3 == 0 else "direct"))

        _busy(load, flapping, first, every)
        normal = _at_rest(home, None)
        print(f"normal: {normal}", flush=True)
        _busy(load, flapping, seconds - first, every)
        last = _at_rest(home, normal)
        print(f"last: {last}; {_told(load)}", flush=True)

        wrong = [*load.faults, *(line for line in home.log.splitlines() if " error " in line[:40])]
        wrong += grown(normal, last)
        dead = sum(not _echoes(tunnel) for tunnel in idle)
        if dead:
            wrong.append(f"{dead} of {tunnels} idle tunnels are dead")
        return wrong


def grown(normal: Held, last: Held) -> list[str]:
    """Tell what there is more of than there may be."""
    found = []
    if last.memory > normal.memory * GROWTH:
        found.append(f"memory grew from {normal.memory} to {last.memory} bytes")
    if last.descriptors > normal.descriptors:
        found.append(f"descriptors grew from {normal.descriptors} to {last.descriptors}")
    return found


def _open(stack: ExitStack, home: Proxy, target: int, way: str) -> Tunnel:
    tunnel = clients.socks5(home.door(way), "127.0.0.1", target)
    stack.callback(tunnel.close)
    return tunnel


def _busy(load: Load, flapping: Proxy, seconds: float, every: float) -> None:
    """Put the load on the node for a while, and tell of it."""
    stop = threading.Event()
    threads = [load.repeat(action, stop) for action in (load.short, load.short, load.bulk, load.change)]
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        with progress() as tell:
            tell(f"keeping it busy for {left:.0f} s more")
            time.sleep(min(every, left))
        flapping.stop()
        load.counts["flaps"] += 1
        print(f"{left:5.0f} s left: {Held.by(load.home.pid)}; {_told(load)}", flush=True)
        flapping.start()
    stop.set()
    for thread in threads:
        thread.join(60)


def _at_rest(home: Proxy, normal: Held | None) -> Held:
    """Look at the node when what came and went has gone; at the second time, when it is as at the first."""
    ends = time.monotonic() + QUIET
    least = Held.by(home.pid)
    with progress() as tell:
        while (left := ends - time.monotonic()) > 0:
            tell(f"leaving it alone, for {left:.0f} s at most")
            now = Held.by(home.pid)
            settled = now.descriptors == least.descriptors
            least = Held(min(now.memory, least.memory), min(now.descriptors, least.descriptors))
            waited = QUIET - (ends - time.monotonic())
            if settled and waited > SETTLE if normal is None else not grown(normal, now):
                return least
            time.sleep(0.5)
    return least


def _told(load: Load) -> str:
    return ", ".join(f"{count} {name}" for name, count in load.counts.items())


def _echoes(tunnel: Tunnel) -> bool:
    with suppress(OSError, EOFError):
        tunnel.sendall(b"still there?")
        return read_exact(tunnel, 12) == b"still there?"
    return False


def main() -> int:
    """Soak, and give the exit code: 1 if anything was wrong."""
    minutes = float(os.environ.get("MINUTES") or MINUTES)
    tunnels = int(os.environ.get("TUNNELS") or TUNNELS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wrong = soak(60 * minutes, tunnels, first=min(60.0, 15 * minutes))
    print("\n".join(wrong) or f"nothing grew, and all {tunnels} idle tunnels live", flush=True)
    return min(len(wrong), 1)


if __name__ == "__main__":
    sys.exit(main())
