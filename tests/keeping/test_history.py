"""Versions outlive the program, their numbers only grow, and nobody else can read them."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.configfile.load import state_dir_of
from proxy.keeping.history import History, Version

TEXT = "[auth_users]\nalice = wonderland\n"


def version(number: int, text: str = TEXT) -> Version:
    return Version(number, 1234.5, "file", f"users +bob, “{number}” \n", text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_versions_are_found_again_by_the_next_run(tmp_path: Path) -> None:
    history = History(tmp_path / "history", 5)
    for number in (1, 2):
        history.add(version(number))
    assert History(tmp_path / "history", 5).versions == [version(1), version(2)]


def test_only_the_last_are_kept_and_the_numbers_go_on(tmp_path: Path) -> None:
    """CASES H202."""
    history = History(tmp_path / "history", 2)
    for _ in range(5):
        history.add(version(history.next_number()))
    again = History(tmp_path / "history", 2)
    assert [each.number for each in history.versions] == [4, 5]
    assert again.versions == history.versions
    assert again.next_number() == 6
    assert len(list((tmp_path / "history").iterdir())) == 2


def test_a_number_that_another_process_has_used_is_not_used_again(tmp_path: Path) -> None:
    old, new = History(tmp_path / "history", 5), History(tmp_path / "history", 5)
    old.add(version(old.next_number()))
    assert new.next_number() == 2


def test_nobody_else_may_read_them(tmp_path: Path) -> None:
    """CASES H210, J223."""
    history = History(tmp_path / "state" / "history", 5)
    history.add(version(1))
    (file,) = (tmp_path / "state" / "history").iterdir()
    assert mode(file) == 0o600
    assert mode(tmp_path / "state" / "history") == mode(tmp_path / "state") == 0o700


def test_no_secret_stands_in_what_may_be_printed_of_a_version() -> None:
    assert "wonderland" not in repr(version(1))


def test_the_file_of_a_version_can_be_used_as_it_is(tmp_path: Path) -> None:
    History(tmp_path, 5).add(version(1))
    comment, _, text = next(tmp_path.iterdir()).read_text("utf-8").partition("\n")
    assert (comment[0], text) == ("#", TEXT)


def about(**wrong: bool | float | int | str | None) -> bytes:
    """Write the first line of version 7, with something else in it than there should be."""
    values = {"number": 7, "time": 1.5, "source": "file", "summary": "x", "volatile": False, **wrong}
    return f"# proxy-server version {json.dumps(values)}\n{TEXT}".encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\n",
        b"# proxy-server version {}\n",
        b"# proxy-server version [7]\n",
        b"# proxy-server version " + b"[" * 100_000,
        b"[proxy]\n",
        about(number="7"),
        about(number=8),
        about(number=7.0),
        about(time=None),
        about(time=True),
        about(time=-1),
        about(time=1e300),
        about(time=10**400),
        about(time=float("nan")),
        about(source=None),
        about(source="nowhere"),
        about(summary=None),
        about(volatile=None),
        about(volatile=1),
        about(more=1),
    ],
)
def test_a_damaged_file_is_passed_over_and_its_number_is_not_used_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """CASES H202."""
    (tmp_path / "000007.ini").write_bytes(content)
    history = History(tmp_path, 5)
    assert (history.versions, history.next_number()) == ([], 8)
    assert caplog.messages == [f"{tmp_path / '000007.ini'} is skipped: not a version"]


def test_a_file_of_an_earlier_program_is_a_version(tmp_path: Path) -> None:
    (tmp_path / "000007.ini").write_bytes(about())
    assert History(tmp_path, 5).versions == [Version(7, 1.5, "file", "x", TEXT)]


def test_of_two_files_with_one_number_only_that_with_the_right_name_is_a_version(tmp_path: Path) -> None:
    for name in ("7.ini", "000007.ini"):
        (tmp_path / name).write_bytes(about(summary=name))
    assert [each.summary for each in History(tmp_path, 5).versions] == ["000007.ini"]


def test_where_nothing_can_be_written_memory_has_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "history", 5)
    said = [history.add(version(number)) for number in (1, 2)]
    assert history.versions == [version(1), version(2)]
    assert history.next_number() == 3
    assert said[0].startswith(f"{tmp_path}/file/history: ")
    assert said[0].endswith("; versions are kept in memory only, until it can be written")
    assert said[1:] == [""]
    assert caplog.messages == []  # it works in a native thread, and the log is for the event loop


@pytest.mark.parametrize("at", ["next change", "end"])
def test_a_disk_that_was_full_and_has_room_again_gets_what_it_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def refuse(path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    history = History(tmp_path, 3)
    with monkeypatch.context() as full:
        full.setattr("proxy.keeping.history.files.replace", refuse)
        said = [history.add(version(number)) for number in (1, 2, 3, 4)]
    assert "No space left" in said[0]
    if at == "end":
        assert history.catch_up() == ""
    else:
        assert history.add(version(5)) == ""
    assert History(tmp_path, 3).versions == history.versions
    with monkeypatch.context() as full:
        full.setattr("proxy.keeping.history.files.replace", refuse)
        assert "No space left" in history.add(version(6))  # another shortage is said again


def test_a_folder_that_is_called_like_a_version_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "000001.ini").mkdir()
    history = History(tmp_path, 2)
    for number in (2, 3, 4):
        history.add(version(number))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["000001.ini", "000003.ini", "000004.ini"]
    assert "in memory only" not in caplog.text


def test_without_a_folder_they_are_in_memory_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    history = History(None, 2)
    for _ in range(3):
        history.add(version(history.next_number()))
    assert history.versions == [version(2), version(3)]
    assert (list(tmp_path.iterdir()), caplog.messages) == ([], [])


@pytest.mark.parametrize(
    ("configured", "folder"), [("", "etc/.proxy"), ("state", "etc/state"), ("/run/proxy", "/run/proxy")]
)
def test_the_state_lives_next_to_the_file_unless_it_says_otherwise(
    tmp_path: Path, configured: str, folder: str
) -> None:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "proxy.ini"
    path.write_text(f"[proxy]\nstate_dir = {configured}  # here\n[listeners\n")
    assert state_dir_of(str(path)) == tmp_path / folder


@pytest.mark.parametrize("above", ["[proxy", "[proxy]\n[oops"])
def test_the_state_is_found_below_a_header_that_is_broken(tmp_path: Path, above: str) -> None:
    path = tmp_path / "proxy.ini"
    path.write_text(f"{above}\nstate_dir = elsewhere\n[listeners]\n[[socks]]\nstate_dir = other\n")
    assert state_dir_of(str(path)) == tmp_path / "elsewhere"


@pytest.mark.parametrize("endless", ["/dev/zero", "/dev/urandom"])
def test_the_state_of_an_endless_file_is_found_without_reading_all_of_it(endless: str) -> None:
    code = f"import resource; from proxy.configfile.load import state_dir_of; state_dir_of({endless!r})"
    limit = "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))"
    subprocess.run([sys.executable, "-c", f"import resource; {limit}; {code}"], check=True, timeout=60)


def test_the_state_of_a_missing_file_is_next_to_where_it_would_be(tmp_path: Path) -> None:
    assert state_dir_of(str(tmp_path / "proxy.ini")) == tmp_path / ".proxy"
