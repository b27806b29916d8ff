"""Heads of messages: what is taken of them, and what is refused, in any pieces."""

from collections import deque
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import ProtocolError
from proxy.http.heads import (
    HeadBuffer,
    HttpError,
    parse_request,
    parse_response,
    reason_phrase,
    vet_host,
)

REQUEST = b"GET /chat HTTP/1.1\r\nHost: server.example.com\r\nA: b\r\n\r\n"

# Bytes that look like HTTP, and go wrong in the places where parsers do.
SHARDS = st.sampled_from(
    [
        *(b"GET / HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n", b"\r", b"\n", b":", b" ", b"\t", b"\0", b"A"),
        *(b"\xff", b"Content-Length: 80\r\n", b"a" * 8200, (b"A: b" + b"b" * 60 + b"\r\n") * 99),
    ]
)
BYTES = st.lists(SHARDS | st.binary(max_size=20), max_size=12).map(b"".join)


def outcome(pieces: list[bytes]) -> tuple[object, ...]:
    """Tell what becomes of a request that comes in these pieces."""
    buffer = HeadBuffer(request=True)
    try:
        for piece in pieces:
            buffer.feed(piece)
        if not buffer.head:
            return (None,)
        head = parse_request(buffer.head)
        return head.method, head.target, head.version, list(head.headers.fields), buffer.leftover
    except HttpError as error:
        return error.status, str(error)


def test_a_head_is_its_first_line_and_its_fields() -> None:
    """RFC 9112, sections 3 and 5; lines of one field are in their order (RFC 9110, section 5.3)."""
    head = parse_request(b"GET /a?b HTTP/1.1\r\nHost: x\r\nVia: \tone \r\nVIA: two, Three\r\n\r\n")
    assert (head.method, head.target, head.version) == ("GET", "/a?b", "HTTP/1.1")
    assert head.headers.get_all("via") == ["one", "two, Three"]
    assert head.headers.tokens("Via") == {"one", "two", "three"}
    assert head.headers.get("Age") is None
    with pytest.raises(HttpError):
        head.headers.get("Via")


@pytest.mark.parametrize(
    "line",
    [
        *(b"GET /", b"PRI * HTTP/2.0", b"garbage", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET / http/1.1"),
        *(b"GET /a b HTTP/1.1", b"GET /\xe9 HTTP/1.1", b"GET / HTTP/1", b"GET\t/ HTTP/1.1", b"SSH-2.0-x"),
    ],
)
def test_a_bad_request_line_is_refused_before_the_head_is_complete(line: bytes) -> None:
    """CASES C70."""
    with pytest.raises(HttpError) as caught:
        HeadBuffer(request=True).feed(line + b"\r\n")
    assert caught.value.status == 400


@pytest.mark.parametrize("first", [b"\x16\x03\x01", b"\x05\x01\x00", b" GET", b"\n", b"\xff", b"\x00"])
def test_what_is_no_http_is_refused_at_its_first_byte(first: bytes) -> None:
    """CASES C70, C79."""
    with pytest.raises(HttpError) as caught:
        HeadBuffer(request=True).feed(first[:1])
    assert caught.value.status == 400


def test_an_empty_line_before_a_request_is_ignored() -> None:
    """RFC 9112, section 2.2: at least one, which some clients send behind a body."""
    request = b"\r\n" + REQUEST + b"\r\nbehind"
    expected = outcome([REQUEST + b"\r\nbehind"])
    assert expected[0] == "GET"
    assert all(outcome([request[:cut], request[cut:]]) == expected for cut in range(len(request)))
    assert outcome([bytes([byte]) for byte in request]) == expected


@pytest.mark.parametrize("first", [b"\r", b"\r\n"])
def test_an_empty_line_alone_is_no_fault_yet(first: bytes) -> None:
    assert not HeadBuffer(request=True).feed(first)


@pytest.mark.parametrize("start", [b"\r\n\r\n", b"\r\n\x16", b"\rG", b"\r\r", b"\n"])
def test_what_is_no_http_behind_an_empty_line_is_refused(start: bytes) -> None:
    buffer = HeadBuffer(request=True)
    with pytest.raises(HttpError, match="not HTTP"):
        deque(map(buffer.feed, [start[:1], start[1:]]), 0)


def test_no_empty_line_comes_before_an_answer() -> None:
    with pytest.raises(HttpError, match="not HTTP"):
        HeadBuffer(request=False).feed(b"\r\n")


@pytest.mark.parametrize(
    ("status", "phrase"),
    [
        (400, "Bad Request"),
        (413, "Content Too Large"),
        (414, "URI Too Long"),
        (422, "Unprocessable Content"),
        (502, "Bad Gateway"),
        (503, "Service Unavailable"),
    ],
)
def test_a_status_has_its_name_of_today(status: int, phrase: str) -> None:
    """RFC 9110, section 15; Python before 3.13 has older ones."""
    assert reason_phrase(status) == phrase


@pytest.mark.parametrize(
    ("start", "status"), [(b"G", 414), (b"GET / HTTP/1.1\r\nA", 431), (b"GET / HTTP/1.1\r\nA: ", 431)]
)
def test_a_line_without_end_is_cut_off(start: bytes, status: int) -> None:
    """CASES C78."""
    buffer = HeadBuffer(request=True)
    assert not buffer.feed(start)
    for _ in range(7):
        assert not buffer.feed(b"a" * 1024)
    assert not buffer.feed(b"a" * 1000)
    with pytest.raises(HttpError) as caught:
        buffer.feed(b"a" * 27)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "bad",
    [
        b"GET / HTTP/1.1\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\x7f\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\n: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nH\xf6st: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\tfolded\r\n\r\n",
    ],
)
def test_bad_syntax_is_refused(bad: bytes) -> None:
    """CASES C79."""
    assert outcome([bad])[0] == 400


@pytest.mark.parametrize("bad", [b"A: b\nC: d", b"A: b\0", b"A: b\rC: d", b"A: b\r\n\r\nC: d"])
def test_the_parser_alone_is_as_strict(bad: bytes) -> None:
    """CASES C79."""
    with pytest.raises(HttpError):
        parse_request(b"GET / HTTP/1.1\r\n" + bad + b"\r\n\r\n")


def test_what_is_wrong_does_not_depend_on_the_pieces() -> None:
    data = b"GET / HTTP/1.1\r\n" + b"a" * 8500 + b"\0"
    assert outcome([data]) == outcome([bytes([byte]) for byte in data])


@pytest.mark.parametrize("bad", [b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r\nA\0", b"GET / HTTP/1.1\r\nA: b\rc"])
def test_a_bad_character_is_refused_before_the_head_is_complete(bad: bytes) -> None:
    """CASES C79."""
    buffer = HeadBuffer(request=True)
    assert not buffer.feed(bad[:-1])
    with pytest.raises(HttpError):
        buffer.feed(bad[-1:])


def test_what_is_glued_to_the_head_is_left_over() -> None:
    """CASES C82, C83."""
    buffer = HeadBuffer(request=True)
    glued = b"\x82\x80\0\0\0\0\r\n\r\nGET / HTTP/1.1\r\n\n"
    assert buffer.feed(REQUEST + glued)
    assert (buffer.head, buffer.leftover) == (REQUEST, glued)
    assert buffer.feed(b"more")
    assert buffer.leftover == glued + b"more"


@pytest.mark.parametrize("cut", range(len(REQUEST) + 1))
def test_a_request_may_be_cut_at_any_byte(cut: int) -> None:
    data = REQUEST + b"\x82\x00"
    assert outcome([data[:cut], data[cut:]]) == outcome([data])
    assert outcome([data])[-1] == b"\x82\x00"


@given(data=BYTES | BYTES.map(lambda tail: b"GET / HTTP/1.1\r\n" + tail), cuts=st.lists(st.integers(0, 9000)))
@example(data=b"\r\n\r\n", cuts=[1])
def test_any_bytes_mean_the_same_in_any_pieces(data: bytes, cuts: list[int] | list[Any]) -> None:
    """Only an HttpError may come out: ``outcome`` catches no other."""
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    assert outcome([data[a:b] for a, b in pairwise(ends)]) == outcome([data])


@given(data=st.binary(max_size=300) | BYTES)
def test_a_parser_raises_only_its_own_error(data: bytes) -> None:
    for parse in (parse_request, parse_response):
        for head in (data, data + b"\r\n\r\n"):
            try:
                parse(head)
            except ProtocolError:
                pass


def test_reads_the_answer_of_the_rfc() -> None:
    """RFC 6455, section 1.3."""
    head = parse_response(
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"\r\n"
    )
    assert head.status == 101
    assert head.headers.tokens("connection") == {"upgrade"}
    assert head.headers.get("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("line", ["HTTP/1.0 502 Bad Gateway", "HTTP/1.1 502 ", "HTTP/1.1 502"])
def test_a_status_line_of_either_version_is_read(line: str) -> None:
    assert parse_response(f"{line}\r\n\r\n".encode()).status == 502


@pytest.mark.parametrize(
    "line", ["HTTP/2 200 OK", "HTTP/1.1 99 x", "HTTP/1.1 1010 x", "HTTP/1.1 000 x", "Hi"]
)
def test_a_bad_status_line_is_refused_before_the_head_is_complete(line: str) -> None:
    with pytest.raises(ProtocolError):
        HeadBuffer(request=False).feed(f"{line}\r\n".encode())


def test_a_response_is_refused_at_its_first_byte() -> None:
    with pytest.raises(ProtocolError):
        HeadBuffer(request=False).feed(b"S")


def test_a_response_is_collected_like_a_request() -> None:
    buffer = HeadBuffer(request=False)
    assert not buffer.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: web")
    assert buffer.feed(b"socket\r\n\r\n\x82\x00")
    assert buffer.leftover == b"\x82\x00"
    assert parse_response(buffer.head).headers.tokens("Upgrade") == {"websocket"}


# RFC 9110, section 7.2: uri-host [ ":" port ], of which either may be empty (RFC 3986, section 3.2).
HOSTS = [
    "a.example",
    "a_b.example:80",
    "192.0.2.7:",
    "[2001:db8::1]:8080",
    "[v1.x:y]",
    "xn--b.example",
    "a%C3%BC",
    "",
]
NO_HOSTS = [
    "a b",
    "a/b",
    "u@a",
    "a:b",
    "a:80:80",
    "::1",
    "[::1",
    "[]",
    "a?",
    "a#",
    "a%",
    "a%g0",
    "\xfc",
    '"a"',
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_header_that_can_be_right_is_taken(host: str) -> None:
    vet_host(parse_request(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_host_header_that_cannot_be_right_is_refused(host: str, version: str) -> None:
    """RFC 9112, section 3.2: a server MUST answer 400 to a Host with an invalid value."""
    with pytest.raises(HttpError) as caught:
        vet_host(parse_request(f"GET / HTTP/{version}\r\nHost: {host}\r\n\r\n".encode("latin-1")))
    assert caught.value.status == 400
