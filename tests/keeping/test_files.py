"""Files are replaced whole, and nobody may read one who could not before."""

import errno
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.keeping import files

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

    monkeypatch.setattr(os, "open", refuse)
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

    monkeypatch.setattr(os, "stat", look_elsewhere)
    monkeypatch.setattr(os, "fchown", refuse)


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


ACL = "system.posix_acl_access"
# acl(5), as linux/posix_acl_xattr.h has it: a version, then tag, permissions and id of each entry.
# Here the file is readable by its owner and by user 1, and not by its group; the mask is what the mode shows.
NOBODY = 0xFFFFFFFF
ENTRIES = [(0x01, 6, NOBODY), (0x02, 4, 1), (0x04, 0, NOBODY), (0x10, 4, NOBODY), (0x20, 0, NOBODY)]
LIST = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in ENTRIES)


def set_list(path: Path, name: str) -> None:
    if not hasattr(os, "setxattr"):
        pytest.skip("there are no lists here")
    try:
        os.setxattr(path, name, LIST)
    except OSError:
        pytest.skip("this file system has no lists")


def test_an_access_control_list_stays(path: Path) -> None:
    """Or the group, whose part of the mode is the mask then, could read the passwords."""
    path.chmod(0o600)
    set_list(path, ACL)
    files.replace(str(path), NEW)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (NEW, 0o640)
    assert os.getxattr(path, ACL) == LIST


def test_a_folder_s_list_for_new_files_does_not_become_that_of_an_old_one(path: Path) -> None:
    path.chmod(0o640)
    set_list(path.parent, "system.posix_acl_default")
    files.replace(str(path), NEW)
    assert (stat.S_IMODE(path.stat().st_mode), os.listxattr(path)) == (0o640, [])


def test_a_file_system_may_know_no_such_lists(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listxattr", refusing(errno.EOPNOTSUPP), raising=False)
    files.replace(str(path), NEW)
    assert path.read_bytes() == NEW


def test_what_is_given_back_is_all_that_it_had(path: Path) -> None:
    undo = files.exchange(str(path), NEW)
    assert path.read_bytes() == NEW
    undo()
    assert path.read_bytes() == OLD


@pytest.mark.parametrize("was_there", [True, False])
def test_what_somebody_has_written_meanwhile_is_not_taken_for_ours(path: Path, was_there: bool) -> None:
    if not was_there:
        path.unlink()
    undo = files.exchange(str(path), NEW)
    path.write_bytes(b"somebody's")
    undo()
    assert path.read_bytes() == b"somebody's"


class TestMountedAsAFile:
    """Containers mount one file: its name leads to it for good, and to replace it is EBUSY (rename(2))."""

    def test_it_is_written_in_its_place(self, path: Path, tmp_path: Path) -> None:
        target = tmp_path / "inside" / "proxy.ini"
        target.parent.mkdir()
        target.touch()
        code = f"from proxy.keeping import files; files.replace({str(target)!r}, b'a longer one than before')"
        script = f'mount --bind "{path}" "{target}" && "{sys.executable}" -c "{code}"'
        command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
        if not shutil.which("unshare") or subprocess.run([*command[:-3], "true"], timeout=60).returncode:
            pytest.skip("nothing can be mounted here")
        subprocess.run(command, check=True, timeout=60)
        assert path.read_bytes() == b"a longer one than before"
        assert (os.listdir(target.parent), target.read_bytes()) == (["proxy.ini"], b"")

    @pytest.mark.parametrize(
        ("call", "number"), [("replace", errno.EBUSY), ("replace", errno.EROFS), ("link", errno.EBUSY)]
    )
    def test_its_inode_mode_and_link_stay(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
    ) -> None:
        path.chmod(0o640)
        before = path.stat().st_ino
        name = path
        if call == "link":
            name = path.parent / "link.ini"
            name.symlink_to(path)
        monkeypatch.setattr(os, "replace", refusing(number))
        files.replace(str(name), b"x")
        found = path.stat()
        assert (found.st_ino, stat.S_IMODE(found.st_mode), path.read_bytes()) == (before, 0o640, b"x")
        assert name.is_symlink() == (call == "link")

    def test_what_does_not_fit_leaves_what_was_there(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "replace", refusing(errno.EBUSY))
        sync, calls = os.fsync, []

        def fail_once(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == 2:  # the first is that of the file that was to replace it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", fail_once)
        with pytest.raises(OSError, match="No space left"):
            files.replace(str(path), b"much more than there was")
        assert path.read_bytes() == OLD

    def test_any_other_failure_leaves_the_file_alone(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "replace", refusing(errno.EACCES))
        with pytest.raises(PermissionError):
            files.replace(str(path), NEW)
        assert path.read_bytes() == OLD


def refusing(number: int) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse
