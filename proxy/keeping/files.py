"""
Replace a file so that whoever reads it finds the old content or the new, and never a part.

A file that is mounted as such, as containers do it, cannot be replaced: its name leads to one file for
good. It is written in its place, where a power failure can leave a part of it.
"""

import errno
import io
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_ACL = "system.posix_acl_access"


def replace(path: str, data: bytes) -> None:
    """
    Write a file anew; who may do what with it stays, and a new one is for us alone. Raises ``OSError``.

    Its group stays too, if we may give files to that, or if it means nothing. A symbolic link stays,
    and what it leads to is replaced.
    """
    path = os.path.realpath(path)
    try:
        _replace(path, data)
    except OSError as exc:
        # A mount point is busy. Around it there may be a system that is read-only, or not ours to write in.
        if exc.errno not in (errno.EBUSY, errno.EROFS) and not _is_mounted(path):
            raise
        _overwrite(path, data)


def exchange(path: str, data: bytes) -> Callable[[], None]:
    """
    Write a file anew, and return what gives back all that it had. Both raise ``OSError``.

    What somebody else has written there meanwhile is left alone.
    """
    had = _content(path)
    replace(path, data)

    def undo() -> None:
        if _content(path) != data:
            return
        if had is None:
            os.unlink(os.path.realpath(path))  # a link that led to nothing is to do so again
        else:
            replace(path, had)

    return undo


def _content(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def _replace(path: str, data: bytes) -> None:
    folder, name = os.path.split(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with open(descriptor, "wb") as file:
            _be_like(path, descriptor)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync(folder)


def _is_mounted(path: str) -> bool:
    with suppress(OSError):
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    return False


def _overwrite(path: str, data: bytes) -> None:
    with open(path, "r+b", buffering=0) as file:
        had = file.read()
        try:
            _fill(file, data)
        except OSError:
            # It has the place of what it had, so for that there is room.
            _fill(file, had)
            raise


def _fill(file: io.FileIO, data: bytes) -> None:
    file.seek(0)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    file.truncate()
    os.fsync(file.fileno())


def _be_like(path: str, descriptor: int) -> None:
    try:
        old = os.stat(path)
    except FileNotFoundError:
        return
    new = os.fstat(descriptor)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.fchown(descriptor, old.st_uid, old.st_gid)
        except PermissionError:
            if old.st_uid != new.st_uid or not _any_group_will_do(old.st_mode):
                raise PermissionError(errno.EPERM, "its owner and group could not be kept", path) from None
    if hasattr(os, "listxattr"):
        _take_attributes(path, descriptor)
    os.fchmod(descriptor, old.st_mode & 0o7777)


def _take_attributes(path: str, descriptor: int) -> None:
    """
    Give a file the extended attributes of another one, of which the access control list is one.

    With such a list, the group's part of the mode is not the group's, but the most that the list allows. So
    without it the group could read what only somebody else was to; and with one that comes from the folder,
    somebody else could.
    """
    try:
        present, wanted = os.listxattr(descriptor), os.listxattr(path)
    except OSError:  # this file system has none
        return
    if _ACL in present and _ACL not in wanted:
        os.removexattr(descriptor, _ACL)
    for name in wanted:
        try:
            os.setxattr(descriptor, name, os.getxattr(path, name))
        except OSError:  # some are the system's alone
            if name == _ACL:
                raise


def _any_group_will_do(mode: int) -> bool:
    """Tell whether another group changes nothing for anybody: its members may do what all others may."""
    return (mode & stat.S_IRWXG) >> 3 == mode & stat.S_IRWXO


def _sync(folder: str) -> None:
    """Make sure that the new name outlives a power failure."""
    # Some file systems cannot, and some folders cannot be read; the file itself is safe, and in its place.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
