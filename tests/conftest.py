"""What every test can rely on."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    """Leave the package's log as it was: an ``App`` in this process would send it elsewhere."""
    log = logging.getLogger("proxy")
    before = (log.handlers[:], log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before
