"""
The text of an INI file, parsed once: what stands where, to be read, checked, compared, shown and changed.

A document is a row of blocks: a section's header with the lines below it. To change a setting only its
line is written anew; comments, order and blanks stay. The text has to be one that was read without a
problem then; whatever comes out is for ``load`` to judge.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

from proxy.configfile import syntax
from proxy.configfile.spec import SETTINGS, Path, is_secret, knows, shown
from proxy.configfile.syntax import CONTROL, Fault, Header, Setting
from proxy.errors import ConfigError
from proxy.redact import REDACTED
from proxy.settings import did_you_mean

Place = tuple[Path, str]  # of a setting; with the key "" it is the section itself
Edit = tuple[str, str | None]  # a dotted name and its value; None takes the setting away

NOWHERE: Path = ("",)  # the path of a section whose header cannot be read

_PARENTS = ("listeners", "upstreams")
_NAME = re.compile(r"[\w.@+-]+")
_NAMES = re.compile(r"[\w.-]+([ \t]*,[ \t]*[\w.-]+)*")


def edit(text: str, edits: Iterable[Edit], *, is_again: bool = False) -> str:
    """
    Set or take away settings. Raises ``ConfigError`` for what cannot be written.

    Also for a value that would not read back as it is, and for a setting to be taken away that is
    not there, unless it was done before and ``is_again``.
    """
    document = Document(text)
    wanted = document.settings()
    for name, value in edits:
        place = document.place_of(name)
        if value is None:
            if not is_again and place not in wanted and (place[1] or place[0] not in document.sections):
                raise ConfigError(name, "is not set")
            document.unset(place)
            path, key = place
            gone = [each for each in wanted if each == place or (not key and each[0][: len(path)] == path)]
            for each in gone:
                del wanted[each]
        else:
            document.set(place, value)
            wanted[place] = value
    changed = str(document)
    found = Document(changed).settings()
    for place in wanted.keys() | found.keys():
        if found.get(place) != wanted.get(place):
            raise ConfigError(dotted(place), "this value would read back as another one")
    return changed


def redact(text: str) -> list[tuple[str, str]]:
    """
    Give all lines as others may see them, each beside the line itself, by which two can be compared.

    Shown is what is known to be no secret: sections, settings that there can be, and the names of users.
    A comment may say anything, and so may a line that nothing is known of.
    """
    return Document(text).redacted()


def dotted(place: Place) -> str:
    """Name a place as ``edit`` takes it."""
    return ".".join((*place[0], place[1]) if place[1] else place[0])


def _check_section(name: str, section: str) -> None:
    """Refuse a name that begins with no section, and say which one may be meant."""
    if section in SETTINGS or not _NAME.fullmatch(section):
        return
    homes = [each for each in ("proxy", "control") if name in SETTINGS[each]]
    hint = f"; did you mean {homes[0]}.{name}?" if homes else did_you_mean(section, SETTINGS, "[{}]")
    raise ConfigError(name if _NAME.fullmatch(name) else section, f"there is no section [{section}]{hint}")


class Block:
    """A section; the first one is what stands before all sections."""

    def __init__(self, path: Path, header: Header | Fault | None = None) -> None:
        self.path = path
        self.header = header
        self.lines: list[str | None] = []  # None is a line that was taken away
        self.settings: list[Setting] = []  # as they were read, with those that are there twice
        self.at: dict[str, int] = {}  # where in the lines they are
        self._last = -1  # of its settings, or its header
        self._columns: set[int] = set()  # of the =

    def add(self, line: str, item: Header | Setting | Fault | None) -> None:
        """Add a line below the others."""
        if item is not None:
            self._last = len(self.lines)
        if isinstance(item, Setting):
            self.settings.append(item)
            if item.key not in self.at:
                self.at[item.key] = self._last
                self._columns.add(len(_head(line, item).rstrip()))
        self.lines.append(line)

    def values(self) -> Iterator[tuple[str, str]]:
        """List its settings with their values; those that cannot be read are left out."""
        first = {setting.key: setting for setting in reversed(self.settings)}
        for key in dict.fromkeys(setting.key for setting in self.settings):
            with suppress(ValueError):
                yield key, syntax.read_value(first[key].raw).text

    def put(self, key: str, value: str, *, end: str) -> None:
        """Write a setting, below the others if it is a new one."""
        index = self.at.get(key)
        if index is not None:
            line = self.lines[index]
            assert line is not None, "it would not be listed"
            self.lines[index] = _rewritten(line, (self.path, key), value)
            return
        self._last += 1
        self.at[key] = self._last
        above = next((each for each in reversed(self.lines[: self._last]) if each is not None), "")
        indent = above[: len(above) - len(above.lstrip(" \t"))]
        name = syntax.quote_key(key)
        if len(self._columns) == 1 and len(self.at) > 2:
            # The = of all the others are in one column.
            name = name.ljust(min(self._columns) - 2 - len(indent))
        line = f"{indent}{name} = {_written((self.path, key), value)}"
        self.lines.insert(self._last, line.rstrip() + end)

    def take(self, key: str) -> None:
        """Take a setting away."""
        index = self.at.pop(key, None)
        if index is not None:
            self.lines[index] = None

    def split_tail(self) -> list[str | None]:
        """Give away the lines below its last setting: they belong to what follows."""
        tail = self.lines[self._last + 1 :]
        del self.lines[self._last + 1 :]
        return tail


class Document:
    """
    The text of a file, as a row of blocks.

    A broken header begins a block too, of a section that is ``NOWHERE``; what is below it can be anything.
    """

    def __init__(self, text: str) -> None:
        lines = text.removeprefix("\ufeff").split("\n")
        self.has_mark = text.startswith("\ufeff")  # of the byte order
        self.faults: list[Fault] = []
        self.blocks = [Block(())]
        self._end = "\r" if lines[0].endswith("\r") else ""
        items = {item.line: item for item in syntax.scan([line.removesuffix("\r") for line in lines])}
        parent = ""
        for number, line in enumerate(lines, 1):
            item = items.get(number)
            if isinstance(item, Header):
                path = (item.name,) if item.depth == 1 else (parent, item.name)
                parent = path[0]
                self.blocks.append(Block(path, item))
            if isinstance(item, Fault):
                self.faults.append(item)
                if item.hides_more:
                    parent = ""
                    self.blocks.append(Block(NOWHERE, item))
            self.blocks[-1].add(line, item)
        self._by_path: dict[Path, Block] = {}
        for block in self.blocks:
            self._by_path.setdefault(block.path, block)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """All lines, without those that were taken away."""
        return [line for block in self.blocks for line in block.lines if line is not None]

    @property
    def sections(self) -> list[Path]:
        """The sections, in their order."""
        return [block.path for block in self.blocks[1:]]

    def settings(self) -> dict[Place, str]:
        """List all settings with their values, as they were read; those that cannot be are left out."""
        blocks = self._by_path.items()
        return {(path, key): value for path, block in blocks for key, value in block.values()}

    def place_of(self, name: str) -> Place:
        """Find out which place a dotted name means; raises ``ConfigError`` where there can be none."""
        section, _, rest = name.partition(".")
        if section in _PARENTS and (section, rest) in self._by_path:
            return (section, rest), ""
        if section in _PARENTS:
            child, _, key = rest.rpartition(".")
            place: Place = ((section, child) if child else (section,)), key
        else:
            place = (section,), rest
            _check_section(name, section)
        parts = place[0] if section == "auth_users" or not place[1] else (*place[0], place[1])
        if not all(map(_NAME.fullmatch, parts)) or CONTROL.search(name):
            raise ConfigError(
                name if name.isprintable() else "",
                "is no name of a setting: write proxy.timeout, auth_users.NAME, or listeners.NAME.path",
            )
        return place

    def set(self, place: Place, value: str) -> None:
        """Set one setting; raises ``ConfigError`` for what cannot be written."""
        path, key = place
        if not key:
            raise ConfigError(dotted(place), "is a section: name a setting of it")
        try:
            self._open(path).put(key, value, end=self._end)
        except ValueError as exc:
            raise ConfigError(dotted(place), str(exc)) from None

    def unset(self, place: Place) -> None:
        """Take away a setting, or a whole section."""
        path, key = place
        if key:
            if path in self._by_path:
                self._by_path[path].take(key)
            return
        for index in reversed(range(1, len(self.blocks))):
            if self.blocks[index].path[: len(path)] == path:
                self.blocks[index - 1].lines += self.blocks[index].split_tail()
                del self._by_path[self.blocks.pop(index).path]

    def redacted(self) -> list[tuple[str, str]]:
        """Give all lines as others may see them, each beside the line itself."""
        lines = []
        for block in self.blocks:
            keys = {index: key for key, index in block.at.items()}
            for index, line in enumerate(block.lines):
                if line is not None:
                    is_header = index == 0 and isinstance(block.header, Header)
                    seen = _redacted(line, block.path, keys.get(index, ""), is_header=is_header)
                    lines.append((seen, line))
        return lines

    def _open(self, path: Path) -> Block:
        """Find a section, or make it: the last of its kind, or of all."""
        if path in self._by_path:
            return self._by_path[path]
        if len(path) > 1:
            self._open(path[:1])
        kin = [index for index, each in enumerate(self.blocks) if each.path[:1] == path[:1]]
        before = self.blocks[kin[-1] if len(path) > 1 else -1]
        block = Block(path, Header(0, len(path), path[-1]))
        tail = before.split_tail()
        if str(self):
            block.lines.append(self._end)
        header = "[" * len(path) + path[-1] + "]" * len(path)
        block.add(header + self._end, block.header)
        block.lines += tail or [""]
        self.blocks.insert(self.blocks.index(before) + 1, block)
        self._by_path[path] = block
        return block


def _setting(line: str) -> Setting:
    item = syntax.read_line(0, line.removesuffix("\r"))
    assert isinstance(item, Setting), "it was one before"
    return item


def _head(line: str, setting: Setting) -> str:
    """Give what stands before the value."""
    body = line.rstrip(" \t\r")
    return body[: len(body) - len(setting.raw)]


def _rewritten(line: str, place: Place, value: str) -> str:
    """Write another value in a line; its comment stays, and in its column if there is room."""
    setting = _setting(line)
    old = syntax.read_value(setting.raw)
    head = _head(line, setting)
    if not old.text and not old.is_quoted:
        head = head.rstrip() + " "
    new = f"{head}{_written(place, value, beside_a_comment=bool(old.comment))}".rstrip()
    if old.comment:
        column = len(line.rstrip(" \t\r")) - len(old.comment)
        new = f"{new.ljust(max(column, len(new) + 2))}{old.comment}"
    return new + ("\r" if line.endswith("\r") else "")


def _written(place: Place, value: str, *, beside_a_comment: bool = False) -> str:
    path, key = place
    if path[0] == "listeners" and key == "upstream" and _NAMES.fullmatch(value):
        return value  # a list, where a comma is no part of a value
    return syntax.quote(value, always=beside_a_comment and is_secret(path, key))


def _redacted(line: str, path: Path, key: str, *, is_header: bool) -> str:
    body = line.rstrip(" \t\r")
    start = body[: len(body) - len(body.lstrip(" \t"))]
    if is_header:
        name = path[-1] if knows(path) else REDACTED
        mark = f"  # {REDACTED}" if "#" in body.partition("]")[2] else ""
        return start + "[" * len(path) + name + "]" * len(path) + mark
    if key and knows(path, key):
        return _redacted_setting(line, path, key)
    if body[len(start) :].startswith("#"):
        return f"{start}# {REDACTED}"
    return REDACTED if body else ""


def _redacted_setting(line: str, path: Path, key: str) -> str:
    setting = _setting(line)
    head = _head(line, setting)
    try:
        value = syntax.read_value(setting.raw)
    except ValueError:  # in a file that is damaged
        return f"{head.rstrip()} {REDACTED}"
    text = shown(path, key, value.text)
    if text == value.text:
        text = setting.raw.removesuffix(value.comment).rstrip(" \t")
    return f"{head}{text}{value.gap}# {REDACTED}" if value.comment else f"{head}{text}".rstrip()
