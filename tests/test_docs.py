"""
What the documents say is so: their links lead somewhere, their commands and examples run, their tables
are those of the code.
"""

import ast
import dataclasses
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from proxy import config
from proxy.errors import Failure
from proxy.http.refusals import refusal
from proxy.socks5.codec import code_of
from tests.integration import peers
from tests.integration.programs import COMMAND, Program, clean_environment, run_proxy
from tests.wire import targets
from tests.wire.sockets import free_port

ROOT = Path(__file__).parent.parent
README, API, ARCHITECTURE = ROOT / "README.md", ROOT / "docs" / "api.md", ROOT / "ARCHITECTURE.md"
COMMAND_LINE, PROTOCOL = ROOT / "docs" / "command-line.md", ROOT / "docs" / "protocol.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TIMEOUT = 30  # seconds

PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def name_of(value: object) -> str | None:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


# -- reading Markdown


class Fence(NamedTuple):
    """A block of code."""

    language: str
    text: str


def fences(document: Path) -> list[Fence]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [Fence(*each) for each in found]


def prose(document: Path) -> str:
    return re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def code_spans(document: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(document))


def anchors(document: Path) -> set[str]:
    """Name the places of a document as they stand behind # in a link to it."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(document: Path, heading: str) -> dict[str, list[str]]:
    """Read the first table after a heading: the cells of each row by the first of them."""
    _, _, section = document.read_text("utf-8").partition(f"# {heading}\n")
    table = section[section.index("\n|") :].lstrip("\n").partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {first: rest for first, *rest in cells}


def commands(fence: Fence) -> list[str]:
    """Give the commands of a block, each on one line."""
    lines = fence.text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


# -- links, names and tables


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_document
def test_no_path_of_one_machine_is_named(document: Path) -> None:
    places = "|".join(map(re.escape, (str(ROOT), str(Path.home()), "/home", "/Users")))
    assert not re.search(rf"(?<![\w.-])(?:{places})/", document.read_text("utf-8"))


@each_document
def test_names_of_the_code_are_its_names(document: Path) -> None:
    for name in code_spans(document):
        if re.fullmatch(r"proxy(\.\w+)+", name) and name != "proxy.ini":
            assert pkgutil.resolve_name(name), name


def test_the_architecture_names_every_module() -> None:
    text = ARCHITECTURE.read_text("utf-8")
    modules = [path for path in (ROOT / "proxy").rglob("*.py") if path.name != "__init__.py"]
    assert [name_of(path) for path in modules if not re.search(rf"(?<!\w){path.name}", text)] == []


CONFIGS = [
    config.ClientConfig,
    config.UpstreamConfig,
    config.ServerConfig,
    config.RuleConfig,
    config.LimitConfig,
]


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_tables_of_settings_have_the_fields_in_order(kind: type) -> None:
    named = [name.strip("`") for name in rows(API, kind.__name__)]
    assert named == [field.name for field in dataclasses.fields(kind)]


STREAMS = ("1 stream", "4 streams", "16 streams")
PEERS = {
    "microsocks": "microsocks",
    "Dante": "dante",
    "v2ray tunnel": "v2ray",
    "the same over TLS": "v2ray-tls",
}


def measured(work: str, column: str) -> dict[str, float]:
    """Read a column of a table of the latest measurement, by contender; what is not a figure is left out."""
    text = (ROOT / "docs" / "performance-table.md").read_text("utf-8")
    head = next(
        line
        for line in text.partition(f"# {work}\n")[2].splitlines()
        if line.startswith("|") and "-" * 3 not in line
    )
    place = [cell.strip() for cell in head.strip("|").split("|")].index(column) - 1
    cells = {
        name.rstrip(" ~*"): rest[place]
        for name, rest in rows(ROOT / "docs" / "performance-table.md", work).items()
    }
    return {name: float(cell.rstrip("×")) for name, cell in cells.items() if re.match(r"\d", cell)}


@pytest.mark.parametrize("column", PEERS)
def test_the_readme_compares_by_the_latest_measurement(column: str) -> None:
    peer = PEERS[column]
    table = README.read_text("utf-8").partition("| memory before the first client")
    head = next(line for line in reversed(table[0].splitlines()) if column in line)
    place = [cell.strip() for cell in head.strip("|").split("|")].index(column)
    told = {
        cells[0].strip(): [float(figure) for figure in re.findall(r"[\d.]+", cells[place])]
        for cells in (
            line.strip("|").split("|") for line in "".join(table[1:]).partition("\n\n")[0].splitlines()
        )
    }
    rates = [1 / rate for rate in bulk("ours: rate", peer)]
    right = {
        "memory before the first client": [measured("Idle connections", "MiB before the first")[peer]],
        "memory per idle connection": [measured("Idle connections", "KiB each")[peer]],
        "bulk throughput": [min(rates), max(rates)],
        "CPU per short connection": [1 / measured("Short connections, 32 at a time", "ours: CPU")[peer]],
        "p99 delay of a small connection beside bulk": [
            1 / measured("Latency beside 4 downloads and 4 uploads", "ours: p99")[peer]
        ],
    }
    assert told.keys() == right.keys()
    for name, ratios in right.items():
        assert told[name] == pytest.approx(ratios, rel=0.05) or told[name] == [*map(round, ratios)], name


IN_SHORT = {
    "bulk throughput": ("Bulk", "ours: rate"),
    "CPU for bulk": ("Bulk", "ours: CPU"),
    "round trips on 64 connections: rate": ("64-byte round trips, 64 connections", "ours: rate"),
    "round trips on 1 connection: p50": ("64-byte round trips, 1 connection", "ours: p50"),
    "short connections: CPU": ("Short connections, 32 at a time", "ours: CPU"),
    "memory of an idle connection": ("Idle connections", "ours: memory"),
    "p99 of a small connection beside bulk": ("Latency beside 4 downloads and 4 uploads", "ours: p99"),
}


@pytest.mark.parametrize("name", IN_SHORT)
def test_the_page_about_performance_begins_with_the_latest_measurement(name: str) -> None:
    work, column = IN_SHORT[name]
    cells = rows(ROOT / "docs" / "performance.md", "In short")[name][1:]
    for peer, cell in zip(PEERS.values(), cells, strict=True):
        figures = bulk(column, peer) if work == "Bulk" else [measured(work, column)[peer]]
        told = [float(figure) for figure in re.findall(r"[\d.]+", cell)]
        right = {min(figures), max(figures)}
        assert told == pytest.approx(sorted(right), rel=0.05, abs=0.01), (peer, cell)


def bulk(column: str, peer: str) -> list[float]:
    """Give the figures of all bulk works of a contender."""
    works = (f"Bulk {way}, {count}" for way in ("download", "upload") for count in STREAMS)
    return [figures[peer] for work in works if peer in (figures := measured(work, column))]


def test_all_that_the_configuration_offers_to_programs_is_documented() -> None:
    text = API.read_text("utf-8")
    assert [name for name in config.__all__ if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.name)
def test_the_table_of_failures_is_that_of_the_wire(failure: Failure) -> None:
    reply, status, error = rows(PROTOCOL, "When a connection fails")[failure.value]
    if failure is not Failure.CREDENTIALS:
        assert int(reply, 16) == code_of(failure)
    if status:
        answer = refusal(failure)
        said = dict(answer.headers).get("Proxy-Status", "")
        assert (int(status), error) == (answer.status, said.partition("error=")[2].partition(";")[0])


# -- what the program says

SAYINGS = [
    (ROOT / "docs" / "operations.md", "What the log says"),
    (ROOT / "docs" / "troubleshooting.md", "`-mode client`"),
    (ROOT / "docs" / "troubleshooting.md", "What the log says"),
    (ROOT / "docs" / "troubleshooting.md", "The program does not start"),
]


@cache
def sayings() -> str:
    """Give all texts of the program, a line for each piece that stands between two of its values."""
    trees = (ast.parse(path.read_text("utf-8")) for path in (ROOT / "proxy").rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    scripts = [path.read_text("utf-8") for path in (ROOT / "scripts").iterdir() if path.is_file()]
    return "\n".join(
        re.sub(r"%[a-z]", "\n", text) for text in [*texts, *scripts, *map(os.strerror, range(1, 134))]
    )


@pytest.mark.parametrize(("document", "heading"), SAYINGS, ids=name_of)
def test_what_the_program_is_said_to_say_it_says(document: Path, heading: str) -> None:
    lines = [line for first in rows(document, heading) for line in re.findall(r"`([^`]+)`", first)]
    # What the program puts in stands in capitals or as three dots; the rest is its own words.
    between = r"\b[A-Z]+\b|…|: |:$|; |\[section\] key|\b\d{3}\b"
    pieces = [(line, piece.strip(" ;,()[]")) for line in lines for piece in re.split(between, line)]
    assert [each for each in pieces if len(each[1]) > 4 and each[1] not in sayings()] == []


# -- the command line


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))


def options_named(document: Path) -> Iterator[str]:
    lines = [line for fence in fences(document) for line in fence.text.replace("\\\n", " ").splitlines()]
    for line in [*lines, *code_spans(document)]:
        _, program, arguments = line.rpartition("proxy-server ")
        if program or (document == COMMAND_LINE and line.startswith("-")):
            yield from options(arguments.partition("'")[0])


@cache
def options_known() -> set[str]:
    return options(run_proxy("-h").stdout.decode())


@each_document
def test_options_that_are_named_exist(document: Path) -> None:
    assert set(options_named(document)) - options_known() == set()


def test_the_page_about_the_command_line_names_every_option() -> None:
    once = {option for option in options_known() if not option.startswith("--") and option != "-help"}
    assert once - set(options_named(COMMAND_LINE)) == set()


@pytest.mark.parametrize("name", ["on-a-router.md", "from-the-go-program.md"])
def test_a_configuration_that_a_document_shows_is_valid(name: str, tmp_path: Path) -> None:
    (text,) = [fence.text for fence in fences(ROOT / "docs" / name) if fence.language == "ini"]
    path = tmp_path / "proxy.ini"
    path.write_text(text)
    path.chmod(0o600)
    done = run_proxy("-c", str(path), "-check")
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, [b"ok"]), done.stderr


def test_what_was_the_go_programs_configuration_is_told_to_be_none(tmp_path: Path) -> None:
    (text,) = [f.text for f in fences(ROOT / "docs" / "from-the-go-program.md") if f.language == "json"]
    path = tmp_path / "server-config.json"
    path.write_text(text)
    done = run_proxy("-config", str(path), "-check")
    assert done.returncode == 2
    assert b"JSON" in done.stderr


def test_the_configuration_of_the_project_is_valid() -> None:
    path = ROOT / "conf" / "proxy.ini"
    if not path.exists():
        pytest.skip("there is no conf/proxy.ini yet")
    done = run_proxy("-c", str(path), "-check")
    assert (done.returncode, done.stderr) == (0, b"")


# -- programs


def examples() -> list[tuple[str, str]]:
    """Pair each program of the API document with what stands below it: what it prints."""
    blocks = fences(API)
    pairs = zip(blocks, [*blocks[1:], Fence("", "")], strict=True)
    return [
        (code.text, out.text) for code, out in pairs if code.language == "python" and out.language == "text"
    ]


def test_every_program_of_the_api_document_has_its_output() -> None:
    programs = [fence for fence in fences(API) if "import" in fence.text and fence.text.count("\n") > 4]
    assert len(programs) == len(examples()) > 0


@pytest.mark.parametrize("number", range(len(examples())))
def test_an_example_prints_what_stands_below_it(number: int, tmp_path: Path) -> None:
    code, output = examples()[number]
    done = run_python("-c", code, directory=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def run_python(*arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=clean_environment(directory),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def test_the_first_commands_of_the_readme_make_the_tunnel() -> None:
    with ExitStack() as stack:
        page = stack.enter_context(targets.Scripted(PAGE))
        web, socks = free_port(), free_port()
        names = {
            # No HTTP server stands in between here: test_peers has those.
            "wss://gateway.example.com/tunnel": f"ws://127.0.0.1:{web}/tunnel",
            "https://www.example.com/": f"http://localhost:{page.port}/",
            "127.0.0.1:8080": f"127.0.0.1:{web}",
            "127.0.0.1:1080": f"127.0.0.1:{socks}",
        }
        outside, home, curl = commands(next(fence for fence in fences(README) if fence.language == "sh"))
        stack.enter_context(started(outside, names)).wait_listening(web)
        stack.enter_context(started(home, names)).wait_listening(socks)
        program, *arguments = [names.get(word, word) for word in shlex.split(curl)]
        done = subprocess.run(
            [peers.find(program), "-sS", "-m", str(TIMEOUT), *arguments],
            env=clean_environment("/"),
            capture_output=True,
            timeout=TIMEOUT + 5,
        )
        assert (done.stdout, done.stderr) == (b"hello", b"")


def test_the_quick_start_uses_what_is_there_at_that_point() -> None:
    """CASES 359: in a clone, with nothing installed but what ``make run`` puts there."""
    _, _, rest = README.read_text("utf-8").partition("# Quick start\n")
    text = re.findall(r"^```sh\n(.*?)^```$", rest.partition("\n## ")[0], re.DOTALL | re.MULTILINE)
    lines = [part.strip() for fence in text for line in fence.splitlines() for part in line.split(" |")]
    programs = [line.split()[0] for line in lines if line]
    assert programs == ["make", "make", "curl", ".venv/bin/python", "printf", "scripts/proxy-server"]
    assert (ROOT / "scripts" / "proxy-server").exists()
    port = free_port()
    server = Program([*COMMAND, "-mode", "server", "-protocol", "websocket", "-addr", f"127.0.0.1:{port}"])
    with targets.Scripted(PAGE) as page, server:
        server.wait_listening(port)
        words = shlex.split(lines[-1])
        names = {"ws://127.0.0.1:8080/": f"ws://127.0.0.1:{port}/", "80": str(page.port)}
        names["www.example.com"] = "localhost"
        done = run_proxy(*(names.get(word, word) for word in words[1:]), stdin=b"GET / HTTP/1.0\r\n\r\n")
        assert (done.returncode, done.stdout) == (0, PAGE)


def started(command: str, names: dict[str, str]) -> Program:
    """Make the program that a command line of a document starts, with other names for its addresses."""
    words = [names.get(word, word) for word in shlex.split(command)]
    start = words.index("proxy-server")
    environment = dict(word.split("=", 1) for word in words[:start])
    return Program([*COMMAND, *words[start + 1 :]], environment=environment)


def test_the_websocket_client_among_the_examples_fetches_a_page(tmp_path: Path) -> None:
    port = free_port()
    server = Program([*COMMAND, "-mode", "server", "-protocol", "websocket", "-addr", f"127.0.0.1:{port}"])
    with targets.Scripted(PAGE) as page, server:
        server.wait_listening(port)
        example = str(ROOT / "docs" / "examples" / "websocket_client.py")
        door = f"ws://127.0.0.1:{port}/"
        done = run_python(example, door, "localhost", str(page.port), directory=tmp_path)
        assert (done.stdout.encode(), done.stderr) == (PAGE.replace(b"\r\n", b"\n"), "")
        done = run_python(example, door, "localhost", str(free_port()), directory=tmp_path)
        assert (done.returncode, done.stderr) == (1, "no connection: connection refused\n")


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_every_row_of_a_table_stands_under_its_head(page: Path) -> None:
    lines = page.read_text().splitlines()
    orphans = [
        number
        for number, (before, line, after) in enumerate(
            zip(["", *lines], lines, [*lines[1:], ""], strict=False), 1
        )
        if line.startswith("|") and not before.startswith("|") and not re.match(r"\| *:?--", after)
    ]
    assert not orphans
