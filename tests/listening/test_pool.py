"""
A pool of greenlets that do one job after another.

That its size can change is tested with an acceptor, in test_listen.py.
"""

from collections.abc import Callable, Iterator
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any

import gevent
import pytest
from gevent.event import Event

from proxy.listening import pool as pool_module
from proxy.listening.pool import Job, Pause, Pool, do
from proxy.listening.pool import _PooledGreenlet as PooledGreenlet
from tests.wire.greenlets import until

PATIENCE = 5.0  # seconds

Act = Callable[[], object]


class Wait:
    """What a job waits for without a greenlet, until a test says that it is over."""

    def __init__(self) -> None:
        self.tell: Act | None = None

    def when_over(self, act: Callable[[Job], object], job: Job) -> None:
        """Remember what to call."""
        self.tell = lambda: act(job)

    def wait(self) -> None:
        """Give up, as nobody says that it is over."""
        raise TimeoutError

    def begin(self) -> None:
        """Wait until a job waits for it."""
        until(lambda: self.tell)

    def end(self) -> None:
        """Be over."""
        assert self.tell
        gevent.get_hub().loop.run_callback(self.tell)


class Work:
    """Jobs, the greenlets that they ran in, and what became of them."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.greenlets: list[gevent.Greenlet[..., object]] = []

    def job(self, name: str = "", act: Act = lambda: None, *pauses: Pause) -> Job:
        """Make a job that does something, waits for each of these, and does it again."""
        try:
            self._step(f"{name} begins", act)
            for each in pauses:
                yield each
                self._step(f"{name} goes on", act)
        finally:
            self.story.append(f"{name} ends")

    def _step(self, what: str, act: Act) -> None:
        self.story.append(what)
        self.greenlets.append(gevent.getcurrent())  # type: ignore[arg-type]
        act()


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Give one of two."""
    made = Pool(2)
    with gevent.Timeout(PATIENCE):
        yield made
        made.kill()


@pytest.fixture
def work() -> Work:
    """Give jobs."""
    return Work()


# -- one after another


def test_the_next_job_is_done_by_the_greenlet_that_has_just_finished(pool: Pool, work: Work) -> None:
    for _ in range(3):
        pool.start(work.job())
        pool.join()
    assert len(work.greenlets) == 3
    assert len(set(work.greenlets)) == 1


def test_a_greenlet_that_is_done_has_no_place_and_soon_ends(pool: Pool, work: Work) -> None:
    pool.start(work.job())
    pool.join()
    assert len(pool) == 0
    (greenlet,) = work.greenlets
    assert not greenlet.dead
    greenlet.join()
    assert greenlet.dead


def test_only_those_greenlets_end_that_nobody_wanted_for_a_while(
    pool: Pool, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.listening.pool._LOOK", 60)  # the test itself looks
    for name in "ab":
        pool.start(work.job(name))
    pool.join()
    first, second = work.greenlets
    pool._end_the_unwanted()  # both were wanted before it
    pool.start(work.job("c"))
    pool.join()
    pool._end_the_unwanted()
    first.join()
    assert work.greenlets[2] is second
    assert not second.dead
    pool._end_the_unwanted()
    second.join()


def test_a_job_that_comes_while_a_greenlet_is_parked_is_counted_and_waited_for(
    pool: Pool, work: Work
) -> None:
    pool.start(work.job())
    pool.join()
    go = Event()
    pool.start(work.job("", go.wait))
    assert len(pool) == 1
    assert not pool.join(0.05)
    assert not work.greenlets[0].dead
    go.set()
    pool.join()
    assert len(pool) == 0


def test_a_greenlet_at_work_is_not_disturbed_by_the_end_of_its_parking(
    pool: Pool, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.listening.pool._LOOK", 0.001)
    for _ in range(2):
        pool.start(work.job())
    pool.join()
    go = Event()
    pool.start(work.job("", go.wait))  # by the one of the two that was parked last
    other = (set(work.greenlets) - {work.greenlets[1]}).pop()
    other.join()
    assert len(pool) == 1
    go.set()
    pool.join()
    assert work.greenlets[2] is work.greenlets[1]


def test_an_error_costs_no_place(pool: Pool, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[object] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda _, kind, *rest: errors.append(kind))

    def fail() -> None:
        raise ValueError("a bug")

    for _ in range(5):
        pool.start(work.job("job", fail))
        pool.join()
    assert len(pool) == 0
    assert errors == 5 * [ValueError]


def test_who_waits_for_room_is_told_once_and_when_there_is_some(pool: Pool, work: Work) -> None:
    """Two acceptors share a pool, as a listener has several addresses: either may have clients waiting."""
    told: list[str] = []
    go = Event()
    for _ in range(2):
        pool.start(work.job("", go.wait))
    assert pool.is_full
    one, other = (lambda: told.append("one")), (lambda: told.append("other"))
    for act in (one, other, one):
        pool.when_free(act)
    pool.resize(2)
    assert told == []
    go.set()
    pool.join()
    assert told == ["one", "other"]


# -- waiting without a greenlet


def test_a_job_that_only_waits_keeps_its_place_but_no_greenlet(pool: Pool, work: Work) -> None:
    wait = Wait()
    pool.start(work.job("a", lambda: None, wait))
    wait.begin()
    (greenlet,) = work.greenlets
    greenlet.join()
    assert greenlet.dead
    assert len(pool) == 1
    assert not pool.join(0.01)
    wait.end()
    pool.join()
    assert work.story == ["a begins", "a goes on", "a ends"]


def test_meanwhile_its_greenlet_does_another_job_and_either_may_end_first(pool: Pool, work: Work) -> None:
    waits = Wait(), Wait()
    for name, wait in zip("ab", waits, strict=True):
        pool.start(work.job(name, lambda: None, wait))
        wait.begin()
    assert pool.is_full
    assert len(set(work.greenlets)) == 1
    for wait in waits:
        wait.end()
    pool.join()
    assert work.story == ["a begins", "b begins", "a goes on", "a ends", "b goes on", "b ends"]


def test_a_job_can_wait_several_times(pool: Pool, work: Work) -> None:
    waits = Wait(), Wait()
    pool.start(work.job("a", lambda: None, *waits))
    for wait in waits:
        wait.begin()
        wait.end()
    pool.join()
    assert work.story == ["a begins", "a goes on", "a goes on", "a ends"]


def test_a_job_is_also_done_without_a_pool(work: Work) -> None:
    with pytest.raises(TimeoutError):
        do(work.job("a", lambda: None, Wait()))
    assert work.story == ["a begins", "a ends"]


# -- killing


def test_killing_ends_those_at_work_and_those_that_wait(pool: Pool, work: Work) -> None:
    wait = Wait()
    pool.start(work.job("waits", lambda: None, wait))
    pool.start(work.job("works", lambda: wait.tell and Event().wait()))
    until(lambda: len(work.story) == 2)
    pool.kill()
    assert len(pool) == 0
    assert sorted(work.story[2:]) == ["waits ends", "works ends"]


def test_a_job_that_waits_may_take_its_time_when_it_is_killed(pool: Pool) -> None:
    """A WebSocket has to be told that it is over."""
    wait, is_told = Wait(), Event()

    def job() -> Job:
        try:
            yield wait
        finally:
            gevent.sleep(0.01)
            is_told.set()

    pool.start(job())
    wait.begin()
    pool.kill()
    assert is_told.is_set()


def test_killing_ends_one_that_has_not_begun(pool: Pool, work: Work) -> None:
    pool.start(work.job("", lambda: pytest.fail("nobody is served any more")))
    pool.kill()
    assert len(pool) == 0


def test_one_that_was_killed_while_it_was_parked_is_given_no_job(pool: Pool, work: Work) -> None:
    pool.start(work.job())
    pool.join()
    work.greenlets[0].kill()
    pool.start(work.job())
    pool.join()
    assert work.greenlets[1] is not work.greenlets[0]


def test_a_job_ends_with_the_greenlet_that_is_killed_before_it_has_begun(pool: Pool, work: Work) -> None:
    pool.start(work.job())
    pool.join()
    pool.start(work.job("", lambda: pytest.fail("its greenlet was killed")))  # in the loop's next turn
    gevent.killall([work.greenlets[0]], block=False)
    pool.join()
    assert len(pool) == 0


def test_a_greenlet_that_cannot_begin_gives_the_place_back_without_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As there may be no memory for that one either: a client would be kept for ever."""

    def fails(greenlet: object) -> None:
        monkeypatch.setattr(gevent, "spawn", lambda *_: pytest.fail("another greenlet"))
        raise MemoryError

    monkeypatch.setattr(pool_module._PooledGreenlet, "_run", fails)
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
    work, pool = Work(), Pool(1)
    job = work.job("one")
    pool.start(job)
    assert pool.join(PATIENCE)
    assert not pool.is_full
    assert getgeneratorstate(job) == GEN_CLOSED
    assert work.story == []  # it was never begun


# -- while memory is short


class Short:
    """Memory, of which there is little until a test says otherwise."""

    def __init__(self) -> None:
        self.is_short = True

    def allows_another(self) -> bool:
        """Tell whether there is enough."""
        return not self.is_short


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Short:
    """Have little memory, of which two greenlets are the most."""
    memory = Short()
    monkeypatch.setattr(pool_module, "BALLAST", memory)
    monkeypatch.setattr(pool_module, "_FEW", 2)
    return memory


@pytest.fixture
def waits() -> list[Wait]:
    """Give what five jobs wait for."""
    return [Wait() for _ in range(5)]


def many(pool: Pool, work: Work, waits: list[Wait], act: Act) -> None:
    """Have a job wait for each of these, and then do something; all are over in the same turn."""
    pool.resize(len(waits))
    began = len(waits)

    def step() -> None:
        nonlocal began
        if began:
            began -= 1
        else:
            act()

    for each in waits:
        pool.start(work.job("", step, each))
    for each in waits:
        each.begin()
    for each in waits:
        each.end()


@pytest.mark.usefixtures("short")
def test_while_memory_is_short_a_few_go_on_at_a_time_and_in_the_end_all(
    pool: Pool, work: Work, waits: list[Wait]
) -> None:
    """As when thousands of connections end at once: greenlet ends the program where it finds no memory."""
    now, most = 0, 0

    def act() -> None:
        nonlocal now, most
        now += 1
        most = max(now, most)
        gevent.sleep(0.001)
        now -= 1

    many(pool, work, waits, act)
    assert pool.join(PATIENCE)
    assert most == 2
    assert work.story.count(" goes on") == len(waits)


@pytest.mark.usefixtures("short")
def test_who_fails_while_memory_is_short_lets_the_next_one_go_on(
    pool: Pool, work: Work, waits: list[Wait], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)

    def act() -> None:
        gevent.sleep(0.001)
        raise MemoryError

    many(pool, work, waits, act)
    assert pool.join(PATIENCE)
    assert work.story.count(" goes on") == len(waits)


@pytest.mark.usefixtures("short")
def test_who_waits_for_memory_is_not_lost_where_there_is_none_for_a_greenlet(
    pool: Pool, work: Work, waits: list[Wait], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
    go, fails = Event(), 0

    def make(*arguments: Any) -> PooledGreenlet:
        nonlocal fails
        if fails:
            fails -= 1
            raise MemoryError
        return PooledGreenlet(*arguments)

    def act() -> None:
        go.wait()
        if fails:
            raise MemoryError  # so a new greenlet is wanted in the place of this one

    many(pool, work, waits, act)
    until(lambda: work.story.count(" goes on") == 2)
    until(lambda: not pool._parked)
    monkeypatch.setattr(pool_module, "_PooledGreenlet", make)
    fails = 1
    go.set()
    assert pool.join(PATIENCE)
    assert work.story.count(" goes on") == len(waits)


def test_once_there_is_memory_again_more_go_on_at_a_time(
    pool: Pool, work: Work, waits: list[Wait], short: Short
) -> None:
    """To close a connection may take seconds, and thousands may wait for it."""
    gates: list[Event] = []

    def act() -> None:
        gates.append(Event())
        gates[-1].wait()

    many(pool, work, waits, act)
    until(lambda: len(gates) == 2)
    short.is_short = False
    gates[0].set()
    until(lambda: len(gates) == 4)
    gates[1].set()
    until(lambda: len(gates) == 5)
    for each in gates:
        each.set()
    assert pool.join(PATIENCE)


def test_where_there_is_enough_memory_all_go_on_at_once(
    pool: Pool, work: Work, waits: list[Wait], short: Short
) -> None:
    short.is_short = False
    go = Event()
    many(pool, work, waits, lambda: bool(go.wait()))
    until(lambda: work.story.count(" goes on") == len(waits))
    go.set()
    assert pool.join(PATIENCE)


@pytest.mark.usefixtures("short")
def test_those_that_wait_for_memory_are_killed_too(pool: Pool, work: Work, waits: list[Wait]) -> None:
    many(pool, work, waits, Event().wait)
    until(lambda: work.story.count(" goes on") == 2)
    pool.kill()
    assert len(pool) == 0
    assert work.story.count(" ends") == len(waits)
    assert work.story.count(" goes on") == 2
