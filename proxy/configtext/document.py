"""
The text of an INI file, parsed once: what stands where, to be read, checked, compared, shown and changed.

To change a setting only its line is written anew; comments, order and blanks stay. The text has to be one
that was read without a problem then; whatever comes out is for ``load`` to judge.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from proxy.configtext import syntax
from proxy.configtext.sections import NAMED, SETTINGS, Path, is_secret, kind_of, knows, shown
from proxy.configtext.syntax import CONTROL, Fault, Header, Setting
from proxy.errors import ConfigError
from proxy.redact import REDACTED
from proxy.settings.kinds import did_you_mean

Place = tuple[Path, str]  # of a setting; with the key "" it is the section itself
Edit = tuple[str, str | None]  # a dotted name and its value; None takes the setting away

NOWHERE: Path = ("",)  # the path of a section whose header cannot be read

_NAME = re.compile(r"[\w.@+-]+")
_NAMES = re.compile(r"[\w.:/*-]+([ \t]*,[ \t]*[\w.:/*-]+)*")


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
            wanted = {each: text for each, text in wanted.items() if not _is_within(each, place)}
        else:
            document.set(place, value)
            wanted[place] = value
    changed = str(document)
    found = Document(changed).settings()
    for place in wanted.keys() | found.keys():
        if found.get(place) != wanted.get(place):
            raise ConfigError(dotted(place), "this value would be read back as a different one")
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


def _is_within(one: Place, other: Place) -> bool:
    return one == other if other[1] else one[0][: len(other[0])] == other[0]


def _check_section(name: str, section: str) -> None:
    """Refuse a name that begins with no section, and say which one may be meant."""
    if section in SETTINGS or not _NAME.fullmatch(section):
        return
    homes = [each for each in ("proxy", "control") if name in SETTINGS[each]]
    hint = f"; did you mean {homes[0]}.{name}?" if homes else did_you_mean(section, SETTINGS, "[{}]")
    raise ConfigError(name if _NAME.fullmatch(name) else section, f"there is no section [{section}]{hint}")


@dataclass(eq=False)
class Line:
    """A line of a file, and what it says; a line that says nothing is empty, a comment, or inside a value."""

    text: str
    end: str  # "\r", as Windows has it, or nothing
    path: Path  # of the section that it begins, or in which it stands
    item: Header | Setting | Fault | None

    @property
    def key(self) -> str:
        """The key of a setting."""
        return self.item.key if isinstance(self.item, Setting) else ""

    @property
    def raw(self) -> str:
        """The value of a setting, as it is written."""
        return self.item.raw if isinstance(self.item, Setting) else ""

    @property
    def head(self) -> str:
        """What stands before the value of a setting."""
        return self.text.rstrip(" \t").removesuffix(self.raw)


class Document:
    """
    The text of a file, as a row of lines.

    What is below a broken header can be anything: its section is ``NOWHERE``.
    """

    def __init__(self, text: str) -> None:
        self.has_mark = text.startswith("\ufeff")  # of the byte order
        lines = text.removeprefix("\ufeff").split("\n")
        texts = [line.removesuffix("\r") for line in lines]
        self._end = lines[0][len(texts[0]) :]
        items = {item.line: item for item in syntax.scan(texts)}
        self.lines: list[Line] = []
        path: Path = ()
        for number, (line, bare) in enumerate(zip(lines, texts, strict=True), 1):
            item = items.get(number)
            if isinstance(item, Header):
                path = (item.name,) if item.depth == 1 else (*(path[:1] or NOWHERE), item.name)
            elif isinstance(item, Fault) and item.hides_more:
                path = NOWHERE
            self.lines.append(Line(bare, line[len(bare) :], path, item))
        self._index()

    def _index(self) -> None:
        """Note what each section has: its settings, and its header with the key ``""``."""
        self._items: dict[Path, dict[str, Line]] = {}
        for line in self.lines:
            if line.item:
                self._items.setdefault(line.path, {}).setdefault(line.key, line)

    def __str__(self) -> str:
        return "\ufeff" * self.has_mark + "\n".join(line.text + line.end for line in self.lines)

    @property
    def sections(self) -> list[Path]:
        """The sections, in their order."""
        return [path for path in self._items if path]

    def values(self) -> Iterator[tuple[Path, str, str]]:
        """List what can be read: sections, keys and values, also of those that are there twice."""
        for line in self.lines:
            with suppress(ValueError):
                if line.key:
                    yield line.path, line.key, syntax.read_value(line.raw).text

    def settings(self) -> dict[Place, str]:
        """List all settings with their values."""
        return {(path, key): value for path, key, value in self.values()}

    def place_of(self, name: str) -> Place:
        """Find out which place a dotted name means; raises ``ConfigError`` where there can be none."""
        section, _, rest = name.partition(".")
        if section in NAMED and (section, rest) in self._items:
            return (section, rest), ""
        if section in NAMED:
            child, _, key = rest.rpartition(".")
            place: Place = ((section, child) if child else (section,)), key
        else:
            place = (section,), rest
            _check_section(name, section)
        parts = place[0] if section == "auth_users" or not place[1] else (*place[0], place[1])
        if not all(map(_NAME.fullmatch, parts)) or CONTROL.search(name):
            raise ConfigError(
                name if name.isprintable() else "",
                "is not the name of a setting: write proxy.timeout, auth_users.NAME, or listeners.NAME.path",
            )
        return place

    def set(self, place: Place, value: str) -> None:
        """Set one setting; raises ``ConfigError`` for what cannot be written."""
        path, key = place
        if not key:
            raise ConfigError(dotted(place), "is a section: name a setting of it")
        line = self._items.get(path, {}).get(key)
        try:
            if line:
                line.text = _rewritten(line, value)
                line.item = syntax.read_line(0, line.text)
            else:
                self._add(place, value)
        except ValueError as exc:
            raise ConfigError(dotted(place), str(exc)) from None

    def unset(self, place: Place) -> None:
        """Take away a setting, or a whole section; what is below its last setting belongs to what follows."""
        path, key = place
        if key:
            if line := self._items.get(path, {}).pop(key, None):
                self.lines.remove(line)
            return
        kept = []
        is_inside = False
        for line in reversed(self.lines):
            is_gone = _is_within((line.path, ""), place) if line.item else is_inside
            if line.item:
                is_inside = is_gone and bool(line.key)
            if not is_gone:
                kept.append(line)
        self.lines = kept[::-1]
        self._index()

    def redacted(self) -> list[tuple[str, str]]:
        """Give all lines as others may see them, each beside the line itself."""
        return [(self._redacted(line), line.text + line.end) for line in self.lines]

    def _redacted(self, line: Line) -> str:
        body = line.text.rstrip(" \t")
        start = body[: len(body) - len(body.lstrip(" \t"))]
        if isinstance(line.item, Header):
            name = line.path[-1] if knows(line.path) else REDACTED
            mark = f"  # {REDACTED}" if "#" in body.partition("]")[2] else ""
            return start + "[" * len(line.path) + name + "]" * len(line.path) + mark
        is_first = isinstance(line.item, Setting) and line is self._items[line.path][line.key]
        if is_first and knows(line.path, line.key):
            return _redacted_setting(line)
        if body[len(start) :].startswith("#"):
            return f"{start}# {REDACTED}"
        return REDACTED if body else ""

    def _add(self, place: Place, value: str) -> None:
        """Write a setting below the others of its section, which is made if need be."""
        path, key = place
        self._open(path)
        present = list(self._items[path].values())
        above = present[-1]
        indent = above.text[: len(above.text) - len(above.text.lstrip(" \t"))]
        name = syntax.quote_key(key)
        columns = {len(line.head.rstrip()) for line in present[-2:] if line.key}
        if len(present) > 2 and len(columns) == 1:
            # The = of those above are in one column.
            name = name.ljust(columns.pop() - 2 - len(indent))
        self._insert(above, f"{indent}{name} = {_written(place, value)}".rstrip(), path)

    def _open(self, path: Path) -> None:
        """Make a section, if it is not there: the last of its kind, or of all."""
        if path in self._items:
            return
        if len(path) > 1:
            self._open(path[:1])
        above = self._last(path[:-1])
        header = self._insert(above, "[" * len(path) + path[-1] + "]" * len(path), path)
        if above:
            self._insert(above, "", path)
        if header is self.lines[-1]:
            self.lines.append(Line("", "", path, None))

    def _last(self, path: Path) -> Line | None:
        within = (line for line in reversed(self.lines) if line.item and line.path[: len(path)] == path)
        return next(within, None)

    def _insert(self, above: Line | None, text: str, path: Path) -> Line:
        line = Line(text, self._end, path, syntax.read_line(0, text) if text else None)
        self.lines.insert(self.lines.index(above) + 1 if above else 0, line)
        if line.item:
            self._items.setdefault(path, {})[line.key] = line
        return line


def _rewritten(line: Line, value: str) -> str:
    """Write another value in a line; its comment stays, and in its column if there is room."""
    old = syntax.read_value(line.raw)
    head = line.head
    if not old.text and not old.is_quoted:
        head = head.rstrip() + " "
    new = f"{head}{_written((line.path, line.key), value, beside_a_comment=bool(old.comment))}".rstrip()
    if old.comment:
        column = len(line.text.rstrip(" \t")) - len(old.comment)
        new = f"{new.ljust(max(column, len(new) + 2))}{old.comment}"
    return new


def _written(place: Place, value: str, *, beside_a_comment: bool = False) -> str:
    path, key = place
    kind = kind_of(path, key)
    is_list = (path[0] == "listeners" and key == "upstream") or (kind is not None and kind.is_list)
    if is_list and _NAMES.fullmatch(value):
        return value  # a list, where a comma is no part of a value
    has_commas = kind is not None and kind.has_commas
    return syntax.quote(value, always=beside_a_comment and is_secret(path, key), may_be_list=has_commas)


def _redacted_setting(line: Line) -> str:
    try:
        value = syntax.read_value(line.raw)
    except ValueError:  # in a file that is damaged
        return f"{line.head.rstrip()} {REDACTED}"
    text = shown(line.path, line.key, value.text)
    if text == value.text:
        text = line.raw.removesuffix(value.comment).rstrip(" \t")
    return f"{line.head}{text}{value.gap}# {REDACTED}" if value.comment else f"{line.head}{text}".rstrip()
