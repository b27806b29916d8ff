"""What an HTTP proxy is asked for, and what it passes on of it."""

import pytest

from proxy.errors import ProtocolError
from proxy.http.heads import HttpError, parse_request
from proxy.http.requests import ProxyRequest, vet_proxy_request


def vetted(first: str, *lines: str) -> ProxyRequest:
    return vet_proxy_request(parse_request("\r\n".join([first, *lines, "", ""]).encode("latin-1")))


def passed_on(first: str, *lines: str) -> list[str]:
    """Give the lines of the head that goes to the target."""
    head = vetted(first, *lines).head.decode("latin-1")
    assert head.endswith("\r\n\r\n")
    return head.removesuffix("\r\n\r\n").split("\r\n")


@pytest.mark.parametrize(
    ("authority", "target"),
    [
        ("example.com:443", "example.com:443"),
        ("192.0.2.7:22", "192.0.2.7:22"),
        ("[2001:db8::7]:22", "[2001:db8::7]:22"),
        ("EXAMPLE.com:0443", "example.com:443"),
    ],
)
def test_connect_asks_for_a_tunnel(authority: str, target: str) -> None:
    """RFC 9112, section 3.2.3."""
    request = vetted(f"CONNECT {authority} HTTP/1.1", "Host: whatever.example")
    assert str(request.target) == target
    assert not request.head
    assert request.credentials is None


def test_options_of_the_proxy_itself_ask_for_a_sign_of_life() -> None:
    """RFC 9110, section 9.3.7."""
    with pytest.raises(HttpError) as caught:
        vetted("OPTIONS * HTTP/1.1", "Host: proxy.example:8080")
    assert caught.value.is_answer
    with pytest.raises(HttpError) as caught:
        vetted("GET * HTTP/1.1", "Host: proxy.example:8080")
    assert not caught.value.is_answer


def test_connect_may_be_http_1_0_without_a_host() -> None:
    """As nc, corkscrew and ncat write it."""
    assert str(vetted("CONNECT example.com:22 HTTP/1.0").target) == "example.com:22"


@pytest.mark.parametrize(
    "authority",
    [
        *("example.com", "example.com:", ":443", "example.com:0", "example.com:65536", "example.com:443x"),
        *("::1:22", "[::1:22", "http://example.com:443", "a@example.com:443", "example.com:443/", "*"),
    ],
)
def test_connect_to_what_is_no_host_and_port_is_malformed(authority: str) -> None:
    """RFC 9110, section 9.3.6."""
    with pytest.raises(HttpError) as caught:
        _ = vetted(f"CONNECT {authority} HTTP/1.1", "Host: x").target
    assert caught.value.status == 400


@pytest.mark.parametrize("line", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_connect_has_no_body(line: str) -> None:
    """RFC 9110, section 9.3.6."""
    with pytest.raises(HttpError):
        vetted("CONNECT example.com:443 HTTP/1.1", "Host: x", line)


@pytest.mark.parametrize(
    ("url", "target", "path"),
    [
        ("http://example.com", "example.com:80", "/"),
        ("http://example.com/a/b?c=d", "example.com:80", "/a/b?c=d"),
        ("HTTP://example.com:8080?c", "example.com:8080", "/?c"),
        ("http://example.com:/", "example.com:80", "/"),
        ("http://[::1]:81/%20//..", "[::1]:81", "/%20//.."),
    ],
)
def test_an_absolute_form_is_passed_on_with_its_path_alone(url: str, target: str, path: str) -> None:
    """RFC 9112, section 3.2.2; RFC 9110, section 4.2.1: an empty port is the default one."""
    request = vetted(f"GET {url} HTTP/1.1", "Host: whatever.example")
    assert str(request.target) == target
    assert request.head.startswith(f"GET {path} HTTP/1.1\r\n".encode())


def test_the_host_of_the_url_wins() -> None:
    """RFC 9112, section 3.2.2."""
    lines = passed_on("GET http://a.example:81/ HTTP/1.1", "Host: b.example")
    assert lines[:2] == ["GET / HTTP/1.1", "Host: a.example:81"]
    assert [line for line in lines if line.lower().startswith("host:")] == ["Host: a.example:81"]


def test_what_is_between_client_and_proxy_is_not_passed_on() -> None:
    """RFC 9110, section 7.6.1; and what is for us never reaches a target."""
    lines = passed_on(
        "POST http://a.example/ HTTP/1.1",
        "Host: a.example",
        "Proxy-Authorization: Basic dTpw",
        "proxy-connection: keep-alive",
        "X-Proxy-Password: secret",
        "Connection: keep-alive, X-Mine",
        "x-mine: hop by hop",
        "Keep-Alive: 300",
        "TE: trailers",
        "Upgrade: h2c",
        "Content-Length: 5",
        "Cookie: a=b",
        "Cookie: c=d",
    )
    assert lines == [
        "POST / HTTP/1.1",
        "Host: a.example",
        "Content-Length: 5",
        "Cookie: a=b",
        "Cookie: c=d",
        "Via: 1.1 proxy-server",
        "Connection: close",
    ]


@pytest.mark.parametrize("named", ["Host", "content-length", "x, Transfer-Encoding"])
def test_a_connection_header_takes_nothing_away_that_delimits_or_routes(named: str) -> None:
    """RFC 9110, section 7.6.1: it must not name a field that is meant for all recipients."""
    with pytest.raises(HttpError):
        vetted("POST http://a.example/ HTTP/1.1", "Host: a", "Content-Length: 1", f"Connection: {named}")


def test_http_1_0_stays_what_it_is() -> None:
    """RFC 9112, section 6.1: who speaks 1.0 knows no chunks, so nobody may answer in them."""
    lines = passed_on("GET http://a.example/ HTTP/1.0")
    assert lines[0] == "GET / HTTP/1.0"
    assert "Via: 1.0 proxy-server" in lines


def test_options_for_the_server_as_a_whole() -> None:
    """RFC 9112, section 3.2.4; RFC 9110, section 7.6.2."""
    lines = passed_on("OPTIONS http://a.example HTTP/1.1", "Host: a.example", "Max-Forwards: 10")
    assert lines[0] == "OPTIONS * HTTP/1.1"
    assert "Max-Forwards: 9" in lines


@pytest.mark.parametrize(
    ("first", "status"),
    [
        ("GET / HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("GET example.com/ HTTP/1.1", 400),
        ("GET http:///path HTTP/1.1", 400),
        ("GET http://u:p@example.com/ HTTP/1.1", 400),
        ("GET http://example.com/#fragment HTTP/1.1", 400),
        ("GET http://example.com:99999/ HTTP/1.1", 400),
        ("GET https://example.com/ HTTP/1.1", 501),
        ("GET ftp://example.com/ HTTP/1.1", 501),
        ("TRACE http://example.com/ HTTP/1.1", 501),
    ],
)
def test_anything_else_is_refused(first: str, status: int) -> None:
    """DESIGN 1.9; RFC 9110, sections 4.2.4 and 9.3.8."""
    with pytest.raises(HttpError) as caught:
        vetted(first, "Host: example.com")
    assert caught.value.status == status


@pytest.mark.parametrize("value", ["0", "00", "x", "-1", ""])
def test_options_that_may_go_no_further_ends_here(value: str) -> None:
    """RFC 9110, section 7.6.2."""
    with pytest.raises(HttpError):
        vetted("OPTIONS http://a.example/ HTTP/1.1", "Host: a.example", f"Max-Forwards: {value}")


@pytest.mark.parametrize("first", ["CONNECT a.example:1 HTTP/1.1", "GET http://a.example/ HTTP/1.1"])
@pytest.mark.parametrize(
    "lines", [[], ["Host: a", "Host: b"], ["Host: a b"]], ids=["none", "two", "none that is one"]
)
def test_there_is_one_host_header(first: str, lines: list[str]) -> None:
    """RFC 9112, section 3.2."""
    with pytest.raises(HttpError) as caught:
        vetted(first, *lines)
    assert caught.value.status == 400


def test_a_host_is_looked_at_when_it_is_wanted() -> None:
    """It takes more time than all the rest, which a login comes before."""
    request = vetted("GET http://-.example/ HTTP/1.1", "Host: x")
    with pytest.raises(ProtocolError):
        _ = request.target


def test_a_repr_shows_no_secret() -> None:
    login = "Proxy-Authorization: Basic dTpw"
    request = vetted("GET http://a.example/?token=s3cret HTTP/1.1", "Host: x", login)
    assert request.credentials == (b"u", b"p")
    assert "b'p'" not in repr(request)
    assert "s3cret" not in repr(request)
