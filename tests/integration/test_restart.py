"""
A restart under a service manager that keeps the listening sockets: sd_notify(3), FDSTORE.

The manager is the test's own, and does what systemd's documentation says; no systemd runs here.
"""

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.integration.programs import REPOSITORY, Proxy, clean_environment, socks_door
from tests.integration.test_control import ctl, said
from tests.wire import clients
from tests.wire.manager import Manager
from tests.wire.sockets import connect, free_port, read_exact
from tests.wire.targets import Target

LAUNCHER = """
import os, sys
count = int(sys.argv[1])
fds = list(map(int, sys.argv[2:2 + count]))
for place, fd in enumerate(fds):
    os.dup2(fd, 3 + place)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "proxy", *sys.argv[2 + count:]])
"""


class Service:
    """What a unit is for systemd: a program that is started with what was kept of it."""

    def __init__(self, stack: ExitStack, node: Proxy) -> None:
        self.manager = Manager(stack)
        self.node = node

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[bytes]"]:
        """Start it, and wait until it is ready."""
        kept = [(name, fd) for name, fds in self.manager.store.items() for fd in fds]
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for _, fd in kept]  # beyond those that it is to have
        environment = {"NOTIFY_SOCKET": self.manager.address, "LISTEN_FDS": str(len(kept))}
        environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in kept)
        command = [sys.executable, "-c", LAUNCHER, str(len(kept)), *map(str, high)]
        with self.node.log_path.open("ab") as log:
            process = subprocess.Popen(
                [*command, "-c", str(self.node.config_path)],
                pass_fds=high,
                env=clean_environment(self.node.directory, **environment),
                cwd=REPOSITORY,
                stderr=log,
            )
        for fd in high:
            os.close(fd)
        try:
            assert self.manager.hear() == "READY=1"
            yield process
        finally:
            process.kill()
            process.wait(30)

    def stop(self, process: "subprocess.Popen[bytes]") -> None:
        """Stop it as a restart does; it keeps what it has."""
        process.terminate()
        assert self.manager.hear() == "STOPPING=1"
        assert process.wait(30) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_restart_loses_nobody_who_comes_meanwhile(stack: ExitStack, echo: Target, workers: int) -> None:
    node = Proxy({"proxy": {"workers": workers}, "listeners": {"socks": socks_door(auth="none")}})
    service = Service(stack, node)
    with service.running() as process:
        service.manager.hear_of("socks")
        with closing(clients.socks5(node.door("socks"), "127.0.0.1", echo.port)):
            pass
        service.stop(process)
    results: list[bytes] = []

    def come() -> None:
        with closing(clients.socks5(node.door("socks"), "127.0.0.1", echo.port, timeout=60)) as tunnel:
            tunnel.sendall(b"hello")
            results.append(read_exact(tunnel, 5))

    waiting = [threading.Thread(target=come) for _ in range(10)]
    for each in waiting:
        each.start()
    with service.running() as process:
        for each in waiting:
            each.join(60)
        assert results == [b"hello"] * 10, node.log
        service.manager.hear_of("socks")
        service.stop(process)
    assert "no listener has the address" not in node.log
    assert "Traceback" not in node.log


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_the_kernel_has_chosen_stays_in_a_restart(
    stack: ExitStack, echo: Target, workers: int
) -> None:
    """Its address does not tell whose it is, but the name under which it is kept does."""
    doors = {name: socks_door(auth="none", listen_addr="127.0.0.1:0") for name in ("one", "two", "three")}
    node = Proxy({"proxy": {"workers": workers}, "listeners": doors})
    service = Service(stack, node)

    def addresses() -> dict[str, str]:
        answer = json.loads(said(ctl(node, "--json", "status")))
        return {each["name"]: each["addresses"][0] for each in answer["listeners"]}

    with service.running() as process:
        before = addresses()
        service.stop(process)
    with service.running() as process:
        assert addresses() == before
        for address in before.values():
            door = ("127.0.0.1", int(address.rpartition(":")[2]))
            with closing(clients.socks5(door, "127.0.0.1", echo.port)):
                pass
        service.stop(process)
    assert "no listener has the address" not in node.log


def test_what_is_kept_follows_the_listeners(stack: ExitStack, echo: Target) -> None:
    node = Proxy({"listeners": {"socks": socks_door(auth="none"), "other": socks_door()}})
    service = Service(stack, node)
    with service.running():
        service.manager.hear_of("socks", "other")
        port = free_port()
        said(
            ctl(
                node,
                "set",
                "listeners.new.protocol",
                "websocket",
                "listeners.new.listen_addr",
                f"127.0.0.1:{port}",
            )
        )
        service.manager.hear_of("socks", "other", "new")
        said(ctl(node, "unset", "listeners.other", "listeners.new"))
        service.manager.hear_of("socks")
        # Nobody has it any more, the manager neither.
        with pytest.raises(ConnectionRefusedError):
            connect(("127.0.0.1", port))


def test_what_no_listener_has_after_a_restart_is_kept_no_more(stack: ExitStack) -> None:
    doors = {"socks": socks_door(auth="none"), "other": socks_door()}
    node = Proxy({"listeners": doors})
    service = Service(stack, node)
    with service.running() as process:
        service.manager.hear_of("socks", "other")
        service.stop(process)
    node.write({"listeners": {"socks": doors["socks"]}})
    with service.running():
        service.manager.hear_of("socks")
        with pytest.raises(ConnectionRefusedError):
            connect(("127.0.0.1", int(doors["other"]["listen_addr"].rpartition(":")[2])))


def test_a_unix_socket_and_its_file_are_there_for_the_next_start(
    stack: ExitStack, echo: Target, tmp_path: Path
) -> None:
    path = tmp_path / "door"
    node = Proxy({"listeners": {"socks": socks_door(auth="none", listen_addr=f"unix:{path}")}})
    service = Service(stack, node)
    with service.running() as process:
        service.manager.hear_of("socks")
        service.stop(process)
    assert stat.S_ISSOCK(path.stat().st_mode)
    waiting = stack.enter_context(connect((str(path), 0)))
    waiting.sendall(b"\x05\x01\x00")
    with service.running():
        assert read_exact(waiting, 2) == b"\x05\x00"


def test_a_sighup_keeps_what_is_kept(stack: ExitStack) -> None:
    node = Proxy({"listeners": {"socks": socks_door(auth="none")}})
    service = Service(stack, node)
    with service.running() as process:
        service.manager.hear_of("socks")
        process.send_signal(signal.SIGHUP)
        assert [service.manager.hear(), service.manager.hear()] == ["RELOADING=1", "READY=1"]
        assert service.manager.store.keys() == {"socks"}
