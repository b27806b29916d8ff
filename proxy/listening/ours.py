"""
The addresses on which this process listens, which are refused as targets: a connection there would loop.

A few bytes of a client, who asks for a target within a target, would become hundreds of connections
otherwise. What counts is where a connection would arrive, however the target is spelt, so each address is
judged when it is about to be dialled. Nearly all are cleared by their port alone.
"""

import _socket
import errno
import socket
import struct
from collections.abc import Sequence
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address

from proxy.address import IPAddress, Place
from proxy.errors import is_shortage
from proxy.net.limits import shortage
from proxy.net.sock import sockaddr_of

_LOOPBACK: dict[int, IPAddress] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}

# How Linux is asked for its route to an address: rtnetlink(7), netlink(7).
_NLMSG, _RTMSG, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=8BI"), struct.Struct("=HH")
_NETLINK_ROUTE = 0
_RTM_NEWROUTE, _RTM_GETROUTE, _NLM_F_REQUEST, _RTA_DST, _RTA_OIF, _RTN_LOCAL = 24, 26, 1, 1, 4, 2

_places: dict[int, list[Place]] = {}  # by port; as many times as there are sockets

_others: list[Place] = []  # those of other processes


def add(place: Place) -> None:
    """Note that a socket listens there."""
    _places.setdefault(place.port, []).append(place)


def remove(place: Place) -> None:
    """Note that it does so no more."""
    _places[place.port].remove(place)
    if not _places[place.port]:
        del _places[place.port]


def every() -> list[Place]:
    """Give them all, for another process that works with this one."""
    return [place for places in _places.values() for place in places]


def note_others(places: Sequence[Place]) -> None:
    """Take these for ours too, as they are those of another process that works with this one."""
    for place in places:
        add(place)
    for place in _others:
        remove(place)
    _others[:] = places


def has(port: int) -> bool:
    """Tell whether we listen on a port, at whatever address."""
    return port in _places


def is_ours(ip: IPAddress, port: int) -> bool:
    """Tell whether a connection to an address would come to a socket of ours."""
    return any(leads_to(ip, place) for place in _places.get(port, ()))


def leads_to(ip: IPAddress, place: Place) -> bool:
    """Tell whether a connection to an address, at the place's port, would arrive at that place."""
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_unspecified:  # which the system takes for the loopback address
        ip = _LOOPBACK[ip.version]
    if not place.is_every_address:
        return ip == place.ip
    return (place.both_families or place.is_ipv6 == (ip.version == 6)) and is_local(ip)


def is_local(ip: IPAddress) -> bool:
    """
    Tell whether an address is one of this machine's.

    The kernel's routes know, also of one that came a moment ago, of a whole network that is routed here,
    and of link-local ones. To bind to it would be no proof: that may be allowed for any (ip_nonlocal_bind).
    """
    if ip.is_loopback:
        return True
    for ask in (_has_local_route, _can_be_bound):
        try:
            return ask(ip)
        except OSError as exc:
            if is_shortage(exc):
                raise shortage(f"cannot tell whether {ip} is this machine's", exc) from exc
    return False


def _can_be_bound(ip: IPAddress) -> bool:
    """Tell the same where there is no netlink, and hence no ip_nonlocal_bind; raises ``OSError``."""
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    with closing(_socket.socket(family, socket.SOCK_STREAM)) as sock:
        sock.bind(sockaddr_of(ip, 0))
    return True


def _has_local_route(ip: IPAddress) -> bool:
    """Ask the kernel which kind of route leads to an address; raises ``OSError`` where it cannot be asked."""
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError(errno.EAFNOSUPPORT, "no netlink")
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    question = _RTMSG.pack(family, ip.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    question += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(ip.packed), _RTA_DST) + ip.packed
    zone = getattr(ip, "scope_id", None)
    if zone:
        index = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
        question += _ATTRIBUTE.pack(_ATTRIBUTE.size + 4, _RTA_OIF) + struct.pack("=I", index)
    head = _NLMSG.pack(_NLMSG.size + len(question), _RTM_GETROUTE, _NLM_F_REQUEST, 0, 0)
    sock = _socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
    try:
        sock.send(head + question)
        answer = sock.recv(4096, socket.MSG_DONTWAIT)  # the kernel has answered by now
    finally:
        sock.close()
    _, kind, *_ = _NLMSG.unpack_from(answer)
    return bool(kind == _RTM_NEWROUTE and _RTMSG.unpack_from(answer, _NLMSG.size)[7] == _RTN_LOCAL)
