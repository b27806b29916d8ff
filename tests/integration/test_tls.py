"""
wss:// from both ends: who is trusted, who is not and why, and that a TLS peer holds up nobody else.

Cases 169 and 170 of CASES.md, unless a test names others.
"""

import contextlib
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration import peers
from tests.integration.certificates import Authority, Certificate
from tests.integration.programs import COMMAND, Program, Proxy, run_proxy, socks_door, upstream, web_door
from tests.wire import clients, targets
from tests.wire.clients import SocksRefused
from tests.wire.sockets import connect, free_port, read_exact, read_to_end
from tests.wire.targets import Target
from tests.wire.waits import wait_until

PAYLOAD = os.urandom(4 << 20)
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()


@pytest.fixture(scope="module")
def node(good: Certificate) -> Iterator[Proxy]:
    """Run a node with a TLS door."""
    doors = {"web": web_door(**good.settings)}
    with Proxy({"proxy": {"handshake_timeout": "2s"}, "listeners": doors}) as node:
        yield node


def front(url: str, **settings: object) -> Proxy:
    """Describe a node whose SOCKS5 door leads to a wss:// proxy."""
    ways = {"way": upstream("websocket", url, **settings)}
    return Proxy(
        {"proxy": {"timeout": "5s"}, "listeners": {"socks": socks_door(upstream="way")}, "upstreams": ways}
    )


def exchange(node: Proxy) -> None:
    """Send and receive some megabytes at once through a node's SOCKS5 door."""
    with Target(targets.exchange(PAYLOAD, len(PAYLOAD))) as target:
        tunnel = clients.socks5(node.door("socks"), "localhost", target.port)
        sender = threading.Thread(target=tunnel.sendall, args=(PAYLOAD,), daemon=True)
        sender.start()
        assert targets.receive_digest(tunnel.recv, len(PAYLOAD)) == DIGEST
        assert target.result() == DIGEST
        sender.join(30)
        tunnel.close()


def expect_refused(node: Proxy, *words: str) -> None:
    """Be refused with reply 1, and find the reason in one line of the log."""
    with pytest.raises(SocksRefused) as refused:
        clients.socks5(node.door("socks"), "192.0.2.1", 80)
    assert refused.value.reply == 1
    lines = wait_until(
        lambda: [line for line in node.log.splitlines() if any(word in line.lower() for word in words)],
        f"a line with one of {words} in the log:\n{node.log}",
    )
    assert any("way" in line or "localhost" in line for line in lines), lines


class TestTrust:
    """Our client, and whom it believes."""

    def test_a_chain_over_tls_carries_bytes(self, node: Proxy, authority: Authority) -> None:
        with front(node.url("web", "wss"), tls_ca=authority.root.cert) as chain:
            exchange(chain)

    def test_a_half_closed_stream_over_tls_still_delivers(self, node: Proxy, authority: Authority) -> None:
        """CASES 119, 126."""
        with (
            front(node.url("web", "wss"), tls_ca=authority.root.cert) as chain,
            Target(targets.answer_after_end(PAYLOAD)) as target,
        ):
            tunnel = clients.socks5(chain.door("socks"), "localhost", target.port)
            tunnel.sendall(b"question")
            tunnel.end()
            assert hashlib.sha256(read_to_end(tunnel)).hexdigest() == DIGEST
            assert target.result() == b"question"

    def test_the_true_cause_comes_through_tls(self, node: Proxy, authority: Authority) -> None:
        """CASES 144."""
        with front(node.url("web", "wss"), tls_ca=authority.root.cert) as chain:
            with pytest.raises(SocksRefused) as refused:
                clients.socks5(chain.door("socks"), "127.0.0.1", free_port())
            assert refused.value.reply == 5

    def test_an_authority_that_is_not_known_is_refused(self, node: Proxy) -> None:
        with front(node.url("web", "wss")) as chain:
            expect_refused(chain, "certificate")

    def test_a_client_is_told_whom_to_trust(self, node: Proxy, authority: Authority) -> None:
        """CASES 355: by an option, or by OpenSSL's own variable."""
        arguments = ["-mode", "client", "-protocol", "websocket", "-addr", node.url("web", "wss")]
        ca = str(authority.root.cert)
        with Target(targets.banner(b"hello")) as target:
            arguments += ["-host", "localhost", "-port", str(target.port)]
            for more, environment in [(["-tls-ca", ca], {}), ([], {"SSL_CERT_FILE": ca})]:
                done = run_proxy(*arguments, *more, environment=environment)
                assert (done.returncode, done.stdout) == (0, b"hello"), done.stderr
            assert run_proxy(*arguments).returncode == 1

    def test_a_server_of_the_command_line_is_told_whom_to_trust(
        self, node: Proxy, authority: Authority
    ) -> None:
        """CASES 355."""
        port = free_port()
        server = ["-mode", "server", "-protocol", "socks5", "-addr", f"127.0.0.1:{port}"]
        way = ["-upstream-type", "websocket", "-upstream-address", node.url("web", "wss")]
        command = [*COMMAND, *server, *way, "-upstream-tls-ca", str(authority.root.cert)]
        with Program(command) as program, Target(targets.banner(b"hello")) as target:
            program.wait_listening(port)
            tunnel = clients.socks5(("127.0.0.1", port), "localhost", target.port)
            assert read_exact(tunnel, 5) == b"hello"
            tunnel.close()

    def test_tls_verify_no_accepts_anybody(self, node: Proxy) -> None:
        with front(node.url("web", "wss"), tls_verify="no") as chain:
            exchange(chain)

    def test_a_self_signed_certificate_is_refused(self, authority: Authority) -> None:
        alone = authority.self_signed("alone", "localhost", "subjectAltName=DNS:localhost")
        with (
            Proxy({"listeners": {"web": web_door(**alone.settings)}}) as other,
            front(other.url("web", "wss"), tls_ca=authority.root.cert) as chain,
        ):
            expect_refused(chain, "certificate")

    def test_a_certificate_of_another_host_is_refused(self, authority: Authority) -> None:
        wrong = authority.issue("wrong", "elsewhere.example")
        with (
            Proxy({"listeners": {"web": web_door(**wrong.settings)}}) as other,
            front(other.url("web", "wss"), tls_ca=authority.root.cert) as chain,
        ):
            expect_refused(chain, "hostname", "certificate")

    def test_an_expired_certificate_is_refused(self, authority: Authority) -> None:
        old = authority.issue("old", "localhost", expired=True)
        with (
            Proxy({"listeners": {"web": web_door(**old.settings)}}) as other,
            front(other.url("web", "wss"), tls_ca=authority.root.cert) as chain,
        ):
            expect_refused(chain, "expired")

    def test_plain_text_behind_the_port_is_refused(self, authority: Authority) -> None:
        with (
            Proxy({"listeners": {"web": web_door()}}) as plain,
            front(plain.url("web", "wss"), tls_ca=authority.root.cert) as chain,
        ):
            expect_refused(chain, "tls", "ssl")

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
    def test_a_peer_of_tls_1_1_is_refused(self, authority: Authority, good: Certificate) -> None:
        with (
            tls_server(good, old=True) as (port, _),
            front(f"wss://localhost:{port}/", tls_ca=authority.root.cert) as chain,
        ):
            expect_refused(chain, "tls", "ssl", "protocol")

    def test_a_peer_that_never_ends_its_handshake_is_cut_at_the_deadline(self, authority: Authority) -> None:
        """CASES 158."""
        with Target(targets.sink) as silent:
            url = f"wss://localhost:{silent.port}/"
            with front(url, tls_ca=authority.root.cert, timeout="1s") as chain:
                with pytest.raises(SocksRefused) as refused:
                    clients.socks5(chain.door("socks"), "192.0.2.1", 80)
                assert refused.value.reply in (1, 6)
                silent.results.get(timeout=20)  # it sees our end: nothing is left open

    @pytest.mark.parametrize("whose", ["ours", "nginx"])
    def test_who_speaks_plain_http_to_a_tls_port_is_told_the_cure(
        self, node: Proxy, good: Certificate, whose: str
    ) -> None:
        """CASES 360. It rests, as somebody has to mend it, and is not asked for each client."""
        with ExitStack() as stack:
            door = node.door("web")
            if whose == "nginx":
                door = stack.enter_context(peers.nginx(door, (good.cert, good.key)))
            chain = stack.enter_context(front(f"ws://localhost:{door[1]}/"))
            expect_refused(chain, "it speaks tls: its address has to begin with wss://, not ws://")
            assert chain.log.count("it rests for 1 s") == 1
            plain = f"ws://localhost:{door[1]}/"
            client = [
                "-mode",
                "client",
                "-protocol",
                "websocket",
                "-addr",
                plain,
                "-host",
                "h",
                "-port",
                "80",
            ]
            done = run_proxy(*client)
            assert done.returncode == 1
            assert b"its address has to begin with wss://, not ws://" in done.stderr
            assert done.stderr.count(b"\n") == 1

    def test_the_servers_name_is_sent(self, authority: Authority, good: Certificate) -> None:
        with (
            tls_server(good) as (port, names),
            front(f"wss://localhost:{port}/", tls_ca=authority.root.cert) as chain,
            pytest.raises(SocksRefused),
        ):
            clients.socks5(chain.door("socks"), "192.0.2.1", 80)
        assert set(names) == {"localhost"}  # asked for a sign of life too

    def test_no_password_is_sent_to_a_peer_that_is_not_trusted(self, good: Certificate) -> None:
        received: list[bytes] = []
        with tls_server(good, received=received) as (port, _):
            login = {"proxy_username": "alice", "proxy_password": "wonderland"}
            with front(f"wss://localhost:{port}/", **login) as chain:
                expect_refused(chain, "certificate")
                assert "wonderland" not in chain.log
        assert received in ([], [b""])

    def test_nginx_may_end_the_tls(self, authority: Authority, good: Certificate) -> None:
        with (
            Proxy({"listeners": {"web": web_door()}}) as plain,
            peers.nginx(plain.door("web"), (good.cert, good.key)) as (_, port),
            front(f"wss://localhost:{port}/", tls_ca=authority.root.cert) as chain,
        ):
            exchange(chain)


@contextlib.contextmanager
def tls_server(
    certificate: Certificate, *, old: bool = False, received: list[bytes] | None = None
) -> Iterator[tuple[int, list[str | None]]]:
    """Serve TLS that ends after one read; give the port, and the server names that clients ask for."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if old:
        context.set_ciphers("ALL:@SECLEVEL=0")  # OpenSSL 3 has TLS 1.1 only below its security level 1
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.load_cert_chain(certificate.cert, certificate.key)
    context.sni_callback = lambda _socket, name, _context: names.append(name)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            data = tls.recv(1 << 16)
            if received is not None:
                received.append(data)

    with Target(serve) as target:
        yield target.port, names


class TestServing:
    """Our TLS door, and who comes to it."""

    def test_a_client_that_trusts_the_authority_is_served(self, node: Proxy, authority: Authority) -> None:
        with Target(targets.echo) as target:
            context = authority.client_context()
            tunnel = clients.websocket(node.door("web"), "localhost", target.port, tls=context)
            tunnel.sendall(PAYLOAD[:100_000])
            assert read_exact(tunnel, 100_000) == PAYLOAD[:100_000]
            tunnel.close()

    def test_a_client_that_speaks_plain_http_is_told_so(self, node: Proxy, authority: Authority) -> None:
        with connect(node.door("web")) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 20_000)
            answer = read_to_end(plain)  # and no reset overtakes it
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"\r\nDate: " in answer  # RFC 9110, section 6.6.1
        assert b"use wss:// or https://\n" in answer
        line = node.wait_for_log("the client speaks plain HTTP")
        assert " info " in line
        node.wait_for_log('end="malformed: TLS handshake: the client speaks plain HTTP')
        self.test_a_client_that_trusts_the_authority_is_served(node, authority)

    def test_a_client_that_says_half_a_method_is_cut_in_time(self, node: Proxy) -> None:
        """CASES 35."""
        with connect(node.door("web")) as plain:
            plain.sendall(b"GET")
            assert read_to_end(plain) == b""

    @pytest.mark.parametrize("ending", ["Close", "a refusal"])
    def test_the_end_is_told_by_tls_too(self, node: Proxy, authority: Authority, ending: str) -> None:
        """RFC 8446, section 6.1: without close_notify nobody knows that it is the end, and not a cut."""
        if ending == "Close":
            with Target(targets.close_after_accept) as target:
                context = authority.client_context()
                tunnel = clients.websocket(node.door("web"), "localhost", target.port, tls=context)
                tunnel.end()
                assert tunnel.recv_close() == 1000
                sock = tunnel.sock
        else:
            sock = authority.client_context().wrap_socket(
                connect(node.door("web")), server_hostname="localhost"
            )
            sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert isinstance(sock, ssl.SSLSocket)
        sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]  # then an end without close_notify is an error
        assert ending == "Close" or b" 426 " in sock.recv(100)
        while sock.recv(1000):
            pass
        sock.close()

    def test_a_peer_that_stalls_its_handshake_costs_nobody_else_anything(
        self, good: Certificate, authority: Authority
    ) -> None:
        """CASES 36, 85: it is cut at the deadline, and its place is free again."""
        config: dict[str, Any] = {
            "proxy": {"handshake_timeout": "4s", "max_connections": 20},
            "listeners": {"web": web_door(**good.settings)},
        }
        with Proxy(config) as node, Target(targets.echo) as target, ExitStack() as stack:
            silent = [stack.enter_context(connect(node.door("web"), 8)) for _ in range(10)]
            half = stack.enter_context(connect(node.door("web"), 8))
            half.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
            context = authority.client_context()
            tunnel = clients.websocket(node.door("web"), "localhost", target.port, tls=context)
            tunnel.sendall(b"served")
            assert read_exact(tunnel, 6) == b"served"
            assert "timed out" not in node.log  # they are all still there
            tunnel.close()
            for sock in (*silent, half):
                assert _ends(sock)

    @pytest.mark.parametrize(
        "junk",
        [b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"\x05\x01\x00", b"SSH-2.0-x\r\n", os.urandom(1024)],
        ids=["http", "socks5", "ssh", "random"],
    )
    def test_a_peer_that_speaks_no_tls_is_closed(self, node: Proxy, junk: bytes) -> None:
        """CASES 12."""
        sock = connect(node.door("web"), 8)
        sock.sendall(junk)
        assert _ends(sock)
        sock.close()

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
    def test_a_client_of_tls_1_1_is_refused(self, node: Proxy, authority: Authority) -> None:
        context = authority.client_context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            clients.websocket(node.door("web"), "localhost", 80, tls=context)

    def test_a_missing_certificate_file_is_one_clear_line(self, tmp_path: Path) -> None:
        settings = {"tls_cert": str(tmp_path / "none.pem"), "tls_key": str(tmp_path / "none.key")}
        with Proxy({"listeners": {"web": web_door(**settings)}}, starts=False) as node:
            assert node.wait(20) in (1, 2)
            lines = node.log.splitlines()
            assert [line for line in lines if "none.pem" in line and "tls_cert" in line]
            assert len(lines) <= 2  # one for each file


def _ends(sock: socket.socket) -> bool:
    """Tell whether the peer closes, whatever it says before."""
    try:
        return read_to_end(sock) is not None
    except ConnectionResetError:
        return True
