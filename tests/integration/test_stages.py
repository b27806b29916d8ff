"""Upstreams that are tested stage by stage: from a file, and from where a server runs."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.integration import peers
from tests.integration.certificates import Authority
from tests.integration.programs import Proxy, mixed_door, run_proxy, socks_door, upstream, web_door
from tests.wire import targets
from tests.wire.sockets import free_port
from tests.wire.targets import Target

USERS = {"alice": "wonder:land"}
LOGIN = {"proxy_username": "alice", "proxy_password": "wonder:land"}
WRONG = {"proxy_username": "alice", "proxy_password": "s3cret"}


@pytest.fixture(scope="module")
def echo() -> Iterator[Target]:
    with Target(targets.echo) as target:
        yield target


@pytest.fixture(scope="module")
def silent() -> Iterator[int]:
    with targets.mute() as port:
        yield port


@pytest.fixture(scope="module")
def node(silent: int) -> Iterator[Proxy]:
    """A node that has a gateway with every door as its upstreams."""
    with ExitStack() as stack:
        gateway = Proxy(
            {
                "listeners": {
                    "socks": socks_door(),
                    "http": mixed_door(),
                    "ws": web_door(),
                    "wss": web_door(tls_cert="node.pem", tls_key="node.key"),
                    "old": web_door(tls_cert="old.pem", tls_key="old.key"),
                },
                "auth_users": USERS,
            }
        )
        authority = Authority(gateway.directory)
        authority.issue("node", "localhost")
        authority.issue("old", "localhost", expired=True)
        stack.enter_context(gateway)
        # A node lets nobody come to its own listeners by itself, so what leads on is another one.
        doors = {"socks": socks_door(), "http": mixed_door()}
        corporate = stack.enter_context(Proxy({"listeners": doors, "auth_users": USERS}))
        secure = f"wss://localhost:{gateway.door('wss')[1]}/?token=s3cret"
        trust = {"tls_ca": str(authority.root.cert)}
        upstreams = {
            "socks": upstream("socks5", gateway.door("socks"), **LOGIN),
            "socks-wrong": upstream("socks5", gateway.door("socks"), **WRONG),
            "http": upstream("http", gateway.door("http"), **LOGIN),
            "http-wrong": upstream("http", gateway.door("http"), **WRONG),
            "ws": upstream("websocket", gateway.door("ws"), **LOGIN),
            "wss": upstream("websocket", secure, **LOGIN, **trust),
            "unchecked": upstream("websocket", secure, **LOGIN, tls_verify="no"),
            "untrusted": upstream("websocket", secure, **LOGIN),
            "expired": upstream("websocket", f"wss://localhost:{gateway.door('old')[1]}/", **LOGIN, **trust),
            "near": upstream("socks5", corporate.door("socks"), **LOGIN),
            "by-socks": upstream("websocket", secure, **LOGIN, **trust, via="near"),
            "near-http": upstream("http", corporate.door("http"), **LOGIN),
            "by-http": upstream("socks5", gateway.door("socks"), **LOGIN, via="near-http"),
            "by-both": upstream("http", corporate.door("http"), **LOGIN, via="by-http"),
            "by-wrong": upstream("websocket", gateway.door("ws"), **LOGIN, via="http-wrong"),
            "silent": upstream("socks5", f"127.0.0.1:{silent}", timeout="0.5s"),
            "silent-tls": upstream("http", f"https://127.0.0.1:{silent}", timeout="0.5s"),
            "nobody": upstream("socks5", f"127.0.0.1:{free_port()}"),
            "no-name": upstream("socks5", "does-not-exist.invalid:1080"),
            "go": {"type": "direct"},
        }
        listeners = {"door": socks_door(upstream="socks")}
        yield stack.enter_context(Proxy({"listeners": listeners, "upstreams": upstreams}))


def ask(node: Proxy, *words: str) -> tuple[int, Any]:
    done = run_proxy("ctl", "-c", str(node.config_path), "--json", "test", *words)
    assert b"s3cret" not in done.stdout + done.stderr
    assert b"wonder:land" not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


def stages(answer: Any) -> list[tuple[str, list[str]]]:
    """Name the hops, and for each the stages; one that has failed with a !."""
    return [
        (hop["upstream"], [each["stage"] + "!" * (not each["ok"]) for each in hop["stages"]])
        for hop in answer["hops"]
    ]


@pytest.mark.parametrize(
    ("name", "without", "with_target"),
    [
        ("socks", ["tcp", "handshake", "login"], ["tcp", "handshake", "login", "target"]),
        ("http", ["tcp", "handshake"], ["tcp", "target"]),
        ("ws", ["tcp", "handshake"], ["tcp", "target"]),
        ("wss", ["lookup", "tcp", "tls", "handshake"], ["lookup", "tcp", "tls", "target"]),
    ],
)
def test_each_stage_of_an_upstream_is_shown(
    node: Proxy, echo: Target, name: str, without: list[str], with_target: list[str]
) -> None:
    code, answer = ask(node, name)
    assert (code, stages(answer)) == (0, [(name, without)])
    # A login that is sent with the request is not shown.
    assert ("test it with a HOST:PORT" in answer["note"]) is (name != "socks")
    last = answer["hops"][0]["stages"][-1]["said"]
    assert ("it answers in HTTP (status 400 to a request without a target)" in last) is (name != "socks")
    code, answer = ask(node, name, f"127.0.0.1:{echo.port}")
    assert (code, stages(answer), answer["note"]) == (0, [(name, with_target)], "")
    taken = [each["seconds"] for each in answer["hops"][0]["stages"]]
    assert all(each >= 0 for each in taken)
    assert sum(taken) <= answer["seconds"]


def test_a_direct_one_reaches_targets_only(node: Proxy, echo: Target) -> None:
    assert stages(ask(node, "go", f"localhost:{echo.port}")[1]) == [("go", ["lookup", "tcp"])]
    assert ask(node, "go", f"127.0.0.1:{free_port()}")[0] == 1
    assert ask(node, "go")[0] == 2


def test_the_built_in_direct_is_there_where_nothing_uses_it(node: Proxy, echo: Target) -> None:
    assert stages(ask(node, "direct", f"127.0.0.1:{echo.port}")[1]) == [("direct", ["tcp"])]
    done = run_proxy("-c", str(node.config_path), "-test", "direct", f"127.0.0.1:{echo.port}")
    assert done.returncode == 0


def test_each_hop_is_shown(node: Proxy, echo: Target) -> None:
    code, answer = ask(node, "by-both", f"127.0.0.1:{echo.port}")
    assert (code, stages(answer)) == (
        0,
        [
            ("near-http", ["tcp", "tunnel"]),
            ("by-http", ["handshake", "login", "tunnel"]),
            ("by-both", ["target"]),
        ],
    )
    _, answer = ask(node, "by-socks")
    assert stages(answer)[1] == ("by-socks", ["tls", "handshake"])


def test_a_certificate_is_shown_whether_it_is_good_or_not(node: Proxy) -> None:
    told = {}
    for name in ("wss", "unchecked", "untrusted", "expired"):
        code, answer = ask(node, name)
        (tls,) = [each for each in answer["hops"][0]["stages"] if each["stage"] == "tls"]
        told[name] = (code, tls["ok"], tls["certificate"]["trusted"])
        assert (tls["certificate"]["for"], tls["certificate"]["by"]) == (["localhost"], "Test authority")
    assert told == {
        "wss": (0, True, True),
        "unchecked": (0, True, None),
        "untrusted": (1, False, False),
        "expired": (1, False, False),
    }
    shown = run_proxy("ctl", "-c", str(node.config_path), "test", "expired")
    assert shown.returncode == 1
    text = shown.stdout.decode()
    assert "certificate for localhost by Test authority, not trusted, ends 2020-01-0" in text
    assert (
        "failed at tls: upstream expired: TLS handshake: certificate refused: certificate has expired" in text
    )


@pytest.mark.parametrize(
    ("words", "failed", "reason"),
    [
        (("socks-wrong",), "login!", "upstream socks-wrong: refused our credentials"),
        (("http-wrong", "127.0.0.1:1"), "login!", "upstream http-wrong: refused our credentials"),
        (("by-wrong",), "login!", "upstream by-wrong: via upstream http-wrong: refused our credentials"),
        (
            ("silent",),
            "handshake!",
            "upstream silent: it answers no SOCKS5 greeting: SOCKS5 handshake timed out",
        ),
        (("silent-tls",), "tls!", "upstream silent-tls: TLS handshake timed out"),
        (("nobody",), "tcp!", "Connection refused"),
        (("no-name",), "lookup!", "does-not-exist.invalid"),
        (("ws", "127.0.0.1:1"), "target!", "127.0.0.1:1 through upstream ws: connection refused"),
        (("socks", "127.0.0.1:1"), "target!", "127.0.0.1:1 through upstream socks: connection refused"),
    ],
)
def test_the_stage_that_fails_is_the_last_one_and_has_the_reason_of_the_log(
    node: Proxy, words: tuple[str, ...], failed: str, reason: str
) -> None:
    code, answer = ask(node, *words)
    assert (code, answer["ok"], stages(answer)[-1][1][-1]) == (1, False, failed)
    assert reason in answer["failure"]


def test_an_upstream_that_is_none_is_told_from_one_that_fails(node: Proxy) -> None:
    config = str(node.config_path)
    for done in (
        run_proxy("ctl", "-c", config, "test", "sokcs"),
        run_proxy("-c", config, "-test", "sokcs"),
    ):
        assert done.returncode == 2
        assert b"there is no upstream sokcs, only socks, socks-wrong, http, " in done.stderr
    assert run_proxy("ctl", "-c", config, "test", "socks", "nonsense").returncode == 2
    assert run_proxy("-c", config, "-test", "socks", "nonsense").returncode == 2
    assert run_proxy("-c", config, "-test", "socks", "a:1", "b:1").returncode == 2


def test_a_file_is_enough(node: Proxy, echo: Target) -> None:
    config = str(node.config_path)
    good = run_proxy("-c", config, "-test", "by-socks", f"localhost:{echo.port}")
    assert good.returncode == 0
    assert re.fullmatch(
        r"""near  socks5 127\.0\.0\.1:\d+
  tcp        +[0-9.]+ ms  127\.0\.0\.1:\d+
  handshake  +[0-9.]+ ms  it wants a login
  login      +[0-9.]+ ms  as "?alice"?
  tunnel     +[0-9.]+ ms  to localhost:\d+
by-socks  websocket wss://localhost:\d+/\?\*{8}
  tls        +[0-9.]+ ms  TLSv1\.\d; certificate for localhost by Test authority, trusted, ends .*
  target     +[0-9.]+ ms  localhost:\d+ is connected
reached in [0-9.]+ m?s
""",
        good.stdout.decode(),
    )
    assert run_proxy("-c", config, "-test", "nobody").returncode == 1


def test_who_is_silent_about_a_target_is_asked_for_a_sign_of_life() -> None:
    with Target(targets.end_then_read) as rude:
        ways = {"rude": upstream("http", f"127.0.0.1:{rude.port}")}
        with Proxy({"listeners": {"door": socks_door()}, "upstreams": ways}) as node:
            code, answer = ask(node, "rude", "127.0.0.1:1")
    assert (code, stages(answer)) == (1, [("rude", ["tcp", "handshake!"])])
    assert answer["failure"].startswith("upstream rude: it closed the connection without an answer")


# Those that other people wrote


def test_socks_proxies_of_others_are_shown(echo: Target) -> None:
    with peers.microsocks(("alice", "wonder")) as door:
        ways = {
            "good": upstream("socks5", door, proxy_username="alice", proxy_password="wonder"),
            "wrong": upstream("socks5", door, proxy_username="alice", proxy_password="no"),
            "none": upstream("socks5", door),
        }
        with Proxy({"listeners": {"door": socks_door()}, "upstreams": ways}) as node:
            code, answer = ask(node, "good", f"127.0.0.1:{echo.port}")
            assert (code, stages(answer)[0][1]) == (0, ["tcp", "handshake", "login", "target"])
            assert stages(ask(node, "wrong")[1])[0][1] == ["tcp", "handshake", "login!"]
            assert stages(ask(node, "none")[1])[0][1] == ["tcp", "handshake!"]


def test_http_proxies_of_others_are_shown(echo: Target) -> None:
    with peers.tinyproxy("BasicAuth alice wonder\n") as door:
        ways = {
            "good": upstream("http", door, proxy_username="alice", proxy_password="wonder"),
            "wrong": upstream("http", door, proxy_username="alice", proxy_password="no"),
        }
        with Proxy({"listeners": {"door": socks_door()}, "upstreams": ways}) as node:
            code, answer = ask(node, "good", f"127.0.0.1:{echo.port}")
            assert (code, stages(answer)[0][1]) == (0, ["tcp", "target"])
            assert stages(ask(node, "wrong", "127.0.0.1:1")[1])[0][1] == ["tcp", "login!"]


def test_the_supervisor_of_several_workers_tests_too(echo: Target) -> None:
    with peers.microsocks() as door:
        ways = {"near": upstream("socks5", door)}
        settings = {"proxy": {"workers": 2}, "listeners": {"door": socks_door(upstream="near")}}
        with Proxy({**settings, "upstreams": ways}) as node:
            code, answer = ask(node, "near", f"127.0.0.1:{echo.port}")
            assert (code, stages(answer)) == (0, [("near", ["tcp", "handshake", "target"])])
