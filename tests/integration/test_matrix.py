"""
Every door with every way out: bytes go both ways at once and arrive as they were sent.

One process of ours has all the listeners of one kind of authentication, each with its way out.
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration import peers
from tests.integration.programs import Proxy, socks_door, upstream, web_door
from tests.wire import targets
from tests.wire.clients import OPEN, HttpRefused, SocksRefused, Tunnel, WebTunnel
from tests.wire.sockets import Credentials, read_exact, reset
from tests.wire.targets import Target

SIZE = 8 << 20
UP, DOWN = os.urandom(SIZE), os.urandom(SIZE)
UP_DIGEST, DOWN_DIGEST = hashlib.sha256(UP).hexdigest(), hashlib.sha256(DOWN).hexdigest()

ALICE = ("alice", "wonder, #land = %(x)s")  # what is special in a configuration file is not in a password
DOORS = ("socks5", "websocket")
WAYS = ("direct", "microsocks", "dante", "own-socks5", "own-websocket", "own-websocket-to-socks5")
OUR_WAYS = [way for way in WAYS if way != "dante"]
HALF_CLOSING = ["direct", "own-socks5", "own-websocket"]  # microsocks ends both directions when one ends


@dataclass
class House:
    """A node of ours with a listener for each door and way, and who may use it."""

    node: Proxy
    credentials: Credentials | None

    def open(self, door: str, way: str, port: int, host: str = "127.0.0.1") -> Tunnel:
        """Open a tunnel to a target on this machine."""
        return OPEN[door](self.node.door(f"{door}-{way}"), host, port, self.credentials)


@pytest.fixture(scope="module", params=["no-users", "users"])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    """Run a front node, and all that its ways out lead to."""
    credentials = ALICE if request.param == "users" else None
    users = {"auth_users": dict([credentials])} if credentials else {}
    login = _login(credentials)
    with ExitStack() as stack:
        small = stack.enter_context(peers.microsocks(("bob", "builder") if credentials else None))
        bob = _login(("bob", "builder") if credentials else None)
        exit_doors = {"socks": socks_door(), "web": web_door(), "web-to-socks": web_door(upstream="small")}
        ways = {"upstreams": {"small": upstream("socks5", small, **bob)}}
        exit_node = stack.enter_context(Proxy({"listeners": exit_doors, **ways, **users}))
        upstreams = {
            "microsocks": upstream("socks5", small, spare="auto", **bob),
            "own-socks5": upstream("socks5", exit_node.door("socks"), spare="auto", **login),
            "own-websocket": upstream("websocket", exit_node.door("web"), spare="auto", **login),
            "own-websocket-to-socks5": upstream(
                "websocket", exit_node.door("web-to-socks"), spare="auto", **login
            ),
        }
        listeners = {}
        for way in ("direct", *upstreams):
            listeners[f"socks5-{way}"] = socks_door(upstream=way)
            listeners[f"websocket-{way}"] = web_door(upstream=way)
        yield House(
            stack.enter_context(Proxy({"listeners": listeners, "upstreams": upstreams, **users})), credentials
        )


@pytest.fixture(scope="module")
def house_before_dante(house: House) -> Iterator[House]:
    """Run one more front node, whose way out is Dante: where it is missing, only its tests are skipped."""
    users = {"auth_users": dict([house.credentials])} if house.credentials else {}
    with ExitStack() as stack:
        user = stack.enter_context(peers.system_user()) if house.credentials else None
        upstreams = {
            "dante": upstream("socks5", stack.enter_context(peers.dante(user)), spare="auto", **_login(user))
        }
        listeners = {
            "socks5-dante": socks_door(upstream="dante"),
            "websocket-dante": web_door(upstream="dante"),
        }
        yield House(
            stack.enter_context(Proxy({"listeners": listeners, "upstreams": upstreams, **users})),
            house.credentials,
        )


def _login(credentials: Credentials | None) -> dict[str, Any]:
    return {"proxy_username": credentials[0], "proxy_password": credentials[1]} if credentials else {}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("door", DOORS)
def test_bytes_go_both_ways_at_once_and_arrive_as_sent(
    door: str, way: str, host: str, house: House, request: pytest.FixtureRequest
) -> None:
    """CASES 136, 144-150."""
    if way == "dante":
        house = request.getfixturevalue("house_before_dante")
    with Target(targets.exchange(DOWN, SIZE)) as target:
        tunnel = house.open(door, way, target.port, host)
        sender = threading.Thread(target=tunnel.sendall, args=(UP,), daemon=True)
        sender.start()
        assert targets.receive_digest(tunnel.recv, SIZE) == DOWN_DIGEST
        assert target.result() == UP_DIGEST
        sender.join(20)
        tunnel.close()


@pytest.mark.parametrize("way", HALF_CLOSING)
@pytest.mark.parametrize("door", DOORS)
class TestHalfClose:
    """The end of one direction leaves the other alone."""

    def test_a_target_answers_after_the_clients_end(self, door: str, way: str, house: House) -> None:
        """CASES 119, 126."""
        answer = os.urandom(1 << 20)
        with Target(targets.answer_after_end(answer)) as target:
            tunnel = house.open(door, way, target.port)
            tunnel.sendall(b"question")
            tunnel.end()
            assert targets.receive_digest(tunnel.recv, len(answer)) == hashlib.sha256(answer).hexdigest()
            assert tunnel.recv(1) == b""
            assert target.result() == b"question"
            tunnel.close()

    def test_a_client_goes_on_after_the_targets_end(self, door: str, way: str, house: House) -> None:
        """CASES 119, 127."""
        with Target(targets.end_then_read) as target:
            tunnel = house.open(door, way, target.port)
            assert tunnel.recv(1) == b""
            tunnel.sendall(UP[: 1 << 20])
            tunnel.end()
            assert target.result() == (1 << 20, hashlib.sha256(UP[: 1 << 20]).hexdigest())
            tunnel.close()


@pytest.mark.parametrize("way", OUR_WAYS)
@pytest.mark.parametrize("door", DOORS)
def test_a_target_that_speaks_first_is_heard(door: str, way: str, house: House) -> None:
    """CASES 142."""
    with Target(targets.banner(b"220 ready\r\n")) as target:
        tunnel = house.open(door, way, target.port)
        assert read_exact(tunnel, 11) == b"220 ready\r\n"
        tunnel.close()


@pytest.mark.parametrize("way", OUR_WAYS)
@pytest.mark.parametrize("door", DOORS)
def test_a_target_that_closes_at_once_was_reached(door: str, way: str, house: House) -> None:
    """CASES 141: success, and then the end."""
    with Target(targets.close_after_accept) as target:
        tunnel = house.open(door, way, target.port)
        assert tunnel.recv(1) == b""
        tunnel.close()


@pytest.mark.parametrize("way", HALF_CLOSING)
@pytest.mark.parametrize("door", DOORS)
def test_a_target_that_dies_never_looks_as_if_it_had_ended(door: str, way: str, house: House) -> None:
    """CASES 120, 130, 131, 143: it resets the connection, at once or in mid-stream."""
    for behave, first in ((reset, b""), (targets.reset_after(b"half of i"), b"x")):
        with Target(behave) as target:
            try:
                tunnel = house.open(door, way, target.port)
            except (SocksRefused, HttpRefused):
                continue  # the reset was faster than our answer: as true
            try:
                tunnel.sendall(first)
                while tunnel.recv(100):
                    pass
            except ConnectionError:
                pass
            else:
                assert isinstance(tunnel, WebTunnel), "a SOCKS5 client saw an ordinary end"
                assert tunnel.close_code in (1011, 1014)
            tunnel.close()


@pytest.mark.parametrize("way", HALF_CLOSING)
@pytest.mark.parametrize("door", DOORS)
def test_a_client_that_dies_is_no_end_of_its_stream_for_the_target(door: str, way: str, house: House) -> None:
    """CASES 120, 130."""
    with Target(targets.sink) as target:
        tunnel = house.open(door, way, target.port)
        tunnel.sendall(b"half of i")
        reset(tunnel.sock)
        tunnel.close()
        assert isinstance(target.results.get(timeout=20), ConnectionError)
