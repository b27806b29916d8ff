"""
Programs and libraries that others wrote, as clients before our doors, between our nodes and behind them.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from typing import Any

import pytest
import socks
import websocket as websocket_client
import websockets
import websockets.sync.client

from tests.integration import peers
from tests.integration.programs import REPOSITORY, Proxy, clean_environment, socks_door, upstream, web_door
from tests.wire import clients, targets
from tests.wire.sockets import Credentials, Door, connect, free_port, read_exact, read_to_end
from tests.wire.targets import Target
from tests.wire.websocket import Peer, upgrade_request

TIMEOUT = 20.0
PAYLOAD = os.urandom(1 << 20)
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()
ALICE = ("alice", "wonderland")
PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 1048576\r\n\r\n" + PAYLOAD


@pytest.fixture(scope="module")
def node() -> Iterator[Proxy]:
    """Run a node without users."""
    with Proxy({"listeners": {"socks": socks_door(), "web": web_door()}}) as node:
        yield node


@pytest.fixture(scope="module")
def guarded() -> Iterator[Proxy]:
    """Run a node that only alice may use."""
    doors = {"socks": socks_door(), "web": web_door()}
    with Proxy({"listeners": doors, "auth_users": dict([ALICE])}) as node:
        yield node


def curl(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """Run curl with nothing of the developer's own."""
    command = [peers.find("curl"), "--silent", "--show-error", "--max-time", "15", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, env=clean_environment("/nonexistent"))


def address(door: Door) -> str:
    """Write a door as host:port."""
    return f"{door[0]}:{door[1]}"


class TestCurl:
    """curl: the most used SOCKS5 client there is."""

    @pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
    @pytest.mark.parametrize("option", ["--socks5", "--socks5-hostname"])
    def test_fetches_a_page(self, node: Proxy, option: str, host: str) -> None:
        with targets.Scripted(PAGE) as target:
            done = curl(option, address(node.door("socks")), f"http://{host}:{target.port}/")
        assert done.returncode == 0, done.stderr
        assert hashlib.sha256(done.stdout).hexdigest() == DIGEST

    def test_logs_in(self, guarded: Proxy) -> None:
        """CASES 41."""
        with targets.Scripted(PAGE) as target:
            proxy = ["--socks5-hostname", address(guarded.door("socks"))]
            login = ["--proxy-user", ":".join(ALICE)]
            done = curl(*proxy, *login, f"http://localhost:{target.port}/")
        assert hashlib.sha256(done.stdout).hexdigest() == DIGEST

    @pytest.mark.parametrize(
        "login", [[], ["--proxy-user", "alice:wrong"], ["--proxy-user", "eve:wonderland"]]
    )
    def test_is_told_that_its_login_is_wrong(self, guarded: Proxy, login: list[str]) -> None:
        """CASES 5, 42."""
        with Target(targets.echo) as target:
            proxy = ["--socks5-hostname", address(guarded.door("socks"))]
            done = curl(*proxy, *login, f"http://localhost:{target.port}/")
            assert done.returncode == 97  # CURLE_PROXY
            assert target.accepted == 0

    def test_names_a_refused_connection(self, node: Proxy) -> None:
        """CASES 144."""
        done = curl("--socks5", address(node.door("socks")), f"http://127.0.0.1:{free_port()}/")
        assert done.returncode == 97
        assert b"(5)" in done.stderr  # curl writes the reply code in brackets

    def test_uploads(self, node: Proxy, tmp_path: Any) -> None:
        (tmp_path / "data").write_bytes(PAYLOAD)
        received: list[bytes] = []

        def serve(connection: Any) -> None:
            data = b""
            while len(data.partition(b"\r\n\r\n")[2]) < len(PAYLOAD):
                data += connection.recv(1 << 18)
            received.append(data.partition(b"\r\n\r\n")[2])
            connection.sendall(b"HTTP/1.0 204 No Content\r\n\r\n")

        with Target(serve) as target:
            url = f"http://127.0.0.1:{target.port}/"
            done = curl(
                "--socks5", address(node.door("socks")), "-H", "Expect:", "-T", f"{tmp_path}/data", url
            )
        assert done.returncode == 0, done.stderr
        assert received == [PAYLOAD]


class TestPySocks:
    """PySocks, not patched by gevent: plain blocking sockets."""

    def connect(self, door: Door, target: Door, credentials: Credentials | None = None) -> Any:
        """Connect through a door."""
        return socks.create_connection(
            target,
            timeout=TIMEOUT,
            proxy_type=socks.SOCKS5,
            proxy_addr=door[0],
            proxy_port=door[1],
            proxy_username=credentials[0] if credentials else None,
            proxy_password=credentials[1] if credentials else None,
        )

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
    def test_exchanges(self, node: Proxy, host: str) -> None:
        with (
            Target(targets.echo) as target,
            closing(self.connect(node.door("socks"), (host, target.port))) as sock,
        ):
            sock.sendall(PAYLOAD[:50_000])
            assert read_exact(sock, 50_000) == PAYLOAD[:50_000]

    def test_logs_in(self, guarded: Proxy) -> None:
        """CASES 41."""
        with (
            Target(targets.echo) as target,
            closing(self.connect(guarded.door("socks"), ("127.0.0.1", target.port), ALICE)) as sock,
        ):
            sock.sendall(b"hello")
            assert read_exact(sock, 5) == b"hello"

    def test_is_told_that_its_login_is_wrong(self, guarded: Proxy) -> None:
        """CASES 42."""
        with pytest.raises(socks.ProxyError, match="SOCKS5 authentication failed"):
            self.connect(guarded.door("socks"), ("127.0.0.1", free_port()), ("alice", "wrong"))

    def test_names_a_refused_connection(self, node: Proxy) -> None:
        """CASES 144."""
        with pytest.raises(socks.ProxyError, match="0x05: Connection refused"):
            self.connect(node.door("socks"), ("127.0.0.1", free_port()))


def target_headers(target: Target, credentials: Credentials | None = None) -> dict[str, str]:
    """Name a target, as any WebSocket library lets one do."""
    headers = {"X-Proxy-Target-Host": "localhost", "X-Proxy-Target-Port": str(target.port)}
    if credentials:
        headers |= {"X-Proxy-Username": credentials[0], "X-Proxy-Password": credentials[1]}
    return headers


class TestWebSocketClient:
    """The websocket-client package."""

    def connect(self, url: str, headers: dict[str, str], **settings: Any) -> Any:
        """Connect to a door by its URL."""
        lines = [f"{name}: {value}" for name, value in headers.items()]
        return websocket_client.create_connection(url, TIMEOUT, header=lines, http_no_proxy=["*"], **settings)

    def test_exchanges(self, node: Proxy) -> None:
        with (
            Target(targets.echo) as target,
            closing(self.connect(node.url("web"), target_headers(target))) as ws,
        ):
            ws.send_binary(PAYLOAD[:200_000])
            received = b""
            while len(received) < 200_000:
                received += ws.recv()
            assert received == PAYLOAD[:200_000]

    def test_logs_in(self, guarded: Proxy) -> None:
        """CASES 41."""
        with (
            Target(targets.echo) as target,
            closing(self.connect(guarded.url("web"), target_headers(target, ALICE))) as ws,
        ):
            ws.send_binary(b"hello")
            assert ws.recv() == b"hello"

    def test_learns_the_status_of_a_refusal(self, guarded: Proxy) -> None:
        """CASES 56."""
        with Target(targets.echo) as target:
            with pytest.raises(websocket_client.WebSocketBadStatusException) as refused:
                self.connect(guarded.url("web"), target_headers(target))
            assert refused.value.status_code == 401
            assert target.accepted == 0

    def test_a_text_message_is_refused(self, node: Proxy) -> None:
        """CASES 110."""
        with Target(targets.sink) as target:
            with closing(self.connect(node.url("web"), target_headers(target))) as ws:
                ws.send("text")
                opcode, data = ws.recv_data()
            assert (opcode, data[:2]) == (websocket_client.ABNF.OPCODE_CLOSE, (1003).to_bytes(2, "big"))


class TestWebsockets:
    """The websockets package, whose frame layer checks all that RFC 6455 says."""

    def connect(self, url: str, headers: dict[str, str], **settings: Any) -> Any:
        """Connect to a door by its URL; permessage-deflate is offered, as is the package's habit."""
        return websockets.sync.client.connect(
            url, additional_headers=headers, open_timeout=TIMEOUT, proxy=None, max_size=None, **settings
        )

    def test_exchanges_both_ways_at_once(self, node: Proxy) -> None:
        with (
            Target(targets.exchange(PAYLOAD, len(PAYLOAD))) as target,
            self.connect(node.url("web"), target_headers(target)) as ws,
        ):
            sender = threading.Thread(target=ws.send, args=(PAYLOAD,), daemon=True)
            sender.start()
            received = bytearray()
            while len(received) < len(PAYLOAD):
                received += ws.recv(TIMEOUT)
            sender.join(TIMEOUT)
            assert bytes(received) == PAYLOAD
            assert target.result() == DIGEST

    def test_no_extension_is_negotiated(self, node: Proxy) -> None:
        """CASES 87."""
        with (
            Target(targets.echo) as target,
            self.connect(node.url("web"), target_headers(target), compression="deflate") as ws,
        ):
            assert ws.protocol.extensions == []

    def test_a_fragmented_message_is_relayed_as_it_comes(self, node: Proxy) -> None:
        with Target(targets.echo) as target, self.connect(node.url("web"), target_headers(target)) as ws:
            ws.send([b"one ", b"two ", b"three"])
            received = b""
            while len(received) < 13:
                received += ws.recv(TIMEOUT)
            assert received == b"one two three"

    def test_a_ping_is_answered(self, node: Proxy) -> None:
        """CASES 103."""
        with Target(targets.hold) as target, self.connect(node.url("web"), target_headers(target)) as ws:
            assert ws.ping(b"are you there").wait(TIMEOUT)

    @pytest.mark.parametrize("interval", [0.2, 1])
    def test_an_idle_tunnel_is_pinged_and_stays(self, interval: float) -> None:
        """CASES 124: the package answers pings by itself."""
        with (
            Proxy({"listeners": {"web": web_door(ping_interval=interval)}}) as node,
            Target(targets.echo) as target,
            self.connect(node.url("web"), target_headers(target), ping_interval=None) as ws,
        ):
            with pytest.raises(TimeoutError):
                ws.recv(4 * interval)  # a silent peer is dead after two intervals
            ws.send(b"still here")
            assert ws.recv(TIMEOUT) == b"still here"

    def test_the_targets_end_is_close_1000(self, node: Proxy) -> None:
        with (
            Target(targets.source(b"all there is")) as target,
            self.connect(node.url("web"), target_headers(target)) as ws,
        ):
            assert ws.recv(TIMEOUT) == b"all there is"
            with pytest.raises(websockets.ConnectionClosedOK) as closed:
                ws.recv(TIMEOUT)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000

    def test_the_targets_death_is_not_close_1000(self, node: Proxy) -> None:
        """CASES 131."""
        with (
            Target(targets.reset_after(b"")) as target,
            self.connect(node.url("web"), target_headers(target)) as ws,
        ):
            ws.send(b"x")
            with pytest.raises(websockets.ConnectionClosedError) as closed:
                ws.recv(TIMEOUT)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code in (1011, 1014)

    def test_our_close_is_answered_with_its_code(self, node: Proxy) -> None:
        """CASES 115."""
        with Target(targets.sink) as target:
            with self.connect(node.url("web"), target_headers(target)) as ws:
                ws.send(b"bye")
                ws.close(1000)
                assert ws.protocol.close_code == 1000
            assert target.result() == (3, hashlib.sha256(b"bye").hexdigest())

    def test_a_refusal_has_a_cause(self, node: Proxy) -> None:
        """CASES 92."""
        headers = {"X-Proxy-Target-Host": "127.0.0.1", "X-Proxy-Target-Port": str(free_port())}
        with pytest.raises(websockets.InvalidStatus) as refused:
            self.connect(node.url("web"), headers)
        assert refused.value.response.status_code == 502
        assert "connection_refused" in refused.value.response.headers["Proxy-Status"]

    def test_one_that_cannot_take_a_refusal_is_told_the_cause_in_the_close(self) -> None:
        """DESIGN 1.3: 101 at once, and then, without a target, Close 1011."""
        nowhere = {"X-Proxy-Target-Host": "127.0.0.1", "X-Proxy-Target-Port": str(free_port())}
        with (
            Proxy({"listeners": {"web": web_door(answer="at_once")}}) as node,
            Target(targets.echo) as target,
        ):
            with self.connect(node.url("web"), target_headers(target)) as ws:
                assert "X-Proxy-Bound" not in ws.response.headers
                ws.send(b"hello")
                assert ws.recv(TIMEOUT) == b"hello"
            with self.connect(node.url("web"), nowhere) as ws:
                with pytest.raises(websockets.ConnectionClosedError) as closed:
                    ws.recv(TIMEOUT)
                assert (ws.close_code, ws.close_reason) == (1011, "connection refused")
            assert closed.value.rcvd is not None

    @pytest.mark.parametrize("program", ["websocat", "a stand-in"])
    def test_the_line_for_websocat_works(self, node: Proxy, program: str) -> None:
        """It is in no package of Debian: where it is not there, another client does what the line says."""
        request, page = b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"
        text = (REPOSITORY / "docs" / "configuration.md").read_text("utf-8")
        (line,) = re.findall(r"^    (websocat .*)$", text, re.MULTILINE)
        with targets.Scripted(page) as target:
            places = {"www.example.com": "localhost", "80": str(target.port)}
            for old, new in places.items():
                line = line.replace(f": {old}'", f": {new}'")
            *words, url = shlex.split(line)
            assert url == "ws://127.0.0.1:8080/"
            if program == "websocat":
                if not shutil.which(program):
                    pytest.skip("websocat is not installed")
                done = subprocess.run(
                    [*words, node.url("web")], input=request, capture_output=True, timeout=TIMEOUT
                )
                assert (done.stdout, done.stderr) == (page, b"")
                return
            assert words[:3] == ["websocat", "-n", "--binary"]
            headers = dict(word.removeprefix("-H=").split(": ") for word in words[3:])
            with self.connect(node.url("web"), headers) as ws:
                ws.send(request)
                assert b"".join(ws) == page

    def test_a_browsers_page_reaches_nothing(self, node: Proxy) -> None:
        """CASES 86: a page can choose the URL and the subprotocols, and it has an origin."""
        with Target(targets.echo) as target, pytest.raises(websockets.InvalidStatus) as refused:
            self.connect(
                node.url("web") + f"?X-Proxy-Target-Host=localhost&X-Proxy-Target-Port={target.port}",
                {"Cookie": f"X-Proxy-Target-Host=localhost; X-Proxy-Target-Port={target.port}"},
                origin="http://page.example",
                subprotocols=["localhost", str(target.port)],
            )
        assert refused.value.response.status_code == 400
        assert target.accepted == 0


UPSTREAMS = {"microsocks": peers.microsocks, "dante": peers.dante}  # v2ray says success before it dials


class TestUpstreams:
    """SOCKS5 servers that others wrote, behind our doors."""

    @pytest.mark.parametrize("door", ["socks5", "websocket"])
    @pytest.mark.parametrize("peer", UPSTREAMS)
    def test_an_upstreams_refusal_keeps_its_cause(self, peer: str, door: str) -> None:
        """CASES 144, 164."""
        with UPSTREAMS[peer](None) as way, _front(way) as node:
            self.expect_refused(node, door)

    def expect_refused(self, node: Proxy, door: str) -> None:
        """Connect to a closed port, and be told so."""
        with pytest.raises((clients.SocksRefused, clients.HttpRefused)) as refused:
            clients.OPEN[door](node.door(door), "127.0.0.1", free_port())
        error = refused.value
        assert isinstance(error, clients.SocksRefused | clients.HttpRefused)
        if isinstance(error, clients.HttpRefused):
            assert (error.status, error.proxy_error) == (502, "connection_refused")
        else:
            assert error.reply == 5

    @pytest.mark.parametrize("peer", UPSTREAMS)
    def test_an_upstream_that_refuses_our_login_is_named_in_the_log(self, peer: str) -> None:
        """CASES 160, 174."""
        with ExitStack() as stack:
            user = stack.enter_context(peers.system_user()) if peer == "dante" else ("bob", "builder")
            way = stack.enter_context(UPSTREAMS[peer](user))
            node = stack.enter_context(_front(way, proxy_username=user[0], proxy_password="wrong-password"))
            with pytest.raises(clients.SocksRefused) as refused:
                clients.socks5(node.door("socks5"), "127.0.0.1", free_port())
            assert refused.value.reply == 1
            node.wait_for_log("upstream way")
            assert "wrong-password" not in node.log

    def test_v2ray_carries_our_streams(self) -> None:
        with peers.v2ray() as way, _front(way) as node, Target(targets.echo) as target:
            for door, connect in clients.OPEN.items():
                tunnel = connect(node.door(door), "localhost", target.port)
                tunnel.sendall(PAYLOAD[:100_000])
                assert read_exact(tunnel, 100_000) == PAYLOAD[:100_000]
                tunnel.close()

    def test_v2ray_is_a_client_of_ours(self, guarded: Proxy) -> None:
        with peers.v2ray(guarded.door("socks"), ALICE) as way, Target(targets.echo) as target:
            tunnel = clients.socks5(way, "localhost", target.port)
            tunnel.sendall(PAYLOAD[:100_000])
            assert read_exact(tunnel, 100_000) == PAYLOAD[:100_000]
            tunnel.close()


def _front(way: Door, **login: str) -> Proxy:
    doors = {"socks5": socks_door(upstream="way"), "websocket": web_door(upstream="way")}
    return Proxy({"listeners": doors, "upstreams": {"way": upstream("socks5", way, **login)}})


BETWEEN: dict[str, Callable[[Door], AbstractContextManager[Door]]] = {
    "nginx": peers.nginx,
    "haproxy": peers.haproxy,
}


@dataclass
class Between:
    """A node whose SOCKS5 door leads through a reverse proxy, and that proxy's door."""

    node: Proxy
    middle: Door


@pytest.fixture(scope="module", params=BETWEEN)
def between(request: pytest.FixtureRequest, guarded: Proxy) -> Iterator[Between]:
    """Run the two nodes and the reverse proxy between them."""
    middle: AbstractContextManager[Door] = BETWEEN[request.param](guarded.door("web"))
    with middle as door:
        way = upstream("websocket", door, proxy_username=ALICE[0], proxy_password=ALICE[1])
        with Proxy({"listeners": {"socks": socks_door(upstream="way")}, "upstreams": {"way": way}}) as node:
            yield Between(node, door)


class TestReverseProxies:
    """nginx and HAProxy between a WebSocket client and our door."""

    def test_a_tunnel_goes_through(self, between: Between) -> None:
        with Target(targets.exchange(PAYLOAD, len(PAYLOAD))) as target:
            tunnel = clients.socks5(between.node.door("socks"), "localhost", target.port)
            sender = threading.Thread(target=tunnel.sendall, args=(PAYLOAD,), daemon=True)
            sender.start()
            assert targets.receive_digest(tunnel.recv, len(PAYLOAD)) == DIGEST
            assert target.result() == DIGEST
            tunnel.close()

    def test_a_half_closed_tunnel_goes_through(self, between: Between) -> None:
        """CASES 119, 126."""
        with Target(targets.answer_after_end(PAYLOAD)) as target:
            tunnel = clients.socks5(between.node.door("socks"), "localhost", target.port)
            tunnel.sendall(b"question")
            tunnel.end()
            assert hashlib.sha256(read_to_end(tunnel)).hexdigest() == DIGEST
            assert target.result() == b"question"

    def test_the_true_cause_goes_through(self, between: Between) -> None:
        """CASES 144."""
        with pytest.raises(clients.SocksRefused) as refused:
            clients.socks5(between.node.door("socks"), "127.0.0.1", free_port())
        assert refused.value.reply == 5

    def test_frames_glued_to_the_request_are_not_lost(self, between: Between) -> None:
        """CASES 82."""
        with Target(targets.echo) as target:
            sock = connect(between.middle)
            glued = b"\x82\x85\x00\x00\x00\x00early"  # a masked binary frame, whose key is zero
            sock.sendall(upgrade_request("localhost", target.port, ALICE) + glued)
            peer = Peer(sock)
            status, headers = peer.read_answer()
            assert status == 101
            tunnel = clients.WebTunnel(peer, headers)
            assert read_exact(tunnel, 5) == b"early"
            tunnel.close()

    def test_a_request_with_a_body_of_length_0_goes_through(self, between: Between) -> None:
        """CASES 304."""
        with Target(targets.echo) as target:
            sock = connect(between.middle)
            request = upgrade_request("localhost", target.port, ALICE)
            sock.sendall(request.replace(b"Upgrade:", b"Content-Length: 0\r\nUpgrade:", 1))
            assert Peer(sock).read_answer()[0] == 101
            sock.close()

    def test_a_foreign_client_goes_through(self, between: Between) -> None:
        with Target(targets.echo) as target:
            host, port = between.middle
            ws = TestWebsockets().connect(f"ws://{host}:{port}/", target_headers(target, ALICE))
            with ws:
                ws.send(b"hello")
                assert ws.recv(TIMEOUT) == b"hello"


def test_a_transfer_may_pause_for_longer_than_nginx_is_patient() -> None:
    """CASES 330: whoever is to read takes nothing for a while, so all that is behind it stands still."""
    data = os.urandom(1 << 20) * 32  # more than fits into the sockets between
    patience = 2  # seconds

    def read_late(receive: Callable[[int], bytes]) -> str:
        time.sleep(1.75 * patience)
        return targets.receive_digest(receive, len(data))

    def download(door: Door) -> str:
        with Target(targets.source(data)) as target:
            return read_late(clients.socks5(door, "localhost", target.port).recv)

    def upload(door: Door) -> str:
        with Target(lambda connection: read_late(connection.recv)) as target:
            clients.socks5(door, "localhost", target.port).sendall(data)
            return str(target.result())

    far = Proxy({"listeners": {"web": web_door(ping_interval="500ms")}})
    with far, peers.nginx(far.door("web"), patience=f"{patience}s") as middle:
        way = upstream("websocket", middle, ping_interval="500ms")
        near = Proxy({"listeners": {"socks": socks_door(upstream="way")}, "upstreams": {"way": way}})
        with near, ThreadPoolExecutor(2) as threads:
            both = [threads.submit(transfer, near.door("socks")) for transfer in (download, upload)]
            assert [done.result() for done in both] == [hashlib.sha256(data).hexdigest()] * 2
