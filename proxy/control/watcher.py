"""
Notice that the configuration file has changed.

The file is polled: that works on every file system, for editors that write it anew and for links that
are turned to another file, which each look different to an interface that reports events. What changed
must look the same at two polls before anything is done, so that a file is not read while it is written.
"""

import logging
from collections.abc import Callable, Sequence
from time import monotonic

import gevent
from gevent.event import Event

from proxy.control.stamps import Stamps, stamps
from proxy.errors import ProxyError

log = logging.getLogger(__name__)


class Watcher:
    """Looks at some files, which may be others each time, at an interval; 0 is never."""

    def __init__(
        self,
        files: Callable[[], Sequence[str]],
        interval: Callable[[], float],
        look: Callable[[], object],
    ) -> None:
        """
        Watch for ``look``, which is called when there may be something new.

        It raises ``ProxyError`` when it cannot look now, and is called again at the next poll.
        """
        self._files = files
        self._interval = interval
        self._look = look
        self._last = self._stamps()
        # The first look is at what may have changed since the start.
        self._acted_on: Stamps | None = None
        self._may_differ = Event()  # the interval, while it is waited for
        self._is_watching = False
        self._is_over = False

    def start(self) -> None:
        """Begin to watch, or go on with what the interval is now."""
        self._may_differ.set()
        if not self._is_watching:
            self._is_watching = True
            gevent.spawn(self._run)

    def stop(self) -> None:
        """End watching; a reload that has begun comes to its end."""
        self._is_over = True
        self._may_differ.set()

    def poll(self) -> None:
        """Look once."""
        now = self._stamps()
        is_settled = now == self._last
        self._last = now
        if is_settled and now != self._acted_on:
            self._acted_on = now
            try:
                self._look()
            except ProxyError as exc:
                self._acted_on = None
                log.warning("%s; it is tried again", exc, extra={"collapse": exc})

    def _run(self) -> None:
        polled = monotonic()
        while not self._is_over and (interval := self._interval()):
            self._may_differ.clear()
            # From the last poll on, so that no number of changes puts off the next one.
            if self._may_differ.wait(max(0.0, polled + interval - monotonic())):
                continue
            polled = monotonic()
            try:
                self.poll()
            except Exception as exc:
                log.error("internal error: %s: %s", type(exc).__name__, exc)
                log.debug("internal error", exc_info=True)
        self._is_watching = False

    def _stamps(self) -> Stamps:
        return stamps(self._files())
