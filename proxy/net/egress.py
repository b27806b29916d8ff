"""
Leave this machine from one of its addresses, or by one of its interfaces.

Both are asked for before a connection is made. A machine may have neither now and both in a moment, as when
a line is down. So what is missing is an error of one connection, and only a warning where a configuration is
read.
"""

import errno
import socket as std_socket
from contextlib import suppress
from typing import Any

from proxy.errors import EgressError, is_shortage, reason_of
from proxy.net.sock import LoopSocket, sockaddr_of
from proxy.settings.egress import Egress

# Linux: the port is chosen when it is known where the connection leads to, so that one port serves for many.
# Older Pythons have no name for it.
_IP_BIND_ADDRESS_NO_PORT = getattr(std_socket, "IP_BIND_ADDRESS_NO_PORT", 24)
_SO_BINDTODEVICE = getattr(std_socket, "SO_BINDTODEVICE", 25)

_REASONS = {
    errno.EADDRNOTAVAIL: "this machine does not have this address",
    errno.ENODEV: "there is no such interface",
    errno.EPERM: "choosing one needs Linux 5.7, or CAP_NET_RAW",
}


def leave_by(sock: Any, egress: Egress) -> None:
    """
    Have a new socket leave so when it is connected.

    Raises ``EgressError`` where this machine does not let it, and any other ``OSError`` where we are short of
    something.
    """
    if egress.interface:
        name = egress.interface.encode() + b"\0"
        try:
            sock.setsockopt(std_socket.SOL_SOCKET, _SO_BINDTODEVICE, name)
        except OSError as exc:
            raise _error("interface", egress, exc) from exc
    if egress.source_ip:
        with suppress(OSError):  # of an older kernel, or another one
            sock.setsockopt(std_socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        try:
            sock.bind(sockaddr_of(egress.source_ip, 0))
        except OSError as exc:
            raise _error("source", egress, exc) from exc


def _error(setting: str, egress: Egress, exc: OSError) -> OSError:
    if is_shortage(exc) or exc.errno == errno.EADDRINUSE:  # of ports, where each socket has its own
        return exc
    reason = _REASONS.get(exc.errno or 0) or reason_of(exc)
    return EgressError(f"{setting} {getattr(egress, setting)}: {reason}", setting=setting, reason=reason)


def try_out(egress: Egress) -> None:
    """Raise ``EgressError`` if connections could not leave so now; needs no permission to send anything."""
    ipv6 = egress.source_ip and egress.source_ip.version == 6
    probe = LoopSocket(std_socket.AF_INET6 if ipv6 else std_socket.AF_INET, std_socket.SOCK_DGRAM)
    try:
        leave_by(probe, egress)
    finally:
        probe.close()
