"""What is asked of a file without serving."""

from pathlib import Path

import pytest

from proxy import offline
from proxy.app import App


def test_a_check_makes_no_program_of_what_it_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(app: App, *arguments: object, **options: object) -> None:
        raise AssertionError("a program, with its threads")

    monkeypatch.setattr(App, "__init__", start)
    file = tmp_path / "proxy.ini"
    file.write_text("[listeners]\n[[socks]]\nprotocol = socks5\nlisten_addr = 127.0.0.1:0\n")
    assert offline.check(str(file)) == 0
    assert capsys.readouterr().out == "ok\n"
