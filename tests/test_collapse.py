"""An error is told once, and then how often it came again."""

import logging
import pickle
from collections.abc import Callable

import pytest

from proxy.collapse import Collapse
from tests.test_lines import record


class Night:
    """A log in which errors are repeated, under a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[str] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.collapse = Collapse(
            self.keep, lambda seconds, act: self.due.append((self.now + seconds, act)), lambda: self.now
        )

    def keep(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())

    def log(self, message: str, *args: object, about: object) -> None:
        """Log an error that may be collapsed."""
        made = record(message, *args, collapse=about)
        if self.collapse.filter(made):
            self.keep(made)

    def fail(self, who: str = "home", what: str = "no answer") -> None:
        """Log that an upstream failed."""
        self.log("upstream %s: %s", who, what, about=(who, what))

    def wait(self, seconds: float) -> None:
        """Let time go by, and what is due happen."""
        self.now += seconds
        while any(at <= self.now for at, _ in self.due):
            at, act = min(self.due, key=lambda each: each[0])
            self.due.remove((at, act))
            act()


@pytest.fixture
def night() -> Night:
    """Give a log in which nothing has happened yet."""
    return Night()


def test_an_error_passes_once_and_its_repetitions_are_counted(night: Night) -> None:
    """DESIGN 1.7: repeated errors are collapsed; the count is told though nothing follows."""
    for _ in range(29):
        night.fail()
        night.wait(1)
    assert night.lines == ["upstream home: no answer"]
    night.wait(1)
    assert night.lines == ["upstream home: no answer", "upstream home: no answer (28 more like this)"]
    night.wait(1000)
    assert len(night.lines) == 2
    assert not night.due


def test_an_error_that_comes_rarely_always_passes(night: Night) -> None:
    for _ in range(3):
        night.fail()
        night.wait(31)
    assert night.lines == ["upstream home: no answer"] * 3


def test_different_errors_of_one_peer_are_not_taken_for_the_same(night: Night) -> None:
    night.fail(what="no answer")
    night.fail(what="connection refused")
    night.fail("backup", "no answer")
    assert len(night.lines) == 3


def test_a_message_that_always_differs_says_what_is_the_same_in_it(night: Night) -> None:
    for port in range(5):
        night.log("socks 192.0.2.1:%d: %s", port, "bad version", about=("192.0.2.1", "socks: bad version"))
    night.wait(30)
    assert night.lines == [
        "socks 192.0.2.1:0: bad version",
        "socks 192.0.2.1:0: bad version (4 more like this)",
    ]


def test_a_peer_whose_errors_are_always_new_cannot_fill_the_log(night: Night) -> None:
    for number in range(1000):
        night.fail("192.0.2.1", f"unknown header {number}")
    night.fail("192.0.2.2", "another peer")
    assert 2 < len(night.lines) < 20
    shown = len(night.lines) - 1
    night.wait(30)
    assert night.lines[-1] == f"192.0.2.1: other errors ({1000 - shown} more like this)"


def test_what_names_no_subject_is_never_held_back() -> None:
    collapse = Night().collapse
    assert all(collapse.filter(record("authentication failed")) for _ in range(100))


def test_a_percent_sign_in_a_repeated_message_does_no_harm(night: Night) -> None:
    for _ in range(2):
        night.log("%s", "100%d", about="disk")
    night.wait(30)
    assert night.lines == ["100%d", "100%d (1 more like this)"]


def test_peers_without_number_do_not_grow_memory_and_no_count_is_lost(night: Night) -> None:
    """CASES G187: such as a line for each of a million clients."""
    for number in range(3000):
        for _ in range(2):
            night.fail(str(number), "x" * 100_000)
    assert len(night.collapse._windows) <= 1000
    assert len(pickle.dumps([each.errors for each in night.collapse._windows.values()])) < 1 << 20
    assert sum(line.endswith("(1 more like this)") for line in night.lines) == 3000 - len(
        night.collapse._windows
    )
    assert len(night.due) == 1


def test_what_was_held_back_is_told_at_the_end(night: Night) -> None:
    night.fail()
    night.fail()
    night.collapse.finish()
    assert night.lines[-1].endswith("(1 more like this)")
