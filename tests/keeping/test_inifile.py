"""What is known of the configuration file: whether it is another one, and what is the matter with it."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from proxy.configfile.content import InvalidConfigError
from proxy.errors import LimitError
from proxy.keeping import inifile
from proxy.keeping.inifile import IniFile

TEXT = "[listeners]\n[[socks]]\nprotocol = socks5\nlisten_addr = 127.0.0.1:0\n"
MISTAKE = TEXT + "tiemout = 3\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "proxy.ini"
    made.write_text(TEXT)
    made.chmod(0o600)
    return made


@pytest.fixture
def file(path: Path) -> IniFile:
    return IniFile(str(path))


def reject(file: IniFile) -> None:
    """Judge a file that cannot be, and note why."""
    with pytest.raises(InvalidConfigError) as refused:
        file.judge()
    file.note(str(refused.value))


# Is it another file?


def test_a_file_is_new_until_it_was_judged_and_when_it_has_another_content(file: IniFile, path: Path) -> None:
    assert file.is_new()
    text, loaded = file.judge()
    assert text == TEXT
    assert [each.name for each in loaded.config.listeners] == ["socks"]
    assert not file.is_new()
    path.write_text(TEXT + "# a comment\n")
    assert file.is_new()


def test_the_same_content_is_nothing_new_however_it_came_there(file: IniFile, path: Path) -> None:
    file.judge()
    other = path.with_name("other")
    other.write_text(TEXT)
    other.replace(path)
    os.utime(path, (0, 0))
    assert not file.is_new()


def test_a_file_that_is_gone_is_new_once_and_its_return_is_nothing_new(file: IniFile, path: Path) -> None:
    file.judge()
    path.unlink()
    assert file.is_new()
    reject(file)
    assert not file.is_new()
    path.write_text(TEXT)
    assert file.is_new()


def test_a_file_that_cannot_be_read_for_another_reason_is_judged_anew(file: IniFile, path: Path) -> None:
    """Its trouble would go on to tell of what is mended: that it does not exist."""
    path.unlink()
    reject(file)
    path.mkdir()
    assert file.is_new()
    reject(file)
    assert not file.is_new()
    assert file.judged.trouble
    assert file.judged.trouble.problem.endswith("is a folder")


def test_a_rejected_file_is_new_again_when_a_tls_file_that_it_names_appears(
    file: IniFile, path: Path
) -> None:
    """Not when one changes that no rejected file waits for: that is for whoever renews certificates."""
    tls = "protocol = websocket\ntls_cert = late.pem\ntls_key = late.key"
    path.write_text(TEXT.replace("protocol = socks5", tls))
    reject(file)
    assert not file.is_new()
    (path.parent / "late.pem").touch()
    assert file.is_new()


def test_what_we_wrote_ourselves_is_nothing_new(file: IniFile, path: Path) -> None:
    file.judge()
    path.write_text(TEXT + "max_connections = 5\n")
    file.accept(path.read_text())
    assert not file.is_new()
    assert file.judged.trouble is None


# What is the matter with it?


def test_a_mistake_is_its_trouble_until_it_is_mended(
    file: IniFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since when is the moment of the first, whatever others come behind it."""
    now = 1000.0
    monkeypatch.setattr("proxy.keeping.inifile.time.time", lambda: now)
    path.write_text(MISTAKE)
    reject(file)
    assert file.judged.trouble is not None
    assert "tiemout" in file.judged.trouble.problem
    now = 2000.0
    path.write_text("nothing that can be read\n")
    reject(file)
    assert file.judged.trouble is not None
    assert file.judged.trouble.since == 1000.0
    assert "tiemout" not in file.judged.trouble.problem
    path.write_text(TEXT)
    file.judge()
    assert file.judged.trouble is not None  # it is valid, and not in effect yet
    file.accept()
    assert file.judged.trouble is None


def test_it_is_rejected_while_it_cannot_be_and_also_if_it_changed_since_to_what_cannot_be(
    file: IniFile, path: Path
) -> None:
    file.judge()
    file.accept()
    assert not file.is_rejected()
    path.write_text(MISTAKE)
    assert file.is_rejected()  # though nobody has judged it yet
    reject(file)
    assert file.is_rejected()
    path.write_text(TEXT)
    assert not file.is_rejected()


def test_a_file_that_could_not_be_put_into_effect_is_rejected_too(file: IniFile) -> None:
    """Such as one whose address is in use."""
    file.judge()
    file.note("cannot listen on 127.0.0.1:1080: Address already in use")
    assert file.is_rejected()
    assert file.problems() == ()  # of the text itself
    file.accept()
    assert not file.is_rejected()


def test_a_shortage_of_our_own_is_no_word_on_the_file(
    file: IniFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever meets one puts back what was known; here is what makes that possible."""
    file.judge()
    file.accept()
    before = file.judged

    def no_descriptor(*_: Any) -> Any:
        raise LimitError(os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(inifile, "read_file", no_descriptor)
        with pytest.raises(LimitError):
            file.judge()
    file.judged = before
    assert not file.is_new()
    assert not file.is_rejected()


# What does it hold?


def test_it_holds_its_text_and_no_other(file: IniFile, path: Path) -> None:
    assert file.holds(TEXT)
    assert not file.holds(TEXT + "\n")
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert file.holds(TEXT)  # a mark of the byte order is no part of the text
    path.unlink()
    assert not file.holds(TEXT)
    assert not file.holds("")


def test_one_that_is_mounted_alone_is_left_behind_when_another_takes_its_place_outside(
    file: IniFile, path: Path
) -> None:
    """A mount holds on to the file, as a descriptor does: it has no name outside any more."""
    assert not file.is_left_behind()
    with path.open() as held:
        path.unlink()
        assert IniFile(f"/proc/self/fd/{held.fileno()}").is_left_behind()
    assert not file.is_left_behind()  # one that is not there at all


def test_relative_names_start_at_its_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent.parent)
    assert IniFile(f"{path.parent.name}/proxy.ini").folder == str(path.parent)
