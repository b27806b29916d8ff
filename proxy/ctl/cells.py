"""
Text on a terminal: what of it is harmless, and how many columns it takes.

Names come from strangers. One may hold what moves the cursor, turns the direction of writing around, or
takes two columns or none, and what stands beside it shall keep its place all the same.
"""

from unicodedata import category, east_asian_width, normalize

_CUT = "…"
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
        shown.append(char if char.isprintable() and not varies and marks <= _MOST_MARKS else _escaped(char))
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


def _width(char: str) -> int:
    if _is_mark(char):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


def _is_mark(char: str) -> bool:
    return category(char) in ("Mn", "Me") or ord(char) in _JAMO


def _escaped(char: str) -> str:
    return ascii(char)[1:-1]
