"""``ctl top`` where no terminal is; tests/integration/test_top.py has it on one."""

import json
from typing import Any

import pytest

from proxy.ctl.ask import CtlError
from proxy.top import screen
from tests.ctl.answers import STATUS

LISTING: dict[str, Any] = {"live": 0, "matching": 0, "connections": []}


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
