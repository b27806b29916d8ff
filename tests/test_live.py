"""
A server that runs from a file: what watches, changes and tells of it comes in the right order.

The program and the keeper are stand-ins here, which only note what is asked of them; the service manager
is real. What it is like from outside is in tests/integration/test_live.py and test_control.py.
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from proxy import live as module
from tests.integration.programs import Proxy, run_proxy, socks_door
from tests.wire.greenlets import patience, until
from tests.wire.manager import Manager
from tests.wire.sockets import free_port


class House:
    """A program, a keeper and an interface that note what happens, joined as in a real server."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.app = SimpleNamespace(
            servers=[SimpleNamespace(missing=[], acceptors=[]), SimpleNamespace(missing=[], acceptors=[])]
        )
        keeper = SimpleNamespace(
            fingerprint=dict,
            config=SimpleNamespace(reload_interval=0.0),
            **{name: self.note(name) for name in ("record", "reload", "reload_if_changed", "catch_up")},
        )
        self.keeper = keeper
        self.admin = SimpleNamespace(**{name: self.note(name) for name in ("start", "stop", "reopen")})
        self.control = module._Control(self.app, keeper, self.admin)  # type: ignore[arg-type]

    def note(self, name: str) -> Any:
        """Make a stand-in for a method."""
        return lambda *_: self.story.append(name)


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with patience(), ExitStack() as stack:
        made = Manager(stack)
        monkeypatch.setenv("NOTIFY_SOCKET", made.address)
        yield made


@pytest.fixture
def house(manager: Manager) -> Iterator[House]:
    made = House()
    yield made
    made.control.stopping()
    gevent.sleep(0)


def test_what_it_started_with_is_a_version_when_clients_can_connect(house: House) -> None:
    """A start that comes to nothing is none: who opens comes before, and raises where it cannot."""
    assert house.story == []
    house.control.opened()
    assert house.story == ["start", "record"]


def test_a_version_that_could_not_be_written_is_written_before_the_end(house: House) -> None:
    """And while ctl can still be told of it."""
    house.control.stopped()
    assert house.story == ["catch_up", "stop"]


def test_the_service_manager_hears_that_it_is_ready_and_then_what_it_waits_for(
    house: House, manager: Manager
) -> None:
    """Ready all the same: it would be killed for its patience otherwise."""
    house.app.servers[1].missing = ["198.51.100.7:1080"]
    house.control.ready()
    assert manager.hear() == "READY=1"
    assert manager.hear() == "STATUS=waiting for 198.51.100.7:1080"
    house.app.servers[1].missing = []
    house.control.arrived()
    assert manager.hear() == "STATUS="


def test_another_configuration_may_wait_for_other_addresses(house: House, manager: Manager) -> None:
    house.app.servers[0].missing = ["198.51.100.7:1080"]
    house.control.applied()
    assert manager.hear() == "STATUS=waiting for 198.51.100.7:1080"
    house.app.servers[:] = [SimpleNamespace(missing=[], acceptors=[])]
    house.control.applied()
    assert manager.hear() == "STATUS="


def test_a_reload_is_told_from_its_beginning_to_its_end(house: House, manager: Manager) -> None:
    house.control.reloading()
    assert manager.hear() == "RELOADING=1"
    house.control.reload()
    house.control.reloaded()
    assert manager.hear() == "READY=1"
    assert house.story == ["reload", "reopen"]  # a control socket that is gone comes back with it


def test_the_end_is_told_when_it_begins(house: House, manager: Manager) -> None:
    house.control.stopping()
    assert manager.hear() == "STOPPING=1"


def test_the_file_is_watched_at_the_interval_of_the_configuration_in_effect(house: House) -> None:
    house.control.ready()
    gevent.idle()
    assert house.story == []  # an interval of 0 is no watching
    house.keeper.config = SimpleNamespace(reload_interval=0.001)
    house.control.applied()
    until(lambda: "reload_if_changed" in house.story)


def test_a_program_that_stops_looks_at_no_file_any_more(house: House) -> None:
    house.keeper.config = SimpleNamespace(reload_interval=0.001)
    house.control.ready()
    until(lambda: "reload_if_changed" in house.story)
    house.control.stopping()
    until(lambda: not house.control._watcher._is_watching)


# As a program


def test_what_is_said_before_there_is_a_log_has_the_form_of_the_file_that_is_served() -> None:
    """Of the last good version, if the file is none: its warnings are in the form that the log will have."""
    port = free_port()
    listeners = {"socks": socks_door(listen_addr=f"127.0.0.1:{port}")}
    with Proxy({"proxy": {"log_format": "json"}, "listeners": listeners}) as node:
        node.signal(signal.SIGTERM)
        assert node.wait(30) == 0
        path = node.config_path
        path.write_text("not a configuration\n")
        node.command.append("-last-good")
        Proxy.start(node)
        said = node.wait_for_log("the last good one")
        assert said.startswith("{")


def test_a_state_dir_that_others_may_write_is_no_source_of_a_last_good_version() -> None:
    with Proxy({"listeners": {"socks": socks_door()}}) as node:
        node.signal(signal.SIGTERM)
        assert node.wait(30) == 0
        node.config_path.write_text("not a configuration\n")
        (node.directory / ".proxy").chmod(0o777)
        done = run_proxy("-c", str(node.config_path), "-last-good")
        assert done.returncode == 2
        assert b"others may write in" in done.stderr
        assert b"so no version there is started with" in done.stderr
