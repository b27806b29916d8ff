"""How connections leave the machine: from which address, by which interface, in which family."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.address import Address
from proxy.errors import LimitError
from proxy.net.deadline import Deadline
from proxy.net.dial import dial
from proxy.settings.egress import Egress
from tests.integration.netns import Namespace
from tests.integration.programs import Proxy, run_proxy, socks_door, upstream
from tests.wire import clients
from tests.wire import upstreams as script
from tests.wire.clients import SocksRefused
from tests.wire.sockets import free_port, read_to_end
from tests.wire.targets import Target
from tests.wire.upstreams import hear_head

LINE = "10.77.0.7"
REPLIES = {"general": 1, "network unreachable": 3}  # RFC 1928, section 6


def tell(connection: socket.socket) -> None:
    """Tell who has come."""
    connection.sendall(connection.getpeername()[0].encode())
    connection.shutdown(socket.SHUT_WR)


def comes_from(node: Proxy, door: str, target: Target, host: str = "127.0.0.1") -> str:
    """Connect to a target, and hear from where that was."""
    tunnel = clients.socks5(node.door(door), host, target.port)
    return read_to_end(tunnel).decode()


def refusal(node: Proxy, door: str, host: str, port: int) -> int:
    """Be refused, and give the reply."""
    with pytest.raises(SocksRefused) as refused:
        clients.socks5(node.door(door), host, port)
    return refused.value.reply


def direct(**settings: object) -> dict[str, object]:
    """Describe a way out that goes directly."""
    return {"type": "direct", **settings}


def ctl(node: Proxy, *arguments: str) -> str:
    """Run ctl, and give what it prints."""
    done = run_proxy("ctl", "-c", str(node.config_path), *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.fixture
def target() -> Iterator[Target]:
    with Target(tell) as target:
        yield target


def test_a_target_sees_the_source(target: Target) -> None:
    """DESIGN 1.3; also by an interface."""
    ways = {"two": direct(source="127.0.0.2"), "lo": direct(source="127.0.0.3", interface="lo")}
    doors = {name: socks_door(upstream=name) for name in ways} | {"plain": socks_door()}
    with Proxy({"listeners": doors, "upstreams": ways}) as node:
        assert comes_from(node, "two", target) == "127.0.0.2"
        assert comes_from(node, "lo", target) == "127.0.0.3"
        assert comes_from(node, "plain", target) == "127.0.0.1"
        assert refusal(node, "two", "::1", target.port) == REPLIES["network unreachable"]
        node.wait_for_log("source 127.0.0.2 does not reach IPv6")


@pytest.mark.parametrize("kind", ["socks5", "http", "websocket"])
def test_a_proxy_sees_the_source(kind: str) -> None:
    port = free_port()
    doors = {"socks": socks_door(upstream="far")}
    ways = {"far": upstream(kind, ("127.0.0.1", port), source="127.0.0.2")}
    who = []

    def note(connection: socket.socket) -> None:
        who.append(connection.getpeername()[0])

    with script.upstream(port, note, script.end), Proxy({"listeners": doors, "upstreams": ways}) as node:
        refusal(node, "socks", "target.example", 443)
        assert who[0] == "127.0.0.2"


def test_a_change_of_the_source_is_for_new_connections(target: Target) -> None:
    ways = {"line": direct(source="127.0.0.2")}
    doors = {"socks": socks_door(upstream="line")}
    with Proxy({"listeners": doors, "upstreams": ways}) as node:
        assert comes_from(node, "socks", target) == "127.0.0.2"
        ctl(node, "set", "upstreams.line.source", "127.0.0.4")
        assert comes_from(node, "socks", target) == "127.0.0.4"
        # One that no machine can have is refused, and nothing has changed.
        done = run_proxy("ctl", "-c", str(node.config_path), "set", "upstreams.line.source", "eth1")
        assert (done.returncode, b"source: is not an IP address" in done.stderr) == (1, True)
        assert comes_from(node, "socks", target) == "127.0.0.4"
        assert "source = 127.0.0.4\n" in ctl(node, "show")


def test_a_line_that_is_not_there_is_passed_over_until_it_comes() -> None:
    """It is told by its setting, makes no upstream rest, and is used as soon as it is there."""
    ways = {"line": direct(source=LINE), "cable": direct(interface="cable0"), "rest": direct(family="ipv4")}
    doors = {
        "alone": socks_door(upstream="line"),
        "cable": socks_door(upstream="cable"),
        "some": socks_door(upstream=["line", "rest"]),
    }
    with (
        Namespace() as space,
        space.run(lambda: Target(tell)) as target,
        Proxy({"listeners": doors, "upstreams": ways}, prefix=space.prefix) as node,
    ):

        def told(door: str) -> str:
            return space.run(lambda: comes_from(node, door, target))

        node.wait_for_log("[upstreams.line] source: this machine does not have this address")
        for door in ("alone", "cable"):
            reply = space.run(lambda name=door: refusal(node, name, "127.0.0.1", target.port))  # type: ignore[misc]
            assert reply == REPLIES["general"]
        assert told("some") == "127.0.0.1"
        node.wait_for_log(f"warning upstream line: source {LINE}: this machine does not have this address")
        node.wait_for_log("warning upstream cable: interface cable0: there is no such interface")
        assert "rests" not in node.log
        space.ip("addr", "add", f"{LINE}/32", "dev", "lo")
        assert told("alone") == LINE
        assert told("some") == LINE


def test_a_source_uses_up_no_ports_but_to_one_address_and_then_it_is_our_shortage() -> None:
    """Linux, ip(7), IP_BIND_ADDRESS_NO_PORT; there are two ports, as many as connections to one address."""
    with Namespace() as space, ExitStack() as stack:

        def few_ports() -> None:
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40001")

        space.run(few_ports)

        ports = (81, 82)

        def listen() -> None:
            for port in ports:
                stack.enter_context(Target(lambda connection: connection.recv(1), port=port))

        space.run(listen)

        def connect(port: int) -> None:
            address = Address("127.0.0.1", port)
            stack.callback(dial(address, Deadline(10), egress=Egress("127.0.0.2")).close)

        for port in ports * 2:
            space.run(lambda port=port: connect(port))  # type: ignore[misc]
        with pytest.raises(LimitError):
            space.run(lambda: connect(ports[0]))


def test_an_interface_is_used_whatever_the_routes_say() -> None:
    with Namespace() as space:
        space.ip("link", "add", "here0", "type", "veth", "peer", "name", "there0")
        for name, address in (("here0", "10.77.0.1/24"), ("there0", "10.78.0.1/24")):
            space.ip("addr", "add", address, "dev", name)
            space.ip("link", "set", name, "up")
        ways = {"here": direct(interface="here0"), "lo": direct(interface="lo")}
        doors = {name: socks_door(upstream=name) for name in ways}
        # The loopback is where 127.0.0.1 is, and here0 does not lead there.
        node = Proxy({"proxy": {"timeout": "1s"}, "listeners": doors, "upstreams": ways}, prefix=space.prefix)
        with space.run(lambda: Target(tell)) as target, node:
            assert space.run(lambda: comes_from(node, "lo", target)) == "127.0.0.1"
            with pytest.raises(SocksRefused):
                space.run(lambda: clients.socks5(node.door("here"), "127.0.0.1", target.port))


@pytest.mark.parametrize(
    ("family", "name", "seen"),
    [
        ("ipv4", "both.test", "127.0.0.1"),
        ("ipv6", "both.test", "::1"),
        ("ipv4_only", "both.test", "127.0.0.1"),
        ("ipv6_only", "both.test", "::1"),
        ("ipv6", "four.test", "127.0.0.1"),
        ("ipv6_only", "four.test", None),
        ("ipv4_only", "six.test", None),
    ],
)
def test_a_name_is_reached_by_the_family_that_is_wanted(family: str, name: str, seen: str | None) -> None:
    ways = {"line": direct(family=family)}
    doors = {"socks": socks_door(upstream="line")}
    with Namespace() as space:
        space.hosts("127.0.0.1 both.test four.test\n::1 both.test six.test\n")
        node = Proxy({"listeners": doors, "upstreams": ways}, prefix=space.prefix)
        with space.run(lambda: Target(tell)) as target, node:
            if seen:
                assert space.run(lambda: comes_from(node, "socks", target, name)) == seen
                return
            reply = space.run(lambda: refusal(node, "socks", name, target.port))
            assert reply == REPLIES["network unreachable"]
            node.wait_for_log(f"addresses only, and family = {family} leaves")


def test_headers_are_sent_and_never_told() -> None:
    """DESIGN 1.3: secret, like a password, also after a change while it runs."""
    port = free_port()
    ways = {"far": upstream("http", ("127.0.0.1", port))}
    doors = {"socks": socks_door(upstream="far")}
    given = '"X-Token: s3same, and more", "User-Agent: Mozilla/5.0"'
    with Proxy({"proxy": {"log_level": "debug"}, "listeners": doors, "upstreams": ways}) as node:
        ctl(node, "set", "upstreams.far.headers", given)
        with script.upstream(port, hear_head, b"HTTP/1.1 403 No\r\n\r\n", script.end) as far:
            refusal(node, "socks", "target.example", 443)
            (head, *_) = far.result()
        assert "\r\nX-Token: s3same, and more\r\nUser-Agent: Mozilla/5.0\r\n\r\n" in head
        node.wait_for_log("version 2")
        dumped = run_proxy("-c", str(node.config_path), "-dump").stdout.decode()
        told = [
            ctl(node, "show"),
            ctl(node, "versions"),
            ctl(node, "diff", "1", "2"),
            ctl(node, "status"),
            dumped,
        ]
        assert "headers = ********: ********\n" in dumped
        done = run_proxy("ctl", "-c", str(node.config_path), "set", "upstreams.far.headers", "X-Token s3same")
        assert done.returncode == 1
        assert "s3same" not in "".join([*told, done.stderr.decode(), node.log])
