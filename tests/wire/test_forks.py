"""A program that is a fork is like one that was started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.programs import Proxy, clean_environment, run_proxy, socks_door
from tests.wire.processes import descriptors_of
from tests.wire.waits import wait_until

STARTS = """
import os, sys
from tests.wire.forks import Nursery
from tests.integration.programs import clean_environment
nothing = os.open(os.devnull, os.O_RDWR)
arguments = ["-mode", "server", "-protocol", "socks5", "-addr", "127.0.0.1:0"]
fork = Nursery(clean_environment("/")).start(arguments, "/", clean_environment("/"), (nothing,) * 3)
print(fork.pid, flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (("-version",), b""),
        (("-c", "none.ini", "-check"), b""),
        (("-bogus",), b""),
        (("-mode", "client", "-protocol", "socks5", "-addr", "x:1"), b""),
        (("-init", "-"), b""),
        (("-hash-password",), b""),
        (("ctl", "-c", "none.ini", "nonsense"), b""),
        (("-mode", "server", "-protocol", "socks5", "-addr", ":0"), b""),  # which it says to PROXY_PASSWORD
    ],
)
def test_it_says_the_same_and_ends_in_the_same_way(arguments: tuple[str, ...], stdin: bytes) -> None:
    environment = {"PROXY_PASSWORD": "sesame"}
    fork, real = (
        run_proxy(*arguments, stdin=stdin, environment=environment, real=each) for each in (False, True)
    )
    assert fork.stdout + fork.stderr
    assert (fork.returncode, fork.stdout, fork.stderr) == (real.returncode, real.stdout, real.stderr)


@pytest.mark.parametrize("real", [False, True])
def test_it_has_a_folder_and_a_group_of_its_own_and_no_descriptor_of_the_tests(real: bool) -> None:
    with Proxy({"listeners": {"socks": socks_door()}}, real=real) as node:
        place = Path(f"/proc/{node.pid}")
        assert (place / "cwd").readlink() == node.directory
        assert os.getpgid(node.pid) == os.getsid(node.pid) == node.pid
        held = {link for _, link in descriptors_of(node.pid)}
        ours = {link for _, link in descriptors_of(os.getpid()) if link.startswith(("socket:", "pipe:"))}
        assert not held & ours


def test_it_tells_by_which_signal_it_ended() -> None:
    with Proxy({"listeners": {"socks": socks_door()}}, starts=False) as node:
        node.wait_listening(node.door("socks"))
        node.signal(signal.SIGKILL)
        assert node.wait(10) == -signal.SIGKILL
        assert node.process.poll() == -signal.SIGKILL


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_tests_however_these_end(end: signal.Signals) -> None:
    command = [sys.executable, "-c", STARTS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment("/")
    ) as tests:
        assert tests.stdout
        pid = int(tests.stdout.readline())
        tests.send_signal(end)
        tests.wait(10)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the program to end")
