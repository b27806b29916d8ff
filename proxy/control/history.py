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
from dataclasses import asdict, dataclass, field
from pathlib import Path

from proxy.control import configfile, files
from proxy.control.edit import settings
from proxy.errors import reason_of

log = logging.getLogger(__name__)

_MARK = "# proxy-server version "
_NAME = re.compile(r"(\d+)\.ini")
_SOURCES = ("file", "ctl", "rollback", "start")
_KINDS = {
    "number": (int,),
    "time": (int, float),
    "source": (str,),
    "summary": (str,),
    "text": (str,),
    "volatile": (bool,),
}
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
        for name, kind in _KINDS.items():
            # Not isinstance: to Python, True is a number.
            if type(getattr(self, name)) not in kind:
                raise ValueError(f"{name} is of the wrong kind")
        if self.number < 1 or not 0 <= self.time < _END_OF_TIME or self.source not in _SOURCES:
            raise ValueError("no version has such a number, time or source")


def state_dir(config_path: str, configured: str) -> Path:
    """Tell where the state of a server is kept; a relative folder starts at the file's own."""
    return Path(os.path.abspath(config_path)).parent / (os.path.expanduser(configured) or ".proxy")


def state_dir_of(config_path: str) -> Path:
    """Tell the same of a file that may be missing or invalid, as well as can be."""
    return state_dir(config_path, peek(config_path, "state_dir"))


def peek(config_path: str, key: str) -> str:
    """Read a setting of [proxy] from a file that may be missing or invalid; "" if there is none."""
    try:
        text = configfile.read(config_path).data.decode("utf-8", "replace")
    except configfile.InvalidConfigError:
        return ""
    return settings(text).get((("proxy",), key), "")


class History:
    """The last so many versions, the oldest first; those of earlier runs too."""

    def __init__(self, folder: Path | None, size: int) -> None:
        """Read what is in a folder; without one, versions are kept in memory only."""
        self._folder = folder
        self.size = size
        self._all = sorted(_read_all(folder), key=lambda version: version.number)
        self._unwritten: list[Version] = []  # since the folder cannot be written

    @property
    def versions(self) -> list[Version]:
        """All that are remembered."""
        return self._all[-self.size :]

    def next_number(self) -> int:
        """Number the next version: above all there are, and all that another process has written."""
        names = [_NAME.fullmatch(each.name) for each in _entries(self._folder)]
        known = [int(name[1]) for name in names if name]
        return 1 + max([*known, *(each.number for each in self._all)], default=0)

    def add(self, version: Version) -> str:
        """
        Keep a version, and forget the oldest ones. Returns what is to be said of it, once.

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
        except OSError as exc:
            return f"{self._folder}: {reason_of(exc)}"
        return ""

    def _write(self, folder: Path, version: Version) -> None:
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = {name: value for name, value in asdict(version).items() if name != "text"}
        data = f"{_MARK}{json.dumps(about)}\n{version.text}".encode()
        files.replace(str(folder / _name(version.number)), data)
        kept = [each for each in _entries(folder) if _number(each) and each.is_file()]
        for old in sorted(kept, key=_number)[: -self.size]:
            old.unlink(missing_ok=True)


def _entries(folder: Path | None) -> list[Path]:
    try:
        return list(folder.iterdir()) if folder else []
    except OSError:
        return []


def _name(number: int) -> str:
    return f"{number:06}.ini"


def _number(path: Path) -> int:
    name = _NAME.fullmatch(path.name)
    return int(name[1]) if name else 0


def _read_all(folder: Path | None) -> list[Version]:
    found = (_read(path) for path in _entries(folder) if _number(path))
    return [version for version in found if version]


def _read(path: Path) -> Version | None:
    try:
        about, _, text = path.read_bytes().decode().partition("\n")
        version = Version(**json.loads(about.removeprefix(_MARK)), text=text)
        if path.name == _name(version.number):
            return version
        reason = "not a version"
    except OSError as exc:
        reason = reason_of(exc)
    except (ValueError, TypeError, RecursionError):
        reason = "not a version"
    log.warning("%s is passed over: %s", path, reason)
    return None
