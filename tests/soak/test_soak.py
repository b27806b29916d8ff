"""A few seconds of ``make soak``, so that it goes on working; and that it notices."""

import pytest

from tests.soak import __main__ as program
from tests.soak.__main__ import Held, grown, soak


def test_a_node_that_is_well_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For so short a time memory may still grow, as buffers and caches fill."""
    monkeypatch.setattr(program, "GROWTH", 2.0)
    monkeypatch.setattr(program, "SETTLE", 0.5)
    assert soak(2, tunnels=30, first=1, every=1) == []


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (Held(104, 10), []),
        (Held(106, 10), ["memory grew from 100 to 106 bytes"]),
        (Held(90, 11), ["descriptors grew from 10 to 11"]),
    ],
)
def test_what_grows_is_told(last: Held, told: list[str]) -> None:
    assert grown(Held(100, 10), last) == told
