"""The messages of SOCKS5 against the text of RFC 1928 and RFC 1929."""

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.address import Address
from proxy.errors import Failure, ProtocolError
from proxy.parsers import Parser, run
from proxy.socks5 import codec
from proxy.socks5.codec import Greeting, Login, Reply, ReplyCode, Request

MORE = object()  # what a parser gives that has not yet seen enough

ParserMaker = Callable[[], Parser[Any]]
PARSERS: list[ParserMaker] = [
    codec.parse_greeting,
    codec.parse_login,
    codec.parse_request,
    codec.parse_address,
]


def feed(make: ParserMaker, *pieces: bytes) -> tuple[object, bytes]:
    """Hand pieces to a parser as a connection would: give its result, or MORE, and what is left over."""
    parser, received, coming = make(), b"", list(pieces)
    try:
        wanted = next(parser)
        while True:
            while len(received) < wanted:
                if not coming:
                    return MORE, received
                received += coming.pop(0)
            taken, received = received[:wanted], received[wanted:]
            wanted = parser.send(taken)
    except StopIteration as finished:
        return finished.value, received + b"".join(coming)


def parse(make: ParserMaker, data: bytes) -> Any:
    """Parse exactly one message."""
    result, left = feed(make, data)
    assert result is not MORE
    assert left == b""
    return result


def outcome(make: ParserMaker, *pieces: bytes) -> object:
    """Give whatever comes of the pieces, a refusal too."""
    try:
        return feed(make, *pieces)
    except ProtocolError as exc:
        return str(exc), exc.failure


label = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
names = st.lists(label, min_size=1, max_size=6).map(".".join)
hosts = st.one_of(names, st.ip_addresses().filter(lambda ip: not getattr(ip, "ipv4_mapped", None)).map(str))
ports = st.integers(1, 65535)
addresses = st.builds(Address, hosts, ports)
secrets = st.binary(min_size=1, max_size=255)
greetings = st.builds(Greeting, st.binary(max_size=255))
logins = st.builds(Login, secrets, secrets)
requests = st.builds(Request, st.just(1), addresses)

Message = tuple[ParserMaker, Greeting | Login | Request]
MESSAGES = st.one_of(
    st.tuples(st.just(codec.parse_greeting), greetings),
    st.tuples(st.just(codec.parse_login), logins),
    st.tuples(st.just(codec.parse_request), requests),
)


# RFC 1928, section 3: VER, NMETHODS, METHODS


@pytest.mark.parametrize(
    ("data", "methods"),
    [
        (b"\x05\x01\x00", b"\x00"),
        (b"\x05\x02\x00\x02", b"\x00\x02"),
        (b"\x05\x00", b""),
        (b"\x05\xff" + bytes(range(255)), bytes(range(255))),
    ],
    ids=["one", "two", "none", "all"],
)
def test_a_greeting_is_a_version_a_count_and_methods(data: bytes, methods: bytes) -> None:
    assert parse(codec.parse_greeting, data) == Greeting(methods)
    assert Greeting(methods).encode() == data


@pytest.mark.parametrize("version", [0, 1, 4, 6, 0x16, ord("G"), 0xFF])
def test_a_greeting_of_another_version_is_refused_by_its_first_byte(version: int) -> None:
    """CASES A10-A13: nothing more is waited for."""
    with pytest.raises(ProtocolError, match="not SOCKS5"):
        feed(codec.parse_greeting, bytes([version]))


# RFC 1929, section 2: VER, ULEN, UNAME, PLEN, PASSWD


@pytest.mark.parametrize(
    ("data", "username", "password"),
    [
        (b"\x01\x05alice\x0awonderland", b"alice", b"wonderland"),
        (b"\x01\x01u\x01p", b"u", b"p"),
        # Lengths from 128 on are one byte as well: UTF-8 would make two of it.
        (b"\x01\x80" + b"u" * 128 + b"\x80" + b"p" * 128, b"u" * 128, b"p" * 128),
        (b"\x01\xff" + b"u" * 255 + b"\xff" + b"p" * 255, b"u" * 255, b"p" * 255),
        (b"\x01\x02\x00\xff\x03\x80\x01:", b"\x00\xff", b"\x80\x01:"),
    ],
    ids=["ordinary", "shortest", "128", "longest", "any-bytes"],
)
def test_a_login_is_two_counted_strings(data: bytes, username: bytes, password: bytes) -> None:
    """CASES B44."""
    assert parse(codec.parse_login, data) == Login(username, password)
    assert Login(username, password).encode() == data


@pytest.mark.parametrize("version", [0, 2, 5])
def test_a_login_of_another_version_is_refused(version: int) -> None:
    """CASES B48."""
    with pytest.raises(ProtocolError, match="version"):
        feed(codec.parse_login, bytes([version]))


def test_a_login_does_not_show_its_password() -> None:
    assert "wonderland" not in repr(Login(b"alice", b"wonderland"))


# RFC 1928, section 4: VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT (network octet order)

ADDRESSES = {
    # section 5: X'01' and 4 octets
    "ipv4": (b"\x01\xc0\x00\x02\x01\x00\x50", Address("192.0.2.1", 80)),
    # X'04' and 16 octets
    "ipv6": (b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\x01\xbb", Address("2001:db8::1", 443)),
    # X'03', the number of octets, and a name without a terminating NUL
    "name": (b"\x03\x0fwww.example.com\x1f\x90", Address("www.example.com", 8080)),
    "long-name": (
        b"\x03\xfd" + b".".join([b"n" * 63] * 3 + [b"n" * 61]) + b"\xff\xff",
        Address(".".join(["n" * 63] * 3 + ["n" * 61]), 65535),
    ),
}


@pytest.mark.parametrize(("data", "address"), ADDRESSES.values(), ids=ADDRESSES)
def test_a_request_names_a_host_and_a_port(data: bytes, address: Address) -> None:
    assert parse(codec.parse_request, b"\x05\x01\x00" + data) == Request(1, address)
    assert Request(1, address).encode() == b"\x05\x01\x00" + data


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (b"\x04\x01\x00", Failure.MALFORMED),  # CASES A14
        (b"\x00\x01\x00", Failure.MALFORMED),
        (b"\x05\x01\xff", Failure.MALFORMED),  # CASES A15
        (b"\x05\x02\x00", Failure.UNSUPPORTED_COMMAND),  # CASES A16: BIND
        (b"\x05\x03\x00", Failure.UNSUPPORTED_COMMAND),  # UDP ASSOCIATE
        (b"\x05\x00\x00", Failure.UNSUPPORTED_COMMAND),
        (b"\x05\xff\x00", Failure.UNSUPPORTED_COMMAND),
        (b"\x05\x01\x00\x00", Failure.UNSUPPORTED_ADDRESS),  # CASES A17
        (b"\x05\x01\x00\x02", Failure.UNSUPPORTED_ADDRESS),
        (b"\x05\x01\x00\x05", Failure.UNSUPPORTED_ADDRESS),
        (b"\x05\x01\x00\xff", Failure.UNSUPPORTED_ADDRESS),
        (b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x00", Failure.MALFORMED),  # CASES A30: port 0
        (b"\x05\x01\x00\x03\x00\x00\x50", Failure.MALFORMED),  # CASES A19: no name
        (b"\x05\x01\x00\x03\x02\xe9\xe9\x00\x50", Failure.MALFORMED),  # CASES A22: Latin-1
        (b"\x05\x01\x00\x03\x03a\x00b\x00\x50", Failure.MALFORMED),
    ],
)
def test_a_request_that_is_not_served_says_why(data: bytes, failure: Failure) -> None:
    with pytest.raises(ProtocolError) as refused:
        feed(codec.parse_request, data)
    assert refused.value.failure is failure


def test_a_bad_name_is_refused_only_after_its_last_byte() -> None:
    """The port is read before the name is judged, so that nothing of the request is left over."""
    assert feed(codec.parse_address, b"\x03\x03a b\x00")[0] is MORE
    with pytest.raises(ProtocolError):
        feed(codec.parse_address, b"\x03\x03a b\x00\x50")


# RFC 1928, section 6: VER, REP, RSV, ATYP, BND.ADDR, BND.PORT


@pytest.mark.parametrize("code", range(9))
@pytest.mark.parametrize(("data", "address"), ADDRESSES.values(), ids=ADDRESSES)
def test_a_reply_is_a_code_and_an_address(code: int, data: bytes, address: Address) -> None:
    assert Reply(code, address).encode() == bytes([5, code, 0]) + data


def test_a_reply_without_an_address_has_that_of_nowhere() -> None:
    assert Reply(1).encode() == b"\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"


# RFC 1928, section 6, and the table of what means what.
CODES = {
    Failure.MALFORMED: 1,
    Failure.CREDENTIALS: 1,
    Failure.NOT_ALLOWED: 2,  # connection not allowed by ruleset
    Failure.NETWORK_UNREACHABLE: 3,  # Network unreachable
    Failure.HOST_UNREACHABLE: 4,  # Host unreachable
    Failure.NAME_NOT_FOUND: 4,
    Failure.NAME_TIMED_OUT: 4,
    Failure.REFUSED: 5,  # Connection refused
    Failure.TIMED_OUT: 6,  # TTL expired
    Failure.UNSUPPORTED_COMMAND: 7,  # Command not supported
    Failure.UNSUPPORTED_ADDRESS: 8,  # Address type not supported
    Failure.LIMIT: 1,
    Failure.TOO_MANY: 1,
    Failure.UPSTREAM: 1,
    Failure.GENERAL: 1,  # general SOCKS server failure
}


@pytest.mark.parametrize("failure", Failure)
def test_every_failure_has_its_code(failure: Failure) -> None:
    assert codec.code_of(failure) == CODES[failure]


@pytest.mark.parametrize("code", range(2, 9))
def test_a_code_survives_the_way_through_a_proxy(code: int) -> None:
    assert codec.code_of(codec.failure_of(code)) == code


@pytest.mark.parametrize("code", [1, 9, 0x5B, 0xFF])
def test_codes_that_say_nothing_are_a_general_failure(code: int) -> None:
    assert codec.failure_of(code) is Failure.GENERAL
    assert codec.code_of(codec.failure_of(code)) is ReplyCode.GENERAL_FAILURE


# Any bytes, in any segmentation


@given(MESSAGES)
def test_what_is_encoded_is_parsed_again(message: Message) -> None:
    make, value = message
    assert parse(make, value.encode()) == value


@given(st.ip_addresses(v=4), ports)
def test_an_ipv4_address_is_its_four_bytes(ip: IPv4Address, port: int) -> None:
    packed = socket.inet_pton(socket.AF_INET, str(ip))
    assert codec.encode_address(Address(str(ip), port)) == b"\x01" + packed + port.to_bytes(2, "big")


@given(st.ip_addresses(v=6).filter(lambda ip: not IPv6Address(ip).ipv4_mapped), ports)
def test_an_ipv6_address_is_its_sixteen_bytes(ip: IPv6Address, port: int) -> None:
    packed = socket.inet_pton(socket.AF_INET6, str(ip))
    assert codec.encode_address(Address(str(ip), port)) == b"\x04" + packed + port.to_bytes(2, "big")


@given(MESSAGES, st.binary(max_size=20))
def test_every_prefix_needs_more_and_what_follows_is_left_over(
    message: Message,
    payload: bytes,
) -> None:
    """CASES A1."""
    make, value = message
    data = value.encode()
    for end in range(len(data)):
        assert feed(make, data[:end])[0] is MORE
    assert feed(make, data + payload) == (value, payload)


@given(MESSAGES)
def test_every_cut_gives_the_same_message(message: Message) -> None:
    """CASES A1."""
    make, value = message
    data = value.encode()
    for cut in range(len(data) + 1):
        assert feed(make, data[:cut], data[cut:]) == (value, b"")
    assert feed(make, *(bytes([byte]) for byte in data)) == (value, b"")


@given(greetings, logins, requests, st.lists(st.integers(0, 900), max_size=10))
def test_every_split_of_a_dialogue_gives_the_same_dialogue(
    greeting: Greeting, login: Login, request: Request, cuts: list[int]
) -> None:
    """CASES A1: three messages in a row, in any segments."""

    def dialogue() -> Parser[Any]:
        one = yield from codec.parse_greeting()
        two = yield from codec.parse_login()
        three = yield from codec.parse_request()
        return one, two, three

    data = greeting.encode() + login.encode() + request.encode() + b"early"
    edges = [0, *sorted(cut % len(data) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    assert feed(dialogue, *pieces) == ((greeting, login, request), b"early")


@pytest.mark.parametrize("make", PARSERS, ids=lambda make: make.__name__)
@given(data=st.data())
def test_random_bytes_are_parsed_or_refused_and_nothing_else(
    make: Callable[..., Any], data: st.DataObject
) -> None:
    start = data.draw(st.sampled_from([b"", b"\x05", b"\x01", b"\x03", b"\x05\x01\x00", b"\x05\x01\x00\x03"]))
    junk = start + data.draw(st.binary(max_size=600))
    whole = outcome(make, junk)
    assert outcome(make, *(bytes([byte]) for byte in junk)) == whole


@given(st.binary(max_size=255), ports)
def test_a_name_is_ascii_or_an_address_or_refused(name: bytes, port: int) -> None:
    """CASES A22: whatever bytes a client calls a name, what comes out can travel as one."""
    data = b"\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big")
    try:
        address = parse(codec.parse_address, data)
    except ProtocolError:
        return
    assert address.host.isascii()
    assert parse(codec.parse_address, codec.encode_address(address)) == address


@given(st.integers(0, 512), st.binary(max_size=512))
def test_run_reads_exactly_what_is_asked_for(count: int, payload: bytes) -> None:
    """The reader is never asked for a byte that belongs to what follows."""
    data = Greeting(bytes(count % 256)).encode() + payload
    taken = 0

    def read_exact(size: int) -> bytes:
        nonlocal taken
        taken += size
        return data[taken - size : taken]

    assert run(codec.parse_greeting(), read_exact) == Greeting(bytes(count % 256))
    assert data[taken:] == payload
