"""When a worker that has ended is replaced; what it looks like from outside is in the integration tests."""

import os
import socket as std_socket
from collections.abc import Iterator
from typing import Any

import pytest
from gevent import socket

from proxy.errors import ProxyError
from proxy.limiter import Limiter
from proxy.supervisor import crew as module
from proxy.supervisor.crew import Crew
from proxy.workers.link import Link
from tests.wire.greenlets import patience, settle, until


class House:
    """A crew of one, whose workers are processes that do nothing."""

    def __init__(self) -> None:
        self.crew = Crew(Limiter(), lambda handle: setattr(handle, "has_begun", True), print)
        self.far: list[Link] = []
        self.processes: list[int] = []
        self.trouble = ""

    def begin_worker(self, _: object) -> tuple[int, socket.socket, bytes]:
        if self.trouble:
            raise ProxyError(self.trouble)
        here, there = socket.socketpair(std_socket.AF_UNIX, std_socket.SOCK_STREAM)
        self.far.append(Link(there, {"hello": lambda: None}))
        self.far[-1].start()
        self.processes.append(os.posix_spawnp("sleep", ["sleep", "600"], {}))
        return self.processes[-1], here, b""

    def die(self) -> None:
        """Have the worker end unasked, and wait until that is known."""
        deaths = self.crew.deaths
        self.crew.handles[-1].kill()
        self.far[-1].close()
        until(lambda: self.crew.deaths > deaths)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    made = House()
    monkeypatch.setattr(module, "begin_worker", made.begin_worker)
    monkeypatch.setattr(module, "FIRST_PAUSE", 600.0)  # none of these tests waits for its end
    with patience():
        made.crew.begin(1)
        yield made
        made.crew.is_stopping = True
        made.crew._await_none()
        for handle in made.crew.handles:
            handle.kill()
        for far in made.far:
            far.close()
        until(lambda: not made.crew.handles)


def test_a_reload_that_changes_nothing_leaves_a_pause_as_long_as_it_is(house: House) -> None:
    house.die()
    house.crew.resize(1)
    settle()
    assert len(house.processes) == 1


def test_another_configuration_ends_the_pause_as_it_may_be_the_cure(house: House) -> None:
    house.die()
    house.crew.note_change()
    house.crew.resize(1)
    until(lambda: len(house.processes) == 2)
    until(lambda: house.crew.serving)


def test_a_reload_does_not_try_again_what_cannot_be_started_for_now(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    tried: list[Any] = []
    monkeypatch.setattr(module.log, "error", lambda *given: tried.append(given))
    house.trouble = "cannot start a worker: Too many open files"
    house.die()
    until(lambda: len(tried) == 2)
    house.crew.resize(1)
    settle()
    assert len(tried) == 2


def test_none_begins_while_another_program_takes_the_place_of_this_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    house.die()
    house.crew.give_up_starting()
    settle()
    assert len(house.processes) == 1
    house.crew.resize(1)
    until(lambda: len(house.processes) == 2)


def test_there_may_be_more_though_one_is_awaited(house: House) -> None:
    house.die()
    house.crew.resize(2)
    until(lambda: len(house.crew.serving) == 1)
    settle()
    assert [each.row for each in house.crew.serving] == [1]
