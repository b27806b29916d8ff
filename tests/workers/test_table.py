"""Who leaves a client to whom: whoever has more, for as long as it takes, and not for ever."""

import pytest

from proxy.workers.table import _LEAST_AHEAD, _MOST_TURNS, Seat, Table


def seats(*counts: int) -> list[Seat]:
    table = Table()
    made = [Seat(table, row, "socks") for row in range(len(counts))]
    for seat, count in zip(made, counts, strict=True):
        seat.publish(count)
    return made


def test_who_is_alone_leaves_none() -> None:
    (alone,) = seats(50)
    assert not alone.leaves(50, 100)


def test_who_has_as_many_or_fewer_takes_the_next() -> None:
    one, other = seats(7, 7)
    assert not one.leaves(7, 100)
    assert not other.leaves(7, 100)
    assert not other.leaves(2, 100)


@pytest.mark.parametrize("ahead", [_LEAST_AHEAD, 10, 1000])
def test_who_is_ahead_leaves_it_for_some_turns_and_then_takes_it(ahead: int) -> None:
    one, _ = seats(ahead, 0)
    turns = 0
    while one.leaves(ahead, 5000):
        turns += 1
    assert turns == min(ahead, _MOST_TURNS)
    assert one.leaves(ahead, 5000)  # the next client is another one


def test_of_many_an_eighth_more_is_no_reason() -> None:
    one, other = seats(111, 100)
    assert not one.leaves(111, 500)
    other.publish(90)
    assert one.leaves(111, 500)


def test_the_fewest_of_several_count() -> None:
    one, *_ = seats(20, 20, 0)
    assert one.leaves(20, 100)


def test_who_would_only_refuse_leaves_it_to_one_with_room() -> None:
    full, _ = seats(50, 40)
    assert all(full.leaves(50, 50) for _ in range(_MOST_TURNS + 1))


def test_nothing_is_left_to_one_that_is_gone() -> None:
    table = Table()
    one, gone = Seat(table, 0, "socks"), Seat(table, 1, "socks")
    gone.publish(0)
    assert one.leaves(9, 10)
    table.leave(1)
    assert not one.leaves(9, 10)


def test_it_is_the_same_memory_for_who_inherits_it() -> None:
    table = Table()
    Seat(table, 0, "socks").publish(0)
    assert Seat(Table(table.fd), 1, "socks").leaves(9, 10)


def test_listeners_are_apart() -> None:
    table = Table()
    Seat(table, 0, "web").publish(0)
    assert not Seat(table, 1, "socks").leaves(9, 10)
