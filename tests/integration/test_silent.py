"""
Gateways that vanish without a word, and connections that are ready: with real processes (DESIGN 1.12).

No bound here is one that a busy machine misses. Whoever waited for a silent gateway would wait for minutes.
"""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.certificates import Authority
from tests.integration.longwire import End, Law, Site, Wire
from tests.integration.programs import Proxy, run_proxy, socks_door, upstream, web_door
from tests.wire import clients, targets
from tests.wire.sockets import read_exact
from tests.wire.targets import Target, blackhole, mute
from tests.wire.waits import wait_until

LONG: dict[str, Any] = {"timeout": "200s"}  # of an attempt; the clients of these tests have less patience
PROXY = {"timeout": "300s"}
AT_ONCE = 8

DEAD = {
    "socks5, packets vanish": ("socks5", "{}:{}", True),
    "http, packets vanish": ("http", "http://{}:{}", True),
    "ws, packets vanish": ("websocket", "ws://{}:{}/", True),
    "wss, packets vanish": ("websocket", "wss://{}:{}/", True),
    "socks5, it accepts and does not greet": ("socks5", "{}:{}", False),
    "wss, it accepts and does not speak TLS": ("websocket", "wss://{}:{}/", False),
}


@pytest.fixture
def target() -> Iterator[Target]:
    with Target(targets.echo) as target:
        yield target


def echoes(door: tuple[str, int], target: Target) -> None:
    """Connect, and have a byte come back."""
    tunnel = clients.socks5(door, "127.0.0.1", target.port)
    try:
        tunnel.sendall(b"x")
        assert read_exact(tunnel, 1) == b"x"
    finally:
        tunnel.close()


@pytest.mark.parametrize(
    ("how", "strategy"), [*((how, "failover") for how in DEAD), (next(iter(DEAD)), "round_robin")]
)
def test_a_silent_gateway_keeps_nobody_waiting(target: Target, how: str, strategy: str) -> None:
    """Not the first client, and not those that come at the same time; and no target is connected twice."""
    kind, address, vanishes = DEAD[how]
    with ExitStack() as stack:
        port = stack.enter_context(blackhole() if vanishes else mute())
        home = stack.enter_context(Proxy({"listeners": {"web": web_door()}}))
        ways = {
            "dead": upstream(kind, address.format("127.0.0.1", port), **LONG),
            "home": upstream("websocket", home.door("web"), **LONG),
        }
        doors = {"socks": socks_door(upstream=list(ways), strategy=strategy)}
        node = stack.enter_context(Proxy({"proxy": PROXY, "listeners": doors, "upstreams": ways}))
        echoes(node.door("socks"), target)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda _: echoes(node.door("socks"), target), range(AT_ONCE)))
        assert target.accepted == 1 + AT_ONCE
        assert "it rests" in node.wait_for_log("upstream dead: ")


class Pair:
    """A node with a preferred gateway and a backup; which one a client went by, its access log says."""

    def __init__(self, stack: ExitStack, home: dict[str, Any], target: Target, at: End = Site.near) -> None:
        self._at = at
        backup = stack.enter_context(Proxy({"listeners": {"web": web_door()}}, prefix=at.prefix))
        ways = {"home": home, "backup": upstream("websocket", backup.door("web"), **LONG)}
        doors = {"socks": socks_door(upstream=list(ways))}
        self._target = target
        node = Proxy({"proxy": PROXY, "listeners": doors, "upstreams": ways}, prefix=at.prefix)
        self.node = stack.enter_context(node)

    def way(self) -> str:
        """Connect, and tell by which way."""
        before = self.node.log.count(" access ")
        self._at.run(lambda: echoes(self.node.door("socks"), self._target))
        wait_until(lambda: self.node.log.count(" access ") > before, "the access line")
        (line,) = [each for each in self.node.log.splitlines() if " access " in each][before:]
        return line.partition("upstream=")[2].split()[0]

    def spares(self) -> int:
        """Tell how many connections to the preferred one are ready."""
        return total(self.node, 'proxy_upstream_spares{listener="socks",upstream="home"}')


@pytest.mark.parametrize("spare", [0, "auto"])
def test_a_gateway_that_freezes_is_passed_over_and_used_again_when_it_goes_on(
    target: Target, spare: object
) -> None:
    """Its kernel goes on accepting meanwhile, and takes requests on what was ready."""
    with ExitStack() as stack:
        home = stack.enter_context(Proxy({"listeners": {"socks": socks_door()}}))
        way = upstream("socks5", home.door("socks"), spare=spare, timeout="5s")
        pair = Pair(stack, way, target)
        wait_until(lambda: pair.way() == "home", "the preferred way")
        home.signal(signal.SIGSTOP)
        stack.callback(home.signal, signal.SIGCONT)
        wait_until(lambda: pair.way() == "backup", "the other way")
        home.signal(signal.SIGCONT)
        wait_until(lambda: pair.way() == "home", "the preferred way again")


@pytest.mark.parametrize("spare", [0, "auto"])
def test_a_gateway_whose_packets_vanish_is_passed_over_even_if_connections_to_it_are_ready(
    spare: object,
) -> None:
    """What is ready was reached some seconds ago, and nothing is to be seen of what has happened since."""
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(Law(delay=0.01)))
        # The same address, whichever end it is reached from.
        target = stack.enter_context(wire.near.run(lambda: Target(targets.echo)))
        stack.enter_context(wire.far.run(lambda: Target(targets.echo, port=target.port)))
        door = {"protocol": "socks5", "listen_addr": f"{wire.far.address}:1080"}
        far = Proxy({"proxy": {"guard": "off"}, "listeners": {"socks": door}}, prefix=wire.far.prefix)
        stack.enter_context(far)
        home = upstream("socks5", door["listen_addr"], spare=spare, **LONG)
        pair = Pair(stack, home, target, at=wire.near)
        wait_until(lambda: pair.way() == "home", "the preferred way")
        if spare:
            wait_until(pair.spares, "a connection that is ready")
        wire.obey(Law(loss=1.0))
        assert pair.way() == "backup"
        assert pair.way() == "backup"
        wire.obey(Law(delay=0.01))
        wait_until(lambda: pair.way() == "home", "the preferred way again")


def test_nobody_sees_of_a_ready_connection_that_was_not_used(target: Target, tmp_path: Path) -> None:
    """DESIGN 1.12: the far listener has a line for each client, and counts no failure."""
    made = Authority(tmp_path).issue("far", "127.0.0.1")
    tls = {"tls_cert": str(made.cert), "tls_key": str(made.key)}
    users = {"alice": "wonderland"}
    login = {"proxy_username": "alice", "proxy_password": "wonderland", "spare": 8}
    doors = {"socks5": socks_door(), "ws": web_door(), "wss": {**web_door(), **tls}}
    with Proxy({"auth_users": users, "listeners": doors, "proxy": {"handshake_timeout": "5m"}}) as far:
        port = far.door("wss")[1]
        ways = {
            "socks5": upstream("socks5", far.door("socks5"), **login),
            "ws": upstream("websocket", far.door("ws"), **login),
            "wss": upstream("websocket", f"wss://127.0.0.1:{port}/", tls_verify="no", **login),
        }
        near = {way: socks_door(upstream=way) for way in ways}
        with Proxy({"listeners": near, "upstreams": ways}) as node:
            for way in ways:
                for _ in range(3):
                    echoes(node.door(way), target)
            wait_until(
                lambda: total(node, "proxy_upstream_spares{") >= len(ways), "connections that are ready"
            )
            before = total(far, "proxy_connections{")
            assert before >= len(ways)
        wait_until(lambda: total(far, "proxy_connections{") == 0, "the far end to see that they are closed")
        wait_until(lambda: far.log.count(" access ") == 3 * len(ways), "a line for each client")
        assert total(far, "proxy_failures_total{") == 0
        assert not [line for line in far.log.splitlines() if " warning " in line]


def total(proxy: Proxy, family: str) -> int:
    """Sum up what the metrics of a program say."""
    metrics = run_proxy("ctl", "-c", str(proxy.config_path), "metrics").stdout.decode()
    return sum(int(float(line.split()[-1])) for line in metrics.splitlines() if line.startswith(family))
