"""
Limits as they are counted, by a clock of our own.
"""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import limiter as module
from proxy.address import Address, UnixAddress
from proxy.errors import Failure, OverLimitError
from proxy.limiter import Limiter, Stay, Who, shown
from proxy.networks import Networks
from proxy.settings.limits import LimitConfig, Per
from proxy.units import Rate


class Program:
    """A limiter, and the connections that come to it."""

    def __init__(self, *limits: LimitConfig) -> None:
        self.now = 1000.0
        self.limiter = Limiter(limits, lambda: self.now)

    def come(self, client: str = "192.0.2.7", user: str = "", listener: str = "web") -> Stay:
        """Come in all the way; raises ``OverLimitError``."""
        stay = Stay()
        try:
            self.limiter.arrive(stay, who(client, "", listener), most_refused=5)
            self.limiter.admit(stay, who(client, user, listener))
        except OverLimitError:
            self.limiter.leave(stay)
            raise
        return stay

    def count(self, times: int, client: str = "192.0.2.7", user: str = "") -> int:
        """Count how many of so many come in."""
        came = 0
        for _ in range(times):
            try:
                self.come(client, user)
                came += 1
            except OverLimitError:
                pass
        return came

    @property
    def live(self) -> dict[tuple[str, str], int]:
        """Who has how many connections under which limit."""
        return {(each.settings.name, shown(each.identity)): each.live for each in self.limiter.accounts}


def who(client: str = "192.0.2.7", user: str = "", listener: str = "web") -> Who:
    return Who(Address(client, 5000), user, listener)


def limit(
    name: str = "fair", per: Per = Per.CLIENT, connections: int | None = None, **more: object
) -> LimitConfig:
    return LimitConfig(name, per, connections, **more)  # type: ignore[arg-type]


# -- connections


def test_so_many_connections_may_live_and_one_that_leaves_makes_room() -> None:
    program = Program(limit(connections=2))
    first, _ = program.come(), program.come()
    with pytest.raises(OverLimitError) as caught:
        program.come()
    assert str(caught.value) == "limit fair"
    assert (caught.value.failure, caught.value.identity) == (Failure.TOO_MANY, "192.0.2.7")
    program.limiter.leave(first)
    program.limiter.leave(first)  # once is enough
    program.come()
    assert program.count(1) == 0


def test_handshakes_count_before_anybody_has_logged_in() -> None:
    program = Program(limit(connections=2))
    waiting = [Stay(), Stay()]
    for each in waiting:
        program.limiter.arrive(each, who(), most_refused=5)
    assert program.count(1) == 0
    program.limiter.admit(waiting[0], who(user="alice"))  # it counts already
    program.limiter.leave(waiting[1])
    assert program.count(2) == 1


def test_who_found_no_room_is_judged_again_when_its_request_is_there() -> None:
    program = Program(limit(connections=1))
    first, second = program.come(), Stay()
    program.limiter.arrive(second, who(), most_refused=5)
    program.limiter.leave(first)
    program.limiter.admit(second, who())
    assert program.count(1) == 0


def test_of_those_to_be_refused_only_so_many_are_kept_until_they_can_be_told() -> None:
    """Else whoever says nothing would hold as many places as it likes."""
    program = Program(limit(connections=1))
    program.come()
    kept = [Stay() for _ in range(5)]
    for each in kept:
        program.limiter.arrive(each, who(), most_refused=5)
    with pytest.raises(OverLimitError):
        program.limiter.arrive(Stay(), who(), most_refused=5)
    program.limiter.arrive(Stay(), who("198.51.100.1"), most_refused=5)  # nothing is taken from others
    program.limiter.leave(kept[0])
    program.limiter.arrive(Stay(), who(), most_refused=5)


# -- new ones


def test_a_bucket_of_new_ones_holds_exactly_that_many_and_fills_at_the_rate() -> None:
    program = Program(limit(new=Rate(10, "s")))
    assert program.count(50) == 10
    program.now += 0.1
    assert program.count(50) == 1
    program.now += 100
    assert program.count(50) == 10


@pytest.mark.parametrize(("rate", "seconds"), [(Rate(5, "m"), 12), (Rate(100, "h"), 36)])
def test_a_refusal_says_after_how_many_seconds_there_is_another(rate: Rate, seconds: float) -> None:
    program = Program(limit(new=rate))
    program.count(rate.count)
    with pytest.raises(OverLimitError) as caught:
        program.come()
    assert caught.value.retry_after == pytest.approx(seconds)


def test_who_is_refused_takes_nothing_out() -> None:
    program = Program(limit(new=Rate(10, "s")), limit("all", Per.ALL, 1))
    stay = program.come()
    assert program.count(50) == 0  # by the other limit, and so without a token of this one
    program.limiter.leave(stay)
    for _ in range(9):
        program.limiter.leave(program.come())
    assert program.count(1) == 0


def test_a_login_takes_of_its_user_and_gives_back_what_its_address_had_given() -> None:
    """Many users may come from one address, and those without a login too."""
    program = Program(limit(per=Per.USER, new=Rate(2, "m")))
    for user in ("alice", "bob", "carol"):
        assert program.count(5, user=user) == 2
    assert set(program.live) == {("fair", user) for user in ("alice", "bob", "carol")}
    assert program.count(5) == 2  # its own, of those without a login


def test_who_leaves_in_its_handshake_has_taken_of_its_address() -> None:
    program = Program(limit(per=Per.USER, new=Rate(2, "m")))
    stay = Stay()
    program.limiter.arrive(stay, who(), most_refused=5)
    program.limiter.leave(stay)
    assert program.count(5) == 1


# -- who shares


def test_per_client_is_an_address_and_of_ipv6_a_64() -> None:
    program = Program(limit(connections=1))
    for one, other in (
        ("192.0.2.7", "192.0.2.8"),
        ("2001:db8:0:1::1", "2001:db8:0:2::1"),
    ):
        assert program.count(2, one) == 1
        assert program.count(2, other) == 1
    assert program.count(1, "2001:db8:0:1:ffff::9") == 0
    assert (
        program.count(1, "::ffff:192.0.2.7") == 0
    )  # mapped, it is the IPv4 address (RFC 4291, section 2.5.5.2)


def test_all_that_come_by_unix_sockets_are_one_client() -> None:
    program = Program(limit(connections=1))
    stay = Stay()
    program.limiter.admit(stay, Who(UnixAddress(), "", "web"))
    with pytest.raises(OverLimitError):
        program.limiter.admit(Stay(), Who(UnixAddress(), "", "web"))


def test_per_user_is_a_user_wherever_it_comes_from_and_who_has_none_is_its_address() -> None:
    program = Program(limit(per=Per.USER, connections=1))
    program.come("192.0.2.1", "alice")
    assert program.count(1, "192.0.2.2", "alice") == 0
    assert program.count(1, "192.0.2.1", "bob") == 1
    assert program.count(2, "192.0.2.1") == 1
    assert program.count(1, "192.0.2.3", "192.0.2.1") == 1  # a user of this name is no client


def test_per_all_is_everybody_at_every_listener() -> None:
    program = Program(limit(per=Per.ALL, connections=2))
    program.come("192.0.2.1", "alice", "web")
    program.come("192.0.2.2", "bob", "socks")
    assert program.count(1, "192.0.2.3") == 0


# -- which section


def test_of_sections_with_the_same_per_the_first_that_matches_holds() -> None:
    program = Program(
        limit("near", from_=Networks(["10.0.0.0/8"]), connections=3),
        limit("rest", connections=1),
    )
    assert program.count(5, "10.0.0.1") == 3
    assert program.count(5, "192.0.2.7") == 1


def test_sections_with_another_per_hold_together() -> None:
    program = Program(limit("one", connections=2), limit("user", Per.USER, 3), limit("all", Per.ALL, 4))
    assert program.count(5, "192.0.2.1", "alice") == 2
    assert program.count(5, "192.0.2.2", "alice") == 1
    assert program.count(5, "192.0.2.3", "bob") == 1


def test_a_section_for_a_user_holds_from_the_login_on() -> None:
    program = Program(limit("vip", user=("alice",), connections=3), limit("rest", connections=1))
    program.come(user="alice")
    assert program.live == {("vip", "192.0.2.7"): 1}  # and no more in the one that held before
    assert program.count(5, user="alice") == 2
    assert program.count(5, user="bob") == 1


# -- memory


def test_who_has_nothing_and_is_owed_nothing_is_forgotten() -> None:
    program = Program(
        limit(connections=5), limit("new", Per.USER, new=Rate(1, "h")), limit("all", Per.ALL, 9)
    )
    stays = [program.come(f"192.0.2.{number}") for number in range(1, 6)]
    for each in stays:
        program.limiter.leave(each)
    assert {name for name, _ in program.live} == {"new"}
    program.now += 3600
    for number in range(5):
        program.limiter.leave(program.come(f"198.51.100.{number}"))
    assert not [each for _, each in program.limiter._accounts if each.client.startswith("192.0.2.")]


def test_what_is_kept_of_those_who_have_left_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_IDLE", 10)
    program = Program(limit(new=Rate(1, "h")))
    for number in range(200):
        program.limiter.leave(program.come(f"198.51.100.{number}"))
        assert program.count(1, f"198.51.100.{number}") == 0
    assert len(program.limiter._accounts) <= 11


def test_those_who_are_only_refused_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(limit(connections=1), limit("all", Per.ALL, 1))
    program.come("192.0.2.1")
    for number in range(200):
        assert program.count(1, f"198.51.100.{number}") == 0
    assert len(program.limiter._accounts) <= 10
    assert program.limiter.refusals == {"all": 200}


# -- changes


def test_a_change_holds_for_those_who_live_and_makes_nobody_leave() -> None:
    program = Program(limit(connections=5))
    stays = [program.come() for _ in range(4)]
    program.limiter.change([limit(connections=2)])
    for each in stays:
        program.limiter.renew(each, who())
    assert program.live == {("fair", "192.0.2.7"): 4}
    for each in stays[:2]:
        program.limiter.leave(each)
        assert program.count(1) == (each is stays[2])
    program.limiter.leave(stays[2])
    assert program.count(2) == 1


def test_a_limit_that_is_new_counts_those_who_live_but_takes_no_token_of_them() -> None:
    program = Program()
    stays = [program.come() for _ in range(4)]
    program.limiter.change([limit(connections=5, new=Rate(3, "s"))])
    for each in stays:
        program.limiter.renew(each, who())
    assert program.live == {("fair", "192.0.2.7"): 4}
    assert program.count(5) == 1
    program.limiter.change([])
    for each in stays:
        program.limiter.renew(each, who())
    assert program.live == {}
    assert program.count(100) == 100


def test_a_limit_that_stays_keeps_what_it_has_counted() -> None:
    program = Program(limit(new=Rate(10, "s")))
    program.count(10)
    program.limiter.change([limit(new=Rate(10, "s"), connections=50)])
    assert program.count(1) == 0


@pytest.mark.parametrize("per", list(Per))
def test_those_who_live_are_counted_for_others_when_others_share_a_limit(per: Per) -> None:
    program = Program(limit(per=Per.USER, connections=5))
    stays = [program.come(), program.come()]
    program.limiter.change([limit(per=per, connections=5)])
    for each in stays:
        program.limiter.renew(each, who())
    assert list(program.live.values()) == [2]
    assert program.count(5) == 3
    for each in stays:
        program.limiter.leave(each)
    assert list(program.live.values()) == [3]


def test_bandwidth_is_shared_by_those_of_one_identity_and_changes_for_them_at_once() -> None:
    program = Program(limit(bandwidth=1 << 20), limit("all", Per.ALL, bandwidth=8 << 20))
    mine, too, yours = program.come("192.0.2.1"), program.come("192.0.2.1"), program.come("192.0.2.2")
    assert mine.throttles == too.throttles
    (my_sent, all_sent), (my_received, all_received) = mine.throttles
    assert (my_sent.rate, my_received.rate, all_sent.rate) == (1 << 20, 1 << 20, 8 << 20)
    assert len({my_sent, my_received, all_sent, all_received}) == 4  # each direction has its own
    assert yours.throttles[0] == (yours.throttles[0][0], all_sent)
    assert yours.throttles[0][0] is not my_sent
    program.limiter.change([limit(bandwidth=2 << 20)])
    for each, client in ((mine, "192.0.2.1"), (too, "192.0.2.1"), (yours, "192.0.2.2")):
        program.limiter.renew(each, who(client))
    assert mine.throttles == too.throttles == ((my_sent,), (my_received,))
    assert my_sent.rate == 2 << 20
    program.limiter.change([limit(connections=5)])
    program.limiter.renew(mine, who("192.0.2.1"))
    assert not any(mine.throttles)


# -- all together

CLIENTS = [f"192.0.2.{number}" for number in range(3)]
STEPS = st.lists(
    st.tuples(st.sampled_from(CLIENTS), st.sampled_from(["", "alice", "bob"]), st.integers(0, 5))
)


@given(STEPS)
def test_however_connections_come_and_go_each_counts_once(steps: Iterable[tuple[str, str, int]]) -> None:
    program = Program(
        limit("vip", user=("alice",), connections=2),
        limit("rest", connections=1),
        limit("user", Per.USER, 3, new=Rate(4, "s")),
        limit("all", Per.ALL, 4),
    )
    living: list[Stay] = []
    for client, user, leaves in steps:
        program.now += 0.1
        try:
            living.append(program.come(client, user))
        except OverLimitError:
            pass
        for each in living[:leaves]:
            program.limiter.leave(each)
        del living[:leaves]
        counted = sum(account.live for account in program.limiter.accounts)
        assert counted == 3 * len(living)
        for account in program.limiter.accounts:
            assert account.live <= (account.settings.connections or 99)
            assert account.refused == 0
    for each in living:
        program.limiter.leave(each)
    assert not any(account.live for account in program.limiter.accounts)
