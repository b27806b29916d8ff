"""
Failures in HTTP: a status with Proxy-Status (RFC 9209), written and read back.

So the cause travels through any number of proxies to the client.
"""

import re
from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from proxy.errors import Failure
from proxy.http.heads import Fields, Headers, HttpError, ResponseHead, date

PROXY_NAME = "proxy-server"  # how we sign Proxy-Status


class _Answer(NamedTuple):
    """How a failure is told: a status, and what Proxy-Status says (RFC 9209, section 2.3)."""

    status: int
    error: str = ""
    details: str = ""


_ANSWERS = {
    Failure.MALFORMED: _Answer(400, "http_request_error"),
    Failure.CREDENTIALS: _Answer(401),
    Failure.NOT_ALLOWED: _Answer(403, "destination_ip_prohibited"),
    # RFC 9209 has one error for these two, and SOCKS5 has two replies: the details tell them apart.
    Failure.NETWORK_UNREACHABLE: _Answer(502, "destination_ip_unroutable", "network unreachable"),
    Failure.HOST_UNREACHABLE: _Answer(502, "destination_ip_unroutable", "host unreachable"),
    Failure.NAME_NOT_FOUND: _Answer(502, "dns_error"),
    Failure.NAME_TIMED_OUT: _Answer(504, "dns_timeout"),
    Failure.REFUSED: _Answer(502, "connection_refused"),
    Failure.TIMED_OUT: _Answer(504, "connection_timeout"),
    Failure.UNSUPPORTED_COMMAND: _Answer(400, "http_request_error", "command not supported"),
    Failure.UNSUPPORTED_ADDRESS: _Answer(400, "http_request_error", "address type not supported"),
    Failure.LIMIT: _Answer(503, "connection_limit_reached"),
    # RFC 9209 has no error for it; who does not know these details takes the nearest.
    Failure.TOO_MANY: _Answer(429, "connection_limit_reached", "too many requests"),
    Failure.UPSTREAM: _Answer(502, "proxy_internal_error", "upstream proxy failed"),
    Failure.GENERAL: _Answer(502, "proxy_internal_error"),
}

_EXTRA_HEADERS: dict[Failure, Fields] = {
    Failure.CREDENTIALS: (("WWW-Authenticate", f'X-Proxy realm="{PROXY_NAME}"'),),
}
_MAY_COME_AGAIN = (Failure.LIMIT, Failure.TOO_MANY)


def refusal(failure: Failure, retry_after: float = 1.0, told: str = "") -> HttpError:
    """
    Say why there is no tunnel, and where it was too much, after how many seconds there may be one.

    What is ``told`` is for whoever reads the answer, and stands in the place of the failure.
    """
    answer = _ANSWERS[failure]
    headers = _EXTRA_HEADERS.get(failure, ())
    if failure in _MAY_COME_AGAIN:
        headers += (("Retry-After", str(max(1, ceil(retry_after)))),)
    if answer.error:
        details = f'; details="{answer.details}"' if answer.details else ""
        headers += (("Proxy-Status", f"{PROXY_NAME}; error={answer.error}{details}"),)
    return HttpError(answer.status, told or failure.value, failure=failure, headers=headers)


_NO_ANSWER = {
    "connection_terminated": (502, "the target closed the connection without an answer"),
    "connection_read_timeout": (504, "the target did not answer in time"),
    "http_response_incomplete": (502, "the target's answer broke off in its head"),
    "http_response_header_section_size": (502, ""),
    "http_protocol_error": (502, ""),
    "proxy_internal_error": (500, "the proxy failed"),
}


def no_answer(error: str, told: str = "") -> HttpError:
    """Say that the target of a request gave no answer that can be passed on (RFC 9209, section 2.3)."""
    status, usual = _NO_ANSWER[error]
    headers = (("Proxy-Status", f"{PROXY_NAME}; error={error}"),)
    return HttpError(status, told or usual, failure=Failure.GENERAL, headers=headers)


def too_late() -> HttpError:
    """Say that a client did not send all of its request (RFC 9110, section 15.5.9)."""
    headers = (("Proxy-Status", f"{PROXY_NAME}; error=http_request_error"),)
    return HttpError(408, "the request was not complete in time", headers=headers)


def encode_response(error: HttpError) -> bytes:
    """Encode the complete answer, after which the connection is closed."""
    body = f"{error.body}\n".encode()
    lines = [
        f"HTTP/1.1 {error.status} {error.reason}",
        f"Date: {date()}",  # a MUST for 4xx (RFC 9110, section 6.6.1)
        *(f"{name}: {value}" for name, value in error.headers),
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        # Upgrade is a hop-by-hop header, so it is named here (RFC 9110, section 7.8).
        "Connection: Upgrade, close" if error.status == 426 else "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if error.bodiless else body)


# Credentials have no error in RFC 9209, and a status of their own.
_BY_ERROR = {(one.error, one.details): failure for failure, one in _ANSWERS.items() if one.error} | {
    # Of another make, and without our details.
    ("destination_ip_unroutable", ""): Failure.HOST_UNREACHABLE,
    ("http_request_denied", ""): Failure.NOT_ALLOWED,
}
_BY_STATUS = {
    403: Failure.NOT_ALLOWED,
    503: Failure.LIMIT,
    504: Failure.TIMED_OUT,
}

_MOST_STATUSES = 4096  # characters
# A structured field (RFC 8941), read tolerantly: a string that does not end goes on to the end.
_STRING = r'"(?:[^"\\]|\\.)*(?:"|\\?$)'
_MEMBER = re.compile(rf' *({_STRING}|[^;",]+)((?:{_STRING}|[^",])*)')
_PARAMETER = re.compile(rf'; *([^;="]+)(?:=({_STRING}|[^;"]*))?')


def failure_reported(response: ResponseHead) -> tuple[Failure, bool]:
    """
    Read why an upstream did not switch protocols, and whether a proxy of our kind has told it.

    The members of Proxy-Status stand in the order in which they handled the answer, the one nearest
    to the target first, so the first that speaks of a cause knows it. One that is not of our kind may
    mean that the upstream is what it could not reach, and a bare status may mean anything.
    """
    for name, parameters in _proxy_statuses(response.headers):
        error, details = parameters.get("error", ""), parameters.get("details", "")
        failure = _BY_ERROR.get((error, details)) or _BY_ERROR.get((error, ""))
        if failure:
            return failure, name == PROXY_NAME
    return _BY_STATUS.get(response.status, Failure.UPSTREAM), False


def _proxy_statuses(headers: Headers) -> Iterator[tuple[str, dict[str, str]]]:
    # The first members matter most, and no honest chain has more than this.
    statuses = ", ".join(headers.get_all("Proxy-Status"))[:_MOST_STATUSES]
    for name, rest in _MEMBER.findall(statuses):
        yield _unquote(name), {key: _unquote(value) for key, value in _PARAMETER.findall(rest)}


def _unquote(value: str) -> str:
    return value.strip(" \t").removeprefix('"').removesuffix('"')
