"""Sets of targets: what a rule may name, in every spelling, and what is in it."""

from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.targets import ANY_PORT, ANYWHERE, Ports, Targets, Word, stands_for


def nobodys(ip: object) -> bool:
    """Tell that an address is none of this machine's."""
    return False


def everybodys(ip: object) -> bool:
    """Tell that any address is this machine's."""
    return True


# Names


@pytest.mark.parametrize(
    ("entry", "host", "is_in"),
    [
        ("example.com", "example.com", True),
        ("example.com", "www.example.com", False),
        ("example.com", "example.com.", True),  # absolute: the same name
        ("Example.COM.", "example.com", True),
        ("*.example.com", "example.com", True),  # DESIGN 1.10: also the domain itself
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "notexample.com", False),
        ("*.example.com", "example.com.evil.net", False),
        ("*.com", "example.com", True),
        ("bücher.example", "xn--bcher-kva.example", True),  # RFC 5891
        ("*.bücher.example", "www.xn--bcher-kva.example", True),
        ("localhost", "localhost", True),
        ("10.0.0.0/8", "10.example.com", False),
    ],
)
def test_a_name_is_in_a_set_by_its_labels(entry: str, host: str, is_in: bool) -> None:
    assert Targets([entry]).has_name(host) is is_in


# Addresses


@pytest.mark.parametrize(
    ("entry", "ip", "is_in"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.0/24", "192.0.2.255", True),
        ("192.0.2.9/24", "192.0.2.1", True),  # whatever its host bits are
        ("0xc0000207", "192.0.2.7", True),  # inet_aton(3)
        ("3221225991", "192.0.2.7", True),
        ("127.1", "127.0.0.1", True),
        ("0177.0.0.1", "127.0.0.1", True),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("::ffff:192.0.2.0/120", "192.0.2.7", True),
        ("2001:DB8:0::7", "2001:db8::7", True),
        ("[2001:db8::7]", "2001:db8::7", True),
        ("2001:db8::/32", "2001:db8:ffff::1", True),
        ("2001:db8::/32", "2001:db9::1", False),
        ("0.0.0.0/0", "::1", False),
    ],
)
def test_every_spelling_of_an_address_is_the_address(entry: str, ip: str, is_in: bool) -> None:
    assert Targets([entry]).has_ip(ip_address(ip), nobodys) is is_in


@pytest.mark.parametrize(
    ("written", "inside"),
    [
        ("::ffff:192.0.2.33", "192.0.2.33"),  # RFC 4291, section 2.5.5.2
        ("::192.0.2.33", "192.0.2.33"),  # section 2.5.5.1
        ("64:ff9b::192.0.2.33", "192.0.2.33"),  # RFC 6052, section 2.4
        ("64:ff9b:1::192.0.2.33", "192.0.2.33"),  # RFC 8215
        ("2002:c000:0221::1", "192.0.2.33"),  # RFC 3056, section 2
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "192.0.2.45"),  # the example of RFC 4380, section 4
        ("::1", "::1"),
        ("::", "::"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:1::1", "2001:1::1"),  # beside Teredo's 2001:0::/32
        ("64:ff9c::1", "64:ff9c::1"),
        ("192.0.2.33", "192.0.2.33"),
    ],
)
def test_an_address_that_leads_to_an_ipv4_one_is_that(written: str, inside: str) -> None:
    assert stands_for(ip_address(written)) == ip_address(inside)


@given(st.integers(0, 2**32 - 1))
def test_none_of_the_forms_hides_an_ipv4_address(number: int) -> None:
    ip = ip_address(number)
    for prefix in ("::ffff:", "64:ff9b::", "64:ff9b:1::"):
        assert stands_for(ip_address(f"{prefix}{ip}")) == ip
    assert stands_for(IPv6Address(0x2002 << 112 | number << 80 | 1)) == ip
    assert stands_for(IPv6Address(0x20010000 << 96 | (number ^ 0xFFFFFFFF))) == ip


# Words

LEAST = [
    ("169.254.169.254", Word.METADATA),
    ("169.254.0.1", Word.METADATA),
    ("fe80::1", Word.METADATA),
    ("fe80::1%2", Word.METADATA),
    ("fd00:ec2::254", Word.METADATA),  # AWS, by IPv6
    ("100.100.100.200", Word.METADATA),  # Alibaba
    ("168.63.129.16", Word.METADATA),  # Azure
    ("127.0.0.1", Word.SELF),
    ("127.255.255.254", Word.SELF),
    ("::1", Word.SELF),
    ("0.1.2.3", Word.SELF),
    ("10.0.0.1", Word.PRIVATE),
    ("172.16.0.1", Word.PRIVATE),
    ("172.31.255.255", Word.PRIVATE),
    ("192.168.1.1", Word.PRIVATE),
    ("100.64.0.1", Word.PRIVATE),  # RFC 6598
    ("100.127.255.255", Word.PRIVATE),
    ("fc00::1", Word.PRIVATE),
    ("fdff::1", Word.PRIVATE),
    ("172.32.0.1", None),
    ("100.128.0.1", None),
    ("198.18.0.1", None),  # DESIGN 1.10: what fake-IP resolvers give
    ("8.8.8.8", None),
    ("2001:db8::1", None),
    ("fe00::1", None),
]


@pytest.mark.parametrize(("ip", "least"), LEAST)
def test_each_word_contains_those_before_it(ip: str, least: Word | None) -> None:
    words = list(Word)
    expected = words[words.index(least) :] if least else []
    assert [word for word in words if word.has(ip_address(ip), nobodys)] == expected
    assert [word for word in words if Targets([word.value]).has_ip(ip_address(ip), nobodys)] == expected


def test_this_machines_own_addresses_are_self_and_private_whatever_they_are() -> None:
    ip = ip_address("203.0.113.9")
    assert [word.has(ip, everybodys) for word in Word] == [False, True, True]


# What cannot be one


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("*", "for any target leave it empty"),
        ("a b", "is not a name"),
        ("*.*.example.com", "is not a name"),
        ("www.*.com", "is not a name"),
        ("*.10.0.0.1", "addresses have none"),
        ("10.0.0.0/33", "is not a network"),
        ("example.com/24", "is not a network"),
        ("example.com:80", "is not a name"),
        ("", "is not a name"),
        ("64:ff9b::/96", "judged as the IPv4 addresses inside"),
        ("2002:c000:200::/40", "judged as the IPv4 addresses inside"),
        ("fe80::1%eth0", "is not a name"),
        ("not-a-word!", "is not a name"),
    ],
)
def test_what_names_no_target_is_refused(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Targets([entry])


# Ports


def test_ports_are_numbers_and_ranges() -> None:
    ports = Ports(["22", "8000-8999", "65535"])
    assert [port for port in (21, 22, 23, 7999, 8000, 8999, 9000, 65535) if port in ports] == [
        22,
        8000,
        8999,
        65535,
    ]
    assert str(ports) == "22, 8000-8999, 65535"


@pytest.mark.parametrize("text", ["0", "65536", "9-8", "-1", "http", "", "1-", "22,23", "٢٢"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a port"):
        Ports([text])


# What covers what


@pytest.mark.parametrize(
    ("one", "other", "covers"),
    [
        ("", "", True),
        ("", "example.com", True),
        ("example.com", "", False),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "*.a.example.com", True),
        ("*.example.com", "*.example.com", True),
        ("example.com", "*.example.com", False),
        ("10.0.0.0/8", "10.1.0.0/16, 10.2.3.4", True),
        ("10.0.0.0/8", "10.1.0.0/16, 11.2.3.4", False),
        ("10.1.0.0/16", "10.0.0.0/8", False),
        ("private", "self, metadata", True),
        ("self", "private", False),
        ("10.0.0.0/8", "private", False),
        ("*.example.com, 10.0.0.0/8", "a.example.com, 10.0.0.1", True),
        ("10.0.0.0/8", "2001:db8::1", False),
    ],
)
def test_a_set_that_covers_another_has_all_of_it(one: str, other: str, covers: bool) -> None:
    first, second = (Targets(filter(None, text.split(", "))) for text in (one, other))
    assert first.covers(second) is covers


@pytest.mark.parametrize(
    ("one", "other", "covers"),
    [
        ("", "22", True),
        ("22", "", False),
        ("20-30", "22, 25-26", True),
        ("20-30", "25-31", False),
        ("", "", True),
    ],
)
def test_ports_that_cover_others_have_all_of_them(one: str, other: str, covers: bool) -> None:
    first, second = (Ports(filter(None, text.split(", "))) for text in (one, other))
    assert first.covers(second) is covers


def test_sets_are_values() -> None:
    assert Targets(["Example.com", "10.0.0.0/8"]) == Targets(["example.com", "10.0.0.0/8"])
    assert Targets(["example.com"]) != ANYWHERE
    assert not ANYWHERE
    assert not ANY_PORT
    assert hash(Targets(["self"])) == hash(Targets(["self"]))
    assert str(Targets(["*.Example.com", "10.0.0.9/8", "self"])) == "*.example.com, 10.0.0.0/8, self"
    assert Targets(["example.com", "10.0.0.0/8", "self"]).addresses == ("10.0.0.0/8", "self")
