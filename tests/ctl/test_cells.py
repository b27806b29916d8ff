"""Names of strangers on a terminal: harmless, and as wide as we say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.ctl import cells
from proxy.ctl.cells import cut, harmless, pad, width


@pytest.mark.parametrize(
    ("name", "shown", "columns"),
    [
        ("alice", "alice", 5),
        ("漢字", "漢字", 4),  # UAX 11: wide
        ("ｆｕｌｌ", "ｆｕｌｌ", 8),  # and fullwidth
        ("e\u0301", "é", 1),  # NFC
        ("q\u0307", "q\u0307", 1),  # there is no such letter: a mark stays one
        ("สวัสดี", "สวัสดี", 4),  # Thai vowels stand above
        ("😀", "😀", 2),
    ],
)
def test_names_of_all_countries_are_shown(name: str, shown: str, columns: int) -> None:
    assert harmless(name) == shown
    assert width(shown) == columns


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b2J", "\\x9b2J"),  # the C1 form of ESC [
        ("user\u202egpj.exe", "user\\u202egpj.exe"),  # right-to-left override
        ("\u2066x\u2069", "\\u2066x\\u2069"),  # isolates
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\u0301alone", "\\u0301alone"),  # a mark with nothing to be on
        ("Z\u0335\u0321\u0327\u0328", "Z\u0335\u0321\\u0327\\u0328"),  # one that climbs
        ("\u2764\ufe0f", "\u2764\\ufe0f"),  # how wide this is each terminal decides otherwise
        ("\udcff", "\\udcff"),
    ],
)
def test_what_would_change_its_neighbours_is_written_out(name: str, shown: str) -> None:
    assert harmless(name) == shown


@given(st.text(max_size=30), st.integers(0, 40))
def test_a_cell_has_its_width_whatever_is_in_it(text: str, columns: int) -> None:
    for right in (False, True):
        assert width(pad(harmless(text), columns, right=right)) == columns


@given(st.text(max_size=30))
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    assert harmless(harmless(text)) == harmless(text)


def test_what_is_cut_says_so() -> None:
    assert cut("localhost:80", 8) == "localho…"
    assert cut("漢字漢字", 6) == "漢字…"  # no half of a letter
    assert cut("ab", 2) == "ab"
    assert cut("ab", 0) == ""


def test_columns_are_aligned() -> None:
    assert cells.table([{"NAME": "a", ">COUNT": 1}, {"NAME": "longer", ">COUNT": 1000000}]) == (
        "NAME      COUNT\na             1\nlonger  1000000"
    )


def test_a_reason_at_the_end_of_a_table_goes_on_below(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "down: upstream home: 192.0.2.1:1080: Connection refused, and it was so for a long time"
    monkeypatch.setattr(cells, "room", lambda: 60)
    rows = [
        {"UPSTREAM": "home", ">READY": 2, "HEALTH": reason},
        {"UPSTREAM": "b", ">READY": 0, "HEALTH": "up"},
    ]
    lines = cells.table(rows).splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert " ".join(line[len("UPSTREAM  READY  ") :] for line in lines[1:-1]) == reason
    assert all(not line[: len("UPSTREAM  READY  ")].strip() for line in lines[2:-1])
    assert lines[-1] == "b             0  up"
