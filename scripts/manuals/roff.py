"""
The source of a manual page, made of Markdown: the macros of man(7), which groff and mandoc both read.
"""

import re
from collections.abc import Iterable, Sequence

from scripts.manuals.markdown import Block, Code, Heading, Item, Paragraph, Table

_WIDTH = 78  # of a line of the source

NO_BREAK = "\u00a0"

# What roff, or a man that prints UTF-8, would make another character of.
_SPECIAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", NO_BREAK: r"\~"}
IN_PAGES = ("README.md", "command-line.md", "configuration.md", "rules.md")
_MARKUP = re.compile(
    r"(`+)(?P<code>.+?)\1|\*\*(?P<bold>.+?)\*\*|(?<![\w*])\*(?P<italic>[^\s*][^*]*)\*|\[(?P<link>[^\]]+)\]\((?P<to>[^)]+)\)"
)


def plain(text: str) -> str:
    """Write a text as it is, in the font that is in use."""
    return "".join(_SPECIAL.get(each, each if each.isascii() else f"\\[u{ord(each):04X}]") for each in text)


def bold(text: str) -> str:
    """Write what is typed as it stands."""
    return rf"\fB{plain(text)}\fR"


def italic(text: str) -> str:
    """Write what something else is typed for, or what is to be stressed."""
    return rf"\fI{plain(text)}\fR"


def inline(text: str) -> str:
    """Write a text with the markup of Markdown in it; of a link, its words."""
    written, end = [], 0
    for found in _MARKUP.finditer(text):
        written.append(plain(text[end : found.start()]))
        end = found.end()
        if found["link"]:
            written.append(inline(found["link"]) + _document(found["to"]))
        elif found["italic"]:
            written.append(italic(found["italic"]))
        elif found["code"]:
            # Blanks at the ends are meant where somebody wrote them.
            written.append(bold(re.sub(r"^ | $", NO_BREAK, found["code"])))
        else:
            # In bold text there may be code, which is bold too.
            written.append(bold(found["bold"].replace("`", "")))
    return "".join([*written, plain(text[end:])])


def _document(link: str) -> str:
    """Name the document to which a link leads, if it is in no manual page."""
    name = link.partition("#")[0].rpartition("/")[2]
    return f" ({italic(name)})" if name.endswith(".md") and name not in IN_PAGES else ""


def fill(text: str) -> str:
    """Break the lines of a text that was written already; none begins like a request."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= _WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(guarded(line) for line in lines)


def guarded(line: str) -> str:
    """Let a line be text, whatever it begins with."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


def paragraph(text: str) -> str:
    """Write a paragraph of Markdown."""
    return f".PP\n{fill(inline(text))}"


def entry(tag: str, text: str) -> str:
    """Write an entry of a list, whose tag and text are written already."""
    return f".TP\n{guarded(tag)}\n{fill(text)}"


def code(text: str) -> str:
    """Write a block of code."""
    lines = "\n".join(guarded(plain(line)) for line in text.splitlines())
    return f".PP\n.RS 4\n.EX\n{lines}\n.EE\n.RE"


def title(text: str, level: int = 2) -> str:
    """Write the title of a section, at level 2, or of a part of one."""
    # A section's is in capitals, unless it is the name of something.
    return (
        f'.SH "{plain(text if text.startswith("[") else text.upper())}"'
        if level == 2
        else f'.SS "{inline(text)}"'
    )


def write(found: Iterable[Block], deeper: int = 0) -> str:
    """Write blocks of Markdown, their headings so many levels deeper; a table of contents is left out."""
    return "\n".join(_block(block, deeper) for block in found if not _is_for_screens(block))


def _is_for_screens(block: Block) -> bool:
    is_title = isinstance(block, Heading) and block.level == 1
    return is_title or (isinstance(block, Item) and re.match(r"\[.+?\]\(#", block.text) is not None)


def _block(block: Block, deeper: int) -> str:
    if isinstance(block, Heading):
        return title(block.text, block.level + deeper)
    if isinstance(block, Code):
        return code(block.text)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Item):
        mark = r"\(bu" if block.mark == "-" else block.mark
        return f'.IP "{mark}" 4\n{fill(inline(block.text))}'
    assert isinstance(block, Paragraph)
    return paragraph(block.text)


SETTINGS = ["setting", "kind", "default", "meaning"]


def _table(table: Table) -> str:
    """Write a table as a list, which a narrow terminal has room for."""
    make = _setting if table.head == SETTINGS else _row
    return "\n".join(make(table.head, row) for row in table.rows)


def _setting(head: Sequence[str], row: Sequence[str]) -> str:
    names, kind, default, meaning = row
    told = default if default.startswith("must") else f"default: {default}"
    return f"{entry(inline(names), f'{inline(kind)} ({inline(told)})')}\n.br\n{fill(inline(meaning))}"


def _row(head: Sequence[str], row: Sequence[str]) -> str:
    (_, *titles), (first, *cells) = head, row
    several = len(cells) > 1
    told = [f"{name}: {cell}" if several and name else cell for name, cell in zip(titles, cells, strict=True)]
    return entry(inline(first), inline("; ".join(each for each in told if each)))
