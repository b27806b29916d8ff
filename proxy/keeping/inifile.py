"""
The configuration file, and the result of the last check of it.

What may never be violated:

- A file is judged once. Only another content is judged again, or another reason why it cannot be read, or
  another file that a rejected one names.
- A shortage of our own says nothing of a file: whoever met one puts ``judged`` back to what it was.
- There is ``trouble`` as long as the file is not what is in effect, whoever is to blame, and no longer.

``judged`` has three parts, which change as follows; what is not named stays as it is:

=================================== ============ =========== ========= ======
what happens                                     content     rejected  trouble
=================================== ============ =========== ========= ======
another content, or other TLS files ``judge``    that one    for now
it cannot be in effect              ``note``                           why
it is in effect                     ``accept``               no        none
we wrote what is in effect          ``accept``   our text    no        none
that could not be written           both                     no        why
it is not what we would write to    ``note``                           why
=================================== ============ =========== ========= ======

All but ``accept`` and ``note`` read files, and belong into a native thread.
"""

import hashlib
import os
import time
from dataclasses import dataclass, field, replace

from proxy.configfile import load
from proxy.configfile.content import Content, InvalidConfigError, read_file
from proxy.configfile.load import Loaded
from proxy.keeping import fingerprint
from proxy.keeping.candidate import problems_of
from proxy.keeping.fingerprint import Fingerprint


@dataclass(frozen=True)
class Trouble:
    """Why the file is not what is in effect."""

    problem: str  # the first one
    since: float  # Unix time, in seconds


def still(before: Trouble | None, problem: str) -> Trouble:
    """Say what is wrong now, of what has been so since it began."""
    return Trouble(problem, before.since if before else time.time())


@dataclass(frozen=True)
class Judged:
    """
    The file as it was when it was last judged.

    The files named in a rejected one, which it ``waits_for``, may have been the cause, so it is judged again
    when they change.
    """

    content: str = ""  # a digest, or why it cannot be read
    waits_for: Fingerprint = field(default_factory=dict)
    is_rejected: bool = False
    trouble: Trouble | None = None


class IniFile:
    """A configuration file; ``judged`` is all that is remembered of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.folder = load.folder_of(path)
        self.judged = Judged()

    def accept(self, text: str | None = None) -> None:
        """Note that the file is in effect, or the text that was just written into it."""
        content = self.judged.content if text is None else _digest(text.encode())
        self.judged = Judged(content)

    def note(self, problem: str) -> None:
        """Note why the file is not in effect."""
        self.judged = replace(self.judged, trouble=still(self.judged.trouble, problem))

    def judge(self) -> tuple[str, Loaded]:
        """Read the text of the file, and what it means. Raises ``InvalidConfigError``."""
        trouble = self.judged.trouble
        self.judged = Judged(is_rejected=True, trouble=trouble)  # until it is known to be otherwise
        try:
            content = read_file(self.path)
        except InvalidConfigError as exc:
            self.judged = replace(self.judged, content=str(exc))
            raise
        # Before they are read: one that appears right after that is another one than this.
        waits_for = fingerprint.take(load.named_files_in(content.document, self.folder))
        self.judged = Judged(_digest(content.data), waits_for, is_rejected=True, trouble=trouble)
        return content.text, load.understand(content, self.path, self.folder)

    def parse(self, text: str, name: str = "") -> tuple[Loaded, Fingerprint]:
        """Read a text as if it stood here, and the files that it names. Raises ``InvalidConfigError``."""
        content = Content(text.encode())
        taken = fingerprint.take(load.named_files_in(content.document, self.folder))
        return load.understand(content, name, self.folder), taken

    def is_new(self) -> bool:
        """Tell whether it is another file than was judged, or one that it names is."""
        try:
            now = _digest(read_file(self.path).data)
        except InvalidConfigError as exc:
            now = str(exc)
        return now != self.judged.content or fingerprint.take(self.judged.waits_for) != self.judged.waits_for

    def is_rejected(self) -> bool:
        """Tell whether the file is, or would be; it may have changed since it was judged."""
        return bool(self.problems()) if self.is_new() else self.judged.is_rejected

    def problems(self) -> tuple[str, ...]:
        """List what is wrong with it now."""
        try:
            load.load(self.path)
        except InvalidConfigError as exc:
            return problems_of(exc)
        return ()

    def holds(self, text: str) -> bool:
        """Tell whether this is its text."""
        try:
            return read_file(self.path).text == text
        except InvalidConfigError:
            return False

    def is_left_behind(self) -> bool:
        """Tell whether there is another one where it is mounted from, which cannot be seen here."""
        try:
            return os.stat(self.path).st_nlink == 0
        except (OSError, ValueError):
            return False


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
