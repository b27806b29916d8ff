"""
A network namespace: a loopback, routes and a resolver that are a test's own.

A socket belongs for life to the namespace in which it was made. So programs are started inside with
``ip netns exec``, and a test makes its own sockets in a thread that went inside (``run``), and uses
them from wherever it likes.
"""

import ctypes
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.integration.peers import find, require

CLONE_NEWNET = 0x40000000

T = TypeVar("T")

_numbers = itertools.count()


class Namespace:
    """A network namespace with a loopback, and a resolver that asks 127.0.0.1."""

    def __init__(self, *routes: str) -> None:
        require(os.geteuid() == 0, "a network namespace needs root")
        self._ip = find("ip", "iproute2")
        self.name = f"pxt-{os.getpid()}-{next(_numbers)}"
        self.routes = routes
        self._etc = Path("/etc/netns") / self.name

    @property
    def prefix(self) -> list[str]:
        """What to write before a command that shall run inside."""
        return [self._ip, "netns", "exec", self.name]

    def ip(self, *arguments: str) -> None:
        """Run the ip command inside."""
        subprocess.run([self._ip, "-n", self.name, *arguments], check=True, capture_output=True, timeout=60)

    def run(self, function: Callable[[], T]) -> T:
        """Call a function in a thread inside the namespace, and give what it gives."""
        outcome: list[T] = []
        fault: list[BaseException] = []

        def inside() -> None:
            try:
                self._enter()
                outcome.append(function())
            except BaseException as error:
                fault.append(error)

        thread = threading.Thread(target=inside, daemon=True)
        thread.start()
        thread.join(60)
        if fault:
            raise fault[0]
        assert outcome, "the function inside the namespace did not end"
        return outcome[0]

    def _enter(self) -> None:
        # os.setns is there from Python 3.12 on.
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self.name}") as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def hosts(self, text: str) -> None:
        """Have programs that are started from now on find this in /etc/hosts."""
        (self._etc / "hosts").write_text(text)

    def resolver(self, text: str) -> None:
        """Have programs that are started from now on find this in /etc/resolv.conf."""
        (self._etc / "resolv.conf").write_text(text)

    def without_ipv6(self) -> None:
        """Take IPv6 away, as a kernel does that was told to."""
        setting = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"
        self.run(lambda: [Path(setting.format(name)).write_text("1") for name in ("all", "lo")])

    def __enter__(self) -> "Namespace":
        made = subprocess.run(
            [self._ip, "netns", "add", self.name], capture_output=True, text=True, timeout=20
        )
        require(made.returncode == 0, f"cannot make a network namespace: {made.stderr.strip()}")
        self._etc.mkdir(parents=True)
        self.resolver("nameserver 127.0.0.1\nsearch .\noptions timeout:5 attempts:1\n")
        self.ip("link", "set", "lo", "up")
        for route in self.routes:
            self.ip("route", "add", *route.split())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run([self._ip, "netns", "del", self.name], capture_output=True, timeout=60)
        shutil.rmtree(self._etc, ignore_errors=True)
