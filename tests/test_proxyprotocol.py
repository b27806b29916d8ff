"""The PROXY protocol, by the examples of its specification and of HAProxy."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.address import Address
from proxy.errors import ProtocolError
from proxy.parsers import run
from proxy.proxyprotocol import SIGNATURE, crc32c, parse_header
from tests.wire.sockets import read_exact


class Bytes:
    """What is received, for a parser that asks for exact numbers of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def recv(self, count: int) -> bytes:
        piece, self.data = self.data[:count], self.data[count:]
        return piece

    def read_exact(self, count: int) -> bytes:
        return read_exact(self, count)


def parse(header: bytes) -> Address | None:
    """Parse a header with something behind it, and check that this stays where it is."""
    received = Bytes(header + b"GET / HTTP/1.1")
    client = run(parse_header(), received.read_exact)
    assert received.data == b"GET / HTTP/1.1"
    return client


def binary(rest: bytes, *, command: int = 0x21, family: int = 0x11) -> bytes:
    """Write a header of version 2 (section 2.2)."""
    return b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack("!BBH", command, family, len(rest)) + rest


LONGEST = b":".join([b"ffff"] * 8)
TCP4 = ip_address("192.0.2.7").packed + ip_address("198.51.100.1").packed + struct.pack("!HH", 56324, 443)
TCP6 = ip_address("2001:db8::7").packed + ip_address("2001:db8::1").packed + struct.pack("!HH", 65535, 443)


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255:65535"),
        (
            b"PROXY TCP6 ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".replace(
                b"f...f", b"ffff:" * 5 + b"ffff"
            ),
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
        ),
        (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", "192.168.0.1:56324"),
    ],
)
def test_a_line_tells_of_a_client(header: bytes, client: str) -> None:
    """Section 2.1: the longest lines, and the example."""
    assert str(parse(header)) == client


@pytest.mark.parametrize(
    "header",
    [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff:f::f ffff::1 65535 65535\r\n", b"PROXY UNKNOWN x\x00y\r\n"],
)
def test_an_unknown_client_is_the_socket(header: bytes) -> None:
    """Section 2.1: the receiver ignores anything before the CRLF."""
    assert parse(header) is None


@pytest.mark.parametrize(
    "header",
    [
        *(b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\n", b"PROXY TCP4 192.0.2.7 192.0.2.1 1 65536\r\n"),
        *(b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n", b"PROXY TCP6 192.0.2.7 192.0.2.1 1 2\r\n"),
        *(b"PROXY TCP4 192.0.2.7  192.0.2.1 1 2\r\n", b"PROXY UDP4 192.0.2.7 192.0.2.1 1 2\r\n"),
        *(b"PROXY TCP4 192.0.2.7 192.0.2.1 1\r\n", b"proxy TCP4 192.0.2.7 192.0.2.1 1 2\r\n"),
        *(b"PROXY TCP4 192.0.2.256 192.0.2.1 1 2\r\n", b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 2\r\n"),
        *(
            b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
            b"PROXY \r\n      ",
            b"GET / HTTP/1.1\r\n",
            b"\x16\x03\x01" * 4,
        ),
    ],
)
def test_a_line_that_is_none_is_refused(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(header + b"\n")


@pytest.mark.parametrize(
    ("rest", "family", "client"), [(TCP4, 0x11, "192.0.2.7:56324"), (TCP6, 0x21, "[2001:db8::7]:65535")]
)
def test_a_binary_header_tells_of_a_client(rest: bytes, family: int, client: str) -> None:
    """Section 2.2; also with more behind the addresses."""
    assert str(parse(binary(rest, family=family))) == client
    unique_id = b"\x05\x00\x04abcd"
    assert str(parse(binary(rest + unique_id + b"\x04\x00\x00", family=family))) == client


@pytest.mark.parametrize(
    ("command", "family", "rest"),
    [
        pytest.param(0x20, 0x00, b"", id="LOCAL"),
        pytest.param(0x20, 0x11, TCP4, id="LOCAL with addresses"),
        pytest.param(0x20, 0x11, b"xx", id="LOCAL with nonsense"),
        pytest.param(0x21, 0x00, b"anything", id="UNSPEC"),
        pytest.param(0x21, 0x31, bytes(216), id="UNIX"),
        pytest.param(0x21, 0x12, TCP4, id="UDP"),
    ],
)
def test_what_tells_of_no_tcp_client_leaves_the_socket(command: int, family: int, rest: bytes) -> None:
    """Section 2.2: LOCAL is the proxy's own, such as a health check; what is not known is skipped."""
    assert parse(binary(rest, command=command, family=family)) is None


@pytest.mark.parametrize(
    ("command", "family", "rest"),
    [
        pytest.param(0x22, 0x11, TCP4, id="command"),
        pytest.param(0x11, 0x11, TCP4, id="version"),
        pytest.param(0x21, 0x11, TCP4[:-1], id="short"),
        pytest.param(0x21, 0x21, TCP4, id="of the other family"),
        pytest.param(0x21, 0x11, TCP4 + b"\x05\x00", id="half a TLV"),
        pytest.param(0x21, 0x11, TCP4 + b"\x05\x00\x05abcd", id="a short TLV"),
        pytest.param(0x21, 0x11, TCP4 + b"\x03\x00\x03abc", id="a short sum"),
        pytest.param(0x21, 0x11, TCP4 + b"\x03\x00\x04\0\0\0\0", id="a wrong sum"),
    ],
)
def test_a_binary_header_that_is_none_is_refused(command: int, family: int, rest: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(binary(rest, command=command, family=family))


def test_a_checksum_is_verified() -> None:
    """Section 2.2.4: over the header with zeros in the place of the sum."""
    header = binary(TCP4 + b"\x05\x00\x02id" + b"\x03\x00\x04\0\0\0\0")
    right = header[:-4] + struct.pack("!I", crc32c(header))
    assert str(parse(right)) == "192.0.2.7:56324"
    for place in (17, 30, len(right) - 1):
        wrong = bytearray(right)
        wrong[place] ^= 1
        with pytest.raises(ProtocolError):
            parse(bytes(wrong))


def test_a_second_checksum_is_refused_and_not_computed() -> None:
    """Thousands of them, each over the whole header, would take minutes."""
    header = binary(TCP4 + 2 * b"\x03\x00\x04\0\0\0\0")
    right = header[:-11] + struct.pack("!I", crc32c(header)) + header[-7:]
    with pytest.raises(ProtocolError, match="malformed"):
        parse(right)


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_the_crc_is_that_of_the_rfc(data: bytes, crc: int) -> None:
    """RFC 3720, appendix B.4, read as numbers; the last is the catalogue's check value."""
    assert crc32c(data) == crc


@given(st.binary(max_size=300))
def test_nothing_else_than_a_protocol_error_comes_of_any_bytes(data: bytes) -> None:
    for start in (b"", SIGNATURE, SIGNATURE + b"\x21\x11", b"PROXY ", b"PROXY TCP4 "):
        try:
            run(parse_header(), Bytes(start + data).read_exact)
        except (ProtocolError, ConnectionError):
            pass
