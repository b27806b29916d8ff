"""
What a terminal sends and is sent: the bytes of its keys, and those of a picture.
"""

import re

from proxy.ctl.cells import width
from proxy.top.tables import Line

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"  # the other screen, no cursor, no wrapping
LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"

_COLOURS = {
    "strong": "1",
    "faint": "2",
    "bad": "31;1",
    "good": "32",
    "other": "36",
    "head": "1",
    "mark": "1;4;36",
    "turned": "7",
    "cursor": "7",
}
_NO_COLOURS = _COLOURS | {"bad": "1", "good": "0", "other": "0", "mark": "1;4"}

_KEYS = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "pageup",
    "\x1b[6~": "pagedown",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1bOH": "home",
    "\x1bOF": "end",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x1b": "escape",
}
_KEY = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)
_PART = re.compile(r"\x1b(\[[0-?]*[ -/]*|O)?")


def parse_keys(text: str) -> tuple[list[str], str]:
    """Read what keys a terminal has sent, and what may be the beginning of one more."""
    found, at = [], 0
    while at < len(text) and not _PART.fullmatch(text, at):
        match = _KEY.match(text, at)
        assert match
        at = match.end()
        key = _KEYS.get(match[0], match[0])
        if key in _KEYS.values() or key.isprintable():
            found.append(key)
    return found, text[at:]


def encode(lines: list[Line], *, colours: bool, encoding: str) -> bytes:
    """Write a picture over the one before."""
    looks = _COLOURS if colours else _NO_COLOURS
    rows = [
        "".join(f"\x1b[{looks[look]}m{text}\x1b[0m" if look else text for text, look in line)
        for line in lines
    ]
    # What was there is erased before a line: after one that fills it that would take its last character.
    text = "\x1b[H" + "\r\n".join(f"\x1b[K{row}" for row in rows)
    return text.encode() if encoding == "utf-8" else as_ascii(text).encode()


def as_ascii(text: str) -> str:
    """Put question marks, as many as it takes columns, where a text has other characters."""
    return text if text.isascii() else "".join(c if c.isascii() else "?" * width(c) for c in text)
