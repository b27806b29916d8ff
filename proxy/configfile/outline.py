"""
Find the sections and settings of an INI file: which there are, where they stand, and which of them cannot be.

What cannot be is reported and left out, so that the rest can be looked at all the same. No problem
repeats a value: it may be a password.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from proxy.configfile import syntax
from proxy.configfile.spec import Path, is_secret, why_no_key, why_no_section
from proxy.configfile.syntax import CONTROL, Fault, Header, Setting

MAX_BYTES = 16 << 20  # far more than any configuration; what is larger is another kind of file


@dataclass(frozen=True)
class Problem:
    """What is wrong in one place; line 0 is the whole file."""

    path: str
    line: int
    section: str
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}: " if self.line else f"{self.path}: "
        section = f"[{self.section}] " if self.section else ""
        key = f"{self.key}: " if self.key else ""
        return f"{place}{section}{key}{self.message}"


@dataclass
class _Block:
    """A section header, or a fault that ends a section, with the settings below; None is the file's top."""

    header: Header | Fault | None
    settings: list[Setting] = field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        return {setting.key for setting in self.settings}


class Outline:
    """
    What one file has.

    ``lines`` are the lines that can be, with nothing in place of the others. ``places`` has the line
    of each section (with the key ``""``) and setting, ``secrets`` each password as it is written, and
    ``refused`` the settings about which there is a problem already.
    """

    def __init__(self, data: bytes, path: str) -> None:
        self.path = path
        self.lines: list[str] = []
        self.places: dict[tuple[Path, str], int] = {}
        self.secrets: dict[tuple[Path, str], str] = {}
        self.refused: set[tuple[Path, str]] = set()
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._unreadable: set[int] = set()  # lines about which no more is said
        complaint = _not_a_text_file(data)
        if complaint:
            self._pass_over()
            self.report(0, complaint)
        else:
            self._read(list(self._decode(data)))

    def report_at(self, path: Path, key: str, message: str) -> None:
        """Refuse a setting, or (with no key) a section; of one that was refused no more is said."""
        if (path, key) not in self.refused:
            line = self.places.get((path, key)) or self.places.get((path, "")) or 0
            self.refuse(line, message, path, key)

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
        return Problem(self.path, line, section, shown[-1], message)

    def _decode(self, data: bytes) -> Iterator[str]:
        text = data.removeprefix(codecs.BOM_UTF8)
        offset = len(data) - len(text)
        for number, line in enumerate(text.split(b"\n"), 1):
            yield self._decode_line(number, line, offset)
            offset += len(line) + 1

    def _decode_line(self, number: int, line: bytes, offset: int) -> str:
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as exc:
            self.report(number, f"byte {line[exc.start]:#04x} at offset {offset + exc.start} is not UTF-8")
            self._unreadable.add(number)
            text = line.decode(errors="backslashreplace")
        control = CONTROL.search(text)
        if control:
            self.report(number, f"has a control character (U+{ord(control[0]):04X})")
            self._unreadable.add(number)
        return text

    def _read(self, lines: list[str]) -> None:
        self.lines = [""] * len(lines)
        top, *blocks = self._blocks(lines)
        for setting in top.settings:
            self.report(setting.line, why_no_key((), setting.key), key=setting.key)
        parent: str | None = ""
        for block in blocks:
            path = self._place(block, parent)
            if not isinstance(block.header, Header) or block.header.depth == 1:
                parent = path[0] if path else None
            if path is None:
                self._pass_over()
                continue
            for number in self._keep(path, block):
                self.lines[number - 1] = lines[number - 1]

    def _pass_over(self) -> None:
        """Pass over a section that is none: what stands in it, any listener and any upstream, is refused."""
        self.refused |= {(("listeners",), ""), (("upstreams",), "")}

    def _blocks(self, lines: list[str]) -> list[_Block]:
        blocks = [_Block(None)]
        for item in syntax.scan(lines):
            if isinstance(item, Setting):
                blocks[-1].settings.append(item)
                continue
            if isinstance(item, Fault):
                self.report(item.line, item.message)
            if isinstance(item, Header) or item.hides_more:
                blocks.append(_Block(item))
        return blocks

    def _place(self, block: _Block, parent: str | None) -> Path | None:
        """Find the path of a section, or report why it has none."""
        header = block.header
        if not isinstance(header, Header) or (header.depth == 2 and parent is None):
            return None
        path: Path = (header.name,) if header.depth == 1 else (parent or "", header.name)
        complaint = why_no_section(path, header.depth, block.keys)
        if not complaint and (path, "") in self.places:
            complaint = f"this section is there already, in line {self.places[path, '']}"
        if complaint:
            self.report(header.line, complaint, path=path)
            return None
        self.places[path, ""] = header.line
        return path

    def _keep(self, path: Path, block: _Block) -> Iterator[int]:
        """Report the settings that cannot be here or cannot be read, and yield the lines of the others."""
        yield self.places[path, ""]
        for setting in block.settings:
            complaint = self._why_not(path, setting)
            if not complaint:
                yield setting.line
                continue
            self.refuse(setting.line, complaint, path, setting.key)

    def _why_not(self, path: Path, setting: Setting) -> str:
        place = (path, setting.key)
        complaint = why_no_key(path, setting.key)
        if complaint:
            return complaint
        if place in self.places:
            return f"is there already, in line {self.places[place]}"
        self.places[place] = setting.line
        try:
            if is_secret(path, setting.key):
                self._read_secret(place, setting)
            else:
                syntax.read_value(setting.raw)
        except ValueError as exc:
            return str(exc)
        return ""

    def _read_secret(self, place: tuple[Path, str], setting: Setting) -> None:
        value = syntax.read_secret(setting.raw)
        self.secrets[place] = value.text
        if value.comment and not value.is_quoted:
            message = "the text after # is taken as a comment; quote the value if it belongs to it"
            self.warnings.append(self._problem(setting.line, message, *place))


def _not_a_text_file(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        return f"is larger than {MAX_BYTES >> 20} MiB: this is no configuration file"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "is UTF-16: save it as UTF-8"
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        return f"is no text file: there is a NUL byte in line {line}"
    return "" if data.removeprefix(codecs.BOM_UTF8).strip() else "is empty"
