"""The house stands as drawn: the contracts in pyproject.toml hold, and every module has its floor."""

import re
from pathlib import Path

import pytest
from importlinter.api import read_configuration
from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent
PYPROJECT = str(ROOT / "pyproject.toml")


def test_the_import_contracts_hold(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=PYPROJECT, no_cache=True, no_logo=True)
    assert status == 0, capsys.readouterr().out


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
