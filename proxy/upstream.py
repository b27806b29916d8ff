"""
Choose among upstreams: a selector is itself something one connects through.

What may never be violated:

- Nothing goes out directly unless ``direct`` is in the list.
- To rest only puts an upstream last. When nothing else is left it is tried all the same, so that the
  first connection after its return succeeds.
- Only its own fault makes it rest: not the target's, not ours (``LimitError``), and not a client that
  left.
- When the target is to blame, no other upstream is asked, and nothing is sent twice.
- What is known of an upstream outlives the configuration (``Health``), and one configuration at a time
  looks after it.

How an upstream is:

    well           It has its place in the order.
    at rest        It failed last (``failures``), and comes behind all others until ``cooldown_until``: 1 s,
                   then twice as long with each failure, 60 s at most.
    due            That time is over, so it has its place again. The first connection that tries it puts it
                   to rest until it knows more, so that the others go elsewhere.
    probed         At rest or due, and it may come back by itself (``may_return``): it is asked for a sign
                   of life every half second, though nobody needs it.

What comes of an attempt:

    connected, or the target is to blame    It is well.
    it declines (``well``)                  It is as it was: it lives, but has no place left, or no way on.
                                            Another one may be asked.
    unclear whose fault it is               Ask for a sign of life, and wait for it. If there is one, and it
                                            says something else than the answer to the request did: it is
                                            well, and the target is to blame. Else: failed.
    too slow for its share of the time      It might have been fast enough for its own ``timeout``. Ask for
                                            a sign of life too, but try the next one meanwhile.
    any other fault of its own              Failed: at rest.
    the client left, or we lack something   It is as it was: nothing is known.

It is unclear where it was silent after a request, closed the connection without an answer, or answered
with a bare status: one client with one bad target could otherwise make it rest for everybody. A sign of
life is something that needs no target, and is asked for once at a time, whoever wants to know.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from itertools import count
from time import monotonic

from proxy.address import Address
from proxy.client import Connected, DirectClient, ProxyClient, TunnelClient, Way
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


def make_client(config: UpstreamConfig) -> Way:
    """Make the client of an upstream."""
    via = make_client(config.via) if config.via else None
    assert via is None or isinstance(via, TunnelClient)
    # Imported only where one is configured: these libraries take 15 MB and a quarter of a second.
    if config.type is UpstreamType.SOCKS5:
        from proxy.socks5.client import Socks5Client

        return Socks5Client(config.client_config, config.name, via)
    if config.type is UpstreamType.HTTP:
        from proxy.http.client import HttpClient

        return HttpClient(config.client_config, config.name, via)
    if config.type is UpstreamType.WEBSOCKET:
        from proxy.websocket.client import WebSocketClient

        return WebSocketClient(config.client_config, config.name, via)
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
        self.status = 0  # the status of its answer then, if that was the problem
        self.may_return = False  # without being mended, so that a sign of life shows its return
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
        # Directly, the time that an attempt may take is the target's, not an upstream's.
        goes_directly = self.config.type is UpstreamType.DIRECT
        started = monotonic()
        for attempt in count():
            is_cut = share.remaining() < self.config.timeout
            try:
                return self._attempt(target, share if goes_directly else share.within(self.config.timeout))
            except UpstreamError as exc:
                again = exc.transient and (last or exc.failure is not Failure.TIMED_OUT)
                pause = FIRST_BACKOFF * 2**attempt * random.uniform(0.5, 1.5)
                if not again or attempt >= retries or pause >= share.remaining():
                    self._judge(exc, target, started, budget, is_cut=is_cut)
                    raise
                log.debug("%s; trying again", exc)
                share.pause(pause)
        raise AssertionError("unreachable")

    def _attempt(self, target: Address, deadline: Deadline) -> Connected:
        health = self.health
        cooldown_until = health.cooldown_until
        if health.failures:
            # This connection tries it. Until it knows more, others go elsewhere.
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
        # The sort is stable: those that are not at rest keep their order, and the others follow, by the end
        # of their rest.
        return sorted(order, key=lambda upstream: max(0.0, upstream.health.cooldown_until - now))
