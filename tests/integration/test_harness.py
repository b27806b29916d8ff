"""The harness against itself, without our program: curl, other proxies, targets and a namespace."""

import hashlib
import os
import socket
import subprocess
import sys

import pytest

from tests.integration import peers
from tests.integration.netns import Namespace
from tests.integration.programs import Program, clean_environment
from tests.wire import targets
from tests.wire.clients import SocksRefused, socks5
from tests.wire.processes import listening_ports
from tests.wire.sockets import free_port, read_exact
from tests.wire.targets import Target


def test_a_reserved_port_refuses_connections() -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", free_port()), 5)


def test_a_blackhole_neither_accepts_nor_refuses() -> None:
    with targets.blackhole() as port, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), 0.5)


def test_a_program_is_seen_to_listen_and_is_ended() -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with Program(command) as program:
        program.wait_listening(port)
        socket.create_connection(("127.0.0.1", port), 5).close()
    assert listening_ports(program.pid) == set()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("peer", [peers.microsocks, peers.dante, peers.v2ray], ids=lambda peer: peer.__name__)
def test_a_foreign_proxy_carries_our_client(peer, host) -> None:  # type: ignore[no-untyped-def]
    payload = os.urandom(100_000)
    with Target(targets.sink) as target, peer() as door:
        tunnel = socks5(door, host, target.port)
        tunnel.sendall(payload)
        tunnel.end()
        assert target.result() == (len(payload), hashlib.sha256(payload).hexdigest())


def test_a_foreign_proxy_knows_its_users() -> None:
    with Target(targets.echo) as target, peers.system_user() as user:
        for peer in (peers.microsocks, peers.dante):
            with peer(user) as door:
                tunnel = socks5(door, "127.0.0.1", target.port, user)
                tunnel.sendall(b"hello")
                assert read_exact(tunnel.sock, 5) == b"hello"


def test_curl_goes_through_a_foreign_proxy() -> None:
    answer = b"HTTP/1.0 200 OK\r\n\r\nhello"
    with targets.Scripted(answer) as target, peers.microsocks() as door:
        url = f"http://localhost:{target.port}/"
        command = [peers.find("curl"), "-sS", "-m", "10", "--socks5-hostname", f"{door[0]}:{door[1]}", url]
        done = subprocess.run(command, capture_output=True, timeout=60, env=clean_environment("/nonexistent"))
    assert done.stdout == b"hello", done.stderr


def test_an_ssh_client_reaches_the_ssh_server() -> None:
    with peers.sshd() as server:
        command = server.client("none", "cat")
        done = subprocess.run(command, input=b"through", capture_output=True, timeout=60)
    assert done.stdout == b"through", done.stderr


@pytest.mark.parametrize("front", [peers.nginx, peers.haproxy], ids=lambda peer: peer.__name__)
def test_a_reverse_proxy_passes_a_request_on(front) -> None:  # type: ignore[no-untyped-def]
    with targets.Scripted(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno") as backend:
        with front(("127.0.0.1", backend.port)) as door:
            sock = socket.create_connection(door, 10)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 403")
        assert b"GET / HTTP/1.1" in backend.result()[0]


def test_a_namespace_has_routes_and_names_of_its_own() -> None:
    names = {"here.test": ["127.0.0.1"], "broken.test": peers.StubDns.SERVFAIL}
    with (
        Namespace("unreachable 10.1.0.0/16") as space,
        space.run(lambda: peers.StubDns(names)) as dns,
        space.run(lambda: Target(targets.echo)) as target,
    ):
        tunnel = space.run(lambda: socket.create_connection(("127.0.0.1", target.port), 5))
        tunnel.sendall(b"inside")
        assert read_exact(tunnel, 6) == b"inside"
        for name, code in (("here.test", 0), ("broken.test", 2), ("missing.test", 2)):
            done = subprocess.run([*space.prefix, "getent", "ahosts", name], timeout=60, capture_output=True)
            assert done.returncode == code
        assert "here.test" in dns.asked
        with pytest.raises(OSError, match="No route to host"):
            space.run(lambda: socket.create_connection(("10.1.0.1", 80), 5))


def test_a_refusal_is_read_from_a_foreign_proxy() -> None:
    with peers.microsocks() as door, pytest.raises(SocksRefused) as refused:
        socks5(door, "127.0.0.1", free_port())
    assert refused.value.reply == 5


def test_a_missing_peer_is_a_skip_and_where_all_must_be_there_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("REQUIRE_PEERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-peer is not installed"):
        peers.find("no-such-peer")
    monkeypatch.setenv("REQUIRE_PEERS", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-peer is not installed"):
        peers.find("no-such-peer")
