"""
Buckets that fill up again, by a clock that is given.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.address import Address
from proxy.policy.limits import Bucket, Identity, Meter, identity_of
from proxy.settings.limits import Per

MOMENTS = st.floats(0, 1e6)
AMOUNTS = st.floats(0, 1e9)


def taken_in(bucket: Bucket, moments: list[float]) -> int:
    """Count how many of those who come at these moments get one."""
    count = 0
    for now in moments:
        if not bucket.wait(1, now):
            bucket.take(1, now)
            count += 1
    return count


def test_a_bucket_holds_exactly_that_many_at_once() -> None:
    bucket = Bucket(10, 10, 100.0)
    assert taken_in(bucket, [100.0] * 50) == 10


def test_what_was_taken_comes_back_at_the_rate() -> None:
    bucket = Bucket(10, 10, 100.0)
    bucket.take(10, 100.0)
    assert bucket.wait(1, 100.0) == pytest.approx(0.1)
    assert bucket.wait(1, 100.05) == pytest.approx(0.05)
    assert bucket.wait(1, 100.1) == 0
    assert bucket.wait(10, 101.0) == 0


def test_a_bucket_never_holds_more_than_its_size() -> None:
    bucket = Bucket(10, 10, 100.0)
    bucket.take(10, 100.0)
    assert bucket.level(1e6) == 10
    assert taken_in(bucket, [1e6] * 50) == 10


def test_what_is_taken_beyond_it_is_a_debt_that_is_paid_off_at_the_rate() -> None:
    bucket = Bucket(1000, 50, 0.0)
    bucket.take(550, 0.0)
    assert bucket.level(0.0) == -500
    assert bucket.wait(0, 0.0) == pytest.approx(0.5)
    assert bucket.wait(0, 0.5) == 0


def test_it_is_full_when_nothing_is_missing() -> None:
    bucket = Bucket(10, 10, 0.0)
    assert bucket.is_full(0.0)
    bucket.take(1, 0.0)
    assert not bucket.is_full(0.09)
    assert bucket.is_full(0.1)


def test_another_rate_holds_from_now_on_and_a_debt_of_the_old_one_is_no_more_than_the_new_size() -> None:
    bucket = Bucket(1e6, 1e5, 0.0)
    bucket.take(1e6, 0.0)
    bucket.become(1000, 50, 0.0)
    assert bucket.wait(0, 0.0) == pytest.approx(0.05)  # and not 900 s
    bucket.become(1000, 5000, 10.0)
    assert bucket.level(10.0) == 50  # what is won by a change is not more than there was


@given(st.floats(0.001, 1e6), st.floats(1, 1e6), st.lists(st.floats(0, 10), max_size=50))
def test_in_any_time_no_more_comes_through_than_the_size_and_the_rate(
    rate: float, size: float, pauses: list[float]
) -> None:
    now, taken, bucket = 0.0, 0, Bucket(rate, size, 0.0)
    for pause in pauses:
        now += pause
        while taken < 1000 and not bucket.wait(1, now):
            bucket.take(1, now)
            taken += 1
        assert taken <= (size + rate * now) * (1 + 1e-6)


@given(st.floats(0.001, 1e9), st.floats(1, 1e9), AMOUNTS, AMOUNTS, MOMENTS)
def test_who_has_waited_for_so_much_finds_it(
    rate: float, size: float, taken: float, amount: float, now: float
) -> None:
    """Rounding makes nobody wait a second time, which a loop would do thousands of times."""
    bucket = Bucket(rate, size, now)
    bucket.take(taken, now)
    amount = min(amount, size)
    later = now + bucket.wait(amount, now)
    missing = amount - bucket.level(later)
    assert missing <= 1e-9 * size + rate * 1e-9 * max(1.0, later)


def test_a_meter_tells_what_there_is_in_a_second_and_forgets_what_was_long_ago() -> None:
    meter = Meter(100.0)
    assert meter.rate(100.0) == 0
    for tenth in range(300):
        meter.add(50, 100.0 + tenth / 10)
    assert meter.rate(130.0) == pytest.approx(500, rel=0.05)
    assert meter.rate(133.0) < 200
    assert meter.rate(1000.0) == pytest.approx(0)


@pytest.mark.parametrize(
    ("per", "user", "client", "expected"),
    [
        (Per.ALL, "alice", "192.0.2.7", Identity()),
        (Per.USER, "alice", "192.0.2.7", Identity(user="alice")),
        (Per.USER, "", "192.0.2.7", Identity(client="192.0.2.7")),
        (Per.CLIENT, "alice", "192.0.2.7", Identity(client="192.0.2.7")),
        (Per.CLIENT, "", "2001:db8:0:1:2:3:4:5", Identity(client="2001:db8:0:1::/64")),
        (Per.CLIENT, "", "::ffff:192.0.2.7", Identity(client="192.0.2.7")),  # RFC 4291, section 2.5.5.2
    ],
)
def test_who_shares_with_whom(per: Per, user: str, client: str, expected: Identity) -> None:
    assert identity_of(per, user, Address(client, 5000)) == expected
