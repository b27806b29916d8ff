"""The heads of an answer that is passed on (RFC 9110, section 7.6), in any pieces."""

from time import gmtime

import pytest

from proxy.errors import ProtocolError
from proxy.http import answers, heads
from proxy.http.answers import Answer
from proxy.http.heads import MAX_HEAD, ResponseHead, parse_response

DATE = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"  # RFC 9110, section 5.6.7
OK = b"HTTP/1.1 200 OK\r\n" + DATE
FROM_US = b"Via: 1.1 proxy-server\r\n"
LAST = FROM_US + b"Connection: close\r\n\r\n"


def passed_on(answer: bytes) -> bytes:
    """Pass an answer on in every way in which it can come in two pieces, and byte by byte."""
    pieces = [[answer[:cut], answer[cut:]] for cut in range(len(answer))]
    pieces.append([answer[n : n + 1] for n in range(len(answer))])
    results = set()
    for each in pieces:
        follower = Answer()
        results.add(b"".join(follower.take(piece) for piece in each) + follower.give_up())
    (result,) = results
    return result


@pytest.mark.parametrize(
    "line",
    [
        *(b"Connection: close", b"Connection: keep-alive", b"connection: Keep-Alive, Upgrade"),
        *(b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"Upgrade: h2c"),
    ],
)
def test_what_is_said_of_the_connection_to_the_server_is_not_passed_on(line: bytes) -> None:
    """RFC 9110, section 7.6.1."""
    answer = OK + b"A: b\r\n" + line + b"\r\nC: d\r\n\r\nbody"
    assert passed_on(answer) == OK + b"A: b\r\nC: d\r\n" + LAST + b"body"


def test_what_connection_names_is_not_passed_on() -> None:
    """RFC 9110, section 7.6.1."""
    answer = OK + b"X-Hop: 1\r\nConnection: x-hop, close\r\nX-End: 2\r\nx-HOP: 3\r\n\r\n"
    assert passed_on(answer) == OK + b"X-End: 2\r\n" + LAST


def test_a_date_that_connection_names_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110, sections 7.6.1 and 6.6.1: what it names goes, and an answer has a Date all the same."""
    monkeypatch.setattr(heads, "gmtime", lambda: gmtime(784111777))
    answer = b"HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2001 00:00:00 GMT\r\nConnection: date\r\n\r\n"
    assert passed_on(answer) == b"HTTP/1.1 200 OK\r\n" + FROM_US + DATE + b"Connection: close\r\n\r\n"


@pytest.mark.parametrize("line", [b"Content-Length: 4", b"Transfer-Encoding: chunked"])
def test_where_the_body_ends_is_passed_on_whatever_connection_says(line: bytes) -> None:
    answer = OK + b"Connection: content-length, transfer-encoding\r\n" + line + b"\r\n\r\n"
    assert passed_on(answer) == OK + line + b"\r\n" + LAST


def test_of_two_ways_to_tell_the_end_of_a_body_the_one_that_counts_is_passed_on() -> None:
    """RFC 9112, section 6.3: an intermediary MUST remove the Content-Length."""
    answer = OK + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert passed_on(answer) == OK + b"Transfer-Encoding: chunked\r\n" + LAST + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        *(b"Content-Length: 4\r\nContent-Length: 5", b"Content-Length: 4, 5", b"Content-Length: 4,"),
        *(b"Content-Length: -1", b"Content-Length: +4", b"Content-Length: four", b"Content-Length:"),
    ],
)
def test_an_answer_without_one_valid_length_is_not_passed_on(lines: bytes) -> None:
    """RFC 9112, section 6.3, item 5: a proxy MUST discard it."""
    follower = Answer()
    with pytest.raises(ProtocolError, match="an invalid Content-Length"):
        follower.take(OK + lines + b"\r\n\r\nfour")
    assert follower.in_head
    assert "error=http_protocol_error" in dict(follower.fault.headers)["Proxy-Status"]
    assert follower.fault.body == "the target's answer has an invalid Content-Length"


@pytest.mark.parametrize("lines", [b"Content-Length: 4\r\ncontent-length:  4", b"Content-Length: 4, 4"])
def test_a_length_that_is_repeated_is_passed_on_once(lines: bytes) -> None:
    """RFC 9110, section 8.6: a recipient MUST reject it, or replace it by a single one."""
    assert passed_on(OK + lines + b"\r\n\r\nfour") == OK + b"Content-Length: 4\r\n" + LAST + b"four"


def test_all_else_is_passed_on_in_its_order() -> None:
    """RFC 9110, section 5.3: lines of one field are in their order; section 7.6.3: so are those of Via."""
    lines = b"Set-Cookie: a=1\r\nVia: 1.0 fred\r\nSet-Cookie: b=2\r\nTrailer: X\r\nServer: \xfcber\r\n"
    assert passed_on(OK + lines + b"\r\n") == OK + lines + LAST


def test_the_version_is_ours_and_that_of_the_server_is_told_by_via() -> None:
    """RFC 9112, section 2.3: an intermediary MUST send its own; RFC 9110, section 7.6.3: the received one."""
    assert passed_on(b"HTTP/1.0 404\r\n" + DATE + b"\r\nno") == (
        b"HTTP/1.1 404\r\n" + DATE + b"Via: 1.0 proxy-server\r\nConnection: close\r\n\r\nno"
    )


def test_an_answer_without_a_date_gets_that_of_its_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110, section 6.6.1; interim answers need none."""
    monkeypatch.setattr(heads, "gmtime", lambda: gmtime(784111777))
    interim = b"HTTP/1.1 100 Continue\r\n"
    answer = interim + b"\r\nHTTP/1.1 200 OK\r\n\r\n"
    expected = interim + FROM_US + b"\r\nHTTP/1.1 200 OK\r\n" + FROM_US + DATE + b"Connection: close\r\n\r\n"
    assert passed_on(answer) == expected


def test_interim_answers_do_not_end_the_connection() -> None:
    """RFC 9110, section 15.2."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n"
    answer = interim + b"Connection: close\r\n\r\n" + b"HTTP/1.1 100 \r\n\r\n" + OK + b"\r\nbody"
    expected = interim + FROM_US + b"\r\n" + b"HTTP/1.1 100 \r\n" + FROM_US + b"\r\n" + OK + LAST + b"body"
    assert passed_on(answer) == expected


def test_a_client_that_knows_no_interim_answers_gets_none() -> None:
    """RFC 9110, section 15.2: a server MUST NOT send a 1xx to an HTTP/1.0 client."""
    follower = Answer(interim=False)
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"\r\nbody"
    assert b"".join(follower.take(answer[n : n + 1]) for n in range(len(answer))) == OK + LAST + b"body"


def test_a_body_that_looks_like_a_head_is_a_body() -> None:
    body = OK + b"Connection: keep-alive\r\n\r\n"
    assert passed_on(OK + b"\r\n" + body) == OK + LAST + body


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"hello", b"H", b"HTTP", b"HTTP/1.1 200 OK\r\nA: b\r\n", b"HTTP/0.9 200\r\n\r\nA: b\r\n\r\n"),
        b"ICY 200 OK\r\nConnection: close\r\n\r\n",
    ],
)
def test_what_is_no_such_head_goes_as_it_came(answer: bytes) -> None:
    assert passed_on(answer) == answer


@pytest.mark.parametrize(
    ("sloppy", "strict"),
    [
        # RFC 9112, section 5.1: a proxy MUST remove any such whitespace from a response.
        (b"A : b\r\nSet-Cookie \t: c=d : e\r\n", b"A: b\r\nSet-Cookie: c=d : e\r\n"),
        # Section 5.2: it MUST replace each fold by blanks, or answer 502.
        (b"A: b\r\n c\r\n\t \td : e\r\nF: g\r\n", b"A: b c d : e\r\nF: g\r\n"),
        # Section 2.2: a recipient may take a single LF for a line end.
        (b"A: b\nC: d\n", b"A: b\r\nC: d\r\n"),
        (b"A: b\nC: d\n e\r\n", b"A: b\r\nC: d e\r\n"),
        # Mended before they are looked at.
        (b"Connection :\r\n x\r\nX\t: y\r\nKeep-Alive : z\r\n", b""),
    ],
)
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_sloppy_head_is_passed_on_as_a_strict_one(sloppy: bytes, strict: bytes, end: bytes) -> None:
    assert passed_on(OK + sloppy + end + b"body") == OK + strict + LAST + b"body"


def test_a_status_that_is_none_is_passed_on() -> None:
    """RFC 9110, section 15: a client is to take it for a 500."""
    assert passed_on(OK.replace(b"200", b"999") + b"\r\n") == OK.replace(b"200", b"999") + LAST


@pytest.mark.parametrize(
    "head",
    [
        *(b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nno field\r\n\r\n"),
        *(OK + b"A B: c\r\n\r\n", OK + b": c\r\n\r\n", OK + b"A: \0\r\n\r\n", OK + b"A: b\rC: d\r\n\r\n"),
        # RFC 9112, section 2.2: what is folded behind the first line MUST be rejected or left out.
        b"HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
    ],
)
def test_a_head_that_cannot_be_mended_is_not_passed_on(head: bytes) -> None:
    follower = Answer()
    with pytest.raises(ProtocolError, match="a malformed head"):
        follower.take(head + b"body")
    assert "error=http_protocol_error" in dict(follower.fault.headers)["Proxy-Status"]


def test_a_switch_that_was_not_asked_for_is_not_passed_on() -> None:
    """RFC 9110, section 7.8: no server may do that, and what the client says then would reach nobody."""
    follower = Answer()
    with pytest.raises(ProtocolError, match="switches protocols"):
        follower.take(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nbytes")
    assert "error=http_protocol_error" in dict(follower.fault.headers)["Proxy-Status"]


def test_what_was_no_head_is_not_kept() -> None:
    """Else a client would wait for a line that never ends."""
    follower = Answer()
    assert follower.take(b"hello") == b"hello"
    assert not follower.in_head


def test_a_head_without_an_end_is_kept_within_bounds() -> None:
    follower, line = Answer(), b"A: " + b"a" * 1000 + b"\r\n"
    assert follower.take(OK + line * (MAX_HEAD // len(line) - 1)) == b""
    with pytest.raises(ProtocolError, match="too large"):
        follower.take(2 * line)
    # RFC 9209, section 2.3.
    assert "error=http_response_header_section_size" in dict(follower.fault.headers)["Proxy-Status"]


@pytest.mark.parametrize("line", [b"a:\r\n", b"a:\n", b" \n"])
def test_a_head_of_thousands_of_lines_is_not_read(monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    """Nobody else is served meanwhile."""
    monkeypatch.setattr(answers, "parse_response", None)
    with pytest.raises(ProtocolError, match="too large"):
        Answer().take(OK + line * 5000 + b"\r\n")


def test_a_head_of_long_and_many_lines_is_passed_on() -> None:
    """Some sites say much in cookies and policies, and browsers take a quarter of a megabyte."""
    lines = b"Content-Security-Policy: " + b"a" * 20_000 + b"\r\n" + b"Set-Cookie: a=b\r\n" * 200
    assert Answer().take(OK + lines + b"\r\nbody") == OK + lines + LAST + b"body"


@pytest.mark.parametrize("interim", [True, False])
def test_thousands_of_heads_in_one_read_are_not_all_read(
    monkeypatch: pytest.MonkeyPatch, *, interim: bool
) -> None:
    """Nobody else is served meanwhile. What is counted is work, which is the same on a busy machine."""
    read: list[bytes] = []

    def parse(head: bytes) -> ResponseHead:
        read.append(head)
        return parse_response(head)

    monkeypatch.setattr(answers, "parse_response", parse)
    follower = Answer(interim=interim)
    piece = b"HTTP/1.1 100\r\n\r\n" * 4096
    with pytest.raises(ProtocolError, match="one interim head after the other"):
        follower.take(piece)
    assert len(read) < 100


def test_heads_that_come_one_by_one_are_all_read() -> None:
    """A server may show for hours that it is still at work (RFC 2518, section 10.1)."""
    follower, interim = Answer(), b"HTTP/1.1 102 Processing\r\n"
    for _ in range(1000):
        assert follower.take(interim + b"\r\n") == interim + FROM_US + b"\r\n"
    assert follower.take(OK + b"\r\n") == OK + LAST
