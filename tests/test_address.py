"""Addresses: what is one, in which spelling, and which two exclude each other."""

import subprocess
import sys
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import address as module
from proxy.address import Address, Endpoint, canonical_host, read_ip
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
        ("WWW.Example.COM", "www.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),  # RFC 3492's usual example
        # What inet_aton of the C library reads as 127.0.0.1.
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
    ],
)
def test_a_host_has_one_spelling(text: str, canonical: str) -> None:
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
def test_refuses_what_is_no_host(host: str) -> None:
    """CASES A19, A26, C76."""
    with pytest.raises(ProtocolError):
        canonical_host(host)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        # UTS 46, section 4, table 1: names that IDNA 2003 read as others.
        ("faß.de", "xn--fa-hia.de"),
        ("βόλος.com", "xn--nxasmm1c.com"),
        ("ශ්\u200dරී.com", "xn--10cl1a0b660p.com"),
        ("نامه\u200cای.com", "xn--mgba3gch31f060k.com"),
        # What a keyboard may give: capitals, full-width letters, and the dots of RFC 3490, section 3.1.
        ("BÜCHER.Example", "xn--bcher-kva.example"),
        ("ｅｘａｍｐｌｅ。ＣＯＭ", "example.com"),
        ("bücher.example.", "xn--bcher-kva.example."),
        ("_dmarc.bücher.example", "_dmarc.xn--bcher-kva.example"),
        ("１２７．０．０．１", "127.0.0.1"),  # no way round a rule about addresses
        ("１２７。１", "127.0.0.1"),
    ],
)
def test_a_name_that_is_not_ascii_is_spelt_by_idna_2008(text: str, canonical: str) -> None:
    """Case 308."""
    assert canonical_host(text) == canonical
    assert Endpoint.parse(f"wss://{text}/").host == canonical
    assert Address(text, 80) == Address(canonical, 80)


@pytest.mark.parametrize(
    "host",
    [
        "a\u200db.test",  # RFC 5892, appendix A: a joiner where nothing is joined
        "a\u200cb.test",
        "☃.test",  # a symbol is no letter
        "\u0300a.test",  # begins with a combining mark
        "אa.test",  # runs in two directions
        "ü" * 64 + ".test",
        "ü..test",
        "ü／b.test",  # mapped to a slash
        "\udcff.test",
    ],
)
def test_refuses_what_idna_2008_does_not_allow(host: str) -> None:
    """Case 308."""
    with pytest.raises(ProtocolError):
        canonical_host(host)


@pytest.mark.parametrize("missing", ["idna", "unicodedata"])
def test_without_the_means_for_other_names_only_these_are_refused(missing: str) -> None:
    """Case 348: small appliances have a Python without some of its modules."""
    program = f"""
import sys
sys.modules[{missing!r}] = None
from proxy.address import Address
from proxy.errors import ProtocolError
assert Address("example.com", 80).host == "example.com"
try:
    Address("bücher.example", 80)
except ProtocolError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("this Python cannot read a host name that is not ASCII: "), done.stderr


def test_no_work_is_done_for_a_host_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 370."""
    monkeypatch.setattr(module, "to_ascii", lambda host: pytest.fail("it was worked on"))
    for host in ("\u4e00" * 86, "".join(map(chr, range(0x4E00, 0x51E8)))):
        with pytest.raises(ProtocolError, match="longer than 255"):
            canonical_host(host)


def test_only_what_was_taken_is_remembered() -> None:
    """Case 373."""
    module._read_host.cache_clear()
    for host in ("x" * 8192, "a b", "☃.test", "a" * 64, "\udcff"):
        with pytest.raises(ProtocolError):
            canonical_host(host)
    assert module._read_host.cache_info().currsize == 0
    assert canonical_host("example.com") == "example.com"
    assert module._read_host.cache_info().currsize == 1
    assert module._read_host.cache_parameters()["maxsize"] * module.MAX_NAME < 1 << 20


@pytest.mark.parametrize("port", [-1, 65536])
def test_refuses_a_port_that_does_not_exist(port: int) -> None:
    with pytest.raises(ProtocolError, match="port"):
        Address("example.com", port)


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("2001:db8:0:1::6", "2001:db8:0:1::/64"),
        ("2001:db8::1", "2001:db8::/64"),
    ],
)
def test_an_ipv6_client_is_known_by_the_network_that_it_has_to_itself(host: str, network: str) -> None:
    assert Address(host, 0).network == network


@pytest.mark.parametrize(
    ("text", "ip"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:DB8::7", "2001:db8::7"),
        ("1.2.3", "None"),  # to the C library it is 1.2.0.3
        ("2130706433", "None"),
        ("0x7f.1", "None"),
        ("fe80::1%eth0", "None"),
        ("a.example", "None"),
        ("", "None"),
    ],
)
def test_an_ip_address_that_an_operator_writes_is_written_in_full(text: str, ip: str) -> None:
    assert str(read_ip(text)) == ip


def test_an_address_shows_an_ipv6_host_in_brackets() -> None:
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
def test_reads_each_form_of_an_endpoint(text: str, scheme: str, expected: Endpoint) -> None:
    assert Endpoint.parse(text, scheme=scheme) == expected


@pytest.mark.parametrize(
    "text", ["[fe80::1%eth0]:1080", "tcp://[FE80:0::1%eth0]:1080/", "[fe80::1%25eth0]:1080"]
)
def test_an_endpoint_may_be_link_local_on_an_interface(text: str) -> None:
    """Case 342; the last one as RFC 6874 writes it in a URL."""
    endpoint = Endpoint.parse(text)
    assert str(endpoint) == str(endpoint.address) == "[fe80::1%eth0]:1080"
    assert endpoint.address.ip == IPv6Address("fe80::1%eth0")
    assert endpoint.server_name == "fe80::1"


def test_a_host_cannot_name_the_interface() -> None:
    """Cases 26 and 342."""
    with pytest.raises(ProtocolError, match="zone"):
        Address("fe80::1%eth0", 80)


def test_tls_and_http_know_a_server_without_the_dot_at_its_end() -> None:
    """RFC 6066, section 3."""
    assert Endpoint.parse("wss://example.com./").server_name == "example.com"
    assert Endpoint.parse("wss://example.com./").host == "example.com."


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
        ("h:１０８０", "port is not a number"),
        ("a b:1080", "no blanks"),
        ("h:1080\n", "no blanks"),
        ("ftp://h", "scheme"),
        ("user:secret@h:1", "credentials"),
        ("tcp://h:1/path", "path"),
        ("ws://h/#part", "fragment"),
        ("ws://h/ü", "only ASCII"),
        ("[fe80::1]:1080", r"interface .* missing: write \[fe80::1%eth0\]"),  # case 342
        ("[fe80::1%]:1080", "interface .* missing"),
        ("[2001:db8::1%eth0]:1080", "only a link-local"),
        ("[fe80::1%eth0%eth1]:1080", "only a link-local"),
        ("*:1080", "host name"),
        ("unix:socks.sock", "whole path"),
        ("unix:", "whole path"),
        ("unix:/run/", "whole path"),
        ("unix:/run/" + 103 * "x", "longer than 107 bytes"),
    ],
)
def test_says_what_is_wrong_with_an_endpoint(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as caught:
        Endpoint.parse(text)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_an_endpoint_or_a_value_error(text: str) -> None:
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
        ("a.example:80", "a.example:80", True),
        (":80", "a.example:80", True),
        ("a.example:80", "b.example:80", False),  # whose addresses are one takes a lookup to know
        ("0.0.0.0:80", "a.example:80", False),
        ("unix:/run/a", "unix:/run/a", True),
        ("unix:/run/a", "unix:///run/a", True),
        ("unix:/run/a", "unix:/run/b", False),
        ("unix:/run/a", ":1080", False),
    ],
)
def test_knows_which_endpoints_exclude_each_other(one: str, other: str, expected: bool) -> None:
    assert Endpoint.parse(one).overlaps(Endpoint.parse(other)) is expected
    assert Endpoint.parse(other).overlaps(Endpoint.parse(one)) is expected
