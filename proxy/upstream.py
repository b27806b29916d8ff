"""
Choose among upstreams: a selector is itself something one connects through.

An upstream that failed rests for a while that doubles with each failure, and is then tried again by
one connection first. One that could not even be reached is looked at meanwhile, and its rest ends
when it can. A rest only puts it last: when nothing else is left it is tried all the same,
so that the first connection after its return succeeds. Nothing goes out directly unless ``direct``
is in the list.
"""

import logging
import random
from collections.abc import Sequence
from itertools import count
from time import monotonic

from proxy.address import Address
from proxy.client import Connected, DirectClient, ProxyClient, UpstreamClient
from proxy.config import ServerConfig, Strategy, UpstreamConfig, UpstreamType
from proxy.errors import DialError, Failure, LimitError, ProxyError, UpstreamError
from proxy.net import background
from proxy.net.deadline import Deadline

log = logging.getLogger(__name__)

FIRST_REST = 1.0  # seconds
LONGEST_REST = 60.0  # seconds
PROBE_INTERVAL = 0.5  # seconds between two looks at an upstream that cannot be reached
FIRST_BACKOFF = 0.1  # seconds, doubling, between attempts at one upstream


def way_out(config: ServerConfig, before: ProxyClient | None = None) -> ProxyClient:
    """
    Build a listener's way out; raises ``ConfigError`` for a TLS file that is of no use.

    Of upstreams that it had ``before`` it is still known how they are.
    """
    if not config.enable_upstream or all(one.type is UpstreamType.DIRECT for one in config.upstream_config):
        return DirectClient(timeout=config.timeout)
    known = {one.config: one for one in before.upstreams} if isinstance(before, Selector) else {}
    upstreams = [Upstream(one, known.get(one)) for one in config.upstream_config]
    return Selector(upstreams, config.strategy, config.timeout)


def make_client(config: UpstreamConfig) -> ProxyClient:
    """Make the client of an upstream."""
    # Imported only where one is configured: these libraries take 15 MB and a quarter of a second.
    if config.type is UpstreamType.SOCKS5:
        from proxy.socks5.client import Socks5Client

        return Socks5Client(config.client_config, config.name)
    if config.type is UpstreamType.WEBSOCKET:
        from proxy.websocket.client import WebSocketClient

        return WebSocketClient(config.client_config, config.name)
    return DirectClient(config.name, config.timeout)


class Upstream:
    """One upstream and its health."""

    def __init__(self, config: UpstreamConfig, before: "Upstream | None" = None) -> None:
        """Make it, with the health of the one ``before`` it."""
        self.config = config
        self.name = config.name
        self.client = make_client(config)
        self.failures = 0  # in a row
        self.problem = ""  # the last of them
        self.rests_until = 0.0
        self.answered_at = 0.0
        self._failed_at = 0.0
        self._looked_after = False
        if before:
            self.failures, self.problem = before.failures, before.problem
            self.rests_until, self.answered_at = before.rests_until, before.answered_at

    def dial(self, target: Address, deadline: Deadline, *, retry_timeouts: bool) -> Connected:
        """
        Connect, with retries and backoff; raises ``UpstreamError`` after the last attempt.

        An attempt that timed out is repeated only with ``retry_timeouts``: where another upstream
        is waiting its turn, that one gets the time.
        """
        retries = 0 if self.failures else self.config.retry_count
        started = monotonic()
        for attempt in count():
            try:
                return self._attempt(target, deadline)
            except UpstreamError as exc:
                again = exc.transient and (retry_timeouts or exc.failure is not Failure.TIMED_OUT)
                pause = FIRST_BACKOFF * 2**attempt * random.uniform(0.5, 1.5)
                if not again or attempt >= retries or pause >= deadline.remaining():
                    self._failed(started, exc)
                    raise
                log.debug("%s; trying again", exc)
                deadline.pause(pause)
        raise AssertionError("unreachable")

    def _attempt(self, target: Address, deadline: Deadline) -> Connected:
        rested_until = self.rests_until
        if self.failures:
            # This connection tries it; until it knows more, others go elsewhere.
            self.rests_until = max(self.rests_until, monotonic() + self.config.timeout)
        try:
            connected = self.client.dial(target, self._limit(deadline))
        except LimitError:
            self.rests_until = rested_until  # our own shortage: it was not even tried
            raise
        except DialError as exc:
            if not isinstance(exc, UpstreamError):
                self._answered()  # it did its work: the target is to blame
            raise
        self._answered()
        return connected

    def _limit(self, deadline: Deadline) -> Deadline:
        # Directly, the time that an attempt may take is the target's, not an upstream's.
        direct = self.config.type is UpstreamType.DIRECT
        return deadline if direct else deadline.within(self.config.timeout)

    def _answered(self) -> None:
        if self.failures:
            log.info("upstream %s is back", self.name)
        self.failures = 0
        self.problem = ""
        self.rests_until = 0.0
        self.answered_at = monotonic()

    def _failed(self, started: float, exc: UpstreamError) -> None:
        # While others get their answers it is alive: then it is our target that is slow.
        if self.answered_at > started:
            return
        self.problem = str(exc)
        if self._failed_at <= started:  # else another connection has told the same already
            self.failures += 1
        self._failed_at = monotonic()
        rest = min(FIRST_REST * 2 ** (self.failures - 1), LONGEST_REST)
        self.rests_until = self._failed_at + rest
        log.warning("%s; it rests for %g s", exc, rest, extra={"collapse": (self.name, exc)})
        if exc.unreachable and not self._looked_after:
            self._looked_after = True
            background.start(self._look_after)

    def _look_after(self) -> None:
        """
        End the rest of an upstream that could not be reached as soon as it can.

        Where a connection could be made and then failed, another one proves nothing: that rest
        is waited for.
        """
        assert isinstance(self.client, UpstreamClient)
        while (rest := self.rests_until - monotonic()) > 0:
            deadline = Deadline(rest)
            deadline.pause(PROBE_INTERVAL)
            if self.client.reaches_proxy(deadline.within(PROBE_INTERVAL)):
                self.rests_until = 0.0
        self._looked_after = False


class Selector(ProxyClient):
    """Connects through the first of several upstreams that can."""

    def __init__(self, upstreams: Sequence[Upstream], strategy: Strategy, timeout: float) -> None:
        super().__init__(", ".join(upstream.name for upstream in upstreams), timeout)
        self.upstreams = upstreams
        self._strategy = strategy
        self._turn = count()

    def dial(self, target: Address, deadline: Deadline) -> Connected:
        """Connect; raises ``DialError`` for the target's fault, and ``UpstreamError`` when all failed."""
        errors: list[UpstreamError] = []
        order = self._order()
        for left, upstream in zip(range(len(order), 0, -1), order, strict=True):
            # Each upstream may use what is left, but for a fair share of those after it.
            share = deadline.within(deadline.remaining() / left)
            try:
                return upstream.dial(target, share, retry_timeouts=left == 1)
            except UpstreamError as exc:
                errors.append(exc)
            except ProxyError as exc:
                exc.via = upstream.name
                raise
        raise UpstreamError("; ".join(map(str, errors)), errors[0].failure) from errors[0]

    def _order(self) -> list[Upstream]:
        order = list(self.upstreams)
        if self._strategy is Strategy.RANDOM:
            random.shuffle(order)
        elif self._strategy is Strategy.ROUND_ROBIN:
            first = next(self._turn) % len(order)
            order = order[first:] + order[:first]
        now = monotonic()
        # Stable: those that do not rest keep their order, and the others come by the end of their rest.
        return sorted(order, key=lambda upstream: max(0.0, upstream.rests_until - now))
