"""Live connections: how fast they are, which are listed, in which order, and in which groups."""

from types import SimpleNamespace
from typing import Any

import pytest

from proxy.address import Address
from proxy.control.connections import Query, Rates, list_connections


def session(number: Any, sent: int = 0, received: int = 0, **changes: Any) -> Any:
    about = {"user": "alice", "client": "192.0.2.1", "target": "www.example.com", "via": "direct"} | changes
    return SimpleNamespace(
        id=number,
        relay=SimpleNamespace(sent=sent, received=received),
        wanted=SimpleNamespace(user=about["user"], target=Address(about["target"], 443)),
        client=Address(about["client"], 4000),
        runtime=SimpleNamespace(config=SimpleNamespace(name="socks")),
        via=about["via"],
        started=float(str(number).rpartition("-")[2]),
    )


def ask(*live: Any, rates: Rates | None = None, **query: str) -> dict[str, Any]:
    asked = Query.parse(query)
    return list_connections(live, rates or Rates(), asked).describe(asked)


def ids(answer: dict[str, Any]) -> list[Any]:
    return [each["id"] for each in answer["connections"]]


def moving(one: Any, sent: int, received: int) -> Any:
    one.relay.sent += sent
    one.relay.received += received
    return one


class TestRates:
    def test_are_unknown_at_first_and_then_what_came_in_between(self) -> None:
        rates, one = Rates(), session(1, 100, 1000)
        rates.look([one], 10.0)
        assert rates.of(1) is None
        rates.look([moving(one, 50, 600)], 12.0)
        assert rates.of(1) == (25.0, 300.0)

    def test_of_one_that_began_meanwhile_are_all_that_it_moved(self) -> None:
        rates = Rates()
        rates.look([], 10.0)
        rates.look([session(1, 30, 60)], 12.0)
        assert rates.of(1) == (15.0, 30.0)
        assert rates.of(2) is None

    def test_are_the_same_for_two_who_look_at_once(self) -> None:
        rates, one = Rates(), session(1)
        rates.look([one], 10.0)
        rates.look([moving(one, 100, 0)], 11.0)
        rates.look([moving(one, 900, 0)], 11.1)
        assert rates.of(1) == (100.0, 0.0)

    def test_say_nothing_of_now_after_a_long_time_without_a_look(self) -> None:
        rates, one = Rates(), session(1)
        rates.look([one], 10.0)
        rates.look([moving(one, 100, 0)], 11.0)
        rates.look([moving(one, 100, 0)], 99.0)
        assert rates.of(1) is None


class TestRows:
    def test_without_a_query_are_all_the_oldest_first(self) -> None:
        answer = ask(session(2), session(1), session(3))
        assert ids(answer) == [1, 2, 3]
        assert (answer["live"], answer["matching"]) == (3, 3)
        assert answer["connections"][0]["sent_rate"] is None

    def test_the_fastest_are_found_among_many(self) -> None:
        rates, live = Rates(), [session(number) for number in range(100)]
        rates.look(live, -10.0)
        for one in live:
            moving(one, one.id % 7, 0)
        moving(live[42], 5000, 1)
        moving(live[17], 0, 9000)
        rates.look(live, -9.0)
        assert ids(ask(*live, rates=_fixed(rates), sort="-rate", limit="2")) == [17, 42]
        assert ids(ask(*live, rates=_fixed(rates), sort="-sent_rate", limit="1")) == [42]
        assert ids(ask(*live, rates=_fixed(rates), sort="-received_rate", limit="1")) == [17]

    @pytest.mark.parametrize(
        ("sort", "order"),
        [
            ("-sent", [1, 2, 3]),
            ("received", [1, 2, 3]),
            ("user", [2, 1, 3]),
            ("-age", [1, 2, 3]),
            ("-id", [3, 2, 1]),
        ],
    )
    def test_are_sorted(self, sort: str, order: list[int]) -> None:
        live = [session(1, 9, 1, user="b"), session(2, 8, 2, user="a"), session(3, 7, 3, user="c")]
        assert ids(ask(*live, sort=sort)) == order

    def test_are_filtered_by_words_of_which_each_stands_somewhere(self) -> None:
        live = [session(1, user="Bob"), session(2, target="bob.example"), session(3)]
        assert ids(ask(*live, filter="bob")) == [1, 2]
        answer = ask(*live, filter="BOB www", limit="0")
        assert (answer["live"], answer["matching"], answer["connections"]) == (3, 1, [])

    def test_are_those_of_a_group(self) -> None:
        live = [session(1, user=""), session(2), session(3, client="192.0.2.9")]
        assert ids(ask(*live, user="")) == [1]
        assert ids(ask(*live, client="192.0.2.1")) == [1, 2]
        assert ids(ask(*live, client="192.0.2.1", user="alice")) == [2]


class TestGroups:
    def test_are_sums(self) -> None:
        answer = ask(session(1, 1, 10), session(2, 2, 20), session(3, 4, 40, user="bob"), group="user")
        unknown = {"sent_rate": None, "received_rate": None}
        assert answer["groups"] == [
            {"name": "alice", "live": 2, "sent": 3, "received": 30, **unknown},
            {"name": "bob", "live": 1, "sent": 4, "received": 40, **unknown},
        ]
        assert (answer["group"], answer["total"]) == ("user", 2)

    def test_of_clients_are_those_of_their_addresses(self) -> None:
        answer = ask(session(1), session(2), session(3, client="192.0.2.9"), group="client", sort="-live")
        assert [(each["name"], each["live"]) for each in answer["groups"]] == [
            ("192.0.2.1", 2),
            ("192.0.2.9", 1),
        ]

    def test_are_limited(self) -> None:
        answer = ask(session(1), session(2, user="bob"), group="user", sort="-sent", limit="1")
        assert (answer["total"], len(answer["groups"])) == (2, 1)


class TestSeveralProcesses:
    def test_have_one_order_and_one_limit(self) -> None:
        query = Query.parse({"sort": "-sent", "limit": "2"})
        one = list_connections([session(1, 5), session(2, 1)], Rates(), query)
        other = list_connections([session("2-1", 3), session("2-2", 9)], Rates(), query)
        both = (one + other).describe(query)
        assert ids(both) == ["2-2", 1]
        assert (both["live"], both["matching"]) == (4, 4)

    def test_have_groups_in_common(self) -> None:
        query = Query.parse({"group": "user"})
        parts = [list_connections(each, Rates(), query) for each in ([session(1, 5)], [session(2, 1)])]
        (group,) = (parts[0] + parts[1]).describe(query)["groups"]
        assert (group["name"], group["live"], group["sent"]) == ("alice", 2, 6)
        assert parts[0].groups["alice"]["live"] == 1


@pytest.mark.parametrize(
    "given",
    [
        {"sort": "colour"},
        {"sort": ""},
        {"sort": "live"},
        {"group": "id"},
        {"group": "user", "sort": "id"},
        {"limit": "-1"},
        {"limit": "x"},
        {"limit": ""},
        {"nothing": "1"},
    ],
)
def test_a_query_that_is_not_understood_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"one of|number|no nothing"):
        Query.parse(given)


def _fixed(rates: Rates) -> Rates:
    """Keep a later look from changing what is known."""
    rates.look = lambda live, now: None  # type: ignore[method-assign]
    return rates
