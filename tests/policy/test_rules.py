"""Targets that are no single host's address are refused, and all others are not."""

from ipaddress import ip_address

import pytest

from proxy.errors import DialError, Failure
from proxy.policy import rules


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",  # RFC 1122, section 3.2.1.3: this host on this network
        "255.255.255.255",  # limited broadcast
        "224.0.0.1",  # RFC 5771: the first and the last multicast address
        "239.255.255.255",
        "::",  # RFC 4291, section 2.5.2: unspecified
        "ff00::",  # section 2.7: multicast
        "ff02::1",
        "::ffff:0.0.0.0",  # section 2.5.5.2: the same IPv4 addresses in IPv6
        "::ffff:224.0.0.1",
        "::ffff:255.255.255.255",
    ],
)
def test_refuses_what_is_no_hosts_address(text: str) -> None:
    """CASES A31, J219."""
    with pytest.raises(DialError, match="no host's address") as refused:
        rules.check(ip_address(text))
    assert refused.value.failure is Failure.NOT_ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "192.0.2.255",  # a broadcast address in some networks, a host's in others
        "223.255.255.255",
        "240.0.0.1",
        "255.255.255.254",
        "::1",
        "fe80::1",
        "2001:db8::1",
        "feff::1",
        "::ffff:127.0.0.1",
    ],
)
def test_allows_a_hosts_address(text: str) -> None:
    rules.check(ip_address(text))
