"""
Replace a file so that whoever reads it finds the old content or the new, and never a part.
"""

import errno
import os
import stat
import tempfile
from contextlib import suppress


def replace(path: str, data: bytes) -> None:
    """
    Write a file anew; its mode and owner stay, and a new one is for us alone. Raises ``OSError``.

    Its group stays too, if we may give files to that, or if it means nothing. A symbolic link stays,
    and what it leads to is replaced.
    """
    path = os.path.realpath(path)
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
    os.fchmod(descriptor, old.st_mode & 0o7777)


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
