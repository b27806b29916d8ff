"""
The life of the process: how it starts, stops, fills up, stays fair, and what cannot stop it.

Cases 212-217, 178-192, 134, 35, 36 and 89 of CASES.md.
"""

import contextlib
import hashlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.programs import COMMAND, Program, Proxy, mixed_door, socks_door, upstream, web_door
from tests.integration.test_control import curl
from tests.wire import clients, targets
from tests.wire.clients import HttpRefused, SocksRefused, Tunnel
from tests.wire.processes import CLOSE_WAIT, ESTABLISHED, SYN_SENT, descriptors_of, sockets_of, table
from tests.wire.sockets import (
    TIMEOUT,
    Door,
    Readable,
    connect,
    free_port,
    read_exact,
    read_rest,
    read_to_end,
    reset,
)
from tests.wire.socks5 import read_socks_reply, socks_greeting, socks_request
from tests.wire.targets import Target
from tests.wire.waits import wait_until
from tests.wire.websocket import upgrade_request

PAYLOAD = os.urandom(4 << 20)

# The program, to which signals are sent in the midst of its start.
ASKED_EARLY = """
import os, signal
from proxy.__main__ import main
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    os.kill(os.getpid(), number)
main()
"""


def make_node(proxy: dict[str, object] | None = None, **sections: Mapping[str, Any]) -> Proxy:
    """Describe a node with one listener of each kind."""
    return Proxy({"proxy": proxy or {}, "listeners": {"socks": socks_door(), "web": web_door()}, **sections})


def open_both(node: Proxy, port: int, *, timeout: float = TIMEOUT) -> list[Tunnel]:
    """Open a tunnel through each door."""
    return [
        clients.socks5(node.door("socks"), "127.0.0.1", port, timeout=timeout),
        clients.websocket(node.door("web"), "127.0.0.1", port, timeout=timeout),
    ]


def refuses(door: Door) -> bool:
    """Tell whether a connection to a door is refused."""
    try:
        socket.create_connection(door, 5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it closed in this moment
        pass
    return False


def ends(stream: Readable) -> bool:
    """Read on until the stream ends, or is reset."""
    try:
        read_to_end(stream)
    except ConnectionError:
        pass
    return True


class TestStopping:
    """CASES 212-216."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
    def test_new_clients_are_refused_and_live_transfers_finish(self, number: int) -> None:
        """CASES 212, 215."""
        go = threading.Event()
        with (
            make_node({"drain_timeout": "1h"}) as node,
            Target(targets.when(go, targets.source(PAYLOAD))) as target,
        ):
            tunnels = open_both(node, target.port)
            node.signal(number)
            for name in ("socks", "web"):
                wait_until(lambda name=name: refuses(node.door(name)), "new clients to be refused")  # type: ignore[misc]
            go.set()
            digest = hashlib.sha256(PAYLOAD).hexdigest()
            for tunnel in tunnels:
                assert hashlib.sha256(read_to_end(tunnel)).hexdigest() == digest
                tunnel.close()
            assert node.wait(20) == 0

    @pytest.mark.parametrize("door", ["socks", "web", "mixed"])
    def test_who_asks_for_nothing_is_not_waited_for(self, door: str) -> None:
        """Another proxy has connections ready: a gateway that restarts must not wait until they grow old."""
        doors = {"socks": socks_door(), "web": web_door(), "mixed": mixed_door()}
        settings = {"drain_timeout": "60s", "handshake_timeout": "60s"}
        with Proxy({"proxy": settings, "listeners": doors}) as node, connect(node.door(door)) as ready:
            wait_until(lambda: node.connections, "the connection")
            node.signal(signal.SIGTERM)
            assert read_rest(ready)[0] == b""
            assert node.wait(20) == 0

    def test_clients_are_accepted_until_the_delay_is_over_or_a_second_signal_comes(self) -> None:
        """DESIGN 1.3: others see meanwhile that it stops, and send their clients elsewhere."""
        with make_node({"drain_delay": "1h"}) as node, Target(targets.echo) as target:
            node.signal(signal.SIGTERM)
            node.wait_for_log("stopping in 3600 s: until then clients are accepted")
            assert curl(node, "/healthz")[0] == 503
            assert curl(node, "/livez")[0] == 200
            tunnel = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
            tunnel.sendall(b"x")
            assert read_exact(tunnel, 1) == b"x"
            tunnel.close()
            node.signal(signal.SIGTERM)
            assert node.wait(20) == 0

    def test_after_the_delay_it_drains(self) -> None:
        with make_node({"drain_delay": "200ms"}) as node, Target(targets.echo) as target:
            tunnel = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
            node.signal(signal.SIGTERM)
            node.wait_for_log("stopping: live connections (1) have")
            wait_until(lambda: refuses(node.door("socks")), "new clients to be refused")
            tunnel.close()
            assert node.wait(20) == 0

    def test_what_is_left_after_the_drain_timeout_is_cut(self) -> None:
        """CASES 213: a WebSocket client is told 1001; the rest is reset."""
        with make_node({"drain_timeout": "1s"}) as node, Target(targets.hold) as target:
            socks, web = open_both(node, target.port)
            began = time.monotonic()
            node.signal(signal.SIGTERM)
            assert isinstance(web, clients.WebTunnel)
            assert web.recv_close() == 1001
            with pytest.raises(ConnectionResetError):
                socks.recv(1)
            assert node.wait(20) == 0
            assert time.monotonic() - began > 0.9

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
    def test_a_second_signal_stops_at_once(self, number: int) -> None:
        """CASES 214."""
        with make_node({"drain_timeout": "1h"}) as node, Target(targets.hold) as target:
            tunnels = open_both(node, target.port)
            node.signal(number)
            wait_until(lambda: refuses(node.door("socks")), "the drain to begin")
            node.signal(number)
            assert node.wait(20) == 0
            for tunnel in tunnels:
                assert ends(tunnel)

    def test_an_idle_node_stops_at_once(self) -> None:
        with make_node({"drain_timeout": "1h"}) as node:
            node.signal(signal.SIGTERM)
            assert node.wait(20) == 0

    def test_a_file_that_cannot_be_read_to_its_end_does_not_hold_up_the_stop(self) -> None:
        """It may be on a file system that does not answer any more."""
        with make_node() as node:
            node.config_path.unlink()
            os.mkfifo(node.config_path)
            node.signal(signal.SIGHUP)
            opened: list[int] = []

            def has_a_reader() -> bool:
                with contextlib.suppress(OSError):
                    opened.append(os.open(node.config_path, os.O_WRONLY | os.O_NONBLOCK))
                return bool(opened)

            wait_until(has_a_reader, "the file to be read")
            node.signal(signal.SIGTERM)
            assert node.wait(20) == 0
            os.close(opened[0])

    def test_a_client_in_its_handshake_does_not_hold_up_the_stop(self) -> None:
        """CASES 216."""
        config = {"drain_timeout": "1s", "handshake_timeout": "1h"}
        with make_node(config) as node:  # type: ignore[arg-type]
            socks, web = connect(node.door("socks")), connect(node.door("web"))
            socks.sendall(b"\x05")
            web.sendall(b"GET / HTTP/1.1\r\n")
            node.signal(signal.SIGTERM)
            assert node.wait(20) == 0
            assert ends(socks)
            assert ends(web)

    def test_a_signal_in_the_first_moments_is_obeyed(self) -> None:
        """CASES 216: before Python itself can, the operating system ends it."""
        for delay in (0.0, 0.1, 0.2, 0.4):
            node = make_node()
            node.starts = False
            with node:
                time.sleep(delay)  # the moment is what is tested; any of them will do
                node.signal(signal.SIGTERM)
                assert node.wait(30) in (0, -signal.SIGTERM)

    def test_what_is_asked_of_a_server_during_its_start_is_done_after_it(self) -> None:
        """CASES 215, 216: neither a reload nor a report ends it, however early they are asked for."""
        with make_node() as node:
            node.stop()
            node.command = [sys.executable, "-c", ASKED_EARLY, *node.command[len(COMMAND) :]]
            Program.start(node)
            node.wait_for_log("the configuration is unchanged: version 1")
            node.wait_for_log("socks: connections: 0 live, 0 in all")
            node.wait_for_log("SIGUSR2: it does nothing here")

    @pytest.mark.parametrize("arguments", [["-hash-password"], ["ctl", "-c", "x", "set", "a"]], ids=" ".join)
    def test_what_is_no_server_ends_with_its_terminal(self, arguments: list[str]) -> None:
        """CASES 216."""
        done = subprocess.run([sys.executable, "-c", ASKED_EARLY, *arguments], input=b"", timeout=60)
        assert done.returncode in (-signal.SIGHUP, -signal.SIGUSR1, -signal.SIGUSR2)

    def test_it_says_what_it_does(self) -> None:
        with make_node({"drain_timeout": "1s"}) as node, Target(targets.hold) as target:
            tunnels = open_both(node, target.port)
            node.signal(signal.SIGTERM)
            node.wait(20)
            assert "stopping: live connections (2)" in node.log
            assert "stopped" in node.log
            for tunnel in tunnels:
                tunnel.close()


class TestRestart:
    """CASES 217."""

    def test_a_killed_node_starts_again_on_the_same_port(self) -> None:
        with make_node() as node, Target(targets.echo) as target:
            old = open_both(node, target.port)
            node.process.kill()
            node.wait(20)
            with Proxy(node.config) as again:
                for tunnel in open_both(again, target.port):
                    tunnel.sendall(b"x")
                    assert read_exact(tunnel, 1) == b"x"
                    tunnel.close()
            for tunnel in old:
                tunnel.close()

    def test_an_address_in_use_is_one_clear_line(self) -> None:
        with make_node() as node, Proxy(node.config, starts=False) as second:
            assert second.wait(20) == 1
            address = ":".join(map(str, node.door("socks")))
            assert any(address in line and "in use" in line for line in second.log.splitlines()), second.log

    def test_a_log_file_that_cannot_be_written_is_named_and_does_not_stop_the_service(self) -> None:
        with make_node({"access_log": "/nonexistent/access.log"}) as node, Target(targets.echo) as target:
            for tunnel in open_both(node, target.port):
                tunnel.close()
            assert "/nonexistent/access.log" in node.wait_for_log("No such file")

    def test_a_log_that_is_a_pipe_without_a_reader_does_not_stop_the_service(self) -> None:
        node = make_node()
        pipe = node.directory / "pipe"
        os.mkfifo(pipe)
        node.write({**node.config, "proxy": {"access_log": str(pipe)}})
        with node, Target(targets.echo) as target:
            assert str(pipe) in node.wait_for_log("it is written to stderr")
            for tunnel in open_both(node, target.port):
                tunnel.close()

    def test_a_log_on_a_full_disk_does_not_stop_the_service(self) -> None:
        with make_node({"access_log": "/dev/full"}) as node, Target(targets.echo) as target:
            for _ in range(20):
                for tunnel in open_both(node, target.port):
                    tunnel.sendall(b"x")
                    assert read_exact(tunnel, 1) == b"x"
                    tunnel.close()


class TestStalledLog:
    """A pipe that nobody reads is where stderr goes."""

    def test_the_service_goes_on_and_stops_when_told(self) -> None:
        reader, writer = os.pipe()
        with contextlib.closing(os.fdopen(reader)), ExitStack() as stack:
            stack.callback(os.close, writer)
            os.set_blocking(writer, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writer, b"x" * 4096)
            os.set_blocking(writer, True)
            doors = {"socks": socks_door(), "web": web_door()}
            node = Proxy({"proxy": {"log_level": "debug"}, "listeners": doors}, stderr=writer)
            with node, Target(targets.echo) as target:
                for _ in range(100):
                    for tunnel in open_both(node, target.port, timeout=5):
                        tunnel.sendall(b"x")
                        assert read_exact(tunnel, 1) == b"x"
                        tunnel.close()
                node.signal(signal.SIGTERM)
                assert node.wait(20) == 0


class TestTime:
    """Deadlines: of the handshake, of an idle stream, of a stalled one."""

    def test_an_idle_tunnel_is_closed(self) -> None:
        """CASES 134."""
        with make_node({"idle_timeout": "1s"}) as node, Target(targets.hold) as target:
            began = time.monotonic()
            for tunnel in open_both(node, target.port):
                assert ends(tunnel)
                assert time.monotonic() - began > 0.9
                target.results.get(timeout=20)

    @pytest.mark.parametrize("speaker", ["client", "target"])
    def test_any_byte_either_way_keeps_it(self, speaker: str) -> None:
        """CASES 134."""
        with (
            make_node({"idle_timeout": "1s"}) as node,
            Target(_slow_talker) as talker,
            Target(targets.sink) as listener,
        ):
            target = talker if speaker == "target" else listener
            for tunnel in open_both(node, target.port):
                for _ in range(8):
                    if speaker == "client":
                        tunnel.sendall(b"x")
                        time.sleep(0.3)  # the pace of a slow talker
                    else:
                        assert read_exact(tunnel, 1) == b"x"
                tunnel.close()

    def test_a_client_that_reads_nothing_is_closed(self) -> None:
        """CASES 135."""
        with make_node({"idle_timeout": "1s"}) as node, Target(_flood) as target:
            tunnels = open_both(node, target.port)
            for _ in tunnels:
                assert isinstance(target.results.get(timeout=20), ConnectionError)

    @pytest.mark.parametrize("drip", [True, False], ids=["dripping", "silent"])
    @pytest.mark.parametrize(
        ("door", "beginning", "rest"),
        [
            ("socks", b"", b"\x05\xff" + bytes(255)),
            ("socks", b"\x05\x01\x00", b"\x05\x01\x00\x03\xff" + b"a" * 255),
            ("web", b"GET / HTTP/1.1\r\nHost: ", b"h" * 200),
        ],
        ids=["greeting", "request", "headers"],
    )
    def test_a_handshake_is_cut_at_its_deadline(
        self, hasty: Proxy, door: str, beginning: bytes, rest: bytes, drip: bool
    ) -> None:
        """CASES 9, 35, 36, 85: the deadline is a total."""
        began = time.monotonic()
        sock = connect(hasty.door(door))
        sock.sendall(beginning)
        sock.settimeout(0.1)
        ended = False
        for byte in rest:
            try:
                if drip:
                    sock.sendall(bytes([byte]))
                ended = _drained(sock)
            except TimeoutError:
                pass
            except OSError:
                ended = True
            if ended or time.monotonic() - began > 15:
                break
        assert ended, "the client was never cut"
        assert time.monotonic() - began > 0.8
        sock.close()

    @pytest.fixture(scope="class")
    @classmethod
    def hasty(cls) -> Iterator[Proxy]:
        """Run a node that gives clients one second for a handshake."""
        with make_node({"handshake_timeout": "1s"}) as node:
            yield node

    def test_hundreds_of_slow_clients_do_not_hold_up_a_good_one(self) -> None:
        """CASES 85."""
        with make_node() as node, Target(targets.echo) as target, ExitStack() as stack:
            for door, start in (("socks", b"\x05"), ("web", b"GET / HT")):
                for _ in range(200):
                    stack.enter_context(connect(node.door(door))).sendall(start)
            for tunnel in open_both(node, target.port, timeout=3):
                tunnel.sendall(b"served")
                assert read_exact(tunnel, 6) == b"served"
                tunnel.close()


def _drained(sock: socket.socket) -> bool:
    while sock.recv(4096):
        pass
    return True


def _slow_talker(connection: socket.socket) -> None:
    for _ in range(8):
        connection.sendall(b"x")
        time.sleep(0.3)


def _flood(connection: socket.socket) -> None:
    while True:
        connection.sendall(bytes(1 << 16))


class TestLimits:
    """CASES 180: ``max_connections = 20`` and a hundred clients."""

    LIMIT = 20
    CLIENTS = 100

    def test_refuse_tells_the_rest_at_once(self) -> None:
        with (
            make_node({"max_connections": self.LIMIT, "overload": "refuse"}) as node,
            Target(targets.echo) as target,
            ExitStack() as stack,
        ):
            for name, opener, refusal in (
                ("socks", clients.socks5, SocksRefused),
                ("web", clients.websocket, HttpRefused),
            ):
                served: list[Tunnel] = []
                refused = 0
                for _ in range(self.CLIENTS):
                    try:
                        served.append(opener(node.door(name), "127.0.0.1", target.port))
                    except refusal:
                        refused += 1
                assert (len(served), refused) == (self.LIMIT, self.CLIENTS - self.LIMIT)
                for tunnel in served:
                    tunnel.sendall(b"x")
                    assert read_exact(tunnel, 1) == b"x"
                    stack.callback(tunnel.close)
                served[0].close()
                wait_until(lambda n=name, o=opener: _is_served(o, node.door(n), target.port), "a place")  # type: ignore[misc]

    def test_wait_lets_the_rest_wait_their_turn(self) -> None:
        with (
            make_node({"max_connections": self.LIMIT, "overload": "wait"}) as node,
            Target(targets.echo) as target,
        ):
            request = socks_greeting() + socks_request("127.0.0.1", target.port)
            waiting = [connect(node.door("socks")) for _ in range(self.CLIENTS)]
            for sock in waiting:
                sock.sendall(request)
            wait_until(lambda: target.accepted == self.LIMIT, "the first to be served")
            for index, sock in enumerate(waiting):
                sock.settimeout(10)
                assert read_exact(sock, 2) == b"\x05\x00"
                assert read_socks_reply(sock) == 0
                assert target.accepted <= self.LIMIT + index + 1
                sock.close()
            wait_until(lambda: target.accepted == self.CLIENTS, "all to have been served")

    def test_each_listener_has_its_own_number(self) -> None:
        doors = {"one": socks_door(max_connections=1), "many": socks_door()}
        with (
            Proxy({"proxy": {"overload": "refuse"}, "listeners": doors}) as node,
            Target(targets.echo) as target,
        ):
            only = clients.socks5(node.door("one"), "127.0.0.1", target.port)
            with pytest.raises(SocksRefused):
                clients.socks5(node.door("one"), "127.0.0.1", target.port)
            many = [clients.socks5(node.door("many"), "127.0.0.1", target.port) for _ in range(3)]
            for tunnel in (only, *many):
                tunnel.close()

    @pytest.mark.parametrize("door", ["socks", "web"])
    @pytest.mark.parametrize("how", ["closes", "resets"])
    def test_a_client_that_leaves_while_its_target_is_dialled_frees_its_place(
        self, door: str, how: str
    ) -> None:
        """CASES 89."""
        with make_node({"max_connections": 1, "timeout": "30s"}) as node, ExitStack() as stack:
            hole = stack.enter_context(targets.blackhole())
            target = stack.enter_context(Target(targets.echo))
            first = connect(node.door(door))
            if door == "socks":
                first.sendall(socks_greeting())
                assert read_exact(first, 2) == b"\x05\x00"
                first.sendall(socks_request("127.0.0.1", hole))
            else:
                first.sendall(upgrade_request("127.0.0.1", hole))
            wait_until(lambda: _dials(node, hole), "the target to be dialled")
            if how == "resets":
                reset(first)
            first.close()
            opener = clients.OPEN["socks5" if door == "socks" else "websocket"]
            opener(node.door(door), "127.0.0.1", target.port, timeout=10).close()

    def test_a_client_that_half_closes_after_its_request_is_still_served(self) -> None:
        """CASES 37: it says nothing more, but it listens."""
        with make_node() as node, Target(targets.banner(b"220 ready")) as target:
            sock = connect(node.door("socks"))
            sock.sendall(socks_greeting() + socks_request("127.0.0.1", target.port))
            sock.shutdown(socket.SHUT_WR)
            assert read_exact(sock, 2) == b"\x05\x00"
            assert read_socks_reply(sock) == 0
            assert read_to_end(sock) == b"220 ready"


def _is_served(opener: Callable[..., Tunnel], door: Door, port: int) -> bool:
    try:
        opener(door, "127.0.0.1", port).close()
    except (SocksRefused, HttpRefused):
        return False
    return True


def _dials(node: Proxy, port: int) -> bool:
    """Tell whether the kernel has a connection to a port under way."""
    return any(row.peer_port == port and row.state == SYN_SENT for row in sockets_of(node.pid))


class TestFaults:
    """What cannot stop the service."""

    def test_it_survives_running_out_of_descriptors(self) -> None:
        """CASES 178."""
        limit = 80
        prefix = ["prlimit", f"--nofile={limit}"]
        doors = {"socks": socks_door()}
        with Proxy({"listeners": doors}, prefix=prefix) as node, Target(targets.echo) as target:
            with ExitStack() as stack:
                for _ in range(2 * limit):
                    sock = stack.enter_context(connect(node.door("socks")))
                    sock.sendall(socks_greeting() + socks_request("127.0.0.1", target.port))
                before = _cpu_seconds(node.pid)
                time.sleep(1)  # the span over which its use of the processor is measured
                assert _cpu_seconds(node.pid) - before < 0.6, "it spins"
            wait_until(
                lambda: _is_served(clients.socks5, node.door("socks"), target.port),
                "clients to be served again",
            )
            assert len(node.log) < 200_000, "it floods its log"

    def test_it_goes_on_after_being_stopped_for_a_while(self) -> None:
        """CASES 189, scaled."""
        with make_node({"idle_timeout": "30s"}) as node, Target(targets.echo) as target:
            tunnels = open_both(node, target.port)
            node.signal(signal.SIGSTOP)
            for tunnel in tunnels:
                tunnel.sendall(b"while you slept")
            time.sleep(1)  # how long it is stopped
            node.signal(signal.SIGCONT)
            for tunnel in (*tunnels, *open_both(node, target.port)):
                tunnel.sendall(b"x")
                assert read_exact(tunnel, 1) in (b"w", b"x")
                tunnel.close()

    def test_junk_costs_a_line_at_most_and_nobody_else_anything(self) -> None:
        """CASES 10-13, 187: a hundred clients that speak something else."""
        junk = [
            b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
            b"GET / HTTP/1.1\r\n\r\n",
            b"CONNECT h:443 HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"SSH-2.0-x\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            os.urandom(1024),
            b"\x00",
            b"\x05\x00",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]
        with make_node() as node, Target(targets.echo) as target:
            for _ in range(5):
                for data in junk:
                    for door in ("socks", "web"):
                        sock = connect(node.door(door), 5)
                        sock.sendall(data)
                        sock.shutdown(socket.SHUT_WR)
                        assert ends(sock)
                        sock.close()
            for tunnel in open_both(node, target.port):
                tunnel.close()
            assert len(node.log.splitlines()) < 150

    def test_descriptors_are_back_after_many_connections_with_faults(self) -> None:
        """CASES 184, scaled."""
        with (
            make_node() as node,
            Target(targets.echo) as echo,
            Target(targets.reset_after(b"x")) as resetting,
        ):
            _abuse(node, echo.port, resetting.port, 5)
            before = wait_until(lambda: _settled(node), "the node to come to rest")
            _abuse(node, echo.port, resetting.port, 40)
            after = wait_until(lambda: _settled(node), "the node to come to rest")
            assert after <= before + 2


def _abuse(node: Proxy, echo: int, resetting: int, times: int) -> None:
    for _ in range(times):
        for tunnel in open_both(node, echo):
            tunnel.sendall(b"x" * 1000)
            reset(tunnel.sock)
            tunnel.close()
        for tunnel in open_both(node, resetting):
            tunnel.sendall(b"x")
            assert ends(tunnel)
            tunnel.close()
        for opener, door in ((clients.socks5, "socks"), (clients.websocket, "web")):
            with pytest.raises((SocksRefused, HttpRefused)):
                opener(node.door(door), "127.0.0.1", _CLOSED)
            connect(node.door(door)).close()


_CLOSED = free_port()


def _settled(node: Proxy) -> int:
    """Count the open descriptors, once none is a connection; 0 before."""
    doors = {node.door(name)[1] for name in node.config["listeners"]}
    if any(row.port in doors and row.state in (ESTABLISHED, CLOSE_WAIT) for row in table(node.pid)):
        return 0
    return len(list(descriptors_of(node.pid)))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


BULK = Path(__file__).with_name("bulk.py")


class TestFairness:
    """A small tunnel beside eight that move all they can."""

    STREAMS = 8
    ROUNDS = 200

    @pytest.mark.parametrize("direction", ["up", "down"])
    @pytest.mark.parametrize("way", ["direct", "websocket"])
    def test_its_round_trips_stay_short(self, way: str, direction: str) -> None:
        with ExitStack() as stack:
            exit_node = stack.enter_context(make_node())
            ways = {"websocket": upstream("websocket", exit_node.door("web"))}
            doors = {"socks": socks_door(upstream=way)}
            node = stack.enter_context(Proxy({"listeners": doors, "upstreams": ways}))
            target = stack.enter_context(Target(targets.echo))
            host, port = node.door("socks")
            command = [sys.executable, "-m", "tests.integration.bulk", host, str(port), direction]
            bulk = stack.enter_context(
                subprocess.Popen([*command, str(self.STREAMS)], stdout=subprocess.PIPE, cwd=BULK.parents[2])
            )
            stack.callback(bulk.kill)
            assert bulk.stdout is not None
            assert bulk.stdout.readline() == b"flowing\n"
            tunnel = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
            before = [_scheduled(node.pid), _scheduled(exit_node.pid)]
            trips = sorted(_round_trip(tunnel) for _ in range(self.ROUNDS))
            after = [_scheduled(node.pid), _scheduled(exit_node.pid)]
            tunnel.close()
        # On a busy machine everybody's time runs slower: by as much as our nodes waited for a processor.
        slower = math.prod(_slowdown(*pair) for pair in zip(before, after, strict=True))
        assert trips[int(self.ROUNDS * 0.99)] < 0.05 * slower, [round(trip * 1000) for trip in trips[-10:]]


def _scheduled(pid: int) -> tuple[int, int]:
    """Give the nanoseconds for which a process's main thread has run, and has waited for a processor."""
    run, waited, _ = map(int, Path(f"/proc/{pid}/schedstat").read_text().split())
    return run, waited


def _slowdown(before: tuple[int, int], after: tuple[int, int]) -> float:
    run, waited = after[0] - before[0], after[1] - before[1]
    return (run + waited) / run if run else 1.0


def _round_trip(tunnel: Tunnel) -> float:
    began = time.monotonic()
    tunnel.sendall(bytes(64))
    read_exact(tunnel, 64)
    return time.monotonic() - began
