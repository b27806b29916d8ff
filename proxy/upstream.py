"""
Choose among upstreams: a selector is itself something one connects through.

What may never be violated:

- Nothing goes out directly unless ``direct`` is in the list.
- One that is silent while it is reached costs a client no more than its head start: the next one is reached
  beside it (``race.py``). A request goes to one of them, and to another one only when that has failed.
- To rest only puts an upstream last. When nothing else is left it is tried all the same, so that the
  first connection after its return succeeds.
- Only its own fault makes it rest: not the target's, not ours (``LimitError``, ``EgressError``), and not a
  client that left.
- When the target is to blame, no other upstream is asked, and nothing is sent twice.
- What was sent on a spare, a connection made ahead of time (``spares.py``), is not sent again.
- What is known of an upstream outlives the configuration (``health.py``, where its states stand), and one
  configuration at a time looks after it.

What comes of reaching it:

    reached                                 It goes on to a request. If it was late, it is well again.
    not within its head start               Late, if there is another one to be begun.
    too slow for its share of the time      It might have been fast enough for its own ``timeout``. Ask for
                                            a sign of life too, but try the next one meanwhile.
    any other fault of its own              Failed: at rest.
    the client left, or we lack something   It is as it was: nothing is known.

What comes of a request:

    connected, or the target is to blame    It is well.
    it declines (``well``)                  It is as it was: it lives, but has no place left, or no way on,
                                            or we have no way to it. Another one may be asked.
    unclear whose fault it is               Ask for a sign of life, and wait for it. If there is one, and it
                                            says something else than the answer to the request did: it is
                                            well, and the target is to blame. Else: failed.
    anything else                           As above.

It is unclear where it was silent after a request, closed the connection without an answer, or answered
with a bare status: one client with one bad target could otherwise make it rest for everybody. A sign of
life is something that needs no target, and is asked for once at a time, whoever wants to know.
"""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import TypeVar

from proxy.address import Address
from proxy.client import Connected, DirectClient, ProxyClient, TunnelClient, Way
from proxy.errors import DialError, EgressError, Failure, LimitError, ProxyError, UpstreamError
from proxy.health import Health
from proxy.net.deadline import Deadline
from proxy.net.dial import Check
from proxy.net.threads import Task
from proxy.race import Race
from proxy.relaying.channel import Channel
from proxy.settings.listener import ServerConfig, Strategy
from proxy.settings.upstream import UpstreamConfig, UpstreamType

log = logging.getLogger(__name__)

T = TypeVar("T")

PROBE_INTERVAL = 0.5  # seconds between two looks at an upstream that is down
MOST_LOOKS = 2  # at a time
PATIENCE = 3.0  # seconds for a sign of life
JUST_NOW = 1.0  # seconds for which an answer to others is one
LOGIN_REFUSED = (401, 407)  # what a server says that somebody has to mend
FIRST_BACKOFF = 0.1  # seconds, doubling, between attempts at one upstream


class Ways:
    """
    The ways out of a listener: its own, and those that rules lead to. They share their upstreams.

    Raises ``ConfigError`` for a TLS file that is of no use.
    """

    def __init__(self, config: ServerConfig, health: "Mapping[UpstreamConfig, Health] | None" = None) -> None:
        """Take what is known of the upstreams, among all of which there is a choice."""
        known = health or {}
        # Where it can only go out directly, there is nothing to choose, and nobody to look after.
        chosen = [ways for ways in config.all_ways if not _is_direct(ways)]
        used = dict.fromkeys(one for ways in chosen for one in ways)
        self.upstreams: Sequence[Upstream] = [Upstream(one, known.get(one)) for one in used]
        upstreams = dict(zip(used, self.upstreams, strict=True))
        direct = DirectClient(timeout=config.timeout)
        self._ways: dict[tuple[UpstreamConfig, ...], ProxyClient] = dict.fromkeys(config.all_ways, direct)
        for ways in chosen:
            several = [upstreams[one] for one in ways]
            self._ways[ways] = Selector(several, config.strategy, config.timeout)
        self.own = self._ways[config.ways]  # of those for whom no rule names others

    def __getitem__(self, ways: tuple[UpstreamConfig, ...]) -> ProxyClient:
        """The one through these upstreams."""
        return self._ways[ways]

    def begin(self) -> None:
        """Look after the upstreams from now on, as they are in use."""
        for upstream in self.upstreams:
            upstream.begin()

    def retire(self) -> None:
        """Leave the upstreams to others, or to nobody."""
        for upstream in self.upstreams:
            upstream.retire()


def _is_direct(ways: tuple[UpstreamConfig, ...]) -> bool:
    return all(one.is_plain for one in ways)


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
    return DirectClient(config.name, config.timeout, config.egress)


@dataclass(frozen=True)
class Reached:
    """
    What is ready for a request: a connection, or nothing where none is needed.

    ``attempt`` is what is left of the time for reaching it and the request together. A spare has all of it.
    """

    upstream: "Upstream"
    begun: float = 0.0  # by the clock of spares
    channel: Channel | None = None
    attempt: Deadline | None = None

    @property
    def is_spare(self) -> bool:
        """True if it was made before it was needed."""
        return self.channel is not None and self.attempt is None


class Upstream:
    """One upstream, as one configuration has it."""

    def __init__(self, config: UpstreamConfig, health: Health | None = None) -> None:
        self.config = config
        self.name = config.name
        self.client = make_client(config)
        self.health = health or Health(config)
        self._goes_directly = config.type is UpstreamType.DIRECT
        self._asking: Task[int | UpstreamError | None] | None = None
        self._is_probing = False
        if health is None:
            self.begin()

    def begin(self) -> None:
        """Be the one in use."""
        if self.health.keeper is not self and any(hop.files for hop in self.config.hops):
            self.health.spares.drop()  # there may be others in these files now
        self.health.keeper = self
        self.health.spares.begin(self)
        self.probe_if_down()

    def retire(self) -> None:
        """Leave that to others, and look after it no more."""
        if self.health.keeper is self:
            self.health.keeper = None
            self.health.spares.end()

    # -- what comes before a request

    @property
    def head_start(self) -> float:
        """For how many seconds it is waited for before the next one is tried too."""
        return self.health.head_start

    def at_once(self) -> Reached | None:
        """Give what is ready, if there is something."""
        if self._goes_directly:
            return Reached(self)
        channel = self.health.spares.take(self.health.effort)
        return Reached(self, channel=channel) if channel else None

    def reach(self, budget: Deadline, *, last: bool) -> Reached:
        """
        Reach it, with retries and backoff, before the budget is spent.

        Raises ``UpstreamError`` after the last attempt, and ``LimitError``. An attempt that timed out is
        repeated only by the ``last`` upstream: otherwise the others get the time.
        """
        return self._persist(self._reach, budget, budget, last=last)

    def _reach(self, attempt: Deadline) -> Reached:
        started, begun = monotonic(), self.health.spares.clock()
        channel = self.client.reach(attempt)
        self.health.reached(monotonic() - started)
        return Reached(self, begun, channel, attempt)

    def passed_over(self, started: float) -> None:
        """Find out what is the matter, as another one is begun."""
        if self.health.answered_at > started:
            return
        self.health.late_until = monotonic() + PATIENCE
        self._doubt(
            UpstreamError(
                f"upstream {self.name}: not reached within {self.head_start:g} s, and a health check failed",
                Failure.TIMED_OUT,
            ),
            started,
        )

    def left_over(self, reached: Reached) -> None:
        """Take back what nobody needs."""
        if reached.channel:
            self.health.spares.offer(reached.channel, reached.begun)

    def expects(self) -> bool:
        """Tell if what is reached too late becomes a spare."""
        return self.health.spares.expect()

    def came_late(self, reached: Reached | None) -> None:
        """Have a spare more, or not."""
        self.health.spares.arrive(reached.channel if reached else None, reached.begun if reached else 0.0)

    def make_spare(self) -> Channel | None:
        """Reach it for nobody in particular."""
        started = monotonic()
        try:
            return self._reach(Deadline(self.config.timeout)).channel
        except (EgressError, LimitError) as exc:
            log.debug("upstream %s: no spare: %s", self.name, exc)
        except UpstreamError as exc:
            self._doubt(exc, started)
        return None

    # -- the request

    def request(
        self,
        reached: Reached,
        target: Address,
        share: Deadline,
        budget: Deadline,
        check: Check | None = None,
        *,
        last: bool,
    ) -> Connected:
        """
        Connect to a target by what was reached, before ``share`` is over.

        Where it may be asked again, it is, and is reached anew for that. Raises ``UpstreamError`` after the
        last attempt, or ``DialError`` if it is the target that is to blame; where that is unclear, a sign
        of life is waited for within the ``budget``.
        """
        ready = [reached]

        def attempt(deadline: Deadline) -> Connected:
            one = ready.pop() if ready else self._reach(deadline)
            if one.attempt and not self._goes_directly:
                deadline = deadline.within(one.attempt.remaining())
            return self._ask_for(target, one, deadline, check)

        return self._persist(attempt, share, budget, last=last, target=target)

    def _ask_for(
        self, target: Address, reached: Reached, deadline: Deadline, check: Check | None
    ) -> Connected:
        health, channel = self.health, reached.channel
        try:
            with health.spares.asking(channel) if channel and reached.is_spare else nullcontext():
                connected = self.client.request(channel, target, deadline, check)
        except UpstreamError as exc:
            if reached.is_spare and exc.unclear:
                exc.transient = False
            raise
        except DialError:
            self._has_answered()  # it did its work: the target is to blame
            raise
        self._has_answered()
        health.confirms = connected.confirmed
        return connected

    def _has_answered(self) -> None:
        self.health.answered()
        self.health.spares.fill()

    # -- whose fault it was

    def _persist(
        self,
        attempt: Callable[[Deadline], T],
        share: Deadline,
        budget: Deadline,
        *,
        last: bool,
        target: Address | None = None,
    ) -> T:
        """Attempt something, again where that makes sense, and take note of a failure."""
        try:
            return self._try(attempt, share, budget, target, last=last)
        except ProxyError as exc:
            exc.via = self.name
            raise

    def _try(
        self,
        attempt: Callable[[Deadline], T],
        share: Deadline,
        budget: Deadline,
        target: Address | None,
        *,
        last: bool,
    ) -> T:
        retries = 0 if self.health.failures else self.config.retry_count
        started = monotonic()
        for number in count():
            is_cut = share.remaining() < self.config.timeout
            try:
                # Directly, the time that an attempt may take is the target's, not an upstream's.
                return attempt(share if self._goes_directly else share.within(self.config.timeout))
            except UpstreamError as exc:
                again = exc.transient and (last or exc.failure is not Failure.TIMED_OUT)
                pause = FIRST_BACKOFF * 2**number * random.uniform(0.5, 1.5)
                if not again or number >= retries or pause >= share.remaining():
                    self._judge(exc, target, started, budget, is_cut=is_cut)
                    raise
                log.debug("%s; trying again", exc)
                share.pause(pause)
        raise AssertionError("unreachable")

    def _judge(
        self, exc: UpstreamError, target: Address | None, started: float, budget: Deadline, *, is_cut: bool
    ) -> None:
        """Take note of a failure that is the upstream's; raises ``DialError`` for one that is not."""
        if exc.well:
            if isinstance(exc, EgressError):
                log.warning("%s", exc, extra={"collapse": (self.name, exc)})
            self.health.declined(exc)
        elif exc.unclear:
            verdict = Task(lambda: self._is_well(exc, started)).wait(budget.remaining())
            if verdict is not False:
                failure = Failure.GENERAL if exc.failure is Failure.UPSTREAM else exc.failure
                raise DialError(f"{target} through {exc}", failure) from exc
        elif is_cut and exc.failure is Failure.TIMED_OUT:
            self._doubt(exc, started)
        else:
            self._failed(exc, started)

    def _doubt(self, exc: UpstreamError, started: float) -> None:
        """Find out whether it is well in spite of an error, but wait for nothing."""
        Task(lambda: self._is_well(exc, started))

    def _is_well(self, exc: UpstreamError, started: float) -> bool:
        """Tell by a sign of life whether it is well in spite of an error, and take note of it."""
        if self.health.failed_since(started):
            return False
        if not exc.status and self.health.answered_at > max(started, monotonic() - JUST_NOW):
            return True
        life = self._sign_of_life()
        if life is None:
            return True  # we are short of something ourselves, and nothing is known
        if isinstance(life, UpstreamError) or is_same(life, exc.status):
            self._failed(exc, started)
            return False
        self.health.answered()
        return True

    def is_silent(self) -> bool:
        """Ask for a sign of life, and take note if there is none."""
        started, life = monotonic(), self._sign_of_life()
        if not isinstance(life, UpstreamError):
            return False
        self._failed(life, started)
        return True

    def _sign_of_life(self) -> int | UpstreamError | None:
        """Ask for one: the status that it answers, why there is none, or None if it could not be asked."""
        # One at a time, whoever wants to know.
        if self._asking is None:
            self._asking = Task(self._ask)
        return self._asking.wait()

    def _ask(self) -> int | UpstreamError | None:
        try:
            return self._look()
        finally:
            self._asking = None

    def _look(self) -> int | UpstreamError | None:
        try:
            life: int | UpstreamError = self.client.sign_of_life(Deadline(min(PATIENCE, self.config.timeout)))
        except (EgressError, LimitError):
            return None
        except UpstreamError as exc:
            log.debug("%s: the health check failed", exc)
            life = exc
        is_odd = isinstance(life, UpstreamError) and life.unclear and life.failure is not Failure.TIMED_OUT
        self.health.answers = is_odd or (isinstance(life, int) and life not in LOGIN_REFUSED)
        return life

    def _failed(self, exc: UpstreamError, started: float) -> None:
        self.health.failed(exc, started)
        if self.health.keeper:
            self.health.keeper.probe_if_down()

    # -- while it is down

    def look_if_due(self, now: float) -> None:
        """Ask whether it is mended, if it is time for that and nobody else does."""
        health = self.health
        is_over = health.failures and now >= health.cooldown_until
        if is_over and not (health.may_return or health.answers or self._asking):
            Task(self._look_again)

    def _look_again(self) -> None:
        started = monotonic()
        life = self._sign_of_life()
        if isinstance(life, UpstreamError):
            self._failed(life, started)
        elif life in LOGIN_REFUSED:
            self._failed(UpstreamError(self.health.problem, transient=False, status=life), started)
        else:
            self._note_return(life)

    def _note_return(self, life: int | UpstreamError | None) -> None:
        health = self.health
        if health.failures and isinstance(life, int) and life < 500 and not is_same(life, health.status):
            health.answered()

    def probe_if_down(self) -> None:
        """Ask for signs of life until there is one, if it may return by itself."""
        if self.health.may_return and not self._is_probing:
            self._is_probing = True
            Task(self._probe)

    def _probe(self) -> None:
        """Find out when it is back, though nobody needs it meanwhile."""
        health, pace = self.health, Deadline(PROBE_INTERVAL)
        looks: list[Task[None]] = []
        while health.may_return and health.keeper is self:
            pace.pause(PROBE_INTERVAL)
            pace = Deadline(PROBE_INTERVAL)
            # What vanished on the way is not waited for: another one is sent behind it.
            looks = [each for each in looks if each.is_running]
            if len(looks) < MOST_LOOKS:
                looks.append(Task(lambda: self._note_return(self._look())))
        self._is_probing = False


def is_same(one: int, other: int) -> bool:
    """Tell whether two statuses say the same of a server, with a target and without."""
    # 501 is said of the method alone, by a server that is well: so Squid answers to OPTIONS *.
    return one == other or (min(one, other) >= 500 and 501 not in (one, other))


class Selector(ProxyClient):
    """Connects through the first of several upstreams that can."""

    def __init__(self, upstreams: Sequence[Upstream], strategy: Strategy, timeout: float) -> None:
        super().__init__(", ".join(upstream.name for upstream in upstreams), timeout)
        self.upstreams = upstreams
        self._strategy = strategy
        self._turn = count()

    def dial(self, target: Address, deadline: Deadline, check: Check | None = None) -> Connected:
        """Connect; raises ``DialError`` for the target's fault, and ``UpstreamError`` when all failed."""
        order = self._order()
        race: Race[Reached] = Race(order, deadline)
        now = monotonic()
        tried = [one.health for one in order if one.health.failures and one.health.is_due(now)]
        for health in tried:
            health.is_tried = True
        try:
            while reached := race.next():
                # Each upstream may use what is left, but for a fair share of those after it.
                share = deadline.within(deadline.remaining() / (race.left + 1))
                try:
                    return reached.upstream.request(
                        reached, target, share, deadline, check, last=not race.left
                    )
                except UpstreamError as exc:
                    race.errors.append(exc)
        finally:
            race.end()
            for health in tried:
                health.is_tried = False
        names = [each.name for each in order]
        errors = sorted(race.errors, key=lambda exc: names.index(exc.via))
        raise UpstreamError("; ".join(map(str, errors)), errors[0].failure) from errors[0]

    def _order(self) -> list[Upstream]:
        order = list(self.upstreams)
        if self._strategy is Strategy.RANDOM:
            random.shuffle(order)
        elif self._strategy is Strategy.ROUND_ROBIN:
            first = next(self._turn) % len(order)
            order = order[first:] + order[:first]
        now = monotonic()
        for upstream in order[1:] and order:
            upstream.look_if_due(now)
        # The sort is stable: those that are well keep their order.
        return sorted(order, key=lambda upstream: upstream.health.place(now))
