"""Listeners at Unix sockets: every protocol, who may connect, and what becomes of the file."""

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.integration import peers
from tests.integration.certificates import Authority
from tests.integration.programs import (
    COMMAND,
    Program,
    Proxy,
    clean_environment,
    mixed_door,
    run_proxy,
    socks_door,
    upstream,
    web_door,
)
from tests.integration.test_control import activated
from tests.integration.test_told import banned
from tests.wire import clients, targets
from tests.wire.sockets import connect, read_exact, read_rest
from tests.wire.socks5 import GREETING, LOGIN_GREETING, login, to_ip
from tests.wire.targets import Target
from tests.wire.waits import wait_until
from tests.wire.websocket import Peer, upgrade

TIMEOUT = 30  # seconds
BULK = os.urandom(1 << 20) * 8
LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="pxt-") as name:
        yield Path(name)


def at(path: Path, door: dict[str, Any]) -> dict[str, Any]:
    """Put a listener at a Unix socket."""
    return {**door, "listen_addr": f"unix:{path}"}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def answers(path: Path) -> bool:
    """Tell whether a SOCKS5 listener answers there."""
    try:
        with connect((str(path), 0)) as client:
            client.sendall(GREETING)
            return client.recv(2) == b"\x05\x00"
    except OSError:
        return False


def ctl(node: Proxy, *arguments: str, status: int = 0) -> str:
    """Run ctl, and give what it prints."""
    done = run_proxy("ctl", "-c", str(node.config_path), *arguments)
    assert done.returncode == status, done.stderr
    return (done.stdout + done.stderr).decode()


def clients_of(node: Proxy) -> list[str]:
    """Wait for a line in the access log, and give the clients that stand there."""
    node.wait_for_log(" access ")
    return [line.split(" client=")[1].split()[0] for line in node.log.splitlines() if " access " in line]


# -- every protocol


def test_every_protocol_is_served(folder: Path, echo: Target) -> None:
    doors = {
        "socks": at(folder / "socks", socks_door()),
        "web": at(folder / "web", web_door()),
        "mixed": at(folder / "mixed", mixed_door()),
    }
    with Proxy({"listeners": doors}) as node:
        tunnels = (
            clients.socks5(node.door("socks"), "127.0.0.1", echo.port),
            clients.websocket(node.door("web"), "127.0.0.1", echo.port),
            clients.socks5(node.door("mixed"), "127.0.0.1", echo.port),
        )
        for tunnel in tunnels:
            tunnel.sendall(b"hello")
            assert read_exact(tunnel, 5) == b"hello"
        live = json.loads(ctl(node, "--json", "connections"))["connections"]
        assert [each["client"] for each in live] == ["unix", "unix", "unix"]
        for tunnel in tunnels:
            tunnel.close()
        assert set(clients_of(node)) == {"unix"}
        assert f"socks listens on unix:{folder}/socks (socks5)" in node.log
        assert "open proxy" not in node.log
        listed = json.loads(ctl(node, "--json", "status"))["listeners"]
        assert [each["addresses"] for each in listed] == [[f"unix:{folder / name}"] for name in doors]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("splice", ["auto", "off"])
@pytest.mark.parametrize("kind", ["socks5", "websocket"])
def test_bulk_arrives_whole_in_both_directions(folder: Path, kind: str, splice: str) -> None:
    door = socks_door() if kind == "socks5" else web_door()
    node = Proxy({"proxy": {"splice": splice}, "listeners": {"door": at(folder / "s", door)}})
    open_tunnel: Any = clients.socks5 if kind == "socks5" else clients.websocket
    with Target(targets.exchange(BULK, len(BULK))) as target, node:
        tunnel = open_tunnel(node.door("door"), "127.0.0.1", target.port)
        sender = threading.Thread(target=tunnel.sendall, args=(BULK,), daemon=True)
        sender.start()
        assert targets.receive_digest(tunnel.recv, len(BULK)) == sha256(BULK).hexdigest()
        sender.join(TIMEOUT)
        assert target.result() == sha256(BULK).hexdigest()
        tunnel.close()


def test_curl_goes_through_one(folder: Path) -> None:
    """Its SOCKS proxy may be a path, behind the name localhost."""
    page = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    node = Proxy({"listeners": {"socks": at(folder / "s", socks_door())}})
    with targets.Scripted(page) as target, node:
        command = [peers.find("curl"), "-sS", "-m", str(TIMEOUT), "-x", f"socks5h://localhost{folder}/s"]
        done = subprocess.run(
            [*command, f"http://localhost:{target.port}/"],
            env=clean_environment("/"),
            capture_output=True,
            timeout=TIMEOUT + 5,
        )
        if b"nsupported proxy" in done.stderr or b"esolve proxy" in done.stderr:
            pytest.skip("this curl is older than 7.84, and knows no SOCKS proxy at a Unix socket")
        assert (done.stdout, done.stderr) == (b"hello", b"")


def test_tls_works_there(folder: Path, echo: Target) -> None:
    tls = {"tls_cert": "node.pem", "tls_key": "node.key"}
    node = Proxy({"listeners": {"mixed": at(folder / "s", mixed_door(**tls))}})
    Authority(node.directory).self_signed("node", "localhost")
    context = ssl.create_default_context(cafile=str(node.directory / "node.pem"))
    with node, context.wrap_socket(connect(node.door("mixed")), server_hostname="localhost") as client:
        client.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % echo.port)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"hello")
        assert read_exact(client, 5) == b"hello"


def test_it_needs_no_file(folder: Path, echo: Target) -> None:
    """A command line makes one too, with the mode that is the default."""
    path = folder / "s"
    server = Program([*COMMAND, "-mode", "server", "-protocol", "mixed", "-addr", f"unix:{path}"])
    with server:
        server.wait_listening((str(path), 0))
        assert mode_of(path) == 0o660
        tunnel = clients.socks5((str(path), 0), "127.0.0.1", echo.port)
        tunnel.sendall(b"hello")
        assert read_exact(tunnel, 5) == b"hello"
        tunnel.close()
        server.signal(signal.SIGTERM)
        assert server.wait(TIMEOUT) == 0
    assert not path.exists()


def test_a_client_may_listen_there_too(folder: Path, echo: Target) -> None:
    """So -listen gives a port of a host far away to some users of this machine only."""
    path = folder / "s"
    with Proxy({"listeners": {"socks": socks_door()}}) as node:
        proxy = ["-protocol", "socks5", "-addr", "{}:{}".format(*node.door("socks"))]
        target = ["-host", "127.0.0.1", "-port", str(echo.port), "-listen", f"unix:{path}"]
        with Program([*COMMAND, "-mode", "client", *proxy, *target]) as near:
            near.wait_listening((str(path), 0))
            with connect((str(path), 0)) as client:
                client.sendall(b"hello")
                assert read_exact(client, 5) == b"hello"


# -- who the client is


def test_a_header_of_whoever_connects_says_who_the_client_is(folder: Path, echo: Target) -> None:
    """DESIGN 1.9: without trusted, as who may open the file is."""
    doors = {
        "socks": at(folder / "socks", socks_door(client_address="proxy_protocol")),
        "web": at(folder / "web", web_door(client_address="x_forwarded_for")),
    }
    with Proxy({"proxy": {"guard": "off"}, "listeners": doors}) as node:
        with connect(node.door("socks")) as client:
            client.sendall(LINE + GREETING + to_ip("127.0.0.1", echo.port))
            read_exact(client, 12)
        node.wait_for_log("client=192.0.2.7:56324 listener=socks")
        with Peer.connect(node.door("web")) as peer:
            peer.write(upgrade(echo.port, X_Forwarded_For="203.0.113.9, 192.0.2.8"))
            assert peer.read_head()[0].endswith("101 Switching Protocols")
        node.wait_for_log("client=192.0.2.8:0 listener=web")
        with Peer.connect(node.door("web")) as peer:
            peer.write(upgrade(echo.port))
            assert peer.read_head()[0].endswith("101 Switching Protocols")
        node.wait_for_log("client=unix listener=web")


def test_those_in_between_are_passed_over_if_they_are_trusted(folder: Path, echo: Target) -> None:
    door = web_door(client_address="x_forwarded_for", trusted="192.0.2.0/24")
    with Proxy({"listeners": {"web": at(folder / "s", door)}}) as node:
        with Peer.connect(node.door("web")) as peer:
            peer.write(upgrade(echo.port, X_Forwarded_For="203.0.113.9, 192.0.2.8"))
            peer.read_head()
        assert clients_of(node) == ["203.0.113.9:0"]


def test_clients_are_judged_by_the_address_that_was_told(folder: Path, echo: Target) -> None:
    """Nobody's, where none was: that is in no network."""
    door = web_door(client_address="x_forwarded_for", clients="192.0.2.0/24")
    with Proxy({"proxy": {"guard": "off"}, "listeners": {"web": at(folder / "s", door)}}) as node:
        for told, status in (({"X_Forwarded_For": "192.0.2.7"}, "101"), ({}, "403")):
            with Peer.connect(node.door("web")) as peer:
                peer.write(upgrade(echo.port, **told))
                assert peer.read_head()[0].split()[1] == status


def test_a_client_without_an_address_is_nobody_whom_fail2ban_could_ban(folder: Path) -> None:
    config = {"listeners": {"socks": at(folder / "s", socks_door())}, "auth_users": {"alice": "wonderland"}}
    with Proxy(config) as node, connect(node.door("socks")) as client:
        client.sendall(LOGIN_GREETING + login(b"alice", b"guess"))
        assert read_exact(client, 4) == b"\x05\x02\x01\x01"
        node.wait_for_log("authentication failed: client=unix user=alice listener=socks")
        assert banned(node.log_path) == []


def test_the_name_of_a_clients_own_end_is_not_believed(folder: Path, echo: Target) -> None:
    name = f"{folder}/192.0.2.7 user=root"
    with Proxy({"listeners": {"socks": at(folder / "s", socks_door())}}) as node:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            client.bind(name)
            client.connect(node.door("socks")[0])
            client.sendall(GREETING + to_ip("127.0.0.1", echo.port))
            read_exact(client, 12)
        assert clients_of(node) == ["unix"]


# -- the file


def test_what_a_crash_left_behind_gives_way_and_what_runs_does_not(folder: Path) -> None:
    config = {"listeners": {"socks": at(folder / "s", socks_door(mode="0600"))}}
    with Proxy(config) as first:
        assert mode_of(folder / "s") == 0o600
        with Proxy(config, starts=False) as second:
            assert second.wait(TIMEOUT) == 1
            name = Path(f"/proc/{first.pid}/comm").read_text().strip()
            (said,) = [line for line in second.log.splitlines() if "cannot listen" in line]
            assert said.endswith(
                f"cannot listen on unix:{folder}/s: Address already in use, by {name} (process {first.pid})"
            )
        assert answers(folder / "s")
        first.kill()
        assert (folder / "s").exists()
        with Proxy(config):
            assert answers(folder / "s")
    assert not (folder / "s").exists()


@pytest.mark.parametrize("what", ["file", "folder", "missing"])
def test_what_is_in_the_way_is_told(folder: Path, what: str) -> None:
    path = folder / "s" if what != "missing" else folder / "gone" / "s"
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    said = (
        f"there is no folder {path.parent}"
        if what == "missing"
        else f"a {what} is in its place, and is not a socket"
    )
    with Proxy({"listeners": {"socks": at(path, socks_door())}}, starts=False) as node:
        assert node.wait(TIMEOUT) == 1
        assert node.log.splitlines()[-1] == f"proxy-server: cannot listen on unix:{path}: {said}"
    assert what != "file" or path.read_text() == "precious"


def test_a_reload_leaves_it_alone_or_changes_its_mode_or_its_path(folder: Path, echo: Target) -> None:
    one, other = folder / "one", folder / "other"

    def config(path: Path, **settings: Any) -> dict[str, Any]:
        return of({"socks": at(path, socks_door(**settings))})

    def of(listeners: dict[str, Any]) -> dict[str, Any]:
        return {"proxy": {"reload_interval": 0}, "listeners": listeners}

    with Proxy(config(one)) as node:
        tunnel = clients.socks5(node.door("socks"), "127.0.0.1", echo.port)
        made = one.stat()
        node.write(config(one, max_connections=7))
        assert "applied" in ctl(node, "reload")
        assert (one.stat().st_ino, one.stat().st_ctime_ns) == (made.st_ino, made.st_ctime_ns)

        node.write(config(one, mode="0600"))
        assert "applied" in ctl(node, "reload")
        assert (one.stat().st_ino, mode_of(one)) == (made.st_ino, 0o600)

        # Another protocol is another server at the same socket.
        mixed = at(one, mixed_door(mode="0666"))
        node.write(of({"socks": mixed}))
        assert "applied" in ctl(node, "reload")
        assert (one.stat().st_ino, mode_of(one)) == (made.st_ino, 0o666)
        assert answers(one)

        # Nothing of a change that is rejected: the second listener cannot be had.
        other.touch()
        third = folder / "third"
        node.write(of({"socks": mixed, "third": at(third, socks_door()), "new": at(other, socks_door())}))
        assert "a file is in its place, and is not a socket" in ctl(node, "reload", status=1)
        assert (one.stat().st_ino, mode_of(one)) == (made.st_ino, 0o666)
        assert answers(one)
        assert not third.exists()
        other.unlink()

        node.write(config(other))
        assert "applied" in ctl(node, "reload")
        assert not one.exists()
        assert answers(other)

        assert "applied" in ctl(node, "rollback", "2")
        assert not other.exists()
        assert answers(one)

        tunnel.sendall(b"hello")  # through all that
        assert read_exact(tunnel, 5) == b"hello"
        tunnel.close()


def test_a_drain_serves_whom_it_has_and_takes_the_file_away(folder: Path, echo: Target) -> None:
    config = {"proxy": {"drain_timeout": "30s"}, "listeners": {"socks": at(folder / "s", socks_door())}}
    with Proxy(config) as node:
        tunnel = clients.socks5(node.door("socks"), "127.0.0.1", echo.port)
        node.signal(signal.SIGTERM)
        wait_until(lambda: not (folder / "s").exists(), "the file to be gone")
        with Proxy({"listeners": {"socks": at(folder / "s", socks_door())}}) as successor:
            tunnel.sendall(b"hello")
            assert read_exact(tunnel, 5) == b"hello"
            tunnel.close()
            assert node.wait(TIMEOUT) == 0
            assert answers(folder / "s")  # the first has left its successor's file alone
            assert successor.process.poll() is None


def test_a_cut_is_told_as_far_as_a_unix_socket_can_tell(folder: Path) -> None:
    """It knows no reset, so a plain client sees an end; a WebSocket has a word for it (RFC 6455, 7.4.1)."""
    doors = {"socks": at(folder / "socks", socks_door()), "web": at(folder / "web", web_door())}
    node = Proxy({"listeners": doors})
    with Target(targets.reset_after(b"hello")) as target, node:
        plain = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
        plain.sendall(b"x")
        assert read_rest(plain.sock) == (b"hello", "FIN")
        web = clients.websocket(node.door("web"), "127.0.0.1", target.port)
        web.sendall(b"x")
        assert read_exact(web, 5) == b"hello"
        assert web.recv_close() == 1011
        node.wait_for_log("listener=socks target=127.0.0.1")
        assert 'end="cut:' in node.wait_for_log("listener=web target=127.0.0.1")


# -- the service manager's


def test_one_that_the_service_manager_opened_is_used_and_left_where_it_is(folder: Path, echo: Target) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o606)
        listener.listen(64)
        node = Proxy({"listeners": {"socks": at(path, socks_door())}})
        for _ in range(2):
            waiting = connect((str(path), 0))
            with activated(listener, node) as process:
                waiting.sendall(GREETING)
                assert read_exact(waiting, 2) == b"\x05\x00"
                waiting.close()
                assert mode_of(path) == 0o606  # systemd's SocketMode
                process.terminate()
                assert process.wait(TIMEOUT) == 0
            assert path.exists()


def test_an_upstream_is_none(folder: Path) -> None:
    """It is a listener's address only, and the file says so."""
    config = {
        "listeners": {"socks": socks_door(upstream="home")},
        "upstreams": {"home": upstream("socks5", f"unix:{folder}/s")},
    }
    with Proxy(config, starts=False) as node:
        assert node.wait(TIMEOUT) == 2
        assert "[upstreams.home] proxy_address: " in node.log
