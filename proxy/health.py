"""
The health of an upstream.

It outlives a configuration: the next one with the same upstream continues with it, and so do
connections that are still being made under the old one. A sign of life is a health check that passed.

The states of an upstream:

    well           It has its place in the order.
    late           It was not reached within its head start, and is asked for a sign of life. Until that is
                   settled it comes behind those that are well.
    at rest        It failed last (``failures``), and comes behind all others until it has given a sign of
                   life. ``cooldown_until`` is 1 s later, then twice as long with each failure, 60 s at most.
    probed         At rest, and it may come back by itself (``may_return``): it is asked for a sign of life
                   every half second, though nobody needs it. Otherwise it is asked when somebody comes
                   after ``cooldown_until``, who goes another way meanwhile.
    due            That time is over, and it answers, though what it says is no sign of life. To try it
                   costs no wait, so it has its place again, for one connection at a time.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from proxy.errors import UpstreamError
from proxy.settings.upstream import UpstreamConfig
from proxy.spares import Spares

log = logging.getLogger(__name__)

FIRST_COOLDOWN = 1.0  # seconds
LONGEST_COOLDOWN = 60.0  # seconds
SHORTEST_HEAD_START, LONGEST_HEAD_START = 0.25, 1.0  # seconds
FIRST_HEAD_START = 0.75  # seconds: as long as it is not known how long it takes to reach it
SMOOTHING = 4  # of so many measurements, about, the usual one is made


@dataclass(frozen=True, slots=True)
class State:
    """What there is to tell of one; moments are those of ``monotonic``, which all processes share."""

    failures: int
    problem: str
    status: int
    may_return: bool
    confirms: bool
    answered_at: float
    failed_at: float
    cooldown_until: float

    @property
    def since(self) -> float:
        """When this was found out."""
        return max(self.answered_at, self.failed_at)


class Keeper(Protocol):
    """Who looks after an upstream."""

    def probe_if_down(self) -> None:
        """Find out when it is back."""


class Health:
    """How one upstream is."""

    def __init__(self, config: UpstreamConfig, spares: Counter[str] | None = None) -> None:
        """Take where it is counted what becomes of its spares, if anybody wants to know."""
        self.name = config.name
        self.failures = 0  # in a row
        self.problem = ""  # what went wrong the last time
        self.status = 0  # the status of its answer then, if that was the problem
        self.may_return = False  # without being mended, so that a sign of life shows its return
        self.answers = False  # it said something when it was last asked for a sign of life, but gave none
        self.is_tried = False  # by a client, though it is at rest
        self.cooldown_until = 0.0
        self.late_until = 0.0
        self.answered_at = 0.0
        self.effort: float | None = None  # how many seconds it usually takes to reach it
        self.confirms = True  # its success says that the target is connected
        self.keeper: Keeper | None = None  # the one in use, which looks after it while it is down
        self.spares = Spares(config.most_spares, counts=spares)
        self._failed_at = 0.0

    @property
    def state(self) -> State:
        """What there is to tell of it."""
        return State(
            self.failures,
            self.problem,
            self.status,
            self.may_return,
            self.confirms,
            self.answered_at,
            self._failed_at,
            self.cooldown_until,
        )

    def learn(self, state: State) -> None:
        """Take over what another process has found out, if that is news."""
        if state.since <= max(self.answered_at, self._failed_at):
            return
        self.problem, self.status, self.may_return = state.problem, state.status, state.may_return
        self.failures, self.cooldown_until = state.failures, state.cooldown_until
        self.answered_at, self._failed_at = state.answered_at, state.failed_at
        self.late_until = 0.0
        self.answers = False
        if self.failures:
            self.spares.drop()
            if self.keeper:
                self.keeper.probe_if_down()

    @property
    def head_start(self) -> float:
        """For how many seconds it is waited for before the next one is tried too."""
        if self.effort is None:
            return FIRST_HEAD_START
        return min(max(SHORTEST_HEAD_START, 3 * self.effort), LONGEST_HEAD_START)

    def reached(self, seconds: float) -> None:
        """Take note that this took so long."""
        self.effort = seconds if self.effort is None else self.effort + (seconds - self.effort) / SMOOTHING
        self.late_until = 0.0

    def answered(self) -> None:
        """Take note that it lives."""
        if self.failures:
            log.info("upstream %s is back", self.name)
        self.failures = 0
        self.problem = ""
        self.may_return = self.answers = False
        self.cooldown_until = self.late_until = 0.0
        self.answered_at = monotonic()

    def declined(self, exc: UpstreamError) -> None:
        """Take note that it would not serve one request, which is no failure, nor a success."""
        if not self.failures:
            self.problem = str(exc)

    def failed(self, exc: UpstreamError, started: float) -> None:
        """Take note that an attempt that ``started`` then failed, by its fault."""
        if self.answered_at > started:  # it lives, as others have got their answers since
            return
        self.problem, self.status = str(exc), exc.status
        # Refused credentials, a wrong protocol or a wrong path need somebody to mend them. Then it is not
        # probed, but tried by a connection when its rest is over.
        self.may_return = exc.transient or (exc.unclear and (not exc.status or exc.status >= 500))
        # Of many connections that fail at the same time, one counts.
        if self._failed_at <= started:
            self.failures += 1
        self._failed_at = monotonic()
        self.spares.drop()
        rest = min(FIRST_COOLDOWN * 2 ** min(self.failures - 1, 10), LONGEST_COOLDOWN)
        self.cooldown_until = self._failed_at + rest
        log.warning("%s; it rests for %g s", exc, rest, extra={"collapse": (self.name, exc)})

    def failed_since(self, moment: float) -> bool:
        """Tell if it has failed others since then, and not answered them again."""
        return self._failed_at > max(moment, self.answered_at)

    def is_due(self, now: float) -> bool:
        """Tell if a client may try it, though it is at rest."""
        return self.answers and not self.is_tried and now >= self.cooldown_until

    def place(self, now: float) -> tuple[int, float]:
        """Tell where it stands in the order of those to be tried: smaller numbers first."""
        if self.failures:
            return (0, 0.0) if self.is_due(now) else (2, max(0.0, self.cooldown_until - now))
        return (1, self.late_until) if self.late_until > now else (0, 0.0)
