"""
Find the sections and settings of a document that do not belong in it, and where all the others are.

What does not belong is reported and left out, so that the rest can be checked all the same. No problem
repeats a value: it may be a password.
"""

import codecs
import re
from dataclasses import dataclass

from proxy.configtext import syntax
from proxy.configtext.document import Document, Place
from proxy.configtext.sections import (
    Path,
    is_secret,
    kind_of,
    meant_by,
    settings_of,
    why_no_key,
    why_no_section,
)
from proxy.configtext.syntax import CONTROL, Fault, Header, Setting
from proxy.users import to_bytes

MAX_BYTES = 16 << 20  # far more than any configuration; what is larger is another kind of file


@dataclass(frozen=True)
class Problem:
    """What is wrong in one place; line 0 is the whole file."""

    path: str
    message: str
    line: int = 0
    section: str = ""
    key: str = ""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}: " if self.line else f"{self.path}: "
        section = f"[{self.section}] " if self.section else ""
        key = f"{self.key}: " if self.key else ""
        return f"{place}{section}{key}{self.message}"

    @property
    def by_name(self) -> str:
        """The same without its line, which means nothing where nobody has seen the text."""
        if self.path and not self.section:
            return str(self)  # of a file beside it, or as a whole
        return f"{'.'.join(filter(None, (self.section, self.key)))}: {self.message}"


class Outline:
    """
    What one file has.

    ``lines`` are the lines that can be, with nothing in place of the others. ``places`` has the line
    of each section (with the key ``""``) and setting, ``secrets`` each password as it is written, or the
    elements of a list of such, and ``refused`` the settings about which there is a problem already.
    """

    def __init__(self, document: Document, path: str, complaint: str = "") -> None:
        """Look at a document; or take the complaint for which there is nothing to look at."""
        self.path = path
        self.lines = [""] * len(document.lines)
        self.places: dict[Place, int] = {}
        self.secrets: dict[Place, str | list[str]] = {}
        self.refused: set[Place] = set()
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._unreadable: set[int] = set()  # lines about which no more is said
        if complaint:
            self._pass_over()
            self.report(0, complaint)
        else:
            self._read(document)

    def report_at(self, path: Path, key: str, message: str) -> None:
        """Refuse a setting, or (with no key) a section; of one that was refused no more is said."""
        if (path, key) not in self.refused:
            line = self.places.get((path, key)) or self.places.get((path, "")) or 0
            self.refuse(line, message, path, key)

    def warn_at(self, path: Path, key: str, message: str) -> None:
        """Say of a setting what may be a mistake, and may not."""
        self.warnings.append(self._problem(self.places.get((path, key), 0), message, path, key))

    def refuse(self, line: int, message: str, path: Path, key: str) -> None:
        """Report what is wrong with a line, and refuse the setting that stands there."""
        self.refused.add((path, key))
        self.report(line, message, path, key)

    def report(self, line: int, message: str, path: Path = (), key: str = "") -> None:
        """Report what is wrong with a line; with line 0, with the file."""
        if line not in self._unreadable:
            self.problems.append(self._problem(line, message, path, key))

    def _problem(self, line: int, message: str, path: Path, key: str) -> Problem:
        # With a missing or misplaced = a password can be where a name should be, so no odd name is printed.
        shown = [each if re.fullmatch(r"[\w.@+-]+", each) else "" for each in (*path, key)]
        section = ".".join(shown[:-1]) if all(shown[:-1]) else ""
        return Problem(self.path, message, line, section, shown[-1])

    def _read(self, document: Document) -> None:
        self._check_characters(document)
        keys: dict[Path, set[str]] = {}
        for line in document.lines:
            keys.setdefault(line.path, set()).add(line.key)
        is_known = parent_is_known = True  # the section, and the one that it is in
        for number, line in enumerate(document.lines, 1):
            item, stays = line.item, False
            if isinstance(item, Header):
                is_known = parent_is_known or item.depth != 2
                stays = is_known = is_known and self._has_place(line.path, item, keys[line.path])
                if item.depth == 1:
                    parent_is_known = is_known
            elif isinstance(item, Setting):
                stays = is_known and self._can_stay(line.path, item, keys[line.path])
            elif isinstance(item, Fault):
                self.report(number, item.message)
                word = re.match(r"\s*(\w*)", line.text)
                if word and word[1] in settings_of(line.path) and word[1] not in keys[line.path]:
                    self.refused.add((line.path, word[1]))  # as below: it is not missing, but cannot be read
                if item.hides_more:
                    is_known = parent_is_known = False
            if stays:
                self.lines[number - 1] = line.text
            if not is_known:
                self._pass_over()

    def _check_characters(self, document: Document) -> None:
        offset = len(codecs.BOM_UTF8) if document.has_mark else 0
        for number, line in enumerate(document.lines, 1):
            try:
                line.text.encode()
            except UnicodeEncodeError as exc:
                # A byte that is no part of UTF-8 was taken in as half a character.
                byte, before = ord(line.text[exc.start]) & 0xFF, len(to_bytes(line.text[: exc.start]))
                self.report(number, f"byte {byte:#04x} at offset {offset + before} is not UTF-8")
                self._unreadable.add(number)
            if control := CONTROL.search(line.text):
                self.report(number, f"has a control character (U+{ord(control[0]):04X})")
                self._unreadable.add(number)
            offset += len(to_bytes(f"{line.text}{line.end}\n"))

    def _pass_over(self) -> None:
        """Pass over a section that is none, and refuse what may stand in it: users, listeners, upstreams."""
        self.refused |= {((section,), "") for section in ("auth_users", "listeners", "upstreams")}

    def _has_place(self, path: Path, header: Header, keys: set[str]) -> bool:
        """Tell whether there can be such a section, or report why there is none."""
        complaint = why_no_section(path, header.depth, keys)
        if not complaint and (path, "") in self.places:
            complaint = f"this section is already in line {self.places[path, '']}"
        if complaint:
            self.report(header.line, complaint, path)
            return False
        self.places[path, ""] = header.line
        return True

    def _can_stay(self, path: Path, setting: Setting, keys: set[str]) -> bool:
        """Tell whether a setting can be here, beside these, and can be read; or refuse it."""
        place = path, setting.key
        complaint = why_no_key(path, setting.key)
        if complaint and (meant := meant_by(path, setting.key)) and meant not in keys:
            self.refused.add((path, meant))  # that it is missing follows from this
        if not complaint and place in self.places:
            complaint = f"is already set in line {self.places[place]}"
        if not complaint:
            self.places[place] = setting.line
            try:
                if is_secret(path, setting.key):
                    self._read_secret(place, setting)
                else:
                    syntax.read_value(setting.raw)
                return True
            except ValueError as exc:
                complaint = str(exc)
        self.refuse(setting.line, complaint, *place)
        return False

    def _read_secret(self, place: Place, setting: Setting) -> None:
        kind = kind_of(*place)
        if kind and kind.has_commas and (elements := syntax.read_elements(setting.raw)):
            self.secrets[place] = elements
            return
        value = syntax.read_secret(setting.raw)
        self.secrets[place] = value.text
        if value.comment and not value.is_quoted:
            message = "the text after # is taken as a comment; quote the value if it belongs to it"
            self.warnings.append(self._problem(setting.line, message, *place))


def why_no_text_file(data: bytes) -> str:
    """Say why a file is none that a configuration can stand in; nothing if it may be one."""
    if len(data) > MAX_BYTES:
        return f"is larger than {MAX_BYTES >> 20} MiB: this is not a configuration file"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "is UTF-16: save it as UTF-8"
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        return f"is not a text file: there is a NUL byte in line {line}"
    text = data.removeprefix(codecs.BOM_UTF8).strip()
    if text.startswith(b"{"):
        return "is JSON: write an INI file, as docs/from-the-go-program.md shows"
    return "" if text else "is empty"
