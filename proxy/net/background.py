"""
Something that goes on by itself, beside the connections.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import gevent

T = TypeVar("T")


class Task(Generic[T]):
    """A function that runs in a greenlet of its own, whoever waits for it or does not."""

    __slots__ = ("_greenlet",)

    def __init__(self, function: Callable[[], T]) -> None:
        self._greenlet: gevent.Greenlet[[], T] = gevent.spawn(function)

    def wait(self, seconds: float | None = None) -> T | None:
        """Wait for its result; None if it takes longer."""
        self._greenlet.join(seconds)
        return self._greenlet.value
