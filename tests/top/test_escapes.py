"""A terminal's bytes: the keys that it sends, and the picture that it is sent."""

import pytest

from proxy.top.escapes import encode, parse_keys
from proxy.top.tables import Span


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ("q", ["q"]),
        ("\x1b[A\x1b[B", ["up", "down"]),
        ("\x1bOA\x1bOB", ["up", "down"]),  # in application mode
        ("\x1b[5~\x1b[6~", ["pageup", "pagedown"]),
        ("\x1b[H\x1b[F\x1b[1~\x1b[4~", ["home", "end", "home", "end"]),
        ("\r\x7f", ["enter", "backspace"]),
        ("\x1b[15~x", ["x"]),  # F5 means nothing
        ("\x1b[1;5Ck", ["k"]),  # nor does Ctrl-right
        ("\x01\x07", []),
        ("ü漢", ["ü", "漢"]),
    ],
)
def test_keys_are_read(sent: str, found: list[str]) -> None:
    assert parse_keys(sent) == (found, "")


@pytest.mark.parametrize("cut", range(1, 4))
def test_a_key_may_arrive_in_pieces(cut: int) -> None:
    found, rest = parse_keys("\x1b[5~"[:cut])
    assert found == []
    assert parse_keys(rest + "\x1b[5~"[cut:]) == (["pageup"], "")


def test_a_line_that_fills_the_terminal_keeps_its_last_character() -> None:
    """What erases the rest of a line stands before it."""
    written = encode([[Span("ab")], [Span("cd", "bad")]], colours=True, encoding="utf-8")
    assert written == b"\x1b[H\x1b[Kab\r\n\x1b[K\x1b[31;1mcd\x1b[0m"


def test_without_colours_there_are_none() -> None:
    """https://no-color.org: bold and inverse are no colours."""
    for look in ("bad", "good", "other", "mark", "head", "strong", "faint", "turned"):
        written = encode([[Span("x", look)]], colours=False, encoding="utf-8").decode()
        codes = written.partition("\x1b[K\x1b[")[2].partition("m")[0].split(";")
        assert set(codes) <= {"0", "1", "2", "4", "7"}, look


def test_a_terminal_that_knows_ascii_only_gets_as_many_columns() -> None:
    written = encode([[Span("漢x▁")]], colours=True, encoding="ascii")
    assert written == b"\x1b[H\x1b[K??x?"
