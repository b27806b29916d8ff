"""
The Markdown of our documents, as blocks: no more of the language than they use.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile


@dataclass(frozen=True)
class Heading:
    """A heading; that of a document itself has level 1."""

    level: int
    text: str


@dataclass(frozen=True)
class Code:
    """A block of code."""

    language: str
    text: str


@dataclass(frozen=True)
class Item:
    """An item of a list, and what stands before it: a number, or a dash."""

    mark: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table: its head, and its rows."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, on one line."""

    text: str


Block = Heading | Code | Item | Table | Paragraph

_ITEM = re.compile(r"(-|\d+\.) +(.*)")


def blocks(text: str) -> Iterator[Block]:
    """Read a document."""
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        if not line:
            continue
        if line.startswith("```"):
            code = list(takewhile(lambda each: each != "```", lines))
            del lines[: len(code) + 1]
            yield Code(line[3:], "\n".join(code))
        elif line.startswith("#"):
            marks, _, title = line.partition(" ")
            yield Heading(len(marks), title)
        elif line.startswith("|"):
            table = [line, *takewhile(lambda each: each.startswith("|"), lines)]
            del lines[: len(table) - 1]
            head, _, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
            yield Table(head, rows)
        elif item := _ITEM.fullmatch(line):
            more = list(takewhile(lambda each: each.startswith("  "), lines))
            del lines[: len(more)]
            yield Item(item[1], " ".join([item[2], *map(str.strip, more)]))
        else:
            more = list(takewhile(lambda each: each and not _begins_a_block(each), lines))
            del lines[: len(more)]
            yield Paragraph(" ".join([line, *more]))


def _begins_a_block(line: str) -> bool:
    return line.startswith(("```", "#", "|")) or bool(_ITEM.fullmatch(line))


def section(text: str, title: str) -> Iterator[Block]:
    """Give what stands below a heading, up to the next one that is as high; raises ``KeyError``."""
    level = 0
    for block in blocks(text):
        if isinstance(block, Heading):
            if level and block.level <= level:
                return
            if block.text == title:
                level = block.level
                continue
        if level:
            yield block
    if not level:
        raise KeyError(title)
