"""The WebSocket door's opening handshake, told in raw bytes to a running server (CASES C)."""

import gc
import re
import socket
from collections.abc import Iterator
from typing import NamedTuple

import gevent
import gevent.socket
import pytest

from proxy import __version__
from proxy.relaying.channel import Channel
from proxy.websocket.server import switch_protocols
from tests.integration.programs import Proxy, web_door
from tests.wire.processes import Memory
from tests.wire.sockets import Door, free_port, is_silent, read_exact, read_rest, reset
from tests.wire.targets import Listener, blackhole
from tests.wire.waits import Stopwatch, wait_until
from tests.wire.websocket import ACCEPT, BINARY, CLOSE, FIN, NONCE, PING, PONG, Peer, frame, upgrade

USERS = {"alice": "wonderland"}

FAILED_LOGIN = re.compile(r"authentication failed: (?P<rest>.*)\n")


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    listeners = {
        "web": web_door(auth="none"),
        "login": web_door(),
        "path": web_door(auth="none", path="/tunnel"),
        "narrow": web_door(auth="none", max_connections=1),
        "at-once": web_door(answer="at_once"),
    }
    with Proxy({"auth_users": USERS, "listeners": listeners}) as running:
        yield running


@pytest.fixture(scope="module")
def impatient() -> Iterator[Proxy]:
    """Run a server whose every time limit is one second."""
    limits = {"handshake_timeout": "1s", "timeout": "1s"}
    with Proxy({"proxy": limits, "listeners": {"web": web_door()}}) as running:
        yield running


@pytest.fixture
def door(proxy: Proxy) -> Door:
    return proxy.door("web")


@pytest.fixture
def target() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener


class Answer(NamedTuple):
    """A refusal."""

    status: int
    headers: dict[str, str]
    body: bytes


def ask(door: Door, request: bytes) -> Answer:
    """Send a request that is to be refused, and read the answer, which must be all that comes."""
    with Peer.connect(door) as client:
        client.write(request)
        first, headers = client.read_head()
        found = re.fullmatch(r"HTTP/1\.1 ([45][0-9]{2}) [A-Za-z -]+", first)
        assert found, first
        body, end = client.read_rest()
    assert len(body) == int(headers["content-length"])
    assert end == "FIN"
    assert "close" in headers["connection"].lower()
    return Answer(int(found[1]), headers, body)


def switched(door: Door, request: bytes) -> dict[str, str]:
    """Send a request that is to succeed, and give the headers of the 101."""
    with Peer.connect(door) as client:
        client.write(request)
        first, headers = client.read_head()
        assert first == "HTTP/1.1 101 Switching Protocols"
    return headers


# -- what is accepted


def test_answers_the_example_of_the_rfc(door: Door, target: Listener) -> None:
    """CASES C61."""
    headers = switched(door, upgrade(target.port))
    assert headers["sec-websocket-accept"] == ACCEPT  # RFC 6455, section 1.3
    assert headers["upgrade"].lower() == "websocket"
    assert headers["connection"].lower() == "upgrade"


def test_a_request_with_a_body_of_length_0_is_an_upgrade(door: Door, target: Listener) -> None:
    """CASES 304."""
    assert switched(door, upgrade(target.port, Content_Length="0"))["sec-websocket-accept"] == ACCEPT


def test_tells_the_address_that_the_target_sees(door: Door, target: Listener) -> None:
    headers = switched(door, upgrade(target.port))
    host, port = target.accept().getpeername()
    assert headers["x-proxy-bound"] == f"{host}:{port}"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"Connection": "keep-alive, Upgrade"}, id="a list with Upgrade in it"),
        pytest.param({"Connection": "keep-alive,upgrade"}, id="without a blank, in lower case"),
        pytest.param({"Upgrade": "WebSocket"}, id="in mixed case"),
        pytest.param({"Upgrade": "h2c, websocket"}, id="one protocol of two"),
    ],
)
def test_reads_upgrade_and_connection_as_lists_in_any_case(
    door: Door, target: Listener, changes: dict[str, str]
) -> None:
    """CASES C62."""
    assert switched(door, upgrade(target.port, **changes))["sec-websocket-accept"] == ACCEPT


@pytest.mark.parametrize("change", [str.lower, str.upper, str.swapcase])
def test_reads_header_names_in_any_case(door: Door, target: Listener, change: object) -> None:
    """CASES C62."""
    assert callable(change)
    line, *fields = upgrade(target.port).decode().split("\r\n")
    changed = [change(name) + colon + value for name, colon, value in (f.partition(":") for f in fields)]
    assert switched(door, "\r\n".join([line, *changed]).encode())["sec-websocket-accept"] == ACCEPT


@pytest.mark.parametrize(
    "uri", ["/", "/any/path?query=1", "/%2e%2e/", "//", "/" + "a" * (8 * 1024 - len("GET / HTTP/1.1"))]
)
def test_takes_any_path_if_none_is_configured(door: Door, target: Listener, uri: str) -> None:
    assert switched(door, upgrade(target.port, line=f"GET {uri} HTTP/1.1"))


def test_serves_only_the_configured_path(proxy: Proxy, target: Listener) -> None:
    assert switched(proxy.door("path"), upgrade(target.port, line="GET /tunnel HTTP/1.1"))
    target.accept()
    for uri in ("/", "/tunnel/", "/tunnels", "/Tunnel", "/x/../tunnel"):
        request = upgrade(target.port, line=f"GET {uri} HTTP/1.1")
        assert ask(proxy.door("path"), request).status == 404, uri
    assert target.untouched


def test_half_close_is_agreed_on_only_with_a_client_that_says_so(door: Door, target: Listener) -> None:
    agreed = switched(door, upgrade(target.port, X_Proxy_Half_Close="1"))
    assert agreed["x-proxy-half-close"] == "1"
    assert "x-proxy-half-close" not in switched(door, upgrade(target.port))


def test_frames_glued_to_the_request_are_not_lost(door: Door, target: Listener) -> None:
    """CASES C82."""
    with Peer.connect(door) as client:
        client.write(upgrade(target.port) + frame(FIN | BINARY, b"early") + frame(FIN | PING, b"?"))
        assert client.read_answer()[0] == 101
        pong = client.recv()
        assert (pong.first, pong.payload) == (FIN | PONG, b"?")
        assert read_exact(target.accept(), 5) == b"early"


def test_many_frames_glued_to_the_request_are_not_lost(door: Door, target: Listener) -> None:
    """CASES C82."""
    data = bytes(range(256)) * 256  # more than one read of a handshake takes
    pieces = [frame(FIN | BINARY, data[at : at + 300]) for at in range(0, len(data), 300)]
    with Peer.connect(door) as client:
        client.write(upgrade(target.port) + b"".join(pieces))
        assert client.read_answer()[0] == 101
        assert read_exact(target.accept(), len(data)) == data


def test_a_handshake_may_arrive_in_any_two_pieces(door: Door, target: Listener) -> None:
    """CASES C82."""
    script = upgrade(target.port) + frame(FIN | BINARY, b"early")
    cuts = range(1, len(script))
    for group in (cuts[at : at + 50] for at in range(0, len(cuts), 50)):
        clients = [Peer.connect(door) for _ in group]
        for client, cut in zip(clients, group, strict=True):
            client.write(script[:cut])
        assert ask(door, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").status == 426  # all of that was read by now
        for client, cut in zip(clients, group, strict=True):
            client.write(script[cut:])
        for client in clients:
            assert client.read_answer()[0] == 101
            assert read_exact(target.accept(), 5) == b"early"
        for client in clients:
            client.sock.close()


def test_a_second_request_behind_the_first_is_read_as_frames(door: Door, target: Listener) -> None:
    """CASES C83."""
    with Peer.connect(door) as client:
        client.write(upgrade(target.port) * 2)
        assert client.read_answer()[0] == 101
        assert client.recv_close() == 1002  # G is 0x47: no FIN, and a reserved bit
        assert client.read_rest() == (b"", "FIN")
    assert read_rest(target.accept()) == (b"", "reset")


# -- what is negotiated


def test_negotiates_no_extension(door: Door, target: Listener) -> None:
    """CASES C87."""
    offer = "permessage-deflate; client_max_window_bits"
    headers = switched(door, upgrade(target.port, Sec_WebSocket_Extensions=offer))
    assert "sec-websocket-extensions" not in headers


def test_answers_no_subprotocol_that_was_not_offered(door: Door, target: Listener) -> None:
    """CASES C88."""
    headers = switched(door, upgrade(target.port, Sec_WebSocket_Protocol="chat, superchat"))
    assert headers.get("sec-websocket-protocol", "chat") in ("chat", "superchat")
    assert "sec-websocket-protocol" not in switched(door, upgrade(target.port))


def test_expects_nothing(door: Door, target: Listener) -> None:
    """CASES C81."""
    answer = ask(door, upgrade(target.port, Expect="100-continue"))
    assert answer.status == 417
    assert target.untouched


# -- what is refused before anything is dialled


@pytest.mark.parametrize("missing", ["Host", "Upgrade", "Connection", "Sec-WebSocket-Key"])
def test_refuses_a_handshake_without_one_of_its_headers(door: Door, target: Listener, missing: str) -> None:
    """CASES C63."""
    assert ask(door, upgrade(target.port, without=missing)).status == 400
    assert target.untouched


@pytest.mark.parametrize("version", ["", "0", "7", "8", "12", "14", "99", "13, 8", "013", "13x"])
def test_names_the_version_that_it_speaks(door: Door, target: Listener, version: str) -> None:
    """CASES C63."""
    answer = ask(door, upgrade(target.port, Sec_WebSocket_Version=version))
    assert answer.status == 426
    assert answer.headers["sec-websocket-version"] == "13"  # RFC 6455, section 4.4
    assert target.untouched


def test_names_the_version_to_a_client_that_names_none(door: Door, target: Listener) -> None:
    """CASES C63."""
    answer = ask(door, upgrade(target.port, without="Sec-WebSocket-Version"))
    assert answer.status == 426
    assert answer.headers["sec-websocket-version"] == "13"
    assert target.untouched


@pytest.mark.parametrize(
    ("header", "value"),
    [("Upgrade", "h2c"), ("Upgrade", "websockets"), ("Connection", "close"), ("Connection", "upgrades")],
)
def test_refuses_an_upgrade_to_anything_else(door: Door, target: Listener, header: str, value: str) -> None:
    """CASES C63."""
    assert ask(door, upgrade(target.port, **{header: value})).status in (400, 426)
    assert target.untouched


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("!!!!", id="not base64"),
        pytest.param("abc", id="half of base64"),
        pytest.param("", id="empty"),
        pytest.param("MTIzNDU2Nzg5MDEyMzQ1", id="15 bytes"),
        pytest.param("MTIzNDU2Nzg5MDEyMzQ1Njc=", id="17 bytes"),
        pytest.param("dGhlIHNhbXBsZSBub25jZQ", id="no padding"),
        pytest.param("dGhlIHNhbXBs!ZSBub25jZQ==", id="junk within"),
        pytest.param("dGhlIHNhbXBsZSBub25jZQ==, x", id="a list"),
        pytest.param("dGhlIHNhbXBs\xe9SBub25jZQ==", id="not ASCII"),
    ],
)
def test_refuses_a_key_that_is_not_16_bytes_in_base64(door: Door, target: Listener, key: str) -> None:
    """CASES C64."""
    assert ask(door, upgrade(target.port, Sec_WebSocket_Key=key)).status == 400
    assert target.untouched


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "DELETE", "PATCH", "TRACE", "get"])
def test_refuses_every_method_but_get(door: Door, target: Listener, method: str) -> None:
    """CASES C68."""
    answer = ask(door, upgrade(target.port, line=f"{method} / HTTP/1.1"))
    assert answer.status == 405
    assert answer.headers["allow"] == "GET"
    assert target.untouched


def test_answers_head_without_a_body(door: Door, target: Listener) -> None:
    """CASES C68."""
    with Peer.connect(door) as client:
        client.write(upgrade(target.port, line="HEAD / HTTP/1.1"))
        first, headers = client.read_head()
        assert first.startswith("HTTP/1.1 405 ")
        assert headers["allow"] == "GET"
        assert client.read_rest() == (b"", "FIN")  # RFC 9110, section 9.3.2
    assert target.untouched


def test_is_no_http_proxy(door: Door, target: Listener) -> None:
    """CASES C68."""
    where = f"127.0.0.1:{target.port}"
    assert ask(door, f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode()).status in (400, 405)
    assert ask(door, upgrade(target.port, line=f"CONNECT {where} HTTP/1.1")).status in (400, 405)
    assert ask(door, f"GET http://{where}/ HTTP/1.1\r\nHost: {where}\r\n\r\n".encode()).status in (400, 426)
    assert target.untouched


def test_http_1_0_cannot_upgrade(door: Door, target: Listener) -> None:
    """CASES C69."""
    assert ask(door, upgrade(target.port, line="GET / HTTP/1.0")).status in (400, 426)
    assert target.untouched


def test_http_1_0_does_not_get_round_authentication(proxy: Proxy, target: Listener) -> None:
    """CASES C69."""
    login = {"X_Proxy_Username": "alice", "X_Proxy_Password": "wonderland"}
    for credentials in ({}, login):
        request = upgrade(target.port, line="GET / HTTP/1.0", **credentials)
        assert ask(proxy.door("login"), request).status in (400, 401, 426)
    assert target.untouched


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET /\r\n", id="HTTP/0.9"),
        pytest.param(b"GET /\r\n\r\n", id="HTTP/0.9 and an empty line"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"\x05\x01\x00", id="SOCKS5"),
        pytest.param(b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", id="SOCKS4"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"\x00" * 64, id="zeros"),
        pytest.param(b"\xff" * 64, id="ones"),
        pytest.param(b"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", id="two empty lines first"),
        pytest.param(b" GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="a blank first"),
        pytest.param(b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", id="two blanks"),
        pytest.param(b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", id="a blank behind"),
        pytest.param(b"GET / http/1.1\r\nHost: x\r\n\r\n", id="http in lower case"),
        pytest.param(b"GET / HTTP/1.10\r\nHost: x\r\n\r\n", id="version 1.10"),
        pytest.param(b"GET / HTTP/1\r\nHost: x\r\n\r\n", id="version 1"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="an answer"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="SSH"),
    ],
)
def test_answers_garbage_with_400(door: Door, garbage: bytes) -> None:
    """CASES C70."""
    assert ask(door, garbage).status == 400


@pytest.mark.parametrize("scheme", ["ws", "wss", "http", "tcp"])
def test_an_absolute_uri_does_not_change_the_target(door: Door, target: Listener, scheme: str) -> None:
    """CASES C71."""
    with Listener() as decoy, Peer.connect(door) as client:
        client.write(upgrade(target.port, line=f"GET {scheme}://127.0.0.1:{decoy.port}/ HTTP/1.1"))
        status = client.read_answer()[0]
        assert status in (101, 400)
        assert target.untouched is (status == 400)
        assert decoy.untouched


def test_an_underscore_is_no_hyphen(door: Door, target: Listener) -> None:
    """CASES C74."""
    with Listener() as decoy:
        decoys = ("X_Proxy_Target_Host: 127.0.0.1", f"X_Proxy_Target_Port: {decoy.port}")
        both_as_decoys = upgrade(0, *decoys, without="X-Proxy-Target-Host").replace(
            b"X-Proxy-Target-Port: 0\r\n", b""
        )
        assert ask(door, both_as_decoys).status == 400
        with Peer.connect(door) as client:
            client.write(upgrade(target.port, *decoys))
            status = client.read_answer()[0]
        assert status in (101, 400)
        assert target.untouched is (status == 400)
        assert decoy.untouched


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("", id="empty"),
        pytest.param("a" * 256, id="256 bytes"),
        pytest.param("a." * 2000, id="4000 bytes"),
        pytest.param("local host", id="a blank"),
        pytest.param("127.0.0.1/x", id="a slash"),
        pytest.param("user@127.0.0.1", id="a user"),
        pytest.param("127.0.0.1:80", id="a port"),
        pytest.param(":80", id="only a port"),
        pytest.param("127.0.0.1\x01", id="a control byte"),
        pytest.param("127.0.0.1\x00", id="NUL"),
        pytest.param("127.0.0.1\x7f", id="DEL"),
        pytest.param("127.0.0.1\ta", id="a tab"),
        pytest.param("\xff\xfe", id="not UTF-8"),
        pytest.param("a..b", id="an empty label"),
    ],
)
def test_refuses_a_host_that_is_none(door: Door, target: Listener, host: str) -> None:
    """CASES C76."""
    assert ask(door, upgrade(target.port, X_Proxy_Target_Host=host)).status == 400
    assert target.untouched


@pytest.mark.parametrize(
    "port",
    ["", "0", "-1", "65536", "99999999999", "80a", "0x50", "1e2", "+80", "8 0", "80,81", "http", "\xb2"],
)
def test_refuses_a_port_that_is_none(door: Door, port: str) -> None:
    """CASES C76."""
    assert ask(door, upgrade(port)).status == 400


@pytest.mark.parametrize("missing", ["X-Proxy-Target-Host", "X-Proxy-Target-Port"])
def test_refuses_a_request_without_a_target(door: Door, target: Listener, missing: str) -> None:
    """CASES C77."""
    assert ask(door, upgrade(target.port, without=missing)).status == 400
    assert target.untouched


@pytest.mark.parametrize(
    "repeated",
    [
        "Host: other.example",
        f"Sec-WebSocket-Key: {NONCE}",
        "Sec-WebSocket-Version: 13",
        "X-Proxy-Target-Host: 127.0.0.1",
        "X-Proxy-Target-Port: 80",
        "X-Proxy-Timeout: 5",
    ],
)
def test_refuses_a_header_that_stands_there_twice(door: Door, target: Listener, repeated: str) -> None:
    """CASES C77."""
    first = ["X-Proxy-Timeout: 5"] if "Timeout" in repeated else []
    assert ask(door, upgrade(target.port, *first, repeated)).status == 400
    assert target.untouched


@pytest.mark.parametrize("header", ["X-Proxy-Username: alice", "X-Proxy-Password: wonderland"])
def test_refuses_repeated_credentials(proxy: Proxy, target: Listener, header: str) -> None:
    """CASES C77."""
    login = ("X-Proxy-Username: alice", "X-Proxy-Password: wonderland")
    assert ask(proxy.door("login"), upgrade(target.port, *login, header)).status == 400
    assert target.untouched


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"X_Proxy_Username": "alice"},
        {"X_Proxy_Password": "wonderland"},
        {"X_Proxy_Username": "alice", "X_Proxy_Password": "Wonderland"},
        {"X_Proxy_Username": "bob", "X_Proxy_Password": "wonderland"},
        {"X_Proxy_Username": "", "X_Proxy_Password": ""},
        {"Authorization": "Basic YWxpY2U6V29uZGVybGFuZA=="},
        {"Authorization": "Bearer YWxpY2U6d29uZGVybGFuZA=="},
    ],
)
def test_lets_nobody_in_who_does_not_log_in(
    proxy: Proxy, target: Listener, credentials: dict[str, str]
) -> None:
    assert ask(proxy.door("login"), upgrade(target.port, **credentials)).status == 401
    assert target.untouched


@pytest.mark.parametrize(
    "login",
    [
        {"X_Proxy_Username": "alice", "X_Proxy_Password": "wonderland"},
        {"Authorization": "Basic YWxpY2U6d29uZGVybGFuZA=="},  # alice:wonderland
    ],
    ids=["X-Proxy", "Basic"],
)
def test_lets_a_user_in(proxy: Proxy, target: Listener, login: dict[str, str]) -> None:
    assert switched(proxy.door("login"), upgrade(target.port, **login))


# -- answer = at_once


AT_ONCE = {"Authorization": "Basic YWxpY2U6d29uZGVybGFuZA=="}  # alice:wonderland


def test_at_once_comes_before_the_target_and_promises_nothing(proxy: Proxy) -> None:
    """DESIGN 1.5: a client that cannot take a refusal gets its 101 first."""
    with blackhole() as hole, Peer.connect(proxy.door("at-once")) as client:
        client.write(upgrade(hole, **AT_ONCE))
        first, headers = client.read_head()
        assert first == "HTTP/1.1 101 Switching Protocols"
        assert "x-proxy-bound" not in headers


def test_at_once_carries_what_was_sent_before_the_target_was_there(proxy: Proxy, target: Listener) -> None:
    with Peer.connect(proxy.door("at-once")) as client:
        client.write(upgrade(target.port, **AT_ONCE) + frame(FIN | BINARY, b"early"))
        client.read_head()
        far = target.accept()
        assert read_exact(far, 5) == b"early"
        far.sendall(b"down")
        assert client.recv().payload == b"down"


def test_at_once_tells_a_failure_by_a_close_with_its_cause(proxy: Proxy) -> None:
    """DESIGN 1.5: Close 1011 with the cause as its reason, and TCP close."""
    with Peer.connect(proxy.door("at-once")) as client:
        client.write(upgrade(free_port(), **AT_ONCE))
        client.read_head()
        told = client.recv()
        assert (told.first, told.payload) == (FIN | CLOSE, b"\x03\xf3connection refused")
        client.write(frame(FIN | CLOSE, told.payload))
        assert client.read_rest() == (b"", "FIN")


def test_at_once_a_login_is_still_refused_by_a_status(proxy: Proxy) -> None:
    assert ask(proxy.door("at-once"), upgrade(1)).status == 401


# -- limits


def filler(size: int) -> str:
    """Write a header line of so many bytes, without its end."""
    return "X: ".ljust(size, "a")


def test_takes_as_many_and_as_long_headers_as_it_says(door: Door, target: Listener) -> None:
    """CASES C78."""
    assert switched(door, upgrade(target.port, filler(8 * 1024)))
    assert switched(door, upgrade(target.port, *[filler(20)] * (100 - 7)))


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([filler(8 * 1024 + 1)], id="a header of more than 8 KiB"),
        pytest.param([filler(20)] * 101, id="more than 100 headers"),
        pytest.param([filler(8000)] * 9, id="more than 64 KiB in all"),
        pytest.param([filler(60 * 1024)], id="a header of 60 KiB"),
    ],
)
def test_refuses_headers_that_are_too_large(door: Door, target: Listener, extra: list[str]) -> None:
    """CASES C78."""
    assert ask(door, upgrade(target.port, *extra)).status == 431
    assert target.untouched


def test_refuses_a_request_line_that_is_too_long(door: Door, target: Listener) -> None:
    """CASES C78."""
    line = "GET /".ljust(8 * 1024, "a") + " HTTP/1.1"
    assert ask(door, upgrade(target.port, line=line)).status == 414
    assert ask(door, b"GET /" + b"a" * 20000).status == 414  # nor does it wait for the end of it
    assert target.untouched


def test_megabytes_of_headers_cost_no_memory(proxy: Proxy) -> None:
    """CASES C78."""
    ask(proxy.door("web"), upgrade(1, *[filler(8000)] * 9))
    memory = Memory(proxy.pid)
    header = filler(1000).encode() + b"\r\n"
    with Peer.connect(proxy.door("web")) as client:
        client.write(b"GET / HTTP/1.1\r\n")
        client.write(header * (20 * 1024))
        assert client.read_head()[0] == "HTTP/1.1 431 Request Header Fields Too Large"
    assert memory.growth < 1 << 20


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        pytest.param(b"\r\n", b"\n", id="every line end a bare LF"),
        pytest.param(b"Upgrade: websocket\r\n", b"Upgrade: websocket\n", id="one line end a bare LF"),
        pytest.param(b"\r\n\r\n", b"\r\n\n", id="the last line end a bare LF"),
        pytest.param(b"Upgrade: websocket\r\n", b"Upgrade: websocket\r", id="a bare CR"),
        pytest.param(b"proxy.example", b"proxy\x00example", id="NUL"),
        pytest.param(b"proxy.example", b"proxy\x0bexample", id="a vertical tab"),
        pytest.param(b"proxy.example", b"proxy\x7fexample", id="DEL"),
        pytest.param(b"Host: ", b"Host ", id="no colon"),
        pytest.param(b"Host: ", b": ", id="no name"),
        pytest.param(b"Host: ", b"Host : ", id="a blank before the colon"),
        pytest.param(b"Host: ", b"H\xf6st: ", id="a name that is not ASCII"),
        pytest.param(b"Upgrade: ", b" Upgrade: ", id="a folded line"),
        pytest.param(b"Upgrade: ", b"\tUpgrade: ", id="a line folded by a tab"),
        pytest.param(b"HTTP/1.1\r\n", b"HTTP/1.1\r\n Folded: x\r\n", id="a folded first line"),
        pytest.param(b"Host: ", b"Content-Length: 0, 0\r\nHost: ", id="a list of lengths"),
        pytest.param(b"Host: ", b"Content-Length: 5\r\nHost: ", id="a body"),
        pytest.param(b"Host: ", b"Transfer-Encoding: chunked\r\nHost: ", id="a body in chunks"),
    ],
)
def test_refuses_what_two_parsers_could_read_differently(
    door: Door, target: Listener, good: bytes, bad: bytes
) -> None:
    """CASES C79."""
    request = upgrade(target.port)
    assert good in request
    assert ask(door, request.replace(good, bad)).status == 400
    assert target.untouched


def test_serves_no_second_request_after_a_refusal(door: Door, target: Listener) -> None:
    """CASES C84."""
    good = upgrade(target.port)
    posted = upgrade(target.port, line="POST / HTTP/1.1")
    plain = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    for bad in (upgrade("x"), posted, plain):
        assert ask(door, bad + good).status in (400, 405, 426)  # and ask() has checked that no more comes
    assert target.untouched


def test_slow_clients_are_cut_and_hold_up_nobody(impatient: Proxy, target: Listener) -> None:
    """CASES C85."""
    door = impatient.door("web")
    watch = Stopwatch()
    slow = [Peer.connect(door) for _ in range(300)]
    try:
        for client in slow:
            client.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        assert switched(door, upgrade(target.port))
        assert all(
            is_silent(client.sock, 0) for client in slow[:10]
        )  # they are not gone, but nobody waits for them
        waiting = list(slow)
        while waiting:
            assert watch.seconds < 20, f"{len(waiting)} slow clients are still connected"
            waiting = [client for client in waiting if is_silent(client.sock, 0.2 / len(waiting))]
            for client in waiting:
                drip(client)
    finally:
        for client in slow:
            client.sock.close()


def drip(client: Peer) -> None:
    """Send one byte of a header that never ends."""
    try:
        client.write(b"a")
    except ConnectionError:
        pass  # it was cut, which the next look will see


# -- what a stranger learns


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /?X-Proxy-Target-Host=127.0.0.1&X-Proxy-Target-Port={port} HTTP/1.1",
        "GET /127.0.0.1:{port} HTTP/1.1",
        "GET /127.0.0.1/{port}?target=127.0.0.1:{port} HTTP/1.1",
    ],
)
def test_a_page_in_a_browser_reaches_nothing(door: Door, target: Listener, request_line: str) -> None:
    """CASES C86."""
    answer = ask(
        door,
        "\r\n".join(
            [
                request_line.format(port=target.port),
                f"Host: 127.0.0.1:{target.port}",
                "Upgrade: websocket",
                "Connection: Upgrade",
                f"Sec-WebSocket-Key: {NONCE}",
                "Sec-WebSocket-Version: 13",
                f"Origin: http://127.0.0.1:{target.port}",
                f"Cookie: X-Proxy-Target-Host=127.0.0.1; X-Proxy-Target-Port={target.port}",
                f"Sec-WebSocket-Protocol: X-Proxy-Target-Host.127.0.0.1, X-Proxy-Target-Port.{target.port}",
                "",
                "",
            ]
        ).encode(),
    )
    assert answer.status == 400
    assert target.untouched


MARK = "m4rk3r"


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(f"{MARK} / HTTP/1.1\r\nHost: x\r\n\r\n".encode(), id="the method"),
        pytest.param(f"GET /{MARK} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), id="the path"),
        pytest.param(f"GET / {MARK}\r\nHost: x\r\n\r\n".encode(), id="the version"),
        pytest.param(upgrade(1, f"{MARK} : x"), id="a malformed name"),
        pytest.param(upgrade(1, MARK), id="a line without a colon"),
        pytest.param(upgrade(1, Sec_WebSocket_Key=MARK), id="the key"),
        pytest.param(upgrade(1, Sec_WebSocket_Version=MARK), id="the WebSocket version"),
        pytest.param(upgrade(1, Upgrade=MARK), id="the protocol"),
        pytest.param(upgrade(MARK), id="the port"),
        pytest.param(upgrade(1, X_Proxy_Target_Host=f"{MARK} x"), id="the host"),
        pytest.param(upgrade(1, f"X-Proxy-Target-Host: {MARK}"), id="a second host"),
        pytest.param(upgrade(1, f"Content-Length: {MARK}"), id="a length"),
        pytest.param(upgrade(1, f"Expect: {MARK}"), id="an expectation"),
    ],
)
def test_an_error_repeats_nothing_of_the_request(door: Door, request_bytes: bytes) -> None:
    """CASES C90."""
    answer = ask(door, request_bytes)
    assert MARK not in f"{answer.headers} {answer.body.decode()}".lower()


def test_a_refused_login_repeats_nothing_of_the_request(proxy: Proxy) -> None:
    """CASES C90."""
    request = upgrade(1, X_Proxy_Username=MARK, X_Proxy_Password=MARK)
    answer = ask(proxy.door("login"), request)
    assert answer.status == 401
    assert MARK not in f"{answer.headers} {answer.body.decode()}"


@pytest.mark.parametrize(("password", "status"), [("wrong", 401), ("wonderland", 400)])
def test_a_login_comes_before_the_target(proxy: Proxy, password: str, status: int) -> None:
    """Case 370: only who may come in can make us read a host."""
    before = len(proxy.log)
    request = upgrade(1, X_Proxy_Username="alice", X_Proxy_Password=password, X_Proxy_Target_Host="a b")
    assert ask(proxy.door("login"), request).status == status
    if status == 401:  # no later test shall find this one's line
        wait_until(lambda: FAILED_LOGIN.search(proxy.log, before), "the line for fail2ban")


@pytest.mark.parametrize(
    ("given", "named"), [({}, '""'), ({"X_Proxy_Username": "bob"}, "bob"), ({"X_Proxy_Password": "b"}, '""')]
)
def test_the_line_of_a_missing_login_names_nobody_else(
    proxy: Proxy, given: dict[str, str], named: str
) -> None:
    before = len(proxy.log)
    assert ask(proxy.door("login"), upgrade(1, **given)).status == 401
    line = f"client=127.0.0.1 user={named} listener=login"  # there may be late ones of others before it
    wait_until(
        lambda: line in [each["rest"] for each in FAILED_LOGIN.finditer(proxy.log, before)],
        "the line for fail2ban",
    )


def test_a_stranger_learns_nothing(proxy: Proxy) -> None:
    """CASES C91."""
    answer = ask(proxy.door("login"), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.status == 426
    assert answer.headers["upgrade"] == "websocket"  # RFC 9110, section 15.5.22
    assert "upgrade" in answer.headers["connection"].lower()
    text = f"{answer.headers} {answer.body.decode()}".lower()
    for secret in (__version__, "python", "gevent", "alice", "x-proxy", "127.0.0.1"):
        assert secret not in text
    assert answer.body.count(b"\n") == 1
    assert answer.body.endswith(b"\n")


# -- dialling


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_client_that_leaves_during_the_dial_frees_its_place(
    proxy: Proxy, target: Listener, leave: object
) -> None:
    """CASES C89."""
    assert callable(leave)
    door = proxy.door("narrow")  # one connection, and 30 s to reach a target
    with blackhole() as hole:
        first = Peer.connect(door)
        first.write(upgrade(hole))
        second = Peer.connect(door)
        second.write(upgrade(target.port))
        assert second.is_silent(0.3), "the first one does not hold the only place"
        leave(first.sock)
        assert second.read_answer()[0] == 101
        second.sock.close()


def test_reports_a_target_that_refuses(door: Door) -> None:
    """CASES C92; the other causes are in tests/integration/test_truth.py, which can make them."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # and never listens
        answer = ask(door, upgrade(reserved.getsockname()[1]))
    assert answer.status == 502
    assert answer.headers["proxy-status"] == "proxy-server; error=connection_refused"


def test_reports_a_target_that_does_not_answer(impatient: Proxy) -> None:
    """CASES C92."""
    watch = Stopwatch()
    with blackhole() as hole:
        answer = ask(impatient.door("web"), upgrade(hole))
    assert answer.status == 504
    assert answer.headers["proxy-status"] == "proxy-server; error=connection_timeout"
    assert watch.seconds > 0.9


def test_answers_while_the_client_still_waits(door: Door) -> None:
    """CASES 300, DESIGN 1.5: the target might take 30 s, and the client says that it has half of one."""
    with blackhole() as hole:
        answer = ask(door, upgrade(hole, "X-Proxy-Timeout: 0.5"))
    assert answer.status == 504
    assert answer.headers["proxy-status"] == "proxy-server; error=connection_timeout"


def test_a_client_cannot_stretch_the_time(impatient: Proxy) -> None:
    """CASES 300: the listener's own is one second."""
    watch = Stopwatch()
    with blackhole() as hole:
        assert ask(impatient.door("web"), upgrade(hole, "X-Proxy-Timeout: 3600")).status == 504
    assert watch.seconds < 20


def test_reports_a_target_that_is_not_allowed(door: Door, target: Listener) -> None:
    """CASES C92."""
    answer = ask(door, upgrade(target.port, X_Proxy_Target_Host="0.0.0.0"))
    assert answer.status == 403
    assert answer.headers["proxy-status"] == "proxy-server; error=destination_ip_prohibited"
    assert target.untouched


# -- the borrowed handshake


def test_the_borrowed_handshake_writes_the_101_and_nothing_else() -> None:
    with gevent.Timeout(10):
        ours, theirs = gevent.socket.socketpair()
        channel = Channel(ours)
        switch_protocols(channel, NONCE, (("X-Proxy-Bound", "127.0.0.1:80"),))
        gc.collect()  # the library's WebSocket would now send a Close frame of its own
        gevent.sleep(0)
        channel.sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: theirs.recv(4096), b""))
        channel.abort()
        theirs.close()
    head, end, rest = answer.partition(b"\r\n\r\n")
    assert (end, rest) == (b"\r\n\r\n", b"")
    first, *fields = head.decode("ascii").split("\r\n")
    assert first == "HTTP/1.1 101 Switching Protocols"
    assert sorted(field.lower() if "Accept" not in field else field for field in fields) == [
        f"Sec-WebSocket-Accept: {ACCEPT}",
        "connection: upgrade",
        "upgrade: websocket",
        "x-proxy-bound: 127.0.0.1:80",
    ]


def test_the_borrowed_handshake_leaves_the_socket_as_it_was() -> None:
    with gevent.Timeout(10):
        ours, theirs = gevent.socket.socketpair()
        channel = Channel(ours)
        channel.push_back(b"early")
        theirs.sendall(b" and late")
        switch_protocols(channel, NONCE, ())
        gc.collect()
        assert channel.read_exact(14) == b"early and late"
        theirs.recv(4096)
        channel.send(b"\x82\x00")
        assert theirs.recv(4096) == b"\x82\x00"
        channel.abort()
        theirs.close()
