"""
Whom a section is for.
"""

from ipaddress import ip_address

import pytest

from proxy.networks import Networks
from proxy.policy.selectors import is_for
from proxy.settings.limits import LimitConfig, Per

HERE = ip_address("192.0.2.7")


def section(user: str = "", from_: str = "", listener: str = "") -> LimitConfig:
    return LimitConfig(
        "x",
        Per.ALL,
        1,
        user=tuple(user.split()),
        from_=Networks(from_.split()),
        listener=tuple(listener.split()),
    )


def test_a_section_that_asks_for_nothing_is_for_anybody() -> None:
    assert is_for(section(), "", None, "")
    assert is_for(section(), "alice", HERE, "web")


@pytest.mark.parametrize(
    ("asked", "holds"),
    [
        (section(user="alice bob"), True),
        (section(user="bob"), False),
        (section(from_="198.51.100.1 192.0.2.0/24"), True),
        (section(from_="198.51.100.0/24"), False),
        (section(listener="socks web"), True),
        (section(listener="socks"), False),
        (section("alice", "192.0.2.7", "web"), True),
        (section("alice", "192.0.2.8", "web"), False),
        (section("alice", "192.0.2.7", "socks"), False),
        (section("bob", "192.0.2.7", "web"), False),
    ],
)
def test_all_that_it_asks_for_has_to_be_so_and_of_each_list_any(asked: LimitConfig, *, holds: bool) -> None:
    assert is_for(asked, "alice", HERE, "web") is holds


def test_who_is_not_logged_in_is_no_user_and_who_has_no_address_comes_from_nowhere() -> None:
    assert not is_for(section(user="alice"), "", HERE, "web")
    assert not is_for(section(from_="0.0.0.0/0 ::/0"), "alice", None, "web")
