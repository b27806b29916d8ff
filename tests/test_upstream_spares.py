"""
Connections made ready, at upstreams that follow a script: which are used, and what is never done with them.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import gevent
import pytest

from proxy.address import Address
from proxy.errors import DialError, UpstreamError
from proxy.health import Health
from proxy.net.deadline import Deadline
from proxy.settings.listener import ServerConfig, Strategy
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from proxy.socks5.server import Socks5Server
from proxy.upstream import Selector, Upstream
from tests.wire import upstreams as script
from tests.wire.greenlets import patience, until
from tests.wire.sockets import free_port
from tests.wire.socks5 import GRANTED, hear_greeting, hear_request
from tests.wire.targets import Target

TARGET = Address("192.0.2.7", 443)


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience(30):
        yield


class Far:
    """A SOCKS5 proxy that counts, and does with a connection that is ready what a test says."""

    def __init__(self, stack: ExitStack) -> None:
        self.requests = 0
        self.ended = 0
        self.greeted = 0
        self.ends_after_the_request = False
        self.speak = threading.Event()  # without being asked
        self.leave = threading.Event()
        self._lock = threading.Lock()
        self._target = stack.enter_context(Target(self._serve))
        self.port = self._target.port

    def _serve(self, connection: socket.socket) -> None:
        hear_greeting(connection)
        with self._lock:
            self.greeted += 1  # before the other end can know
        connection.sendall(b"\x05\x00")
        connection.settimeout(0.01)
        while not self.leave.is_set():
            if self.speak.is_set():
                connection.sendall(b"?")
            try:
                if not connection.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                continue
            connection.settimeout(10)
            hear_request(connection)
            with self._lock:
                self.requests += 1
            if not self.ends_after_the_request:
                connection.sendall(GRANTED)
                connection.recv(1)
            break
        with self._lock:
            self.ended += 1


class Near:
    """A listener that goes out by it."""

    def __init__(self, stack: ExitStack, far: Far, **settings: Any) -> None:
        settings = {"retry_count": 3, "timeout": 10.0, **settings}
        way = UpstreamConfig("home", UpstreamType.SOCKS5, f"127.0.0.1:{far.port}", **settings)
        self.config = ServerConfig("127.0.0.1:0", Protocol.SOCKS5, upstream_config=(way,))
        self.server = Socks5Server(self.config)
        self.server.listen()
        stack.callback(self.server.shutdown)

    @property
    def health(self) -> Health:
        """What is known of the upstream."""
        (upstream,) = self.server.runtime.upstreams
        return upstream.health

    def connect(self) -> None:
        """Have a target connected, and close that again."""
        self.server.runtime.router.ways.own.dial(TARGET, Deadline(10)).close()

    def until_ready(self, count: int = 1) -> None:
        """Wait until so many are ready."""
        until(lambda: len(self.health.spares) == count)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def far(stack: ExitStack) -> Far:
    return Far(stack)


def test_the_next_client_finds_a_connection_ready(stack: ExitStack, far: Far) -> None:
    near = Near(stack, far)
    near.connect()
    near.until_ready()
    assert (far.greeted, far.requests) == (2, 1)
    near.server.runtime.upstreams[0].client.reach = None  # type: ignore[method-assign,assignment]
    near.connect()
    assert near.health.spares.counts["taken"] == 1
    assert far.requests == 2


def test_with_none_allowed_none_is_made(stack: ExitStack, far: Far) -> None:
    near = Near(stack, far, spare=0)
    for count in (1, 2, 3):
        near.connect()
        gevent.idle()
        assert (far.greeted, len(near.health.spares)) == (count, 0)


@pytest.mark.parametrize("how", ["leave", "speak"])
def test_one_that_is_dead_is_replaced_and_nobody_is_blamed(stack: ExitStack, far: Far, how: str) -> None:
    near = Near(stack, far)
    near.connect()
    near.until_ready()
    getattr(far, how).set()
    channel = near.health.spares._ready[0][1]
    until(lambda: not channel.sock.is_quiet())
    getattr(far, how).clear()
    near.connect()
    assert (near.health.failures, near.health.problem) == (0, "")
    assert (near.health.spares.counts["died"], near.health.spares.counts["taken"]) == (1, 0)
    assert far.requests == 2


def test_what_was_sent_on_one_is_not_sent_again(stack: ExitStack, far: Far) -> None:
    """It ends in the very moment in which it is used. Whether the target was connected nobody knows."""
    near = Near(stack, far)
    near.connect()
    near.until_ready()
    far.ends_after_the_request = True
    with pytest.raises(DialError) as raised:
        near.connect()
    assert not isinstance(raised.value, UpstreamError)  # there is a sign of life
    assert far.requests == 2
    assert near.health.failures == 0


def test_an_upstream_that_does_not_let_us_in_is_asked_no_more_often_than_clients_come() -> None:
    """It can be reached, but that is of no use to anybody."""
    with script.upstream(free_port(), script.hear_head, script.http_answer(401), script.end) as strict:
        way = UpstreamConfig("home", UpstreamType.WEBSOCKET, f"ws://127.0.0.1:{strict.port}/")
        selector = Selector([Upstream(way)], Strategy.FAILOVER, 10.0)
        for count in (1, 2):
            with pytest.raises(UpstreamError):
                selector.dial(TARGET, Deadline(10))
            gevent.idle()
            assert strict.accepted == count


def test_a_reload_that_leaves_the_upstream_alone_keeps_them(stack: ExitStack, far: Far) -> None:
    near = Near(stack, far)
    near.connect()
    near.until_ready()
    (kept,) = near.health.spares._ready
    near.server.reload_config(replace(near.config, timeout=7.0))
    assert list(near.health.spares._ready) == [kept]
    near.connect()
    assert near.health.spares.counts["taken"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"proxy_username": "alice", "proxy_password": "wonderland"},
        {"timeout": 9.0},
        {"spare": 2},
        {"source": "127.0.0.2"},
        {"interface": "lo"},
    ],
)
def test_a_reload_that_changes_the_upstream_closes_them(
    stack: ExitStack, far: Far, change: dict[str, Any]
) -> None:
    """They were made with other credentials, or other settings."""
    near = Near(stack, far)
    near.connect()
    near.until_ready()
    before = near.health
    (way,) = near.config.upstream_config
    near.server.reload_config(replace(near.config, upstream_config=(replace(way, **change),)))
    assert near.health is not before
    assert (len(before.spares), len(near.health.spares)) == (0, 0)
    until(lambda: far.ended == far.greeted)


def test_a_reload_closes_those_that_were_made_with_authorities_that_may_have_changed(
    stack: ExitStack, far: Far
) -> None:
    """The name of the file is the same; what is in it need not be."""
    near = Near(stack, far)
    near.connect()
    near.until_ready()
    (upstream,) = near.server.runtime.upstreams
    object.__setattr__(upstream.config, "tls_ca", "authorities.pem")
    upstream.begin()
    assert len(near.health.spares) == 1  # it is the one in use already
    near.health.keeper = None
    upstream.begin()
    assert len(near.health.spares) == 0


def test_who_still_connects_under_the_configuration_before_makes_none(stack: ExitStack, far: Far) -> None:
    near = Near(stack, far)
    before = near.server.runtime.router.ways
    (way,) = near.config.upstream_config
    near.server.reload_config(replace(near.config, upstream_config=(replace(way, timeout=9.0),)))
    before.own.dial(TARGET, Deadline(10)).close()
    gevent.idle()
    (old,) = before.upstreams
    assert (len(old.health.spares), old.health.spares._making) == (0, 0)


def test_a_listener_that_closes_leaves_none_behind(stack: ExitStack, far: Far) -> None:
    near = Near(stack, far)
    near.connect()
    near.until_ready()
    near.server.stop_accepting()
    assert len(near.health.spares) == 0
    near.connect()  # a client that came before
    gevent.idle()
    assert len(near.health.spares) == 0
    until(lambda: far.ended == far.greeted)
