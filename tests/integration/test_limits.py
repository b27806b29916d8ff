"""
What the program does at its own limits: descriptors, ports.

Nobody else is blamed for them, and everybody is told.
"""

import os
import platform
import resource
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from tests.integration.netns import Namespace
from tests.integration.programs import Proxy, run_proxy, socks_door, upstream, web_door
from tests.wire import targets
from tests.wire.sockets import connect, read_exact
from tests.wire.socks5 import (
    GRANTED,
    hear_greeting,
    hear_request,
    read_socks_reply,
    socks_greeting,
    socks_request,
)
from tests.wire.targets import Target
from tests.wire.waits import wait_until
from tests.wire.websocket import Peer, upgrade_request

CLIENTS = 96


def ask(node: Proxy, stack: ExitStack, port: int, *, door: str = "socks") -> socket.socket:
    """Be a client that has sent all it has to say, for a target on this machine."""
    sock = stack.enter_context(connect(node.door(door)))
    if door == "socks":
        sock.sendall(socks_greeting() + socks_request("127.0.0.1", port))
    else:
        sock.sendall(upgrade_request("127.0.0.1", port))
    return sock


def reply(sock: socket.socket) -> int:
    """Read what a SOCKS5 client is told."""
    assert read_exact(sock, 2) == b"\x05\x00"
    return read_socks_reply(sock)


def is_told(sock: socket.socket) -> bool:
    """Tell whether a client has been told what became of its request."""
    sock.setblocking(False)
    with suppress(BlockingIOError):
        return len(sock.recv(64, socket.MSG_PEEK)) > 2  # more than the chosen method
    return False


def assert_refused(sock: socket.socket, door: str) -> None:
    """Read what a client is told, and leave: until then its descriptor is kept for a second."""
    sock.settimeout(20)
    with sock:
        if door == "socks":
            assert reply(sock) == 1
            return
        status, headers = Peer(sock).read_answer()
        assert status == 503
        assert "error=connection_limit_reached" in headers["proxy-status"]
        assert headers["retry-after"]


def when_let_go(go: threading.Event) -> targets.Behaviour:
    """Make a SOCKS5 proxy that answers a request when it is told to."""

    def behave(connection: socket.socket) -> None:
        hear_greeting(connection)
        connection.sendall(b"\x05\x00")
        hear_request(connection)
        go.wait(120)
        connection.sendall(GRANTED)
        connection.recv(1)

    return behave


def test_what_the_hard_limit_allows_is_used_and_is_enough() -> None:
    """Case 341: a soft limit that is less than a connection needs at its peak."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    prefix = ["prlimit", f"--nofile=128:{min(hard, 20000)}"]
    go = threading.Event()
    with Target(when_let_go(go)) as slow, ExitStack() as stack:
        config = {
            "proxy": {"max_connections": CLIENTS},
            "listeners": {"socks": socks_door(upstream="home")},
            "upstreams": {"home": upstream("socks5", ("127.0.0.1", slow.port))},
        }
        node = stack.enter_context(Proxy(config, prefix=prefix))
        waiting = [ask(node, stack, 9) for _ in range(CLIENTS)]
        wait_until(lambda: slow.accepted == CLIENTS, "all to have reached the upstream")
        go.set()
        assert Counter(map(reply, waiting)) == {0: CLIENTS}
        assert "file descriptors" not in node.log


@pytest.mark.parametrize("door", ["socks", "web"])
def test_at_the_end_of_its_descriptors_everybody_is_told_and_nobody_blamed(door: str) -> None:
    """Cases 340 and 392."""
    go = threading.Event()
    with Target(when_let_go(go)) as slow, Target(targets.echo) as target, ExitStack() as stack:
        config: dict[str, Any] = {
            "proxy": {"log_level": "debug", "reload_interval": "100ms", "timeout": "5m"},
            "listeners": {
                "socks": socks_door(upstream=["home", "direct"]),
                "web": web_door(upstream=["home", "direct"]),
            },
            "upstreams": {"home": upstream("socks5", ("127.0.0.1", slow.port))},
        }
        node = stack.enter_context(Proxy(config, prefix=["prlimit", "--nofile=100"]))
        waiting = [ask(node, stack, target.port, door=door) for _ in range(CLIENTS)]
        unheard = set(waiting)

        def everybody_was_told_or_waits_for_the_upstream() -> bool:
            for sock in filter(is_told, list(unheard)):
                assert_refused(sock, door)
                unheard.remove(sock)
            return len(unheard) == slow.accepted

        wait_until(
            everybody_was_told_or_waits_for_the_upstream,
            lambda: f"{len(unheard)} without an answer to be the {slow.accepted} that reached the upstream",
        )
        assert 0 < len(unheard) < CLIENTS
        # The file is looked at in the meantime.
        node.write({**config, "proxy": {**config["proxy"], "timeout": "6m"}})
        node.wait_for_log("version 2 of the configuration")
        shown = run_proxy("ctl", "-c", str(node.config_path), "status").stdout.decode()
        assert "down" not in shown
        assert target.accepted == 0  # nothing went out directly because we were full
        go.set()
        for sock in waiting:
            sock.close()
        wait_until(lambda: len(os.listdir(f"/proc/{node.pid}/fd")) < 50, "room")
        sock = ask(node, stack, target.port)
        assert reply(sock) == 0
        assert "Too many open files: raise the limit of 100 descriptors" in node.log
        assert "file descriptors, but the limit is 100: raise it" in node.log  # CASES 179: told at the start
        for word in ("internal error", "cannot be read", "rests"):
            assert word not in node.log


def test_local_ports_that_are_used_up_are_not_the_targets_fault() -> None:
    """With one port to go out from, a second connection to the same target cannot be made."""
    with Namespace() as here, ExitStack() as stack:
        target = here.run(lambda: stack.enter_context(Target(targets.echo)))
        node = stack.enter_context(Proxy({"listeners": {"socks": socks_door()}}, prefix=here.prefix))
        both = [here.run(lambda: stack.enter_context(connect(node.door("socks")))) for _ in "12"]

        def leave_one_port() -> None:
            with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
                file.write("50000 50000")

        here.run(leave_one_port)
        replies = []
        for sock in both:
            sock.sendall(socks_greeting() + socks_request("127.0.0.1", target.port))
            replies.append(reply(sock))
        assert replies == [0, 1]
        node.wait_for_log("ip_local_port_range")


HASHES_IN_THREADS = """
import threading
from hashlib import scrypt
from proxy.app import App
from proxy.config import Protocol, ProxyConfig, ServerConfig

app = App(ProxyConfig((ServerConfig("127.0.0.1:0", Protocol.SOCKS5, name="socks"),)))
app._open = app._stopping.set  # what is measured needs no listener
app.run()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def hash_one():
    gate.wait()
    scrypt(b"x", salt=b"s", n=1 << 14, r=8, p=1, maxmem=1 << 26, dklen=32)  # takes 16 MiB
    gate.wait()

scrypt(b"x", salt=b"s", n=1 << 14, r=8, p=1, maxmem=1 << 26, dklen=32)
before = resident()
gate = threading.Barrier(6)
threads = [threading.Thread(target=hash_one) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps a heap for each thread")
def test_the_memory_of_password_hashes_is_given_back() -> None:
    """Case 394: what threads that come and go had for a hash was kept, 16 MiB of each."""
    done = subprocess.run([sys.executable, "-c", HASHES_IN_THREADS], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) < 8 << 20
