"""
Read a file whole, or say why it cannot be read.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from proxy.configtext.document import Document
from proxy.configtext.outline import MAX_BYTES, Problem
from proxy.errors import ConfigError, is_shortage, reason_of
from proxy.net.limits import from_reserve, untold_shortage
from proxy.trust import Trust


class InvalidConfigError(ConfigError):
    """The file cannot be used; ``problems`` has all that is wrong with it, in the order of its lines."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(problems[0].key, f"{problems[0]}{more}")
        self.problems = problems


@dataclass(frozen=True)
class Content:
    """What a file had when it was read, and what is known of it; that is nothing of a text from elsewhere."""

    data: bytes
    found: os.stat_result | None = None

    @property
    def text(self) -> str:
        """As text; bytes that are not UTF-8 become what no text has."""
        return self.data.decode("utf-8-sig", "surrogateescape")

    @cached_property
    def document(self) -> Document:
        """The text, parsed; what is too large for a configuration is not looked at."""
        return Document(self.data.decode("utf-8", "surrogateescape") if len(self.data) <= MAX_BYTES else "")

    def exposures(self, path: str, effect: str, has_passwords: Callable[[], bool]) -> Iterator[Problem]:
        """Warn of what other users of this machine may do with the file, and should not."""
        if self.found is None:
            return
        if self.found.st_mode & 0o077 and has_passwords():
            what = "has passwords in plain text, and other users of this machine may access it"
            yield Problem(path, f"{what}: chmod 600 {path}")
        if stat.S_ISREG(self.found.st_mode) and Trust(path).others_may_write(self.found):
            what = f"other users of this machine may write it, and so {effect}"
            yield Problem(path, f"{what}: chmod go-w {path}")


def read_file(path: str, *, may_wait: bool = True) -> Content:
    """
    Read a file without a look at what is in it; one that ``may_wait`` for who writes it may be a FIFO.

    Raises ``InvalidConfigError`` if it cannot be read, and ``LimitError`` if only we cannot do that now.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags if may_wait else flags | os.O_NONBLOCK)

    try:
        with from_reserve(lambda: open(path, "rb", opener=opener)) as file:
            found = os.fstat(file.fileno())
            if not may_wait and not stat.S_ISREG(found.st_mode):
                raise OSError(0, "it is not a regular file")
            return Content(file.read(MAX_BYTES + 1), found)
    except OSError as exc:
        if is_shortage(exc):
            raise untold_shortage(f"{path} cannot be read now", exc) from exc
        is_folder = may_wait and exc.errno == errno.EISDIR
        reason = "is a folder" if is_folder else f"cannot be read: {reason_of(exc)}"
        raise InvalidConfigError((Problem(path, reason),)) from exc
    except ValueError as exc:
        raise InvalidConfigError((Problem(path, "this cannot be a file name"),)) from exc
