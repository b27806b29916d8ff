"""Addresses: what is one, in which spelling, and which two exclude each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.address import Address, Endpoint, canonical_host, without_query
from proxy.errors import ProtocolError


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("www.example.com", "www.example.com"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("example.com.", "example.com."),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),  # RFC 5952
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("bücher.example", "xn--bcher-kva.example"),  # RFC 3492's usual example
        # What inet_aton of the C library reads as 127.0.0.1.
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
    ],
)
def test_a_host_has_one_spelling(text, canonical):
    """CASES A22, A25, A26."""
    assert canonical_host(text) == canonical


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "a b",
        "a\0b",
        "a\nb",
        "[::1]",
        "fe80::1%eth0",
        "a..b",
        "-a",
        "x" * 64,
        "a." * 128,
        "1.2.3.4.5",
        "a/b",
    ],
)
def test_refuses_what_is_no_host(host):
    """CASES A19, A26, C76."""
    with pytest.raises(ProtocolError):
        canonical_host(host)


@pytest.mark.parametrize("port", [-1, 65536])
def test_refuses_a_port_that_does_not_exist(port):
    with pytest.raises(ProtocolError, match="port"):
        Address("example.com", port)


def test_an_address_shows_an_ipv6_host_in_brackets():
    assert str(Address("::1", 80)) == "[::1]:80"
    assert str(Address("example.com", 80)) == "example.com:80"


@pytest.mark.parametrize(
    ("text", "scheme", "expected"),
    [
        ("127.0.0.1:1080", "tcp", Endpoint("tcp", "127.0.0.1", 1080)),
        (":1080", "tcp", Endpoint("tcp", "", 1080)),
        ("[::1]:1080", "tcp", Endpoint("tcp", "::1", 1080)),
        ("localhost:0", "ws", Endpoint("ws", "localhost", 0)),
        ("tcp://localhost:1080/", "tcp", Endpoint("tcp", "localhost", 1080)),
        ("tcp://localhost:1080", "ws", Endpoint("tcp", "localhost", 1080)),
        ("socks5://localhost", "tcp", Endpoint("socks5", "localhost", 1080)),
        ("ws://localhost:1080/", "tcp", Endpoint("ws", "localhost", 1080)),
        ("ws://localhost", "tcp", Endpoint("ws", "localhost", 80)),
        ("wss://gateway.example.com/tunnel", "tcp", Endpoint("wss", "gateway.example.com", 443, "/tunnel")),
        ("WSS://Gateway.Example.com/Tunnel", "tcp", Endpoint("wss", "gateway.example.com", 443, "/Tunnel")),
        ("wss://[2001:db8::1]/a?b=c", "tcp", Endpoint("wss", "2001:db8::1", 443, "/a?b=c")),
        ("ws://h?b=c", "tcp", Endpoint("ws", "h", 80, "/?b=c")),
    ],
)
def test_reads_each_form_of_an_endpoint(text, scheme, expected):
    assert Endpoint.parse(text, scheme=scheme) == expected


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "port is missing"),
        ("localhost", "port is missing"),
        ("localhost:", "port is missing"),
        ("ws://localhost:", "port is missing"),
        ("[::1]", "port is missing"),
        ("::1:1080", "brackets"),
        ("[]:1080", "brackets"),
        ("[::1", "brackets"),
        ("[::1]x:1080", "brackets"),
        ("[127.0.0.1]:1080", "brackets"),
        ("h:65536", "port is not a number"),
        ("h:1_080", "port is not a number"),
        ("h:+80", "port is not a number"),
        ("h:nan", "port is not a number"),
        ("h:１０８０", "only ASCII"),
        ("a b:1080", "no blanks"),
        ("h:1080\n", "no blanks"),
        ("http://h", "scheme"),
        ("user:secret@h:1", "credentials"),
        ("tcp://h:1/path", "path"),
        ("ws://h/#part", "fragment"),
        ("*:1080", "host name"),
    ],
)
def test_says_what_is_wrong_with_an_endpoint(text, hint):
    with pytest.raises(ValueError, match=hint) as caught:
        Endpoint.parse(text)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_an_endpoint_or_a_value_error(text):
    try:
        endpoint = Endpoint.parse(text)
    except ValueError:
        return
    assert Endpoint.parse(str(endpoint)) == Endpoint(
        endpoint.scheme.replace("socks5", "tcp"), endpoint.host, endpoint.port, endpoint.path
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (":1080", "127.0.0.1:1080", True),
        (":1080", "[::1]:1080", True),
        ("0.0.0.0:1080", "127.0.0.1:1080", True),
        ("[::]:1080", "[::1]:1080", True),
        ("127.0.0.1:1080", "ws://127.0.0.1:1080/x", True),
        ("0.0.0.0:1080", "[::]:1080", False),
        ("[::]:1080", "127.0.0.1:1080", False),
        ("127.0.0.1:1080", "127.0.0.2:1080", False),
        ("127.0.0.1:1080", "127.0.0.1:1081", False),
        (":0", ":0", False),  # the kernel gives each another port
    ],
)
def test_knows_which_endpoints_exclude_each_other(one, other, expected):
    assert Endpoint.parse(one).overlaps(Endpoint.parse(other)) is expected
    assert Endpoint.parse(other).overlaps(Endpoint.parse(one)) is expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("wss://gw/t?token=x", "wss://gw/t?********"),
        ("gw:80?x?y", "gw:80?********"),
        ("wss://gw/t", "wss://gw/t"),
        ("wss://gw/t?", "wss://gw/t?"),
    ],
)
def test_the_query_of_an_address_is_not_shown(text, shown):
    """CASES H210: it may be a token."""
    assert without_query(text) == shown
