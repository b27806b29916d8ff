"""Failed logins, and for how long they are held against an address: the sentences of DESIGN 1.11."""

import random
from collections import Counter
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.address import Address
from proxy.networks import Networks
from proxy.policy.penalties import MOST, Penalties
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol

NOW = 1000.0
ALICE, EVE = Address("192.0.2.1", 0), Address("198.51.100.9", 0)


def sum_of(kept: Penalties, client: Address, now: float = NOW) -> float:
    assert client.ip is not None
    return kept.left(client.ip, now)


def wait(kept: Penalties, client: Address, now: float = NOW, penalty: float = 5.0) -> float:
    assert client.ip is not None
    return kept.wait(client.ip, penalty, now)


def fail(kept: Penalties, client: Address, times: int = 1, now: float = NOW, penalty: float = 5.0) -> None:
    for _ in range(times):
        kept.add(client, penalty, now)


def test_a_failure_adds_a_penalty_which_runs_off_by_a_second_each_second() -> None:
    kept = Penalties()
    fail(kept, EVE, 2)
    assert sum_of(kept, EVE) == 10
    assert sum_of(kept, EVE, NOW + 3) == 7
    fail(kept, EVE, now=NOW + 3)
    assert sum_of(kept, EVE, NOW + 3) == 12
    assert sum_of(kept, EVE, NOW + 100) == 0


def test_up_to_three_penalties_nothing_happens_and_above_it_has_to_run_off_to_that() -> None:
    kept = Penalties()
    fail(kept, EVE, 3)
    assert wait(kept, EVE) == 0
    fail(kept, EVE)
    assert wait(kept, EVE) == 5
    assert wait(kept, EVE, NOW + 4) == 1
    assert wait(kept, EVE, NOW + 5) == 0


def test_it_never_exceeds_a_minute() -> None:
    kept = Penalties()
    fail(kept, EVE, 1000)
    assert sum_of(kept, EVE) == MOST == 60
    assert wait(kept, EVE) == 45


def test_others_have_nothing_of_it() -> None:
    kept = Penalties()
    fail(kept, EVE, 10)
    assert wait(kept, ALICE) == 0
    assert wait(kept, Address("198.51.100.8", 0)) == 0


def test_of_ipv6_a_whole_64_is_one() -> None:
    kept = Penalties()
    for number in range(4):
        fail(kept, Address(f"2001:db8:0:1::{number}", 0))
    assert wait(kept, Address("2001:db8:0:1:ffff::9", 0)) == 5
    assert wait(kept, Address("2001:db8:0:2::1", 0)) == 0


def test_a_mapped_address_is_the_ipv4_one() -> None:
    kept = Penalties()
    fail(kept, Address("::1", 0), 4)
    assert wait(kept, Address("::1", 0)) == 5
    fail(kept, Address("::ffff:198.51.100.9", 0), 4)
    assert wait(kept, EVE) == 5


def test_without_a_penalty_nothing_is_kept() -> None:
    kept = Penalties()
    fail(kept, EVE, 10, penalty=0)
    assert sum_of(kept, EVE) == 0
    fail(kept, EVE, 10)
    assert wait(kept, EVE, penalty=0) == 0  # switched off meanwhile


def test_what_is_forgiven_is_gone() -> None:
    kept = Penalties()
    fail(kept, EVE, 10)
    fail(kept, ALICE)
    assert EVE.ip
    assert kept.forgive(EVE.ip, NOW)
    assert wait(kept, EVE) == 0
    assert not kept.forgive(EVE.ip, NOW)
    assert sum_of(kept, ALICE) == 5
    assert [network for network, _ in kept.latest(NOW)] == ["192.0.2.1"]


def test_the_latest_come_first_and_only_those_of_whom_something_is_left() -> None:
    kept = Penalties()
    fail(kept, ALICE)
    fail(kept, EVE, 2)
    fail(kept, Address("2001:db8::7", 0), 3)
    assert list(kept.latest(NOW)) == [("2001:db8::/64", 15), ("198.51.100.9", 10), ("192.0.2.1", 5)]
    assert list(kept.latest(NOW + 7)) == [("2001:db8::/64", 8), ("198.51.100.9", 3)]


def test_a_million_addresses_have_room_and_take_less_than_64_mib() -> None:
    """Of a thirtieth of them, and of places in the same proportion, none is lost; the size is that of all."""
    kept = Penalties()
    assert kept._keys.nbytes + kept._until.nbytes < 64 << 20
    buckets: Counter[range] = Counter()
    for number in random.Random(11).sample(range(1 << 32), 32_768):
        buckets[kept._bucket(number)] += 1
    assert max(buckets.values()) <= 8  # the places of a bucket; with random ones it is 4 or 5
    few = [Address(str(IPv4Address(0x0B000000 + 7 * number)), 0) for number in range(5000)]
    for client in few:
        fail(kept, client)
    assert all(sum_of(kept, client) == 5 for client in few)
    assert len(list(kept.latest(NOW))) == 1000  # that are told of


def test_a_full_bucket_forgets_who_has_least_left() -> None:
    """To be forgotten is to be forgiven: nobody suffers from others."""
    kept = Penalties()
    kept._bucket = lambda key: range(8)  # type: ignore[method-assign]
    crowd = [Address(f"198.51.100.{number}", 0) for number in range(1, 10)]
    for count, client in enumerate(crowd, 1):
        fail(kept, client, count)
    assert [sum_of(kept, client) for client in crowd] == [0, 10, 15, 20, 25, 30, 35, 40, 45]


@given(st.lists(st.tuples(st.floats(0, 10), st.sampled_from([0.5, 1.0, 5.0, 30.0])), max_size=30))
def test_a_sum_is_what_was_added_less_the_time_that_has_gone(failures: list[tuple[float, float]]) -> None:
    kept, now, expected = Penalties(), NOW, 0.0
    for pause, penalty in failures:
        now += pause
        expected = min(max(expected - pause, 0.0) + penalty, 60.0)
        fail(kept, EVE, now=now, penalty=penalty)
        assert sum_of(kept, EVE, now) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("client", "settings", "punished"),
    [
        ("192.0.2.1", {}, True),
        ("2001:db8::1", {}, True),
        ("127.0.0.1", {}, False),  # it is anybody on this machine, or whoever comes by a server there
        ("::1", {}, False),
        ("127.0.0.1", {"client_address": "proxy_protocol", "trusted": Networks(["10.0.0.0/8"])}, True),
        ("192.0.2.1", {"login_exempt": Networks(["192.0.2.0/24"])}, False),
        ("192.0.3.1", {"login_exempt": Networks(["192.0.2.0/24"])}, True),
        ("192.0.2.1", {"login_penalty": 0.0}, False),
        ("unix", {}, False),
    ],
)
def test_who_is_punished(client: str, settings: dict[str, object], punished: bool) -> None:
    config = ServerConfig(":1080", Protocol.SOCKS5, **settings)  # type: ignore[arg-type]
    assert config.punishes(Address(client, 0)) is punished
