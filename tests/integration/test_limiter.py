"""
What a section of ``[limits]`` gives to clients that want more, through the doors of the program.

DESIGN 1.11. How exactly a bandwidth is kept and shared stands in ``relaying/test_throttle``, by a clock of
its own; here no bound depends on how busy the machine is.
"""

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from time import monotonic
from typing import Any

import pytest

from tests.integration.programs import Proxy, mixed_door, socks_door, web_door
from tests.integration.test_control import ask, ctl, metrics, said
from tests.wire import clients, targets
from tests.wire.clients import HttpRefused, SocksRefused, Tunnel
from tests.wire.sockets import connect, read_exact, reset
from tests.wire.socks5 import GREETING, to_ip
from tests.wire.targets import Target
from tests.wire.waits import wait_until
from tests.wire.websocket import upgrade_request

USERS = {"alice": "wonderland", "bob": "builder"}
MIB = 1 << 20
ALICE = ("alice", "wonderland")
Limits = dict[str, dict[str, Any]]


def run(limits: Limits, **doors: dict[str, Any]) -> Proxy:
    """Make a program with doors for anybody, and one for users."""
    listeners = {
        "socks": socks_door(auth="none"),
        "users": socks_door(),
        "web": web_door(auth="none"),
        "mixed": mixed_door(auth="none"),
        **doors,
    }
    # The targets are on this machine.
    proxy = {"guard": "off"}
    return Proxy({"proxy": proxy, "listeners": listeners, "auth_users": USERS, "limits": limits})


def accounts(node: Proxy) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ask(node, "/limits")["accounts"]
    return rows


def http_proxy(door: tuple[str, int], port: int) -> Tunnel:
    """Ask an HTTP proxy for a tunnel (RFC 9110, section 9.3.6)."""
    sock = connect(door)
    try:
        sock.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % port)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += read_exact(sock, 1)
        lines = head.decode().split("\r\n")
        status = int(lines[0].split()[1])
        if status != 200:
            fields = dict(line.lower().split(": ", 1) for line in lines[1:-2])
            raise HttpRefused(status, fields, read_exact(sock, int(fields["content-length"])))
    except BaseException:
        sock.close()
        raise
    return clients.SocksTunnel(sock)


OPEN: dict[str, Callable[[Proxy, Target], Tunnel]] = {
    "socks": lambda node, target: clients.socks5(node.door("socks"), "127.0.0.1", target.port),
    "web": lambda node, target: clients.websocket(node.door("web"), "127.0.0.1", target.port),
    "mixed": lambda node, target: http_proxy(node.door("mixed"), target.port),
}


def open_many(
    stack: ExitStack, count: int, make: Callable[[], Tunnel]
) -> tuple[list[Tunnel], list[Exception]]:
    """Ask for so many tunnels, and give those that are there, and why the others are not."""
    made: list[Tunnel] = []
    errors: list[Exception] = []
    for _ in range(count):
        try:
            made.append(make())
            stack.callback(made[-1].close)
        except (SocksRefused, HttpRefused) as exc:
            errors.append(exc)
    return made, errors


@pytest.mark.parametrize("door", list(OPEN))
def test_who_is_over_a_limit_is_told_so_at_every_door(door: str, stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run({"fair": {"per": "client", "connections": 2}}))
    made, errors = open_many(stack, 4, lambda: OPEN[door](node, echo))
    assert (len(made), len(errors)) == (2, 2)
    for error in errors:
        if isinstance(error, SocksRefused):
            assert error.reply == 1  # RFC 1928, section 6: general failure
        else:
            assert isinstance(error, HttpRefused)
            assert error.status == 429  # RFC 6585, section 4
            assert int(error.headers["retry-after"]) >= 1
            assert error.proxy_error == "connection_limit_reached"
    made[0].sendall(b"x")
    assert read_exact(made[0], 1) == b"x"
    line = node.wait_for_log('end="refused: limit fair"')
    assert f"listener={door}" in line
    wait_until(lambda: metrics(node)["proxy_limited_total", frozenset({"fair"})] == 2, "both to be counted")
    assert node.log.count("refused: limit fair holds for 127.0.0.1") == 1  # once in 30 s
    made[0].close()
    wait_until(lambda: open_many(stack, 1, lambda: OPEN[door](node, echo))[0], "a place")


def test_a_client_that_cannot_take_a_refusal_is_told_by_a_close(stack: ExitStack, echo: Target) -> None:
    """DESIGN 1.5: with ``answer = at_once`` the 101 has gone by then."""
    doors = {"web": web_door(auth="none", answer="at_once")}
    node = stack.enter_context(run({"fair": {"per": "client", "connections": 1}}, **doors))
    stack.enter_context(closing(OPEN["web"](node, echo)))
    refused = clients.websocket(node.door("web"), "127.0.0.1", echo.port)
    stack.callback(refused.close)
    assert refused.recv_close() == 1011
    node.wait_for_log('end="refused: limit fair"')


def test_a_limit_holds_for_all_listeners_together(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run({"fair": {"per": "client", "connections": 3}}))
    made = [stack.enter_context(closing(OPEN[door](node, echo))) for door in OPEN]
    assert len(made) == 3
    for door in OPEN:
        assert not open_many(stack, 1, lambda door=door: OPEN[door](node, echo))[0]  # type: ignore[misc]
    (row,) = accounts(node)
    assert (row["limit"], row["client"], row["live"], row["connections"]) == ("fair", "127.0.0.1", 3, 3)


def test_users_have_their_own_and_who_has_none_is_a_client(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run({"fair": {"per": "user", "connections": 1}}))
    for user in USERS.items():
        made, errors = open_many(
            stack,
            2,
            lambda user=user: clients.socks5(node.door("users"), "127.0.0.1", echo.port, user),  # type: ignore[misc]
        )
        assert (len(made), len(errors)) == (1, 1)
    assert len(open_many(stack, 2, lambda: OPEN["socks"](node, echo))[0]) == 1
    assert sorted((row["user"], row["client"]) for row in accounts(node)) == [
        ("", "127.0.0.1"),
        ("alice", ""),
        ("bob", ""),
    ]


def test_new_ones_are_as_many_at_once_as_the_rate_says(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run({"slow": {"per": "all", "new": "5/h"}}))
    made, errors = open_many(stack, 8, lambda: OPEN["web"](node, echo))
    assert (len(made), len(errors)) == (5, 3)
    error = errors[-1]
    assert isinstance(error, HttpRefused)
    assert 700 <= int(error.headers["retry-after"]) <= 720  # an hour has five of them


def test_handshakes_count_and_of_those_over_the_limit_some_are_kept(stack: ExitStack, echo: Target) -> None:
    """Who says nothing holds no more places than that, whatever it opens."""
    few = {"socks": socks_door(auth="none", max_connections=80)}
    node = stack.enter_context(run({"fair": {"per": "client", "connections": 2}}, **few))
    silent = [stack.enter_context(connect(node.door("socks"))) for _ in range(70)]
    wait_until(lambda: node.log.count('refused: limit fair"') == 70 - 2 - 20, "the rest to be closed")
    wait_until(lambda: node.connections <= 4 + 2 + 20, "them to be gone")
    (row,) = accounts(node)
    assert row["live"] == 2
    silent[2].sendall(GREETING + to_ip("127.0.0.1", echo.port))
    assert read_exact(silent[2], 4) == b"\x05\x00\x05\x01"  # it was kept to be told
    for each in silent[:2]:
        each.close()
    wait_until(lambda: open_many(stack, 1, lambda: OPEN["socks"](node, echo))[0], "a place")


def test_the_client_is_the_one_that_a_proxy_before_us_tells(stack: ExitStack, echo: Target) -> None:
    told = socks_door(auth="none", client_address="proxy_protocol", trusted="127.0.0.0/8")
    node = stack.enter_context(run({"fair": {"per": "client", "connections": 1}}, told=told))

    def come(client: str) -> int:
        sock = stack.enter_context(connect(node.door("told")))
        sock.sendall(f"PROXY TCP6 {client} 2001:db8::1 5000 1080\r\n".encode())
        sock.sendall(GREETING + to_ip("127.0.0.1", echo.port))
        return read_exact(sock, 4)[3]

    assert [come("2001:db8:0:1::1"), come("2001:db8:0:1::2"), come("2001:db8:0:2::1")] == [0, 1, 0]
    assert {row["client"] for row in accounts(node)} == {"2001:db8:0:1::/64", "2001:db8:0:2::/64"}


def test_x_forwarded_for_tells_it_with_the_request(stack: ExitStack, echo: Target) -> None:
    told = web_door(auth="none", client_address="x_forwarded_for", trusted="127.0.0.0/8")
    node = stack.enter_context(run({"fair": {"per": "client", "connections": 1}}, told=told))

    def come(client: str) -> bytes:
        sock = stack.enter_context(connect(node.door("told")))
        request = upgrade_request("127.0.0.1", echo.port)
        sock.sendall(request.replace(b"\r\n", f"\r\nX-Forwarded-For: {client}\r\n".encode(), 1))
        return read_exact(sock, 12)[9:]

    assert [come("192.0.2.1"), come("192.0.2.1"), come("192.0.2.2")] == [b"101", b"429", b"101"]


# -- changes


def test_limits_that_come_change_and_go_hold_for_those_who_live(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run({}))
    made, _ = open_many(stack, 3, lambda: OPEN["socks"](node, echo))
    said(ctl(node, "set", "limits.fair.per", "client", "limits.fair.connections", "4"))
    assert [row["live"] for row in accounts(node)] == [3]
    more, errors = open_many(stack, 2, lambda: OPEN["web"](node, echo))
    assert (len(more), len(errors)) == (1, 1)
    said(ctl(node, "set", "limits.fair.connections", "1"))
    for tunnel in (*made, *more):
        tunnel.sendall(b"x")
        assert read_exact(tunnel, 1) == b"x"  # nobody was thrown out
    made[0].close()
    assert open_many(stack, 1, lambda: OPEN["web"](node, echo))[1]
    said(ctl(node, "unset", "limits.fair"))
    assert ask(node, "/limits") == {"limits": [], "refused": {"fair": 2}, "total": 0, "accounts": []}
    assert len(open_many(stack, 9, lambda: OPEN["web"](node, echo))[0]) == 9


def test_who_is_still_to_be_told_about_when_a_limit_comes_counts_once(stack: ExitStack, echo: Target) -> None:
    told = socks_door(auth="none", client_address="proxy_protocol", trusted="127.0.0.0/8")
    node = stack.enter_context(run({"other": {"per": "all", "connections": 9}}, told=told))
    sock = stack.enter_context(connect(node.door("told")))
    wait_until(lambda: ask(node, "/connections")["connections"], "it to be accepted")
    said(ctl(node, "set", "limits.fair.per", "client", "limits.fair.connections", "5"))
    assert [row["client"] for row in accounts(node) if row["limit"] == "fair"] == []  # nobody knows yet
    sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 1080\r\n" + GREETING + to_ip("127.0.0.1", echo.port))
    assert read_exact(sock, 4) == b"\x05\x00\x05\x00"
    assert {(row["limit"], row["client"], row["live"]) for row in accounts(node)} == {
        ("fair", "192.0.2.7", 1),
        ("other", "", 1),
    }
    sock.close()
    wait_until(lambda: accounts(node) == [], "it to count no more")


def test_a_wrong_limit_is_refused_and_changes_nothing(stack: ExitStack) -> None:
    node = stack.enter_context(run({"fair": {"per": "user", "bandwidth": "2m"}}))
    done = ctl(node, "set", "limits.fair.bandwidth", "2mb")
    assert done.returncode == 1
    assert b"limits.fair" in done.stderr
    done = ctl(node, "set", "limits.fair.listener", "wbe")
    assert b"there is no wbe in [listeners]; did you mean web?" in done.stderr
    assert "bandwidth = 2097152" in said(ctl(node, "show"))


def test_ctl_limits_is_a_table_for_people(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(
        run({"fair": {"per": "user", "connections": 5, "new": "10/s", "bandwidth": "2m"}})
    )
    assert said(ctl(node, "limits")) == "nobody uses a limit\n"
    open_many(stack, 2, lambda: clients.socks5(node.door("users"), "127.0.0.1", echo.port, ALICE))
    heads, row = said(ctl(node, "limits")).splitlines()
    assert heads.split() == ["LIMIT", "WHO", "LIVE", "NEW/S", "SENT/S", "RECEIVED/S", "WAITING"]
    assert row.split()[:5] == ["fair", "alice", "2", "of", "5"]
    assert "of 10/s" in row
    assert row.count("of 2.0 MiB") == 2


# -- bandwidth


@pytest.mark.parametrize("door", list(OPEN))
def test_a_transfer_takes_the_time_that_its_bandwidth_gives_it(door: str, stack: ExitStack) -> None:
    data = os.urandom(MIB)
    target = stack.enter_context(Target(targets.source(data)))
    node = stack.enter_context(run({"fair": {"per": "client", "bandwidth": "1m"}}))
    began = monotonic()
    tunnel = stack.enter_context(closing(OPEN[door](node, target)))
    received = b""
    while len(received) < len(data):
        received += tunnel.recv(1 << 16)
    assert monotonic() - began >= 0.85  # a second, less what a bucket holds
    assert received == data
    (row,) = accounts(node)
    assert row["received"] > 0
    assert row["sent"] < row["received"]


def test_a_bandwidth_holds_at_once_for_a_live_connection_and_its_removal_too(stack: ExitStack) -> None:
    target = stack.enter_context(Target(targets.source(bytes(1 << 30))))
    node = stack.enter_context(run({}))
    tunnel = stack.enter_context(closing(OPEN["socks"](node, target)))
    threading.Thread(target=take_all, args=[tunnel], daemon=True).start()

    def received() -> int:
        (row,) = ask(node, "/connections")["connections"]
        return int(row["received"])

    wait_until(lambda: received() > 8 * MIB, "it to run")
    said(ctl(node, "set", "limits.fair.per", "client", "limits.fair.bandwidth", "20k"))
    began, before = monotonic(), received()
    wait_until(lambda: accounts(node)[0]["waiting"] == 1, "it to wait")
    wait_until(lambda: monotonic() - began > 0.5, "half a second")
    more = received() - before
    assert more <= 20 * 1024 * (monotonic() - began + 0.1)  # what a bucket holds, and a debt
    said(ctl(node, "unset", "limits.fair"))
    wait_until(lambda: received() > before + more + 8 * MIB, "it to run again")


def take_all(tunnel: Tunnel) -> None:
    """Read and forget."""
    with suppress(OSError):
        while tunnel.recv(1 << 18):
            pass


def test_a_small_connection_of_another_identity_is_not_behind_one_that_waits(
    stack: ExitStack, echo: Target
) -> None:
    source = stack.enter_context(Target(targets.source(bytes(64 * MIB))))
    node = stack.enter_context(run({"fair": {"per": "user", "bandwidth": "1k"}}))
    greedy = clients.socks5(node.door("users"), "127.0.0.1", source.port, ALICE)
    stack.callback(greedy.close)
    wait_until(lambda: any(row["waiting"] for row in accounts(node)), "alice to wait")
    other = clients.socks5(node.door("users"), "127.0.0.1", echo.port, ("bob", "builder"))
    stack.callback(other.close)
    other.sendall(b"hello")
    assert read_exact(other, 5) == b"hello"


def test_nothing_is_left_behind_of_those_who_waited(stack: ExitStack) -> None:
    source = stack.enter_context(Target(targets.source(bytes(64 * MIB))))
    node = stack.enter_context(run({"fair": {"per": "client", "bandwidth": "1k"}}))
    for _ in range(8):
        OPEN["socks"](node, source).close()
    stuck = OPEN["socks"](node, source)
    wait_until(lambda: accounts(node)[0]["live"] == 1, "the others to have ended")
    reset(stuck.sock)
    node.wait_until_empty()
    wait_until(lambda: accounts(node) == [], "what is owed to be paid")
