"""Limits in the file: what is read, refused and warned of."""

import pytest

from proxy.networks import Networks
from proxy.settings.limits import LimitConfig, Per
from proxy.units import Rate
from tests.configfile.reading import LISTENER, problems, read

LIMITS = f"""
[auth_users]
alice = wonderland
{LISTENER}
[limits]
"""


def test_limits_arrive_in_the_order_of_the_file() -> None:
    text = f"""{LIMITS}
[[robots]]
per = client
from = 198.51.100.0/24, 2001:db8::/32
connections = 200
[[fair]]
per = user
user = alice
listener = socks
new = 10/s
bandwidth = 2m
[[a]]
per = all
connections =
bandwidth = "100m"
"""
    robots, fair, everybody = read(text).config.limits
    assert robots == LimitConfig(
        "robots", Per.CLIENT, 200, from_=Networks(["198.51.100.0/24", "2001:db8::/32"])
    )
    assert fair == LimitConfig(
        "fair", Per.USER, new=Rate(10, "s"), bandwidth=2 << 20, user=("alice",), listener=("socks",)
    )
    assert everybody == LimitConfig("a", Per.ALL, bandwidth=100 << 20)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("per = client", "[limits.x] limits nothing: set connections, new or bandwidth"),
        ("connections = 5", "[limits.x] per: is missing"),
        ("per = network\nnew = 1/s", "[limits.x] per: must be one of user, client, all"),
        ("per = user\nnew = 10", "[limits.x] new: not a rate: write a count and a unit, such as 10/s"),
        ("per = user\nconnections = 0", "[limits.x] connections: must be at least 1"),
        ("per = user\nbandwidth = 100", "[limits.x] bandwidth: must be at least 1k"),
        (
            "per = all\nnew = 1/s\nlistener = sock",
            "[limits.x] listener: there is no sock in [listeners]; did you mean socks?",
        ),
        (
            "per = all\nnew = 1/s\nfrom = 10.0.0.0/33",
            "[limits.x] from: '10.0.0.0/33' is not an address or a network",
        ),
        ("per = all\nnew = 1/s\nuser = a, a", "[limits.x] user: has an empty name, or the same one twice"),
        (
            "per = all\nnew = 1/s\ntimeout = 5s",
            "[limits.x] timeout: unknown key here: it belongs into [proxy]",
        ),
    ],
)
def test_refuses_a_wrong_limit(settings: str, expected: str) -> None:
    (problem,) = problems(f"{LIMITS}[[x]]\n{settings}\n")
    assert expected in problem


def test_a_limit_may_be_for_a_user_that_is_not_there_yet_and_that_is_said() -> None:
    (warning,) = read(f"{LIMITS}[[x]]\nper = all\nnew = 1/s\nuser = alice, bbo\n").warnings
    assert str(warning).endswith("[limits.x] user: not in [auth_users]: bbo")
