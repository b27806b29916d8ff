"""What is seen of a state, in a terminal of any size."""

import pytest

from proxy.ctl.cells import width
from proxy.top.picture import draw_all
from proxy.top.state import State
from proxy.top.updates import miss, take
from tests.ctl.answers import STATUS
from tests.top.states import looks, press, row, sample, state, text

HOSTILE = "\x1b[2Jroot\u202e漢字"


def test_a_picture_has_the_server_its_listeners_upstreams_and_connections() -> None:
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


def test_rates_are_the_difference_of_two_samples() -> None:
    after = take(state(), sample(3.0, sent=1536 + 4096, total=4020))
    lines = text(after)
    assert any(line.startswith(" up    2.0 KiB/s") for line in lines)
    assert any("10 new, 0 failed a second" in line for line in lines)


def test_so_are_the_rates_of_each_listener() -> None:
    (listener,) = STATUS["listeners"]
    more = [listener | {"received": listener["received"] + (4 << 20), "failed": 17 + 3}]
    after = take(state(), sample(3.0, listeners=more))
    (line,) = [line for line in text(after) if line.startswith(" socks")]
    assert "2.0 MiB" in line
    assert any("1.5 failed a second" in line for line in text(after))


def test_nothing_is_said_of_rates_before_they_are_known() -> None:
    lines = text(state(rows=[row(1, sent_rate=None, received_rate=None)]))
    assert any(line.split()[:2] == ["up", "-"] for line in lines)
    assert "-" in next(line for line in lines if "192.0.2.1" in line).split()


@pytest.mark.parametrize("columns", [1, 10, 20, 39, 40, 80, 100, 132, 250])
@pytest.mark.parametrize("lines", [1, 2, 5, 10, 24, 60])
def test_a_picture_fits_a_terminal_of_any_size(columns: int, lines: int) -> None:
    rows = [row(number, user=HOSTILE, target="x" * 300) for number in range(50)]
    for keys in ([], ["down"], ["h"], ["/", "x"], ["down", "k"], ["g"]):
        now, _ = press(state(columns=columns, lines=lines, rows=rows), *keys)
        shown = text(now)
        assert len(shown) == lines
        assert all(width(line) <= columns for line in shown)


def test_a_row_of_numbers_stays_aligned_beside_names_of_any_kind() -> None:
    rows = [row(1, user=name) for name in ("bob", "漢字漢字漢字漢字漢字漢字漢字", HOSTILE, "e\u0301" * 3)]
    shown = [line for line in text(state(rows=rows)) if "192.0.2.1" in line]
    assert len({width(line[: line.index("192.0.2.1")]) for line in shown}) == 1


def test_no_name_steers_the_terminal() -> None:
    rows = [row(1, user=HOSTILE, target=HOSTILE, upstream=HOSTILE, listener=HOSTILE, client=HOSTILE)]
    listener = STATUS["listeners"][0] | {"name": HOSTILE, "addresses": [HOSTILE]}
    upstream = STATUS["upstreams"][0] | {"problem": HOSTILE, "name": HOSTILE, "address": HOSTILE}
    broken = {"in_effect": False, "problem": HOSTILE, "since": 0}
    now = state(rows=rows, listeners=[listener], upstreams=[upstream], file=broken, program=HOSTILE)
    now = miss(now, HOSTILE)
    for keys in ([], ["down", "k"], ["/", *HOSTILE]):
        for line in text(press(now, *keys)[0]):
            assert line.isprintable(), line


def test_a_file_that_is_not_in_effect_is_told() -> None:
    broken = {"in_effect": False, "problem": "proxy.ini:4: no", "since": 0}
    assert looks(state(file=broken), "proxy.ini:4: no") == {"bad"}


def test_an_upstream_that_is_down_comes_first() -> None:
    (down,) = STATUS["upstreams"]
    up = [down | {"name": f"up{n}", "health": "up", "problem": ""} for n in range(20)]
    shown = text(state(upstreams=[*up, down]))
    assert shown[[line.split()[:1] == ["UPSTREAM"] for line in shown].index(True) + 1].startswith(" home")
    assert any(line.startswith(" and ") for line in shown)


def test_all_of_it_is_drawn_where_there_is_no_terminal() -> None:
    rows = [row(number) for number in range(20)]
    listing = {"matching": 4800}
    lines = draw_all(take(State(columns=132), sample(rows=rows, listing=listing)))
    shown = ["".join(span.text for span in line) for line in lines]
    assert sum("192.0.2.1" in line for line in shown) == 20
    assert shown[-1] == " and 4780 more"
