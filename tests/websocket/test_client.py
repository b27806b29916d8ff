"""What a WebSocket proxy is asked, and what is taken of its answer, at upstreams that follow a script."""

import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from proxy import __version__
from proxy.address import Address
from proxy.client import Connected
from proxy.errors import Failure, UpstreamError
from proxy.http import speaker
from proxy.net.deadline import Deadline
from proxy.settings.client import ClientConfig, UpstreamAuth
from proxy.settings.protocols import Protocol
from proxy.websocket import client as module
from proxy.websocket.client import WebSocketClient
from tests.integration.certificates import Authority
from tests.wire import upstreams as script
from tests.wire.greenlets import patience
from tests.wire.sockets import free_port
from tests.wire.targets import Target
from tests.wire.upstreams import hear_head, switch
from tests.wire.websocket import switching

TARGET = Address("target.example", 443)


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience(15):
        yield


def made(port: int) -> WebSocketClient:
    """Make a client of a proxy on this machine."""
    return WebSocketClient(ClientConfig(f"ws://127.0.0.1:{port}/tunnel", Protocol.WEBSOCKET))


def dial(client: WebSocketClient, budget: float = 5.0) -> Connected:
    """Connect through a proxy."""
    return client.dial(TARGET, Deadline(budget))


def refusal(client: WebSocketClient, budget: float = 5.0) -> UpstreamError:
    """Connect, and give the error, for which the proxy must be blamed."""
    with pytest.raises(UpstreamError) as raised:
        dial(client, budget)
    return raised.value


def test_a_far_end_is_told_how_long_we_wait() -> None:
    """CASES 300, DESIGN 1.5: what is left of the attempt less a margin, in seconds with three decimals."""
    port = free_port()
    with script.upstream(port, switch("X-Proxy-Bound: 192.0.2.1:80"), script.stall) as far:
        dial(made(port)).stream.finish_close()
        (head, _) = far.result()
    (patience,) = re.findall(r"^X-Proxy-Timeout: (\d+\.\d{3})\r$", head, re.MULTILINE)
    # The budget is 5 s.
    assert 3 < float(patience) <= 4


def test_a_request_says_what_program_it_is_from() -> None:
    """CASES 307: RFC 9110, section 10.1.5."""
    port = free_port()
    with script.upstream(port, switch("X-Proxy-Bound: 192.0.2.1:80"), script.stall) as far:
        dial(made(port)).stream.finish_close()
        (head, _) = far.result()
    assert f"\r\nUser-Agent: proxy-server/{__version__}\r\n" in head


def test_more_headers_go_with_the_request_and_with_a_sign_of_life() -> None:
    """DESIGN 1.3: headers. A User-Agent among them takes the place of ours (RFC 9110, section 10.1.5)."""
    port = free_port()
    more = ("CF-Access-Token: s3same, and \u00e4", "user-agent: Mozilla/5.0")
    config = ClientConfig(f"ws://127.0.0.1:{port}/", Protocol.WEBSOCKET, headers=more)
    client = WebSocketClient(config)
    for ask in (lambda: dial(client).stream.finish_close(), lambda: client.sign_of_life(Deadline(5))):
        with script.upstream(port, switch("X-Proxy-Bound: 192.0.2.1:80"), script.stall) as far:
            ask()
            (head, _) = far.result()
        # As UTF-8, which the script reads as latin-1.
        lines = head.encode("latin-1").decode().split("\r\n")
        assert [line for line in lines if line in more] == list(more)
        assert sum(line.lower().startswith("user-agent:") for line in lines) == 1


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("ws://far.example/", "far.example"),
        ("ws://far.example:443/", "far.example:443"),
        ("wss://far.example:80/", "far.example:80"),
        ("wss://far.example:443/", "far.example"),
        ("ws://far.example:8080/", "far.example:8080"),
        ("ws://[2001:db8::1]:443/", "[2001:db8::1]:443"),
        ("wss://[2001:db8::1]/", "[2001:db8::1]"),
    ],
)
def test_only_the_default_port_of_its_own_scheme_is_left_out(
    monkeypatch: pytest.MonkeyPatch, address: str, host: str
) -> None:
    """CASES 314: RFC 6455, section 4.1."""
    monkeypatch.setattr(speaker, "client_context", lambda *_, **__: None)  # in the clear, also as wss
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(module.WebSocketClient, "dial_proxy", lambda *_: ours)
    client = WebSocketClient(ClientConfig(address, Protocol.WEBSOCKET))
    refused = gevent.spawn(refusal, client, 0.2)
    refused.join()
    theirs.settimeout(5)
    assert f"\r\nHost: {host}\r\n" in theirs.recv(4096).decode()
    theirs.close()


@pytest.mark.parametrize("status", [100, 102, 103])
def test_interim_answers_before_the_101_are_passed_over(status: int) -> None:
    """CASES 161: RFC 9110, section 15.2; each in a piece of its own, and both at once."""
    interim = f"HTTP/1.1 {status} Whatever\r\nLink: </a>\r\n\r\n".encode()

    def answer(connection: socket.socket) -> None:
        connection.sendall(interim)
        gevent.sleep(0)

    def both(connection: socket.socket) -> str:
        head = hear_head(connection)
        bound = "X-Proxy-Bound: 192.0.2.1:80"
        connection.sendall(interim + interim + switching(script.key_of(head), bound))
        return head

    for steps in ((answer, switch("X-Proxy-Bound: 192.0.2.1:80")), (both,)):
        port = free_port()
        with script.upstream(port, *steps, script.stall):
            connected = dial(made(port))
            assert str(connected.bound) == "192.0.2.1:80"
            connected.stream.finish_close()


def test_interim_answers_without_end_are_the_upstreams_fault() -> None:
    """CASES 161."""
    port = free_port()
    with script.upstream(port, hear_head, b"HTTP/1.1 100 Continue\r\n\r\n" * 100, script.stall):
        assert "interim answer" in str(refusal(made(port)))


def test_an_answer_that_is_told_twice_is_the_upstreams_fault() -> None:
    """CASES 163: and neither the client's nor a connection that nobody closes."""
    port = free_port()
    step = switch("X-Proxy-Bound: 192.0.2.1:1", "X-Proxy-Bound: 192.0.2.2:2")
    with script.upstream(port, step, script.stall) as far:
        assert refusal(made(port)).failure is Failure.UPSTREAM
        assert far.result()  # it saw our end of the connection


def test_a_connection_that_the_kernel_gives_up_has_timed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 148: also where it does so during the handshake."""

    def recv(mouthpiece: object, count: int) -> bytes:
        raise TimeoutError(110, "Connection timed out")

    monkeypatch.setattr(module._Mouthpiece, "recv", recv)
    port = free_port()
    with script.upstream(port, script.stall):
        error = refusal(made(port))
    assert error.failure is Failure.TIMED_OUT


# -- manners


def head_of(port: int, **settings: Any) -> str:
    """Connect through a proxy, and give the head of the request that it gets."""
    login = ("alice", "wonder:land")
    config = ClientConfig(f"ws://127.0.0.1:{port}/tunnel", Protocol.WEBSOCKET, *login, **settings)
    with script.upstream(port, switch("X-Proxy-Bound: 192.0.2.1:80"), script.stall) as far:
        dial(WebSocketClient(config)).stream.finish_close()
        head: str = far.result()[0]
    return head


def test_basic_credentials_stand_in_the_place_of_our_headers() -> None:
    """DESIGN 1.3; RFC 7617."""
    head = head_of(free_port(), auth=UpstreamAuth.BASIC)
    assert "\r\nAuthorization: Basic YWxpY2U6d29uZGVyOmxhbmQ=\r\n" in head  # alice:wonder:land
    assert "X-Proxy-Username" not in head
    assert "X-Proxy-Password" not in head


def test_another_host_can_be_asked_for() -> None:
    """DESIGN 1.3: for a server that serves several names at one address."""
    port = free_port()
    head = head_of(port, host="gateway.example:8443")
    assert re.findall(r"^Host: (.*)\r$", head, re.MULTILINE) == ["gateway.example:8443"]


class TlsServer(Target):
    """A WebSocket proxy over TLS, which wants to know who its client is."""

    def __init__(self, authority: Authority, names: list[str | None]) -> None:
        super().__init__(self._serve_tls)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own = authority.issue("server", "gateway.example")
        self._context.load_cert_chain(own.cert, own.key)
        self._context.load_verify_locations(authority.root.cert)
        self._context.verify_mode = ssl.CERT_REQUIRED

        def note(sock: object, name: str | None, context: object) -> None:
            names.append(name)

        self._context.sni_callback = note

    def _serve_tls(self, connection: socket.socket) -> object:
        with self._context.wrap_socket(connection, server_side=True) as tls:
            head = hear_head(tls)
            tls.sendall(switching(script.key_of(head), "X-Proxy-Bound: 192.0.2.1:80"))
            return tls.getpeercert()


def test_a_client_certificate_is_shown_and_another_name_verified(authority: Authority) -> None:
    """DESIGN 1.3: sni is also the name that is verified."""
    names: list[str | None] = []
    ours: dict[str, Any] = authority.issue("ours", "client.example").settings
    with TlsServer(authority, names) as server:
        config = ClientConfig(
            f"wss://127.0.0.1:{server.port}/",
            Protocol.WEBSOCKET,
            tls_ca=str(authority.root.cert),
            sni="gateway.example",
            **ours,
        )
        dial(WebSocketClient(config)).close()
        shown = server.result()
    assert names == ["gateway.example"]
    assert dict(field[0] for field in shown["subject"])["commonName"] == "client.example"
