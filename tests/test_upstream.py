"""
Choosing among upstreams, under a clock that only the tests move, and with upstreams that they script.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import gevent
import pytest
from gevent.event import Event

from proxy import health as health_module
from proxy import race as race_module
from proxy import upstream as module
from proxy.address import Address
from proxy.client import Connected, DirectClient, Way
from proxy.errors import DialError, EgressError, Failure, LimitError, UpstreamError
from proxy.health import Health
from proxy.net import deadline as deadline_module
from proxy.net.deadline import Deadline
from proxy.net.dial import Check
from proxy.settings.egress import Family
from proxy.settings.listener import ServerConfig, Strategy
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from proxy.upstream import Selector, Upstream, Ways
from tests.wire.greenlets import patience, until

TARGET = Address("target.example", 443)
BUDGET = 30.0  # seconds


class Clock:
    """The time, in seconds; nothing else moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, deadline: Deadline, seconds: float) -> None:
        """Stand in for ``Deadline.pause``."""
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Take the time from the test, and let nothing sleep."""
    made = Clock()
    for each in (module, health_module, race_module):
        monkeypatch.setattr(each, "monotonic", made)
    monkeypatch.setattr(deadline_module, "monotonic", made)
    monkeypatch.setattr(Deadline, "pause", lambda deadline, seconds: made.pause(deadline, seconds))
    monkeypatch.setattr(Upstream, "_probe", lambda upstream: None)  # it would have no end without time
    return made


Outcome = BaseException | Callable[["Client", Deadline], object] | None


class FakeChannel:
    """A connection on which a request is going to have the outcome that the script says."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.is_left = False

    def leave(self) -> None:
        """Be closed, as nobody needs it."""
        self.is_left = True


class Client(Way):
    """
    An upstream that does, attempt after attempt, what its script says, and then always the last.

    What fails before there is a request is an ``UpstreamError`` that leaves nothing unclear, and what is
    marked with ``before_the_request``. Everything else happens when the request is made.
    """

    def __init__(self, name: str, *script: Outcome) -> None:
        super().__init__(name, 10.0)
        self.script: Iterator[Outcome] = iter(())
        self.then(*script or (None,))
        self.budgets: list[float] = []
        self.requests = 0
        self.life: int | None = None  # the status that it gives as a sign of life, if it gives one
        self.why_not = UpstreamError(f"upstream {name}: timed out", Failure.TIMED_OUT)
        self.asked = 0
        self.is_short = False  # of descriptors, when it is to ask
        self.may_answer = Event()
        self.may_answer.set()

    def then(self, *script: Outcome) -> None:
        """Go on with another script."""
        self.script = iter(script)
        self._last = script[-1]

    @property
    def attempts(self) -> int:
        """How often it was tried."""
        return len(self.budgets)

    def reach(self, deadline: Deadline) -> Any:
        """Fail, or give a connection."""
        self.budgets.append(round(deadline.remaining(), 3))
        outcome = next(self.script, self._last)
        if isinstance(outcome, UpstreamError) and not (outcome.unclear or outcome.well):
            raise outcome
        if callable(outcome) and hasattr(outcome, "is_before_the_request"):
            outcome(self, deadline)
            outcome = None
        return FakeChannel(outcome)

    def request(
        self, channel: Any, target: Address, deadline: Deadline, check: Check | None = None
    ) -> Connected:
        """Do what comes next."""
        assert target == TARGET
        self.requests += 1
        self.budgets[-1] = round(deadline.remaining(), 3)
        if isinstance(channel.outcome, BaseException):
            raise channel.outcome
        if channel.outcome:
            channel.outcome(self, deadline)
        return Connected(None, TARGET, self.name)  # type: ignore[arg-type]

    def sign_of_life(self, deadline: Deadline) -> int:
        """Give one, or none."""
        self.asked += 1
        self.may_answer.wait()
        if self.is_short:
            raise LimitError("10.0.0.1:1080: Too many open files")
        if self.life is None:
            raise self.why_not
        return self.life


def before_the_request(outcome: Callable[[Client, Deadline], None]) -> Callable[[Client, Deadline], None]:
    """Let it happen while the upstream is reached."""
    outcome.is_before_the_request = True  # type: ignore[attr-defined]
    return outcome


def broken(name: str = "x", *, transient: bool = True) -> UpstreamError:
    """Make the error of an upstream that fails at once."""
    return UpstreamError(f"upstream {name}: broken", transient=transient)


def silent(name: str = "a") -> UpstreamError:
    """Make the error of an upstream that says nothing once it has been asked for a target."""
    return UpstreamError(f"upstream {name}: timed out", Failure.TIMED_OUT, transient=False, unclear=True)


def answered(status: int, name: str = "a") -> UpstreamError:
    """Make the error of an upstream that answers with a status, and does not say what it is about."""
    return UpstreamError(f"upstream {name}: answered {status}", transient=False, unclear=True, status=status)


def says_nothing(client: Client, deadline: Deadline) -> None:
    """Take all the time there is, when there has been a request."""
    deadline_module.monotonic.now += deadline.remaining()  # type: ignore[attr-defined]
    raise silent(client.name)


@before_the_request
def stalls(client: Client, deadline: Deadline) -> None:
    """Take all the time there is."""
    deadline_module.monotonic.now += deadline.remaining()  # type: ignore[attr-defined]
    raise UpstreamError(f"upstream {client.name}: timed out", Failure.TIMED_OUT)


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> dict[str, Client]:
    """Put scripted clients in the place of real ones; a test adds them by name."""
    made: dict[str, Client] = {}
    monkeypatch.setattr(module, "make_client", lambda config: made[config.name])
    return made


def select(
    clients: dict[str, Client],
    *names: str,
    strategy: Strategy = Strategy.FAILOVER,
    retry_count: int = 0,
    timeout: float = 100.0,
) -> Selector:
    """Make a selector of scripted upstreams; those that are not there yet always succeed."""
    for name in names:
        clients.setdefault(name, Client(name))
    settings: dict[str, Any] = {"retry_count": retry_count, "timeout": timeout, "spare": 0}
    configs = [UpstreamConfig(name, UpstreamType.SOCKS5, "127.0.0.1:1", **settings) for name in names]
    return Selector([Upstream(config) for config in configs], strategy, BUDGET)


def way_taken(selector: Selector) -> str:
    """Connect, and tell by which upstream."""
    return selector.dial(TARGET, Deadline(BUDGET)).via


pytestmark = pytest.mark.usefixtures("clock")


# -- the order


def test_failover_prefers_the_first(clients: dict[str, Client]) -> None:
    selector = select(clients, "a", "b")
    assert [way_taken(selector) for _ in range(3)] == ["a", "a", "a"]
    assert clients["b"].attempts == 0


def test_the_next_is_asked_when_one_fails(clients: dict[str, Client]) -> None:
    clients["a"] = Client("a", broken())
    clients["b"] = Client("b", broken())
    assert way_taken(select(clients, "a", "b", "c")) == "c"


def test_round_robin_takes_them_in_turn(clients: dict[str, Client]) -> None:
    selector = select(clients, "a", "b", "c", strategy=Strategy.ROUND_ROBIN)
    assert [way_taken(selector) for _ in range(7)] == list("abcabca")


def test_round_robin_skips_what_is_down(clients: dict[str, Client]) -> None:
    clients["b"] = Client("b", broken())
    selector = select(clients, "a", "b", "c", strategy=Strategy.ROUND_ROBIN)
    assert [way_taken(selector) for _ in range(6)] == ["a", "c", "c", "a", "c", "c"]
    assert clients["b"].attempts == 1


def test_random_takes_each_about_as_often(
    clients: dict[str, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "random", random.Random(1))
    selector = select(clients, "a", "b", "c", strategy=Strategy.RANDOM)
    taken = Counter(way_taken(selector) for _ in range(300))
    assert set(taken) == {"a", "b", "c"}
    assert min(taken.values()) > 60


def test_random_goes_on_to_another_when_one_fails(clients: dict[str, Client]) -> None:
    clients["a"] = Client("a", broken())
    selector = select(clients, "a", "b", strategy=Strategy.RANDOM)
    assert {way_taken(selector) for _ in range(20)} == {"b"}


# -- resting


def look(selector: Selector, name: str) -> None:
    """Ask one that may return for a sign of life, as is done every half second."""
    (upstream,) = (each for each in selector.upstreams if each.name == name)
    assert upstream.health.may_return
    upstream._note_return(upstream._look())


def test_one_that_failed_is_left_alone_until_it_gives_a_sign_of_life(
    clients: dict[str, Client], clock: Clock
) -> None:
    clients["a"] = Client("a", broken(), None)
    selector = select(clients, "a", "b")
    assert way_taken(selector) == "b"
    clock.now += 3600
    look(selector, "a")
    assert way_taken(selector) == "b"
    clients["a"].life = 200
    look(selector, "a")
    assert way_taken(selector) == "a"
    assert clients["a"].attempts == 2


def test_the_rest_doubles_with_each_failure_up_to_a_minute(clients: dict[str, Client], clock: Clock) -> None:
    clients["a"] = Client("a", broken())
    selector = select(clients, "a")
    for rest in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        clock.now += 0.5  # failures at one time are one
        with pytest.raises(UpstreamError):
            way_taken(selector)
        assert selector.upstreams[0].health.cooldown_until == clock.now + rest


def test_a_success_forgets_the_failures(clients: dict[str, Client], clock: Clock) -> None:
    clients["a"] = Client("a", broken(), broken(), None, broken())
    selector = select(clients, "a")
    seen = []
    for _ in range(4):
        clock.now += 1
        with suppress(UpstreamError):
            way_taken(selector)
        seen.append(selector.upstreams[0].health.failures)
    assert seen == [1, 2, 0, 1]


def test_a_resting_one_is_tried_all_the_same_when_nothing_else_is_left(clients: dict[str, Client]) -> None:
    """CASES F175: the first connection after its return succeeds."""
    clients["a"] = Client("a", broken(), None)
    clients["b"] = Client("b", None, broken())
    selector = select(clients, "a", "b")
    assert way_taken(selector) == "b"
    assert way_taken(selector) == "a"  # b fails, and no time has passed


def test_the_only_upstream_is_tried_however_often_it_has_failed(clients: dict[str, Client]) -> None:
    """CASES F175: also when two to the power of that is no float any more."""
    clients["a"] = Client("a", *[broken()] * 1100, None)
    selector = select(clients, "a")
    for _ in range(1100):
        with pytest.raises(UpstreamError):
            way_taken(selector)
    assert way_taken(selector) == "a"


def test_of_those_that_rest_the_one_whose_rest_ends_first_is_tried_first(
    clients: dict[str, Client], clock: Clock
) -> None:
    selector = select(clients, "a", "b")
    a, b = (each.health for each in selector.upstreams)
    for health in (a, b, a):
        clock.now += 1
        health.failed(broken(), clock.now)
    assert way_taken(selector) == "b"  # a has failed a second time, and rests for longer
    assert clients["a"].attempts == 0


def gateway_error(name: str = "a") -> UpstreamError:
    """Make the error of one that answers every request like this, also one without a target."""
    return answered(502, name)


def test_one_that_answers_is_tried_by_one_client_when_its_rest_is_over(
    clients: dict[str, Client], clock: Clock
) -> None:
    """What it says without a target is what it says to everybody, so it is no sign of life; but quick."""
    taken_meanwhile: list[str] = []

    def slow(client: Client, deadline: Deadline) -> None:
        taken_meanwhile.extend(way_taken(selector) for _ in range(3))

    clients["a"] = Client("a", gateway_error(), slow, None)
    clients["a"].life = 502
    selector = select(clients, "a", "b")
    assert way_taken(selector) == "b"
    clock.now += 0.9
    assert way_taken(selector) == "b"
    assert clients["a"].attempts == 1
    clock.now += 0.2
    assert way_taken(selector) == "a"
    assert taken_meanwhile == ["b", "b", "b"]
    assert way_taken(selector) == "a"


def test_one_that_answers_nothing_is_tried_by_no_client(clients: dict[str, Client], clock: Clock) -> None:
    """DESIGN 1.12: not at the expense of a client, however long its rest is over."""
    clients["a"] = Client("a", silent())
    selector = select(clients, "a", "b")
    assert way_taken(selector) == "b"
    clock.now += 3600
    assert way_taken(selector) == "b"
    assert clients["a"].attempts == 1


def has_failed(health: Health, times: int) -> bool:
    """Tell whether it has failed so many times in a row."""
    return health.failures == times


@pytest.mark.parametrize("is_told_by_a_status", [False, True])
def test_what_somebody_has_to_mend_is_asked_about_when_its_rest_is_over_and_somebody_comes(
    clients: dict[str, Client], clock: Clock, is_told_by_a_status: bool
) -> None:
    """DESIGN 1.12: in the background. Each question is a failed login there, so they become rare."""
    refused = UpstreamError("upstream a: refused our credentials", transient=False)
    if is_told_by_a_status:
        refused.status = clients.setdefault("a", Client("a", refused, None)).life = 401
    clients.setdefault("a", Client("a", refused, None)).why_not = refused
    selector = select(clients, "a", "b")
    health = selector.upstreams[0].health
    for failures in (1, 2, 3):
        assert way_taken(selector) == "b"
        with patience():
            until(partial(has_failed, health, failures))
        assert way_taken(selector) == "b"  # it rests, so nobody asks
        gevent.idle()
        assert (clients["a"].asked, clients["a"].attempts) == (failures - 1, 1)
        clock.now = health.cooldown_until
    clients["a"].life = 400
    assert way_taken(selector) == "b"
    until(lambda: not health.failures)
    assert way_taken(selector) == "a"


def test_one_that_answers_others_is_not_put_to_rest_by_one_slow_target(
    clients: dict[str, Client], clock: Clock
) -> None:
    def slow_while_others_succeed(client: Client, deadline: Deadline) -> None:
        client.then(None)
        clock.now += 1
        assert way_taken(selector) == "a"
        raise UpstreamError("upstream a: timed out", Failure.TIMED_OUT)

    clients["a"] = Client("a", slow_while_others_succeed)
    selector = select(clients, "a", "b")
    assert way_taken(selector) == "b"
    assert way_taken(selector) == "a"


# -- whose fault


def refused_by(selector: Selector) -> DialError:
    """Connect, and give the error that must come of it."""
    with pytest.raises(DialError) as raised:
        way_taken(selector)
    return raised.value


def is_up(selector: Selector, name: str) -> bool:
    """Tell whether an upstream is neither blamed for anything nor rests."""
    health = next(one.health for one in selector.upstreams if one.name == name)
    return not health.failures and not health.cooldown_until


def test_a_target_that_does_not_answer_is_not_the_upstreams_fault(clients: dict[str, Client]) -> None:
    """CASES 300: told as what it is, asked for once, and nobody is sent another way."""
    clients["a"] = Client("a", silent())
    clients["a"].life = 400
    selector = select(clients, "a", "b", retry_count=3)
    for attempts in (1, 2, 3):
        error = refused_by(selector)
        assert not isinstance(error, UpstreamError)
        assert error.failure is Failure.TIMED_OUT
        assert str(TARGET) in str(error)
        assert clients["a"].attempts == attempts
    assert is_up(selector, "a")
    assert clients["b"].attempts == 0


def test_one_that_is_silent_itself_rests_and_the_next_is_asked(clients: dict[str, Client]) -> None:
    """CASES 300: the counter-example."""
    clients["a"] = Client("a", silent())
    selector = select(clients, "a", "b", retry_count=3)
    assert [way_taken(selector), way_taken(selector)] == ["b", "b"]
    assert clients["a"].attempts == 1
    assert selector.upstreams[0].health.failures == 1


def test_those_in_doubt_at_the_same_time_share_one_sign_of_life(clients: dict[str, Client]) -> None:
    """CASES 300: a thousand clients of a silent target are not a thousand questions."""
    clients["a"] = Client("a", silent())
    clients["a"].life = 400
    selector = select(clients, "a")
    with gevent.Timeout(10):
        trying = [gevent.spawn(refused_by, selector) for _ in range(50)]
        errors = [one.get() for one in gevent.joinall(trying)]
    assert not any(isinstance(error, UpstreamError) for error in errors)
    assert clients["a"].asked == 1


def test_nobody_is_blamed_when_there_is_no_time_left_to_ask(clients: dict[str, Client], clock: Clock) -> None:
    """CASES 300: our own impatience is nobody's death; who was silent is found out without the client."""

    def all_the_time(client: Client, deadline: Deadline) -> None:
        clock.now += BUDGET
        raise silent()

    clients["a"] = Client("a", all_the_time)
    clients["a"].may_answer.clear()
    selector = select(clients, "a")
    error = refused_by(selector)
    assert not isinstance(error, UpstreamError)
    assert error.failure is Failure.TIMED_OUT
    clients["a"].may_answer.set()
    with gevent.Timeout(10):
        until(lambda: selector.upstreams[0].health.failures)
    assert clients["a"].asked == 1


@pytest.mark.parametrize(("life", "is_dead"), [(400, False), (None, True)])
def test_a_share_that_is_too_short_is_no_proof(
    clients: dict[str, Client], clock: Clock, life: int | None, is_dead: bool
) -> None:
    """CASES 300: it may take 100 s and got 15, so it is asked; the next one does not wait for that."""
    clients["a"] = Client("a", stalls)
    clients["a"].life = life
    selector = select(clients, "a", "b")
    assert way_taken(selector) == "b"
    health = selector.upstreams[0].health
    assert not health.failures
    with gevent.Timeout(10):
        until(lambda: clients["a"].asked and not selector.upstreams[0]._asking)
        gevent.sleep(0)
    assert bool(health.failures) == is_dead


def test_a_client_that_leaves_is_no_upstreams_death(clients: dict[str, Client], clock: Clock) -> None:
    """CASES 300: not even of one that was down, and that this client tried."""

    class LeftError(BaseException):
        """As what ends a greenlet."""

    clients["a"] = Client("a", gateway_error(), LeftError(), None)
    clients["a"].life = 502
    selector = select(clients, "a", "b")
    assert way_taken(selector) == "b"
    clock.now += 1
    with pytest.raises(LeftError):
        way_taken(selector)
    assert way_taken(selector) == "a"


def test_a_question_that_we_cannot_ask_proves_nothing(clients: dict[str, Client]) -> None:
    """Case 340: neither that it lives nor that it does not."""
    clients["a"] = Client("a", broken(), silent())
    clients["a"].is_short = True
    selector = select(clients, "a")
    refused_by(selector)
    assert not isinstance(refused_by(selector), UpstreamError)
    health = selector.upstreams[0].health
    assert (health.failures, health.answered_at) == (1, 0.0)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 403, 404])
def test_a_bare_status_that_one_target_gets_is_about_that_target(
    clients: dict[str, Client], status: int
) -> None:
    """CASES 371: without a target it answers otherwise, so it is well, and nobody else is asked."""
    clients["a"] = Client("a", answered(status))
    clients["a"].life = 400
    selector = select(clients, "a", "b", retry_count=3)
    for attempts in range(1, 6):
        assert not isinstance(refused_by(selector), UpstreamError)
        assert clients["a"].attempts == attempts
    assert is_up(selector, "a")
    assert clients["b"].attempts == 0


@pytest.mark.parametrize(("status", "life"), [(502, 502), (503, 503), (502, 504), (404, 404), (200, 200)])
def test_a_status_that_every_request_gets_is_the_upstreams_fault(
    clients: dict[str, Client], status: int, life: int
) -> None:
    """CASES 371, the counter-example: a gateway whose far end is down, or a path that leads nowhere."""
    clients["a"] = Client("a", answered(status))
    clients["a"].life = life
    selector = select(clients, "a", "b")
    assert [way_taken(selector), way_taken(selector)] == ["b", "b"]
    assert clients["a"].attempts == 1


def test_one_that_has_no_place_left_does_not_rest_and_the_next_is_asked(clients: dict[str, Client]) -> None:
    """CASES 371: it is well, and has room for the next one perhaps."""
    full = UpstreamError("upstream a: connection limit reached", Failure.LIMIT, well=True)
    clients["a"] = Client("a", full, None)
    selector = select(clients, "a", "b")
    assert way_taken(selector) == "b"
    assert is_up(selector, "a")
    assert way_taken(selector) == "a"


def test_the_targets_fault_is_passed_on_and_no_other_way_is_tried(clients: dict[str, Client]) -> None:
    """CASES F174: the answer would be the same."""
    refused = DialError("target.example:443: connection refused", Failure.REFUSED)
    clients["a"] = Client("a", refused)
    selector = select(clients, "a", "b", retry_count=3)
    for attempt in (1, 2):
        with pytest.raises(DialError) as raised:
            way_taken(selector)
        assert raised.value is refused
        assert refused.via == "a"  # case 358: for the access log
        assert clients["a"].attempts == attempt
    assert clients["b"].attempts == 0


def test_an_upstream_that_reports_the_targets_fault_is_well(clients: dict[str, Client], clock: Clock) -> None:
    clients["a"] = Client("a", gateway_error(), DialError("no", Failure.REFUSED), None)
    clients["a"].life = 502
    selector = select(clients, "a", "b")
    way_taken(selector)
    clock.now += 1
    with pytest.raises(DialError):
        way_taken(selector)
    assert way_taken(selector) == "a"


def test_when_all_fail_all_reasons_are_told(clients: dict[str, Client]) -> None:
    clients["a"] = Client("a", UpstreamError("upstream a: timed out", Failure.TIMED_OUT))
    clients["b"] = Client("b", broken("b"))
    with pytest.raises(UpstreamError, match=r"upstream a: timed out; upstream b: broken") as raised:
        way_taken(select(clients, "a", "b"))
    assert raised.value.failure is Failure.TIMED_OUT


def test_nothing_goes_out_directly_unless_it_is_listed(
    clients: dict[str, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectClient, "dial", lambda *_: pytest.fail("it went out directly"))
    clients["a"] = Client("a", broken())
    clients["b"] = Client("b", broken())
    selector = select(clients, "a", "b")
    for _ in range(5):
        with pytest.raises(UpstreamError):
            way_taken(selector)


# -- retries and time


def test_a_fault_is_tried_again_as_often_as_configured(clients: dict[str, Client], clock: Clock) -> None:
    """CASES F172: N + 1 attempts, with growing pauses that differ by chance."""
    clients["a"] = Client("a", broken())
    with pytest.raises(UpstreamError):
        way_taken(select(clients, "a", retry_count=3))
    assert clients["a"].attempts == 4
    for pause, middle in zip(clock.pauses, (0.1, 0.2, 0.4), strict=True):
        assert middle / 2 <= pause <= middle * 1.5


def test_a_retry_that_succeeds_leaves_no_rest(clients: dict[str, Client]) -> None:
    clients["a"] = Client("a", broken(), None)
    selector = select(clients, "a", "b", retry_count=2)
    assert [way_taken(selector), way_taken(selector)] == ["a", "a"]


def test_refused_credentials_are_not_tried_again(clients: dict[str, Client]) -> None:
    """CASES F160, F174."""
    clients["a"] = Client("a", broken(transient=False))
    assert way_taken(select(clients, "a", "b", retry_count=5)) == "b"
    assert clients["a"].attempts == 1


def test_a_timeout_is_not_tried_again_while_another_waits(clients: dict[str, Client]) -> None:
    clients["a"] = Client("a", stalls)
    assert way_taken(select(clients, "a", "b", retry_count=5, timeout=3)) == "b"
    assert clients["a"].attempts == 1


def test_a_timeout_of_the_last_one_is_tried_again(clients: dict[str, Client]) -> None:
    clients["a"] = Client("a", stalls, None)
    assert way_taken(select(clients, "a", retry_count=5, timeout=3)) == "a"


def test_what_is_known_to_be_down_gets_one_attempt(clients: dict[str, Client]) -> None:
    clients["a"] = Client("a", broken())
    selector = select(clients, "a", retry_count=2)
    for attempts in (3, 4, 5):
        with pytest.raises(UpstreamError):
            way_taken(selector)
        assert clients["a"].attempts == attempts


def test_retries_stay_within_the_budget(clients: dict[str, Client], clock: Clock) -> None:
    clients["a"] = Client("a", broken())
    started = clock.now
    with pytest.raises(UpstreamError):
        way_taken(select(clients, "a", retry_count=1000))
    assert clock.now - started <= BUDGET
    assert clients["a"].attempts < 12


def test_each_gets_a_fair_share_of_the_time(clients: dict[str, Client], clock: Clock) -> None:
    for name in "abc":
        clients[name] = Client(name, says_nothing)
    started = clock.now
    with pytest.raises(DialError):
        way_taken(select(clients, "a", "b", "c"))
    assert [clients[name].budgets for name in "abc"] == [[10.0], [10.0], [10.0]]
    assert clock.now - started == BUDGET


def test_what_a_fast_failure_leaves_goes_to_the_others(clients: dict[str, Client]) -> None:
    clients["a"] = Client("a", broken())
    clients["b"] = Client("b", says_nothing)
    assert way_taken(select(clients, "a", "b", "c")) == "c"
    assert clients["b"].budgets == [15.0]
    assert clients["c"].budgets == [15.0]


def test_one_attempt_takes_no_longer_than_its_own_timeout(clients: dict[str, Client]) -> None:
    clients["a"] = Client("a", stalls)
    assert way_taken(select(clients, "a", "b", timeout=2)) == "b"
    assert clients["a"].budgets == [2.0]


# -- what a configuration makes

SERVER: dict[str, Any] = {"listen_addr": "127.0.0.1:0", "protocol": Protocol.SOCKS5}
HOME = UpstreamConfig("home", UpstreamType.SOCKS5, "127.0.0.1:1080")


def test_without_upstreams_it_goes_out_directly() -> None:
    assert isinstance(Ways(ServerConfig(**SERVER)).own, DirectClient)


def test_with_upstreams_switched_off_it_goes_out_directly() -> None:
    config = ServerConfig(**SERVER, upstream_config=(HOME,), enable_upstream=False)
    assert isinstance(Ways(config).own, DirectClient)


def test_upstreams_are_in_the_order_of_the_configuration() -> None:
    direct = UpstreamConfig("direct", UpstreamType.DIRECT)
    selector = Ways(ServerConfig(**SERVER, upstream_config=(HOME, direct))).own
    assert isinstance(selector, Selector)
    assert [upstream.name for upstream in selector.upstreams] == ["home", "direct"]
    assert isinstance(selector.upstreams[1].client, DirectClient)


@pytest.mark.parametrize(
    "manner", [{"source": "127.0.0.2"}, {"interface": "lo"}, {"family": Family.IPV4_ONLY}]
)
def test_a_direct_one_that_says_how_it_leaves_is_an_upstream_of_its_own(manner: dict[str, Any]) -> None:
    line = UpstreamConfig("line", UpstreamType.DIRECT, **manner)
    way = Ways(ServerConfig(**SERVER, upstream_config=(line,))).own
    assert isinstance(way, Selector)
    plain = UpstreamConfig("line", UpstreamType.DIRECT)
    assert isinstance(Ways(ServerConfig(**SERVER, upstream_config=(plain,))).own, DirectClient)


# A shortage of our own


def cannot_leave(client: Client, deadline: Deadline) -> None:
    """Lack the address that it is to be reached from."""
    raise EgressError(f"upstream {client.name}: source 192.0.2.7: this machine does not have this address")


@pytest.mark.parametrize("when", ["before the request", "by the request"])
def test_who_cannot_be_left_for_does_not_rest_and_the_next_one_is_asked(
    clients: dict[str, Client], clock: Clock, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """DESIGN 1.3: it is our own matter. And it is told to the operator, with the setting."""
    if when == "before the request":
        clients["a"] = Client("a", EgressError("upstream a: source 192.0.2.7: not here"))
    else:
        clients["a"] = Client("a", cannot_leave)
    selector = select(clients, "a", "b", retry_count=5)
    assert [way_taken(selector), way_taken(selector)] == ["b", "b"]
    assert clients["a"].attempts == 2
    assert is_up(selector, "a")
    assert "upstream a: source 192.0.2.7: " in caplog.text
    clients["a"].then(None)
    assert way_taken(selector) == "a"


def test_a_sign_of_life_that_cannot_be_asked_for_blames_nobody(
    clients: dict[str, Client], clock: Clock
) -> None:
    clients["a"] = Client("a")
    clients["a"].why_not = EgressError("upstream a: interface eth1: there is no such interface")
    selector = select(clients, "a", "b")
    selector.upstreams[0].passed_over(clock.now)
    until(lambda: clients["a"].asked and not selector.upstreams[0]._asking)
    gevent.idle()
    assert is_up(selector, "a")
    assert selector.upstreams[0].is_silent() is False


def short(client: Client, deadline: Deadline) -> None:
    """Have no descriptor left to reach it with."""
    raise LimitError("10.0.0.1:1080: Too many open files")


def test_a_shortage_of_our_own_is_no_upstreams_fault(clock: Clock, clients: dict[str, Client]) -> None:
    """Case 340: it does not rest, is not tried again, and nobody is sent another way."""
    clients["home"] = Client("home", short)
    selector = select(clients, "home", "backup", retry_count=5)
    for _ in range(3):
        with pytest.raises(LimitError):
            selector.dial(TARGET, Deadline(BUDGET))
    assert clients["home"].attempts == 3
    assert clients["backup"].attempts == 0
    assert not clock.pauses
    clients["home"].then(None)
    assert way_taken(selector) == "home"


def test_one_that_failed_before_is_neither_back_nor_put_off_by_a_shortage(
    clock: Clock, clients: dict[str, Client]
) -> None:
    clients["home"] = Client("home", broken("home"), short, None)
    selector = select(clients, "home")
    with pytest.raises(UpstreamError):
        selector.dial(TARGET, Deadline(BUDGET))
    (home,) = selector.upstreams
    failures, cooldown_until = home.health.failures, home.health.cooldown_until
    with pytest.raises(LimitError):
        selector.dial(TARGET, Deadline(BUDGET))
    assert (home.health.failures, home.health.cooldown_until) == (failures, cooldown_until)


# -- the head start


@pytest.mark.parametrize(
    ("efforts", "head_start"),
    [
        ([], 0.75),  # nothing is known yet
        ([0.001], 0.25),  # near: as for two addresses of one name (RFC 8305, section 5)
        ([0.15], 0.45),  # 50 ms there and back, three times for TLS 1.3
        ([2.0], 1.0),  # far
        ([0.1, 0.2], 0.375),  # a quarter of each new measurement
    ],
)
def test_the_head_start_is_three_times_what_it_usually_takes_within_bounds(
    efforts: list[float], head_start: float
) -> None:
    """DESIGN 1.12."""
    health = Health(HOME)
    for effort in efforts:
        health.reached(effort)
    assert health.head_start == pytest.approx(head_start)


def test_one_that_is_late_comes_behind_those_that_are_well_until_that_is_settled(
    clients: dict[str, Client], clock: Clock
) -> None:
    """So it costs the clients that follow nothing at all."""
    clients["a"] = Client("a")
    clients["a"].may_answer.clear()
    selector = select(clients, "a", "b")
    selector.upstreams[0].passed_over(clock.now)
    assert [way_taken(selector), way_taken(selector)] == ["b", "b"]
    clients["a"].life = 200
    clients["a"].may_answer.set()
    until(lambda: clients["a"].asked and not selector.upstreams[0]._asking)
    gevent.idle()
    assert way_taken(selector) == "a"
    assert is_up(selector, "a")


def test_one_that_is_late_and_gives_no_sign_of_life_rests(clients: dict[str, Client], clock: Clock) -> None:
    clients["a"] = Client("a")
    selector = select(clients, "a", "b")
    selector.upstreams[0].passed_over(clock.now)
    with patience():
        until(lambda: selector.upstreams[0].health.failures)
    assert selector.upstreams[0].health.problem.startswith("upstream a: not reached within 0.75 s")
    assert way_taken(selector) == "b"


def test_one_that_has_answered_others_meanwhile_is_not_late(clients: dict[str, Client], clock: Clock) -> None:
    selector = select(clients, "a", "b")
    started = clock.now
    clock.now += 0.5
    assert way_taken(selector) == "a"
    selector.upstreams[0].passed_over(started)
    assert way_taken(selector) == "a"
