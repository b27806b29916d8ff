"""
Besiege a node: each attack for some seconds, beside a good client; show what the client notices.

``make siege`` runs them all, ``make siege ATTACK=frames SECONDS=5 TUNNELS=900`` one of them. Everything stays
on this machine. Run it where nothing else runs: the attacker, the node and the good client share its cores.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from proxy.console import progress
from proxy.policy.auth import hash_password
from tests.bench.meter import clock
from tests.bench.tables import Table
from tests.doors import MIB
from tests.integration.certificates import Authority
from tests.integration.programs import REPOSITORY, Proxy, mixed_door, socks_door, upstream, web_door
from tests.siege.attacks import ATTACKS, HERE, Ports
from tests.wire import clients, targets
from tests.wire.processes import memory_of
from tests.wire.sockets import Credentials, read_exact
from tests.wire.targets import Target

SECONDS = 8.0
GRACE = 10.0  # seconds in which an attack ends that is told to
MESSAGE = b"x" * 64
EVERY = 0.005  # seconds from one message of the good client to the next,
NEWCOMER = 0.2  # and from one connection to the next
PATIENCE = 5.0  # seconds of the good client
HEAD = ("", "kB/s", "echo p50", "p99", "before", "new p99", "before", "failed", "MiB", "more", "after", "CPU")
NOTES = (
    "kB/s: what the attacker sent. echo, new: a message of the good client there and back, and a connection",
    "with one, in ms, during the attack; before: their p99 without it. failed: connections that failed.",
    "MiB: the node's memory before, how much more it was at most, and 2 s after. CPU: of one core.",
)


@dataclass
class Seen:
    """What the good client has seen for a while, and what the node took."""

    echoes: list[float] = field(default_factory=list)  # seconds
    newcomers: list[float] = field(default_factory=list)
    failed: int = 0
    memory: int = 0  # bytes, at most
    cpu: float = 0.0  # of one core


class Node(Proxy):
    """A node that may not be able to stop in good order any more."""

    def stop(self) -> None:
        """End it."""
        self.kill()


class Siege:
    """A node, what it reaches, and a good client that uses it."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        """Start everything; the good client's new connections use what the attack is aimed at."""
        self.name = name
        echo = stack.enter_context(Target(targets.echo))
        sink = stack.enter_context(Target(targets.sink))
        # Of those who logged in once the password is remembered, so each comes once.
        guests = [f"guest{number}" for number in range(200 if name == "logins" else 1)]
        users = dict.fromkeys(guests, hash_password("wonderland")) | {"good": hash_password("wonderland")}
        folder = stack.enter_context(TemporaryDirectory(prefix="siege-"))
        certificate = Authority(Path(folder)).issue("node", "localhost")
        far = stack.enter_context(Node({"listeners": {"web": web_door()}}))
        listeners = {
            "open": socks_door(auth="none"),
            "open-web": web_door(auth="none"),
            "chain": socks_door(auth="none", upstream="far"),
            "login": socks_door(),
            "other-login": socks_door(),
            "web": web_door(),
            "wss": web_door(**certificate.settings),
            "mixed": mixed_door(auth="none"),
        }
        ways = {"far": upstream("websocket", far.door("web"))}
        self.node = stack.enter_context(
            Node({"listeners": listeners, "upstreams": ways, "auth_users": users})
        )
        self.ports: Ports = {each: self.node.door(each)[1] for each in listeners} | {
            "echo": echo.port,
            "sink": sink.port,
        }
        self._guests = iter(guests if name == "logins" else ())
        self._tunnel = self._open("open")

    def watch(self, seconds: float) -> Seen:
        """Use the node as a good client does, and look at what it takes."""
        seen = Seen()
        until = time.monotonic() + seconds
        newcomers = threading.Thread(target=self._come, args=(seen, until), daemon=True)
        spent, began = clock(self.node.pid), time.monotonic()
        newcomers.start()
        while time.monotonic() < until:
            seen.echoes.append(self._exchange())
            time.sleep(EVERY)
        seen.cpu = (clock(self.node.pid) - spent) / (time.monotonic() - began)
        newcomers.join(2 * PATIENCE)
        return seen

    def _exchange(self) -> float:
        """Give how long a message takes there and back; one that is lost takes all our patience."""
        start = time.monotonic()
        try:
            self._tunnel.sendall(MESSAGE)
            read_exact(self._tunnel, len(MESSAGE))
            return time.monotonic() - start
        except OSError:
            self._tunnel.close()
            with suppress(OSError):
                self._tunnel = self._open("open")
            return PATIENCE

    def _come(self, seen: Seen, until: float) -> None:
        while time.monotonic() < until:
            start = time.monotonic()
            try:
                self._greet()
                seen.newcomers.append(time.monotonic() - start)
            except (OSError, clients.SocksRefused, clients.LoginRefused):
                seen.failed += 1
            seen.memory = max(seen.memory, memory_of(self.node.pid))
            time.sleep(NEWCOMER)

    def _greet(self) -> None:
        guest = next(self._guests, None)
        if guest:
            tunnel = self._open("other-login", (guest, "wonderland"))
        else:
            tunnel = self._open("chain" if self.name == "targets" else "open")
        with tunnel.sock:
            tunnel.sendall(MESSAGE)
            read_exact(tunnel, len(MESSAGE))

    def _open(self, door: str, login: Credentials | None = None) -> clients.Tunnel:
        return clients.socks5((HERE, self.ports[door]), HERE, self.ports["echo"], login, timeout=PATIENCE)

    @contextmanager
    def under_attack(self, seconds: float) -> Iterator["subprocess.Popen[str]"]:
        """Attack meanwhile."""
        command = [
            sys.executable,
            "-m",
            "tests.siege.attacks",
            self.name,
            json.dumps(self.ports),
            str(seconds),
        ]
        attacker = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        try:
            yield attacker
        finally:
            attacker.kill()
            attacker.wait(GRACE)


def besiege(name: str, seconds: float, which: str = "") -> list[str]:
    """Measure without and under an attack, and give a line of the table; ``which`` one it is of how many."""
    with ExitStack() as stack:
        tell = stack.enter_context(progress())
        tell(f"{which}: starting a node")
        siege = Siege(name, stack)
        tell(f"{which}: the good client alone, {1.25 * seconds:.0f} s")
        siege.watch(seconds / 4)  # until everything is warm
        before = siege.watch(seconds)
        memory = memory_of(siege.node.pid)
        tell(f"{which}: under attack, {seconds:.0f} s")
        with siege.under_attack(seconds) as attacker:
            during = siege.watch(seconds)
            output, _ = attacker.communicate(timeout=seconds + GRACE)
        sent = json.loads(output or '{"size": 0}')
        time.sleep(2)
        after = memory_of(siege.node.pid)
    return [
        name,
        f"{sent['size'] / 1000 / seconds:.0f}",
        ms(during.echoes, 0.5),
        ms(during.echoes, 0.99),
        ms(before.echoes, 0.99),
        ms(during.newcomers, 0.99),
        ms(before.newcomers, 0.99),
        f"{during.failed} of {during.failed + len(during.newcomers)}",
        f"{memory / MIB:.0f}",
        f"{(max(during.memory, memory) - memory) / MIB:.1f}",
        f"{(after - memory) / MIB:+.1f}",
        f"{during.cpu:.0%}",
    ]


def ms(values: list[float], share: float) -> str:
    """Give a quantile in milliseconds."""
    if not values:
        return "-"
    return f"{1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))]:.1f}"


def main() -> None:
    """Run the attacks."""
    seconds = float(os.environ.get("SECONDS") or SECONDS)
    names = os.environ.get("ATTACK", "").replace(",", " ").split() or list(ATTACKS)
    if unknown := set(names) - set(ATTACKS):
        sys.exit(f"siege: {', '.join(sorted(unknown))}: choose from {', '.join(ATTACKS)}")
    rows = []
    for number, name in enumerate(names, 1):
        print(f"{name}: {(ATTACKS[name].__doc__ or '').strip()}", flush=True)
        rows.append(besiege(name, seconds, f"attack {number} of {len(names)}"))
    table = Table(f"Attacks, {seconds:g} s each", HEAD, rows)
    print("", table.text(), *NOTES, sep="\n")
    if path := os.environ.get("MARKDOWN"):
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join([table.markdown(), *NOTES, ""]))


if __name__ == "__main__":
    main()
