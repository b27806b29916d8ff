"""
Log a repeated error once, and after a while how often it came again.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import gevent

from proxy.lines import make_record

COLLAPSE = 30.0  # seconds for which a repeated error is only counted
_PEERS = 500  # of which errors are counted at a time
_DIFFERENT = 10  # errors of one peer in that time; all others are one more
_TEXT = 200  # characters by which two errors are told apart


class Collapse(logging.Filter):
    """
    Lets an error through once, and tells after a while how often it came again.

    It looks at records that say whose error it is: ``extra={"collapse": who}``, or ``(who, what)`` where
    the message is never the same, such as one with a client's port. Nobody fills the log with errors that
    are always new: of one peer, a few different ones pass, and the rest are counted together.
    """

    def __init__(
        self,
        tell: Callable[[logging.LogRecord], object],
        later: Callable[[float, Callable[[], None]], object] = gevent.spawn_later,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._tell = tell
        self._later = later
        self._clock = clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()  # in the order in which they end
        self._comes_back = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide on a record."""
        about = getattr(record, "collapse", None)
        if about is None:
            return True
        pair = about if isinstance(about, tuple) else (about, record.getMessage())
        who, what = (str(each)[:_TEXT] for each in pair)
        self._end_windows()
        if who not in self._windows:
            if len(self._windows) == _PEERS:
                self._end_first()
            self._windows[who] = _Window(self._clock() + COLLAPSE)
        window = self._windows[who]
        error = window.errors.get(what)
        if error is None and len(window.errors) < _DIFFERENT:
            window.errors[what] = _Error(record.getMessage()[:_TEXT], record.levelno)
            return True
        if error is None:
            error = window.others = window.others or _Error(f"{who}: other errors", record.levelno)
        error.more += 1
        self._come_back_later()
        return False

    def finish(self) -> None:
        """Tell what was held back until now."""
        while self._windows:
            self._end_first()

    def _come_back_later(self) -> None:
        if self._windows and not self._comes_back:
            self._comes_back = True
            self._later(self._first().ends - self._clock(), self._come_back)

    def _come_back(self) -> None:
        self._comes_back = False
        self._end_windows()
        self._come_back_later()

    def _first(self) -> "_Window":
        return next(iter(self._windows.values()))

    def _end_windows(self) -> None:
        now = self._clock()
        while self._windows and self._first().ends <= now:
            self._end_first()

    def _end_first(self) -> None:
        _, window = self._windows.popitem(last=False)
        for error in (*window.errors.values(), window.others):
            if error and error.more:
                text = f"{error.message} ({error.more} more like this)"
                self._tell(make_record(error.level, text))


@dataclass
class _Error:
    message: str
    level: int
    more: int = 0


@dataclass
class _Window:
    """What one peer has done wrong in a while."""

    ends: float
    errors: dict[str, _Error] = field(default_factory=dict)
    others: _Error | None = None
