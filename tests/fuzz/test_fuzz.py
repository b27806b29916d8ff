"""A little of ``make fuzz``, always the same, so that it goes on working; and what it finds."""

import pytest

from tests.fuzz import runs
from tests.fuzz.subjects import SUBJECTS, Subject

COUNTS = {"config": 150}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_nothing_is_found(subject: str) -> None:
    found = runs.run(subject, 1, range(COUNTS.get(subject, 600)))
    assert not found, found


@pytest.mark.parametrize("subject", SUBJECTS)
def test_right_inputs_are_understood(subject: str) -> None:
    """Else nothing behind the first check would ever be reached."""
    outcome = SUBJECTS[subject].read([SUBJECTS[subject].seeds[0]])
    while isinstance(outcome, tuple):
        outcome = outcome[0]
    assert not str(outcome).endswith("Error")
    assert outcome != "refused"


def test_what_depends_on_the_pieces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUBJECTS, "units", Subject([b"30s"], len))
    assert "in pieces: " in runs.run("units", 1, range(50))


def test_an_exception_that_is_not_documented_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(pieces: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setitem(SUBJECTS, "units", Subject([b"30s"], read))
    found = runs.run("units", 7, range(1))
    assert found.startswith("units: input 0 of seed 7: b'")
    assert "KeyError: 'surprise'" in found


def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(pieces: object) -> None:
        while True:
            pass

    monkeypatch.setattr(runs, "PATIENCE", 0.1)
    monkeypatch.setitem(SUBJECTS, "units", Subject([b"30s"], read))
    assert "no end after 0.1 s" in runs.run("units", 1, range(1))
