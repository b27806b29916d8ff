"""What the opening request may say, against the RFCs and other implementations."""

import base64
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from proxy.address import Address
from proxy.http.heads import HeadBuffer, HttpError, parse_request
from proxy.http.refusals import encode_response
from proxy.websocket.headers import TunnelRequest, vet_request

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, section 1.3
SECRET = b"wonderland"

BASE = {
    "Host": "server.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
    "X-Proxy-Target-Host": "target.example.com",
    "X-Proxy-Target-Port": "443",
}


def request(line: str = "GET /chat HTTP/1.1", *extra: str, without: str = "", **changes: str) -> bytes:
    """Build a request: the good one, but for what is changed, left out or added."""
    fields = {**BASE, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [f"{name}: {value}" for name, value in fields.items() if name != without]
    return "\r\n".join([line, *lines, *extra, "", ""]).encode("latin-1")


def vet(head: bytes, path: str = "") -> TunnelRequest:
    buffer = HeadBuffer(request=True)
    assert buffer.feed(head)
    assert buffer.leftover == b""
    vetted = vet_request(parse_request(buffer.head), path=path)
    assert vetted.target
    return vetted


def refused(head: bytes, path: str = "") -> HttpError:
    with pytest.raises(HttpError) as caught:
        vet(head, path)
    return caught.value


def status_of(head: bytes, path: str = "") -> int:
    return refused(head, path).status


# A good request.


def test_takes_the_example_of_the_rfc_with_a_target() -> None:
    """RFC 6455, section 1.2, with the two headers that name a target."""
    head = (
        b"GET /chat HTTP/1.1\r\n"
        b"Host: server.example.com\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Origin: http://example.com\r\n"
        b"Sec-WebSocket-Protocol: chat, superchat\r\n"
        b"Sec-WebSocket-Version: 13\r\n"
        b"X-Proxy-Target-Host: 2001:DB8::1\r\n"
        b"X-Proxy-Target-Port: 65535\r\n"
        b"\r\n"
    )
    found = vet(head)
    assert found == TunnelRequest(b"2001:DB8::1", 65535, None, None, half_close=False, key=KEY)
    assert found.target == Address("2001:db8::1", 65535)


def test_takes_what_another_implementation_sends() -> None:
    """CASES C87, C88: extensions and subprotocols are offered, and do not matter."""
    uri = parse_uri("ws://server.example.com/tunnel?x=1")
    client = ClientProtocol(uri, subprotocols=[Subprotocol("chat")])
    ask = client.connect()
    ask.headers["X-Proxy-Target-Host"] = "target.example.com"
    ask.headers["X-Proxy-Target-Port"] = "80"
    ask.headers["Sec-WebSocket-Extensions"] = "permessage-deflate; client_max_window_bits"
    found = vet(ask.serialize(), "/tunnel")
    assert found.target == Address("target.example.com", 80)
    assert found.key == client.key


@pytest.mark.parametrize(
    "changes",
    [
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "keep-alive,UPGRADE"},
        {"Upgrade": "WebSocket"},
        {"Upgrade": "h2c, websocket"},
        {"Sec_WebSocket_Key": "  " + KEY + "\t"},
    ],
)
def test_tokens_match_in_any_case_and_in_lists(changes: dict[str, str]) -> None:
    """CASES C62."""
    assert vet(request(**changes)).key == KEY


@pytest.mark.parametrize("change", [bytes.upper, bytes.lower])
def test_header_names_match_in_any_case(change: Callable[[bytes], bytes]) -> None:
    """CASES C62."""
    line, *fields = request().split(b"\r\n")
    head = b"\r\n".join([line, *(change(n) + c + v for n, c, v in (f.partition(b":") for f in fields))])
    assert vet(head).target == Address("target.example.com", 443)


def test_a_connection_header_may_be_spread_over_lines() -> None:
    """RFC 9110, section 5.3: lines of a list-valued field are one list."""
    assert vet(request("GET / HTTP/1.1", "Connection: Upgrade", Connection="keep-alive")).key == KEY


def test_credentials_are_the_bytes_as_sent() -> None:
    name, password = "älice".encode(), "pässwörd 漢: voilà".encode()  # à ends in A0, a blank in latin-1
    found = vet(
        request(
            X_Proxy_Username=name.decode("latin-1"),
            X_Proxy_Password=password.decode("latin-1"),
        )
    )
    assert (found.username, found.password) == (name, password)


def test_credentials_may_be_basic_ones() -> None:
    """DESIGN 1.5; the example of RFC 7617, section 2."""
    found = vet(request(Authorization="Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="))
    assert (found.username, found.password) == (b"Aladdin", b"open sesame")
    assert "sesame" not in repr(found)


def test_an_authorization_of_another_scheme_is_none_of_ours() -> None:
    found = vet(request(Authorization="Bearer abc", X_Proxy_Username="alice", X_Proxy_Password="x"))
    assert (found.username, found.password) == (b"alice", b"x")


@pytest.mark.parametrize("name", ["X_Proxy_Username", "X_Proxy_Password"])
def test_credentials_that_stand_there_twice_are_malformed(name: str) -> None:
    """DESIGN 1.5: both at once is 400."""
    assert refused(request(**{"Authorization": "Basic dTpw", name: "u"})).status == 400


def test_a_password_is_in_no_repr() -> None:
    head = request(X_Proxy_Username="alice", X_Proxy_Password=SECRET.decode())
    assert SECRET.decode() not in repr(vet(head)) + repr(parse_request(head))


@pytest.mark.parametrize(("value", "agreed"), [("1", True), ("0", False), ("", False), ("true", False)])
def test_half_close_is_agreed_on_by_one(value: str, agreed: bool) -> None:
    assert vet(request(X_Proxy_Half_Close=value)).half_close is agreed
    assert vet(request()).half_close is False


def test_a_name_that_is_not_ascii_becomes_idna() -> None:
    """CASES A22, by this door: never mojibake upstream."""
    sent = "bücher.example".encode().decode("latin-1")
    assert vet(request(X_Proxy_Target_Host=sent)).target.host == "xn--bcher-kva.example"


# A bad one.


def test_a_request_of_a_proxy_without_a_target_asks_for_a_sign_of_life() -> None:
    asked = BASE | {"X-Proxy-Half-Close": "1"}
    for missing in ("X-Proxy-Target-Host", "X-Proxy-Target-Port"):
        del asked[missing]
        lines = [f"{name}: {value}" for name, value in asked.items()]
        answer = refused("\r\n".join(["GET / HTTP/1.1", *lines, "", ""]).encode())
        assert answer.status == 400
        assert answer.is_answer is (missing == "X-Proxy-Target-Port")  # both are missing then


def test_a_request_without_a_target_of_anybody_else_is_malformed() -> None:
    head = b"\r\n".join(line for line in request().split(b"\r\n") if not line.startswith(b"X-Proxy-Target"))
    assert not refused(head).is_answer


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("9.5", 9.5), ("1", 1.0), ("0.001", 0.001), ("10.000", 10.0), ("007", 7.0), (None, None)],
)
def test_a_client_may_say_how_long_it_waits(value: str | None, seconds: float | None) -> None:
    """CASES 300."""
    changes = {} if value is None else {"X_Proxy_Timeout": value}
    assert vet(request(**changes)).patience == seconds


@pytest.mark.parametrize(
    "value", ["0", "0.000", "", "-1", "+1", "1e3", "1.", ".5", "1.2345", "1,5", "5 s", "inf", "nan", "5, 5"]
)
def test_refuses_a_wait_that_is_no_number_above_0(value: str) -> None:
    """CASES 300: a decimal number with at most three decimals."""
    assert status_of(request(X_Proxy_Timeout=value)) == 400


def test_a_host_that_is_none_is_malformed() -> None:
    """RFC 9112, section 3.2."""
    assert status_of(request(Host="a b")) == 400


@pytest.mark.parametrize("name", ["Host", "Upgrade", "Connection", "Sec-WebSocket-Key"])
def test_each_header_of_the_handshake_is_needed(name: str) -> None:
    """CASES C63."""
    assert status_of(request(without=name)) == 400


@pytest.mark.parametrize(
    "changes",
    [{"without": "Sec-WebSocket-Version"}, {"Sec_WebSocket_Version": "8"}, {"Sec_WebSocket_Version": ""}],
)
def test_only_version_13_is_spoken(changes: dict[str, str]) -> None:
    """CASES C63."""
    error = refused(request(**changes))
    assert error.status == 426
    assert ("Sec-WebSocket-Version", "13") in error.headers


@pytest.mark.parametrize(
    "key",
    [
        *("!!!!", "abc", "", base64.b64encode(bytes(15)).decode(), base64.b64encode(bytes(17)).decode()),
        *(KEY[:-2], KEY + "=", KEY + "x", "!" + KEY[1:], KEY[:10] + " " + KEY[11:], "é" + KEY[1:]),
    ],
)
def test_a_key_is_16_bytes_in_base64(key: str) -> None:
    """CASES C64."""
    assert status_of(request(Sec_WebSocket_Key=key)) == 400


@given(key=st.binary(min_size=16, max_size=16))
def test_every_key_of_16_bytes_is_taken(key: bytes) -> None:
    text = base64.b64encode(key).decode()
    assert vet(request(Sec_WebSocket_Key=text)).key == text


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "OPTIONS", "DELETE", "get"])
def test_only_get_is_allowed(method: str) -> None:
    """CASES C68."""
    error = refused(request(f"{method} /chat HTTP/1.1"))
    assert error.status == 405
    assert ("Allow", "GET") in error.headers


def test_connect_is_not_allowed() -> None:
    """CASES C68."""
    assert status_of(b"CONNECT target.example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n") == 405


def test_http_1_0_cannot_upgrade() -> None:
    """CASES C69."""
    assert status_of(request("GET /chat HTTP/1.0")) == 400


@pytest.mark.parametrize("target", ["ws://other.example.com/", "http://h/", "other.example.com:443", "*"])
def test_a_request_target_is_a_path(target: str) -> None:
    """CASES C71."""
    assert status_of(request(f"GET {target} HTTP/1.1")) == 400


def test_underscores_do_not_stand_for_dashes() -> None:
    """CASES C74."""
    spoofed = "X_Proxy_Target_Host: evil.example.com"
    assert vet(request("GET / HTTP/1.1", spoofed)).target.host == "target.example.com"
    assert status_of(request("GET / HTTP/1.1", spoofed, without="X-Proxy-Target-Host")) == 400


@pytest.mark.parametrize(
    "host", ["", "a" * 256, "a b", "a/b", "a@b", "a:80", "[::1]", "fe80::1%eth0", "a,b", "\xff", "a\x85b"]
)
def test_a_host_is_checked(host: str) -> None:
    """CASES C76."""
    assert status_of(request(X_Proxy_Target_Host=host)) == 400


@pytest.mark.parametrize(
    "port", ["", "0", "65536", "-1", "+80", "80.0", "0x50", "8 0", "²", "99999999", "http"]
)
def test_a_port_is_checked(port: str) -> None:
    assert status_of(request(X_Proxy_Target_Port=port)) == 400


def test_a_host_is_not_read_before_the_login() -> None:
    """Case 370."""
    vetted = vet_request(parse_request(request(X_Proxy_Target_Host="a b")))
    with pytest.raises(HttpError):
        assert vetted.target


@pytest.mark.parametrize("name", ["X-Proxy-Username", "X-Proxy-Password"])
def test_credentials_have_at_most_255_bytes(name: str) -> None:
    """Case 377: as at the other door (RFC 1929, section 2)."""
    taken = vet(request("GET / HTTP/1.1", f"{name}: " + "\xff" * 255))
    assert b"\xff" * 255 in (taken.username, taken.password)
    assert status_of(request("GET / HTTP/1.1", f"{name}: " + "\xff" * 256)) == 400


@pytest.mark.parametrize("name", ["X-Proxy-Target-Host", "X-Proxy-Target-Port"])
def test_a_target_is_needed(name: str) -> None:
    """CASES C77."""
    assert status_of(request(without=name)) == 400


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "X-Proxy-Target-Host"),
        *("X-Proxy-Target-Port", "X-Proxy-Username", "X-Proxy-Password", "X-Proxy-Half-Close"),
    ],
)
def test_a_header_is_not_repeated(name: str) -> None:
    """DESIGN 1.5: exactly one of each."""
    value = BASE.get(name, "1")
    assert status_of(request("GET / HTTP/1.1", f"{name}: {value}", f"{name.upper()}: {value}")) == 400


def test_limits_of_a_head() -> None:
    """CASES C78."""
    assert status_of(request("GET /" + "a" * 8192 + " HTTP/1.1")) == 414
    assert status_of(request("GET / HTTP/1.1", "A: " + "a" * 8192)) == 431
    assert status_of(request("GET / HTTP/1.1", *["A: b"] * 101)) == 431
    assert status_of(request("GET / HTTP/1.1", *["A: " + "a" * 8000] * 9)) == 431


def test_a_head_within_the_limits_is_taken() -> None:
    """CASES C78."""
    room = 8192 - len("GET / HTTP/1.1")
    assert vet(request("GET /" + "a" * room + " HTTP/1.1", "A: " + "a" * (8192 - 3))).key == KEY
    assert vet(request("GET / HTTP/1.1", *["A: b"] * (100 - len(BASE)))).key == KEY
    assert vet(request("GET / HTTP/1.1", *["A: " + "a" * 8000] * 8)).key == KEY


def test_nothing_can_be_expected() -> None:
    """CASES C81."""
    assert status_of(request("GET / HTTP/1.1", "Expect: 100-continue")) == 417


@pytest.mark.parametrize(
    "body",
    [
        ["Content-Length: 5"],
        ["Content-Length: 0, 0"],
        ["Content-Length: 0", "Content-Length: 0"],
        ["Content-Length:"],
        ["Transfer-Encoding: chunked"],
        ["Content-Length: 0", "Transfer-Encoding: chunked"],
    ],
    ids=" | ".join,
)
def test_a_request_has_no_body(body: list[str]) -> None:
    """CASES 304."""
    assert status_of(request("GET / HTTP/1.1", *body)) == 400


def test_a_content_length_of_0_is_no_body() -> None:
    """CASES 304: RFC 9112, section 6.3."""
    assert vet(request("GET / HTTP/1.1", "Content-Length: 0")).key == KEY


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/t%C3%BC", "/t%c3%bc"),
        ("/t%c3%bc", "/t%C3%BC"),
        ("/%74unnel", "/tunnel"),
        ("/tunnel", "/%74%75nnel"),
        ("/~me", "/%7Eme"),
        ("/50%", "/50%"),
        ("/tunnel?ed=2048", "/tunnel?ed=2048"),
        ("/tunnel?a=%2f", "/tunnel?a=%2F"),
        ("/tunnel?", "/tunnel"),
        ("/tunnel", "/tunnel?ed=2048"),
    ],
)
def test_who_asks_for_the_same_path_gets_in(path: str, asked: str) -> None:
    """CASES 305: RFC 3986, section 6.2.2."""
    assert vet(request(f"GET {asked} HTTP/1.1"), path).key == KEY


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/a/b", "/a%2Fb"),  # a reserved character means another thing when it is escaped
        ("/a", "/A"),
        ("/tunnel?ed=2048", "/tunnel"),
        ("/tunnel?ed=2048", "/tunnel?ed=0"),
        ("/tunnel?ed=2048", "/tunnel?ed=2048&a=b"),
        ("/tunnel", "/x/../tunnel"),  # a server in front may have let pass what begins with /x
    ],
)
def test_who_asks_for_another_path_does_not(path: str, asked: str) -> None:
    """CASES 305."""
    assert status_of(request(f"GET {asked} HTTP/1.1"), path) == 404


def test_our_own_log_learns_more_than_the_peer() -> None:
    error = refused(request(**{"X-Proxy-Target-Host": "a..b"}))
    assert b"characters or labels" not in encode_response(error)
    assert str(error).startswith("the target's host is not valid: ")
    assert "characters or labels" in str(error)


def test_a_page_in_a_browser_cannot_name_a_target() -> None:
    """CASES C86."""
    page = request(
        "GET /?X-Proxy-Target-Host=a&X-Proxy-Target-Port=80 HTTP/1.1",
        "Cookie: X-Proxy-Target-Host=a; X-Proxy-Target-Port=80",
        "Sec-WebSocket-Protocol: X-Proxy-Target-Host.a",
        "Origin: http://example.com",
        without="X-Proxy-Target-Host",
    )
    assert status_of(page) == 400


def test_another_path_is_not_found_whatever_is_asked_there() -> None:
    """DESIGN 1.5."""
    assert status_of(request("GET /other HTTP/1.1"), "/tunnel") == 404
    assert status_of(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "/tunnel") == 404
    assert status_of(request("GET /tunnel/ HTTP/1.1"), "/tunnel") == 404
    assert vet(request("GET /tunnel?a=b HTTP/1.1"), "/tunnel").key == KEY


def test_a_plain_get_is_told_to_upgrade_and_learns_nothing_else() -> None:
    """CASES C91."""
    error = refused(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert error.status == 426
    answer = encode_response(error)
    assert b"\r\nUpgrade: websocket\r\n" in answer
    assert b"\r\nConnection: Upgrade, close\r\n" in answer  # RFC 9110, section 7.8
    assert b"proxy" not in answer.lower()


NEEDLE = "needle"


@pytest.mark.parametrize(
    "head",
    [
        request(f"GET ws://{NEEDLE}/ HTTP/1.1"),
        request(f"{NEEDLE} / HTTP/1.1"),
        request(f"GET /{NEEDLE} HTTP/0.9"),
        request(f"GET / HTTP/1.1\r\n{NEEDLE}"),
        request(X_Proxy_Target_Host=f"{NEEDLE}/"),
        request(X_Proxy_Target_Port=NEEDLE),
        request(Sec_WebSocket_Key=NEEDLE),
        request(Upgrade=NEEDLE),
    ],
)
def test_an_answer_never_echoes_the_request(head: bytes) -> None:
    """CASES C90."""
    error = refused(head)
    assert NEEDLE.encode() not in encode_response(error)
    assert NEEDLE not in str(error)


# In any pieces.


@pytest.mark.parametrize("cut", range(len(request()) + 1))
def test_a_request_may_be_cut_at_any_byte(cut: int) -> None:
    data = request() + b"\x82\x00"
    buffer = HeadBuffer(request=True)
    buffer.feed(data[:cut])
    assert buffer.feed(data[cut:])
    assert vet_request(parse_request(buffer.head)).target == Address("target.example.com", 443)
    assert buffer.leftover == b"\x82\x00"
