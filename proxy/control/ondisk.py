"""
The configuration file itself: what it holds, what was said of that, and how it is written.

All of this waits for the disk, and for a large file to be read, so it is for a native thread.
"""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from proxy.configfile import load
from proxy.configfile.load import InvalidConfigError, Loaded
from proxy.control import files
from proxy.control.stamps import Stamps, stamps, tls_files_in
from proxy.errors import ProxyError, reason_of


class UnwritableError(ProxyError):
    """The file could not be written, and is as it was."""


class OnDisk:
    """One file, and what there is to know when it is judged again."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_rejected = False  # what it held when it was judged
        self._judged = ""  # the digest of what all was said of; empty if it cannot be read
        self._waits_for: Stamps = {}  # the TLS files that were in the way of it, perhaps, as they were

    @property
    def waits_for(self) -> list[str]:
        """The TLS files that may make acceptable what was rejected."""
        return list(self._waits_for)

    def judge(self) -> tuple[str, Loaded]:
        """
        Read what it holds: the text, and what that means. Raises ``InvalidConfigError``.

        Until ``accept`` it counts as rejected.
        """
        self._judged, self._waits_for, self.is_rejected = "", {}, True
        content = load.read_file(self.path)
        text = _text(content.data)
        self._judged = _digest(content.data)
        # Before they are read: one that appears right after that is another one than this.
        self._waits_for = stamps(tls_files_in(text, load.folder_of(self.path)))
        return text, load.understand(content, self.path)

    def accept(self) -> None:
        """Wait for nothing but another content of the file."""
        self._waits_for, self.is_rejected = {}, False

    def expect(self, text: str) -> None:
        """Take this for judged, and accepted, when it is found in the file."""
        self._judged, self._waits_for, self.is_rejected = _digest(text.encode()), {}, False

    def forget(self) -> None:
        """Judge it again at the next look: it could not be done now."""
        self._judged = ""

    def may_be_judged_otherwise(self) -> bool:
        """Tell whether it is another file than was judged, or may read another TLS file."""
        data = self._read()
        digest = "" if data is None else _digest(data)
        return digest != self._judged or stamps(self._waits_for) != self._waits_for

    def is_left_behind(self) -> bool:
        """Tell whether there is another one where it is mounted from, which cannot be seen here."""
        try:
            return os.stat(self.path).st_nlink == 0
        except (OSError, ValueError):
            return False

    def holds(self, text: str) -> bool:
        """Tell whether this is what stands in it."""
        data = self._read()
        return data is not None and _text(data) == text

    def problems(self) -> tuple[str, ...]:
        """Say what is wrong with it now."""
        try:
            load.load(self.path)
        except InvalidConfigError as exc:
            return tuple(map(str, exc.problems))
        return ()

    def write(self, text: str) -> Callable[[], None]:
        """
        Have it hold a text, and return what gives back all that it had.

        Raises ``UnwritableError``.
        """
        try:
            had = _content(self.path)
            files.replace(self.path, text.encode())
        except OSError as exc:
            raise UnwritableError(f"{self.path} could not be written: {reason_of(exc)}") from exc
        return partial(_put_back, self.path, had)

    def _read(self) -> bytes | None:
        try:
            return load.read_file(self.path).data
        except InvalidConfigError:
            return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _text(data: bytes) -> str:
    # What is not UTF-8 is in no text that was applied, so it is not equal to any.
    return data.decode("utf-8-sig", "surrogateescape")


def _content(path: str) -> bytes | None:
    """Give all that a file holds, however much it is; None if there is no file. Raises ``OSError``."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def _put_back(path: str, data: bytes | None) -> None:
    if data is None:
        os.unlink(os.path.realpath(path))  # a link that led to nothing is to do so again
    else:
        files.replace(path, data)
