"""
The PROXY protocol, versions 1 and 2, as a receiver: who the client is, told by a proxy before it.

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, cited here by its sections. The parser is a
generator that asks for exact numbers of bytes, so it takes nothing of what follows.
"""

import re
import struct
from ipaddress import IPv4Address, IPv6Address

from proxy.address import Address
from proxy.errors import ProtocolError
from proxy.parsers import Parser

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"  # section 2.2

_LONGEST_LINE = 107  # bytes (section 2.1)
_ENDS = rb"([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5})"
_LINE = re.compile(rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|(TCP4|TCP6) " + _ENDS + rb")\r\n")
_LOCAL, _PROXY = 0x20, 0x21  # version 2, and the command
_TCP4, _TCP6 = 0x11, 0x21
_CRC32C = 0x03  # the type of a TLV (section 2.2.4)


def parse_header() -> Parser[Address | None]:
    """Parse a header of either version; None if it does not tell of a client. Raises ``ProtocolError``."""
    start = yield len(SIGNATURE)
    if start == SIGNATURE:
        return (yield from _parse_binary())
    if start.startswith(b"PROXY "):
        return (yield from _parse_line(start))
    raise ProtocolError("there is no PROXY protocol header")


def _parse_line(line: bytes) -> Parser[Address | None]:
    while not line.endswith(b"\n"):
        if len(line) == _LONGEST_LINE:
            raise ProtocolError("the PROXY protocol header is too long")
        line += yield 1
    match = _LINE.fullmatch(line)
    if not match:
        raise ProtocolError("the PROXY protocol header is malformed")
    if match[1] is None:  # UNKNOWN: "the receiver must use the real connection endpoints"
        return None
    family = IPv4Address if match[1] == b"TCP4" else IPv6Address
    try:
        source, _ = (family(part.decode()) for part in (match[2], match[3]))
        ports = [int(part) for part in (match[4], match[5])]
        if max(ports) > 65535:
            raise ValueError
    except ValueError:
        raise ProtocolError("the PROXY protocol header is malformed") from None
    return Address(str(source), ports[0])


def _parse_binary() -> Parser[Address | None]:
    fixed = yield 4
    command, family, size = struct.unpack("!BBH", fixed)
    rest = yield size
    if command not in (_LOCAL, _PROXY):
        raise ProtocolError("the PROXY protocol header is of another version or command")
    # Section 2.2: a LOCAL connection is the proxy's own, and what is not known is skipped.
    if command == _LOCAL or family not in (_TCP4, _TCP6):
        return None
    length = 4 if family == _TCP4 else 16
    addresses = 2 * length + 4  # bytes: source and target, and their ports
    if size < addresses:
        raise ProtocolError("the PROXY protocol header is too short")
    _check_sum(SIGNATURE + fixed + rest, len(SIGNATURE) + len(fixed) + addresses)
    source = (IPv4Address if family == _TCP4 else IPv6Address)(rest[:length])
    (port,) = struct.unpack_from("!H", rest, 2 * length)
    return Address(str(source), port)


def _check_sum(header: bytes, start: int) -> None:
    """Verify the checksum, if there is one among what stands behind the addresses (section 2.2.4)."""
    is_checked = False  # to sum it all up takes long, and is done once
    while start < len(header):
        if start + 3 > len(header):
            raise ProtocolError("the PROXY protocol header is malformed")
        kind, size = struct.unpack_from("!BH", header, start)
        start += 3
        if start + size > len(header) or (kind == _CRC32C and (size != 4 or is_checked)):
            raise ProtocolError("the PROXY protocol header is malformed")
        if kind == _CRC32C:
            summed = header[:start] + bytes(4) + header[start + 4 :]
            if crc32c(summed) != int.from_bytes(header[start : start + 4], "big"):
                raise ProtocolError("the checksum of the PROXY protocol header is wrong")
            is_checked = True
        start += size


def crc32c(data: bytes) -> int:
    """Compute a CRC-32C (RFC 3720, section 12.1)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # the polynomial, its bits in reverse
    return byte


_CRC_TABLE = [_crc_of(byte) for byte in range(256)]
