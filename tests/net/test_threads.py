"""
How native threads are shared out: nobody can take those of the others, and nothing is done for nobody.
"""

import threading
from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event

from proxy.errors import LimitError
from proxy.net.threads import NativeThreads, Task, first_of


class Calls:
    """Calls that run until a test ends them, and who made them."""

    def __init__(self, size: int) -> None:
        self.threads = NativeThreads(size)
        self.running: list[str] = []
        self._ends: dict[str, threading.Event] = {}

    def make(self, asker: str, *, key: str = "") -> "gevent.Greenlet[..., str]":
        """Have one made on somebody's behalf, and go on when it runs or waits."""
        name = key or f"{asker}{len(self._ends)}"
        end = self._ends.setdefault(name, threading.Event())

        def call() -> str:
            self.running.append(name)
            end.wait(10)
            self.running.remove(name)
            return name

        greenlet = gevent.spawn(self.threads.run, call, asker, key or None)
        self.settle()
        return greenlet

    def settle(self) -> None:
        """Wait until as many run as have a thread."""
        gevent.sleep(0)
        with gevent.Timeout(5):
            while len(self.running) != sum(self.threads._held.values()):
                gevent.sleep(0.001)

    def end(self, name: str) -> None:
        """End one."""
        self._ends[name].set()
        with gevent.Timeout(5):
            while name in self.running:
                gevent.sleep(0.001)
        self.settle()


@pytest.fixture
def calls() -> Iterator[Calls]:
    """Have eight threads."""
    made = Calls(8)
    yield made
    for end in made._ends.values():
        end.set()
    with gevent.Timeout(5):
        while made.running:
            gevent.sleep(0.001)


def test_nobody_gets_more_threads_than_are_left_for_the_others(calls: Calls) -> None:
    for asker in "aaaaaaaaabbbbbbbcc":
        calls.make(asker)
    assert "".join(sorted(name[0] for name in calls.running)) == "aaaabbc"


def test_without_a_name_one_may_have_all(calls: Calls) -> None:
    for _ in range(9):
        calls.make("")
    assert len(calls.running) == 8


def test_those_who_wait_take_turns(calls: Calls) -> None:
    for asker in "aaaaabbbcdef":
        calls.make(asker)
    assert sorted(calls.running) == ["a0", "a1", "a2", "a3", "b5", "b6", "c8", "d9"]
    for name in ("d9", "c8", "b5"):
        calls.end(name)
    assert sorted(calls.running) == ["a0", "a1", "a2", "a3", "b6", "e10", "f11"]


def test_a_call_that_nobody_waits_for_any_more_is_not_made(calls: Calls) -> None:
    waiting = [calls.make("a") for _ in range(6)][4:]
    gevent.killall(waiting)
    calls.end("a0")
    assert sorted(calls.running) == ["a1", "a2", "a3"]


def test_a_call_that_runs_counts_until_its_end_whoever_waits(calls: Calls) -> None:
    gevent.killall([calls.make("a") for _ in range(4)])
    calls.make("a")
    assert sorted(calls.running) == ["a0", "a1", "a2", "a3"]


def test_those_who_want_the_same_share_one_call(calls: Calls) -> None:
    wanted = [calls.make(asker, key="same") for asker in "abc"]
    assert calls.running == ["same"]
    calls.end("same")
    assert [each.get(timeout=20) for each in wanted] == ["same"] * 3


def test_a_shared_call_begins_when_the_first_who_wants_it_may(calls: Calls) -> None:
    for _ in range(4):
        calls.make("a")
    first = calls.make("a", key="same")
    assert "same" not in calls.running
    second = calls.make("b", key="same")
    assert "same" in calls.running
    second.kill()
    calls.end("same")
    assert first.get(timeout=20) == "same"


# -- greenlets of nobody's in particular


def test_of_several_the_first_that_ends_is_waited_for() -> None:
    go = Event()
    with gevent.Timeout(10):
        slow, quick = Task(go.wait), Task(lambda: "done")
        first_of([slow, quick], None)
        assert (slow.is_running, quick.is_running, quick.wait()) == (True, False, "done")
        first_of([slow], 0.001)
        assert slow.is_running
    slow.cancel()


def test_one_that_is_cancelled_ends_where_it_blocks_and_gives_nothing() -> None:
    seen: list[str] = []

    def block() -> str:
        try:
            Event().wait()
        finally:
            seen.append("cleaned up")
        return "never"

    with gevent.Timeout(10):
        task = Task(block)
        gevent.idle()
        task.cancel()
        assert task.wait() is None
    assert seen == ["cleaned up"]


def test_a_call_that_finds_no_memory_is_a_shortage_of_ours() -> None:
    """So nobody is blamed for it, and it is no internal error."""

    def fail() -> None:
        raise MemoryError

    with pytest.raises(LimitError, match="not enough memory"):
        NativeThreads(1).run(fail)
