"""
Native threads, for the three things that would block every connection at once.

These are name lookups, password hashes and writes to a log that stalls. Everything else runs in
greenlets.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

from proxy.errors import LimitError

T = TypeVar("T")

_IDLE_THREAD = 10  # seconds until a thread without work ends


class Workers:
    """At most ``size`` native threads, started as they are needed."""

    def __init__(self, size: int) -> None:
        self._pool = ThreadPool(size, idle_task_timeout=_IDLE_THREAD)

    def run(self, function: Callable[[], T]) -> T:
        """
        Call a function in a thread, and wait for it.

        A deadline of the caller ends the waiting, not the thread. Raises ``LimitError`` if no thread
        can be had.
        """
        # gevent prints a traceback for an exception that leaves a thread, so none does.
        try:
            result = self._pool.spawn(_outcome, function)
        except RuntimeError as exc:  # the system, or this user, may have no more of them
            raise LimitError(f"no thread: {exc}") from exc
        outcome: Any = result.get()
        if isinstance(outcome, _Raised):
            raise outcome.error
        return outcome  # type: ignore[no-any-return]


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _outcome(function: Callable[[], T]) -> T | _Raised:
    try:
        return function()
    except Exception as exc:
        return _Raised(exc)


def start_thread(function: Callable[[], None]) -> None:
    """Start a native thread that runs beside the event loop and ends with the process."""
    start: Callable[[Callable[[], None], tuple[()]], int] = get_original("_thread", "start_new_thread")
    start(function, ())
