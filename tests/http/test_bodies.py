"""Where the body of a request ends, in any pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http.bodies import Body, Chunked, Sized, body_of
from proxy.http.heads import Headers, HttpError

BEHIND = b"GET http://other.example/ HTTP/1.1\r\nProxy-Authorization: Basic dTpw\r\n\r\n"

# RFC 9112, section 7.1, written down by its grammar: a size in hexadecimal, maybe with extensions.
SIZES, EXTENSIONS = st.sampled_from(["%x", "%X", "00%x"]), st.sampled_from(["", ";a=b", ' ; q="x"'])
CHUNK = st.tuples(st.binary(min_size=1, max_size=300), SIZES, EXTENSIONS)
TRAILERS = st.lists(st.sampled_from([b"Expires: never\r\n", b"X: \r\n"]), max_size=3).map(b"".join)


def take(body: Body, data: bytes, cuts: list[int]) -> int:
    """Feed a body in pieces, and tell how much of the data it took."""
    taken = 0
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        piece = data[begin:end]
        count = body.take(memoryview(piece), 1 << 30)
        taken += count
        if count < len(piece):
            break
    return taken


def cuts_of(draw: st.DataObject, size: int) -> list[int]:
    return sorted(draw.draw(st.lists(st.integers(0, size), max_size=8)))


@given(st.data(), st.lists(CHUNK, max_size=5), TRAILERS)
def test_a_chunked_body_ends_where_its_grammar_says(
    data: st.DataObject, chunks: list[tuple[bytes, str, str]], trailers: bytes
) -> None:
    """RFC 9112, section 7.1, whatever the pieces are in which it comes."""
    encoded = b""
    for chunk, form, extension in chunks:
        encoded += (form % len(chunk) + extension).encode() + b"\r\n" + chunk + b"\r\n"
    encoded += b"0\r\n" + trailers + b"\r\n"
    body = Chunked()
    assert take(body, encoded + BEHIND, cuts_of(data, len(encoded + BEHIND))) == len(encoded)
    assert body.is_over


@given(st.data(), st.integers(0, 500))
def test_a_body_with_a_length_has_that_length(data: st.DataObject, size: int) -> None:
    """RFC 9112, section 6.2."""
    body = Sized(size)
    assert body.is_over is (size == 0)
    assert take(body, b"b" * size + BEHIND, cuts_of(data, size + len(BEHIND))) == size
    assert body.is_over


@pytest.mark.parametrize(
    "encoded",
    [
        *(b"\r\n", b"5\n12345\r\n", b"5 5\r\n", b"0x5\r\n", b"-1\r\n", b"+1\r\n", b"g\r\n", b"5\r12345\r\n"),
        *(b"1" * 16 + b"\r\n", b"5;a\x00b\r\n", b"5\r\n123456\r\n", b"5\r\n12345\n", b"5\r\n12345\r\r\n"),
        *(b"0\r\nno colon\r\n", b"0\r\n folded: x\r\n", b"0\r\nX: a\n\r\n", b"0\r\n" + b"X: a\r\n" * 101),
        b"5;a=" + b"x" * 9000,
    ],
)  # fmt: skip
def test_a_chunked_body_that_two_readers_could_take_differently_is_malformed(encoded: bytes) -> None:
    """RFC 9112, section 7.1."""
    for size in (1, 7, len(encoded)):
        body = Chunked()
        with pytest.raises(HttpError):
            take(body, encoded, list(range(size, len(encoded), size)))
        assert not body.is_over


@given(st.data(), st.lists(CHUNK, max_size=5), TRAILERS, st.integers(1, 5))
def test_so_many_lines_at_a_time_come_to_the_same_end(
    data: st.DataObject, chunks: list[tuple[bytes, str, str]], trailers: bytes, most: int
) -> None:
    encoded = b"".join((form % len(chunk)).encode() + b"\r\n" + chunk + b"\r\n" for chunk, form, _ in chunks)
    encoded += b"0\r\n" + trailers + b"\r\n"
    left = memoryview(encoded + BEHIND)
    body = Chunked()
    while not body.is_over:
        taken = body.take(left, most)
        assert taken > 0
        assert body.lines <= most
        left = left[taken:]
    assert bytes(left) == BEHIND


@pytest.mark.parametrize("name", [b"Proxy-Authorization", b"X-Proxy-Password", b"proxy-status"])
def test_no_trailer_carries_what_is_for_the_proxy(name: bytes) -> None:
    with pytest.raises(HttpError):
        Chunked().take(b"0\r\n" + name + b": x\r\n\r\n", 10)


def body_for(*fields: tuple[str, str], version: str = "HTTP/1.1") -> Body:
    return body_of(Headers(fields), version)


def test_a_request_says_how_its_body_is_delimited() -> None:
    """RFC 9112, section 6.3: without a length and a coding there is none."""
    assert body_for().is_over
    assert body_for(("Content-Length", "0")).is_over
    assert body_for(("Content-Length", "10")).take(b"x" * 20, 1) == 10
    assert isinstance(body_for(("Transfer-Encoding", "Chunked")), Chunked)


@pytest.mark.parametrize(
    "fields",
    [
        [("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
        [("Content-Length", "5"), ("Content-Length", "5")],
        [("Content-Length", "5, 5")],
        [("Content-Length", "+5")],
        [("Content-Length", "-5")],
        [("Content-Length", "5 5")],
        [("Content-Length", "")],
        [("Content-Length", "0x5")],
        [("Content-Length", "٥")],
        [("Content-Length", "1" * 19)],
        [("Transfer-Encoding", "gzip")],
        [("Transfer-Encoding", "chunked, gzip")],
        [("Transfer-Encoding", "chunked, gzip, chunked")],
        [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "chunked;q=1")],
        [("Transfer-Encoding", "identity")],
        [("Transfer-Encoding", "\x0bchunked")],
    ],
    ids=str,
)
def test_what_two_readers_could_delimit_differently_is_malformed(fields: list[tuple[str, str]]) -> None:
    """RFC 9112, sections 6.1 and 6.3: what request smuggling is made of."""
    with pytest.raises(HttpError) as caught:
        body_for(*fields)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "fields",
    [
        [("Transfer-Encoding", "gzip, chunked")],
        [("Transfer-Encoding", "x-unknown"), ("Transfer-Encoding", "Chunked")],
    ],
)
def test_a_coding_that_is_not_known_is_not_implemented(fields: list[tuple[str, str]]) -> None:
    """RFC 9112, section 6.1."""
    with pytest.raises(HttpError) as caught:
        body_for(*fields)
    assert caught.value.status == 501


def test_http_1_0_knows_no_chunks() -> None:
    """RFC 9112, section 6.1."""
    with pytest.raises(HttpError):
        body_for(("Transfer-Encoding", "chunked"), version="HTTP/1.0")
