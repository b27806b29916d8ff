"""What a service manager is told and hands over, as sd_notify(3) and sd_listen_fds(3) say."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import gevent
import pytest

from proxy.control.notify import Notifier
from tests.integration.programs import REPOSITORY


class Manager:
    """The service manager's end: a datagram socket."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(5)
        self.sock.bind("\0" + name[1:] if name.startswith("@") else name)

    def heard(self) -> list[str]:
        return self.sock.recv(4096).decode().split("\n")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(prefix="pxt-") as folder:
        name = f"{folder}/notify"
        if request.param == "abstract":
            name = "@" + name
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        manager = Manager(name)
        yield manager
        manager.sock.close()


def test_it_hears_of_the_whole_life(manager: Manager) -> None:
    notifier = Notifier()
    notifier.ready()
    assert manager.heard() == ["READY=1"]
    notifier.reloading()
    reloading, since = manager.heard()
    # sd_notify(3): RELOADING=1 comes with the CLOCK_MONOTONIC time in microseconds.
    assert reloading == "RELOADING=1"
    assert since.startswith("MONOTONIC_USEC=")
    notifier.ready()
    assert manager.heard() == ["READY=1"]
    notifier.stopping()
    assert manager.heard() == ["STOPPING=1"]


def test_a_program_without_a_descriptor_still_shows_that_it_is_alive(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 178: else the watchdog would end what only has too many clients."""

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    notifier = Notifier()
    monkeypatch.setattr("proxy.control.notify.socket.socket", fail)
    notifier.ready()
    assert manager.heard() == ["READY=1"]


def test_no_child_inherits_the_address(manager: Manager) -> None:
    Notifier()
    assert "NOTIFY_SOCKET" not in os.environ


def test_the_watchdog_is_fed_at_twice_its_pace(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    beating: list[gevent.Greenlet[..., None]] = []
    monkeypatch.setattr(gevent, "spawn", lambda *given: beating.append(gevent.Greenlet.spawn(*given)))
    Notifier().start_watchdog()
    (heart,) = beating
    assert heart.args == (0.02,)
    manager.sock.settimeout(0)
    beats: list[str] = []
    with gevent.Timeout(10):
        while len(beats) < 3:
            gevent.sleep(0.01)
            with suppress(BlockingIOError):
                beats += manager.heard()
    heart.kill()
    assert set(beats) == {"WATCHDOG=1"}


@pytest.mark.parametrize(
    "settings", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "40000", "WATCHDOG_PID": "1"}]
)
def test_a_watchdog_that_is_not_ours_is_not_fed(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    Notifier().start_watchdog()
    gevent.sleep(0.03)  # half of 40 ms would be over
    manager.sock.settimeout(0)
    with pytest.raises(BlockingIOError):
        manager.heard()


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready()


def test_a_manager_that_is_gone_stops_nobody(manager: Manager) -> None:
    manager.sock.close()
    Notifier().ready()


# Descriptors. They begin with 3, so another process takes them.

TAKER = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
from proxy.control.notify import inherited_sockets
print([sock.getsockname() for _, sock in inherited_sockets()], "LISTEN_FDS" in os.environ)
"""


def take(*socks: socket.socket, pid_offset: int = 0, count: int | None = None) -> tuple[str, str]:
    """Start a process that has these sockets as its descriptors 3 and up, and print what it took."""
    raised = [fcntl.fcntl(sock, fcntl.F_DUPFD, 100) for sock in socks]  # beyond those that it is to have
    arrange = "; ".join(f"os.dup2({fd}, {at})" for at, fd in enumerate(raised, 3))
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import os; {arrange or 'pass'}\n{TAKER}", str(pid_offset)],
            pass_fds=raised,
            env={"LISTEN_FDS": str(len(socks) if count is None else count), "PATH": os.defpath},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=30,
        )
    finally:
        for fd in raised:
            os.close(fd)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip(), done.stderr


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def test_listening_sockets_are_taken_over() -> None:
    with listening() as one, listening() as other:
        assert take(one, other)[0] == f"{[one.getsockname(), other.getsockname()]} False"


def test_those_of_another_process_are_not_touched() -> None:
    """sd_listen_fds(3): they are for the process that LISTEN_PID names."""
    with listening() as one:
        assert take(one, pid_offset=1)[0] == "[] False"


def test_what_is_no_listening_socket_is_left_with_a_word(tmp_path: Path) -> None:
    with socket.socket() as idle, listening() as one:
        taken, said = take(idle, one)
        assert taken == f"{[one.getsockname()]} False"
        assert "descriptor 3, which was handed over to us, is not a listening TCP or Unix socket" in said


def test_a_unix_socket_is_taken_over_if_it_has_a_file_and_is_for_streams() -> None:
    with tempfile.TemporaryDirectory(prefix="pxt-") as folder, ExitStack() as stack:
        kinds = [
            (socket.SOCK_STREAM, f"{folder}/stream"),
            (socket.SOCK_SEQPACKET, f"{folder}/packets"),
            (socket.SOCK_STREAM, f"\0{folder}"),
        ]
        socks = [stack.enter_context(socket.socket(socket.AF_UNIX, kind)) for kind, _ in kinds]
        for sock, (_, name) in zip(socks, kinds, strict=True):
            sock.bind(name)
            sock.listen()
        taken, said = take(*socks)
        assert taken == f"['{folder}/stream'] False"
        assert [line.split()[1] for line in said.splitlines()] == ["4,", "5,"]


def test_a_descriptor_that_is_not_there_is_left_with_a_word() -> None:
    with listening() as one:
        taken, said = take(one, count=2)
        assert taken == f"{[one.getsockname()]} False"
        assert "descriptor 4" in said
