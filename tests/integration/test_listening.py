"""
Addresses that are not there yet, stand beside one another, or are in one another's way.

Group L of CASES.md, and 349 and 350, in a network namespace where addresses have to come and go.
"""

import json
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.netns import Namespace
from tests.integration.programs import COMMAND, Program, Proxy, ini, run_proxy, socks_door, upstream, web_door
from tests.wire import clients, targets
from tests.wire.manager import Manager
from tests.wire.sockets import free_port, read_exact
from tests.wire.targets import Target
from tests.wire.waits import wait_until

LATER = "10.77.0.1"  # an address that a test gives to the loopback of its namespace
TOKEN = "cheshire"


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace() as space:
        yield space


def ctl(node: Proxy, *arguments: str, status: int = 0) -> str:
    """Run ctl, and give what it prints."""
    done = run_proxy("ctl", "-c", str(node.config_path), *arguments)
    assert done.returncode == status, done.stderr
    return (done.stdout + done.stderr).decode()


def health(address: str, port: int) -> tuple[int, Any]:
    """Ask a control interface how it is."""
    host = f"[{address}]" if ":" in address else address
    lines = ("GET /healthz HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {TOKEN}", "", "")
    with socket.create_connection((address, port), 10) as sock:
        sock.sendall("\r\n".join(lines).encode())
        head, _, body = b"".join(iter(lambda: sock.recv(4096), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def is_answered(address: str, port: int) -> bool:
    """Tell whether a SOCKS5 listener answers there."""
    try:
        with socket.create_connection((address, port), 10) as sock:
            sock.sendall(b"\x05\x01\x00")
            return sock.recv(2) == b"\x05\x00"  # RFC 1928, section 3
    except OSError:
        return False


class TestLater:
    def test_a_listener_serves_when_its_address_comes_and_the_others_from_the_start(
        self, space: Namespace
    ) -> None:
        """Cases 312 and 349: and whoever asks is told which one waits."""
        here, away, control = free_port(), free_port(), free_port()
        config = {
            "listeners": {
                "here": socks_door(listen_addr=f"127.0.0.1:{here}"),
                "away": socks_door(listen_addr=f"{LATER}:{away}"),
            },
            "control": {"listen_addr": f"127.0.0.1:{control}", "token": TOKEN},
        }
        with ExitStack() as stack:
            manager = Manager(stack)
            environment = {"NOTIFY_SOCKET": manager.address}
            node = Proxy(config, prefix=space.prefix, environment=environment, starts=False)
            stack.enter_context(node)
            assert manager.hear() == "READY=1"
            assert manager.hear() == f"STATUS=waiting for {LATER}:{away}"
            assert space.run(lambda: is_answered("127.0.0.1", here))
            node.wait_for_log(f"away waits for {LATER}:{away}: Cannot assign requested address")
            assert f"{LATER}:{away} (waiting: Cannot assign requested address)" in ctl(node, "status")
            assert space.run(lambda: health("127.0.0.1", control)) == (
                200,
                {"status": "ok"},
            )
            up = 'proxy_listener_up{listener="%s"} %d'
            assert all(up % which in ctl(node, "metrics") for which in (("here", 1), ("away", 0)))
            assert "unchanged" in ctl(node, "reload")  # nor is a reload refused for it

            space.ip("addr", "add", f"{LATER}/32", "dev", "lo")
            assert manager.hear() == "STATUS="
            node.wait_for_log(f"away listens on {LATER}:{away}")
            assert space.run(lambda: is_answered(LATER, away))
            assert up % ("away", 1) in ctl(node, "metrics")
            assert space.run(lambda: health("127.0.0.1", control)) == (200, {"status": "ok"})
            node.signal(signal.SIGTERM)
            assert node.wait(30) == 0

    def test_nobody_gives_up_where_all_addresses_are_still_to_come(self, space: Namespace) -> None:
        """Case 312: that of the control interface too."""
        door, control = free_port(), free_port()
        config = {
            "listeners": {"away": socks_door(listen_addr=f"{LATER}:{door}")},
            "control": {"listen_addr": f"{LATER}:{control}", "token": TOKEN},
        }
        with Proxy(config, prefix=space.prefix, starts=False) as node:
            node.wait_for_log(f"the control interface waits for {LATER}:{control}")
            node.wait_for_control()
            assert json.loads(ctl(node, "--json", "status"))["listeners"][0]["addresses"] == []
            space.ip("addr", "add", f"{LATER}/32", "dev", "lo")
            node.wait_listening(door, control)
            assert space.run(lambda: is_answered(LATER, door))
            assert space.run(lambda: health(LATER, control)) == (200, {"status": "ok"})

    def test_one_who_waits_for_its_only_address_is_no_place_for_a_balancer(self, space: Namespace) -> None:
        """Case 312: 503 says that nobody is served here."""
        door, control = free_port(), free_port()
        config = {
            "listeners": {"away": socks_door(listen_addr=f"{LATER}:{door}")},
            "control": {"listen_addr": f"127.0.0.1:{control}", "token": TOKEN},
        }
        with Proxy(config, prefix=space.prefix, starts=False) as node:
            node.wait_listening(control)
            assert space.run(lambda: health("127.0.0.1", control)) == (
                503,
                {"status": "waiting"},
            )

    def test_an_interface_may_come_later_too(self, space: Namespace) -> None:
        """Cases 312 and 342: RFC 4007, section 11."""
        port = free_port()
        config = {"listeners": {"away": socks_door(listen_addr=f"[fe80::77%late0]:{port}")}}
        with Proxy(config, prefix=space.prefix, starts=False) as node:
            node.wait_for_log(f"away waits for [fe80::77%late0]:{port}: there is no interface late0")
            space.ip("link", "add", "late0", "type", "veth", "peer", "name", "late1")
            space.ip("link", "set", "late1", "up")
            space.ip("addr", "add", "fe80::77/64", "dev", "late0", "nodad")
            space.ip("link", "set", "late0", "up")
            node.wait_listening(port)
            assert space.run(lambda: is_answered("fe80::77%late0", port))

    @pytest.mark.parametrize("zone", ["here0", "number"])
    def test_a_link_local_listener_is_taken_over_by_a_reload_and_an_upgrade(
        self, space: Namespace, zone: str
    ) -> None:
        """However its interface is written: sockets tell only the number of that."""
        space.ip("link", "add", "here0", "type", "veth", "peer", "name", "here1")
        space.ip("link", "set", "here1", "up")
        space.ip("addr", "add", "fe80::77/64", "dev", "here0", "nodad")
        space.ip("link", "set", "here0", "up")
        if zone == "number":
            zone = str(space.run(lambda: socket.if_nametoindex("here0")))
        port = free_port()
        door = {"listen_addr": f"[fe80::77%{zone}]:{port}"}
        config = {"proxy": {"workers": 2}, "listeners": {"one": socks_door(**door)}}
        with Proxy(config, prefix=space.prefix, starts=False) as node:
            node.wait_for_control()
            node.wait_for_log("the workers serve")
            ctl(node, "set", "listeners.one.protocol", "mixed")
            config["listeners"] = {"other": socks_door(**door)}
            node.write(config)
            ctl(node, "reload")
            assert space.run(lambda: is_answered("fe80::77%here0", port))
            ctl(node, "upgrade")
            assert space.run(lambda: is_answered("fe80::77%here0", port))
            assert "proxy-server" in ctl(node, "status")

    def test_one_who_waits_can_be_told_to_stop(self, space: Namespace) -> None:
        """Case 312."""
        with Proxy(
            {"listeners": {"away": socks_door(listen_addr=f"{LATER}:1080")}},
            prefix=space.prefix,
            starts=False,
        ) as node:
            node.wait_for_log("away waits for")
            node.wait_for_control()
            node.signal(signal.SIGTERM)
            assert node.wait(30) == 0

    @pytest.mark.parametrize(
        "arguments",
        [
            ("-mode", "server", "-protocol", "socks5", "-addr", "192.0.2.1:1080"),
            (
                *("-mode", "client", "-protocol", "socks5", "-addr", "127.0.0.1:9"),
                *("-host", "a.example", "-port", "80", "-listen", "192.0.2.1:1080"),
            ),
        ],
    )
    def test_who_sits_at_a_terminal_is_told_at_once(self, arguments: tuple[str, ...]) -> None:
        """Case 312: an address that this machine does not have is most likely a slip of the pen."""
        done = run_proxy(*arguments)
        assert done.returncode == 1
        expected = "proxy-server: cannot listen on 192.0.2.1:1080: Cannot assign requested address"
        assert done.stderr.decode().splitlines()[-1] == expected

    def test_a_reload_to_an_address_that_is_not_there_is_rejected(self) -> None:
        """Case 312: the old one is there, and whoever asks can be told."""
        with Proxy({"listeners": {"socks": socks_door()}}) as node:
            said = ctl(node, "set", "listeners.socks.listen_addr", "192.0.2.1:1080", status=1)
            assert "cannot listen on 192.0.2.1:1080: Cannot assign requested address" in said
            assert is_answered(*node.door("socks"))


class TestWithoutIPv6:
    """Case 303: the hosts file knows more addresses than the machine has."""

    @pytest.fixture
    def space(self) -> Iterator[Namespace]:
        with Namespace() as space:
            space.hosts("127.0.0.1 localhost\n::1 localhost\n::1 only-six\n")
            space.without_ipv6()
            yield space

    def test_a_name_serves_on_what_is_there_of_it(self, space: Namespace) -> None:
        door, control, later = free_port(), free_port(), free_port()
        listeners: dict[str, Any] = {"socks": socks_door(listen_addr=f"localhost:{door}")}
        config = {
            "listeners": listeners,
            "control": {"listen_addr": f"localhost:{control}", "token": TOKEN},
        }
        with Proxy(config, prefix=space.prefix) as node:
            node.wait_listening(door, control)
            assert space.run(lambda: is_answered("127.0.0.1", door))
            assert space.run(lambda: health("127.0.0.1", control)) == (200, {"status": "ok"})
            node.wait_for_log(f"warning socks waits for [::1]:{door}: Cannot assign requested address")
            node.wait_for_log(f"warning the control interface waits for [::1]:{control}: Cannot assign")
            # By a reload too; and what is not there at all is an error then.
            assert f"waits for [::1]:{later}" in ctl(
                node, "set", "listeners.socks.listen_addr", f"localhost:{later}"
            )
            assert space.run(lambda: is_answered("127.0.0.1", later))
            said = ctl(node, "set", "listeners.socks.listen_addr", f"only-six:{door}", status=1)
            assert f"cannot listen on only-six:{door}: Cannot assign requested address" in said
            assert space.run(lambda: is_answered("127.0.0.1", later))

    def test_so_does_a_port_that_is_carried(self, space: Namespace) -> None:
        port = free_port()
        command = (
            *("-mode", "client", "-protocol", "socks5", "-addr", "127.0.0.1:9"),
            *("-host", "a.example", "-port", "80", "-listen", f"localhost:{port}"),
        )
        with Program([*space.prefix, *COMMAND, *command]) as program:
            program.wait_listening(port)
            program.wait_for_log(f"listen waits for [::1]:{port}: Cannot assign requested address")
            program.wait_for_log(f"listen listens on 127.0.0.1:{port} (forwarding to a.example:80)")


class TestSideBySide:
    def test_both_families_have_a_listener_of_their_own(self) -> None:
        """Cases 301 and 350."""
        port, control = free_port(), free_port()
        config = {
            "proxy": {"guard": "off"},
            "listeners": {
                "four": socks_door(listen_addr=f"0.0.0.0:{port}"),
                "six": web_door(listen_addr=f"[::]:{port}"),
                "socks": socks_door(listen_addr=f"127.0.0.1:{control}"),
            },
            "control": {"listen_addr": f"[::]:{control}", "token": TOKEN},
        }
        with Proxy(config) as node, Target(targets.echo) as target:
            clients.socks5(("127.0.0.1", port), "127.0.0.1", target.port).close()
            clients.websocket(("::1", port), "127.0.0.1", target.port).close()
            assert is_answered("127.0.0.1", control)
            assert health("::1", control) == (200, {"status": "ok"})
            node.wait_for_log("is an open proxy: anyone who reaches [::]")

    def test_a_check_finds_two_spellings_of_one_address(self) -> None:
        """Case 350."""
        port = free_port()
        config = {
            "listeners": {
                "name": socks_door(listen_addr=f"localhost:{port}"),
                "address": web_door(listen_addr=f"127.0.0.1:{port}"),
            }
        }
        with tempfile.TemporaryDirectory(prefix="pxt-") as folder:
            path = Path(folder, "proxy.ini")
            path.write_text(ini(config))
            done = run_proxy("-c", str(path), "-check")
        assert done.returncode == 2
        expected = (
            f"[listeners.address] listen_addr: is the address of [listeners.name] too: 127.0.0.1:{port}"
        )
        assert expected in done.stderr.decode()

    def test_an_exposed_listener_is_closed_by_a_reload_while_its_connections_go_on(self) -> None:
        """Case 302."""
        port = free_port()
        listeners: dict[str, Any] = {"socks": socks_door(listen_addr=f":{port}")}
        config = {"proxy": {"guard": "off"}, "listeners": listeners}
        with Proxy(config) as node, Target(targets.echo) as target:
            tunnel = clients.socks5(("::1", port), "127.0.0.1", target.port)
            ctl(node, "set", "listeners.socks.listen_addr", f"127.0.0.1:{port}")
            tunnel.sendall(b"hello")
            assert read_exact(tunnel, 5) == b"hello"
            tunnel.close()
            assert is_answered("127.0.0.1", port)
            assert not is_answered("::1", port)
            assert not is_answered("127.0.0.2", port)


class TestLogs:
    """Case 306: that a log is opened anew is one thing, and what becomes of the file another."""

    @pytest.mark.parametrize("ask", ["SIGHUP", "ctl"])
    @pytest.mark.parametrize("fault", ["broken", "busy"])
    def test_a_log_is_opened_anew_whatever_becomes_of_the_file(self, ask: str, fault: str) -> None:
        with ExitStack() as stack:
            target = stack.enter_context(Target(targets.echo))
            busy = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            node = Proxy(
                {
                    "proxy": {"access_log": "access.log", "reload_interval": "0"},
                    "listeners": {"socks": socks_door()},
                }
            )
            stack.enter_context(node)
            log, moved = node.directory / "access.log", node.directory / "access.log.1"
            log.rename(moved)
            text = node.config_path.read_text()
            more = f"[[more]]\nprotocol = socks5\nlisten_addr = 127.0.0.1:{busy.getsockname()[1]}\n"
            node.config_path.write_text("garbage" if fault == "broken" else text + more)
            if ask == "ctl":
                ctl(node, "reload", status=1)
            else:
                node.signal(signal.SIGHUP)
                node.wait_for_log("stays in effect")
            assert log.exists()
            clients.socks5(node.door("socks"), "127.0.0.1", target.port).close()
            wait_until(log.read_text, "the line")
            assert moved.read_text() == ""


class TestOurselves:
    """Case 375: whoever asks for one of our own listeners gets no connection that comes back."""

    @pytest.mark.parametrize("host", ["", "127.0.0.1"], ids=["every-address", "one-address"])
    def test_our_own_listeners_are_no_targets_however_they_are_spelt(self, host: str) -> None:
        socks, web, control = free_port(), free_port(), free_port()
        listeners = {
            "socks": socks_door(listen_addr=f"{host}:{socks}"),
            "web": web_door(listen_addr=f"{host}:{web}"),
        }
        address = {"listen_addr": f"{host}:{control}", "token": TOKEN}
        with Proxy({"listeners": listeners, "control": address}) as node:
            for port in (socks, web, control):
                # Of a name, an address may be left that is not ours.
                names = () if host else ("localhost", "::1", "127.0.0.2")
                for name in ("127.0.0.1", "::ffff:127.0.0.1", "127.1", "0.0.0.0", *names):
                    with pytest.raises(clients.SocksRefused) as refused:
                        clients.socks5(node.door("socks"), name, port)
                    assert refused.value.reply == 2  # RFC 1928: connection not allowed by ruleset
                with pytest.raises(clients.HttpRefused) as answered:
                    clients.websocket(node.door("web"), "127.0.0.1", port)
                assert answered.value.status == 403

    def test_a_listener_may_go_out_by_another_one_of_the_same_program(self) -> None:
        """What is configured is no client's wish."""
        web = web_door()
        with Target(targets.echo) as target:
            url = f"ws://{web['listen_addr']}/"
            config = {
                "listeners": {"socks": socks_door(upstream="far"), "web": web},
                "upstreams": {"far": upstream("websocket", url)},
            }
            with Proxy(config) as node:
                clients.socks5(node.door("socks"), "127.0.0.1", target.port).close()
                with pytest.raises(clients.SocksRefused) as refused:  # by the second one
                    clients.socks5(node.door("socks"), *node.door("socks"))
                assert refused.value.reply == 2

    @pytest.mark.parametrize(
        ("arguments", "option"),
        [
            ("-mode server -protocol socks5 -addr :1080 -upstream-type socks5", "-upstream-address"),
            ("-mode client -protocol socks5 -listen :1080 -host a.example -port 80", "-addr"),
        ],
    )
    def test_a_circle_is_refused_on_the_command_line(self, arguments: str, option: str) -> None:
        done = run_proxy(*arguments.split(), option, "127.0.0.1:1080")
        assert done.returncode == 2
        assert done.stderr.decode() == (
            f"proxy-server: {option}: this program itself listens there: connections would go in a circle\n"
        )

    def test_a_circle_in_a_file_is_found_by_a_check_and_refused_by_a_reload(self) -> None:
        socks = socks_door()
        with Proxy({"listeners": {"socks": socks}}) as node:
            more = f"[upstreams]\n[[me]]\ntype = socks5\nproxy_address = {socks['listen_addr']}\n"
            text = node.config_path.read_text().replace("listen_addr", "upstream = me\nlisten_addr")
            node.config_path.write_text(f"{text}\n{more}")
            done = run_proxy("-c", str(node.config_path), "-check")
            circle = "connections would go in a circle: from socks by upstream me to socks"
            problem = f"[listeners.socks] upstream: {circle}"
            assert (done.returncode, problem in done.stderr.decode()) == (2, True)
            assert problem in ctl(node, "reload", status=1)
            assert is_answered(*node.door("socks"))
