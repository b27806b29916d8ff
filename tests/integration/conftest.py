"""What several tests of programs use; and a failed one shows what its programs have printed."""

from collections.abc import Generator, Iterator
from contextlib import ExitStack

import pytest

from tests.integration.programs import Program
from tests.wire import targets
from tests.wire.targets import Target

SHOWN = 3000  # characters of each program


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the live programs have printed to the report of a failed test."""
    report = yield
    if report.failed:
        for program in Program.running:
            report.sections.append((f"output of {program}", program.log[-SHOWN:]))
    return report


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Leave at the end what a test has entered."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def echo() -> Iterator[Target]:
    """Run a target that sends back what it gets."""
    with Target(targets.echo) as target:
        yield target
