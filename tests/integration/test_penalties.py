"""
Failed logins, through the doors of the program: who is refused for them, and who is not.

DESIGN 1.11. Who is who is told by the PROXY protocol and by X-Forwarded-For, as all of them are on this
machine, whose own clients are exempt.
"""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy.policy.auth import hash_password
from tests.integration.programs import Proxy, mixed_door, socks_door, web_door
from tests.integration.test_control import ask, ctl, metrics, said
from tests.wire import clients
from tests.wire.sockets import connect, read_exact
from tests.wire.socks5 import LOGIN_GREETING, login
from tests.wire.targets import Target
from tests.wire.waits import wait_until
from tests.wire.websocket import Peer, upgrade_request

TOLD = {"client_address": "proxy_protocol", "trusted": "127.0.0.0/8"}
FORWARDED = {"client_address": "x_forwarded_for", "trusted": "127.0.0.0/8"}
EVE, ALICE = "198.51.100.9", "192.0.2.1"


def run(users: dict[str, str] | None = None, **proxy: Any) -> Proxy:
    """Make a program at which bob may log in; where anybody has a hash, each wrong login costs one."""
    listeners = {
        "socks": socks_door(**TOLD),
        "web": web_door(**FORWARDED),
        "mixed": mixed_door(**FORWARDED),
        "near": socks_door(),
    }
    # The sum of four is a minute, and stays above that of three for long enough on a busy machine.
    settings = {"guard": "off", "login_penalty": "15s", **proxy}
    return Proxy({"proxy": settings, "listeners": listeners, "auth_users": users or {"bob": "builder"}})


@pytest.fixture
def node() -> Iterator[Proxy]:
    with run() as made:
        yield made


def by_socks(node: Proxy, client: str, password: str, user: str = "bob") -> int:
    """Log in by SOCKS5; gives the status (RFC 1929, section 2)."""
    family = "TCP6" if ":" in client else "TCP4"
    other = "::1" if ":" in client else "127.0.0.1"
    with connect(node.door("socks")) as sock:
        sock.sendall(f"PROXY {family} {client} {other} 5000 1080\r\n".encode() + LOGIN_GREETING)
        assert read_exact(sock, 2) == b"\x05\x02"
        sock.sendall(login(user.encode(), password.encode()))
        return read_exact(sock, 2)[1]


def by_web(node: Proxy, client: str, password: str) -> tuple[int, dict[str, str]]:
    """Ask for a WebSocket; gives status and headers of the answer."""
    request = upgrade_request("127.0.0.1", 9, ("bob", password))
    with Peer.connect(node.door("web")) as peer:
        peer.write(request.removesuffix(b"\r\n") + f"X-Forwarded-For: {client}\r\n\r\n".encode())
        return peer.read_answer()


def by_connect(node: Proxy, client: str, password: str) -> tuple[int, dict[str, str]]:
    """Ask an HTTP proxy for a tunnel."""
    basic = base64.b64encode(f"bob:{password}".encode()).decode()
    with Peer.connect(node.door("mixed")) as peer:
        lines = ("CONNECT 127.0.0.1:9 HTTP/1.1", "Host: 127.0.0.1:9", f"Proxy-Authorization: Basic {basic}")
        peer.write("\r\n".join([*lines, f"X-Forwarded-For: {client}", "", ""]).encode())
        return peer.read_answer()


BY_HTTP: dict[str, Callable[[Proxy, str, str], tuple[int, dict[str, str]]]] = {
    "web": by_web,
    "mixed": by_connect,
}
UNAUTHORIZED = {"web": 401, "mixed": 407}


def fail(node: Proxy, client: str, times: int = 4) -> None:
    """Fail so often that nothing is judged for a while."""
    for _ in range(times):
        assert by_socks(node, client, "wrong") == 1


def test_above_three_failures_also_the_right_password_is_refused_and_nobody_elses(node: Proxy) -> None:
    fail(node, EVE, 3)
    assert by_socks(node, EVE, "builder") == 0
    fail(node, EVE, 1)
    assert by_socks(node, EVE, "builder") == 1
    assert by_socks(node, ALICE, "builder") == 0
    assert metrics(node)["proxy_logins_penalized_total", frozenset()] >= 1
    line = node.wait_for_log('end="refused: login penalty"')
    assert f"client={EVE}:5000" in line
    assert f"refused: login penalty holds for {EVE}" in node.log


def test_the_line_for_fail2ban_is_that_of_a_login_that_failed_and_of_no_other(node: Proxy) -> None:
    fail(node, EVE)
    for _ in range(3):
        assert by_socks(node, EVE, "wrong") == 1
    wait_until(lambda: node.log.count('end="refused: login penalty"') == 3, "the last of them to be logged")
    assert node.log.count(f"authentication failed: client={EVE} user=bob listener=socks") == 4


@pytest.mark.parametrize("door", BY_HTTP)
def test_http_says_when_to_come_again(door: str, node: Proxy) -> None:
    for _ in range(4):
        assert BY_HTTP[door](node, EVE, "wrong")[0] == UNAUTHORIZED[door]
    status, headers = BY_HTTP[door](node, EVE, "builder")
    assert status == 429  # RFC 6585, section 4
    assert 1 <= int(headers["retry-after"]) <= 15
    assert BY_HTTP[door](node, ALICE, "builder")[0] == 502  # nothing listens at the target


def test_it_is_one_sum_for_all_listeners_and_of_ipv6_for_a_64(node: Proxy) -> None:
    for number in range(2):
        fail(node, f"2001:db8:0:1::{number}", 1)
        assert by_web(node, f"2001:db8:0:1::f{number}", "wrong")[0] == 401
    assert by_socks(node, "2001:db8:0:1::9", "builder") == 1
    assert by_socks(node, "2001:db8:0:2::9", "builder") == 0


def test_a_hash_is_not_even_computed() -> None:
    with run({"alice": hash_password("wonderland")}) as node:
        for _ in range(4):
            assert by_socks(node, EVE, "wrong", "alice") == 1
        before = cpu_of(node)
        for _ in range(20):
            assert by_socks(node, EVE, "wonderland", "alice") == 1
        assert cpu_of(node) - before < 10 * 0.03  # of twenty hashes, each of which takes that and more


def cpu_of(node: Proxy) -> float:
    return metrics(node)["process_cpu_seconds_total", frozenset()]


def test_who_comes_from_this_machine_is_exempt_where_nobody_tells_who_it_is(
    node: Proxy, echo: Target
) -> None:
    for _ in range(8):
        with pytest.raises(clients.LoginRefused):
            clients.socks5(node.door("near"), "127.0.0.1", echo.port, ("bob", "wrong"))
    clients.socks5(node.door("near"), "127.0.0.1", echo.port, ("bob", "builder")).close()


def test_some_are_exempt_and_0_is_off() -> None:
    with run(login_exempt="198.51.100.0/24") as node:
        fail(node, EVE, 8)
        assert by_socks(node, EVE, "builder") == 0
        assert ctl(node, "set", "proxy.login_penalty", "0").returncode == 0
        fail(node, ALICE, 8)
        assert by_socks(node, ALICE, "builder") == 0


def test_a_reload_forgets_nothing_and_another_penalty_holds_at_once(node: Proxy) -> None:
    fail(node, EVE)
    assert ctl(node, "set", "proxy.timeout", "20s").returncode == 0
    assert by_socks(node, EVE, "builder") == 1
    assert ctl(node, "set", "proxy.login_penalty", "19900ms").returncode == 0
    wait_until(lambda: by_socks(node, EVE, "builder") == 0, "the sum to be three of these")
    too_much = ctl(node, "set", "proxy.login_penalty", "20s")
    assert b"must be less than 20s" in too_much.stdout + too_much.stderr


def test_an_operator_sees_and_forgives_it(node: Proxy) -> None:
    assert "no login has failed recently" in said(ctl(node, "penalties"))
    fail(node, EVE)
    (row,) = ask(node, "/penalties")["penalties"]
    assert row["client"] == EVE
    assert 0 < row["seconds"] <= 60
    assert EVE in said(ctl(node, "penalties"))
    assert said(ctl(node, "forgive", EVE)).strip() == f"{EVE} is forgiven"
    assert by_socks(node, EVE, "builder") == 0
    assert ctl(node, "forgive", EVE).returncode == 1
    for word in ("eve", "127.1"):  # the second is no address as a log has it
        assert f"{word} is not an IP address".encode() in ctl(node, "forgive", word).stderr
    fail(node, "2001:db8::7")
    assert said(ctl(node, "forgive", "2001:db8::/64")).strip() == "2001:db8::/64 is forgiven"


def test_a_flood_is_told_for_a_while_and_then_closed_without_a_word(node: Proxy) -> None:
    """What it costs stands in docs/security.md; others log in meanwhile."""
    fail(node, EVE)
    told = 0
    for _ in range(300):
        with connect(node.door("socks")) as sock:
            sock.sendall(f"PROXY TCP4 {EVE} 127.0.0.1 5000 1080\r\n".encode() + LOGIN_GREETING)
            sock.settimeout(10)
            try:
                told += sock.recv(2) == b"\x05\x02"
            except OSError:
                continue
    assert told < 300
    assert by_socks(node, ALICE, "builder") == 0
    wait_until(lambda: metrics(node)["proxy_logins_penalized_total", frozenset()] > 100, "them to be counted")
