"""
Log that a listener is full, and that it has room again, but not over and over.

Clients that wait in the kernel's queue hang silently, so the operator is told. While others wait, a free
place is taken at once: so there is room only when a place has been free for a moment.
"""

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent

from proxy.settings.listener import Overload, ServerConfig

log = logging.getLogger(__name__)

_SETTLED = 1.0  # seconds after which room is called so
_QUIET = 30.0  # seconds between two warnings of one listener


def describe(config: ServerConfig, live: int, *, is_full: bool) -> str:
    """Say that a listener with so many connections is full, or that it has room again."""
    if not is_full:
        return f"{config.name} has room again: connections in use: {live} of {config.max_connections}"
    fate = "wait until one ends" if config.overload is Overload.WAIT else "are refused until one ends"
    return f"{config.name} is full: its max_connections are in use ({live}); new clients {fate}"


class Fullness:
    """Whether a listener is full, and what was told of it."""

    def __init__(self, describe: Callable[[], str]) -> None:
        """Take what names the listener and its limit."""
        self.is_full = False
        self._describe = describe
        self._is_told = False  # that it is full
        self._told_at = -_QUIET
        self._timer: Any = None

    def become(self, is_full: bool) -> None:
        """Be full from now on, or not any more."""
        self.is_full = is_full
        self.end()
        if is_full is self._is_told:
            return
        delay = self._told_at + _QUIET - monotonic() if is_full else _SETTLED
        if delay <= 0:
            self._tell()
            return
        self._timer = gevent.get_hub().loop.timer(delay)
        self._timer.start(self._tell, update=True)

    def end(self) -> None:
        """Tell nothing more of how it is now."""
        if self._timer:
            self._timer.close()
            self._timer = None

    def _tell(self) -> None:
        self._is_told = self.is_full
        if self.is_full:
            self._told_at = monotonic()
            log.warning("%s", self._describe())
        else:
            log.info("%s", self._describe())
