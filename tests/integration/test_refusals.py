"""Clients that got no connection, as an operator sees them afterwards: who, where to, and why."""

import base64
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.programs import Proxy, mixed_door, socks_door, upstream, web_door
from tests.integration.test_control import ask, ctl, said
from tests.wire import clients, targets
from tests.wire.clients import HttpRefused, LoginRefused, SocksRefused
from tests.wire.sockets import connect, free_port
from tests.wire.targets import Target
from tests.wire.waits import wait_until


@pytest.fixture
def node() -> Iterator[Proxy]:
    listeners = {
        "socks": socks_door(auth="none"),
        "users": socks_door(),
        "web": web_door(auth="none"),
        "mixed": mixed_door(),
    }
    limits = {"few": {"per": "client", "connections": 1, "listener": "web"}}
    rules = {"no": {"to": "192.0.2.0/24", "action": "block"}}
    users = {"alice": "wonderland"}
    with Proxy({"listeners": listeners, "limits": limits, "rules": rules, "auth_users": users}) as made:
        yield made


def refusals(node: Proxy) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ask(node, "/refusals")["refusals"]
    return rows


def last(node: Proxy) -> dict[str, Any]:
    """Give the last one, without its time and the client's port."""
    found = refusals(node)[-1]
    assert abs(found.pop("time") - time.time()) < 60
    assert found.pop("client").startswith("127.0.0.1:")
    return found


NOTHING = {"user": "", "target": "", "upstream": "", "rule": "", "limit": ""}


def test_each_is_told_with_its_stage_and_its_cause(node: Proxy) -> None:
    port = free_port()
    with pytest.raises(SocksRefused):
        clients.socks5(node.door("socks"), "127.0.0.1", port)
    wait_until(lambda: refusals(node), "the first one")
    there = {**NOTHING, "listener": "socks", "stage": "target"}
    to = f"127.0.0.1:{port}"
    told = {"target": to, "upstream": "direct", "cause": "connection refused"}
    assert last(node) == {**there, **told, "reason": f"{to}: Connection refused"}
    with pytest.raises(SocksRefused):
        clients.socks5(node.door("users"), "192.0.2.7", 80, ("alice", "wonderland"))
    wait_until(lambda: len(refusals(node)) == 2, "the second one")
    refused = {"user": "alice", "target": "192.0.2.7:80", "cause": "not allowed", "rule": "no"}
    refused["reason"] = "192.0.2.7:80: not allowed by rule no"
    assert last(node) == {**there, "listener": "users", **refused}
    with pytest.raises(LoginRefused):
        clients.socks5(node.door("users"), "192.0.2.7", 80, ("eve", "x"))
    wait_until(lambda: len(refusals(node)) == 3, "the third one")
    handshake = {**NOTHING, "listener": "users", "stage": "handshake"}
    assert last(node) == {
        **handshake,
        "user": "eve",
        "cause": "credentials refused",
        "reason": "login refused",
    }


def test_a_limit_is_named_and_all_of_it_is_shown_to_people(node: Proxy) -> None:
    assert said(ctl(node, "refusals")).strip() == "nobody was refused"
    with Target(targets.echo) as target:
        held = clients.websocket(node.door("web"), "127.0.0.1", target.port)
        with pytest.raises(HttpRefused):
            clients.websocket(node.door("web"), "127.0.0.1", target.port)
        wait_until(lambda: refusals(node), "it")
        assert last(node)["limit"] == "few"
        held.close()
    line = said(ctl(node, "refusals")).splitlines()[-1]
    assert line.endswith(f"web       127.0.0.1:{target.port}  -         limit few  too many requests")


def test_a_failed_upstream_is_named_with_what_the_access_log_says_of_it() -> None:
    port = free_port()
    gateway = upstream("websocket", f"ws://127.0.0.1:{port}/?token=sesame", retry_count=0)
    node = Proxy({"listeners": {"socks": socks_door(upstream="gateway")}, "upstreams": {"gateway": gateway}})
    with node:
        with pytest.raises(SocksRefused):
            clients.socks5(node.door("socks"), "a.example", 80)
        line = node.wait_for_log(" access ")
        reason = line.partition('end="refused: ')[2].partition('"')[0]
        assert reason.startswith("upstream gateway: ")
        found = last(node)
        assert (found["upstream"], found["cause"]) == ("gateway", "upstream proxy failed")
        assert found["reason"] == reason
        shown = said(ctl(node, "refusals"))
        assert shown.splitlines()[-1].endswith(f"a.example:80  gateway   -   {reason}")
        assert "sesame" not in shown + said(ctl(node, "--json", "refusals"))


def test_hostile_names_stay_text_and_no_password_is_kept(node: Proxy) -> None:
    with connect(node.door("mixed")) as sock:
        basic = base64.b64encode(b"\x1b[31mred:sesame").decode()
        lines = ("CONNECT a.example:80 HTTP/1.1", "Host: a.example:80", f"Proxy-Authorization: Basic {basic}")
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 407")
    wait_until(lambda: refusals(node), "it")
    text = said(ctl(node, "refusals")) + said(ctl(node, "--json", "refusals"))
    assert "\x1b" not in text
    assert "sesame" not in text


def test_the_latest_two_hundred_are_kept_also_over_a_reload(node: Proxy) -> None:
    port = free_port()
    for _ in range(205):
        with pytest.raises(SocksRefused):
            clients.socks5(node.door("socks"), "127.0.0.1", port)
    assert ctl(node, "set", "proxy.timeout", "20s").returncode == 0
    with pytest.raises(SocksRefused):
        clients.socks5(node.door("socks"), "192.0.2.7", 80)
    wait_until(lambda: len(refusals(node)) == 200 and last(node)["rule"] == "no", "the last one")
