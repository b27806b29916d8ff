"""
Remember which configurations were applied, across restarts.

Each version is a file of its own: a comment with what is known of it, and below it the text of the
configuration, so that an operator can also copy it by hand. They hold passwords: nobody else may
read them.
"""

import json
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from proxy.configtext.outline import MAX_BYTES
from proxy.errors import ProxyError, reason_of
from proxy.keeping import files
from proxy.trust import Trust, UntrustedError

log = logging.getLogger(__name__)

_MARK = "# proxy-server version "
_NAME = re.compile(r"(\d+)\.ini")
_SOURCES = ("file", "ctl", "rollback", "start")
_MOST_BYTES = MAX_BYTES + (1 << 16)  # of a text, and of what is known of it
_END_OF_TIME = 1e11  # a clock with four digits for the year can show what is before it


@dataclass(frozen=True)
class Version:
    """
    A configuration that was applied; the text of a volatile one is not what stands in the file.

    Raises ``ValueError`` for what none can be: its values may come from a file that is damaged.
    """

    number: int
    time: float  # Unix time, in seconds
    source: str  # file | ctl | rollback | start
    summary: str  # what changed; without secrets
    text: str = field(repr=False)
    volatile: bool = False

    def __post_init__(self) -> None:
        for each in fields(self):
            kinds = (int, float) if each.type is float else (each.type,)
            # Not isinstance: to Python, True is a number.
            if type(getattr(self, each.name)) not in kinds:
                raise ValueError(f"{each.name} is of the wrong kind")
        if self.number < 1 or not 0 <= self.time < _END_OF_TIME or self.source not in _SOURCES:
            raise ValueError("no version has such a number, time or source")


def version_before(current: Version, versions: Sequence[Version]) -> Version:
    """
    Find the version before the current one; after a rollback, before the one which it went back to.

    Raises ``ProxyError`` if there is none.
    """
    here: Version | None = current
    while here and here.source == "rollback":
        same = [each for each in versions if each.number < here.number and each.text == here.text]
        here = same[-1] if same else None
    for each in reversed(versions):
        if here and each.number < here.number and each.text != current.text:
            return each
    raise ProxyError("there is no version before this one")


class History:
    """The last so many versions, the oldest first; those of earlier runs too."""

    def __init__(self, folder: Path | None, size: int, trust: Trust | None = None) -> None:
        """
        Read what is in a folder; without one, versions are kept in memory only.

        A folder or a file in it that others may have made is left alone.
        """
        self._folder = folder
        self._trust = trust or Trust()
        self.size = size
        self._all = sorted(self._read_all(), key=lambda version: version.number)
        self._unwritten: list[Version] = []  # since the folder cannot be written

    @property
    def versions(self) -> list[Version]:
        """All that are remembered."""
        return self._all[-self.size :]

    def next_number(self) -> int:
        """Number the next version: above all there are, and all that another process has written."""
        numbers = [each.number for each in self._all]
        with suppress(OSError), self._opened() as folder:
            numbers += map(_number, os.listdir(folder))
        return 1 + max(numbers, default=0)

    def make(self, source: str, summary: str, text: str, *, volatile: bool = False) -> Version:
        """Make the next version, which nobody remembers yet."""
        return Version(self.next_number(), time.time(), source, summary, text, volatile)

    def add(self, version: Version) -> str:
        """
        Keep a version, and forget the oldest ones. Returns a warning, or nothing, and the same one only once.

        What cannot be written is kept in memory, and written with a later one, or by ``catch_up``.
        """
        self._all = [*self.versions, version][-self.size :]
        was_behind = bool(self._unwritten)
        self._unwritten = [*self._unwritten, version][-self.size :]
        reason = self.catch_up()
        if not reason or was_behind:
            return ""
        return f"{reason}; versions are kept in memory only, until it can be written"

    def catch_up(self) -> str:
        """Write what is not written yet, and return why that cannot be done, if it cannot."""
        try:
            while self._folder and self._unwritten:
                self._write(self._folder, self._unwritten[0])
                del self._unwritten[0]
        except UntrustedError as exc:
            return reason_of(exc)
        except OSError as exc:
            return f"{self._folder}: {reason_of(exc)}"
        return ""

    def _write(self, folder: Path, version: Version) -> None:
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = {name: value for name, value in asdict(version).items() if name != "text"}
        data = f"{_MARK}{json.dumps(about)}\n{version.text}".encode()
        with self._opened() as opened:
            files.replace(str(folder / _name(version.number)), data)
            kept = [name for name in os.listdir(opened) if _number(name) and self._is_file(name, opened)]
            for old in sorted(kept, key=_number)[: -self.size]:
                os.unlink(old, dir_fd=opened)

    def _is_file(self, name: str, folder: int) -> bool:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        return stat.S_ISREG(found.st_mode) and self._trust.is_ours(found)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the folder, which only we can have written in; raises ``OSError``."""
        if self._folder is None:
            raise FileNotFoundError
        # The one above is state_dir: who may write there can put another one in the place of this one.
        with self._trust.folder(self._folder.parent), self._trust.folder(self._folder) as folder:
            yield folder

    def _read_all(self) -> list[Version]:
        try:
            with self._opened() as folder:
                found = [self._read(name, folder) for name in os.listdir(folder) if _number(name)]
        except UntrustedError as exc:
            log.warning("%s, so the versions there are not used", reason_of(exc))
            return []
        except OSError:
            return []
        return [version for version in found if version]

    def _read(self, name: str, folder: int) -> Version | None:
        try:
            data = self._trust.read(name, folder, _MOST_BYTES + 1)
            about, _, text = data.decode().partition("\n")
            version = Version(**json.loads(about.removeprefix(_MARK)), text=text)
            if name == _name(version.number) and len(data) <= _MOST_BYTES:
                return version
            reason = "not a version"
        except OSError as exc:
            reason = reason_of(exc)
        except (ValueError, TypeError, RecursionError):
            reason = "not a version"
        log.warning("%s/%s is skipped: %s", self._folder, name, reason)
        return None


def _name(number: int) -> str:
    return f"{number:06}.ini"


def _number(name: str) -> int:
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else 0
