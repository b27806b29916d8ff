"""
A server whose configuration changes while it runs: what is noticed, applied and refused, and who feels it.

Groups H and I of CASES.md, as far as a test names them; the rest of I is in test_life.
"""

import contextlib
import copy
import os
import re
import signal
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.certificates import Authority
from tests.integration.programs import Proxy, ini, run_proxy, socks_door, upstream, web_door
from tests.wire import clients, targets
from tests.wire.clients import LoginRefused, SocksRefused, Tunnel, WebTunnel
from tests.wire.processes import LISTEN, catches, listening_ports, sockets_of
from tests.wire.sockets import Door, connect, free_port, read_exact, read_to_end
from tests.wire.socks5 import login, socks_greeting, socks_request
from tests.wire.targets import Target
from tests.wire.waits import wait_until
from tests.wire.websocket import upgrade_request

INTERVAL = 0.1  # seconds
ALICE, BOB = ("alice", "wonderland"), ("bob", "builder")


class Live(Proxy):
    """A node that looks at its file ten times a second."""

    def __init__(self, proxy: dict[str, Any] | None = None, **sections: Any) -> None:
        listeners = sections.pop("listeners", None) or {"socks": socks_door(), "web": web_door()}
        own = {"reload_interval": f"{INTERVAL:g}s", **(proxy or {})}
        super().__init__({"proxy": own, "listeners": listeners, **sections})
        self.version = 1

    def text(self, **changes: Any) -> str:
        """Write the text of the configuration with other settings: a section's, or a list of users."""
        config: dict[str, Any] = copy.deepcopy(dict(self.config))
        for section, settings in changes.items():
            config[section] = {**config.get(section, {}), **settings}
            config[section] = {name: value for name, value in config[section].items() if value is not None}
        self.config = config
        return ini(config)

    def change(self, **changes: Any) -> None:
        """Change the file, and wait until that is in effect."""
        self.config_path.write_text(self.text(**changes))
        self.wait_for_version()

    def wait_for_version(self) -> str:
        """Wait for the next version, and give the line of the log that tells of it."""
        self.version += 1
        return self.wait_for_log(f"version {self.version} of the configuration")

    def refuse(self, text: str, *words: str) -> None:
        """Write a file that is refused, and wait for the line that says why."""
        self.config_path.write_text(text)
        self.wait_for_log(words[0])
        self.wait_for_log(f"version {self.version} stays in effect")
        assert all(word in self.log for word in words), self.log

    def ctl(self, *arguments: str, status: int = 0) -> str:
        """Run ctl, and give what it prints."""
        done = run_proxy("ctl", "-c", str(self.config_path), *arguments)
        assert done.returncode == status, done.stderr
        return (done.stdout + done.stderr).decode()


@pytest.fixture
def target() -> Iterator[Target]:
    with Target(targets.echo) as target:
        yield target


def works(tunnel: Tunnel) -> bool:
    """Tell whether what is sent comes back."""
    data = os.urandom(100)
    tunnel.sendall(data)
    return read_exact(tunnel, len(data)) == data


def logs_in(door: Door, port: int, credentials: tuple[str, str] | None) -> bool:
    """Tell whether a login lets a client through."""
    try:
        clients.socks5(door, "127.0.0.1", port, credentials).close()
    except LoginRefused:
        return False
    return True


def socket_of(node: Proxy, name: str) -> list[str]:
    """Name the listening socket of a door as the kernel does."""
    port = node.door(name)[1]
    return [row.inode for row in sockets_of(node.pid) if row.port == port and row.state == LISTEN]


class TestNoticing:
    """CASES H199, H196, H193."""

    def test_a_change_is_in_effect_within_two_polls(self) -> None:
        with Live() as node:
            node.change(proxy={"timeout": "5s"})

    def test_a_file_that_takes_the_place_of_the_old_one_is_noticed(self) -> None:
        with Live() as node:
            new = node.config_path.with_suffix(".new")
            new.write_text(node.text(proxy={"timeout": "5s"}))
            new.rename(node.config_path)
            assert "proxy.timeout = 5s" in node.wait_for_version()

    def test_a_link_that_is_turned_is_noticed(self) -> None:
        with Live() as node:
            (node.directory / "v2").write_text(node.text(proxy={"timeout": "5s"}))
            (node.directory / "link").symlink_to("v2")
            (node.directory / "link").rename(node.config_path)
            node.wait_for_version()

    def test_the_same_time_and_size_do_not_hide_a_change_from_sighup(self) -> None:
        """CASES I215: SIGHUP is a reload, also where nobody looks at the file."""
        with Live({"reload_interval": "0", "timeout": "5s"}) as node:
            before = node.config_path.stat()
            node.config_path.write_text(node.text(proxy={"timeout": "7s"}))
            os.utime(node.config_path, ns=(before.st_atime_ns, before.st_mtime_ns))
            node.signal(signal.SIGHUP)
            assert "proxy.timeout 5s -> 7s" in node.wait_for_version()

    def test_an_interval_can_be_set_where_there_was_none(self) -> None:
        with Live({"reload_interval": "0"}) as node:
            node.config_path.write_text(node.text(proxy={"reload_interval": "100ms"}))
            node.signal(signal.SIGHUP)
            node.wait_for_version()
            node.change(proxy={"timeout": "5s"})

    def test_a_shorter_interval_is_in_effect_at_once(self) -> None:
        with Live({"reload_interval": "1h"}) as node:
            node.ctl("set", "proxy.reload_interval", "100ms")
            node.wait_for_version()
            node.change(proxy={"reload_interval": "100ms", "timeout": "5s"})

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (
                lambda text: text.replace("reload_interval", "reload_intervall"),
                "did you mean reload_interval",
            ),
            (lambda text: text + "[listener]\n", "[listener"),
            (lambda text: text.replace("0.1s", "soon"), "[proxy] reload_interval: not a duration"),
            (lambda text: "", "is empty"),
            (lambda text: text[: len(text) // 2], "proxy.ini:"),
        ],
        ids=["key", "section", "value", "empty", "half"],
    )
    def test_a_file_that_cannot_be_changes_nothing_until_it_is_right(
        self, damage: Callable[[str], str], words: str, target: Target
    ) -> None:
        """CASES H193, H196, H207."""
        with Live() as node:
            good = node.config_path.read_text()
            node.refuse(damage(good), words)
            assert works(clients.socks5(node.door("socks"), "127.0.0.1", target.port))
            lines = node.log.count("stays in effect")
            node.change(proxy={"timeout": "5s"})
            assert node.log.count("stays in effect") == lines

    def test_a_missing_file_changes_nothing(self, target: Target) -> None:
        with Live() as node:
            node.config_path.unlink()
            node.wait_for_log("cannot be read: No such file")
            assert works(clients.socks5(node.door("socks"), "127.0.0.1", target.port))
            node.change(proxy={"timeout": "5s"})

    def test_a_file_that_is_written_slowly_is_read_when_it_is_complete(self) -> None:
        with Live() as node:
            text = node.text(proxy={"timeout": "5s"})
            with node.config_path.open("w") as file:
                for piece in re.findall(r".{1,40}", text, re.DOTALL):
                    file.write(piece)
                    file.flush()
                    time.sleep(INTERVAL / 4)  # an editor that never rests for two polls
            node.wait_for_version()
            assert "stays in effect" not in node.log


class TestListeners:
    def test_one_is_opened_and_one_closed_and_the_other_not_touched(self, target: Target) -> None:
        new = socks_door()
        with Live() as node:
            old, kept = node.door("web"), socket_of(node, "socks")
            tunnel = clients.websocket(old, "127.0.0.1", target.port)
            node.change(listeners={"more": new, "web": None})
            assert works(clients.socks5(node.door("more"), "127.0.0.1", target.port))
            assert socket_of(node, "socks") == kept
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(old, 5)
            assert works(tunnel)  # it began before
            tunnel.close()

    def test_one_that_moves_is_never_closed(self, target: Target) -> None:
        with Live() as node:
            old = node.door("socks")
            node.change(listeners={"socks": socks_door()})
            assert works(clients.socks5(node.door("socks"), "127.0.0.1", target.port))
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(old, 5)

    def test_a_port_that_is_busy_refuses_the_whole_change(self, target: Target) -> None:
        with Live() as node, socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            before = listening_ports(node.pid)
            address = f"127.0.0.1:{other.getsockname()[1]}"
            good = node.config_path.read_text()
            changes = {"more": socks_door(), "busy": socks_door(listen_addr=address), "web": None}
            node.refuse(node.text(listeners=changes, auth_users=dict([ALICE])), address, "in use")
            assert listening_ports(node.pid) == before
            assert logs_in(node.door("socks"), target.port, None)
            other.close()
            # It is not tried again by itself, but when it is asked for.
            node.signal(signal.SIGHUP)
            node.wait_for_version()
            assert logs_in(node.door("busy"), target.port, ALICE)
            assert good

    def test_another_name_or_protocol_takes_the_sockets_over(self, target: Target) -> None:
        """No client is refused, not even one that waits in the queue."""
        with Live() as node:
            door, refused = node.door("socks"), []
            stop = threading.Event()

            def knock() -> None:
                while not stop.is_set():
                    try:
                        socket.create_connection(door, 5).close()
                    except OSError as error:
                        refused.append(error)

            knocking = threading.Thread(target=knock, daemon=True)
            knocking.start()
            address = f"127.0.0.1:{door[1]}"
            node.change(listeners={"socks": None, "other": socks_door(listen_addr=address)})
            assert works(clients.socks5(door, "127.0.0.1", target.port))
            node.change(listeners={"other": web_door(listen_addr=address)})
            assert works(clients.websocket(door, "127.0.0.1", target.port))
            stop.set()
            knocking.join(30)
            assert refused == []

    def test_a_client_that_waits_in_the_queue_is_served_by_the_one_who_takes_over(
        self, target: Target
    ) -> None:
        door = socks_door(max_connections=1)
        with Live(listeners={"socks": door}) as node:
            first = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
            with connect(node.door("socks")) as waiting:
                waiting.sendall(socks_greeting())
                node.change(listeners={"socks": None, "other": door})
                assert read_exact(waiting, 2) == b"\x05\x00"
            assert works(first)

    def test_two_can_change_places(self, target: Target) -> None:
        with Live() as node:
            listeners = node.config["listeners"]
            socks, web = listeners["socks"], listeners["web"]
            swapped = {
                "socks": {**socks, "listen_addr": web["listen_addr"]},
                "web": {**web, "listen_addr": socks["listen_addr"]},
            }
            node.change(listeners=swapped)
            assert works(clients.socks5(node.door("socks"), "127.0.0.1", target.port))
            assert works(clients.websocket(node.door("web"), "127.0.0.1", target.port))

    def test_a_wider_address_takes_the_place_of_a_narrower_one_and_back(self, target: Target) -> None:
        with Live({"guard": "off"}) as node:
            host, port = node.door("socks")
            for address in (f":{port}", f"{host}:{port}"):
                node.change(listeners={"socks": socks_door(listen_addr=address)})
                assert works(clients.socks5((host, port), "127.0.0.1", target.port))

    def test_a_wider_address_that_is_busy_leaves_the_narrower_one_open(self, target: Target) -> None:
        with Live() as node, socket.socket() as other:
            host, port = node.door("socks")
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.2", port))
            other.listen()
            node.refuse(node.text(listeners={"socks": socks_door(listen_addr=f":{port}")}), "in use")
            assert works(clients.socks5((host, port), "127.0.0.1", target.port))

    def test_more_connections_are_let_in_at_once(self, target: Target) -> None:
        with Live(listeners={"socks": socks_door(max_connections=1)}) as node:
            first = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
            with connect(node.door("socks")) as waiting:
                waiting.sendall(socks_greeting())
                node.change(listeners={"socks": {**node.config["listeners"]["socks"], "max_connections": 2}})
                assert read_exact(waiting, 2) == b"\x05\x00"
            first.close()


class TestUsers:
    """CASES H203."""

    def test_new_clients_need_what_the_file_says_now(self, target: Target) -> None:
        with Live(auth_users=dict([ALICE, BOB])) as node:
            tunnels: list[Tunnel] = [
                clients.socks5(node.door("socks"), "127.0.0.1", target.port, ALICE),
                clients.websocket(node.door("web"), "127.0.0.1", target.port, BOB),
            ]
            node.change(auth_users={"alice": "looking glass", "bob": None})
            assert not logs_in(node.door("socks"), target.port, ALICE)
            assert not logs_in(node.door("socks"), target.port, BOB)
            assert logs_in(node.door("socks"), target.port, ("alice", "looking glass"))
            assert all(map(works, tunnels))  # on_user_change = keep

    def test_those_of_a_changed_user_are_closed_if_that_is_wanted(self, target: Target) -> None:
        with Live({"on_user_change": "close"}, auth_users=dict([ALICE, BOB])) as node:
            socks, web = node.door("socks"), node.door("web")
            ended = [clients.websocket(web, "127.0.0.1", target.port, who) for who in (ALICE, BOB)]
            cut = clients.socks5(socks, "127.0.0.1", target.port, ALICE)
            node.change(auth_users={"alice": "looking glass", "bob": None, "carol": "x"})
            assert [tunnel.recv_close() for tunnel in ended] == [1008, 1008]  # RFC 6455, section 7.4.1
            with pytest.raises(ConnectionResetError):
                read_exact(cut, 1)
            stays = clients.socks5(socks, "127.0.0.1", target.port, ("carol", "x"))
            node.change(auth_users={"alice": "again"})
            assert works(stays)

    def test_a_client_in_its_login_is_judged_by_the_new_users(self, target: Target) -> None:
        with Live({"on_user_change": "close"}, auth_users=dict([ALICE])) as node:
            with connect(node.door("socks")) as early:
                early.sendall(socks_greeting(ALICE))
                assert read_exact(early, 2) == b"\x05\x02"
                node.change(auth_users={"alice": "looking glass"})
                early.sendall(login(b"alice", ALICE[1].encode()) + socks_request("127.0.0.1", target.port))
                answer = read_to_end(early)
            assert answer[:2] != b"\x01\x00" or answer[2:4] != b"\x05\x00", "it got in"
            assert target.accepted == 0

    def test_one_that_is_being_connected_is_ended_too(self) -> None:
        with (
            Live({"on_user_change": "close"}, auth_users=dict([ALICE])) as node,
            targets.blackhole() as port,
            connect(node.door("web")) as sock,
        ):
            sock.sendall(upgrade_request("127.0.0.1", port, ALICE))
            wait_until(lambda: "alice" in node.ctl("connections"), "the client to be known")
            node.change(auth_users={"alice": "looking glass"})
            assert b" 101 " not in read_to_end(sock)


class TestUpstreams:
    def test_new_connections_go_the_new_way_and_old_ones_stay(self, target: Target) -> None:
        """CASES H204."""
        with Live() as first, Live() as second:
            listeners = {"socks": socks_door(upstream="way")}
            ways = {"way": upstream("socks5", first.door("socks"))}
            with Live(listeners=listeners, upstreams=ways) as node:
                old = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
                node.change(upstreams={"way": upstream("websocket", second.door("web"))})
                new = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
                assert works(old)
                assert works(new)
                for tunnel, behind in ((old, first), (new, second)):
                    tunnel.close()
                    behind.wait_for_log(f"target=127.0.0.1:{target.port}")

    def test_a_dead_one_is_not_tried_anew_because_something_else_changed(self, target: Target) -> None:
        with Live() as alive:
            ways = {
                "dead": upstream("socks5", ("127.0.0.1", free_port())),
                "alive": upstream("socks5", alive.door("socks")),
            }
            with Live(listeners={"socks": socks_door(upstream=["dead", "alive"])}, upstreams=ways) as node:
                clients.socks5(node.door("socks"), "127.0.0.1", target.port).close()
                node.wait_for_log("it rests for")
                node.change(proxy={"idle_timeout": "1m"})
                clients.socks5(node.door("socks"), "127.0.0.1", target.port).close()
                wait_until(lambda: node.log.count("access id=") == 2, "the second line of the access log")
                # If its rest is over by now, this is a second one.
                assert node.log.count("it rests for 1 s") == 1


class TestCertificates:
    def test_a_renewed_one_is_served_to_new_clients(self, tmp_path: Path, target: Target) -> None:
        authority = Authority(tmp_path)
        first, second = (authority.issue(name, "localhost") for name in ("one", "two"))
        with Live(listeners={"web": web_door(**first.settings)}) as node:
            context = authority.client_context()
            old = clients.websocket(node.door("web"), "127.0.0.1", target.port, tls=context)
            second.cert.replace(first.cert)
            node.wait_for_log("does not belong to the certificate")
            second.key.replace(first.key)
            node.wait_for_log("the files that it names were read again")
            new = clients.websocket(node.door("web"), "127.0.0.1", target.port, tls=context)
            assert certificate(old) != certificate(new)
            assert certificate(new) == ssl.PEM_cert_to_DER_cert(first.cert.read_text())
            assert works(old)
            assert works(new)

    def test_one_that_was_missing_is_served_when_it_appears(self, tmp_path: Path, target: Target) -> None:
        """CASES H193: until then the old configuration stays."""
        authority = Authority(tmp_path)
        pair = authority.issue("one", "localhost")
        away = pair.cert.rename(tmp_path / "away.pem")
        with Live() as node:
            node.refuse(node.text(listeners={"web": web_door(**pair.settings)}), "No such file")
            away.rename(pair.cert)
            node.wait_for_version()
            context = authority.client_context()
            assert works(clients.websocket(node.door("web"), "127.0.0.1", target.port, tls=context))


def certificate(tunnel: WebTunnel) -> bytes:
    assert isinstance(tunnel.sock, ssl.SSLSocket)
    return tunnel.sock.getpeercert(binary_form=True) or b""


class TestLogs:
    def test_level_format_and_place_change_at_once(self, target: Target) -> None:
        with Live() as node:
            node.change(proxy={"log_level": "debug", "log_format": "json", "access_log": "access.log"})
            clients.socks5(node.door("socks"), "127.0.0.1", target.port).close()
            access = node.directory / "access.log"
            wait_until(lambda: access.exists() and '"log": "access"' in access.read_text(), "the access log")
            node.version += 1
            node.config_path.write_text(node.text(proxy={"log_format": "text", "access_log": "-"}))
            node.wait_for_log("info version 3")
            clients.socks5(node.door("socks"), "127.0.0.1", target.port).close()
            node.wait_for_log("access id=")
            assert access.read_text().count("\n") == 1

    def test_sighup_opens_a_log_that_was_moved_anew(self, target: Target) -> None:
        with Live({"access_log": "access.log", "reload_interval": "0"}) as node:
            access, moved = node.directory / "access.log", node.directory / "access.log.1"
            clients.socks5(node.door("socks"), "127.0.0.1", target.port).close()
            wait_until(access.read_text, "the first line")
            access.rename(moved)
            node.signal(signal.SIGHUP)
            wait_until(access.exists, "a new file")
            clients.socks5(node.door("socks"), "127.0.0.1", target.port).close()
            wait_until(access.read_text, "the second line")
            assert moved.read_text().count("\n") == access.read_text().count("\n") == 1


class TestVersions:
    def test_rollback_restores_users_and_ways_out_exactly(self, target: Target) -> None:
        """CASES H202."""
        with Live(auth_users=dict([ALICE])) as node:
            text = node.config_path.read_text()
            way = {"way": upstream("socks5", ("127.0.0.1", free_port()))}
            node.change(auth_users={"alice": "x", "bob": "x"}, upstreams=way)
            node.change(listeners={"socks": {**node.config["listeners"]["socks"], "upstream": "way"}})
            with pytest.raises(SocksRefused):
                clients.socks5(node.door("socks"), "127.0.0.1", target.port, ("alice", "x"))
            node.ctl("rollback", "1")
            assert node.config_path.read_text() == text
            assert logs_in(node.door("socks"), target.port, ALICE)
            assert not logs_in(node.door("socks"), target.port, ("bob", "x"))
            node.version += 1
            node.change(proxy={"timeout": "5s"})  # the next one is 5: rollback was 4, and was not read again

    def test_numbers_grow_and_versions_stay_across_restarts(self) -> None:
        """CASES H202, H210."""
        with Live({"history_size": 3}) as node:
            for seconds in range(4):
                node.change(proxy={"timeout": f"{seconds + 1}s"})
            node.signal(signal.SIGTERM)
            assert node.wait(30) == 0
            node.config_path.write_text(node.text(proxy={"timeout": "9s"}))
            Proxy.start(node)
            listed = node.ctl("versions")
            assert re.findall(r"^ +(\d+)", listed, re.MULTILINE) == ["4", "5", "6"]
            files = list((node.directory / ".proxy" / "history").iterdir())
            assert len(files) == 3
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
            assert stat.S_IMODE((node.directory / ".proxy").stat().st_mode) == 0o700

    def test_a_start_that_came_to_nothing_is_no_version(self) -> None:
        """CASES H202: nobody is to go back to what never was in effect."""
        with Live() as node, socket.socket() as other:
            node.signal(signal.SIGTERM)
            assert node.wait(30) == 0
            other.bind(("127.0.0.1", 0))
            other.listen()
            control = {"listen_addr": f"127.0.0.1:{other.getsockname()[1]}", "token": "looking-glass"}
            node.config_path.write_text(node.text(control=control))
            done = run_proxy("-c", str(node.config_path))
            assert (done.returncode, b"in use" in done.stderr) == (1, True)
            node.config_path.write_text(node.text(control={"listen_addr": None}))
            Proxy.start(node)
            assert re.findall(r"^ +(\d+)", node.ctl("versions"), re.MULTILINE) == ["1", "2"]

    def test_no_command_and_no_log_shows_a_secret(self) -> None:
        """CASES H210."""
        with Live(auth_users=dict([ALICE])) as node:
            node.change(auth_users={"alice": "looking-glass", "bob": "cheshire"})
            said = "".join(map(node.ctl, ("versions", "status"))) + node.ctl("diff", "1", "2") + node.log
            for secret in ("wonderland", "looking-glass", "cheshire"):
                assert secret not in said
            assert "+bob = ********" in said

    def test_where_nothing_can_be_written_they_are_kept_in_memory(self) -> None:
        with Live({"state_dir": "/proc/nowhere"}) as node:
            node.wait_for_log("in memory only")
            node.change(proxy={"timeout": "5s"})


class TestStartingWithAnInvalidFile:
    def broken(self, node: Proxy) -> str:
        node.signal(signal.SIGTERM)
        assert node.wait(30) == 0
        text = node.config_path.read_text().replace("listen_addr", "listen_adr")
        node.config_path.write_text(text)
        return text

    def test_it_says_why_and_ends(self) -> None:
        with Live() as node:
            self.broken(node)
            done = run_proxy("-c", str(node.config_path))
            assert done.returncode == 2
            assert b"listen_adr: unknown key; did you mean listen_addr?" in done.stderr

    def test_the_last_good_version_serves_if_that_is_wanted(self, target: Target) -> None:
        with Live() as node:
            node.change(proxy={"timeout": "5s"})
            bad = self.broken(node)
            node.command.append("-last-good")
            Proxy.start(node)
            assert "listen_adr" in node.log
            assert "version 2" in node.wait_for_log("the last good one")
            assert works(clients.socks5(node.door("socks"), "127.0.0.1", target.port))
            assert node.config_path.read_text() == bad
            node.change(proxy={"timeout": "6s"})

    def test_without_one_there_is_no_start(self, tmp_path: Path) -> None:
        path = tmp_path / "proxy.ini"
        path.write_text("[proxy]\ntimeout = 1s\n")
        assert run_proxy("-c", str(path), "-last-good").returncode == 2


class TestTransfers:
    def test_two_hundred_survive_fifty_reloads_without_the_loss_of_a_byte(self) -> None:
        """CASES H200."""
        size, rounds = 4096, 50
        with Live({"reload_interval": "0"}) as node, Target(targets.echo) as target, ExitStack() as stack:
            tunnels = [
                stack.enter_context(contextlib.closing(open_one(node, target.port, number)))
                for number in range(200)
            ]
            for number in range(rounds):
                sent = [os.urandom(size) for _ in tunnels]
                # What is changed makes new runtimes each time, and new listeners some of the times.
                more = {f"more{number}": socks_door(), f"more{number - 1}": None} if number % 10 == 0 else {}
                changes = {"auth_users": {}, "listeners": more, "proxy": {"timeout": f"{number + 5}s"}}
                node.config_path.write_text(node.text(**changes))
                node.signal(signal.SIGHUP)
                for tunnel, data in zip(tunnels, sent, strict=True):
                    tunnel.sendall(data)
                node.wait_for_version()
                for tunnel, data in zip(tunnels, sent, strict=True):
                    assert read_exact(tunnel, size) == data
            assert target.accepted == len(tunnels)

    def test_a_large_file_holds_up_nobody(self) -> None:
        """A file with 5,000 users."""
        users = {f"user{number}": f"password-{number}" for number in range(5000)}
        with Live({"reload_interval": "0"}) as node:
            node.config_path.write_text(node.text(auth_users=users))
            node.signal(signal.SIGHUP)
            node.wait_for_version()
            assert "and 4990 more" in node.log
            with Target(targets.echo) as target:
                assert logs_in(node.door("socks"), target.port, ("user4999", "password-4999"))


def open_one(node: Proxy, port: int, number: int) -> Tunnel:
    """Open one tunnel, through either door."""
    name = "web" if number % 2 else "socks"
    opener: Callable[..., Tunnel] = clients.websocket if number % 2 else clients.socks5
    return opener(node.door(name), "127.0.0.1", port)


class TestEnding:
    def test_a_reload_while_it_drains_is_ignored(self, target: Target) -> None:
        """CASES H206."""
        with Live({"drain_timeout": "1h"}) as node:
            tunnel = clients.socks5(node.door("socks"), "127.0.0.1", target.port)
            node.signal(signal.SIGTERM)
            node.wait_for_log("stopping:")
            more = socks_door()
            node.config_path.write_text(node.text(listeners={"more": more}))
            node.signal(signal.SIGHUP)
            node.wait_for_log("no reload")
            assert "is stopping" in node.ctl("reload", status=1)
            assert works(tunnel)
            tunnel.close()
            assert node.wait(30) == 0
            assert "version 2" not in node.log
            assert more["listen_addr"] not in node.log

    def test_a_stop_during_a_reload_is_obeyed(self) -> None:
        """CASES I216."""
        users = {f"user{number}": "x" for number in range(5000)}
        with Live({"reload_interval": "0"}) as node:
            node.config_path.write_text(node.text(auth_users=users))
            node.signal(signal.SIGHUP)
            node.signal(signal.SIGTERM)
            assert node.wait(30) == 0

    def test_a_server_without_a_file_says_that_there_is_none(self) -> None:
        port = free_port()
        with Proxy({"listeners": {}}, starts=False) as node:
            node.wait(30)
            node.command = [*node.command[:-2], "-mode", "server", "-protocol", "socks5"]
            node.command += ["-addr", f"127.0.0.1:{port}"]
            Proxy.start(node)
            node.wait_listening(port)
            wait_until(lambda: catches(node.pid, signal.SIGHUP), "the handler")
            node.signal(signal.SIGHUP)
            node.wait_for_log("no configuration file")
