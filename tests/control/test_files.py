"""Files are replaced whole, and nobody may read one who could not before."""

import errno
import os
import stat
from pathlib import Path

import pytest

from proxy.control import files

OLD, NEW = b"old", b"new"


def test_a_folder_that_cannot_be_read_does_not_make_a_failure_of_what_was_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the file would be called as it was, while it is not."""
    opened = os.open

    def refuse(name: str, *how: int) -> int:
        if os.path.isdir(name):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(name, *how)

    monkeypatch.setattr(files.os, "open", refuse)
    files.replace(str(path), NEW)
    assert path.read_bytes() == NEW


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that belongs to us."""
    made = tmp_path / "proxy.ini"
    made.write_bytes(OLD)
    return made


def seem(monkeypatch: pytest.MonkeyPatch, *, uid: int = 0, gid: int = 0) -> None:
    """Let files seem to have another owner or group, by so much, and nobody be able to give them away."""
    look = os.stat

    def look_elsewhere(*arguments: object, **options: object) -> os.stat_result:
        found = look(*arguments, **options)  # type: ignore[arg-type]
        return os.stat_result((*found[:4], found[4] + uid, found[5] + gid, *found[6:]))

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "stat", look_elsewhere)
    monkeypatch.setattr(files.os, "fchown", refuse)


def test_what_is_ours_need_not_be_given_to_us(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service manager may deny the very call."""
    seem(monkeypatch)
    files.replace(str(path), NEW)
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
def test_a_group_that_means_nothing_may_change(
    path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.chmod(mode)
    seem(monkeypatch, gid=1)
    files.replace(str(path), NEW)
    monkeypatch.undo()
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (NEW, mode)


@pytest.mark.parametrize("mode", [0o640, 0o660, 0o604], ids=oct)
def test_a_group_that_means_something_is_kept_or_nothing_is_written(
    path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES J223: with 0604, to lose the group is to gain what all others may do."""
    path.chmod(mode)
    seem(monkeypatch, gid=1)
    with pytest.raises(PermissionError, match="could not be kept"):
        files.replace(str(path), NEW)
    monkeypatch.undo()
    assert [(each.name, each.read_bytes()) for each in path.parent.iterdir()] == [(path.name, OLD)]


def test_an_owner_is_kept_or_nothing_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0o600)
    seem(monkeypatch, uid=1)
    with pytest.raises(PermissionError, match="could not be kept"):
        files.replace(str(path), NEW)
    assert path.read_bytes() == OLD
