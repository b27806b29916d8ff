"""
The two manual pages: the program's, and that of its configuration file.

What they say stands in the tables of the command line and in the documents. What is written here is only what
a manual page has and they have not.
"""

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from proxy import __version__, cli
from proxy.ctl import commands
from proxy.options import Option
from proxy.starter import STARTER
from scripts.manuals import roff
from scripts.manuals.markdown import Code, Item, Paragraph, Table, blocks, section

_ROOT = Path(__file__).parents[2]

_ENVIRONMENT = {
    "PROXY_PASSWORD": "The password of `-username`. On a command line, others could read it.",
    "PROXY_UPSTREAM_PASSWORD": "The same for `-upstream-username`.",
    "SSL_CERT_FILE": "The authorities to trust, a file, unless an option or a setting names another.",
    "http_proxy, https_proxy, all_proxy, no_proxy": (
        "With `-proxy env`, how `-mode client` reaches its proxy; otherwise they are ignored."
    ),
    "NO_COLOR": "If it is not empty, `ctl top` has no colours.",
    "COLUMNS": "The width of what `ctl top` prints if the output is not a terminal.",
    "NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS": "What systemd tells a server that it starts.",
}
_FILES = {
    "proxy.ini": "The configuration, see *proxy-server.ini*(5). It can be anywhere: `-c` names it.",
    ".proxy": (
        "The folder beside the configuration that has the control socket of `proxy-server ctl`, "
        "`control.sock`, and the versions to roll back to, `history`. The setting `state_dir` names "
        "another one."
    ),
}


def program_page() -> str:
    """Write proxy-server(1)."""
    readme, command_line = _read("README.md"), _read("docs/command-line.md")
    told = [block.text for block in section(command_line, "Command line") if isinstance(block, Item)]
    signals = _only(told, "SIGTERM and SIGINT stop")
    codes = _only(told, "Exit codes: ")
    about = [each for each in told if each not in (signals, codes)]
    return _page(
        "proxy-server",
        1,
        "TCP proxy that speaks SOCKS5, HTTP and WebSocket, in and out",
        roff.title("Synopsis"),
        *map(_usage, cli.USAGE.splitlines()),
        roff.title("Description"),
        *_what_it_is(readme),
        roff.title("Options"),
        *map(_option, cli.OPTIONS),
        *(roff.write([Item("-", each)]) for each in about),
        roff.title("Commands"),
        roff.paragraph("`proxy-server ctl` talks to a running server."),
        *map(_command, ctl_commands()),
        roff.paragraph("Its options:"),
        *map(_option, commands.OPTIONS),
        roff.paragraph(_only(_paragraphs("docs/operations.md", "Watching"), "`ctl` finds the server")),
        roff.title("Exit status"),
        *_exit_codes(codes),
        roff.title("Signals"),
        *_signals(signals),
        roff.title("Environment"),
        *_list(_ENVIRONMENT),
        roff.title("Files"),
        *_list(_FILES),
        roff.title("Examples"),
        *_examples(readme, command_line),
        _see_also("proxy-server.ini(5)", "curl(1)", "ssh(1)", "systemd.unit(5)"),
    )


def settings_page() -> str:
    """Write proxy-server.ini(5)."""
    return _page(
        "proxy-server.ini",
        5,
        "configuration file of proxy-server",
        roff.title("Description"),
        roff.write(blocks(_read("docs/configuration.md"))),
        roff.title("How rules work together"),
        roff.write(blocks(_read("docs/rules.md")), deeper=1),
        roff.title("Examples"),
        roff.paragraph("What `proxy-server -init` writes:"),
        roff.code(STARTER),
        _see_also("proxy-server(1)"),
    )


class Command(NamedTuple):
    """A command of ctl, as its help has it."""

    name: str
    arguments: str
    help: list[str]  # lines


def ctl_commands() -> list[Command]:
    """Read the help of ctl."""
    found: list[Command] = []
    for line in commands.USAGE.splitlines()[1:]:
        first, told = re.fullmatch(r"  (\S+(?: \S+)*)?  +(\S.*)", line).groups()  # type: ignore[union-attr]
        if first:
            name, _, arguments = first.partition(" ")
            found.append(Command(name, arguments, []))
        found[-1].help.append(told)
    return found


def _read(name: str) -> str:
    return (_ROOT / name).read_text(encoding="utf-8")


def _only(texts: Iterable[str], beginning: str) -> str:
    (found,) = [each for each in texts if each.startswith(beginning)]
    return found


def _paragraphs(document: str, title: str) -> list[str]:
    return [each.text for each in section(_read(document), title) if isinstance(each, Paragraph)]


def _page(name: str, number: int, what: str, *parts: str) -> str:
    """Put a page together; SOURCE_DATE_EPOCH makes it the same whenever it is made."""
    day = time.strftime("%Y-%m-%d", time.gmtime(float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    version = f"proxy-server {__version__}"
    head = [
        r".\" Made by `make manuals` of the project's documents and tables: a change belongs there.",
        f'.TH {roff.plain(name.upper())} {number} {day} "{roff.plain(version)}"',
        # A text full of names and numbers is neither hyphenated (each paragraph looks at HY) nor stretched.
        ".nr HY 0\n.ad l",
        roff.title("Name"),
        rf"{roff.plain(name)} \- {roff.plain(what)}",
    ]
    # A title begins a paragraph.
    return re.sub(r"^(\.S[HS] .*\n)\.PP\n", r"\1", "\n".join([*head, *parts, ""]), flags=re.MULTILINE)


def _usage(line: str) -> str:
    """Write a line of the usage; what is only said of it is left out."""
    _, program, rest = line.partition("proxy-server ")
    if not program:
        return ""
    words = re.sub(r"   .*", "", rest)
    words = re.sub(r"\[[^]]+\]", lambda group: group[0].replace(" ", roff.NO_BREAK), words)
    return f".SY {roff.plain(program.strip())}\n{_marked(words)}\n.YS"


def _marked(words: str) -> str:
    """Write a piece of a command line: what is typed as it is, and in capitals what is put in."""
    parts = re.split(r"([A-Z]{2,}|\b[NM]\b|[][|.\s]+)", words)
    return "".join(
        roff.italic(part)
        if part.isupper()
        else roff.plain(part)
        if re.match(r"[][|.\s]|$", part)
        else roff.bold(part)
        for part in parts
    )


def _what_it_is(readme: str) -> Iterable[str]:
    """Describe the program; the table of listeners and upstreams, whose rows mean nothing, by its columns."""
    for block in section(readme, "What it is"):
        if isinstance(block, Table):
            for name, *cells in zip(block.head, *block.rows, strict=True):
                yield roff.entry(roff.inline(name), roff.inline("; ".join(filter(None, cells))))
        else:
            yield roff.write([block])


def _option(option: Option) -> str:
    value = roff.italic(option.value)
    if option.default:
        value = f"[{value}]"
    names = ", ".join(roff.bold(f"-{name}") for name in option.names)
    choices = f" ({' or '.join(map(roff.bold, option.choices))})" if option.choices else ""
    return roff.entry(f"{names} {value}" if option.value else names, roff.plain(option.help) + choices)


def _command(command: Command) -> str:
    tag = roff.bold(command.name) + (f" {_marked(command.arguments)}" if command.arguments else "")
    first, *more = map(roff.plain, command.help)
    return "\n.br\n".join([roff.entry(tag, first), *map(roff.fill, more)])


def _exit_codes(text: str) -> Iterable[str]:
    codes, _, more = text.removeprefix("Exit codes: ").partition(". ")
    for each in re.split(r", (?=\d)", codes):
        number, _, meaning = each.partition(" ")
        yield roff.entry(roff.bold(number), roff.inline(meaning))
    yield roff.paragraph(more)


def _signals(text: str) -> Iterable[str]:
    for each in re.split(r"(?<=\.) (?=SIG)", text):
        names, meaning = re.fullmatch(r"(SIG\w+(?: and SIG\w+)*) (.*)", each).groups()  # type: ignore[union-attr]
        yield roff.entry(roff.bold(names), roff.inline(meaning))


def _list(entries: dict[str, str]) -> Iterable[str]:
    return (roff.entry(roff.bold(name), roff.inline(text)) for name, text in entries.items())


def _examples(readme: str, command_line: str) -> Iterable[str]:
    """Give the first commands of the README, each with its comment, and those for ssh."""
    first = next(block for block in blocks(readme) if isinstance(block, Code) and block.language == "sh")
    for each in first.text.split("\n\n"):
        comment, _, lines = each.partition("\n")
        told = comment.removeprefix("# ")
        yield roff.paragraph(f"{told[0].upper()}{told[1:]}:")
        yield roff.code(lines)
    yield roff.paragraph("A tunnel for ssh:")
    yield roff.write(block for block in section(command_line, "ssh"))


def _see_also(*names: str) -> str:
    pages = (re.fullmatch(r"(.+)\((\d)\)", name) for name in names)
    told = ",\n".join(f"{roff.bold(page[1])}({page[2]})" for page in pages if page)
    return f"{roff.title('See also')}\n{told}"
