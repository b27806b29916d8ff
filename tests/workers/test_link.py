"""Two ends that ask one another: in order, with sockets, and with an end that everybody hears of."""

import os
import socket as std_socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from proxy.errors import ConfigError, Failure, ProxyError
from proxy.workers import link
from proxy.workers.link import GoneError, Link
from tests.wire.greenlets import patience, until


class Ends:
    """Two links that are joined; the far one answers."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.go_on = Event()
        self.is_over = Event()
        here, there = socket.socketpair(std_socket.AF_UNIX, std_socket.SOCK_STREAM)
        answers: dict[str, Any] = {
            "echo": lambda *values: values,
            "hear": self.heard.append,
            "fail": self.fail,
            "wait": self.wait,
            "names": lambda *, sockets: [each.getsockname() for each in sockets],
            "crash": lambda: 1 / 0,
        }
        self.near = Link(here, {}, on_end=self.is_over.set)
        self.far = Link(there, answers, slow=("wait",))
        self.near.start()
        self.far.start()

    def fail(self, kind: str) -> None:
        raise ProxyError("it is full", Failure.LIMIT) if kind == "limit" else ConfigError("field", "is wrong")

    def wait(self) -> str:
        self.go_on.wait()
        return "done"


@pytest.fixture
def ends() -> Iterator[Ends]:
    with patience():
        made = Ends()
        yield made
        made.near.close()
        made.far.close()


def test_what_is_asked_is_answered(ends: Ends) -> None:
    big = os.urandom(3 << 20)
    assert ends.near.ask("echo", 1, "two", big) == (1, "two", big)


def test_errors_keep_their_words_and_their_failure(ends: Ends) -> None:
    with pytest.raises(ProxyError, match="it is full") as caught:
        ends.near.ask("fail", "limit")
    assert caught.value.failure is Failure.LIMIT
    with pytest.raises(ProxyError, match="is wrong"):
        ends.near.ask("fail", "config")
    with pytest.raises(ProxyError, match="internal error: ZeroDivisionError"):
        ends.near.ask("crash")


def test_what_takes_its_time_holds_up_nobody(ends: Ends) -> None:
    slow = gevent.spawn(ends.near.ask, "wait")
    assert ends.near.ask("echo") == ()
    ends.go_on.set()
    assert slow.get(timeout=10) == "done"


def test_what_is_told_is_heard_in_order_and_before_what_is_asked_then(ends: Ends) -> None:
    for number in range(100):
        ends.near.tell("hear", number)
    ends.near.ask("echo")
    assert ends.heard == list(range(100))


def test_sockets_go_along_with_their_message(ends: Ends) -> None:
    with ExitStack() as stack:
        several = [stack.enter_context(socket.socket()) for _ in range(20)]
        for each in several:
            each.bind(("127.0.0.1", 0))
        names = [each.getsockname() for each in several]
        asked = [gevent.spawn(ends.near.ask, "names", sockets=[each]) for each in several]
        assert ends.near.ask("names", sockets=several) == names
        assert [each.get(timeout=10) for each in asked] == [[name] for name in names]


def test_a_message_takes_along_more_sockets_than_the_kernel_takes_at_a_time(ends: Ends) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        names = [sock.getsockname()] * 600
        asked = [gevent.spawn(ends.near.ask, "names", sockets=[sock] * 600) for _ in range(3)]
        assert [each.get(timeout=10) for each in asked] == [names] * 3
        assert ends.near.ask("names", sockets=[sock]) == names[:1]


def test_no_answer_in_time_is_an_error(ends: Ends) -> None:
    with pytest.raises(GoneError, match=r"no answer for 0\.05 s"):
        ends.near.ask("wait", within=0.05)
    assert ends.near.ask("echo") == ()


def test_who_was_stopped_while_asking_reads_the_answer_before_giving_up(ends: Ends) -> None:
    """A container that is paused, or a laptop's lid: the worker stood still as well, and is not to blame."""
    asked = gevent.spawn(ends.near.ask, "echo", "still here", within=0.05)
    gevent.sleep(0)  # so it waits, and nothing is sent yet
    time.sleep(0.4)  # the whole process, as nothing is patched here
    assert asked.get() == ("still here",)


def test_a_deadline_of_who_asks_is_its_own(ends: Ends) -> None:
    for within in (None, 30.0):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
            ends.near.ask("wait", within=within)
    assert ends.near.ask("echo") == ()


def test_who_waits_for_one_that_goes_is_told_and_so_is_who_asks_then(ends: Ends) -> None:
    asked = gevent.spawn(ends.near.ask, "wait")
    until(lambda: bool(ends.near._asked))
    ends.far.close()
    with pytest.raises(GoneError):
        asked.get(timeout=10)
    assert ends.is_over.wait(10)
    with pytest.raises(GoneError):
        ends.near.ask("echo")
    ends.near.tell("hear", 1)


def test_without_memory_a_question_waits_or_fails_and_the_link_stays(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker would end, and its connections with it."""

    def none(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(link, "BALLAST", SimpleNamespace(give_up=lambda: None))
    with monkeypatch.context() as patch:
        tried = Event()

        def fill(_: int) -> bool:
            tried.set()
            raise MemoryError

        patch.setattr(ends.far, "_fill", fill)
        waits = gevent.spawn(ends.near.ask, "echo", "late")
        assert tried.wait(10)
    assert waits.get(timeout=10) == ("late",)
    ends.far._answers = {**ends.far._answers, "echo": none}
    with pytest.raises(ProxyError, match="MemoryError"):
        ends.near.ask("echo")
    assert not ends.far.is_over
