"""
The manual pages, the completion, the help, the documents and the program say the same of options, settings
and commands; and both are what man and real shells can use.
"""

import os
import pty
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import suppress
from pathlib import Path

import pytest

from proxy import cli
from proxy.configfile.dump import dump
from proxy.configfile.load import load
from proxy.configtext.sections import NAMED, SETTINGS
from proxy.ctl import commands
from proxy.options import Option, describe
from scripts.manuals import markdown, roff
from scripts.manuals.__main__ import FILES
from scripts.manuals.completion import options_of
from scripts.manuals.markdown import Code, Heading, Item, Paragraph, Table
from scripts.manuals.pages import ctl_commands
from tests.integration import peers
from tests.integration.programs import clean_environment
from tests.wire.sockets import is_silent

ROOT = Path(__file__).parent.parent
TIMEOUT = 60  # seconds: of a shell on a busy machine
PAGES = [name for name in FILES if name.startswith("man/")]
SHELLS = ["bash", "zsh", "fish"]

# All settings have a section here, so that the dump shows their defaults.
EVERY_SECTION = """
[listeners]
[[one]]
protocol = socks5
listen_addr = 127.0.0.1:0
[upstreams]
[[one]]
type = direct
[rules]
[[one]]
[limits]
[[one]]
per = all
connections = 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make them as ``make manuals`` does."""
    folder = tmp_path_factory.mktemp("manuals")
    make(folder)
    return folder


def make(folder: Path) -> None:
    command = [sys.executable, "-m", "scripts.manuals", str(folder)]
    environment = clean_environment(folder, SOURCE_DATE_EPOCH="1769860800")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def tags(page: Path) -> list[str]:
    """List the entries of the lists of a page, as plain text."""
    found = re.findall(r"^\.TP\n(.*)", page.read_text("utf-8"), re.MULTILINE)
    return [re.sub(r"\\f.", "", tag).replace(r"\-", "-").replace(r"\(aq", "'") for tag in found]


def words(option: Option) -> str:
    """Give an option as a page has it."""
    value = f" [{option.value}]" if option.default else f" {option.value}" if option.value else ""
    return ", ".join(f"-{name}" for name in option.names) + value


# -- they agree


def test_the_page_of_the_program_has_all_options_and_commands_in_the_order_of_the_help(made: Path) -> None:
    found = tags(made / "man/man1/proxy-server.1")
    told = [
        *map(words, cli.OPTIONS),
        *(f"{each.name} {each.arguments}".strip() for each in ctl_commands()),
        *map(words, commands.OPTIONS),
    ]
    start = found.index(words(cli.OPTIONS[0]))
    assert found[start : start + len(told)] == told


@pytest.mark.parametrize("options", [cli.OPTIONS, commands.OPTIONS], ids=["proxy-server", "ctl"])
def test_the_help_explains_each_option_on_a_line_of_its_own(options: tuple[Option, ...]) -> None:
    lines = describe(options).splitlines()
    for option, line in zip(options, lines, strict=True):
        assert re.fullmatch(rf"  {re.escape(words(option))} +{re.escape(option.help)}( \(.*\))?", line)


def test_every_command_is_in_the_help_the_completion_and_the_documents(made: Path) -> None:
    assert [each.name for each in ctl_commands()] == list(commands.COMMANDS)
    operations = (ROOT / "docs" / "operations.md").read_text("utf-8")
    for name, command in commands.COMMANDS.items():
        assert f"proxy-server ctl -c proxy.ini {name}" in operations
        assert all(option in commands.OF_COMMANDS for option in command.options)
        for file in FILES:
            assert file in PAGES or re.search(rf"\b{name}\b", (made / file).read_text("utf-8"))


@pytest.mark.parametrize("shell", [name for name in FILES if name.startswith("completions/")])
def test_every_option_is_in_the_completion(made: Path, shell: str) -> None:
    text = (made / shell).read_text("utf-8")
    for option in [*cli.OPTIONS, *commands.OPTIONS]:
        assert re.search(rf"(?<![\w-])-?-?{option.name}(?![\w-])", text), option.name
        assert all(choice in text for choice in option.choices)


def settings_of_the_document() -> dict[str, dict[str, str]]:
    """Read the tables of settings: their defaults, by section."""
    found: dict[str, dict[str, str]] = {}
    section = ""
    for block in markdown.blocks((ROOT / "docs" / "configuration.md").read_text("utf-8")):
        if isinstance(block, Heading) and block.level == 2:
            section = block.text.strip("[]")
        if isinstance(block, Table) and block.head == roff.SETTINGS:
            table = found.setdefault(section, {})
            for names, _, default, _ in block.rows:
                table.update(dict.fromkeys(re.findall(r"`(\w+)`", names), default))
    return found


def test_the_document_has_all_settings_in_their_sections() -> None:
    known = {section: set(keys) for section, keys in SETTINGS.items() if section != "auth_users"}
    assert {section: set(table) for section, table in settings_of_the_document().items()} == known


def test_the_page_of_the_file_has_all_settings(made: Path) -> None:
    text = (made / "man/man5/proxy-server.ini.5").read_text("utf-8")
    found = {name for tag in tags(made / "man/man5/proxy-server.ini.5") for name in tag.split(", ")}
    for section, keys in SETTINGS.items():
        assert f'.SH "[{section}]"' in text
        assert section == "auth_users" or set(keys) - found == set()


def test_the_commented_configuration_has_all_settings() -> None:
    """Commented out or not, each in its section."""
    text = (ROOT / "conf" / "proxy.ini").read_text("utf-8")
    parts = re.split(r"^\[(\w+)\]$", text, flags=re.MULTILINE)
    for section, part in zip(parts[1::2], parts[2::2], strict=True):
        found = set(re.findall(r"^(?:# )?(\w+) *=", part, re.MULTILINE))
        assert section == "auth_users" or set(SETTINGS[section]) - found == set()


def test_the_defaults_of_the_document_are_those_of_the_program(tmp_path: Path) -> None:
    path = tmp_path / "proxy.ini"
    path.write_text(EVERY_SECTION)
    parser = ConfigParser(interpolation=None, strict=False, allow_no_value=True)
    # [[one]] of a section stands for the section.
    parser.read_string(
        re.sub(r"^\[(\w+)\]\n+\[\[one\]\]$", r"[\1]", dump(load(str(path)).config), flags=re.M)
    )
    given = {"protocol", "listen_addr", "type", "per", "connections"}
    # A listener's own is that of [proxy] where there is none, and that of its Unix socket where it has one.
    elsewhere = {("listeners", "max_connections"), ("listeners", "mode")}
    for section, table in settings_of_the_document().items():
        for name, default in table.items():
            if (section in NAMED and name in given) or (section, name) in elsewhere:
                continue
            told = "" if default == "empty" or default.startswith("must") else default.strip("`")
            assert parser[section][name] == ("0" if told == "0s" else told), (section, name)


def test_the_environment_that_is_looked_at_is_in_the_page(made: Path) -> None:
    page = (made / "man/man1/proxy-server.1").read_text("utf-8")
    sources = [path.read_text("utf-8") for path in (ROOT / "proxy").rglob("*.py")]
    names = {name for text in sources for name in re.findall(r'environ\.(?:get|pop)\("(\w+)"', text)}
    # What belongs to one that is there, and stands in systemd's manual pages.
    assert {name for name in names if name not in page} == {"WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDNAMES"}


# -- the pages


def test_what_is_made_is_made_again_byte_by_byte(made: Path, tmp_path: Path) -> None:
    make(tmp_path)
    assert all((tmp_path / name).read_bytes() == (made / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("page", PAGES)
def test_man_and_mandoc_have_nothing_to_say_of_a_page(made: Path, page: str) -> None:
    environment = clean_environment(made, LC_ALL="C.UTF-8", MANWIDTH="80")
    for command in (
        [peers.find("man", "man-db"), "--warnings", "-E", "UTF-8", "-l", page],
        [peers.find("mandoc"), "-T", "lint", "-W", "warning", page],
    ):
        done = subprocess.run(
            command, cwd=made, env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_the_database_of_manual_pages_can_be_told_what_a_page_is(made: Path, page: str) -> None:
    command = [peers.find("lexgrog", "man-db"), page]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=TIMEOUT)
    assert re.fullmatch(rf'{page}: "{Path(page).stem} - \w.*"\n', done.stdout)


def test_what_roff_would_take_for_its_own_is_text() -> None:
    written = roff.inline("`.so x` says 'a' \\n ~^ é")
    assert written == r"\fB.so x\fR says \(aqa\(aq \en \(ti\(ha \[u00E9]"
    assert roff.paragraph(".so is no request") == ".PP\n\\&.so is no request"
    assert (
        roff.code("'quoted'\n.dotted\na-b")
        == ".PP\n.RS 4\n.EX\n\\(aqquoted\\(aq\n\\&.dotted\na\\-b\n.EE\n.RE"
    )


def test_markdown_is_read_as_blocks() -> None:
    text = "# A\none\ntwo\n- three\n  four\n1. five\n\n| a | b |\n|---|---|\n| c | d |\n"
    text += "```sh\n# six\n```\n## B\n"
    assert list(markdown.blocks(text)) == [
        Heading(1, "A"),
        Paragraph("one two"),
        Item("-", "three four"),
        Item("1.", "five"),
        Table(["a", "b"], [["c", "d"]]),
        Code("sh", "# six"),
        Heading(2, "B"),
    ]


# -- the completion, in real shells

MAIN = {f"-{option.name}" for option in cli.OPTIONS}
GENERAL = {"-config", "-json", "-help"}
COMMANDS = set(commands.COMMANDS)
LINES = {
    "": MAIN | {"ctl"},
    "-": MAIN,
    "-c proxy.ini -": MAIN,
    "--upstream-t": {"--upstream-type", "--upstream-tls-ca"},
    "-mode ": {"server", "client"},
    "--protocol m": {"mixed"},
    "-upstream-type ": {"direct", "socks5", "http", "websocket"},
    "-username ": set(),
    "-check ct": set(),
    "-c ": {"proxy.ini", "two words.ini"},
    "-tls-ca p": {"proxy.ini"},
    "-init two": {"two words.ini"},
    "ctl ": COMMANDS,
    "ctl --config proxy.ini re": {"reload", "refusals"},
    "ctl -c ": {"proxy.ini", "two words.ini"},
    "ctl -": GENERAL,
    "ctl kill ": set(),
    "ctl -c status -": GENERAL,
    "ctl set --pl": {"--plain"},
    "ctl unset -": GENERAL | {"-volatile"},
    "ctl explain -listener ": set(),
    **{
        f"ctl {name} -": {f"-{each.name}" for each in options_of(name)} for name in ("explain", "set", "show")
    },
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_completes(shell: str, line: str, made: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("proxy.ini", "two words.ini"):
        (here / name).touch()
    ask = ask_fish if shell == "fish" else ask_at_a_terminal
    found = ask(shell, made / "completions" / shell, line, here)
    wanted = LINES[line]
    if shell != "bash" and not line:
        wanted = {"ctl"}  # they offer options where one has begun
    if shell == "zsh" and "-c " in line:
        wanted = wanted - {"-config"}  # and it none again
    # The other names of an option may be offered too: one letter, or two dashes.
    short = {"-c", "-h"} if line.endswith("-") else set()
    double = {f"-{each}" for each in wanted if each.startswith("-") and not each.startswith("--")}
    assert wanted <= set(found) <= wanted | short | double
    assert len(found) == len(set(found))


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_value_can_be_completed_behind_an_equals_sign(shell: str, made: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    ask = ask_fish if shell == "fish" else ask_at_a_terminal
    assert ask(shell, made / "completions" / shell, "-mode=s", here) == ["-mode=server"]


def ask_fish(shell: str, folder: Path, line: str, directory: Path) -> list[str]:
    """Ask fish, which can say what it would offer."""
    command = [
        peers.find(shell),
        "--no-config",
        "-c",
        f"source {folder}/proxy-server.fish; complete -C {shlex.quote('proxy-server ' + line)}",
    ]
    done = subprocess.run(
        command,
        cwd=directory,
        env=clean_environment(directory.parent),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [offer.partition("\t")[0] for offer in done.stdout.splitlines()]


# A key puts all that is offered into the line, and proxy-server is a function that tells its words.
BASH = """
. {folder}/proxy-server
bind 'set bell-style none'
bind 'set enable-bracketed-paste off'
bind '"\\C-xa": insert-completions'
"""
ZSH = """
unset zle_bracketed_paste
fpath=({folder} $fpath)
autoload -Uz compinit
compinit -u -D
everything() {{ _main_complete; compstate[insert]=all }}
zle -C everything complete-word everything
bindkey '^Xa' everything
"""
PROMPT = "what now?"
BOTH = """
proxy-server() {{ printf '%s\\n' "$@" >{told}; exit; }}
PS1='{prompt}'
"""


def ask_at_a_terminal(shell: str, folder: Path, line: str, directory: Path) -> list[str]:
    """Type a line, and the key for all that is offered, and give what is there then."""
    program = peers.find(shell)
    home = directory.parent
    setup = (BASH if shell == "bash" else ZSH) + BOTH
    (home / ".zshrc").write_text(setup.format(folder=folder, told=home / "told", prompt=PROMPT))
    start = {
        "bash": [program, "--noprofile", "--rcfile", str(home / ".zshrc"), "-i"],
        "zsh": [program, "-d", "-i"],
    }
    environment = clean_environment(home, ZDOTDIR=str(home), INPUTRC="/dev/null", TERM="dumb")
    keys = f"proxy-server {line}\x18a\r".encode()
    seen = at_a_terminal(start[shell], keys, directory, environment)
    assert (home / "told").exists(), seen
    told = (home / "told").read_text("utf-8").splitlines()
    before = shlex.split(line if line.endswith(" ") else line.rpartition(" ")[0])
    assert told[: len(before)] == before
    # What was begun stays as it is where nothing is offered.
    return [each for each in told[len(before) :] if each and each != line.rpartition(" ")[2]]


def at_a_terminal(command: list[str], keys: bytes, directory: Path, environment: dict[str, str]) -> bytes:
    """Run a program at a terminal of its own until it ends, and type something once it asks."""
    ours, its = pty.openpty()
    with subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, cwd=directory, env=environment, start_new_session=True
    ) as process:
        os.close(its)
        try:
            seen, typed = b"", False
            for data in output_of(ours, time.monotonic() + TIMEOUT):
                seen += data
                if not typed and PROMPT.encode() in seen:
                    os.write(ours, keys)
                    typed = True
            return seen
        finally:
            process.kill()
            os.close(ours)


def output_of(terminal: int, deadline: float) -> Iterator[bytes]:
    with suppress(OSError):  # which is how a terminal says that nobody has it any more
        while not is_silent(terminal, max(0, deadline - time.monotonic())):
            if not (data := os.read(terminal, 4096)):
                return
            yield data
