"""What the keys do, and what is asked of the server then."""

import pytest

from proxy.top.keys import End, Look, Quit
from proxy.top.samples import Sample
from proxy.top.state import path
from proxy.top.updates import take
from tests.top.states import press, query, row, sample, state, text


def test_q_leaves() -> None:
    assert press(state(), "q")[1] == Quit()


def test_s_sorts_by_the_next_and_r_turns_the_order_around() -> None:
    now, action = press(state(), "s")
    assert (query(now)["sort"], action) == ("-sent_rate", Look())
    assert query(press(now, "S")[0])["sort"] == "-rate"
    assert query(press(now, "r")[0])["sort"] == "sent_rate"
    assert query(press(state(), *"ssssss")[0])["sort"] == "user"


def test_g_groups_and_enter_shows_one_of_them() -> None:
    now, action = press(state(), "g")
    assert (query(now)["group"], action) == ("user", Look())
    groups = [
        {"name": name, "live": 2, "sent": 1, "received": 2, "sent_rate": 0.0, "received_rate": 5.0}
        for name in ("bob", "")
    ]
    answer = {"live": 4, "matching": 4, "group": "user", "total": 2, "groups": groups}
    now = take(now, Sample(2.0, sample(2.0).status, answer))
    assert any(line.startswith(" bob") for line in text(now))
    inside, action = press(now, "down", "down", "enter")
    assert path(inside).endswith("&user=")
    assert "group" not in query(inside)
    assert action == Look()
    back, _ = press(inside, "escape")
    assert (back.group, back.within) == ("user", None)


def test_a_filter_is_written_and_taken_back() -> None:
    now, _ = press(state(), "/", *"alixx", "backspace", "backspace")
    assert text(now)[-1].startswith(" filter: ali")
    now, action = press(now, "enter")
    assert (query(now)["filter"], action) == ("ali", Look())
    assert "filter ali" in text(now)[-1]
    assert "filter" not in query(press(now, "escape")[0])
    assert query(press(now, "/", "x", "escape")[0])["filter"] == "ali"


def test_q_in_a_filter_is_a_letter() -> None:
    assert press(state(), "/", "q")[1] is None


def test_the_cursor_stays_on_its_connection() -> None:
    now, _ = press(state(), "down", "down")
    assert now.selected == "2"
    now = take(now, sample(2.0, [row(2), row(1), row(3)]))
    assert (now.selected, now.at) == ("2", 0)
    now = take(now, sample(3.0, [row(5), row(6)]))
    assert (now.selected, now.at) == ("5", 0)
    assert press(now, "escape")[0].at == -1


def test_a_long_list_scrolls_and_more_is_asked_for() -> None:
    rows = [row(number) for number in range(60)]
    now = state(rows=rows, listing={"matching": 5000})
    moved, action = press(now, "end")
    assert any("192.0.2.1:4059" in line for line in text(moved))
    assert action == Look()
    assert int(query(moved)["limit"]) > 60
    assert any("192.0.2.1:4000" in line for line in text(press(moved, "home")[0]))


def test_to_end_a_connection_there_is_a_question() -> None:
    now, action = press(state(), "down", "k")
    assert action is None
    asked = " end connection 3 (alice 192.0.2.1:4003 to www.example.com:443)? y or n"
    assert text(now)[-1] == asked
    assert press(now, "y")[1] == End("3")
    for key in ("n", "k", "enter", "escape", "q"):
        assert press(now, key)[1] is None


def test_what_is_asked_about_is_what_is_ended_whatever_comes_meanwhile() -> None:
    now, _ = press(state(), "down", "k")
    now = take(now, sample(2.0, [row(9), row(3)]))
    assert press(now, "y")[1] == End("3")


def test_an_id_may_be_any_text() -> None:
    now, _ = press(state(rows=[row("2-417")]), "down", "k")
    action = press(now, "y")[1]
    assert isinstance(action, End)
    assert action.path == "/connections/2-417"


@pytest.mark.parametrize("keys", [["k"], ["g", "k"]])
def test_there_has_to_be_a_connection_to_end(keys: list[str]) -> None:
    now, action = press(state(), *keys)
    assert action is None
    assert not now.doomed
    assert now.said


def test_p_pauses_and_h_helps() -> None:
    assert "PAUSED" in text(press(state(), "p")[0])[-1]
    helped, _ = press(state(), "h")
    assert any("turn the order around" in line for line in text(helped))
    assert not press(helped, "x")[0].has_help


def test_a_key_that_means_nothing_does_nothing() -> None:
    now = state()
    assert press(now, "z") == (now, None)
