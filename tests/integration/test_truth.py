"""
A client learns why it did not get its connection, through each door and through a chain of proxies.

The causes are real ones, made in a network namespace: its routes, its resolver and its listeners.
The table is that of RFC 1928, section 6, and of RFC 9209, section 2.3.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest

from tests.integration.netns import Namespace
from tests.integration.peers import StubDns
from tests.integration.programs import Proxy, socks_door, upstream, web_door
from tests.wire import clients, targets
from tests.wire.clients import HttpRefused, LoginRefused, SocksRefused, Tunnel
from tests.wire.sockets import connect, free_port, read_exact, reset
from tests.wire.socks5 import read_socks_reply, socks_greeting
from tests.wire.targets import Target
from tests.wire.waits import wait_until
from tests.wire.websocket import Peer, upgrade_request

ALICE = ("alice", "wonderland")


@dataclass(frozen=True)
class Answer:
    """What each protocol says of one cause."""

    reply: int
    status: int
    error: str


REFUSED = Answer(5, 502, "connection_refused")
NO_ROUTE = Answer(3, 502, "destination_ip_unroutable")
UNREACHABLE = Answer(4, 502, "destination_ip_unroutable")
PROHIBITED = Answer(2, 403, "destination_ip_prohibited")
TIMED_OUT = Answer(6, 504, "connection_timeout")
NO_NAME = Answer(4, 502, "dns_error")
NO_RESOLVER = Answer(4, 504, "dns_timeout")
UPSTREAM = Answer(1, 502, "proxy_internal_error")

NAMES = {
    "here.test": ["127.0.0.1"],
    "gone.test": ["10.1.0.1"],
    "two.test": ["127.0.0.2", "127.0.0.1"],
    "both.test": ["10.1.0.1", "127.0.0.1"],
    "broken.test": StubDns.SERVFAIL,
    "silent.test": StubDns.SILENCE,
}


@dataclass
class Bench:
    """The namespace, its two nodes, and a port that is closed and one that never answers."""

    space: Namespace
    front: Proxy
    exit: Proxy
    dns: StubDns
    blackhole: int

    def connect(self, way: str, host: str, port: int) -> Tunnel:
        """Connect to a target by a way that is named for its hops."""
        node, name = (self.front, way) if "-" in way else (self.exit, way)
        opener = clients.OPEN["socks5" if way.startswith("socks") else "websocket"]
        return self.space.run(lambda: opener(node.door(name), host, port))


WAYS = ("socks", "web", "socks-web", "socks-socks", "web-web", "web-socks")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """Run a node that goes out directly, and one before it that waits longer than it does."""
    with ExitStack() as stack:
        routes = ("unreachable 10.1.0.0/16", "prohibit 10.2.0.0/16", "blackhole 10.3.0.0/16")
        space = stack.enter_context(Namespace(*routes))
        dns = stack.enter_context(space.run(lambda: StubDns(NAMES)))
        hole = targets.blackhole()
        port = space.run(hole.__enter__)
        stack.callback(hole.__exit__, None, None, None)
        exit_node = stack.enter_context(
            Proxy(
                {"proxy": {"timeout": "1s"}, "listeners": {"socks": socks_door(), "web": web_door()}},
                prefix=space.prefix,
            )
        )
        ways = {
            "web": upstream("websocket", exit_node.door("web"), spare="auto"),
            "socks": upstream("socks5", exit_node.door("socks"), spare="auto"),
        }
        doors = {
            "socks-web": socks_door(upstream="web"),
            "socks-socks": socks_door(upstream="socks"),
            "web-web": web_door(upstream="web"),
            "web-socks": web_door(upstream="socks"),
        }
        front = stack.enter_context(Proxy({"listeners": doors, "upstreams": ways}, prefix=space.prefix))
        yield Bench(space, front, exit_node, dns, port)


def expect(answer: Answer, connect: Callable[[], Tunnel]) -> HttpRefused | SocksRefused:
    """Connect, and be refused with this answer."""
    with pytest.raises((SocksRefused, HttpRefused)) as caught:
        connect().close()
    refused = caught.value
    if isinstance(refused, HttpRefused):
        assert (refused.status, refused.proxy_error) == (answer.status, answer.error), refused
        assert refused.headers["proxy-status"].startswith("proxy-server;")
        assert refused.body.count(b"\n") <= 1, "the body is one line"
    else:
        assert isinstance(refused, SocksRefused)
        assert refused.reply == answer.reply
    return refused


def as_told_by_socks(answer: Answer) -> Answer:
    """Tell what an HTTP client hears when a SOCKS5 hop lies between: only what a reply can say."""
    by_reply = {one.reply: one for one in (REFUSED, NO_ROUTE, UNREACHABLE, PROHIBITED, TIMED_OUT, UPSTREAM)}
    return by_reply[answer.reply]


CAUSES = {
    "no-route": ("10.9.9.9", NO_ROUTE),
    "unreachable": ("10.1.0.1", UNREACHABLE),
    "prohibited": ("10.2.0.1", PROHIBITED),
    "unreachable-by-name": ("gone.test", UNREACHABLE),
    "nxdomain": ("missing.test", NO_NAME),
    "servfail": ("broken.test", NO_RESOLVER),
    "silent-resolver": ("silent.test", NO_RESOLVER),
}


@pytest.mark.parametrize("way", WAYS)
class TestCauses:
    """CASES 144-150."""

    @pytest.mark.parametrize("cause", CAUSES)
    def test_an_address_or_a_name_cannot_be_reached(self, bench: Bench, way: str, cause: str) -> None:
        host, answer = CAUSES[cause]
        told = as_told_by_socks(answer) if way == "web-socks" else answer
        expect(told, lambda: bench.connect(way, host, 80))

    def test_the_target_refuses(self, bench: Bench, way: str) -> None:
        expect(REFUSED, lambda: bench.connect(way, "127.0.0.1", free_port()))

    def test_the_target_refuses_on_ipv6(self, bench: Bench, way: str) -> None:
        expect(REFUSED, lambda: bench.connect(way, "::1", free_port()))

    def test_the_target_behind_a_name_refuses(self, bench: Bench, way: str) -> None:
        expect(REFUSED, lambda: bench.connect(way, "here.test", free_port()))

    def test_the_target_never_answers(self, bench: Bench, way: str) -> None:
        began = time.monotonic()
        expect(TIMED_OUT, lambda: bench.connect(way, "127.0.0.1", bench.blackhole))
        assert time.monotonic() - began > 0.9  # [proxy] timeout is 1 s

    def test_a_route_that_swallows_everything_is_no_route(self, bench: Bench, way: str) -> None:
        """Case 371: a blackhole route gives EINVAL."""
        told = as_told_by_socks(NO_ROUTE) if way == "web-socks" else NO_ROUTE
        expect(told, lambda: bench.connect(way, "10.3.0.1", 80))

    def test_after_all_these_faults_the_way_still_works(self, bench: Bench, way: str) -> None:
        """A target's fault is not the fault of the upstream that reports it."""
        with bench.space.run(lambda: Target(targets.echo)) as target:
            for _ in range(2):
                tunnel = bench.connect(way, "here.test", target.port)
                tunnel.sendall(b"still here")
                assert read_exact(tunnel, 10) == b"still here"
                tunnel.close()


@pytest.mark.parametrize("way", ["socks", "web", "socks-web"])
class TestNamesWithTwoAddresses:
    """CASES 152."""

    @pytest.mark.parametrize("name", ["two.test", "both.test"])
    def test_the_second_is_used_if_the_first_cannot_be(self, bench: Bench, way: str, name: str) -> None:
        with bench.space.run(lambda: Target(targets.echo)) as target:
            tunnel = bench.connect(way, name, target.port)
            tunnel.sendall(b"second")
            assert read_exact(tunnel, 6) == b"second"
            tunnel.close()

    def test_the_second_is_used_if_the_first_never_answers(self, bench: Bench, way: str) -> None:
        with bench.space.run(lambda: Target(targets.echo)) as target:
            hole = targets.blackhole("127.0.0.2", target.port)
            bench.space.run(hole.__enter__)
            try:
                tunnel = bench.connect(way, "two.test", target.port)  # within the one timeout
                tunnel.sendall(b"second")
                assert read_exact(tunnel, 6) == b"second"
                tunnel.close()
            finally:
                hole.__exit__(None, None, None)


def test_an_ip_address_is_not_looked_up(bench: Bench) -> None:
    """CASES 25: as a name, in every spelling that the C library takes for an address."""
    with bench.space.run(lambda: Target(targets.echo)) as target:
        before = len(bench.dns.asked)
        for spelling in ("127.0.0.1", "127.1", "0x7f.1", "2130706433", "::1", "::ffff:127.0.0.1"):
            door = bench.exit.door("socks")
            sock = bench.space.run(lambda door=door: connect(door))  # type: ignore[misc]
            name = spelling.encode()
            sock.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x03" + bytes([len(name)]) + name)
            sock.sendall(target.port.to_bytes(2, "big"))
            assert read_exact(sock, 2) == b"\x05\x00"
            assert read_socks_reply(sock) == 0, spelling
            sock.close()
        assert bench.dns.asked[before:] == []


def test_an_empty_name_is_not_looked_up(bench: Bench) -> None:
    """CASES 19."""
    before = len(bench.dns.asked)
    with pytest.raises(SocksRefused) as refused:
        bench.connect("socks", "", 80)
    assert refused.value.reply in (1, 4)
    with pytest.raises(HttpRefused) as http:
        bench.connect("web", "", 80)
    assert http.value.status == 400
    assert bench.dns.asked[before:] == []


def test_a_name_travels_as_a_name_to_the_node_that_goes_out(bench: Bench) -> None:
    """DESIGN 1.4: resolved once, where the connection leaves directly."""
    expect(NO_NAME, lambda: bench.connect("socks", "stays.test", 80))
    expect(NO_NAME, lambda: bench.connect("socks-web", "travels.test", 80))
    # However often the C library asks: two nodes that look it up would ask twice as often.
    assert bench.dns.asked.count("travels.test") == bench.dns.asked.count("stays.test")


class TestWithoutIPv6:
    """CASES 33: a namespace whose kernel has no IPv6 to offer."""

    @pytest.fixture(scope="class")
    @classmethod
    def old(cls) -> Iterator[Bench]:
        """Run a node in a namespace without IPv6, and one before it."""
        with ExitStack() as stack:
            space = stack.enter_context(Namespace())
            space.without_ipv6()
            dns = stack.enter_context(space.run(lambda: StubDns({"six.test": ["2001:db8::1"]})))
            doors = {"socks": socks_door(), "web": web_door()}
            exit_node = stack.enter_context(Proxy({"listeners": doors}, prefix=space.prefix))
            front = stack.enter_context(
                Proxy(
                    {
                        "listeners": {"socks-web": socks_door(upstream="web")},
                        "upstreams": {"web": upstream("websocket", exit_node.door("web"))},
                    },
                    prefix=space.prefix,
                )
            )
            yield Bench(space, front, exit_node, dns, 0)

    @pytest.mark.parametrize("host", ["::1", "2001:db8::1", "six.test"])
    @pytest.mark.parametrize("way", ["socks", "web", "socks-web"])
    def test_an_ipv6_target_is_said_to_be_out_of_reach(self, old: Bench, way: str, host: str) -> None:
        with pytest.raises((SocksRefused, HttpRefused)) as caught:
            old.connect(way, host, 80)
        if isinstance(caught.value, HttpRefused):
            assert caught.value.status == 502
            # The C library may leave the addresses of a missing family out, or the connect fails.
            assert caught.value.proxy_error in ("destination_ip_unroutable", "dns_error")
        else:
            assert getattr(caught.value, "reply", None) in ((3, 4, 8) if host == "six.test" else (3, 8))

    def test_an_open_address_of_all_listens_without_ipv6(self, old: Bench) -> None:
        port = free_port()
        door = {"protocol": "socks5", "listen_addr": f":{port}"}
        with (
            Proxy({"proxy": {"guard": "off"}, "listeners": {"socks": door}}, prefix=old.space.prefix) as node,
            old.space.run(lambda: Target(targets.echo)) as target,
        ):
            tunnel = old.space.run(lambda: clients.socks5(node.door("socks"), "127.0.0.1", target.port))
            tunnel.sendall(b"x")
            assert read_exact(tunnel, 1) == b"x"


class TestLimit:
    """CASES 180, ``overload = refuse``."""

    @pytest.fixture
    def full(self) -> Iterator[tuple[Proxy, Proxy]]:
        """Run a node with one place at each door, which is taken, and one before it."""
        with ExitStack() as stack:
            doors = {"socks": socks_door(), "web": web_door()}
            limits = {"max_connections": 1, "overload": "refuse"}
            exit_node = stack.enter_context(Proxy({"proxy": limits, "listeners": doors}))
            chain = {"socks": socks_door(upstream="web"), "web": web_door(upstream="web")}
            ways = {"web": upstream("websocket", exit_node.door("web"))}
            front = stack.enter_context(Proxy({"listeners": chain, "upstreams": ways}))
            target = stack.enter_context(Target(targets.hold))
            for name, opener in (("socks", clients.socks5), ("web", clients.websocket)):
                stack.callback(opener(exit_node.door(name), "127.0.0.1", target.port).close)
            yield exit_node, front

    def test_a_client_above_it_is_told_at_once(self, full: tuple[Proxy, Proxy]) -> None:
        exit_node, front = full
        with pytest.raises(SocksRefused) as socks:
            clients.socks5(exit_node.door("socks"), "127.0.0.1", free_port())
        assert socks.value.reply == 1
        with pytest.raises(HttpRefused) as web:
            clients.websocket(exit_node.door("web"), "127.0.0.1", free_port())
        assert (web.value.status, web.value.proxy_error) == (503, "connection_limit_reached")
        assert "retry-after" in web.value.headers
        with pytest.raises(SocksRefused) as chained:
            clients.socks5(front.door("socks"), "127.0.0.1", free_port())
        assert chained.value.reply == 1
        with pytest.raises(HttpRefused) as web_chained:
            clients.websocket(front.door("web"), "127.0.0.1", free_port())
        assert web_chained.value.proxy_error == "connection_limit_reached"


class TestBrokenRequests:
    """The rows of the table that a client itself causes."""

    @pytest.fixture(scope="class")
    @classmethod
    def node(cls) -> Iterator[Proxy]:
        """Run a node that only alice may use, and one that anybody may."""
        doors = {
            "socks": socks_door(),
            "web": web_door(),
            "open": socks_door(auth="none"),
            "open-web": web_door(auth="none"),
        }
        with Proxy({"listeners": doors, "auth_users": dict([ALICE])}) as node:
            yield node

    @pytest.mark.parametrize(
        ("request_bytes", "reply"),
        [
            pytest.param(b"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", 7, id="bind"),
            pytest.param(b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", 7, id="udp"),
            pytest.param(b"\x05\xf0\x00\x01\x7f\x00\x00\x01\x00\x50", 7, id="no-such-command"),
            pytest.param(b"\x05\x01\x00\x02\x7f\x00\x00\x01\x00\x50", 8, id="no-such-address-type"),
            pytest.param(b"\x04\x01\x00\x01\x7f\x00\x00\x01\x00\x50", 1, id="version"),
            pytest.param(b"\x05\x01\xff\x01\x7f\x00\x00\x01\x00\x50", 1, id="reserved"),
            pytest.param(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x00", 1, id="port-0"),
        ],
    )
    def test_a_socks5_request_that_is_not_served_has_its_reply(
        self, node: Proxy, request_bytes: bytes, reply: int
    ) -> None:
        """CASES 14-17, 30."""
        sock = connect(node.door("open"))
        sock.sendall(socks_greeting() + request_bytes)
        assert read_exact(sock, 2) == b"\x05\x00"
        assert read_socks_reply(sock) == reply
        assert sock.recv(1) == b""
        sock.close()

    def test_a_malformed_upgrade_is_400(self, node: Proxy) -> None:
        """CASES 77."""
        sock = connect(node.door("open-web"))
        request = upgrade_request("127.0.0.1", 80).replace(b"X-Proxy-Target-Host", b"X-Other")
        sock.sendall(request)
        assert Peer(sock).read_answer()[0] == 400
        sock.close()

    @pytest.mark.parametrize("credentials", [("alice", "wrong"), ("eve", "wonderland")])
    def test_wrong_credentials_are_refused(self, node: Proxy, credentials: tuple[str, str]) -> None:
        """CASES 42, 56: a non-zero status of RFC 1929, and 401."""
        with Target(targets.echo) as target:
            with pytest.raises(LoginRefused, match="status"):
                clients.socks5(node.door("socks"), "127.0.0.1", target.port, credentials)
            with pytest.raises(HttpRefused) as refused:
                clients.websocket(node.door("web"), "127.0.0.1", target.port, credentials)
            assert refused.value.status == 401
            assert "www-authenticate" in refused.value.headers
            assert target.accepted == 0


# Upstreams that are scripts


def socks_upstream(answer: bytes) -> targets.Behaviour:
    """Behave as a SOCKS5 server without users that answers every request with these bytes."""

    def behave(connection: socket.socket) -> None:
        _, count = read_exact(connection, 2)
        read_exact(connection, count)
        connection.sendall(b"\x05\x00")
        _, _, _, kind = read_exact(connection, 4)
        length = {1: 4, 4: 16}.get(kind) or read_exact(connection, 1)[0]
        read_exact(connection, length + 2)
        connection.sendall(answer)
        _linger(connection)

    return behave


def http_upstream(answer: bytes) -> targets.Behaviour:
    """Behave as an HTTP server that answers every request with these bytes."""

    def behave(connection: socket.socket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(1) or b"\r\n\r\n"
        connection.sendall(answer)
        _linger(connection)

    return behave


def says(answer: bytes) -> targets.Behaviour:
    """Say something at once, whatever the client says, and close."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(answer)
        _linger(connection)

    return behave


def _linger(connection: socket.socket) -> None:
    """End our side, and wait a moment for the peer's end: closing too early would reset what we said."""
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(2)
    try:
        while connection.recv(1 << 16):
            pass
    except OSError:
        pass


def http(status: str, *headers: str, body: bytes = b"a secret of the upstream") -> targets.Behaviour:
    """Behave as an HTTP server that gives one answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return http_upstream("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def error(token: str, status: str = "502 Bad Gateway") -> targets.Behaviour:
    """Behave as a proxy that knows the cause."""
    return http(status, f"Proxy-Status: proxy-server; error={token}")


GENERAL = Answer(1, 502, "proxy_internal_error")
SAID = {
    1: GENERAL,
    2: PROHIBITED,
    3: NO_ROUTE,
    4: UNREACHABLE,
    5: REFUSED,
    6: TIMED_OUT,
    7: replace(GENERAL, reply=7),
    8: replace(GENERAL, reply=8),
}
UNASSIGNED = (9, 0x5B, 0xFE, 0xFF)

SWITCH = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"

SCRIPTS: dict[str, tuple[str, targets.Behaviour, Answer | None]] = {
    **{
        f"reply-{code}": ("socks5", socks_upstream(bytes([5, code]) + b"\x00\x01" + bytes(6)), answer)
        for code, answer in {**SAID, **dict.fromkeys(UNASSIGNED, GENERAL)}.items()
    },
    "socks-closes": ("socks5", targets.close_after_accept, UPSTREAM),
    "socks-resets": ("socks5", reset, UPSTREAM),
    "socks-closes-before-reply": ("socks5", socks_upstream(b""), UPSTREAM),
    "socks-cut-reply": ("socks5", socks_upstream(b"\x05\x00\x00\x01\x7f"), UPSTREAM),
    "socks-is-http": ("socks5", says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), UPSTREAM),
    "socks-is-ssh": ("socks5", says(b"SSH-2.0-OpenSSH_9.2\r\n"), UPSTREAM),
    "socks-version-4": ("socks5", says(b"\x04\x00"), UPSTREAM),
    "socks-no-method": ("socks5", says(b"\x05\xff"), UPSTREAM),
    "socks-reply-version-4": ("socks5", socks_upstream(b"\x04\x00\x00\x01" + bytes(6)), UPSTREAM),
    "ws-closes": ("websocket", targets.close_after_accept, UPSTREAM),
    "ws-is-ssh": ("websocket", says(b"SSH-2.0-OpenSSH_9.2\r\n"), UPSTREAM),
    "ws-200": ("websocket", http("200 OK", "Content-Type: text/html"), UPSTREAM),
    "ws-204": ("websocket", http("204 No Content", body=b""), UPSTREAM),
    "ws-400": ("websocket", http("400 Bad Request"), UPSTREAM),
    "ws-401": ("websocket", http("401 Unauthorized"), UPSTREAM),
    "ws-403": ("websocket", http("403 Forbidden"), PROHIBITED),
    "ws-404": ("websocket", http("404 Not Found"), UPSTREAM),
    "ws-407": ("websocket", http("407 Proxy Authentication Required"), UPSTREAM),
    "ws-426": ("websocket", http("426 Upgrade Required"), UPSTREAM),
    "ws-429": ("websocket", http("429 Too Many Requests"), UPSTREAM),
    "ws-500": ("websocket", http("500 Internal Server Error"), UPSTREAM),
    "ws-504": ("websocket", http("504 Gateway Timeout"), TIMED_OUT),
    "ws-redirects": ("websocket", http("302 Found", "Location: ws://127.0.0.1:9/"), UPSTREAM),
    "ws-no-accept": ("websocket", http_upstream(f"{SWITCH}\r\n".encode()), UPSTREAM),
    "ws-wrong-accept": (
        "websocket",
        http_upstream(f"{SWITCH}Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n".encode()),
        UPSTREAM,
    ),
    "error-refused": ("websocket", error("connection_refused"), REFUSED),
    "error-unroutable": ("websocket", error("destination_ip_unroutable"), None),
    "error-prohibited": ("websocket", error("destination_ip_prohibited", "403 Forbidden"), PROHIBITED),
    "error-timeout": ("websocket", error("connection_timeout", "504 Gateway Timeout"), TIMED_OUT),
    "error-dns": ("websocket", error("dns_error"), NO_NAME),
    "error-dns-timeout": ("websocket", error("dns_timeout", "504 Gateway Timeout"), NO_RESOLVER),
}


class TestUpstreams:
    """CASES 156, 157, 160-166: what an upstream says is passed on, and nonsense is its own fault."""

    @pytest.fixture(scope="class")
    @classmethod
    def scripted(cls) -> Iterator[Proxy]:
        """Run a node with two doors for each script, and the scripts behind them."""
        with ExitStack() as stack:
            doors, ways = {}, {}
            for name, (kind, behave, _) in SCRIPTS.items():
                script = stack.enter_context(Target(behave))
                ways[name] = upstream(kind, ("127.0.0.1", script.port))
                doors[f"socks-{name}"] = socks_door(upstream=name)
                doors[f"web-{name}"] = web_door(upstream=name)
            yield stack.enter_context(Proxy({"listeners": doors, "upstreams": ways}))

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_a_socks5_client_is_told(self, scripted: Proxy, script: str) -> None:
        _, _, answer = SCRIPTS[script]
        with pytest.raises(SocksRefused) as refused:
            clients.socks5(scripted.door(f"socks-{script}"), "192.0.2.1", 80)
        assert refused.value.reply in ({answer.reply} if answer else {3, 4})

    @pytest.mark.parametrize("script", [name for name in SCRIPTS if name not in ("reply-7", "reply-8")])
    def test_a_websocket_client_is_told(self, scripted: Proxy, script: str) -> None:
        _, _, answer = SCRIPTS[script]
        refused = expect(
            answer or UNREACHABLE,
            lambda: clients.websocket(scripted.door(f"web-{script}"), "192.0.2.1", 80),
        )
        assert b"secret" not in getattr(refused, "body", b"")

    @pytest.mark.parametrize("kind", ["socks", "web"])
    def test_an_upstream_that_is_down_is_not_the_targets_fault(self, kind: str) -> None:
        ways = {"way": upstream({"socks": "socks5", "web": "websocket"}[kind], ("127.0.0.1", free_port()))}
        doors = {"socks": socks_door(upstream="way"), "web": web_door(upstream="way")}
        with Proxy({"listeners": doors, "upstreams": ways}) as node:
            expect(UPSTREAM, lambda: clients.socks5(node.door("socks"), "192.0.2.1", 80))
            expect(UPSTREAM, lambda: clients.websocket(node.door("web"), "192.0.2.1", 80))

    @pytest.mark.parametrize("kind", ["socks5", "websocket"])
    def test_an_upstream_that_refuses_our_login_is_said_and_logged(self, kind: str) -> None:
        """CASES 160, 174."""
        with ExitStack() as stack:
            doors = {"socks5": socks_door(), "websocket": web_door()}
            exit_node = stack.enter_context(Proxy({"listeners": doors, "auth_users": dict([ALICE])}))
            login = {"proxy_username": "alice", "proxy_password": "not-it-at-all", "retry_count": 3}
            ways = {"way": upstream(kind, exit_node.door(kind), **login)}
            fronts = {"socks": socks_door(upstream="way"), "web": web_door(upstream="way")}
            front = stack.enter_context(Proxy({"listeners": fronts, "upstreams": ways}))
            expect(UPSTREAM, lambda: clients.socks5(front.door("socks"), "192.0.2.1", 80))
            expect(UPSTREAM, lambda: clients.websocket(front.door("web"), "192.0.2.1", 80))
            front.wait_for_log("way")
            assert "not-it-at-all" not in front.log + exit_node.log

    @pytest.mark.parametrize("kind", ["socks5", "websocket"])
    def test_an_upstream_that_stalls_is_cut_at_the_deadline(self, kind: str) -> None:
        """CASES 158: it accepts and hears, but says nothing."""
        with Target(targets.sink) as stalled:
            ways = {"way": upstream(kind, ("127.0.0.1", stalled.port))}
            doors = {"socks": socks_door(upstream="way"), "web": web_door(upstream="way")}
            with Proxy({"proxy": {"timeout": "1s"}, "listeners": doors, "upstreams": ways}) as node:
                with pytest.raises(SocksRefused) as socks:
                    clients.socks5(node.door("socks"), "192.0.2.1", 80)
                assert socks.value.reply in (1, 6)
                with pytest.raises(HttpRefused) as web:
                    clients.websocket(node.door("web"), "192.0.2.1", 80)
                assert web.value.status in (502, 504)
                for _ in range(2):
                    stalled.results.get(timeout=20)  # it sees our end: nothing is left open

    def test_an_upstream_that_comes_back_is_used_again(self) -> None:
        """CASES 175."""
        port = free_port()
        ways = {"way": upstream("socks5", ("127.0.0.1", port))}
        with Proxy({"listeners": {"socks": socks_door(upstream="way")}, "upstreams": ways}) as node:
            for _ in range(3):
                with pytest.raises(SocksRefused):
                    clients.socks5(node.door("socks"), "192.0.2.1", 80)
            says_yes = socks_upstream(b"\x05\x00\x00\x01" + bytes(6))
            with Target(says_yes, port=port):
                wait_until(lambda: _succeeds(node), "the upstream to be tried again")


def _succeeds(node: Proxy) -> bool:
    try:
        clients.socks5(node.door("socks"), "192.0.2.1", 80).close()
    except SocksRefused:
        return False
    return True
