"""Servers become those of another configuration in one step, or stay what they are."""

import os
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from proxy.accesslog import NO_LOG
from proxy.app import App
from proxy.config import Protocol, ProxyConfig, ServerConfig
from proxy.errors import ConfigError, ProxyError
from proxy.listeners import Listeners, Plan, make_server
from proxy.metrics import Metrics


@pytest.fixture(autouse=True)
def within_seconds() -> Iterator[None]:
    with gevent.Timeout(20):
        yield


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    listeners = Listeners(make_server, NO_LOG, Metrics())
    yield listeners
    for server in listeners.all:
        server.shutdown()


def config(**addresses: str) -> ProxyConfig:
    """Make a configuration of SOCKS5 listeners."""
    return ProxyConfig(
        listeners=tuple(ServerConfig(address, Protocol.SOCKS5, name) for name, address in addresses.items())
    )


def change(listeners: Listeners, config: ProxyConfig, **how: Any) -> Plan:
    """Do all three steps."""
    plan = listeners.plan(config)
    listeners.open(plan, **how)
    listeners.change(plan)
    return plan


def free_address() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_what_is_as_it_was_is_not_touched(listeners: Listeners) -> None:
    one, two = free_address(), free_address()
    change(listeners, config(one=one, two=two))
    before = listeners.accepting
    plan = change(listeners, config(one=one, two=two))
    assert listeners.accepting == before
    assert not plan.renewed
    assert not plan.sockets


def test_a_plan_opens_and_changes_nothing(listeners: Listeners) -> None:
    one, two = free_address(), free_address()
    change(listeners, config(one=one))
    before = descriptors()
    plan = listeners.plan(config(one=one, two=two))
    assert [server.config.name for server in plan.servers] == ["one", "two"]
    assert [server.config.name for server in listeners.accepting] == ["one"]
    assert descriptors() == before


def test_a_plan_that_cannot_be_made_is_an_error(listeners: Listeners) -> None:
    door = ServerConfig(
        "127.0.0.1:0", Protocol.WEBSOCKET, "web", tls_cert="/nonexistent", tls_key="/nonexistent"
    )
    with pytest.raises(ConfigError, match="/nonexistent"):
        listeners.plan(ProxyConfig(listeners=(door,)))


def test_an_address_that_is_busy_closes_what_was_opened_before_it(listeners: Listeners) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        busy = f"127.0.0.1:{other.getsockname()[1]}"
        plan = listeners.plan(config(good=free_address(), bad=busy))
        before = descriptors()
        with pytest.raises(ProxyError, match="in use"):
            listeners.open(plan)
        assert descriptors() == before
        assert listeners.accepting == []


def test_a_change_that_does_not_come_leaves_nothing_open(listeners: Listeners) -> None:
    one = free_address()
    change(listeners, config(one=one))
    before = descriptors()
    plan = listeners.plan(config(other=one, two=free_address()))
    listeners.open(plan)
    listeners.close(plan)
    assert descriptors() == before


def test_counters_go_on_in_a_server_that_takes_the_place_of_another(listeners: Listeners) -> None:
    change(listeners, config(one=free_address()))
    listeners.accepting[0].metrics.accepted += 7
    change(listeners, config(one=free_address()))
    assert listeners.accepting[0].metrics.accepted == 7


def test_a_plan_that_comes_to_nothing_leaves_no_metrics(listeners: Listeners) -> None:
    """It is made in another thread, too, while they are read in this one."""
    change(listeners, config(one=free_address()))
    before = listeners._metrics.listeners
    plan = listeners.plan(config(two=free_address()))
    assert (listeners._metrics.listeners is before, [*before]) == (True, ["one"])
    listeners.open(plan)
    listeners.change(plan)
    assert [*listeners._metrics.listeners] == ["one", "two"]


def test_a_server_that_has_left_is_known_while_it_has_connections(listeners: Listeners) -> None:
    change(listeners, config(one=free_address()))
    (server,) = listeners.accepting
    client = socket.create_connection(("127.0.0.1", server.addresses[0].port), 5)
    while not server.sessions:
        gevent.sleep(0.001)
    change(listeners, config(one=free_address()))
    assert listeners.all == [*listeners.accepting, server]
    client.close()
    while server.sessions:
        gevent.sleep(0.001)
    assert listeners.all == listeners.accepting


def test_a_program_that_was_told_to_stop_takes_no_other_configuration() -> None:
    """CASES H206."""
    app = App(config(one="127.0.0.1:0"))
    app._stop()
    with pytest.raises(ProxyError, match="stopping"):
        app.apply(config(two="127.0.0.1:0"))
    assert [each.name for each in app.config.listeners] == ["one"]
