"""
Watching the workers: what each has counted, what the others need to know, and whether it answers.

What may never be violated:

- One that does not answer for ten seconds is killed; unless we come too late ourselves, as then nobody may
  have had the time.
- What one has found out of an upstream, all know after the next look.
- What workers may move in a second is, all in all, no more than the limit says.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

import gevent

from proxy.control.snapshot import Snapshot
from proxy.limiter import Limiter
from proxy.listening.fullness import Fullness, describe
from proxy.metrics import Metrics
from proxy.server import ProxyServer
from proxy.supervisor.crew import ANSWER, Crew
from proxy.workers.limits import share_out

log = logging.getLogger(__name__)

_LOOK, _SOON = 1.0, 0.25  # seconds between two looks at all; while they share a bandwidth
_LATE = 2.0  # seconds by which a look comes too late to judge anybody


class Lookout:
    """Looks at all of a crew, again and again."""

    def __init__(
        self, crew: Crew, limiter: Limiter, metrics: Metrics, listeners: Callable[[], Sequence[ProxyServer]]
    ) -> None:
        """Take a function that gives those which accept clients."""
        self._crew = crew
        self._limiter = limiter
        self._metrics = metrics
        self._listeners = listeners
        self._fullness: dict[str, Fullness] = {}
        self._live = Snapshot()

    def run(self) -> None:
        """Look until the program stops."""
        while not self._crew.is_stopping:
            shared = any(each.bandwidth for each in self._limiter.limits) and self._live.flows
            pause = _SOON if shared else _LOOK
            before = monotonic()
            gevent.sleep(pause)
            is_late = monotonic() - before > pause + _LATE
            self.look(is_late=is_late)

    def look(self, *, is_late: bool = False) -> None:
        """Have all report, tell each what others have found out, and end those that do not answer."""
        asked_at = monotonic()
        serving = self._crew.serving
        said = {each.number: each.snapshot for each in serving}
        self._crew.report(within=ANSWER)
        silent = [each for each in serving if each.snapshot is said[each.number] and not each.is_gone]
        if not is_late and monotonic() - asked_at >= ANSWER:
            for each in silent:
                if each.is_serving:
                    log.error("worker %d has not answered for %g s: it is killed", each.number, ANSWER)
                    each.kill()
        self._live = sum((each.snapshot for each in self._crew.serving), Snapshot())
        self._spread_news()
        shares = share_out(self._limiter, {each.number: each.snapshot for each in self._crew.serving})
        for each in self._crew.serving:
            if shares[each.number]:
                each.link.tell("take", shares[each.number])
        self._note_fullness()

    def _spread_news(self) -> None:
        latest = {key: each.state for key, each in self._live.upstreams.items()}
        for each in self._crew.serving:
            known = each.snapshot.upstreams
            if news := [
                (key, state)
                for key, state in latest.items()
                if key in known and state.since > known[key].state.since
            ]:
                each.link.tell("learn", news)

    def _note_fullness(self) -> None:
        listeners = {each.config.name: each.config for each in self._listeners()}
        for gone in self._fullness.keys() - listeners.keys():
            self._fullness.pop(gone).end()
        for name, config in listeners.items():
            is_full = self._live.live[name] >= config.max_connections
            fullness = self._fullness.get(name)
            if not fullness:
                fullness = self._fullness[name] = Fullness(partial(self._describe_fullness, name))
            if is_full is not fullness.is_full:
                self._metrics.listener(name).filled += is_full
                fullness.become(is_full)

    def _describe_fullness(self, name: str) -> str:
        config = next(each.config for each in self._listeners() if each.config.name == name)
        return describe(config, self._live.live[name], is_full=self._fullness[name].is_full)
