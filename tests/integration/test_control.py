"""
A running server as its operators see it: ctl, curl on the control socket, Prometheus, a service manager.

Cases J224, 193, 202, 206, 210, 211, 215 and 218 of CASES.md.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration import peers
from tests.integration.programs import (
    REPOSITORY,
    Proxy,
    clean_environment,
    run_proxy,
    socks_door,
    upstream,
    web_door,
)
from tests.wire import clients, targets
from tests.wire import upstreams as scripted
from tests.wire.clients import SocksRefused, Tunnel, WebTunnel
from tests.wire.manager import Manager
from tests.wire.sockets import connect, free_port, read_exact, read_to_end
from tests.wire.socks5 import hear_greeting, hear_login, socks_greeting, socks_request
from tests.wire.targets import Target
from tests.wire.waits import wait_until
from tests.wire.websocket import Peer

TOKEN = "open sesame"
SECRETS = (b"wonderland", b"looking-glass", b"cheshire", TOKEN.encode())


@pytest.fixture
def node() -> Iterator[Proxy]:
    with Proxy({"listeners": {"socks": socks_door(), "web": web_door()}}) as node:
        yield node


def ctl(node: Proxy, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run ``proxy-server ctl`` for a node, from another folder."""
    return run_proxy("ctl", "-c", str(node.config_path), *arguments, stdin=stdin)


def said(done: "subprocess.CompletedProcess[bytes]") -> str:
    """Give what a command printed, which must have succeeded."""
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def curl(node: Proxy, path: str, *options: str) -> tuple[int, str]:
    """Ask by curl, and give status and body."""
    command = [peers.find("curl"), "-sS", "-m", "10", "-w", "\n%{http_code}", *options]
    if not path.startswith("http"):
        command += ["--unix-socket", str(node.control_socket), f"http://localhost{path}"]
    else:
        command.append(path)
    done = subprocess.run(command, capture_output=True, timeout=60, env=clean_environment("/"))
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.decode().rpartition("\n")
    return int(status), body


def ask(node: Proxy, path: str) -> Any:
    """Ask for JSON on the control socket; a program for each question would take long."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(node.control_socket))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        peer = Peer(sock)
        status, headers = peer.read_answer()
        assert status == 200
        return json.loads(peer.read_body(headers))


def status_of(node: Proxy) -> dict[str, Any]:
    answer: dict[str, Any] = ask(node, "/status")
    return answer


def connections_of(node: Proxy) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ask(node, "/connections")["connections"]
    return rows


def metrics(node: Proxy) -> dict[tuple[str, frozenset[str]], float]:
    """Read the metrics: by name, and by the values of their labels."""
    text = said(ctl(node, "metrics"))
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextlib.contextmanager
def draining() -> Iterator[tuple[Proxy, Tunnel]]:
    """Stop a node that has one tunnel, and give both: it drains until the tunnel is closed."""
    config = {"proxy": {"drain_timeout": "1h"}, "listeners": {"socks": socks_door()}}
    peers.find("curl")
    with Proxy(config) as node, Target(targets.hold) as target:
        tunnel = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
        node.signal(signal.SIGTERM)
        # The system makes one of two signals that come in the same moment, so the first is waited for.
        node.wait_for_log("stopping: ")
        wait_until(lambda: curl(node, "/healthz")[0] == 503, "the drain to begin")
        yield node, tunnel


class TestLooking:
    def test_status_tells_of_the_listeners_and_what_they_moved(self, node: Proxy) -> None:
        with Target(targets.echo) as target:
            tunnels: list[Tunnel] = [
                clients.socks5(node.door("socks"), "127.0.0.1", target.port),
                clients.websocket(node.door("web"), "127.0.0.1", target.port),
            ]
            for tunnel in tunnels:
                tunnel.sendall(b"x" * 3000)
                read_exact(tunnel, 3000)
            status = status_of(node)
            assert (status["live"], status["total"]) == (2, 2)
            assert [(each["sent"], each["received"]) for each in status["listeners"]] == [(3000, 3000)] * 2
            rows = connections_of(node)
            assert [(row["target"], row["upstream"], row["sent"]) for row in rows] == [
                (f"127.0.0.1:{target.port}", "direct", 3000)
            ] * 2
            for tunnel in tunnels:
                tunnel.close()
            wait_until(lambda: status_of(node)["live"] == 0, "the connections to end")
            # What has ended still counts, and only once.
            assert status_of(node)["sent"] == 6000
            samples = metrics(node)
            assert samples["proxy_bytes_total", frozenset({"web", "sent"})] == 3000
            assert samples["proxy_connections_total", frozenset({"socks"})] == 1
            assert samples["proxy_dial_seconds_count", frozenset({"socks"})] == 1

    def test_people_get_a_table(self, node: Proxy) -> None:
        lines = said(ctl(node, "status")).splitlines()
        port = node.door("socks")[1]
        assert any(line.startswith("socks ") and f"127.0.0.1:{port}" in line for line in lines)
        assert said(ctl(node, "connections")) == "no connections\n"
        assert json.loads(said(ctl(node, "--json", "status"))).keys() == status_of(node).keys()

    def test_the_document_for_operators_names_every_metric(self, node: Proxy) -> None:
        document = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
        told = {
            line.split()[2] for line in said(ctl(node, "metrics")).splitlines() if line.startswith("# TYPE")
        }
        assert set(re.findall(r"`((?:proxy|process)_[a-z_]+)`", document)) == told

    def test_failures_are_counted_by_their_cause(self, node: Proxy) -> None:
        with pytest.raises(SocksRefused):
            clients.socks5(node.door("socks"), "127.0.0.1", free_port())
        with contextlib.closing(connect(node.door("web"))) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            read_to_end(sock)
        samples = metrics(node)
        assert samples["proxy_failures_total", frozenset({"socks", "target", "connection_refused"})] == 1
        assert samples["proxy_failures_total", frozenset({"web", "handshake", "malformed_request"})] == 1

    def test_the_health_of_an_upstream_is_told(self) -> None:
        port = free_port()
        home = upstream("socks5", ("127.0.0.1", port), proxy_username="alice", proxy_password="wonderland")
        with Proxy(
            {"listeners": {"socks": socks_door(upstream="home")}, "upstreams": {"home": home}}
        ) as node:
            assert status_of(node)["upstreams"][0]["health"] == "untried"
            with pytest.raises(SocksRefused):
                clients.socks5(node.door("socks"), "127.0.0.1", 9)
            (told,) = status_of(node)["upstreams"]
            assert (told["health"], told["failures"]) == ("down", 1)
            assert "Connection refused" in told["problem"]
            assert metrics(node)["proxy_upstream_up", frozenset({"socks", "home"})] == 0
            assert "down (1 failure)" in said(ctl(node, "status"))
            # Case 354: it is back, and nobody needs it.
            login = (hear_greeting, b"\x05\x02", hear_login, b"\x01\x00", scripted.stall)
            with scripted.upstream(port, *login):
                wait_until(lambda: status_of(node)["upstreams"][0]["health"] == "up", "it to be seen")
                assert metrics(node)["proxy_upstream_up", frozenset({"socks", "home"})] == 1

    def test_curl_can_ask_too(self, node: Proxy) -> None:
        status, body = curl(node, "/status")
        assert (status, json.loads(body)["version"]["number"]) == (200, 1)
        assert curl(node, "/healthz")[0] == 200
        assert curl(node, "/reload")[0] == 405

    def test_a_server_that_drains_says_so(self) -> None:
        """CASES 206: and it keeps its configuration."""
        with draining() as (node, tunnel):
            assert curl(node, "/reload", "-X", "POST")[0] == 409
            told = status_of(node)
            assert told["state"] == "draining"
            assert 0 < told["draining_for"] < told["uptime"]  # case 354
            tunnel.close()
            assert node.wait(30) == 0
            assert not node.control_socket.exists()


class TestWithoutAServer:
    def test_it_is_one_line_and_an_exit_code(self, tmp_path: Path) -> None:
        (tmp_path / "proxy.ini").touch()
        done = run_proxy("ctl", "-c", str(tmp_path / "proxy.ini"), "status")
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"proxy-server: no server is found by ")
        assert done.stderr.count(b"\n") == 1

    def test_also_after_a_crash(self, node: Proxy) -> None:
        node.kill()
        assert node.control_socket.exists()
        done = ctl(node, "status")
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
        node.start()
        assert ctl(node, "status").returncode == 0


def history_of(node: Proxy) -> dict[str, bytes]:
    folder = node.directory / ".proxy" / "history"
    return {path.name: path.read_bytes() for path in folder.glob("0*.ini")}


def beside(node: Proxy, listeners: dict[str, Any], **sections: Any) -> Proxy:
    """Make another server, whose file is in the folder of the first one's."""
    second = Proxy({"listeners": listeners, **sections})
    second.config_path = node.directory / "second.ini"
    second.command[-1] = str(second.config_path)
    second.write(second.config)
    return second


class TestTwoServers:
    """CASES H211: both serve, and each is reached by its own file, or not at all."""

    def test_the_second_with_one_state_dir_leaves_it_alone(self, node: Proxy) -> None:
        wait_until(lambda: history_of(node), "the first version")
        before = history_of(node)
        with beside(node, {"other": socks_door()}) as second, Target(targets.echo) as target:
            line = second.wait_for_log("is the state_dir of another server")
            assert f"{node.directory}/.proxy is the state_dir" in line
            assert f"set another state_dir in {second.config_path}" in line
            assert second.log.count("state_dir") == 2  # both in that line
            for door in (node.door("socks"), second.door("other")):
                clients.socks5(door, "127.0.0.1", target.port).close()
            second.write({**second.config, "auth_users": {"alice": "wonderland"}})
            second.wait_for_log("version 2 of the configuration (file)")
            second.signal(signal.SIGHUP)
            second.wait_for_log("unchanged: version 2")
            login = ("alice", "wonderland")
            clients.socks5(second.door("other"), "127.0.0.1", target.port, login).close()
        assert history_of(node) == before
        assert status_of(node)["pid"] == node.pid

    def test_ctl_with_the_file_of_the_second_is_refused_by_the_first(self, node: Proxy) -> None:
        with beside(node, {"other": socks_door()}) as second:
            second.wait_for_log("is the state_dir of another server")
            before = [path.read_text() for path in (node.config_path, second.config_path)]
            for command in (["set", "proxy.timeout", "5s"], ["rollback"], ["status"], ["metrics"]):
                done = ctl(second, *command)
                assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
                assert f"the server that listens here runs with {node.config_path}: ".encode() in done.stderr
            assert [path.read_text() for path in (node.config_path, second.config_path)] == before
            assert said(ctl(node, "versions")).count("\n") == 2

    def test_the_second_can_be_controlled_by_tcp(self, node: Proxy) -> None:
        port = free_port()
        control = {"listen_addr": f"127.0.0.1:{port}", "token": TOKEN}
        wait_until(lambda: history_of(node), "the first version")
        before = history_of(node)
        with beside(node, {"other": socks_door()}, control=control) as second:
            second.wait_listening(port)
            url, login = f"http://127.0.0.1:{port}", ("-H", f"Authorization: Bearer {TOKEN}")
            status, body = curl(second, f"{url}/status", *login)
            assert (status, json.loads(body)["pid"]) == (200, second.pid)
            change = ("-X", "PATCH", "-d", '{"set": {"proxy.timeout": "5s"}}')
            assert curl(second, f"{url}/config", *login, *change)[0] == 200
            assert "timeout = 5s" in second.config_path.read_text()
            assert curl(second, f"{url}/rollback", *login, "-X", "POST")[0] == 200
            assert "timeout = 5s" not in second.config_path.read_text()
        assert history_of(node) == before

    def test_the_second_has_no_last_good_version(self, node: Proxy) -> None:
        wait_until(lambda: history_of(node), "the first version")
        path = node.directory / "second.ini"
        path.write_text("[proxy]\ntiemout = 5s\n")
        done = run_proxy("-c", str(path), "-last-good")
        assert (done.returncode, b"tiemout" in done.stderr) == (2, True)

    def test_a_successor_may_start_while_the_first_drains(self) -> None:
        """CASES I217: and it is the one that ctl finds from then on."""
        with draining() as (first, tunnel):
            state_dir = str(first.directory / ".proxy")
            with Proxy({**first.config, "proxy": {"state_dir": state_dir}}) as second:
                wait_until(lambda: status_of(first)["pid"] == second.pid, "the successor's socket")
                tunnel.close()
                assert first.wait(30) == 0
                assert status_of(first)["pid"] == second.pid


class TestKill:
    def test_a_websocket_client_is_told_1008(self, node: Proxy) -> None:
        """RFC 6455, section 7.4.1: the policy was violated."""
        with Target(targets.hold) as target:
            web = clients.websocket(node.door("web"), "127.0.0.1", target.port)
            assert isinstance(web, WebTunnel)
            (row,) = connections_of(node)
            assert said(ctl(node, "kill", str(row["id"]))) == f"connection {row['id']} is ended\n"
            assert web.recv_close() == 1008
            wait_until(lambda: status_of(node)["live"] == 0, "the connection to end")

    def test_a_socks_client_is_reset(self, node: Proxy) -> None:
        with Target(targets.hold) as target:
            tunnel = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
            (row,) = connections_of(node)
            said(ctl(node, "kill", str(row["id"])))
            with pytest.raises(ConnectionResetError):
                tunnel.recv(1)

    def test_one_that_still_dials_ends_too(self, node: Proxy) -> None:
        with targets.blackhole() as port, contextlib.closing(connect(node.door("socks"))) as client:
            client.sendall(socks_greeting() + socks_request("127.0.0.1", port))
            wait_until(
                lambda: [row["state"] for row in connections_of(node)] == ["dialling"], "the dial to begin"
            )
            (row,) = connections_of(node)
            said(ctl(node, "kill", str(row["id"])))
            wait_until(lambda: status_of(node)["live"] == 0, "the connection to end")

    def test_one_that_is_not_there_is_one_line(self, node: Proxy) -> None:
        done = ctl(node, "kill", "999")
        assert (done.returncode, done.stderr) == (1, b"proxy-server: there is no such connection\n")


class TestChanging:
    """CASES 193, 202, 210, 211."""

    def test_a_change_is_in_effect_and_in_the_file(self, node: Proxy) -> None:
        assert "applied as version 2" in said(ctl(node, "set", "listeners.socks.max_connections", "7"))
        assert status_of(node)["listeners"][0]["max_connections"] == 7
        assert "max_connections = 7" in node.config_path.read_text()

    def test_a_volatile_one_is_not_in_the_file(self, node: Proxy) -> None:
        said(ctl(node, "set", "--volatile", "listeners.socks.max_connections", "7"))
        status = status_of(node)
        assert (status["listeners"][0]["max_connections"], status["version"]["volatile"]) == (7, True)
        assert "max_connections" not in node.config_path.read_text()

    def test_a_password_is_read_from_standard_input_and_never_shown(self, node: Proxy) -> None:
        """CASES 203, 210."""
        said(ctl(node, "set", "auth_users.carol", stdin=b"wonderland\n"))
        with Target(targets.echo) as target:
            login = ("carol", "wonderland")
            clients.socks5(node.door("socks"), "127.0.0.1", target.port, login).close()
        for command in (["versions"], ["diff", "1"], ["diff", "1", "2"], ["status"], ["--json", "versions"]):
            assert "wonderland" not in said(ctl(node, *command))
        assert "wonderland" not in curl(node, "/versions/2")[1]
        assert "wonderland" not in node.log
        history = node.directory / ".proxy" / "history"
        assert {stat.S_IMODE(path.stat().st_mode) for path in history.iterdir()} == {0o600}

    def test_what_is_wrong_is_rejected_and_changes_nothing(self, node: Proxy) -> None:
        before = node.config_path.read_text()
        done = ctl(node, "set", "proxy.tiemout", "5s")
        assert done.returncode == 1
        assert b"timeout" in done.stderr  # the suggestion
        assert ctl(node, "set", "proxy.timeout", "never").returncode == 1
        assert (node.config_path.read_text(), status_of(node)["version"]["number"]) == (before, 1)
        assert metrics(node)["proxy_reloads_total", frozenset({"rejected"})] == 2

    def test_what_is_no_text_is_refused_like_any_other_mistake(self, node: Proxy) -> None:
        """CASES H211."""
        for change in ('{"set": {"auth_users.x": "\\ud800"}}', '{"set": {"auth_users.\\udcff": "x"}}'):
            status, body = curl(node, "/config", "-X", "PATCH", "-d", change)
            assert (status, json.loads(body)["status"]) == (422, "rejected")
            assert "UTF-8" in json.loads(body)["problems"][0]
        for done in (
            ctl(node, "set", "auth_users.y", "p\udcffw"),
            ctl(node, "set", "auth_users.y", stdin=b"p\xffw\n"),
        ):
            assert (done.returncode, b"UTF-8" in done.stderr) == (1, True), done.stderr
        assert "auth_users" not in node.config_path.read_text()

    def test_where_the_state_lives_cannot_be_changed(self, node: Proxy) -> None:
        """CASES H211: from then on nobody would find the server."""
        done = ctl(node, "set", "proxy.state_dir", "other")
        assert done.returncode == 1
        assert b"proxy.state_dir: cannot change while the server runs" in done.stderr
        assert "applied as version 2" in said(ctl(node, "set", "proxy.timeout", "5s"))
        before = node.config_path.read_text()
        node.config_path.write_text(before.replace("[proxy]", "[proxy]\nstate_dir = other"))
        node.signal(signal.SIGHUP)
        wait_until(lambda: node.log.count("edit the file, and restart the server") == 2, "the refusal")
        done = ctl(node, "status")
        assert b"one that runs keeps the state_dir with which it was started" in done.stderr
        node.config_path.write_text(before)
        assert status_of(node)["version"]["number"] == 2
        node.config_path.write_text(before.replace("[proxy]", "[proxy]\nstate_dir = other"))
        node.signal(signal.SIGTERM)
        assert node.wait(30) == 0
        node.start()
        assert said(ctl(node, "versions")).count("\n") == 2

    def test_rollback_repairs_a_broken_file(self, node: Proxy) -> None:
        """CASES 202: ctl finds the server although the file says nothing of use."""
        said(ctl(node, "set", "listeners.socks.max_connections", "7"))
        node.config_path.write_text("[proxy\ngarbage")
        done = ctl(node, "reload")
        assert (done.returncode, b"rejected: version 2 stays" in done.stderr) == (1, True)
        assert "applied as version 3" in said(ctl(node, "rollback", "1"))
        assert "max_connections" not in node.config_path.read_text()
        versions = said(ctl(node, "versions")).splitlines()
        assert [line.split()[0] for line in versions[1:]] == ["1", "2", "3*"]

    def test_the_slower_of_two_changes_is_told(self, node: Proxy) -> None:
        def change(value: str) -> int:
            body = json.dumps({"set": {"proxy.timeout": value}})
            return curl(node, "/config", "-X", "PATCH", "-H", 'If-Match: "1"', "-d", body)[0]

        assert [change("5s"), change("6s")] == [200, 412]
        assert "timeout = 5s" in node.config_path.read_text()

    def test_reload_says_what_happened(self, node: Proxy) -> None:
        # Or the file is noticed before it is asked for.
        assert said(ctl(node, "set", "proxy.reload_interval", "0")).startswith("applied as version 2")
        assert said(ctl(node, "reload")).startswith("unchanged: version 2 stays")
        node.write({**node.config, "proxy": {"timeout": "5s", "reload_interval": 0}})
        assert said(ctl(node, "reload")).startswith("applied as version 3")


class TestTcp:
    """CASES J224."""

    def test_it_wants_its_token(self) -> None:
        port = free_port()
        config = {
            "listeners": {"socks": socks_door()},
            "control": {"listen_addr": f"127.0.0.1:{port}", "token": TOKEN},
        }
        with Proxy(config) as node:
            node.wait_listening(port)
            url = f"http://127.0.0.1:{port}/status"
            login = ("-H", f"Authorization: Bearer {TOKEN}")
            assert curl(node, url)[0] == 401
            assert curl(node, url, *login)[0] == 200
            assert curl(node, url, "-H", "Host: attacker.example")[0] == 421
            # A new token is in effect without a restart, and the old one is not.
            said(ctl(node, "set", "control.token", stdin=b"another\n"))
            assert curl(node, url, *login)[0] == 401
            assert curl(node, url, "-H", "Authorization: Bearer another")[0] == 200

    def test_no_answer_has_a_secret(self) -> None:
        config = {
            "auth_users": {"alice": "wonderland"},
            "listeners": {"socks": socks_door(upstream="home")},
            "upstreams": {
                "home": upstream(
                    "websocket",
                    f"ws://127.0.0.1:{free_port()}/?cheshire",
                    proxy_username="bob",
                    proxy_password="looking-glass",
                )
            },
            "control": {"listen_addr": f"127.0.0.1:{free_port()}", "token": TOKEN},
        }
        with Proxy(config) as node:
            with pytest.raises(SocksRefused):
                clients.socks5(node.door("socks"), "127.0.0.1", 9, ("alice", "wonderland"))
            node.wait_for_log("upstream home: ")
            said(ctl(node, "set", "proxy.timeout", "5s"))
            said(ctl(node, "unset", "auth_users.alice"))
            paths = ("status", "connections", "versions", "versions/1", "versions/1?to=3", "metrics")
            for path in paths:
                status, body = curl(node, f"/{path}")
                assert status == 200
                assert not any(secret in body.encode() for secret in SECRETS), path
            assert ctl(node, "set", "control.token", "\x01wonderland").returncode == 1
            assert not any(secret in node.log.encode() for secret in SECRETS)


def test_the_socket_is_for_its_owner_alone(node: Proxy) -> None:
    """CASES J224."""
    assert stat.S_IMODE(node.control_socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(node.control_socket.parent.stat().st_mode) == 0o700


def test_where_the_state_can_have_no_place_the_proxy_runs_on() -> None:
    """Such as on a read-only file system."""
    config = {"proxy": {"state_dir": "proxy.ini/state"}, "listeners": {"socks": socks_door()}}
    with Proxy(config) as node, Target(targets.echo) as target:
        node.wait_for_log("no control socket")
        clients.socks5(node.door("socks"), "127.0.0.1", target.port).close()


# Service managers


def test_a_service_manager_is_told_of_the_whole_life() -> None:
    with ExitStack() as stack:
        manager = Manager(stack)
        environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
        node = Proxy({"listeners": {"socks": socks_door()}}, environment=environment)
        stack.enter_context(node)
        assert manager.hear() == "READY=1"
        manager.feel()
        node.signal(signal.SIGHUP)
        assert [manager.hear(), manager.hear()] == ["RELOADING=1", "READY=1"]
        node.config_path.write_text("garbage")
        node.signal(signal.SIGHUP)
        assert [manager.hear(), manager.hear()] == ["RELOADING=1", "READY=1"]
        manager.feel()
        node.signal(signal.SIGTERM)
        assert manager.hear() == "STOPPING=1"
        assert node.wait(30) == 0


LAUNCHER = """
import os, sys
fd, *command = sys.argv[1:]
os.dup2(int(fd), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="proxy-server.socket")
os.execv(sys.executable, [sys.executable, "-m", "proxy", *command])
"""


@contextlib.contextmanager
def activated(listener: socket.socket, node: Proxy) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the program with a listening socket as systemd hands it over, from descriptor 3 on."""
    # Neither is 3 itself free here, nor does a descriptor pass that is 3 by chance.
    high = os.dup(listener.fileno())
    with node.log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(high), "-c", str(node.config_path)],
            pass_fds=[high],
            env=clean_environment(node.directory),
            cwd=REPOSITORY,
            stderr=log,
        )
    os.close(high)
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize("host", ["127.0.0.1", ""], ids=["one-address", "every-address"])
def test_a_restart_with_inherited_sockets_loses_nobody(host: str) -> None:
    """CASES 218: clients wait in the queue while no server runs, and get their tunnel from the next one."""
    family = socket.AF_INET if host else socket.AF_INET6
    listener = socket.socket(family)
    if not host:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    with listener, Target(targets.echo) as target:
        listener.bind((host, 0))
        listener.listen(64)
        port = listener.getsockname()[1]
        listeners = {"socks": {"protocol": "socks5", "listen_addr": f"{host}:{port}"}}
        node = Proxy({"proxy": {"guard": "off"}, "listeners": listeners})
        for _ in range(2):
            results: list[bytes] = []

            def use(results: list[bytes] = results) -> None:
                tunnel = clients.socks5(("127.0.0.1", port), "127.0.0.1", target.port, timeout=60)
                tunnel.sendall(b"hello")
                results.append(read_exact(tunnel, 5))
                tunnel.close()

            waiting = [threading.Thread(target=use) for _ in range(10)]
            for thread in waiting:
                thread.start()
            with activated(listener, node) as process:
                for thread in waiting:
                    thread.join(60)
                assert results == [b"hello"] * 10, node.log
                process.terminate()
                assert process.wait(30) == 0
        assert "Traceback" not in node.log


def test_a_socket_that_no_listener_has_is_closed_with_a_warning() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        node = Proxy({"listeners": {"socks": socks_door()}})
        with activated(listener, node):
            node.wait_for_log("no listener has the address of the inherited socket")
            node.wait_for_log("socks listens on")


def test_the_tool_of_systemd_starts_it() -> None:
    """The real one, which starts the program when the first client comes."""
    tool = shutil.which("systemd-socket-activate")
    if not tool:
        pytest.skip("systemd-socket-activate is not installed")
    door = socks_door()
    command = (tool, "-l", door["listen_addr"], f"--setenv=PYTHONPATH={REPOSITORY}")
    with Target(targets.echo) as target:
        node = Proxy({"listeners": {"socks": door}}, prefix=command, starts=False)
        with node:
            node.wait_listening(node.door("socks"))
            tunnel = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
            tunnel.sendall(b"hello")
            assert read_exact(tunnel, 5) == b"hello"
            tunnel.close()
            node.wait_for_control()
            assert curl(node, "/healthz")[0] == 200
            node.signal(signal.SIGTERM)
            assert node.wait(30) == 0


class TestFiles:
    """What lies in conf/ is understood by those for whom it is."""

    def test_the_units_are_right(self) -> None:
        tool = shutil.which("systemd-analyze")
        if not tool:
            pytest.skip("systemd-analyze is not installed")
        units = sorted(map(str, (REPOSITORY / "conf" / "systemd").iterdir()))
        done = subprocess.run(
            [tool, "verify", "--man=no", *units], capture_output=True, text=True, timeout=30
        )
        wrong = [line for line in done.stderr.splitlines() if "is not executable" not in line]
        assert [line for line in wrong if "proxy-server" in line] == []

    def test_the_unit_lets_the_log_be_written_where_logrotate_looks_for_it(self) -> None:
        unit = (REPOSITORY / "conf" / "systemd" / "proxy-server.service").read_text()
        rotated = (REPOSITORY / "conf" / "logrotate" / "proxy-server").read_text()
        (folder,) = re.findall(r"^LogsDirectory=(.+)$", unit, re.MULTILINE)
        assert f"\n/var/log/{folder}/access.log {{" in rotated

    def test_what_the_unit_says_to_do_sets_the_state_dir_before_the_first_start(self, tmp_path: Path) -> None:
        """Case 361: it cannot change afterwards."""
        unit = (REPOSITORY / "conf" / "systemd" / "proxy-server.service").read_text()
        (before, _) = unit.split("enable --now", 1)
        (edit,) = re.findall(r"sed -i '(.*)' /etc/proxy-server/proxy\.ini", before)
        text = (REPOSITORY / "conf" / "proxy.ini").read_text()
        done = subprocess.run(["sed", edit], input=text, capture_output=True, text=True, timeout=60)
        (tmp_path / "proxy.ini").write_text(done.stdout)
        dumped = said(run_proxy("-c", str(tmp_path / "proxy.ini"), "-dump"))
        assert re.search(r"^state_dir = /var/lib/proxy-server$", dumped, re.MULTILINE)

    def test_what_the_unit_says_to_install_is_its_users_and_its_groups(self) -> None:
        """CASES H211: a file of root's group could not be written anew by that user."""
        unit = (REPOSITORY / "conf" / "systemd" / "proxy-server.service").read_text()
        owned = [line for line in unit.splitlines() if " -o proxy-server " in line]
        assert len(owned) == 2
        assert all(" -g proxy-server " in line for line in owned)

    def test_logrotate_moves_a_log_and_the_next_line_is_in_a_new_one(self) -> None:
        """What its postrotate does: SIGHUP after the file was renamed."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pxt-")))
            log, moved = folder / "access.log", folder / "access.log.1"
            config = {"proxy": {"access_log": str(log)}, "listeners": {"socks": socks_door()}}
            node = stack.enter_context(Proxy(config))
            target = stack.enter_context(Target(targets.echo))

            def use() -> None:
                clients.socks5(node.door("socks"), "127.0.0.1", target.port).close()

            use()
            wait_until(lambda: log.read_text().count("\n") == 1, "the first line")
            log.rename(moved)
            node.signal(signal.SIGHUP)
            wait_until(log.exists, "the new file")
            use()
            wait_until(lambda: log.read_text().count("\n") == 1, "the second line")
            assert moved.read_text().count("\n") == 1


def test_a_stalled_control_client_costs_nobody_anything(node: Proxy) -> None:
    """As many as there are places, and one more; the proxy serves on, and they are cut in time."""
    with ExitStack() as stack, Target(targets.echo) as target:
        for _ in range(17):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(node.control_socket))
            sock.sendall(b"GET /sta")
        clients.socks5(node.door("socks"), "127.0.0.1", target.port).close()
