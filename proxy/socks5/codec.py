"""
The messages of SOCKS5 (RFC 1928) and of its logins (RFC 1929).

Sans-I/O: a parser is a generator that yields how many bytes it wants and is sent exactly those, and
``encode`` gives the bytes of a message. Server and client share all of it.
"""

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, inet_ntop

from proxy.address import UNKNOWN, Address
from proxy.errors import Failure, ProtocolError
from proxy.parsers import Parser

VERSION = 5
LOGIN_VERSION = 1


class Method(IntEnum):
    """How a client may log in (RFC 1928, section 3)."""

    NO_AUTHENTICATION = 0x00
    USERNAME_PASSWORD = 0x02
    NONE_ACCEPTABLE = 0xFF


class Command(IntEnum):
    """What a client asks for (RFC 1928, section 4)."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class AddressType(IntEnum):
    """How an address is written (RFC 1928, section 5)."""

    IPV4 = 1
    DOMAIN = 3
    IPV6 = 4


class ReplyCode(IntEnum):
    """What became of a request (RFC 1928, section 6)."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


# What is not here is a general failure.
_CODE_OF = {
    Failure.NOT_ALLOWED: ReplyCode.NOT_ALLOWED,
    Failure.NETWORK_UNREACHABLE: ReplyCode.NETWORK_UNREACHABLE,
    Failure.HOST_UNREACHABLE: ReplyCode.HOST_UNREACHABLE,
    # RFC 1928, section 6, has no code for a failed name lookup; host unreachable is the nearest.
    Failure.NAME_NOT_FOUND: ReplyCode.HOST_UNREACHABLE,
    Failure.NAME_TIMED_OUT: ReplyCode.HOST_UNREACHABLE,
    Failure.REFUSED: ReplyCode.CONNECTION_REFUSED,
    Failure.TIMED_OUT: ReplyCode.TTL_EXPIRED,
    Failure.UNSUPPORTED_COMMAND: ReplyCode.COMMAND_NOT_SUPPORTED,
    Failure.UNSUPPORTED_ADDRESS: ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED,
}
_FAILURE_OF = {
    ReplyCode.NOT_ALLOWED: Failure.NOT_ALLOWED,
    ReplyCode.NETWORK_UNREACHABLE: Failure.NETWORK_UNREACHABLE,
    ReplyCode.HOST_UNREACHABLE: Failure.HOST_UNREACHABLE,
    ReplyCode.CONNECTION_REFUSED: Failure.REFUSED,
    ReplyCode.TTL_EXPIRED: Failure.TIMED_OUT,
    ReplyCode.COMMAND_NOT_SUPPORTED: Failure.UNSUPPORTED_COMMAND,
    ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED: Failure.UNSUPPORTED_ADDRESS,
}


def code_of(failure: Failure) -> ReplyCode:
    """Say a failure in SOCKS5."""
    return _CODE_OF.get(failure, ReplyCode.GENERAL_FAILURE)


def failure_of(code: int) -> Failure:
    """Read a reply code that is not 0; codes that RFC 1928 does not know are a general failure."""
    return _FAILURE_OF.get(code, Failure.GENERAL)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True)
class Greeting:
    """The client's first message: the methods it knows."""

    methods: bytes

    def encode(self) -> bytes:
        """Give the bytes of the message."""
        return bytes([VERSION, len(self.methods)]) + self.methods


@dataclass(frozen=True)
class Login:
    """A username and password, 1 to 255 bytes each (RFC 1929, section 2)."""

    username: bytes
    password: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Give the bytes of the message."""
        return (
            bytes([LOGIN_VERSION, len(self.username)])
            + self.username
            + bytes([len(self.password)])
            + self.password
        )


@dataclass(frozen=True)
class Request:
    """What the client wants to be connected to."""

    command: int
    target: Address

    def encode(self) -> bytes:
        """Give the bytes of the message."""
        return bytes([VERSION, self.command, 0]) + encode_address(self.target)


@dataclass(frozen=True)
class Reply:
    """What became of it, and where the proxy's end of the connection is bound."""

    code: int
    bound: Address = UNKNOWN

    def encode(self) -> bytes:
        """Give the bytes of the message."""
        return bytes([VERSION, self.code, 0]) + encode_address(self.bound)


def encode_address(address: Address) -> bytes:
    """Write an address (RFC 1928, section 5)."""
    ip = address.ip
    if isinstance(ip, IPv4Address):
        host = bytes([AddressType.IPV4]) + ip.packed
    elif isinstance(ip, IPv6Address):
        host = bytes([AddressType.IPV6]) + ip.packed
    else:
        name = address.host.encode("ascii")
        host = bytes([AddressType.DOMAIN, len(name)]) + name
    return host + struct.pack("!H", address.port)


def parse_greeting() -> Parser[Greeting]:
    """Parse the client's first message (RFC 1928, section 3)."""
    (version,) = yield 1
    if version != VERSION:
        raise ProtocolError(f"not SOCKS5: {_guess_protocol(version)}")
    (count,) = yield 1
    return Greeting((yield count))


def parse_login() -> Parser[Login]:
    """Parse a username and password (RFC 1929, section 2)."""
    (version,) = yield 1
    if version != LOGIN_VERSION:
        raise ProtocolError(f"login version {version} is not 1")
    (length,) = yield 1
    username = yield length
    (length,) = yield 1
    password = yield length
    return Login(username, password)


def parse_request() -> Parser[Request]:
    """Parse a request (RFC 1928, section 4)."""
    version, command, reserved = yield 3
    if version != VERSION:
        raise ProtocolError(f"request version {version} is not 5")
    if reserved != 0:
        raise ProtocolError("the request's reserved byte is not 0")
    if command != Command.CONNECT:
        raise ProtocolError(f"command {command:#04x} is not CONNECT", Failure.UNSUPPORTED_COMMAND)
    target = yield from parse_address()
    if not target.port:
        raise ProtocolError("the target's port is 0")
    return Request(command, target)


def parse_address() -> Parser[Address]:
    """Parse an address (RFC 1928, section 5)."""
    (kind,) = yield 1
    if kind == AddressType.DOMAIN:
        (length,) = yield 1
        name, port = struct.unpack(f"!{length}sH", (yield length + 2))
        return Address(_decode_name(name), port)
    if kind == AddressType.IPV4:
        ip, port = struct.unpack("!4sH", (yield 6))
        return Address(inet_ntop(AF_INET, ip), port)
    if kind == AddressType.IPV6:
        ip, port = struct.unpack("!16sH", (yield 18))
        return Address(inet_ntop(AF_INET6, ip), port)
    raise ProtocolError(f"unknown address type {kind:#04x}", Failure.UNSUPPORTED_ADDRESS)


def _decode_name(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ProtocolError("the host name is neither ASCII nor UTF-8") from exc


def _guess_protocol(first_byte: int) -> str:
    if first_byte == 4:
        return "a SOCKS4 client"
    if first_byte == 0x16:
        return "a TLS client"
    if 0x41 <= first_byte <= 0x5A:
        return "HTTP or another text protocol"
    return f"first byte {first_byte:#04x}"
