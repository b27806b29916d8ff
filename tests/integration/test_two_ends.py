"""
Two of ours in a row, and a target that does not answer: whose time runs out first (case 300).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from tests.integration.programs import Proxy, socks_door, upstream, web_door
from tests.wire import clients
from tests.wire import upstreams as script
from tests.wire.clients import HttpRefused, SocksRefused
from tests.wire.sockets import free_port
from tests.wire.socks5 import socks_reply
from tests.wire.targets import Target, blackhole, sink
from tests.wire.waits import wait_until

WAYS = ("socks5", "websocket")
ATTEMPT = 1.0  # seconds, of the near end; the far one dials for 30


@pytest.fixture(scope="module")
def backup() -> Iterator[Target]:
    """Run the upstream that nobody is to be sent to."""
    with Target(sink) as target:
        yield target


@pytest.fixture(scope="module")
def far() -> Iterator[Proxy]:
    with Proxy({"listeners": {"socks5": socks_door(), "websocket": web_door()}}) as node:
        yield node


@pytest.fixture(scope="module")
def near(far: Proxy, backup: Target) -> Iterator[Proxy]:
    ways: dict[str, Mapping[str, Any]] = {
        way: upstream(way, far.door(way), timeout=f"{ATTEMPT}s", retry_count=3) for way in WAYS
    }
    ways["backup"] = upstream("socks5", ("127.0.0.1", backup.port))
    doors = {f"socks-{way}": socks_door(upstream=[way, "backup"]) for way in WAYS}
    doors |= {f"web-{way}": web_door(upstream=[way, "backup"]) for way in WAYS}
    with Proxy({"listeners": doors, "upstreams": ways}) as node:
        yield node


@pytest.mark.parametrize("way", WAYS)
def test_a_silent_target_is_told_as_one_and_nobody_else_is_blamed(
    near: Proxy, far: Proxy, backup: Target, way: str
) -> None:
    """Case 300: in the near end's time, dialled once, and a second client fares no worse."""
    before = len(far.log)
    with blackhole() as port:
        began = time.monotonic()
        with pytest.raises(SocksRefused) as socks:
            clients.socks5(near.door(f"socks-{way}"), "127.0.0.1", port)
        assert socks.value.reply == 6
        with pytest.raises(HttpRefused) as web:
            clients.websocket(near.door(f"web-{way}"), "127.0.0.1", port)
        assert (web.value.status, web.value.proxy_error) == (504, "connection_timeout")
        assert time.monotonic() - began < 20
        near.wait_for_log(f'end="refused: 127.0.0.1:{port}')
        target = f"target=127.0.0.1:{port}"
        wait_until(lambda: far.log[before:].count(target) == 2, "a line for each client at the far end")
    assert "it rests" not in near.log
    assert backup.accepted == 0


def test_a_far_end_that_is_told_knows_the_cause(near: Proxy, far: Proxy) -> None:
    """Case 300, DESIGN 1.5: and says it before the near end has to give up."""
    with blackhole() as port:
        with pytest.raises(SocksRefused):
            clients.socks5(near.door("socks-websocket"), "127.0.0.1", port)
        wait_until(
            lambda: f'end="refused: 127.0.0.1:{port}: connect timed out' in far.log, "the far end's cause"
        )


GENERAL: dict[str, tuple[str, tuple[script.Step, ...]]] = {
    "reply-01": ("socks5", (*script.SOCKS_GREETED, socks_reply(1), script.end)),
    "plain-502": ("websocket", (script.judge(script.http_answer(502)), script.end)),
}


def test_one_target_proves_nothing_against_an_upstream(backup: Target) -> None:
    """Case 371: again and again, and nothing is retried."""
    with ExitStack() as stack:
        fars = {
            name: stack.enter_context(script.upstream(free_port(), *GENERAL[name][1])) for name in GENERAL
        }
        ways: dict[str, Any] = {
            name: upstream(GENERAL[name][0], ("127.0.0.1", far.port), retry_count=3)
            for name, far in fars.items()
        }
        ways["backup"] = upstream("socks5", ("127.0.0.1", backup.port))
        doors = {name: socks_door(upstream=[name, "backup"]) for name in GENERAL}
        node = stack.enter_context(Proxy({"listeners": doors, "upstreams": ways}))
        for name, far in fars.items():
            for attempts in range(1, 6):
                with pytest.raises(SocksRefused) as refused:
                    clients.socks5(node.door(name), "2001:db8::1", 80)
                assert refused.value.reply == 1
                # A question is counted as one when it has been answered.
                wait_until(lambda: far.attempts == attempts, "one attempt a client")  # noqa: B023
            node.wait_for_log(f"upstream={name} ")
        assert "it rests" not in node.log
        assert backup.accepted == 0


def test_a_far_end_that_is_silent_itself_is_cut_and_counted() -> None:
    """Case 300, the counter-example: it accepts, and not even a question without a target is answered."""
    with Target(sink) as dead:
        ways = {
            "dead": upstream("websocket", ("127.0.0.1", dead.port), timeout="300ms"),
            "gone": upstream("socks5", ("127.0.0.1", free_port()), retry_count=0),
        }
        doors = {"socks": socks_door(upstream=["dead", "gone"])}
        with Proxy({"listeners": doors, "upstreams": ways}) as node:
            with pytest.raises(SocksRefused):
                clients.socks5(node.door("socks"), "192.0.2.1", 80)
            node.wait_for_log("upstream dead: WebSocket handshake timed out; it rests for 1 s")
            node.wait_for_log("upstream gone: ")
