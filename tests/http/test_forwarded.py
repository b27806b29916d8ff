"""X-Forwarded-For: whose word counts (DESIGN 1.9)."""

import pytest

from proxy.http.forwarded import client_behind
from proxy.http.heads import Headers
from proxy.networks import Networks

TRUSTED = Networks(["10.0.0.0/8", "2001:db8:1::/48"])


def client(*lines: str) -> str | None:
    found = client_behind(Headers([("X-Forwarded-For", line) for line in lines]), TRUSTED)
    return found.host if found else None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["192.0.2.7"], "192.0.2.7"),
        (["203.0.113.9, 192.0.2.7"], "192.0.2.7"),
        (["203.0.113.9, 192.0.2.7, 10.0.0.1"], "192.0.2.7"),
        (["203.0.113.9", "192.0.2.7,10.0.0.1", "10.0.0.2"], "192.0.2.7"),
        (["10.0.0.3, 10.0.0.2,10.0.0.1"], "10.0.0.3"),
        (["2001:db8::7, 2001:db8:1::1"], "2001:db8::7"),
        (["192.0.2.7:50312"], "192.0.2.7"),
        (["[2001:db8::7]:50312"], "2001:db8::7"),
        (["[2001:db8::7]"], "2001:db8::7"),
        (["::ffff:192.0.2.7"], "192.0.2.7"),
        (["::ffff:10.0.0.1"], "10.0.0.1"),
    ],
)
def test_the_client_is_the_rightmost_that_is_not_trusted(lines: list[str], expected: str) -> None:
    """The left-most if all are trusted; some servers write a port behind it."""
    assert client(*lines) == expected


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [""],
        ["unknown"],
        ["192.0.2.7, unknown"],
        ["192.0.2.7, "],
        ["192.0.2.7, _hidden"],
        ["fe80::1%eth0"],
        ["fe80::1%"],
    ],
)
def test_what_is_no_address_in_that_place_tells_of_nobody(lines: list[str]) -> None:
    """What a client has written itself, further to the left, is never reached by it."""
    assert client(*lines) is None


def test_what_is_no_address_leaves_those_of_the_trusted_behind_it() -> None:
    assert client("192.0.2.7, unknown, 10.0.0.1") == "10.0.0.1"
