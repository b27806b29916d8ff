"""
Notice that the configuration file has changed.

The file is polled: that works on every file system, for editors that write it anew and for links that
are turned to another file, which each look different to an interface that reports events. What changed
must look the same at two polls before anything is done, so that a file is not read while it is written.
"""

import logging
from time import monotonic

import gevent
from gevent.event import Event

from proxy.errors import ProxyError
from proxy.keeping.keeper import Keeper

log = logging.getLogger(__name__)


class Watcher:
    """Has a keeper look at its files, at the interval of its configuration, where 0 means never."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._last = keeper.fingerprint()
        self._is_new = True  # at first, what may have changed since the start
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
        try:
            now = self._keeper.fingerprint()
            if now != self._last:
                self._last, self._is_new = now, True  # and may still be changing
            elif self._is_new:
                self._keeper.reload_if_changed()
                self._is_new = False
        except ProxyError as exc:
            log.warning("%s; it is tried again", exc, extra={"collapse": exc})

    def _run(self) -> None:
        polled = monotonic()
        while not self._is_over and (interval := self._keeper.config.reload_interval):
            self._may_differ.clear()
            # From the last poll on, so that no number of changes puts off the next one.
            if self._may_differ.wait(max(0.0, polled + interval - monotonic())):
                continue
            polled = monotonic()
            try:
                self.poll()
            except Exception as exc:
                said = f"{type(exc).__name__}: {exc}"
                log.error("internal error: %s", said, extra={"collapse": said})  # at each poll, perhaps
                log.debug("internal error", exc_info=True)
        self._is_watching = False
