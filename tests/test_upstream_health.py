"""
How the health of an upstream is found out, in real time, with real sockets, and by what it is asked.
"""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from proxy.address import Address
from proxy.errors import DialError, Failure, UpstreamError
from proxy.health import Health
from proxy.net.deadline import Deadline
from proxy.settings.listener import ServerConfig, Strategy
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from proxy.socks5.server import Socks5Server
from proxy.upstream import Selector, Upstream
from proxy.websocket.server import WebSocketServer
from tests.integration.certificates import Authority
from tests.wire import upstreams as script
from tests.wire.greenlets import until
from tests.wire.sockets import free_port, reset
from tests.wire.socks5 import hear_greeting, hear_login, socks_reply
from tests.wire.targets import Target
from tests.wire.upstreams import SOCKS_GREETED, Step, hear_head, http_answer, switch

TARGET = Address("target.example", 443)
LOGIN: dict[str, Any] = {"proxy_username": "alice", "proxy_password": "open sesame"}


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with gevent.Timeout(15):
        yield


def made(kind: str, port: int, *, path: str = "", health: Health | None = None, **settings: Any) -> Upstream:
    """Make an upstream on a port of this machine."""
    settings = {"retry_count": 0, "timeout": 5.0, "spare": 0, **settings}  # connections are counted here
    schemes = {"socks5": "", "http": "http://", "websocket": "ws://"}
    end = "/tunnel" if kind == "websocket" else ""
    address = path or f"{schemes[kind]}127.0.0.1:{port}{end}"
    return Upstream(UpstreamConfig("home", UpstreamType(kind), address, **settings), health)


def dial(upstream: Upstream, budget: float = 5.0) -> Any:
    """Connect through an upstream that is the only one."""
    return Selector([upstream], Strategy.FAILOVER, budget).dial(TARGET, Deadline(budget))


def refusal(upstream: Upstream, budget: float = 5.0) -> DialError:
    """Connect, and give the error that must come of it."""
    with pytest.raises(DialError) as raised:
        dial(upstream, budget)
    return raised.value


@contextmanager
def played(port: int, *steps: Step) -> Iterator[script.Upstream]:
    """Run a scripted upstream, from a thread of its own."""
    with script.upstream(port, *steps) as target:
        yield target


# -- what it is asked for


def test_a_living_websocket_proxy_is_known_by_any_status() -> None:
    """CASES 300: asked for no target, and with our login, so that nothing is connected by it."""
    with Target(script.judge(script.stall)) as far:
        home = made("websocket", far.port, timeout=1.0, **LOGIN)
        error = refusal(home)
        assert (type(error), error.failure) == (DialError, Failure.TIMED_OUT)
        assert str(error).startswith("target.example:443 through upstream home: ")
        assert home.health.failures == 0
        assert far.accepted == 2
        heads = sorted((far.result(), far.result()), key=len)
    for name in ("User-Agent", "X-Proxy-Username", "Upgrade"):
        assert all(name in head for head in heads)
    assert "X-Proxy-Target" not in heads[0]
    assert "X-Proxy-Target-Host: target.example\r\n" in heads[1]


@pytest.mark.parametrize("login", [{}, LOGIN])
def test_a_living_socks5_proxy_is_known_by_its_negotiation(login: dict[str, Any]) -> None:
    """CASES 300: RFC 1928, section 3, and RFC 1929; a request follows only where there is a target."""

    def behave(connection: socket.socket) -> bytes:
        hear_greeting(connection)
        connection.sendall(b"\x05\x02" if login else b"\x05\x00")
        if login:
            hear_login(connection)
            connection.sendall(b"\x01\x00")
        heard = connection.recv(1)
        script.stall(connection)
        return heard

    with Target(behave) as far:
        home = made("socks5", far.port, timeout=1.0, **login)
        error = refusal(home)
        assert (type(error), error.failure) == (DialError, Failure.TIMED_OUT)
        assert home.health.failures == 0
        assert sorted((far.result(), far.result())) == [b"", b"\x05"]


SILENT: dict[str, tuple[str, tuple[Step, ...]]] = {
    "a SOCKS5 proxy that accepts": ("socks5", (script.stall,)),
    "a WebSocket proxy that accepts": ("websocket", (script.stall,)),
    "one that drips": ("websocket", (script.drip,)),
}


@pytest.mark.parametrize("who", SILENT)
def test_a_silent_proxy_is_cut_on_time_and_counted(who: str) -> None:
    """CASES 300: the counter-example."""
    kind, steps = SILENT[who]
    port = free_port()
    with played(port, *steps):
        home = made(kind, port, timeout=0.3)
        error = refusal(home)
    assert isinstance(error, UpstreamError)
    assert error.failure is Failure.TIMED_OUT
    assert home.health.failures == 1


@pytest.mark.parametrize("reply", [0x01, 0x09, 0xFF])
def test_a_general_failure_is_an_answer_about_the_target(reply: int) -> None:
    """CASES 371: by a proxy that lives and knows its protocol."""
    port = free_port()
    with played(port, *SOCKS_GREETED, socks_reply(reply), script.end) as far:
        home = made("socks5", port, retry_count=3)
        for attempts in (1, 2, 3):
            error = refusal(home)
            assert (type(error), error.failure) == (DialError, Failure.GENERAL)
            assert far.accepted == attempts
    assert home.health.failures == 0


def test_a_plain_502_for_one_target_is_not_the_upstreams_fault() -> None:
    """CASES 371: asked without a target, the same far end answers otherwise."""
    with Target(script.judge(http_answer(502))) as far:
        home = made("websocket", far.port, retry_count=3)
        for requests in (2, 4, 6):
            error = refusal(home)
            assert (type(error), error.failure) == (DialError, Failure.GENERAL)
            assert far.accepted == requests
    assert home.health.failures == 0


def test_a_server_that_only_does_not_know_the_question_is_well() -> None:
    """RFC 9110, section 15.6.2: 501 is said of a method. Squid does so, and says 503 of a target."""
    with Target(script.judge(http_answer(503), http_answer(501))) as far:
        home = made("websocket", far.port)
        assert type(refusal(home)) is DialError
    assert home.health.failures == 0


def test_a_gateway_whose_far_end_is_down_is_at_fault_and_seen_to_be_back() -> None:
    """CASES 354, 371: it says 502 to every request, and then it does not."""
    port = free_port()
    with played(port, hear_head, http_answer(502), script.end) as far:
        home = made("websocket", port)
        assert isinstance(refusal(home), UpstreamError)
        until(lambda: far.accepted >= 4)  # the request, the question, and then the question again
        assert home.health.failures == 1
    with Target(script.judge(switch()), port=port):
        until(lambda: not home.health.failures)


TOLD = "proxy-server; error=proxy_internal_error"
WELL = {
    "has no place left": (
        http_answer(503, "Proxy-Status: proxy-server; error=connection_limit_reached"),
        Failure.LIMIT,
    ),
    "has had too much of us": (
        http_answer(
            429, 'Proxy-Status: proxy-server; error=connection_limit_reached; details="too many requests"'
        ),
        Failure.TOO_MANY,
    ),
    "has no way on": (
        http_answer(
            502, 'Proxy-Status: proxy-server; error=proxy_internal_error; details="upstream proxy failed"'
        ),
        Failure.UPSTREAM,
    ),
    "asks us to come later": (http_answer(429), Failure.UPSTREAM),
    "does not like the request": (http_answer(400), Failure.UPSTREAM),
}


@pytest.mark.parametrize("what", WELL)
def test_a_proxy_that_would_not_serve_us_now_is_no_dead_one(what: str) -> None:
    """CASES 371: another one may serve us, so it is an upstream's error; but it does not rest."""
    answer, failure = WELL[what]
    port = free_port()
    with played(port, hear_head, answer, script.end) as far:
        home = made("websocket", port)
        error = refusal(home)
        assert far.accepted == 1
    assert isinstance(error, UpstreamError)
    assert error.failure is failure
    assert home.health.failures == 0
    assert not home.health.answered_at  # nor has it ever been of use
    assert home.health.problem == str(error)


# -- while it is down


def test_one_that_is_back_is_up_although_nobody_needs_it(caplog: pytest.LogCaptureFixture) -> None:
    """CASES 354, F175: within a second, however long its rest was to be."""
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        home = made("socks5", place.getsockname()[1])
        for _ in range(3):
            assert isinstance(refusal(home), UpstreamError)
        assert home.health.failures == 3
        cooldown_until = home.health.cooldown_until
        assert cooldown_until > time.monotonic() + 2
        port = place.getsockname()[1]
    with played(port, hear_greeting, b"\x05\x00", script.stall), caplog.at_level(logging.INFO):
        until(lambda: not home.health.failures)
        assert time.monotonic() < cooldown_until
    assert home.health.cooldown_until == 0
    assert home.health.answered_at
    assert "upstream home is back" in caplog.text


def test_one_that_accepts_and_says_nothing_is_not_back() -> None:
    """CASES 354: a connection is no sign of life; the old look took it for one."""
    port = free_port()
    home = made("socks5", port, timeout=0.3)
    refusal(home)
    with played(port, script.stall) as far:
        until(lambda: far.accepted >= 2)
        assert home.health.failures == 1


@pytest.mark.parametrize(
    "steps",
    [
        (hear_greeting, b"\x05\x02", hear_login, b"\x01\x01", script.end),
        (b"SSH-2.0-OpenSSH_9.9\r\n", script.end),
    ],
    ids=["refused credentials", "another protocol"],
)
def test_what_somebody_has_to_mend_is_not_asked_about_again_and_again(steps: tuple[Step, ...]) -> None:
    """CASES 354: each question would be a failed login there."""
    port = free_port()
    with played(port, *steps) as far:
        home = made("socks5", port, **LOGIN)
        refusal(home)
        assert home.health.failures == 1
        assert not home._is_probing
        assert far.accepted == 1


def test_failures_at_one_time_count_as_one() -> None:
    home = made("socks5", free_port(), retry_count=1)
    gevent.joinall([gevent.spawn(refusal, home) for _ in range(20)])
    assert home.health.failures == 1


# -- a change of the configuration


def server_of(port: int, **settings: Any) -> ServerConfig:
    """Configure a listener with one upstream."""
    home = UpstreamConfig("home", UpstreamType.SOCKS5, f"127.0.0.1:{port}", retry_count=0)
    return ServerConfig("127.0.0.1:0", Protocol.SOCKS5, upstream_config=(home,), **settings)


def test_a_reload_goes_on_looking_after_what_is_down() -> None:
    """CASES 354: the upstream of the new configuration is the one that comes back."""
    port = free_port()
    server = Socks5Server(server_of(port))
    server.listen()
    with pytest.raises(UpstreamError):
        server.select_upstream_connection("target.example", 443)
    (old,) = server.runtime.upstreams
    server.reload_config(server_of(port, timeout=3))
    (new,) = server.runtime.upstreams
    assert new is not old
    assert new.health is old.health
    assert new.health.failures == 1
    with played(port, hear_greeting, b"\x05\x00", script.stall):
        until(lambda: not new.health.failures)
    server.shutdown()


def test_what_is_no_upstream_any_more_is_not_looked_after() -> None:
    """CASES 354: nor that of a listener that is closed."""
    server = Socks5Server(server_of(free_port()))
    server.listen()
    with pytest.raises(UpstreamError):
        server.select_upstream_connection("target.example", 443)
    (gone,) = server.runtime.upstreams
    server.reload_config(server_of(free_port()))
    with pytest.raises(UpstreamError):
        server.select_upstream_connection("target.example", 443)
    (closed,) = server.runtime.upstreams
    server.shutdown()
    until(lambda: not (gone._is_probing or closed._is_probing))
    assert gone.health.failures == closed.health.failures == 1


def test_a_configuration_that_is_only_planned_takes_nothing_over() -> None:
    """CASES 354: it may be rejected."""
    server = Socks5Server(server_of(free_port()))
    server.listen()
    (present,) = server.runtime.upstreams
    planned = server.runtime.under(server_of(present.config.proxy_address.rpartition(":")[2]))  # type: ignore[arg-type]
    (one,) = planned.upstreams
    assert one.health is present.health
    assert present.health.keeper is present
    server.shutdown()


# -- a success that is only a promise


@pytest.mark.parametrize("headers", [(), ("X-Proxy-Bound: 192.0.2.1:80",), ("X-Proxy-Bound: odd",)])
def test_a_proxy_that_does_not_tell_where_it_is_bound_only_promises(
    headers: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """CASES 334: it may have upgraded before it dials. The tunnel works all the same."""
    port = free_port()
    with played(port, switch(*headers, behind=script.unmasked(2, b"hello")), script.stall):
        home = made("websocket", port)
        with caplog.at_level(logging.DEBUG):
            connected = dial(home)
        assert (connected.bound is not None) == home.health.confirms == bool(headers)
        assert ("a promise only" in caplog.text) == (not headers)
        connected.stream.finish_close()


@pytest.mark.parametrize(
    ("kind", "steps", "confirms"),
    [
        ("socks5", (*SOCKS_GREETED, socks_reply(0)), True),  # bound to 0.0.0.0:0, as many say it
        ("websocket", (switch("X-Proxy-Bound: 192.0.2.1:80"),), True),
        ("websocket", (switch(),), False),
    ],
)
def test_a_promise_is_passed_on_as_one(kind: str, steps: tuple[Step, ...], confirms: bool) -> None:
    """CASES 334: through a proxy of our kind in between; and what is connected is not called a promise."""
    port = free_port()
    with played(port, *steps, script.stall):
        way = made(kind, port).config
        between = WebSocketServer(ServerConfig("127.0.0.1:0", Protocol.WEBSOCKET, upstream_config=(way,)))
        between.listen()
        near = made("websocket", between.addresses[0].port, timeout=5.0)
        dial(near).stream.finish_close()
        assert near.health.confirms == confirms
        between.shutdown()


# -- what its messages name

# Whole bodies, or the line of one that says it.
AT_TLS = {
    "nginx": b"<center>The plain HTTP request was sent to HTTPS port</center>\r\n",
    "Apache": b"Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />\n",
    "Go": b"Client sent an HTTP request to an HTTPS server.\n",
}
NAMES: dict[str, tuple[str, dict[str, Any], tuple[Step, ...], str]] = {
    "SOCKS5 at HTTP": (
        *("socks5", {}, (hear_greeting, http_answer(400), script.end)),
        "not a SOCKS5 proxy: an HTTP server answered",
    ),
    "SOCKS5 at TLS": (
        # RFC 8446, section 6: an alert, which is fatal, of an unexpected message
        *("socks5", {}, (hear_greeting, b"\x15\x03\x01\x00\x02\x02\x0a", script.end)),
        "not a SOCKS5 proxy: a TLS server answered",
    ),
    "SOCKS5 at TLS that waits": ("socks5", {"timeout": 0.3}, (script.stall,), "answers no SOCKS5 greeting"),
    "SOCKS5 at SSH": (
        *("socks5", {}, (b"SSH-2.0-OpenSSH_9.9\r\n", script.end)),
        "not a SOCKS5 proxy: an SSH server answered",
    ),
    "SOCKS5 without a login": (
        *("socks5", {}, (hear_greeting, b"\x05\xff", script.end)),
        "wants a login, and none is set (it takes no method that we offer)",
    ),
    "SOCKS5 with a login": (
        *("socks5", LOGIN, (hear_greeting, b"\x05\xff", script.end)),
        "refused our credentials (it takes no method that we offer)",
    ),
    "WebSocket at TLS": (
        *("websocket", {}, (hear_head, b"\x15\x03\x01\x00\x02\x02\x0a", script.end)),
        "not an HTTP server: a TLS server answered",
    ),
    "WebSocket at TLS that closes": ("websocket", {}, (hear_head, script.end), "does it want TLS (wss://)?"),
    "WebSocket at TLS that resets": ("websocket", {}, (hear_head, reset), "does it want TLS (wss://)?"),
    "WebSocket at TLS of nginx": (
        *("websocket", {}, (hear_head, http_answer(400), script.end)),
        "answered 400 instead of 101: does it want TLS (wss://)? (ws://127.0.0.1:",
    ),
    **{
        f"{kind} at TLS of {server} that says so": (
            *(kind, {}, (hear_head, http_answer(400, body=body), script.end)),
            f"it speaks TLS: its address has to begin with {scheme}s://, not {scheme}://",
        )
        for server, body in AT_TLS.items()
        for kind, scheme in (("websocket", "ws"), ("http", "http"))
    },
    "WebSocket at a mixed listener": (
        *("websocket", {}, (hear_head, http_answer(400, body=b"this is an HTTP proxy: ask"), script.end)),
        "it is an HTTP proxy: it needs type = http, and http:// in its address",
    ),
    "HTTP at a web server": (
        *("http", {}, (hear_head, http_answer(405), script.end)),
        "answered CONNECT with 405: is it an HTTP proxy?",
    ),
    "WebSocket at SSH": (
        *("websocket", {}, (b"SSH-2.0-OpenSSH_9.9\r\n", script.stall)),
        "not an HTTP server: an SSH server answered",
    ),
    "WebSocket at SOCKS5": (
        *("websocket", {}, (hear_head, b"\x05\xff", script.end)),
        "not an HTTP server: a SOCKS5 server answered",
    ),
    "WebSocket at a web server": (
        *("websocket", {}, (hear_head, http_answer(200), script.end)),
        "answered 200 instead of 101: is the path right? (ws://127.0.0.1:",
    ),
    "WebSocket without a login": (
        *("websocket", {}, (hear_head, http_answer(401), script.end)),
        "wants a login, and none is set",
    ),
    "WebSocket with a login": (
        *("websocket", LOGIN, (hear_head, http_answer(401), script.end)),
        "refused our credentials",
    ),
}


@pytest.mark.parametrize("what", NAMES)
def test_a_message_names_what_answered_and_what_is_missing(what: str) -> None:
    """CASES 333, 360."""
    kind, settings, steps, said = NAMES[what]
    port = free_port()
    with played(port, *steps):
        error = refusal(made(kind, port, **settings))
    assert said in str(error)
    assert isinstance(error, UpstreamError)
    assert "sesame" not in str(error)


def test_a_refused_certificate_is_not_asked_for_again_and_the_cure_is_named(tmp_path: Any) -> None:
    """CASES 355: with what OpenSSL says that it lacks."""
    authority = Authority(tmp_path)
    signed = authority.issue("good", "localhost")
    late = authority.issue("late", "localhost", expired=True)
    for cert, ca, said in (
        (signed, "", "; the authorities to trust are those in tls_ca, or the system's"),
        (late, str(authority.root.cert), "certificate has expired"),
    ):
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert.cert, cert.key)

        def serve(connection: socket.socket, context: Any = context) -> None:
            with context.wrap_socket(connection, server_side=True):
                pass

        with Target(serve) as far:
            home = made(
                "websocket", 0, path=f"wss://localhost:{far.port}/", tls_ca=ca, retry_count=3, timeout=5.0
            )
            error = refusal(home)
            assert "certificate refused: " in str(error)
            assert said in str(error)
            assert far.accepted == 1
