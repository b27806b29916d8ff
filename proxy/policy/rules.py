"""
Which targets are refused: judged by the resolved address, so that no spelling gets round it.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from proxy.errors import DialError, Failure

_BROADCAST = IPv4Address("255.255.255.255")


def check(ip: IPv4Address | IPv6Address) -> None:
    """Raise ``DialError`` for an address that is no single host's: TCP cannot connect to it."""
    if not _is_a_host(ip):
        raise DialError(f"{ip} is no host's address", Failure.NOT_ALLOWED)


@lru_cache(1024)
def _is_a_host(ip: IPv4Address | IPv6Address) -> bool:
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return not (ip.is_unspecified or ip.is_multicast or ip == _BROADCAST)
