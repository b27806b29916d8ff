"""
Draw what a terminal shows as SVG.

Each piece of text is put at its column and brought to the width that it has in the terminal, so that the
columns stay columns in whatever font the reader has.
"""

import re
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape

from proxy.ctl.cells import width

_ACROSS, _DOWN, _SIZE = 8.4, 18.0, 14.0  # of a character's place, and its height: pixels
_EDGE = 14.0
_BACK, _FRONT = "#14171c", "#d7dde6"
_COLOURS = {"31": "#ff8f86", "32": "#8ecb73", "36": "#56c4dd", "39": _FRONT}


@dataclass(frozen=True)
class _Look:
    colour: str = _FRONT
    bold: bool = False
    faint: bool = False
    line: bool = False
    turned: bool = False

    def after(self, code: str) -> "_Look":
        """Tell how text looks after a code of SGR (ECMA-48, section 8.3.117)."""
        if code in ("", "0"):
            return _Look()
        if code in _COLOURS:
            return replace(self, colour=_COLOURS[code])
        return replace(
            self,
            bold=self.bold or code == "1",
            faint=self.faint or code == "2",
            line=self.line or code == "4",
            turned=self.turned or code == "7",
        )


def draw(screen: str, columns: int) -> str:
    """Draw the lines of ``tmux capture-pane -e``."""
    lines = screen.rstrip("\n").split("\n")
    across, down = columns * _ACROSS + 2 * _EDGE, len(lines) * _DOWN + 2 * _EDGE
    look, parts = _Look(), []
    for row, line in enumerate(lines):
        column = 0
        for text, codes in re.findall(r"([^\x1b]+)|\x1b\[([0-9;]*)m", line):
            if not text:
                for code in codes.split(";"):
                    look = look.after(code)
                continue
            parts += _piece(text, column, row, look)
            column += width(text)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across:.0f} {down:.0f}" '
        f'width="{across:.0f}" height="{down:.0f}" font-size="{_SIZE:.0f}" xml:space="preserve" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace">\n'
        f'<rect width="100%" height="100%" rx="8" fill="{_BACK}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _piece(text: str, column: int, row: int, look: _Look) -> list[str]:
    left, top = _EDGE + column * _ACROSS, _EDGE + row * _DOWN
    front, back = (_BACK, look.colour) if look.turned else (look.colour, "")
    parts = []
    if back:
        size = f'width="{width(text) * _ACROSS:.1f}" height="{_DOWN}"'
        parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{back}"/>')
    # Blanks move what follows, and need no drawing.
    for word in re.finditer(r"\S+(?: \S+)*", text):
        before = width(text[: word.start()])
        more = ' font-weight="bold"' * look.bold + ' opacity="0.6"' * look.faint
        more += ' text-decoration="underline"' * look.line
        parts.append(
            f'<text x="{left + before * _ACROSS:.1f}" y="{top + _SIZE - 1:.1f}" fill="{front}"{more} '
            f'textLength="{width(word[0]) * _ACROSS:.1f}" lengthAdjust="spacingAndGlyphs">'
            f"{escape(word[0])}</text>"
        )
    return parts
