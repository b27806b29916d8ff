"""The contracts in pyproject.toml hold, and ARCHITECTURE.md tells of the modules as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.api import read_configuration

ROOT = Path(__file__).parent.parent
PYPROJECT = str(ROOT / "pyproject.toml")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")


def test_the_import_contracts_hold() -> None:
    # A process of its own: it would silence the loggers of this one.
    code = (
        "from importlinter.cli import lint_imports; "
        f"raise SystemExit(lint_imports(config_filename={PYPROJECT!r}, no_cache=True, no_logo=True))"
    )
    lint = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_the_layers_name_every_module() -> None:
    assert modules() - layers() == set()


def modules() -> set[str]:
    """Name all modules that hold code; a package's own file holds a docstring only."""
    files = (path.relative_to(ROOT) for path in (ROOT / "proxy").rglob("*.py"))
    return {".".join(path.with_suffix("").parts) for path in files if path.name != "__init__.py"}


def layers() -> set[str]:
    """Name all modules that the contract of the layers knows."""
    contract = read_configuration(PYPROJECT)["contracts_options"][0]["layers"]
    return {module for layer in contract for module in re.findall(r"proxy[\w.]+", layer)}


def test_only_what_tells_a_time_of_day_reads_the_clock_that_can_be_set() -> None:
    """A box without a battery begins in 1970, and is set forward by decades while connections are open."""
    wall_clock = re.compile(r"\btime\.time\b|^from time import (?:.*, )?time\b|\bdatetime\b", re.MULTILINE)
    files = (path for path in (ROOT / "proxy").rglob("*.py") if wall_clock.search(path.read_text("utf-8")))
    assert {str(path.relative_to(ROOT / "proxy")) for path in files} == {
        "accesslog.py",
        "control/status.py",  # when it was started
        "ctl/show.py",  # certificates
        "keeping/history.py",
        "keeping/inifile.py",
        "selfcheck.py",  # certificates
        "session.py",  # refusals
    }


def stops() -> list[tuple[str, int]]:
    """Give the files of the tour for newcomers, with the lines that it says they have."""
    rows = re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", ARCHITECTURE, re.MULTILINE)
    return [(path, int(lines)) for path, lines in rows]


def test_the_tour_for_newcomers_is_as_long_as_it_says() -> None:
    real = {path: (ROOT / "proxy" / path).read_text("utf-8").count("\n") for path, _ in stops()}
    assert real == {path: pytest.approx(lines, rel=0.15) for path, lines in stops()}
    (told,) = re.findall(r"about ([\d,]+) lines", ARCHITECTURE)
    assert sum(real.values()) == pytest.approx(int(told.replace(",", "")), rel=0.1)


def layers_drawn() -> dict[str, int]:
    """Number the layers in which the list of all modules has them, from the top."""
    listed = ARCHITECTURE.partition("## Every module\n")[2].partition("\n## ")[0]
    found = dict[str, int]()
    for number, layer in enumerate(re.split(r"^\*\*", listed, flags=re.MULTILINE)[1:]):
        for folder, names, what in re.findall(r"^\| (?:`(\w+/)`|(.+?)) \| (.+) \|$", layer, re.MULTILINE):
            for name in re.findall(r"`([\w/]+\.py)`", what if folder else names):
                path = name if folder in name else folder + name
                assert path not in found, path
                found[path] = number
    return found


def test_imports_go_down_the_layers_that_are_drawn() -> None:
    drawn = layers_drawn()
    assert {module.removeprefix("proxy.").replace(".", "/") + ".py" for module in modules()} == drawn.keys()
    up = set()
    for path, number in drawn.items():
        text = (ROOT / "proxy" / path).read_text("utf-8")
        for name in re.findall(r"^\s*(?:from|import) proxy\.([\w.]+)", text, re.MULTILINE):
            target = name.replace(".", "/") + ".py"
            if drawn.get(target, number) < number:
                up.add((path, target))
    assert up == {("control/admin.py", "ctl/ask.py"), ("control/api.py", "ctl/ask.py")}
