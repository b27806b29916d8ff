"""The siege measures; what it measures is no matter here."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.siege.__main__ import Siege, ms
from tests.siege.attacks import ATTACKS


@pytest.fixture(scope="module")
def siege() -> Iterator[Siege]:
    with ExitStack() as stack:
        yield Siege("targets", stack)


def test_a_good_client_is_watched(siege: Siege) -> None:
    seen = siege.watch(0.3)
    assert seen.echoes
    assert seen.newcomers
    assert seen.memory > 0


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_sends_something_and_ends_by_itself(
    siege: Siege, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNNELS", "2")
    siege.name = name
    with siege.under_attack(0.1) as attacker:
        output, _ = attacker.communicate(timeout=30)
    assert json.loads(output)["size"] > 0


def test_a_quantile_is_in_milliseconds() -> None:
    values = [number / 1000 for number in range(100)]
    assert (ms(values, 0.5), ms(values, 0.99), ms([], 0.99)) == ("50.0", "99.0", "-")
