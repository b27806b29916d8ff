"""
Lines and table columns of the picture: what fits, and what is dropped first.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from proxy.ctl.cells import cut, harmless, pad, width


class Span(NamedTuple):
    """A part of a line, and how it looks: plain, strong, faint, bad, or turned (light and dark)."""

    text: str
    look: str = ""


Line = list[Span]


class Column(NamedTuple):
    """A column of a table: what stands above it, and how wide it may be."""

    head: str
    least: int  # columns of the terminal
    most: int
    rank: int  # those of the highest go first where there is no room
    right: bool = False


class Row(NamedTuple):
    """The texts of a row, and how it looks."""

    cells: Sequence[str]
    look: str = ""


def table(
    columns: Sequence[Column], rows: Sequence[Row], most: int, marked: Collection[str] = ()
) -> list[Line]:
    """
    Align columns, in at most so many of the terminal.

    ``marked`` are the heads of those by which the rows are sorted. Such a table keeps its widths, whatever
    comes and goes in it.
    """
    texts = [[harmless(cell) for cell in row.cells] for row in rows]
    widths = [
        each.most if marked else min(each.most, max([width(line[at]) for line in texts] + [len(each.head)]))
        for at, each in enumerate(columns)
    ]
    widths = _squeezed(columns, widths, most - 1)
    heads = [Span(" ", "head")]
    for each, size in zip(columns, widths, strict=True):
        if size:
            gap = Span("  ", "head") if len(heads) > 1 else Span("", "head")
            head = pad(each.head, size, right=each.right)
            heads += [gap, Span(head, "mark" if each.head in marked else "head")]
    lines = [heads]
    for row, line in zip(rows, texts, strict=True):
        cells = [
            pad(text, size, right=each.right)
            for each, text, size in zip(columns, line, widths, strict=True)
            if size
        ]
        lines.append([Span(" " + "  ".join(cells), row.look)])
    return lines


def _squeezed(columns: Sequence[Column], wanted: Sequence[int], most: int) -> list[int]:
    """Choose widths that have room together, 0 for a column that has none."""
    least = [min(each.least, size) for each, size in zip(columns, wanted, strict=True)]
    widths, left = [0] * len(columns), most + 2
    for at in sorted(range(len(columns)), key=lambda at: columns[at].rank):
        if left < least[at] + 2:
            break
        widths[at] = least[at]
        left -= least[at] + 2
    growing = [at for at, size in enumerate(widths) if 0 < size < wanted[at]]
    while left > 0 and growing:
        for at in growing[:left]:
            widths[at] += 1
        left -= len(growing[:left])
        growing = [at for at in growing if widths[at] < wanted[at]]
    return widths


def fit(line: Line, columns: int) -> Line:
    """Cut a line where the terminal ends; one that is turned goes on until there."""
    fitted = []
    for span in line:
        text = cut(span.text, columns)
        fitted.append(Span(text, span.look))
        columns -= width(text)
    if line and line[-1].look == "turned":
        fitted.append(Span(" " * columns, "turned"))
    return [span for span in fitted if span.text]
