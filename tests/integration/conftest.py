"""A failed test shows what the programs that it used have printed."""

from collections.abc import Generator

import pytest

from tests.integration.programs import Program

SHOWN = 3000  # characters of each program


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the live programs have printed to the report of a failed test."""
    report = yield
    if report.failed:
        for program in Program.running:
            report.sections.append((f"output of {program}", program.log[-SHOWN:]))
    return report
