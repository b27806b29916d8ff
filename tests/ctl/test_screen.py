"""A terminal's bytes: the keys that it sends, and the picture that it is sent."""

import json
from typing import Any

import pytest

from proxy.ctl import screen
from proxy.ctl.ask import CtlError
from proxy.ctl.top import Span
from tests.ctl.answers import STATUS

LISTING: dict[str, Any] = {"live": 0, "matching": 0, "connections": []}


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
    assert screen.keys(sent) == (found, "")


@pytest.mark.parametrize("cut", range(1, 4))
def test_a_key_may_arrive_in_pieces(cut: int) -> None:
    found, rest = screen.keys("\x1b[5~"[:cut])
    assert found == []
    assert screen.keys(rest + "\x1b[5~"[cut:]) == (["pageup"], "")


def test_a_line_that_fills_the_terminal_keeps_its_last_character() -> None:
    """What erases the rest of a line stands before it."""
    written = screen.encode([[Span("ab")], [Span("cd", "bad")]], colours=True, encoding="utf-8")
    assert written == b"\x1b[H\x1b[Kab\r\n\x1b[K\x1b[31;1mcd\x1b[0m"


def test_without_colours_there_are_none() -> None:
    """https://no-color.org: bold and inverse are no colours."""
    for look in ("bad", "good", "other", "mark", "head", "strong", "faint", "turned"):
        written = screen.encode([[Span("x", look)]], colours=False, encoding="utf-8").decode()
        codes = written.partition("\x1b[K\x1b[")[2].partition("m")[0].split(";")
        assert set(codes) <= {"0", "1", "2", "4", "7"}, look


def test_a_terminal_that_knows_ascii_only_gets_as_many_columns() -> None:
    written = screen.encode([[Span("漢x▁")]], colours=True, encoding="ascii")
    assert written == b"\x1b[H\x1b[K??x?"


class Server:
    """Answers, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, method: str, path: str) -> Any:
        self.asked.append(path)
        return STATUS if path == "/status" else LISTING


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_INTERVAL", 0.001)


def test_where_no_terminal_is_there_is_one_picture(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    assert screen.run(server.ask) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "127.0.0.1:1080" in shown
    assert len(server.asked) == 4


def test_as_json_it_is_what_the_server_answered(capsys: pytest.CaptureFixture[str]) -> None:
    screen.run(Server().ask, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"status": STATUS, "connections": LISTING}


def test_its_width_can_be_chosen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    screen.run(Server().ask)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40


def test_without_a_server_it_fails() -> None:
    def nobody(method: str, path: str) -> Any:
        raise CtlError("nobody is there")

    with pytest.raises(CtlError):
        screen.run(nobody)
