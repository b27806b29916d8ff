"""
Choose among upstreams: a selector is itself something one connects through.

An upstream that failed rests for a while that doubles with each failure, and is then tried again by
one connection first. A rest only puts it last: when nothing else is left it is tried all the same,
so that the first connection after its return succeeds. Nothing goes out directly unless ``direct``
is in the list.

Only its own fault makes it rest. Where it was silent after a request, closed the connection without an
answer, or answered with a bare status, the target may be the cause. Then the upstream is asked for a
sign of life, which is something that needs no target: if it gives one, and another than it gave to the
request, the target is to blame, no other upstream is asked, and nothing is sent twice. One that is
down is asked in the same way until it is back.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from itertools import count
from time import monotonic

from proxy.address import Address
from proxy.client import Connected, DirectClient, ProxyClient
from proxy.config import ServerConfig, Strategy, UpstreamConfig, UpstreamType
from proxy.errors import DialError, Failure, LimitError, ProxyError, UpstreamError
from proxy.net.deadline import Deadline
from proxy.net.threads import Task

log = logging.getLogger(__name__)

FIRST_COOLDOWN = 1.0  # seconds
LONGEST_COOLDOWN = 60.0  # seconds
PROBE_INTERVAL = 0.5  # seconds between two looks at an upstream that is down
PATIENCE = 3.0  # seconds for a sign of life
JUST_NOW = 1.0  # seconds for which an answer to others is one
FIRST_BACKOFF = 0.1  # seconds, doubling, between attempts at one upstream


def way_out(config: ServerConfig, health: "Mapping[UpstreamConfig, Health] | None" = None) -> ProxyClient:
    """
    Build a listener's way out; raises ``ConfigError`` for a TLS file that is of no use.

    ``health`` is what is known of its upstreams.
    """
    if not config.enable_upstream or all(one.type is UpstreamType.DIRECT for one in config.upstream_config):
        return DirectClient(timeout=config.timeout)
    upstreams = [Upstream(one, (health or {}).get(one)) for one in config.upstream_config]
    return Selector(upstreams, config.strategy, config.timeout)


def begin(way: ProxyClient) -> None:
    """Look after the upstreams of a way out from now on, as it is in use."""
    for upstream in upstreams_of(way):
        upstream.begin()


def retire(way: ProxyClient) -> None:
    """Leave the upstreams of a way out to another, or to nobody."""
    for upstream in upstreams_of(way):
        upstream.retire()


def upstreams_of(way: ProxyClient) -> "Sequence[Upstream]":
    """Give the upstreams among which a way out chooses, if it does."""
    return way.upstreams if isinstance(way, Selector) else ()


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


class Health:
    """
    What is known of an upstream.

    It outlives a configuration: the next one in which the same upstream stands goes on with it, and so
    does whoever is still connecting under the one before.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failures = 0  # in a row
        self.problem = ""  # what went wrong the last time
        self.status = 0  # of its answer then, if that was the problem
        self.may_return = False  # by itself, so that a sign of life shows it
        self.cooldown_until = 0.0
        self.answered_at = 0.0
        self.confirms = True  # its success says that the target is connected
        self.keeper: Upstream | None = None  # the one in use, which looks after it while it is down
        self._failed_at = 0.0

    def answered(self) -> None:
        """Take note that it lives."""
        if self.failures:
            log.info("upstream %s is back", self.name)
        self.failures = 0
        self.problem = ""
        self.may_return = False
        self.cooldown_until = 0.0
        self.answered_at = monotonic()

    def declined(self, exc: UpstreamError) -> None:
        """Take note that it would not serve one request, which is no failure, nor a success."""
        if not self.failures:
            self.problem = str(exc)

    def failed(self, exc: UpstreamError, started: float) -> None:
        """Take note that an attempt that ``started`` then failed, by its fault."""
        # While others get their answers it is alive.
        if self.answered_at > started:
            return
        self.problem, self.status = str(exc), exc.status
        # Refused credentials, a wrong protocol or a wrong path need somebody to mend them: then the rest
        # is waited for, and a connection tries.
        self.may_return = exc.transient or (exc.unclear and (not exc.status or exc.status >= 500))
        if self._failed_at <= started:  # else another connection has told the same already
            self.failures += 1
        self._failed_at = monotonic()
        rest = min(FIRST_COOLDOWN * 2 ** min(self.failures - 1, 10), LONGEST_COOLDOWN)
        self.cooldown_until = self._failed_at + rest
        log.warning("%s; it rests for %g s", exc, rest, extra={"collapse": (self.name, exc)})


class Upstream:
    """One upstream, as one configuration has it."""

    def __init__(self, config: UpstreamConfig, health: Health | None = None) -> None:
        self.config = config
        self.name = config.name
        self.client = make_client(config)
        self.health = health or Health(config.name)
        self._asking: Task[int | None] | None = None
        self._is_probing = False
        if health is None:
            self.begin()

    def begin(self) -> None:
        """Be the one in use."""
        self.health.keeper = self
        self._probe_if_down()

    def retire(self) -> None:
        """Leave that to others, and look after it no more."""
        if self.health.keeper is self:
            self.health.keeper = None

    def dial(self, target: Address, share: Deadline, budget: Deadline, *, last: bool) -> Connected:
        """
        Connect, with retries and backoff, before ``share`` is over.

        Raises ``UpstreamError`` after the last attempt, or ``DialError`` if it is the target that is
        to blame; where that is unclear, a sign of life is waited for within the ``budget``. An attempt
        that timed out is repeated only by the ``last`` upstream: otherwise the next one gets the time.
        """
        retries = 0 if self.health.failures else self.config.retry_count
        started = monotonic()
        for attempt in count():
            is_cut = share.remaining() < self.config.timeout
            try:
                return self._attempt(target, self._limit(share))
            except UpstreamError as exc:
                again = exc.transient and (last or exc.failure is not Failure.TIMED_OUT)
                pause = FIRST_BACKOFF * 2**attempt * random.uniform(0.5, 1.5)
                if not again or attempt >= retries or pause >= share.remaining():
                    self._judge(exc, target, started, budget, is_cut=is_cut)
                    raise
                log.debug("%s; trying again", exc)
                share.pause(pause)
        raise AssertionError("unreachable")

    def _limit(self, share: Deadline) -> Deadline:
        # Directly, the time that an attempt may take is the target's, not an upstream's.
        return share if self.config.type is UpstreamType.DIRECT else share.within(self.config.timeout)

    def _attempt(self, target: Address, deadline: Deadline) -> Connected:
        health = self.health
        cooldown_until = health.cooldown_until
        if health.failures:
            # This connection tries it; until it knows more, others go elsewhere.
            health.cooldown_until = max(cooldown_until, monotonic() + self.config.timeout)
        try:
            connected = self.client.dial(target, deadline)
        except UpstreamError as exc:
            if exc.well:
                health.cooldown_until = cooldown_until
            raise
        except DialError:
            health.answered()  # it did its work: the target is to blame
            raise
        except BaseException:
            # The client left, or we ourselves are short of something: nothing is known.
            health.cooldown_until = cooldown_until
            raise
        health.answered()
        health.confirms = connected.confirmed
        return connected

    def _judge(
        self, exc: UpstreamError, target: Address, started: float, budget: Deadline, *, is_cut: bool
    ) -> None:
        """Take note of a failure that is the upstream's; raises ``DialError`` for one that is not."""
        if exc.well:
            self.health.declined(exc)
        elif exc.unclear:
            verdict = Task(lambda: self._is_well(exc, started)).wait(budget.remaining())
            if verdict is not False:
                failure = Failure.GENERAL if exc.failure is Failure.UPSTREAM else exc.failure
                raise DialError(f"{target} through {exc}", failure) from exc
        elif is_cut and exc.failure is Failure.TIMED_OUT:
            # It had less time than it may take. The next one is tried without waiting for the verdict.
            Task(lambda: self._is_well(exc, started))
        else:
            self._failed(exc, started)

    def _is_well(self, exc: UpstreamError, started: float) -> bool:
        """Tell by a sign of life whether it is well in spite of an error, and take note of it."""
        if not exc.status and self.health.answered_at > max(started, monotonic() - JUST_NOW):
            return True
        life = self._sign_of_life()
        if life == 0:
            return True  # we are short of something ourselves, and nothing is known
        if life is None or _is_same(life, exc.status):
            self._failed(exc, started)
            return False
        self.health.answered()
        return True

    def _sign_of_life(self) -> int | None:
        """Ask for one: the status that it answers, None if it is silent, and 0 if it could not be asked."""
        # One at a time, whoever wants to know.
        if self._asking is None:
            self._asking = Task(self._ask)
        return self._asking.wait()

    def _ask(self) -> int | None:
        try:
            return self.client.sign_of_life(Deadline(min(PATIENCE, self.config.timeout)))
        except UpstreamError as exc:
            log.debug("%s: no sign of life", exc)
            return None
        except LimitError:
            return 0
        finally:
            self._asking = None

    def _failed(self, exc: UpstreamError, started: float) -> None:
        self.health.failed(exc, started)
        if self.health.keeper:
            self.health.keeper._probe_if_down()

    def _probe_if_down(self) -> None:
        if self.health.may_return and not self._is_probing:
            self._is_probing = True
            Task(self._probe)

    def _probe(self) -> None:
        """Find out when it is back, though nobody needs it meanwhile."""
        health, pace = self.health, Deadline(PROBE_INTERVAL)
        while health.may_return and health.keeper is self:
            pace.pause(PROBE_INTERVAL)
            pace = Deadline(PROBE_INTERVAL)
            life = self._sign_of_life()
            if health.failures and life and life < 500 and not _is_same(life, health.status):
                health.answered()
        self._is_probing = False


def _is_same(one: int, other: int) -> bool:
    """Tell whether two statuses say the same of a server, with a target and without."""
    return one == other or min(one, other) >= 500


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
                return upstream.dial(target, share, deadline, last=left == 1)
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
        return sorted(order, key=lambda upstream: max(0.0, upstream.health.cooldown_until - now))
