"""
Tell whether a folder and its files can only be ours.

Whoever can write where the versions and the control socket are could make us start with their configuration,
or receive what is meant for us. So who owns a folder, and who else may write there, is checked as sshd and
git do it. Trusted are root, ourselves, and the owners of the configuration file or its folder, who control us
anyway. A version is judged by the file that was opened, not by its name.
"""

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MOST_LINKS = 40  # as the kernel has it


class UntrustedError(OSError):
    """Somebody else may have made what stands in a place."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EPERM, why)


class Trust:
    """Knows who is trusted."""

    def __init__(self, config: str = "") -> None:
        """Take the configuration file whose owners are trusted, whoever they are at the time."""
        self._config = config

    @property
    def _users(self) -> set[int]:
        users = {0, os.geteuid()}
        for path in (self._config, os.path.dirname(os.path.abspath(self._config))) if self._config else ():
            with suppress(OSError, ValueError):
                users.add(os.stat(path).st_uid)
        return users

    @contextmanager
    def folder(self, path: Path) -> Iterator[int]:
        """Open a folder, and give its descriptor; raises ``OSError``, such as ``UntrustedError``."""
        self._check_way(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except PermissionError:
            self._check(os.stat(path), str(path))  # it may say why
            raise
        try:
            self._check(os.fstat(descriptor), str(path))
            yield descriptor
        finally:
            os.close(descriptor)

    def why_not(self, folder: Path) -> str:
        """Say why a folder, or what is to be one, is not only ours; nothing if it is."""
        try:
            with self.folder(folder):
                return ""
        except UntrustedError as exc:
            return exc.strerror or ""
        except OSError:
            return ""  # what cannot be opened, or is not there, is nobody's

    def read(self, name: str, folder: int, most: int) -> bytes:
        """Read a file in a folder that is open; raises ``OSError``, such as ``UntrustedError``."""
        # Without waiting for whoever may write into a named pipe.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise UntrustedError("it is not a file")
            self._check(found, "it")
            return file.read(most)

    def _check_way(self, path: Path) -> None:
        """
        Check that nobody else can have put this in the place of what is meant; raises ``UntrustedError``.

        In a folder where others may write, such as /tmp, only what belongs to a trusted user is meant.
        What stands in any other one was put there by whom that folder belongs to.
        """
        here, links = "/", 0
        names = _names(os.path.abspath(path))
        while names:
            name = names.pop()
            entry = os.path.normpath(os.path.join(here, name))
            try:
                found = os.lstat(entry)
            except FileNotFoundError:
                return
            if not self.is_ours(found) and self.others_may_write(os.stat(here)):
                raise UntrustedError(f"{entry} {_belongs(found)}, and others may write in {here}")
            if not stat.S_ISLNK(found.st_mode):
                here = entry
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink(entry)
            here = "/" if target.startswith("/") else here
            names += _names(target)

    def check_listener(self, folder: Path) -> None:
        """
        Check that what listens in a folder is whoever the folder belongs to; raises ``OSError``.

        Root asks the servers of other users too: there it is enough that nobody else made the folder.
        """
        self._check_way(folder)
        self._check_closed(os.stat(folder), str(folder))

    def is_ours(self, found: os.stat_result) -> bool:
        """Tell whether a place belongs to somebody we trust."""
        return found.st_uid in self._users

    def _check(self, found: os.stat_result, path: str) -> None:
        if not self.is_ours(found):
            raise UntrustedError(f"{path} {_belongs(found)}")
        self._check_closed(found, path)

    def _check_closed(self, found: os.stat_result, path: str) -> None:
        if self.others_may_write(found):
            raise UntrustedError(f"others may write in {path}")

    def others_may_write(self, found: os.stat_result) -> bool:
        """Tell whether more may write in a place than its owner, and a group that has nobody else in it."""
        if found.st_mode & stat.S_IWOTH:
            return True
        return bool(found.st_mode & stat.S_IWGRP) and not self._is_private(found.st_gid)

    def _is_private(self, group: int) -> bool:
        """Tell whether a group is that of a trusted user alone, with the same name, or has nobody in it."""
        try:
            known = grp.getgrgid(group)
        except KeyError:
            return True
        try:
            user = pwd.getpwnam(known.gr_name)
        except KeyError:
            return False
        is_his = user.pw_gid == group and user.pw_uid in self._users
        return is_his and set(known.gr_mem) <= {known.gr_name}


def _names(path: str) -> list[str]:
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _belongs(found: os.stat_result) -> str:
    try:
        return f"belongs to {pwd.getpwuid(found.st_uid).pw_name}"
    except KeyError:
        return f"belongs to user {found.st_uid}"
