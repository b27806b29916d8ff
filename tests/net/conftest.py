"""No test of this floor blocks for long."""

from collections.abc import Iterator

import pytest

from tests.wire.greenlets import patience


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience():
        yield
