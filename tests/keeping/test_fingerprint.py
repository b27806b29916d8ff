"""Fingerprints of files: each way in which a file can change shows, without reading it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.keeping.fingerprint import take


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "proxy.ini"
    made.write_text("timeout = 10s")
    return made


def replace_by_another(path: Path) -> None:
    """As editors do: with the size and the times of the old one, as ``cp -p`` would give it."""
    old = path.stat()
    other = path.with_name("other")
    other.write_text("timeout = 20s")
    os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
    other.replace(path)


def write_and_date_back(path: Path) -> None:
    """The same inode, size and time of change of content: only the inode's own time tells."""
    old = path.stat()
    while path.stat().st_ctime_ns == old.st_ctime_ns:  # the clock of a file system has ticks
        path.write_text("timeout = 20s")
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))


def turn_link(path: Path) -> None:
    path.unlink()
    other = path.with_name("other")
    other.write_text("timeout = 20s")
    path.symlink_to(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("timeout = 100s"),
        lambda path: path.chmod(0o600),
        lambda path: path.unlink(),
        replace_by_another,
        write_and_date_back,
        turn_link,
    ],
    ids=["size", "mode", "gone", "replaced", "dated back", "a link"],
)
def test_a_change_shows(path: Path, change: Callable[[Path], object]) -> None:
    path.chmod(0o644)
    before = take([str(path)])
    change(path)
    assert take([str(path)]) != before


def test_to_read_it_is_no_change(path: Path) -> None:
    before = take([str(path)])
    path.read_text()
    assert take([str(path)]) == before


def test_a_link_is_what_it_leads_to(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    before = take([str(link)])
    path.write_text("timeout = 100s")
    assert take([str(link)]) != before


@pytest.mark.parametrize("name", ["missing", "missing/folder", "with\0nul", "x" * 300])
def test_what_is_not_there_has_a_fingerprint_too(tmp_path: Path, name: str) -> None:
    """So that it shows when it appears; and what cannot be a name is no error."""
    path = str(tmp_path / name)
    assert take([path]) == {path: None}


def test_one_that_appears_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "late.pem"
    before = take([str(path)])
    path.touch()
    assert take([str(path)]) != before
