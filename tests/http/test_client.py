"""What an HTTP proxy is asked, and what is taken of its answer, at upstreams that follow a script."""

import socket
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest

from proxy import __version__
from proxy.address import Address
from proxy.client import Connected
from proxy.errors import DialError, Failure, UpstreamError
from proxy.http.client import HttpClient
from proxy.net.deadline import Deadline
from proxy.relaying.stream import Buffer
from proxy.settings.client import ClientConfig
from proxy.settings.protocols import Protocol
from tests.wire import upstreams as script
from tests.wire.greenlets import patience
from tests.wire.sockets import free_port, read_exact
from tests.wire.upstreams import hear_head

OF_THE_SYSTEM = "; it takes Negotiate, NTLM, and what we have is Basic: a local px or cntlm can do that part"
TARGET = Address("target.example", 443)
OK = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience(15):
        yield


def made(port: int, **settings: Any) -> HttpClient:
    """Make a client of a proxy on this machine, called corporate."""
    config = ClientConfig(f"http://127.0.0.1:{port}", Protocol.HTTP, **settings)
    return HttpClient(config, "corporate")


def dial(client: HttpClient, target: Address = TARGET, budget: float = 10.0) -> Connected:
    """Connect through a proxy."""
    return client.dial(target, Deadline(budget))


def error_after(*steps: script.Step, budget: float = 10.0, **settings: Any) -> DialError:
    """Connect through a proxy that plays these steps, and give the error."""
    port = free_port()
    with script.upstream(port, *steps), pytest.raises(DialError) as raised:
        dial(made(port, **settings), budget=budget)
    return raised.value


def test_asks_for_a_tunnel_and_says_who_asks() -> None:
    """RFC 9110, section 9.3.6; RFC 9112, section 3.2.3."""
    port = free_port()
    with script.upstream(port, hear_head, OK, script.stall) as far:
        dial(made(port)).close()
        (head, _) = far.result()
    assert head.split("\r\n") == [
        "CONNECT target.example:443 HTTP/1.1",
        "Host: target.example:443",
        f"User-Agent: proxy-server/{__version__}",
        "",
        "",
    ]


def test_more_headers_go_with_the_request_and_with_a_sign_of_life() -> None:
    """DESIGN 1.3: headers. A User-Agent among them takes the place of ours (RFC 9110, section 10.1.5)."""
    port = free_port()
    more = ("Proxy-Authorization: Bearer s3same", "User-Agent: Mozilla/5.0")
    client = made(port, headers=more)
    for ask in (lambda: dial(client).close(), lambda: client.sign_of_life(Deadline(5))):
        with script.upstream(port, hear_head, OK, script.stall) as far:
            ask()
            (head, *_) = far.result()
        _, host, *rest = head.split("\r\n")
        assert host.startswith("Host: ")
        assert rest == [*more, "", ""]


def test_an_ipv6_address_stands_in_brackets() -> None:
    port = free_port()
    with script.upstream(port, hear_head, OK, script.stall) as far:
        dial(made(port), Address("2001:db8::1", 22)).close()
        (head, _) = far.result()
    assert head.startswith("CONNECT [2001:db8::1]:22 HTTP/1.1\r\nHost: [2001:db8::1]:22\r\n")


def test_logs_in_by_basic_without_being_asked() -> None:
    """RFC 7617, section 2: the example."""
    port = free_port()
    with script.upstream(port, hear_head, OK, script.stall) as far:
        dial(made(port, username="Aladdin", password="open sesame")).close()
        (head, _) = far.result()
    assert "\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n" in head


@pytest.mark.parametrize("status", [200, 201, 204, 299])
@pytest.mark.parametrize("fields", ["", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"])
def test_any_2xx_is_a_tunnel_and_all_behind_it_is_the_targets(status: int, fields: str) -> None:
    """RFC 9110, section 9.3.6: a client ignores Content-Length and Transfer-Encoding there."""
    port = free_port()
    answer = f"HTTP/1.1 {status} x\r\n{fields}\r\n".encode() + b"220 hello"
    with script.upstream(port, hear_head, answer, script.stall):
        connected = dial(made(port))
        assert connected.confirmed
        buffer = Buffer()
        assert connected.stream.recv_into(buffer, bulk=False) == 9
        assert bytes(buffer.payload[:9]) == b"220 hello"
        connected.close()


def test_interim_answers_are_passed_over() -> None:
    """RFC 9110, section 15.2."""
    port = free_port()
    with script.upstream(port, hear_head, b"HTTP/1.1 103 x\r\nLink: </a>\r\n\r\n" + OK, script.stall):
        dial(made(port)).close()


def test_an_answer_may_come_byte_by_byte() -> None:
    def drip(connection: socket.socket) -> None:
        for byte in OK:
            connection.sendall(bytes([byte]))

    port = free_port()
    with script.upstream(port, hear_head, drip, script.stall):
        dial(made(port)).close()


def test_an_answer_without_end_has_a_deadline() -> None:
    error = error_after(hear_head, script.drip, budget=0.5)
    assert isinstance(error, UpstreamError)
    assert error.failure is Failure.TIMED_OUT


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH server answered"),
        (b"\x05\x00", "a SOCKS5 server answered"),
        (b"HTTP/1.1 OK\r\n\r\n", "the first line is not an HTTP/1.1 answer"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "a header is malformed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000, "too large"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "interim answer"),
    ],
)
def test_nonsense_is_the_proxys_fault_and_not_asked_again(answer: bytes, why: str) -> None:
    error = error_after(hear_head, answer, script.stall)
    assert isinstance(error, UpstreamError)
    assert not error.transient
    assert why in str(error)


def test_a_proxy_that_closes_without_an_answer_may_want_tls() -> None:
    error = error_after(hear_head, script.end)
    assert isinstance(error, UpstreamError)
    assert error.unclear
    assert str(error) == (
        "upstream corporate: it closed the connection without an answer: does it want TLS (https://)?"
    )


# -- whose fault a refusal is


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (403, Failure.NOT_ALLOWED),
        (404, Failure.UPSTREAM),
        (502, Failure.UPSTREAM),
        (503, Failure.LIMIT),
        (504, Failure.TIMED_OUT),
    ],
)
def test_a_bare_status_leaves_it_open_whose_fault_it_is(status: int, failure: Failure) -> None:
    """DESIGN 1.3: a sign of life decides."""
    error = error_after(hear_head, f"HTTP/1.1 {status} No\r\n\r\n".encode(), script.stall)
    assert isinstance(error, UpstreamError)
    assert (error.failure, error.unclear, error.status) == (failure, True, status)


def test_a_proxy_of_our_kind_tells_the_targets_fault() -> None:
    """RFC 9209."""
    answer = b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: proxy-server; error=connection_refused\r\n\r\n"
    error = error_after(hear_head, answer, script.stall)
    assert not isinstance(error, UpstreamError)
    assert str(error) == "target.example:443 through upstream corporate: connection refused"
    assert error.failure is Failure.REFUSED


@pytest.mark.parametrize(
    ("offers", "settings", "says"),
    [
        (["Basic realm=x"], {}, "wants a login, and none is set"),
        (["Basic realm=x"], {"username": "u", "password": "s3cret"}, "refused our credentials"),
        ([], {}, "wants a login, and none is set"),
        (
            ["Negotiate", "NTLM"],
            {},
            f"wants a login, and none is set{OF_THE_SYSTEM}",
        ),
        (
            ['Digest realm="x", nonce="y"'],
            {"username": "u", "password": "s3cret"},
            "refused our credentials; it takes Digest, and what we have is Basic",
        ),
        (["NTLM", "Basic realm=x"], {"username": "u", "password": "s3cret"}, "refused our credentials"),
        # RFC 9110, section 11.6.1: one field may hold a list of challenges, each with a list of parameters.
        (["Negotiate, NTLM"], {}, f"wants a login, and none is set{OF_THE_SYSTEM}"),
        (
            ['Digest realm="a, Basic b", nonce="y", Negotiate dG9rZW4='],
            {"username": "u", "password": "s3cret"},
            f"refused our credentials{OF_THE_SYSTEM.replace('Negotiate, NTLM', 'Digest, Negotiate')}",
        ),
        (
            ['Digest realm = "a", nonce=y, , bASIC realm="b"'],
            {"username": "u", "password": "s3cret"},
            "refused our credentials",
        ),
        (["\x7f\x1b[31m", "<script>"], {}, None),
    ],
)
def test_a_407_says_what_the_proxy_takes(
    offers: list[str], settings: dict[str, Any], says: str | None
) -> None:
    """RFC 9110, section 15.5.8."""
    fields = "".join(f"Proxy-Authenticate: {offer}\r\n" for offer in offers)
    error = error_after(
        hear_head, f"HTTP/1.1 407 No\r\n{fields}\r\n".encode("latin-1"), script.stall, **settings
    )
    assert isinstance(error, UpstreamError)
    assert not error.transient
    assert "s3cret" not in str(error)
    if says is None:
        assert "\x1b" not in str(error)
        assert "<" not in str(error)
    else:
        assert str(error) == f"upstream corporate: {says}"


@pytest.mark.parametrize("status", [200, 400, 407, 501])
def test_any_status_is_a_sign_of_life(status: int) -> None:
    """DESIGN 1.3: a request without a target, which any status answers."""
    port = free_port()
    with script.upstream(port, hear_head, f"HTTP/1.1 {status} x\r\n\r\n".encode(), script.stall) as far:
        assert made(port).sign_of_life(Deadline(10)) == status
        (head, _) = far.result()
    assert head.startswith(f"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n")


def test_the_clients_words_go_through_unchanged() -> None:
    port = free_port()

    def echo(connection: socket.socket) -> None:
        connection.sendall(read_exact(connection, 5)[::-1])

    with script.upstream(port, hear_head, OK, echo, script.stall):
        connected = dial(made(port))
        buffer = Buffer()
        buffer.payload[:5] = b"hello"
        connected.stream.send(buffer, 5)
        script_says = None
        while script_says is None:
            script_says = connected.stream.recv_into(buffer, bulk=False)
        assert bytes(buffer.payload[:script_says]) == b"olleh"
        connected.close()


def test_no_secret_is_in_a_repr() -> None:
    login = b64encode(b"u:s3cret").decode()
    client = made(1, username="u", password="s3cret")
    assert "s3cret" not in repr(client) + repr(client._config)
    assert login not in repr(client)
