"""No test of this floor blocks for long."""

from collections.abc import Iterator

import pytest

from tests.wire.greenlets import Pair, patience, tcp_pair


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience():
        yield


@pytest.fixture
def pair() -> Pair:
    """Connect two sockets: ours, and the peer's."""
    return tcp_pair()
