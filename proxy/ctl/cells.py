"""
Text on a terminal: made harmless, measured in columns, and laid out in tables that fit.

Names come from strangers. They may contain what moves the cursor, reverses the direction of writing, or
takes two columns or none, and the columns have to stay aligned all the same.
"""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from unicodedata import category, east_asian_width, normalize

_CUT = "…"
_GAP = 2  # columns between those of a table
_LEAST = 8  # columns that are left of a text
_MOST_MARKS = 2  # on one letter, so that none climbs over the lines above
# Vowels and final consonants of Korean that are not one with the consonant before them are drawn on it.
_JAMO = range(0x1160, 0x1200)
_VARIATIONS = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))


def harmless(text: str) -> str:
    """Write out what does not print, or would change how its neighbours look."""
    if text.isascii() and text.isprintable():
        return text
    shown, marks = [], _MOST_MARKS  # nothing stands before the first for a mark to be on
    for char in normalize("NFC", text):
        marks = marks + 1 if _is_mark(char) else 0
        varies = any(ord(char) in each for each in _VARIATIONS)
        is_harmless = char.isprintable() and not varies and marks <= _MOST_MARKS
        shown.append(char if is_harmless else ascii(char)[1:-1])
    return "".join(shown)


def width(text: str) -> int:
    """Tell how many columns a harmless text takes."""
    return len(text) if text.isascii() else sum(map(_width, text))


def cut(text: str, most: int) -> str:
    """Keep as much of a harmless text as has room, and show that it goes on."""
    if width(text) <= most:
        return text
    room, kept = most - 1, []
    for char in text:
        room -= _width(char)
        if room < 0:
            break
        kept.append(char)
    return "".join(kept) + _CUT if most > 0 else ""


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """Bring a harmless text to exactly so many columns."""
    text = cut(text, columns)
    blanks = " " * (columns - width(text))
    return blanks + text if right else text + blanks


def room() -> int:
    """Tell how wide the terminal is; 0 if what is printed goes elsewhere, where nothing may be missing."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """
    Align the cells of rows, which are the same columns in each; one whose head begins with > is flush right.

    Where there is no room for all of it, texts are cut, the longest first, and numbers never. A text in the
    last column, such as a reason, goes on below instead.
    """
    lines = [[harmless(str(cell)) for cell in row.values()] for row in rows]
    if not lines:
        return ""
    rights = [head.startswith(">") for head in rows[0]]
    lines.insert(0, [head.lstrip(">") for head in rows[0]])
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    if most := room():
        texts = [at for at, right in enumerate(rights) if not right]
        _fit(widths, texts, most - _GAP * (len(widths) - 1))
    return "\n".join(
        (" " * _GAP)
        .join(pad(text, size, right=right) for right, text, size in zip(rights, line, widths, strict=True))
        .rstrip()
        for whole in lines
        for line in _wrapped(whole, widths[-1])
    )


def _fit(widths: list[int], texts: Sequence[int], most: int) -> None:
    """Take from the widest of the texts what is too much, but leave something of each."""
    while sum(widths) > most and texts:
        widest = max(texts, key=widths.__getitem__)
        if widths[widest] <= _LEAST:
            return
        widths[widest] -= 1


def _wrapped(line: Sequence[str], columns: int) -> Iterator[Sequence[str]]:
    """Give a line of a table, and those below it that the last text takes."""
    *others, last = line
    # Only of these is it sure that each takes one column.
    pieces = wrap(last, columns) if last.isascii() and len(last) > columns else [last]
    yield [*others, pieces[0]]
    for piece in pieces[1:]:
        yield [*("" for _ in others), piece]


def _width(char: str) -> int:
    if _is_mark(char):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


def _is_mark(char: str) -> bool:
    return category(char) in ("Mn", "Me") or ord(char) in _JAMO
