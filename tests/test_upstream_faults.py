"""
What must hold when an upstream fails (CASES, group F): scripted upstreams behind both doors.

One program has a pair of doors for each kind of upstream; a test brings the upstream itself, on the
port that it is expected at. Where a test counts attempts, it runs a program of its own, since a way
out remembers failures.
"""

import contextlib
import re
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.doors import cut_of, how_it_ends
from tests.integration.certificates import Authority
from tests.integration.programs import Proxy, socks_door, upstream, web_door
from tests.wire import clients, targets
from tests.wire import upstreams as script
from tests.wire.clients import HttpRefused, SocksRefused, Tunnel
from tests.wire.sockets import connect, free_port, read_exact, reset
from tests.wire.socks5 import GRANTED, hear_greeting, hear_login, read_socks_reply, socks_reply, socks_request
from tests.wire.targets import Target, close_after_accept
from tests.wire.upstreams import SOCKS_GREETED, Step, switch
from tests.wire.waits import wait_until

TARGET = ("192.0.2.1", 80)  # RFC 5737: a documentation address, never dialled here
TIMEOUT = 0.8  # seconds, of [proxy]
ATTEMPT = 0.6  # seconds, of one upstream
LATE = 30.0  # seconds: how late a busy machine may be

DOORS: Mapping[str, Callable[..., Tunnel]] = {"socks": clients.socks5, "web": clients.websocket}
KINDS = ("socks5", "websocket")

both_doors = pytest.mark.parametrize("door", DOORS)
both_kinds = pytest.mark.parametrize("kind", KINDS)


class Node(Proxy):
    """A program with a SOCKS5 and a WebSocket door for each of its ways out."""

    def __init__(self, ways: Mapping[str, Mapping[str, Any]], **settings: Any) -> None:
        makers = {"socks": socks_door, "web": web_door}
        doors = {
            f"{door}-by-{way}": make(upstream=way, ping_interval=0) if door == "web" else make(upstream=way)
            for door, make in makers.items()
            for way in ways
        }
        super().__init__({"proxy": settings, "listeners": doors, "upstreams": ways})

    def connect(self, door: str, way: str, **settings: Any) -> Tunnel:
        """Connect through a door and a way out."""
        return DOORS[door](self.door(f"{door}-by-{way}"), *TARGET, **settings)

    def refusal(self, door: str, way: str) -> "Refusal":
        """Connect, and give the refusal that must come."""
        try:
            self.connect(door, way).close()
        except SocksRefused as refused:
            return Refusal(reply=refused.reply)
        except HttpRefused as refused:
            return Refusal(status=refused.status, said=f"{refused.headers} {refused.body!r}")
        pytest.fail("it was not refused")


class Refusal:
    """What a client was told, by whichever door."""

    def __init__(self, *, reply: int = 0, status: int = 0, said: str = "") -> None:
        self.code = reply or status
        self.said = said

    def is_one_of(self, reply: int, *statuses: int) -> bool:
        """Tell whether it is this reply, or one of these statuses."""
        return self.code in (reply, *statuses)

    def __repr__(self) -> str:
        return f"<{self.code} {self.said}>"


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """Reserve the ports at which the scripted upstreams are expected."""
    return {kind: free_port() for kind in KINDS}


@pytest.fixture(scope="module")
def node(ports: dict[str, int]) -> Iterator[Node]:
    """Run the program that most tests share; it has time, so that only a fault makes it refuse."""
    with Node(ways_to(ports), timeout="1h", log_level="warning") as node:
        yield node


def ways_to(ports: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Describe the ways out to the scripted upstreams."""
    return {kind: upstream(kind, ("localhost", ports[kind]), ping_interval=0) for kind in KINDS}


@contextlib.contextmanager
def played(port: int, *steps: Step) -> Iterator[script.Upstream]:
    """Run a scripted upstream."""
    with script.upstream(port, *steps) as target:
        yield target


def assert_attempts(upstream: script.Upstream, count: int) -> None:
    """Check how many there were: a connection is one until it turns out to ask for a sign of life."""
    wait_until(lambda: upstream.attempts == count, lambda: f"{count} attempts, not {upstream.attempts}")


def is_upstreams_fault(refusal: Refusal) -> bool:
    """Tell whether a refusal blames the way, and not the target."""
    return refusal.is_one_of(1, 502)


# -- it breaks its protocol

SOCKS_FAULTS: dict[str, tuple[Step, ...]] = {
    "closes at once": (close_after_accept,),
    "resets at once": (reset,),
    "closes after the greeting": (hear_greeting, script.end),
    "closes in the method": (hear_greeting, b"\x05", script.end),
    "closes after the method": (hear_greeting, b"\x05\x00", script.end),
    "closes after the request": (*SOCKS_GREETED, script.end),
    "resets after the request": (*SOCKS_GREETED, reset),
    **{
        f"closes after {cut} bytes of the reply": (*SOCKS_GREETED, GRANTED[:cut], script.end)
        for cut in (1, 4, 9)
    },
    "is an HTTP server": (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", script.end),
    "is an SSH server": (b"SSH-2.0-OpenSSH_9.9\r\n", script.stall),
    "is garbage": (bytes(range(256)) * 4, script.end),
    "has version 4": (hear_greeting, b"\x04\x00", script.stall),
    "chooses a method that was not offered": (hear_greeting, b"\x05\x80", script.stall),
    "replies with version 4": (*SOCKS_GREETED, b"\x04" + GRANTED[1:], script.stall),
    "replies with address type 2": (*SOCKS_GREETED, b"\x05\x00\x00\x02" + GRANTED[4:], script.stall),
}

HTML = b"<html>hello</html>"
WEB_FAULTS: dict[str, tuple[Step, ...]] = {
    "closes at once": (close_after_accept,),
    "resets at once": (reset,),
    "closes after the request": (script.hear_head, script.end),
    "resets after the request": (script.hear_head, reset),
    "closes in the status": (script.hear_head, b"HTTP/1.1 10", script.end),
    "closes in the headers": (script.hear_head, b"HTTP/1.1 101 OK\r\nUpgrade: web", script.end),
    "is a web server": (script.hear_head, script.http_answer(200, body=HTML), script.end),
    "is an SSH server": (b"SSH-2.0-OpenSSH_9.9\r\n", script.stall),
    "is garbage": (bytes(range(256)) * 4, script.end),
    "is a SOCKS5 server": (script.hear_head, b"\x05\xff", script.end),
    "sends endless headers": (script.hear_head, b"HTTP/1.1 101 OK\r\n" + b"a: b\r\n" * 20_000, script.stall),
    "leaves out Sec-WebSocket-Accept": (switch(without="Sec-WebSocket-Accept"), script.stall),
    # RFC 6455, section 1.3: the answer to that section's key, which is not ours
    "has a wrong Sec-WebSocket-Accept": (switch(accept="s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), script.stall),
    "leaves out Upgrade": (switch(without="Upgrade"), script.stall),
    "leaves out Connection": (switch(without="Connection"), script.stall),
    "chose an extension": (switch("Sec-WebSocket-Extensions: permessage-deflate"), script.stall),
    "chose a subprotocol": (switch("Sec-WebSocket-Protocol: chat"), script.stall),
}


@both_doors
@pytest.mark.parametrize("fault", SOCKS_FAULTS)
def test_a_socks5_upstream_that_breaks_the_protocol_is_to_blame(
    node: Node, ports: dict[str, int], door: str, fault: str
) -> None:
    """CASES F156, F157, F166."""
    with played(ports["socks5"], *SOCKS_FAULTS[fault]):
        assert is_upstreams_fault(node.refusal(door, "socks5"))


@both_doors
@pytest.mark.parametrize("fault", WEB_FAULTS)
def test_a_websocket_upstream_that_breaks_the_protocol_is_to_blame(
    node: Node, ports: dict[str, int], door: str, fault: str
) -> None:
    """CASES F156, F157, F163."""
    with played(ports["websocket"], *WEB_FAULTS[fault]):
        refusal = node.refusal(door, "websocket")
        assert is_upstreams_fault(refusal)
        assert "hello" not in refusal.said


STALLS: dict[str, tuple[str, tuple[Step, ...]]] = {
    "at once": ("socks5", (script.stall,)),
    "after the method": ("socks5", (hear_greeting, b"\x05\x00", script.stall)),
    "in the reply": ("socks5", (*SOCKS_GREETED, GRANTED[:6], script.stall)),
    "before its answer": ("websocket", (script.stall,)),
    "never, but drips": ("websocket", (script.drip,)),
}


def test_an_upstream_that_stalls_is_cut_at_the_timeout_of_an_attempt(cast: "Cast") -> None:
    """CASES F158: wherever it stalls, at both doors, and all at once since it takes its time."""

    def check(when: str) -> None:
        with cast.on_stage("stalls", when) as (way, _):
            for door in DOORS:
                started = time.monotonic()
                assert cast.node.refusal(door, way).is_one_of(6, 504)
                # It may be asked for a sign of life behind that, for as long.
                assert 0.9 * ATTEMPT < time.monotonic() - started < 2 * ATTEMPT + LATE

    with ThreadPoolExecutor(len(STALLS)) as threads:
        list(threads.map(check, STALLS))


@both_kinds
def test_all_attempts_together_are_cut_at_the_deadline(ports: dict[str, int], kind: str) -> None:
    """CASES F158: the attempt itself might take 10 s."""
    with Node(ways_to(ports), timeout=f"{TIMEOUT}s") as node, played(ports[kind], script.stall):
        started = time.monotonic()
        assert node.refusal("socks", kind).is_one_of(6)
        assert 0.9 * TIMEOUT < time.monotonic() - started < TIMEOUT + LATE


# -- it refuses

MAPPED = {
    # reply, and what an HTTP client may be told
    1: (1, 502),
    2: (2, 403),
    3: (3, 502),
    4: (4, 502),
    5: (5, 502),
    6: (6, 504),
    7: (7, 400, 502),
    8: (8, 400, 502),
    **dict.fromkeys([0x09, 0x5B, 0x80, 0xFF], (1, 502)),
}


@both_doors
@pytest.mark.parametrize("code", MAPPED)
def test_the_reply_of_a_socks5_upstream_is_passed_on(
    node: Node, ports: dict[str, int], door: str, code: int
) -> None:
    """CASES F164, F174."""
    with played(ports["socks5"], *SOCKS_GREETED, socks_reply(code), script.end) as refusing:
        assert node.refusal(door, "socks5").is_one_of(*MAPPED[code])
        assert refusing.requests == 1


STATUSES = {
    **dict.fromkeys([200, 204, 400, 401, 404, 407, 426, 429, 500], (1, 502)),
    403: (2, 403),
    503: (1, 502, 503),
    504: (6, 504),
}


@both_doors
@pytest.mark.parametrize("status", STATUSES)
def test_the_status_of_a_websocket_upstream_is_mapped_and_its_body_kept_from_the_client(
    node: Node, ports: dict[str, int], door: str, status: int
) -> None:
    """CASES F161."""
    with played(ports["websocket"], script.hear_head, script.http_answer(status, body=HTML), script.end):
        refusal = node.refusal(door, "websocket")
    assert refusal.is_one_of(*STATUSES[status])
    assert "hello" not in refusal.said


@both_doors
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(node: Node, ports: dict[str, int], door: str, status: int) -> None:
    """CASES F161: the new host would be sent our password."""
    with Target(close_after_accept) as elsewhere:
        location = f"Location: ws://127.0.0.1:{elsewhere.port}/"
        answer = script.http_answer(status, location)
        with played(ports["websocket"], script.hear_head, answer, script.end) as redirecting:
            assert is_upstreams_fault(node.refusal(door, "websocket"))
            assert_attempts(redirecting, 1)
        assert elsewhere.accepted == 0


LOGIN = {"proxy_username": "alice", "proxy_password": "open sesame", "retry_count": 3}
LOGIN_REFUSALS: dict[str, tuple[str, tuple[Step, ...]]] = {
    "status 1": ("socks5", (hear_greeting, b"\x05\x02", hear_login, b"\x01\x01", script.end)),
    "no method": ("socks5", (hear_greeting, b"\x05\xff", script.end)),
    "401": ("websocket", (script.hear_head, script.http_answer(401), script.end)),
    "407": ("websocket", (script.hear_head, script.http_answer(407), script.end)),
}


@pytest.mark.parametrize("how", LOGIN_REFUSALS)
def test_credentials_that_an_upstream_refuses_are_logged_and_not_tried_again(cast: "Cast", how: str) -> None:
    """CASES F160, F174."""
    with cast.on_stage("logins", how) as (way, strict):
        for count, door in enumerate(DOORS, 1):
            assert is_upstreams_fault(cast.node.refusal(door, way))
            assert strict.accepted == count
    line = cast.node.wait_for_log(f"upstream {way}: refused our credentials")
    assert " warning " in line
    assert "open sesame" not in cast.node.log


def test_refused_credentials_are_logged_although_the_upstream_has_just_failed_otherwise() -> None:
    """CASES F160, DESIGN 1.7: repeated errors are collapsed, and this is another one."""
    kind, steps = LOGIN_REFUSALS["401"]
    port = free_port()
    with Node({"way": upstream(kind, ("127.0.0.1", port), **{**LOGIN, "retry_count": 0})}) as node:
        assert is_upstreams_fault(node.refusal("socks", "way"))
        node.wait_for_log("Connection refused")
        with played(port, *steps):
            assert is_upstreams_fault(node.refusal("socks", "way"))

        def is_told() -> bool:
            lines = node.log.splitlines()
            return any(" warning " in line and "credentials" in line for line in lines)

        wait_until(is_told, "a warning about credentials")


def test_a_wrong_version_of_the_login_answer_is_a_fault() -> None:
    """CASES F166: RFC 1929, section 2, has version 1."""
    port = free_port()
    steps = (hear_greeting, b"\x05\x02", hear_login, b"\x05\x00", script.stall)
    way = upstream("socks5", ("127.0.0.1", port), **{**LOGIN, "retry_count": 0})
    with Node({"way": way}, timeout="1h") as node, played(port, *steps):
        assert is_upstreams_fault(node.refusal("socks", "way"))


# -- it is fast

GLUED: dict[str, tuple[str, tuple[Step, ...]]] = {
    "reply": ("socks5", (*SOCKS_GREETED, GRANTED + b"first ", b"second", script.end)),
    "IPv6 reply": (
        "socks5",
        (*SOCKS_GREETED, b"\x05\x00\x00\x04" + bytes(18) + b"first ", b"second", script.end),
    ),
    "name reply": (
        "socks5",
        (*SOCKS_GREETED, b"\x05\x00\x00\x03\x04node\x00\x50first ", b"second", script.end),
    ),
    "101": (
        "websocket",
        (
            switch(behind=script.unmasked(2, b"first ")),
            script.unmasked(2, b"second") + script.unmasked(2),
            script.stall,
        ),
    ),
}


@both_doors
@pytest.mark.parametrize("answer", GLUED)
def test_data_glued_to_the_answer_of_an_upstream_is_delivered_first(
    node: Node, ports: dict[str, int], door: str, answer: str
) -> None:
    """CASES F167, A40."""
    kind, steps = GLUED[answer]
    with played(ports[kind], *steps):
        tunnel = node.connect(door, kind)
        assert read_exact(tunnel, 12) == b"first second"
        assert tunnel.recv(1) == b""
        tunnel.close()


@pytest.mark.parametrize("kind", KINDS)
def test_early_data_of_the_client_reaches_the_upstream_behind_its_answer_once(
    node: Node, ports: dict[str, int], kind: str
) -> None:
    """CASES F172: bytes that came with the request wait for the tunnel."""
    steps: tuple[Step, ...] = (
        (*SOCKS_GREETED, GRANTED, read_five) if kind == "socks5" else (switch(), read_frame)
    )
    door = node.door(f"socks-by-{kind}")
    with played(ports[kind], *steps) as upstream_, connect(door) as sock:
        sock.sendall(b"\x05\x01\x00" + socks_request(*TARGET) + b"early")
        assert read_exact(sock, 2) == b"\x05\x00"
        assert read_socks_reply(sock) == 0
        assert upstream_.result()[-1] == b"early"


def read_five(connection: socket.socket) -> bytes:
    """Read five bytes."""
    return read_exact(connection, 5)


def read_frame(connection: socket.socket) -> bytes:
    """Read a short masked frame, and unmask it (RFC 6455, section 5.3)."""
    _, length = read_exact(connection, 2)
    key = read_exact(connection, 4)
    data = read_exact(connection, length & 0x7F)
    return bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


# -- TLS


@pytest.fixture(scope="module")
def secure(authority: Authority) -> Iterator[tuple[Node, int]]:
    """Run a program whose upstream speaks TLS, trusted in three ways; give the upstream's port too."""
    port = free_port()
    address = f"wss://localhost:{port}/"
    ways = {
        "own-ca": upstream("websocket", address, tls_ca=str(authority.root.cert)),
        "system-ca": upstream("websocket", address),
        "unverified": upstream("websocket", address, tls_verify="no"),
    }
    with Node(ways, timeout="1m", log_level="warning") as node:
        yield node, port


class TlsUpstream:
    """A WebSocket upstream behind TLS, that notes the server name it is asked for."""

    def __init__(self, port: int, context: ssl.SSLContext, cert: tuple[Path, Path]) -> None:
        context.load_cert_chain(*cert)
        context.sni_callback = lambda _, name, __: self.names.append(name)
        self.names: list[str | None] = []
        self._context = context
        self._target = Target(self._serve, port=port)

    def _serve(self, connection: socket.socket) -> None:
        with (
            contextlib.suppress(ssl.SSLError),
            self._context.wrap_socket(connection, server_side=True) as tls,
        ):
            step = switch(behind=script.unmasked(2, b"over TLS"))
            assert callable(step)
            step(tls)
            script.stall(tls)

    def __enter__(self) -> "TlsUpstream":
        self._target.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._target.__exit__(*error)


def modern() -> ssl.SSLContext:
    """Make the TLS settings of an ordinary server."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def test_a_certificate_of_the_configured_authority_is_accepted(
    secure: tuple[Node, int], authority: Authority
) -> None:
    """CASES F169, F170: and the server is told which host is meant."""
    node, port = secure
    good = authority.issue("good", "localhost")
    with TlsUpstream(port, modern(), (good.cert, good.key)) as tls:
        for door in DOORS:
            tunnel = node.connect(door, "own-ca")
            assert read_exact(tunnel, 8) == b"over TLS"
            tunnel.close()
        assert tls.names == ["localhost"] * 2


@pytest.mark.parametrize("fault", ["self-signed", "other authority", "wrong host", "expired"])
def test_a_certificate_that_proves_nothing_is_refused_unless_told_otherwise(
    secure: tuple[Node, int], authority: Authority, fault: str
) -> None:
    """CASES F169."""
    node, port = secure
    name = fault.replace(" ", "-")
    if fault == "self-signed":
        made = authority.self_signed(name, "localhost", "subjectAltName=DNS:localhost")
    elif fault == "other authority":
        made = authority.issue(name, "localhost")
    else:
        host = "other.example" if fault == "wrong host" else "localhost"
        made = authority.issue(name, host, expired=fault == "expired")
    way = "system-ca" if fault == "other authority" else "own-ca"
    with TlsUpstream(port, modern(), (made.cert, made.key)):
        for door in DOORS:
            assert is_upstreams_fault(node.refusal(door, way))
        tunnel = node.connect("socks", "unverified")
        assert read_exact(tunnel, 8) == b"over TLS"
        tunnel.close()


def test_the_log_says_what_is_wrong_with_a_certificate(authority: Authority) -> None:
    """CASES F169."""
    port = free_port()
    way = upstream("websocket", f"wss://localhost:{port}/", tls_ca=str(authority.root.cert))
    made = authority.issue("too-late", "localhost", expired=True)
    with Node({"way": way}) as node, TlsUpstream(port, modern(), (made.cert, made.key)):
        node.refusal("socks", "way")
        assert "certificate has expired" in node.wait_for_log("certificate refused")


def test_tls_1_1_is_refused_even_where_nothing_is_verified(
    secure: tuple[Node, int], authority: Authority
) -> None:
    """CASES F169; RFC 8996."""
    node, port = secure
    old = authority.issue("old", "localhost")
    context = modern()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with TlsUpstream(port, context, (old.cert, old.key)):
        for way in ("own-ca", "unverified"):
            assert is_upstreams_fault(node.refusal("socks", way))


def test_plain_text_behind_a_tls_port_is_refused_and_no_password_goes_out(authority: Authority) -> None:
    """CASES F169."""
    port = free_port()
    way = upstream("websocket", f"wss://localhost:{port}/", tls_verify="no", **{**LOGIN, "retry_count": 0})

    def hear_and_answer(connection: socket.socket) -> bytes:
        heard = connection.recv(4096)
        connection.sendall(script.http_answer(400))
        script.end(connection)
        return heard

    with Node({"way": way}) as node, Target(hear_and_answer, port=port) as plain:
        assert is_upstreams_fault(node.refusal("socks", "way"))
        heard = plain.result()
        assert heard[:1] == b"\x16"  # RFC 8446, section 5.1: a handshake record
        assert b"sesame" not in heard


# -- retries

FLAKY: dict[str, tuple[str, tuple[Step, ...]]] = {
    "socks5": ("socks5", (hear_greeting, script.end)),
    "socks5-reply": ("socks5", (*SOCKS_GREETED, GRANTED[:5], script.end)),
    "websocket": ("websocket", (script.hear_head, script.end)),
}


@pytest.mark.parametrize("how", FLAKY)
def test_a_failing_upstream_is_tried_once_more_for_each_retry(cast: "Cast", how: str) -> None:
    """CASES F172: N + 1 attempts, with pauses between them."""
    with cast.on_stage("flaky", how) as (way, flaky):
        started = time.monotonic()
        assert is_upstreams_fault(cast.node.refusal("socks", way))
        assert_attempts(flaky, 3)
        # 100 and 200 ms, each between half and one and a half of it
        assert 0.15 < time.monotonic() - started < 0.45 + LATE


def test_retries_end_with_the_timeout_however_many_there_are() -> None:
    """CASES F172."""
    port = free_port()
    way = upstream("socks5", ("127.0.0.1", port), retry_count=1000)
    with Node({"way": way}, timeout="3s") as node, played(port, *FLAKY["socks5"][1]) as flaky:
        assert node.refusal("socks", "way").is_one_of(1, 6)
        assert 2 <= flaky.accepted < 10


@both_kinds
def test_a_retry_that_succeeds_is_all_that_the_client_sees(kind: str) -> None:
    """CASES F172: what it sent early arrives once, on the connection that works."""
    port = free_port()
    bad: list[Step] = [script.end]
    good: list[Step] = [*SOCKS_GREETED, GRANTED, read_five] if kind == "socks5" else [switch(), read_frame]
    attempts = iter([bad, good])

    def behave(connection: socket.socket) -> object:
        return script.play(next(attempts), connection)[-1]

    way = upstream(kind, ("127.0.0.1", port), retry_count=2)
    with Node({"way": way}) as node, Target(behave, port=port) as flaky:
        with connect(node.door("socks-by-way")) as sock:
            sock.sendall(b"\x05\x01\x00" + socks_request(*TARGET) + b"early")
            assert read_exact(sock, 2) == b"\x05\x00"
            assert read_socks_reply(sock) == 0
            assert flaky.result() is None
            assert flaky.result() == b"early"
        assert flaky.accepted == 2


@both_kinds
def test_nothing_is_tried_again_once_the_tunnel_stands(kind: str) -> None:
    """CASES F172: bytes may have been forwarded."""
    port = free_port()
    way = upstream(kind, ("127.0.0.1", port), retry_count=3)
    steps: tuple[Step, ...] = (*SOCKS_GREETED, GRANTED, reset) if kind == "socks5" else (switch(), reset)
    with Node({"way": way}) as node, played(port, *steps) as breaking:
        tunnel = node.connect("socks", "way")
        assert how_it_ends(tunnel) == "reset"
        tunnel.close()
        assert breaking.accepted == 1


FINAL: dict[str, tuple[str, tuple[Step, ...]]] = {
    **{
        f"reply {code}": ("socks5", (*SOCKS_GREETED, socks_reply(code), script.end))
        for code in (1, 2, 4, 5, 6)
    },
    **{
        f"status {status}": ("websocket", (script.hear_head, script.http_answer(status), script.end))
        for status in (400, 403, 404, 426, 500, 502, 503, 504)
    },
    "error": (
        "websocket",
        (
            script.hear_head,
            script.http_answer(502, "Proxy-Status: proxy-server; error=connection_refused"),
            script.end,
        ),
    ),
}


@pytest.mark.parametrize("how", FINAL)
def test_an_answer_that_would_be_the_same_is_not_asked_for_again(cast: "Cast", how: str) -> None:
    """CASES F174, 371: whoever is to blame for it."""
    with cast.on_stage("final", how) as (way, final):
        for count, door in enumerate(DOORS, 1):
            cast.node.refusal(door, way)
            assert_attempts(final, count)


# -- the program that the counting tests share

GROUPS: Mapping[str, tuple[Mapping[str, tuple[str, tuple[Step, ...]]], Mapping[str, Any]]] = {
    "stalls": (STALLS, {"timeout": f"{ATTEMPT}s"}),
    "logins": (LOGIN_REFUSALS, LOGIN),
    "flaky": (FLAKY, {"retry_count": 2}),
    "final": (FINAL, {"retry_count": 3}),
}


class Cast:
    """A program with a way out of its own for each script that is counted: no failure is remembered."""

    def __init__(self) -> None:
        self._ports = {}
        ways = {}
        for group, (scripts, settings) in GROUPS.items():
            for how, (kind, _) in scripts.items():
                way = self._way(group, how)
                self._ports[way] = free_port()
                ways[way] = upstream(kind, ("127.0.0.1", self._ports[way]), **settings)
        self.node = Node(ways, timeout="1m")

    @staticmethod
    def _way(group: str, how: str) -> str:
        return f"{group}-{list(GROUPS[group][0]).index(how)}-"

    @contextlib.contextmanager
    def on_stage(self, group: str, how: str) -> Iterator[tuple[str, script.Upstream]]:
        """Run the scripted upstream; give the name of the way to it."""
        way = self._way(group, how)
        with played(self._ports[way], *GROUPS[group][0][how][1]) as target:
            yield way, target


@pytest.fixture(scope="module")
def cast() -> Iterator[Cast]:
    """Run the program."""
    made = Cast()
    with made.node:
        yield made


# -- down and up


@both_kinds
def test_an_upstream_that_is_back_serves_the_very_next_connection(kind: str) -> None:
    """CASES F175: however long its rest still is."""
    port = free_port()
    steps: tuple[Step, ...] = (*SOCKS_GREETED, GRANTED) if kind == "socks5" else (switch(),)
    with Node({"way": upstream(kind, ("127.0.0.1", port))}) as node:
        for _ in range(6):
            assert is_upstreams_fault(node.refusal("socks", "way"))
        with played(port, *steps, script.stall):
            node.connect("socks", "way").close()  # were it not asked, this would be refused
        wait_until(lambda: "upstream way is back" in node.log, "the log to say so")


def test_when_all_upstreams_are_down_nothing_goes_out_directly() -> None:
    """DESIGN 1.3: never, unless ``direct`` is in the list."""
    ways = {"one": upstream("socks5", ("127.0.0.1", free_port()))}
    with Node(ways) as node, Target(targets.echo) as target:
        with pytest.raises(SocksRefused) as refused:
            clients.socks5(node.door("socks-by-one"), "127.0.0.1", target.port)
        assert refused.value.reply == 1
        assert target.accepted == 0


# -- it breaks in the middle


def client_frame_heard(connection: socket.socket) -> None:
    """Wait for a byte of the client's, so that the tunnel surely stands."""
    connection.recv(1)


PARTIAL = bytes([0x82, 100]) + b"part of it"  # RFC 6455, section 5.2: 100 bytes announced, 10 sent
BREAKS: dict[str, tuple[Step, ...]] = {
    **{
        f"Close {code}": (
            switch(),
            client_frame_heard,
            script.unmasked(2, b"some") + script.close_frame(code),
            script.end,
        )
        for code in (1001, 1008, 1011, 1013)
    },
    "a reset": (switch(), client_frame_heard, reset),
    "a FIN in mid-frame": (switch(), client_frame_heard, PARTIAL, script.end),
    "a FIN without Close": (switch(), client_frame_heard, script.unmasked(2, b"some"), script.end),
    "a text frame": (switch(), client_frame_heard, script.unmasked(1, b"text"), script.stall),
    "a reserved opcode": (switch(), client_frame_heard, script.unmasked(3, b"what"), script.stall),
}


@both_doors
@pytest.mark.parametrize("fault", BREAKS)
def test_a_tunnel_that_breaks_is_cut_and_not_ended(
    node: Node, ports: dict[str, int], door: str, fault: str
) -> None:
    """CASES F176, D120."""
    with played(ports["websocket"], *BREAKS[fault]):
        tunnel = node.connect(door, "websocket")
        tunnel.sendall(b"x")
        assert how_it_ends(tunnel) in cut_of("websocket" if door == "web" else "socks5")
        tunnel.close()


ENDS: dict[str, tuple[Step, ...]] = {
    "Close 1000": (switch(), script.unmasked(2, b"all") + script.close_frame(1000), script.end),
    "an empty Close": (switch(), script.unmasked(2, b"all") + script.unmasked(8), script.end),
    "a FIN of one who knows no half-close": (
        switch(half_close=False),
        script.unmasked(2, b"all"),
        script.end,
    ),
}


@both_doors
@pytest.mark.parametrize("how", ENDS)
def test_a_tunnel_that_ends_is_not_cut(node: Node, ports: dict[str, int], door: str, how: str) -> None:
    """CASES F176, D120: the counter-example."""
    with played(ports["websocket"], *ENDS[how]):
        tunnel = node.connect(door, "websocket")
        assert read_exact(tunnel, 3) == b"all"
        assert how_it_ends(tunnel) == "end"
        tunnel.close()


@both_doors
@pytest.mark.parametrize(("code", "clean"), [(1000, True), (1011, False)])
def test_an_upstream_that_switches_and_closes_at_once_had_connected(
    node: Node, ports: dict[str, int], door: str, code: int, clean: bool
) -> None:
    """CASES F177."""
    with played(ports["websocket"], switch(behind=script.close_frame(code)), script.end):
        tunnel = node.connect(door, "websocket")
        seen = how_it_ends(tunnel)
        assert seen in ({"end"} if clean else cut_of("websocket" if door == "web" else "socks5"))
        tunnel.close()


def test_no_fault_of_an_upstream_leaves_anything_behind(node: Node) -> None:
    """After all of the above, the program holds its listeners and nothing else."""
    node.wait_until_empty()
    assert not [line for line in node.log.splitlines() if re.search("Traceback|internal error", line)]
