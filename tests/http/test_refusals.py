"""How a failure is told in HTTP, and read back."""

import io
import socket
import time
from http.client import HTTPResponse
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Failure
from proxy.http import heads
from proxy.http.heads import ResponseHead, parse_response
from proxy.http.refusals import encode_response, failure_reported, refusal


def read_by_http_client(data: bytes) -> tuple[HTTPResponse, bytes]:
    """Read an answer with the independent implementation."""

    class Wire:
        def makefile(self, *_: object) -> io.BytesIO:
            return io.BytesIO(data)

    response = HTTPResponse(cast(socket.socket, Wire()))
    response.begin()
    return response, response.read()


# The top table of CASES, and RFC 9209, section 2.3, for the names.
TABLE = [
    (Failure.MALFORMED, 400, "proxy-server; error=http_request_error"),
    (Failure.CREDENTIALS, 401, None),
    (Failure.NOT_ALLOWED, 403, "proxy-server; error=destination_ip_prohibited"),
    (
        Failure.NETWORK_UNREACHABLE,
        502,
        'proxy-server; error=destination_ip_unroutable; details="network unreachable"',
    ),
    (
        Failure.HOST_UNREACHABLE,
        502,
        'proxy-server; error=destination_ip_unroutable; details="host unreachable"',
    ),
    (Failure.NAME_NOT_FOUND, 502, "proxy-server; error=dns_error"),
    (Failure.NAME_TIMED_OUT, 504, "proxy-server; error=dns_timeout"),
    (Failure.REFUSED, 502, "proxy-server; error=connection_refused"),
    (Failure.TIMED_OUT, 504, "proxy-server; error=connection_timeout"),
    (
        Failure.UNSUPPORTED_COMMAND,
        400,
        'proxy-server; error=http_request_error; details="command not supported"',
    ),
    (
        Failure.UNSUPPORTED_ADDRESS,
        400,
        'proxy-server; error=http_request_error; details="address type not supported"',
    ),
    (Failure.LIMIT, 503, "proxy-server; error=connection_limit_reached"),
    (Failure.TOO_MANY, 429, 'proxy-server; error=connection_limit_reached; details="too many requests"'),
    (Failure.UPSTREAM, 502, 'proxy-server; error=proxy_internal_error; details="upstream proxy failed"'),
    (Failure.GENERAL, 502, "proxy-server; error=proxy_internal_error"),
]


def test_the_table_has_every_failure() -> None:
    assert {failure for failure, _, _ in TABLE} == set(Failure)


@pytest.mark.parametrize(("failure", "status", "proxy_status"), TABLE)
def test_a_refusal_says_the_cause(failure: Failure, status: int, proxy_status: str | None) -> None:
    """CASES C92."""
    error = refusal(failure)
    response, body = read_by_http_client(encode_response(error))
    assert (response.status, response.getheader("Proxy-Status")) == (status, proxy_status)
    assert response.getheader("Connection") == "close"
    assert response.getheader("Content-Type", "").startswith("text/plain")
    assert body.decode().splitlines() == [failure.value]
    assert error.failure is failure


def test_a_refusal_has_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110, section 6.6.1, in the form and with the example of section 5.6.7."""
    monkeypatch.setattr(heads, "gmtime", lambda: time.gmtime(784111777))
    response, _ = read_by_http_client(encode_response(refusal(Failure.NOT_ALLOWED)))
    assert response.getheader("Date") == "Sun, 06 Nov 1994 08:49:37 GMT"


def test_a_refusal_says_what_to_do_next() -> None:
    """RFC 9110, sections 10.2.3 and 11.6.1."""
    response, _ = read_by_http_client(encode_response(refusal(Failure.LIMIT)))
    assert response.getheader("Retry-After") == "1"
    response, _ = read_by_http_client(encode_response(refusal(Failure.TOO_MANY, 11.2)))
    assert response.getheader("Retry-After") == "12"  # whole seconds, and no time too early
    response, _ = read_by_http_client(encode_response(refusal(Failure.CREDENTIALS)))
    assert response.status == 401
    assert response.getheader("WWW-Authenticate", "").startswith("X-Proxy ")


def response(status: int, *lines: str) -> ResponseHead:
    head = "\r\n".join([f"HTTP/1.1 {status} x", *lines, "", ""]).encode()
    return parse_response(head)


@pytest.mark.parametrize(("failure", "status", "proxy_status"), TABLE)
def test_the_next_proxy_learns_the_true_cause(
    failure: Failure, status: int, proxy_status: str | None
) -> None:
    """CASES, the last row of the top table, and 371; no error stands for refused credentials."""
    expected = (failure, True) if proxy_status else (Failure.UPSTREAM, False)
    answer = response(status, *([f"Proxy-Status: {proxy_status}"] if proxy_status else []))
    assert failure_reported(answer) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # RFC 9209, section 2: the first member is the one closest to the origin.
        ("proxy-server; error=connection_refused, ExampleCDN", (Failure.REFUSED, True)),
        ("ExampleCDN, proxy-server; error=connection_refused", (Failure.REFUSED, True)),
        (
            "proxy-server;error=dns_error, proxy-server;error=connection_timeout",
            (Failure.NAME_NOT_FOUND, True),
        ),
        ('"proxy-server"; error="dns_error"', (Failure.NAME_NOT_FOUND, True)),
        ('a, "proxy-server"; error=dns_error', (Failure.NAME_NOT_FOUND, True)),
        ('proxy-server; details="a; error=x, \\"b"; error=dns_error; n=1', (Failure.NAME_NOT_FOUND, True)),
        ("proxy-server; error=destination_ip_unroutable", (Failure.HOST_UNREACHABLE, True)),
        ('proxy-server; error=destination_ip_unroutable; details="else"', (Failure.HOST_UNREACHABLE, True)),
        # From another make, for whom the upstream may be the target: section 2.1.1, the first example.
        ("ExampleCDN; error=connection_timeout", (Failure.TIMED_OUT, False)),
        ("ExampleCDN; error=http_request_denied", (Failure.NOT_ALLOWED, False)),
        # Nothing in it about the target: by the status, which is 502.
        ("revproxy1.example.net, ExampleCDN", (Failure.UPSTREAM, False)),
        ("proxy-server; error=tls_certificate_error", (Failure.UPSTREAM, False)),
        ("proxy-server; error", (Failure.UPSTREAM, False)),
        ('proxy-server; error="', (Failure.UPSTREAM, False)),
        (',;="\\', (Failure.UPSTREAM, False)),
        ("", (Failure.UPSTREAM, False)),
    ],
)
def test_reads_the_proxy_status_of_others(value: str, expected: tuple[Failure, bool]) -> None:
    assert failure_reported(response(502, f"Proxy-Status: {value}")) == expected


def test_proxy_status_may_be_spread_over_lines() -> None:
    lines = ["Proxy-Status: proxy-server; error=dns_timeout", "Proxy-Status: ExampleCDN"]
    assert failure_reported(response(504, *lines)) == (Failure.NAME_TIMED_OUT, True)


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        *((401, Failure.UPSTREAM), (407, Failure.UPSTREAM), (403, Failure.NOT_ALLOWED)),
        *((504, Failure.TIMED_OUT), (503, Failure.LIMIT), (502, Failure.UPSTREAM)),
        *((404, Failure.UPSTREAM), (200, Failure.UPSTREAM), (302, Failure.UPSTREAM)),
    ],
)
def test_without_a_proxy_status_the_status_has_to_do(status: int, failure: Failure) -> None:
    assert failure_reported(response(status)) == (failure, False)


@given(value=st.text(st.sampled_from('ab;=, "\\') | st.characters(min_codepoint=32, max_codepoint=126)))
def test_no_proxy_status_is_an_error(value: str) -> None:
    failure_reported(response(502, f"Proxy-Status: {value}"))


@pytest.mark.parametrize("shard", ['"', '\\"', '"\\', ";", "; a=", ",", " ", ", ;", 'a"', "; "])
def test_no_proxy_status_takes_long(shard: str) -> None:
    value = shard * (8000 // len(shard))
    before = time.thread_time()
    failure_reported(response(502, *[f"Proxy-Status: {value}"] * 7))
    assert time.thread_time() - before < 5  # seconds of the processor, whoever else uses it
