"""What ``ctl top`` makes of samples and keys: a picture, and what is asked of the server."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from proxy.ctl import top
from proxy.ctl.cells import width
from tests.ctl.answers import STATUS

HOSTILE = "\x1b[2Jroot\u202e漢字"


def row(number: object, **changes: Any) -> dict[str, Any]:
    known = {
        "id": number,
        "state": "open",
        "user": "alice",
        "client": f"192.0.2.1:{4000 + int(str(number).rpartition('-')[2])}",
        "listener": "socks",
        "target": "www.example.com:443",
        "upstream": "home",
        "age": 61.0,
        "sent": 2048,
        "received": 5 << 20,
        "sent_rate": 1024.0,
        "received_rate": 3.0 * (1 << 20),
    }
    return known | changes


def sample(
    time: float = 1.0, rows: list[dict[str, Any]] | None = None, listing: Any = (), **status: Any
) -> top.Sample:
    rows = [row(number) for number in (3, 2, 1)] if rows is None else rows
    answer = {"live": len(rows), "matching": len(rows), "connections": rows}
    return top.Sample(time, {**STATUS, "uptime": 100 + time, **status}, answer | dict(listing))


def text(state: top.State) -> list[str]:
    return ["".join(span.text for span in line) for line in top.draw(state)]


def looks(state: top.State, fragment: str) -> set[str]:
    return {span.look for line in top.draw(state) for span in line if fragment in span.text}


def state(**changes: Any) -> top.State:
    size = {"columns": 120, "lines": 30} | {k: v for k, v in changes.items() if k in ("columns", "lines")}
    rest = {k: v for k, v in changes.items() if k not in size}
    return top.take(top.State(**size), sample(**rest))


def press(now: top.State, *keys: str) -> tuple[top.State, top.Action]:
    action: top.Action = None
    for key in keys:
        now, action = top.press(now, key)
    return now, action


def query(now: top.State) -> dict[str, str]:
    return {name: value for name, (value,) in parse_qs(urlsplit(top.path(now)).query).items()}


class TestPicture:
    def test_has_the_server_its_listeners_upstreams_and_connections(self) -> None:
        shown = "\n".join(text(state()))
        for part in (
            "proxy-server 1.0",
            "process 4711",
            "127.0.0.1:1080",
            "wss://gateway",
            "down (3 failures)",
        ):
            assert part in shown
        assert "192.0.2.1:4003" in shown
        assert "1.0 KiB   3.0 MiB" in shown

    def test_rates_are_the_difference_of_two_samples(self) -> None:
        after = top.take(state(), sample(3.0, sent=1536 + 4096, total=4020))
        lines = text(after)
        assert any(line.startswith(" up    2.0 KiB/s") for line in lines)
        assert any("10 new, 0 failed a second" in line for line in lines)

    def test_of_each_listener_too(self) -> None:
        (listener,) = STATUS["listeners"]
        more = [listener | {"received": listener["received"] + (4 << 20), "failed": 17 + 3}]
        after = top.take(state(), sample(3.0, listeners=more))
        (line,) = [line for line in text(after) if line.startswith(" socks")]
        assert "2.0 MiB" in line
        assert any("1.5 failed a second" in line for line in text(after))

    def test_nothing_is_said_of_rates_before_they_are_known(self) -> None:
        lines = text(state(rows=[row(1, sent_rate=None, received_rate=None)]))
        assert any(line.split()[:2] == ["up", "-"] for line in lines)
        assert "-" in next(line for line in lines if "192.0.2.1" in line).split()

    @pytest.mark.parametrize("columns", [1, 10, 20, 39, 40, 80, 100, 132, 250])
    @pytest.mark.parametrize("lines", [1, 2, 5, 10, 24, 60])
    def test_fits_a_terminal_of_any_size(self, columns: int, lines: int) -> None:
        rows = [row(number, user=HOSTILE, target="x" * 300) for number in range(50)]
        for keys in ([], ["down"], ["h"], ["/", "x"], ["down", "k"], ["g"]):
            now, _ = press(state(columns=columns, lines=lines, rows=rows), *keys)
            shown = text(now)
            assert len(shown) == lines
            assert all(width(line) <= columns for line in shown)

    def test_a_row_of_numbers_stays_aligned_beside_names_of_any_kind(self) -> None:
        rows = [row(1, user=name) for name in ("bob", "漢字漢字漢字漢字漢字漢字漢字", HOSTILE, "e\u0301" * 3)]
        shown = [line for line in text(state(rows=rows)) if "192.0.2.1" in line]
        assert len({width(line[: line.index("192.0.2.1")]) for line in shown}) == 1

    def test_no_name_steers_the_terminal(self) -> None:
        rows = [row(1, user=HOSTILE, target=HOSTILE, upstream=HOSTILE, listener=HOSTILE, client=HOSTILE)]
        listener = STATUS["listeners"][0] | {"name": HOSTILE, "addresses": [HOSTILE]}
        upstream = STATUS["upstreams"][0] | {"problem": HOSTILE, "name": HOSTILE, "address": HOSTILE}
        broken = {"in_effect": False, "problem": HOSTILE, "since": 0}
        now = state(rows=rows, listeners=[listener], upstreams=[upstream], file=broken, program=HOSTILE)
        now = top.miss(now, HOSTILE)
        for keys in ([], ["down", "k"], ["/", *HOSTILE]):
            for line in text(press(now, *keys)[0]):
                assert line.isprintable(), line

    def test_a_file_that_is_not_in_effect_is_told(self) -> None:
        broken = {"in_effect": False, "problem": "proxy.ini:4: no", "since": 0}
        assert looks(state(file=broken), "proxy.ini:4: no") == {"bad"}

    def test_an_upstream_that_is_down_comes_first(self) -> None:
        (down,) = STATUS["upstreams"]
        up = [down | {"name": f"up{n}", "health": "up", "problem": ""} for n in range(20)]
        shown = text(state(upstreams=[*up, down]))
        assert shown[[line.split()[:1] == ["UPSTREAM"] for line in shown].index(True) + 1].startswith(" home")
        assert any(line.startswith(" and ") for line in shown)

    def test_all_of_it_where_there_is_no_terminal(self) -> None:
        rows = [row(number) for number in range(20)]
        listing = {"matching": 4800}
        lines = top.picture(top.State(columns=132), sample(rows=rows, listing=listing))
        shown = ["".join(span.text for span in line) for line in lines]
        assert sum("192.0.2.1" in line for line in shown) == 20
        assert shown[-1] == " and 4780 more"


class TestServer:
    def test_no_more_is_asked_for_than_is_shown(self) -> None:
        assert query(state(lines=30)) == {"sort": "-rate", "limit": "60"}

    def test_while_it_does_not_answer_the_last_picture_stays(self) -> None:
        now = top.miss(state(), "no server is found")
        assert looks(now, "no answer, asking again: no server is found") == {"bad"}
        assert any("192.0.2.1:4003" in line for line in text(now))
        assert not any("no answer" in line for line in text(top.take(now, sample(9.0))))

    def test_one_that_was_started_anew_is_told_and_counts_from_nothing(self) -> None:
        now = top.take(state(), sample(2.0))
        now = top.take(now, sample(3.0, pid=99, uptime=1.0, sent=0, received=0, total=0))
        assert "the server was started anew" in text(now)[-1]
        assert now.rates == ()

    def test_before_the_first_answer_there_is_a_line_about_it(self) -> None:
        assert "asking the server" in text(top.State())[0]
        assert "no server" in text(top.miss(top.State(), "no server"))[0]


class TestKeys:
    def test_q_leaves(self) -> None:
        assert press(state(), "q")[1] == top.Quit()

    def test_s_sorts_by_the_next_and_r_turns_the_order_around(self) -> None:
        now, action = press(state(), "s")
        assert (query(now)["sort"], action) == ("-sent_rate", top.Look())
        assert query(press(now, "S")[0])["sort"] == "-rate"
        assert query(press(now, "r")[0])["sort"] == "sent_rate"
        assert query(press(state(), *"ssssss")[0])["sort"] == "user"

    def test_g_groups_and_enter_shows_one_of_them(self) -> None:
        now, action = press(state(), "g")
        assert (query(now)["group"], action) == ("user", top.Look())
        groups = [
            {"name": name, "live": 2, "sent": 1, "received": 2, "sent_rate": 0.0, "received_rate": 5.0}
            for name in ("bob", "")
        ]
        answer = {"live": 4, "matching": 4, "group": "user", "total": 2, "groups": groups}
        now = top.take(now, top.Sample(2.0, sample(2.0).status, answer))
        assert any(line.startswith(" bob") for line in text(now))
        inside, action = press(now, "down", "down", "enter")
        assert top.path(inside).endswith("&user=")
        assert "group" not in query(inside)
        assert action == top.Look()
        back, _ = press(inside, "escape")
        assert (back.group, back.within) == ("user", None)

    def test_a_filter_is_written_and_taken_back(self) -> None:
        now, _ = press(state(), "/", *"alixx", "backspace", "backspace")
        assert text(now)[-1].startswith(" filter: ali")
        now, action = press(now, "enter")
        assert (query(now)["filter"], action) == ("ali", top.Look())
        assert "filter ali" in text(now)[-1]
        assert "filter" not in query(press(now, "escape")[0])
        assert query(press(now, "/", "x", "escape")[0])["filter"] == "ali"

    def test_q_in_a_filter_is_a_letter(self) -> None:
        assert press(state(), "/", "q")[1] is None

    def test_the_cursor_stays_on_its_connection(self) -> None:
        now, _ = press(state(), "down", "down")
        assert now.selected == "2"
        now = top.take(now, sample(2.0, [row(2), row(1), row(3)]))
        assert (now.selected, now.at) == ("2", 0)
        now = top.take(now, sample(3.0, [row(5), row(6)]))
        assert (now.selected, now.at) == ("5", 0)
        assert press(now, "escape")[0].at == -1

    def test_a_long_list_scrolls_and_more_is_asked_for(self) -> None:
        rows = [row(number) for number in range(60)]
        now = state(rows=rows, listing={"matching": 5000})
        moved, action = press(now, "end")
        assert any("192.0.2.1:4059" in line for line in text(moved))
        assert action == top.Look()
        assert int(query(moved)["limit"]) > 60
        assert any("192.0.2.1:4000" in line for line in text(press(moved, "home")[0]))

    def test_to_end_a_connection_there_is_a_question(self) -> None:
        now, action = press(state(), "down", "k")
        assert action is None
        asked = " end connection 3 (alice 192.0.2.1:4003 to www.example.com:443)? y or n"
        assert text(now)[-1] == asked
        assert press(now, "y")[1] == top.End("3")
        for key in ("n", "k", "enter", "escape", "q"):
            assert press(now, key)[1] is None

    def test_what_is_asked_about_is_what_is_ended_whatever_comes_meanwhile(self) -> None:
        now, _ = press(state(), "down", "k")
        now = top.take(now, sample(2.0, [row(9), row(3)]))
        assert press(now, "y")[1] == top.End("3")

    def test_an_id_may_be_any_text(self) -> None:
        now, _ = press(state(rows=[row("2-417")]), "down", "k")
        action = press(now, "y")[1]
        assert isinstance(action, top.End)
        assert action.path == "/connections/2-417"

    @pytest.mark.parametrize("keys", [["k"], ["g", "k"]])
    def test_there_has_to_be_one_to_end(self, keys: list[str]) -> None:
        now, action = press(state(), *keys)
        assert action is None
        assert not now.doomed
        assert now.said

    def test_p_pauses_and_h_helps(self) -> None:
        assert "PAUSED" in text(press(state(), "p")[0])[-1]
        helped, _ = press(state(), "h")
        assert any("turn the order around" in line for line in text(helped))
        assert not press(helped, "x")[0].has_help

    def test_a_key_that_means_nothing_does_nothing(self) -> None:
        now = state()
        assert press(now, "z") == (now, None)
