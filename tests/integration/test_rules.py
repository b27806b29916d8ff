"""
Rules and the guard, through the doors of the program, and what is said of them.

DESIGN 1.10. What each sentence of it means stands in ``policy/test_rules`` and ``test_routing``.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.integration.netns import Namespace
from tests.integration.programs import Proxy, mixed_door, run_proxy, socks_door, upstream, web_door
from tests.integration.test_control import ask, ctl, curl, metrics, said
from tests.wire import clients, targets
from tests.wire.clients import HttpRefused, SocksRefused, Tunnel
from tests.wire.sockets import connect, free_port, read_exact
from tests.wire.targets import Target
from tests.wire.waits import wait_until

USERS = {"alice": "wonderland"}
GRANTED, NOT_ALLOWED, HOST_UNREACHABLE = 0, 2, 4  # RFC 1928, section 6
Rules = dict[str, dict[str, Any]]


def run(
    rules: Rules,
    *,
    upstreams: dict[str, Any] | None = None,
    proxy: dict[str, Any] | None = None,
    **doors: Any,
) -> Proxy:
    """Make a program with a door of each kind for anybody, and one for users."""
    listeners = {
        "socks": socks_door(auth="none"),
        "users": socks_door(),
        "web": web_door(auth="none"),
        "mixed": mixed_door(auth="none"),
        **doors,
    }
    sections = {"listeners": listeners, "auth_users": USERS, "upstreams": upstreams or {}, "rules": rules}
    return Proxy(sections)


def reply(node: Proxy, host: str, port: int, door: str = "socks", **login: Any) -> int:
    """Ask a SOCKS5 door for an echo; gives the reply."""
    try:
        tunnel = clients.socks5(node.door(door), host, port, **login)
    except SocksRefused as exc:
        return exc.reply
    with closing(tunnel):
        tunnel.sendall(b"x")
        assert read_exact(tunnel, 1) == b"x"
    return GRANTED


def by_web(node: Proxy, port: int) -> Tunnel:
    return clients.websocket(node.door("web"), "127.0.0.1", port)


def by_connect(node: Proxy, port: int) -> None:
    answer_of(node, f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n")


def by_get(node: Proxy, port: int) -> None:
    answer_of(node, f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n")


def answer_of(node: Proxy, request: str) -> None:
    """Send a request to the mixed door; raises ``HttpRefused`` with what it answers."""
    with connect(node.door("mixed")) as sock:
        sock.sendall(request.encode())
        answer = b""
        while data := sock.recv(4096):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    raise HttpRefused(int(status.split()[1]), headers, body)


HTTP: dict[str, Callable[[Proxy, int], object]] = {
    "web": by_web,
    "mixed connect": by_connect,
    "mixed get": by_get,
}


@pytest.mark.parametrize("door", HTTP)
def test_a_refusal_names_the_rule_at_every_door_that_has_words(door: str, echo: Target) -> None:
    with run({"guests": {"to": "self", "action": "block"}}) as node:
        with pytest.raises(HttpRefused) as refused:
            HTTP[door](node, echo.port)
        assert refused.value.status == 403  # RFC 9110, section 15.5.4
        assert refused.value.proxy_error == "destination_ip_prohibited"  # RFC 9209, section 2.3.5
        assert refused.value.body == b"not allowed by rule guests\n"
        line = node.wait_for_log("rule=guests")
        assert f'end="refused: 127.0.0.1:{echo.port}: not allowed by rule guests"' in line
        assert metrics(node)["proxy_rule_total", frozenset({"guests", "block"})] == 1
        assert reply(node, "127.0.0.1", echo.port) == NOT_ALLOWED
        assert reply(node, "localhost", echo.port) == NOT_ALLOWED


def test_a_client_that_cannot_take_a_refusal_is_told_by_a_close(echo: Target) -> None:
    rules: Rules = {"guests": {"to": "self", "action": "block"}}
    with ExitStack() as stack:
        node = stack.enter_context(run(rules, web=web_door(auth="none", answer="at_once")))
        tunnel = clients.websocket(node.door("web"), "127.0.0.1", echo.port)
        stack.callback(tunnel.close)
        assert tunnel.recv_close() == 1011


def test_a_rule_is_for_those_whom_it_names(echo: Target) -> None:
    rules: Rules = {
        "alice-here": {"user": "alice", "port": echo.port},
        "only-here": {"listener": "socks, users", "action": "block"},
    }
    with run(rules) as node:
        assert reply(node, "127.0.0.1", echo.port, "users", credentials=("alice", "wonderland")) == GRANTED
        assert reply(node, "127.0.0.1", echo.port) == NOT_ALLOWED
        by_web(node, echo.port).close()  # the rule is for other listeners


def test_a_blocked_address_of_a_name_is_not_dialled_and_the_others_are() -> None:
    rules = {"four": {"to": "0.0.0.0/0", "action": "block"}}
    with ExitStack() as stack:
        space = stack.enter_context(Namespace())
        space.hosts("127.0.0.1 both.test\n::1 both.test\n")
        target = stack.enter_context(space.run(lambda: Target(targets.echo)))
        doors = {"socks": socks_door()}
        node = stack.enter_context(Proxy({"listeners": doors, "rules": rules}, prefix=space.prefix))
        assert space.run(lambda: reply(node, "both.test", target.port)) == GRANTED
        assert space.run(lambda: reply(node, "127.0.0.1", target.port)) == NOT_ALLOWED
        assert ctl(node, "set", "rules.six.to", "::/0", "rules.six.action", "block").returncode == 0
        assert space.run(lambda: reply(node, "both.test", target.port)) == NOT_ALLOWED


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "::ffff:127.0.0.1", "2130706433", "127.1", "64:ff9b::7f00:1"]
)
def test_the_guard_stops_who_comes_from_elsewhere_without_a_login(host: str, echo: Target) -> None:
    """CASES 219: it is on by default, and no spelling gets round it."""
    far = {"socks": socks_door(auth="none", listen_addr=f"0.0.0.0:{free_port()}")}
    with run({}, **far) as node:
        assert reply(node, host, echo.port) == NOT_ALLOWED
        node.wait_for_log("rule=guard")
        assert metrics(node)["proxy_rule_total", frozenset({"guard", "block"})] == 1
        assert ctl(node, "set", "proxy.guard", "off").returncode == 0
        if host != "64:ff9b::7f00:1":  # to which nothing leads
            assert reply(node, host, echo.port) == GRANTED


def test_a_rule_that_names_the_address_is_an_exception_to_the_guard(echo: Target) -> None:
    far = {"socks": socks_door(auth="none", listen_addr=f"0.0.0.0:{free_port()}")}
    with run({"here": {"to": "127.0.0.1", "port": echo.port}}, **far) as node, Target(targets.echo) as other:
        assert reply(node, "127.0.0.1", echo.port) == GRANTED
        assert reply(node, "localhost", echo.port) == GRANTED
        assert reply(node, "127.0.0.1", other.port) == NOT_ALLOWED


def test_our_own_listener_is_no_target_of_ours_at_a_guard_that_is_off_here() -> None:
    """CASES 375."""
    with run({}) as node:
        assert reply(node, "127.0.0.1", node.door("web")[1]) == NOT_ALLOWED
        assert "only a rule that names address and port allows it" in node.wait_for_log("rule=guard")


def test_a_rule_leads_another_way_also_by_the_address_that_was_looked_up(echo: Target) -> None:
    with Proxy({"listeners": {"far": socks_door()}}) as far:
        ways = {"home": upstream("socks5", far.door("far"))}
        rules = {"by-name": {"to": "localhost", "port": echo.port, "action": "home"}}
        with run(rules, upstreams=ways) as node:
            assert reply(node, "localhost", echo.port) == GRANTED
            line = node.wait_for_log("end=finished")
            assert "upstream=home rule=by-name" in line
            assert ctl(node, "set", "rules.by-name.to", "self").returncode == 0
            assert reply(node, "localhost", echo.port) == GRANTED
            wait_until(
                lambda: node.log.count("upstream=home rule=by-name") == 2, "the second to go by home too"
            )


def test_with_resolve_a_name_is_looked_up_here_and_a_failure_ends_it(echo: Target) -> None:
    with Proxy({"listeners": {"far": socks_door()}}) as far:
        ways = {"home": upstream("socks5", far.door("far"))}
        rules = {"lan": {"to": "self", "resolve": "yes", "action": "block"}}
        with run(rules, upstreams=ways, socks=socks_door(auth="none", upstream="home")) as node:
            assert reply(node, "localhost", echo.port) == NOT_ALLOWED
            assert reply(node, "nowhere.invalid", echo.port) == HOST_UNREACHABLE


def test_a_far_rule_is_told_to_the_client_of_the_near_door(echo: Target) -> None:
    far = Proxy({"listeners": {"web": web_door()}, "rules": {"far": {"to": "self", "action": "block"}}})
    with (
        far,
        run(
            {},
            upstreams={"home": upstream("websocket", far.door("web"))},
            socks=socks_door(auth="none", upstream="home"),
        ) as node,
    ):
        assert reply(node, "127.0.0.1", echo.port) == NOT_ALLOWED


# Changed while it runs


def test_a_new_rule_holds_for_new_connections_and_a_rejected_one_for_none(echo: Target) -> None:
    with run({}) as node:
        with closing(clients.socks5(node.door("socks"), "127.0.0.1", echo.port)) as live:
            assert ctl(node, "set", "rules.no.to", "127.0.0.0/8", "rules.no.action", "block").returncode == 0
            assert reply(node, "127.0.0.1", echo.port) == NOT_ALLOWED
            live.sendall(b"x")
            assert read_exact(live, 1) == b"x"
        rejected = ctl(node, "set", "rules.no.action", "hom")
        assert "there is no hom in [upstreams]" in rejected.stdout.decode() + rejected.stderr.decode()
        assert reply(node, "127.0.0.1", echo.port) == NOT_ALLOWED
        assert "[[no]]" in node.config_path.read_text()
        assert ctl(node, "unset", "rules.no").returncode == 0
        assert reply(node, "127.0.0.1", echo.port) == GRANTED
        assert "rules +no" in said(ctl(node, "versions"))


def test_an_upstream_that_only_a_rule_names_is_looked_after_and_shown() -> None:
    ways = {"home": upstream("socks5", f"127.0.0.1:{free_port()}")}
    with run({"by-home": {"to": "a.example", "action": "home"}}, upstreams=ways) as node:
        shown = [(each["listener"], each["name"]) for each in ask(node, "/status")["upstreams"]]
        assert ("socks", "home") in shown
        assert "home" in said(ctl(node, "status"))


def test_a_rule_that_only_reports_says_so_and_lets_go_on(echo: Target) -> None:
    with run({"try": {"to": "self", "action": "block", "report": "yes"}}) as node:
        assert reply(node, "127.0.0.1", echo.port) == GRANTED
        node.wait_for_log(f"socks: rule try would block: 127.0.0.1:{echo.port} (client 127.0.0.1)")
        assert metrics(node)["proxy_rule_total", frozenset({"try", "would_block"})] == 1


# Explained


def test_explain_says_what_becomes_of_a_target_and_exits_accordingly(echo: Target) -> None:
    with run({"guests": {"listener": "web", "to": "private", "action": "block"}}) as node:
        refused = ctl(node, "explain", f"localhost:{echo.port}", "--listener", "web", "--user", "bob")
        assert refused.returncode == 1
        text = refused.stdout.decode()
        assert "1 guests     open  to: private, judged after the lookup" in text
        assert "looked up here: " in text
        assert "  not allowed by rule guests" in text
        assert "SOCKS 02, HTTP 403 destination_ip_prohibited" in text
        goes = ctl(node, "explain", "127.0.0.1:80", "--listener", "socks")
        assert (goes.returncode, goes.stdout.decode().splitlines()[-1]) == (0, "goes: through direct")
        assert ctl(node, "explain", "a:80").returncode == 2  # at which listener?
        status, body = curl(node, "/explain?target=127.0.0.1:80&listener=web&from=192.0.2.7")
        answer = json.loads(body)
        assert (status, answer["goes"], answer["socks"], answer["http"]) == (200, False, 2, 403)
        for wrong, said in (
            ("target=a", "target: is not host:port or [::1]:port"),
            ("target=a:99999", "target: port 99999 is not between 0 and 65535"),
            ("target=a:80", "listener: must be one of "),
            ("target=a:80&listener=x", "listener: there is no x, only "),
            ("target=a:80&listener=web&from=x", "from: is not an IP address"),
            ("target=a:80&listener=web&from=1.2.3", "from: is not an IP address"),
        ):
            status, body = curl(node, f"/explain?{wrong}")
            assert (status, json.loads(body)["error"].startswith(said)) == (400, True)
        assert curl(node, "/explain?target=127.0.0.1:80&listener=web&port=7")[0] == 400
    assert ctl(node, "explain", "127.0.0.1:80", "--listener", "web").returncode == 2  # nobody answers


def test_a_file_is_explained_without_a_server(echo: Target) -> None:
    node = run({"guests": {"listener": "web", "to": "private", "action": "block"}})
    with node:
        explain = ("-c", str(node.config_path), "-explain")
        refused = run_proxy(*explain, "127.0.0.1:80", "-listener", "web", "-from", "192.0.2.7")
        assert refused.returncode == 1
        assert b"not allowed by rule guests" in refused.stdout
        assert run_proxy(*explain, "192.0.2.1:80", "-listener", "web").returncode == 0
        ours = run_proxy(*explain, f"127.0.0.1:{node.door('mixed')[1]}", "-listener", "socks")
        assert ours.returncode == 1
        assert b"this proxy itself listens on" in ours.stdout
        assert run_proxy(*explain, "a:80", "-listener", "x").returncode == 2
        assert run_proxy("-c", str(node.config_path), "-listener", "web").returncode == 2


def test_check_says_what_is_open() -> None:
    far = {"socks": socks_door(auth="none", listen_addr=f"0.0.0.0:{free_port()}")}
    with run({}, **far) as node:
        checked = run_proxy("-c", str(node.config_path), "-check")
    assert checked.stdout == b"ok\n"
    said_of = dict(
        line.split(": ", 2)[1:] for line in checked.stderr.decode().splitlines() if "note: " in line
    )
    assert said_of["socks"] == (
        "anybody who reaches it may connect to whatever this machine reaches, private networks included, "
        "but not itself (guard = auto)"
    )
    assert said_of.keys() == {"socks"}  # nobody else reaches the others
