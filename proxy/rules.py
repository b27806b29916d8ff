"""
Which targets are refused: judged by the resolved address, so that no spelling gets round it.
"""

from ipaddress import IPv4Address, IPv6Address

from proxy.errors import DialError, Failure

_BROADCAST = IPv4Address("255.255.255.255")


def check(ip: IPv4Address | IPv6Address) -> None:
    """Raise ``DialError`` for an address that is no single host's: TCP cannot connect to it."""
    for one in (ip, getattr(ip, "ipv4_mapped", None)):
        if one is not None and (one.is_unspecified or one.is_multicast or one == _BROADCAST):
            raise DialError(f"{ip} is no host's address", Failure.NOT_ALLOWED)
