"""
What the program does when it can have no more memory: it lives, and so do its connections.

New clients wait meanwhile, and are served as soon as there is some.
"""

import resource
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.integration.programs import Proxy, socks_door
from tests.wire import clients, targets
from tests.wire.sockets import connect, is_silent, read_exact
from tests.wire.socks5 import GREETING, to_ip
from tests.wire.targets import Target
from tests.wire.waits import wait_until

NO_MEMORY = "no memory is left: new clients wait"
MOST = 4000  # clients: some thousand of them take what the program has and does not use


def address_space(pid: int) -> int:
    """Tell how much of it a process has, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))


def is_served(sock: socket.socket) -> bool:
    """Tell whether a client is told that it is connected, soon or at all."""
    sock.settimeout(10)
    try:
        return read_exact(sock, 12)[3] == 0
    except (OSError, EOFError):
        return False


def is_answered_or_waits(sock: socket.socket, node: Proxy) -> bool:
    """Tell whether a client was answered, or the program says why it is not."""
    return not is_silent(sock, 0.1) or NO_MEMORY in node.log


def test_without_memory_the_program_lives_and_so_do_its_connections() -> None:
    proxy = {"max_connections": MOST, "access_log": "off"}
    with ExitStack() as stack:
        target = stack.enter_context(Target(targets.echo, backlog=4096))
        node = stack.enter_context(Proxy({"proxy": proxy, "listeners": {"socks": socks_door()}}, real=True))
        old = [clients.socks5(node.door("socks"), "127.0.0.1", target.port) for _ in range(20)]
        for tunnel in old:
            stack.callback(tunnel.close)
        _, hard = resource.prlimit(node.pid, resource.RLIMIT_AS)
        resource.prlimit(node.pid, resource.RLIMIT_AS, (address_space(node.pid), hard))
        for _ in range(MOST):
            sock = stack.enter_context(connect(node.door("socks")))
            sock.sendall(GREETING + to_ip("127.0.0.1", target.port))
            wait_until(partial(is_answered_or_waits, sock, node), "an answer")
            if NO_MEMORY in node.log:
                break
        else:
            raise AssertionError("it had more memory than so many clients need")
        for tunnel in old:
            tunnel.sendall(b"x")
            assert read_exact(tunnel, 1) == b"x"
        resource.prlimit(node.pid, resource.RLIMIT_AS, (hard, hard))

        def again() -> bool:
            with connect(node.door("socks")) as late:
                late.sendall(GREETING + to_ip("127.0.0.1", target.port))
                return is_served(late)

        wait_until(again, "a client to be served again")
        assert "Traceback" not in node.log
