"""
The server side of SOCKS4 and SOCKS4a: for old programs, at a listener without logins.

As it was written down by NEC and by its users: https://www.openssh.com/txt/socks4.protocol and
https://www.openssh.com/txt/socks4a.protocol.
"""

import struct
from ipaddress import IPv4Address

from proxy.address import UNKNOWN, Address
from proxy.errors import Failure, ProtocolError, ProxyError
from proxy.relaying.channel import Channel
from proxy.relaying.stream import Stream
from proxy.runtime import Runtime
from proxy.session import Wanted

VERSION = 4
CONNECT = 1
GRANTED, REJECTED = 0x5A, 0x5B

MAX_TEXT = 255  # bytes of a name or user ID, which have no bound of their own


class Socks4Inbound:
    """One client that speaks SOCKS4."""

    # A client may send its request and close its side: the answer is still wanted.
    half_close_grace = 0.5  # seconds

    def __init__(self, channel: Channel, runtime: Runtime) -> None:
        self._channel = channel
        self._runtime = runtime

    def greet(self) -> Wanted:
        """Read where the client wants to go. Its user ID proves nothing, so it is nobody's name here."""
        _, command, port, ip = struct.unpack("!BBH4s", self._channel.read_exact(8))
        self._read_text("user ID")
        # 0.0.0.x, where x is not 0, says that a name follows (SOCKS4a).
        name = self._read_text("name") if ip[:3] == bytes(3) and ip[3] else None
        if command != CONNECT:
            raise ProtocolError(f"command {command:#04x} is not CONNECT", Failure.UNSUPPORTED_COMMAND)
        if self._runtime.needs_auth:
            raise ProtocolError("a login is needed, which SOCKS4 does not have", Failure.CREDENTIALS)
        if not port:
            raise ProtocolError("the target's port is 0")
        return Wanted(Address(str(IPv4Address(ip)) if name is None else _decoded(name), port))

    def _read_text(self, what: str) -> bytes:
        """Read up to a NUL."""
        text = bytearray()
        while (byte := self._channel.read_exact(1)) != b"\0":
            text += byte
            if len(text) > MAX_TEXT:
                raise ProtocolError(f"the {what} is longer than {MAX_TEXT} bytes")
        return bytes(text)

    def accept(self, bound: Address | None) -> Stream:
        """Tell the client that it is connected."""
        self._reply(GRANTED, bound or UNKNOWN)
        return self._channel.stream()

    def refuse(self, error: ProxyError) -> None:
        """Tell the client that it is not: there is one word for all reasons."""
        self._reply(REJECTED, UNKNOWN)

    def _reply(self, code: int, bound: Address) -> None:
        if not isinstance(bound.ip, IPv4Address):
            bound = UNKNOWN
        self._channel.send(struct.pack("!BBH4s", 0, code, bound.port, IPv4Address(bound.host).packed))


def _decoded(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ProtocolError("the host name is neither ASCII nor UTF-8") from exc
