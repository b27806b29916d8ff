"""The house stands as drawn: the contracts in pyproject.toml hold, and every module has its floor."""

import re
import subprocess
import sys
from pathlib import Path

from importlinter.api import read_configuration

ROOT = Path(__file__).parent.parent
PYPROJECT = str(ROOT / "pyproject.toml")


def test_the_import_contracts_hold() -> None:
    # A process of its own: it would silence the loggers of this one.
    code = (
        "from importlinter.cli import lint_imports; "
        f"raise SystemExit(lint_imports(config_filename={PYPROJECT!r}, no_cache=True, no_logo=True))"
    )
    lint = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_every_module_has_its_floor() -> None:
    assert modules() - floors() == set()


def modules() -> set[str]:
    """Name all modules that hold code; a package's own file holds a docstring only."""
    files = (path.relative_to(ROOT) for path in (ROOT / "proxy").rglob("*.py"))
    return {".".join(path.with_suffix("").parts) for path in files if path.name != "__init__.py"}


def floors() -> set[str]:
    """Name all modules that the contract of the layers knows."""
    layers = read_configuration(PYPROJECT)["contracts_options"][0]["layers"]
    return {module for layer in layers for module in re.findall(r"proxy[\w.]+", layer)}
