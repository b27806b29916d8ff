"""Sets of addresses: what is in them is judged by the standard library, one network after the other."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.networks import Networks

V4 = st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = st.integers(0, 2**128 - 1).filter(lambda number: number >> 32 != 0xFFFF).map(IPv6Address)


PREFIXES = st.tuples(V4, st.integers(0, 32)) | st.tuples(V6, st.integers(0, 128))


@given(st.lists(PREFIXES.map(lambda each: f"{each[0]}/{each[1]}"), max_size=6), st.data())
def test_an_address_is_in_it_if_it_is_in_one_of_its_networks(texts: list[str], data: st.DataObject) -> None:
    written = [ip_network(text, strict=False) for text in texts]
    near = [st.integers(int(each[0]), int(each[-1])).map(type(each[0])) for each in written]
    ip = data.draw(st.one_of(V4, V6, *near))
    assert (ip in Networks(texts)) is any(ip in each for each in written)


def test_an_address_alone_is_a_network_of_one() -> None:
    assert ip_address("192.0.2.7") in Networks(["192.0.2.7"])
    assert ip_address("192.0.2.8") not in Networks(["192.0.2.7"])


def test_a_mapped_network_is_the_one_inside() -> None:
    """A client's address comes as the IPv4 one, however its socket names it."""
    assert ip_address("192.0.2.7") in Networks(["::ffff:192.0.2.0/120"])
    assert ip_address("192.0.3.7") not in Networks(["::ffff:192.0.2.0/120"])


@pytest.mark.parametrize(
    "text", ["", "10.0.0.0/33", "10.0.0", "name.example", "10.0.0.0/8/8", "fe80::1%eth0/x"]
)
def test_what_is_no_network_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address or a network"):
        Networks(["192.0.2.1", text])


def test_it_is_written_as_it_can_be_read_again() -> None:
    networks = Networks(["10.1.2.3/8", "192.0.2.7", "2001:DB8::/32"])
    assert str(networks) == "10.0.0.0/8, 192.0.2.7/32, 2001:db8::/32"
    assert Networks(str(networks).split(", ")) == networks
    assert hash(Networks(["10.0.0.0/8"])) == hash(Networks(["10.9.9.9/8"]))
    assert not Networks()
