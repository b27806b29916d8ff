"""Waits for a condition, each with a deadline of its own."""

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], what: str | Callable[[], str], timeout: float = 60.0) -> T:
    """
    Poll until a condition is true, and give its value; fail the test at the deadline.

    What is waited for may be a function, which tells how far it has come.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} s for {what() if callable(what) else what}")
        time.sleep(0.01)


def stands_still(measure: Callable[[], object], seconds: float = 0.4) -> None:
    """Wait until a quantity has not changed for a while."""
    seen, since = None, time.monotonic()
    deadline = since + 30
    while time.monotonic() - since < seconds:
        assert time.monotonic() < deadline, "it never stands still"
        now = measure()
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.02)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How many seconds have gone by."""
        return time.monotonic() - self._started
