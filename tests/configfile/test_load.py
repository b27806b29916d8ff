"""The INI file: what is read, what is refused, and that a mistake never opens the door."""

# ruff: noqa: E501

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import ProxyConfig
from proxy.configfile.content import InvalidConfigError
from proxy.configfile.dump import dump
from proxy.configfile.load import load
from proxy.configtext.outline import Problem
from proxy.configtext.sections import SETTINGS
from proxy.settings.egress import Egress
from proxy.settings.listener import AuthPolicy, Overload, ServerConfig, Strategy
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from tests.configfile.reading import LISTENER, problems, read
from tests.integration.certificates import Authority

EXAMPLE = """\
[proxy]
timeout           = 30s     # the whole budget for reaching a target: resolving, dialling, upstream handshake, retries
handshake_timeout = 10s     # a client's time from accept to a complete request
idle_timeout      = 2h      # no byte in either direction; 0 = never
drain_timeout     = 30s     # how long a graceful stop waits for live connections
max_connections   = 1024    # of each listener
overload          = wait    # above it: wait = new clients wait in the kernel's queue | refuse = told so at once
reload_interval   = 1s      # how often the file's mtime is looked at; 0 = never
history_size      = 20      # configuration versions kept for rollback
state_dir         =         # where versions and the control socket live; empty = next to the file, in .proxy/
enable_upstream   = yes     # no = every listener goes out directly
log_level         = info    # debug | info | warning | error
log_format        = text    # text | json
access_log        = -       # - is stderr; a path; or off
splice            = auto    # auto = zero copy where the system has it | off
on_user_change    = keep    # keep | close: live connections of a user who was removed or whose password changed

[auth_users]                # empty or absent = no authentication
alice = wonderland          # plain, or a hash as printed by `proxy-server -hash-password`

[listeners]
[[socks]]
protocol    = socks5
listen_addr = 127.0.0.1:1080
upstream    = home, backup  # in order of preference; `direct` is built in, and the default
strategy    = failover      # failover | round_robin | random
[[web]]
protocol    = websocket
listen_addr = 127.0.0.1:8080
path        = /             # any path, if left out
auth        = auto          # auto = required when there are users | required | none
ping_interval = 30s         # WebSocket keepalive; 0 = never
tls_cert    =               # PEM files: serve wss://
tls_key     =
max_connections =           # overrides [proxy]

[control]                   # beside the Unix socket, which is always there
listen_addr =               # e.g. 127.0.0.1:9180
token       =

[upstreams]
[[home]]
type           = websocket  # direct | socks5 | websocket
proxy_address  = wss://gateway.example.com/tunnel
proxy_username = alice
proxy_password = wonderland
timeout        = 10s        # one attempt
retry_count    = 2          # further attempts after the first, with backoff, inside [proxy] timeout
tls_ca         =            # verify against this CA file instead of the system's
tls_verify     = yes
ping_interval  = 30s        # WebSocket keepalive; 0 = never
[[backup]]
type          = socks5
proxy_address = 10.0.0.2:1080
"""


DIRECT = UpstreamConfig("direct", UpstreamType.DIRECT)


def listener(config: ProxyConfig, name: str) -> ServerConfig:
    return next(each for each in config.listeners if each.name == name)


# What is read


def test_the_documented_example_loads() -> None:
    config, warnings = read(EXAMPLE)
    home = UpstreamConfig(
        "home", UpstreamType.WEBSOCKET, "wss://gateway.example.com/tunnel", "alice", "wonderland"
    )
    backup = UpstreamConfig("backup", UpstreamType.SOCKS5, "10.0.0.2:1080")
    shared: Any = {"auth_users": {"alice": "wonderland"}}
    assert config == ProxyConfig(
        listeners=(
            ServerConfig(
                "127.0.0.1:1080", Protocol.SOCKS5, "socks", upstream_config=(home, backup), **shared
            ),
            ServerConfig(
                "127.0.0.1:8080", Protocol.WEBSOCKET, "web", upstream_config=(DIRECT,), path="/", **shared
            ),
        ),
        upstreams=(home, backup),
        **shared,
    )
    (warning,) = warnings
    assert str(warning) == (
        "proxy.ini:19: [auth_users] alice: "
        "the text after # is taken as a comment; quote the value if it belongs to it"
    )


def test_what_is_left_out_has_the_documented_default() -> None:
    config = read(LISTENER).config
    assert config == ProxyConfig(
        listeners=(
            ServerConfig(
                "127.0.0.1:1080",
                Protocol.SOCKS5,
                "socks",
                auth_users={},
                timeout=30,
                upstream_config=(DIRECT,),
                enable_upstream=True,
                strategy=Strategy.FAILOVER,
                handshake_timeout=10,
                idle_timeout=7200,
                max_connections=1024,
                overload=Overload.WAIT,
                auth=AuthPolicy.AUTO,
                path="",
                ping_interval=30,
                tls_cert="",
                tls_key="",
            ),
        ),
        upstreams=(),
        drain_timeout=30,
        reload_interval=1,
        history_size=20,
        state_dir="",
        log_level="info",
        log_format="text",
        access_log="-",
        splice="auto",
        on_user_change="keep",
        control_listen_addr="",
        control_token="",
    )


def test_every_setting_arrives() -> None:
    text = """
[proxy]
timeout = 1m
handshake_timeout = 500ms
idle_timeout = 0
drain_timeout = 1h
max_connections = 2k
overload = refuse
reload_interval = 0
history_size = 3
state_dir = "/var/lib/proxy, server"
enable_upstream = No
log_level = debug
log_format = json
access_log = off
splice = off
on_user_change = close
[auth_users]
alice = "a#b"
[listeners]
[[web]]
protocol = websocket
listen_addr = [::1]:443
upstream = b, direct, a
strategy = round_robin
path = /tunnel
auth = required
ping_interval = 0
tls_cert = cert.pem
tls_key = key.pem
max_connections = 7
[control]
listen_addr = 127.0.0.1:9180
token = "a b#c"
[upstreams]
[[a]]
type = websocket
proxy_address = wss://h
proxy_username = bob
proxy_password = x=y%z
timeout = 3
retry_count = 0
tls_ca = ca.pem
tls_verify = off
ping_interval = 5s
[[b]]
type = direct
timeout = 2s
"""
    a = UpstreamConfig(
        "a",
        UpstreamType.WEBSOCKET,
        "wss://h",
        "bob",
        "x=y%z",
        3,
        0,
        tls_ca="ca.pem",
        tls_verify=False,
        ping_interval=5,
    )
    b = UpstreamConfig("b", UpstreamType.DIRECT, timeout=2)
    assert read(text).config == ProxyConfig(
        auth_users={"alice": "a#b"},
        listeners=(
            ServerConfig(
                "[::1]:443",
                Protocol.WEBSOCKET,
                "web",
                auth_users={"alice": "a#b"},
                timeout=60,
                upstream_config=(b, DIRECT, a),
                enable_upstream=False,
                strategy=Strategy.ROUND_ROBIN,
                handshake_timeout=0.5,
                idle_timeout=0,
                max_connections=7,
                overload=Overload.REFUSE,
                auth=AuthPolicy.REQUIRED,
                path="/tunnel",
                ping_interval=0,
                tls_cert="cert.pem",
                tls_key="key.pem",
                splice="off",
            ),
        ),
        upstreams=(a, b),
        drain_timeout=3600,
        reload_interval=0,
        history_size=3,
        state_dir="/var/lib/proxy, server",
        log_level="debug",
        log_format="json",
        access_log="off",
        splice="off",
        on_user_change="close",
        control_listen_addr="127.0.0.1:9180",
        control_token="a b#c",
    )


def test_a_listener_may_override_the_connection_limit_or_leave_it() -> None:
    text = "[proxy]\nmax_connections = 5\n" + LISTENER + "max_connections =\n"
    assert read(text).config.listeners[0].max_connections == 5
    assert (
        read(text + "[[two]]\nprotocol = socks5\nlisten_addr = :1\nmax_connections = 6")
        .config.listeners[1]
        .max_connections
        == 6
    )


@pytest.mark.parametrize("word", ["yes", "true", "on", "1", "Yes", "TRUE"])
def test_words_for_yes(word: str) -> None:
    assert read(f"[proxy]\nenable_upstream = {word}" + LISTENER).config.listeners[0].enable_upstream is True


@pytest.mark.parametrize("word", ["no", "false", "off", "0", "No", "FALSE"])
def test_words_for_no(word: str) -> None:
    assert read(f"[proxy]\nenable_upstream = {word}" + LISTENER).config.listeners[0].enable_upstream is False


def test_a_byte_order_mark_and_windows_line_ends_are_no_problem() -> None:
    """CASES H208."""
    plain = read(EXAMPLE)
    assert read(b"\xef\xbb\xbf" + EXAMPLE.replace("\n", "\r\n").encode()) == plain


# What is refused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "proxy.ini: is empty"),
        ("\n \n", "proxy.ini: is empty"),
        (b"\xef\xbb\xbf", "proxy.ini: is empty"),
        (
            "# nothing\n",
            "proxy.ini: [listeners] there is no listener: add a [[name]] section under [listeners]",
        ),
        (
            "[proxy]\n[listeners]\n",
            "proxy.ini:2: [listeners] there is no listener: add a [[name]] section under [listeners]",
        ),
        (b"[proxy]\n\0", "proxy.ini: is not a text file: there is a NUL byte in line 2"),
        (EXAMPLE.encode("utf-16"), "proxy.ini: is UTF-16: save it as UTF-8"),
        (
            LISTENER.encode() + b"# caf\xe9\n",
            f"proxy.ini:6: byte 0xe9 at offset {len(LISTENER) + 5} is not UTF-8",
        ),
        (b"\xef\xbb\xbf#\xe9" + LISTENER.encode(), "proxy.ini:1: byte 0xe9 at offset 4 is not UTF-8"),
        (LISTENER + "# \x1b[31m", "proxy.ini:6: has a control character (U+001B)"),
    ],
)
def test_refuses_what_is_no_configuration_file(text: bytes | str, expected: str) -> None:
    """CASES H196, H208."""
    assert problems(text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[auth_user]\nalice = x", "[auth_user] unknown section; did you mean [auth_users]?"),
        ("[DEFAULT]\ntimeout = 1", "[DEFAULT] unknown section"),
        ("[proxy]\ntiemout = 1", "[proxy] tiemout: unknown key; did you mean timeout?"),
        ("[proxy]\nxyzzy = 1", "[proxy] xyzzy: unknown key"),
        (
            "timeout = 1",
            "timeout: unknown key here: it belongs into [proxy] or a section [[name]] below [upstreams]",
        ),
        ("xyzzy = 1", "xyzzy: is before the first section"),
        ("auth_users = alice", "auth_users: is a section: write [auth_users] on a line of its own"),
        (
            "[proxy]\nauth_users = x",
            "[proxy] auth_users: is a section: write [auth_users] on a line of its own",
        ),
        (
            "[proxy]\n[[auth_users]]\na = x",
            "[proxy.auth_users] there are no sections inside [proxy]: write [auth_users]",
        ),
        (
            "[auth_users]\n[[alice]]\na = x",
            "[auth_users.alice] there are no sections inside [auth_users]: write its settings as key = value",
        ),
        ("[auth_users]\n__many__ = x", "[auth_users] __many__: this name cannot be used"),
        (
            "[upstreams]\nproxy_address = h:1",
            "[upstreams] proxy_address: unknown key here: it belongs into a section [[name]] below [upstreams]",
        ),
        (
            "[upstreams]\n[[auth_users]]\na = x",
            "[upstreams.auth_users] this would be a part of [upstreams]: write [auth_users]",
        ),
        (
            "[upstreams]\n[[a b]]\ntype = direct",
            "[upstreams.] a name consists of letters, digits, and the characters _ . -",
        ),
        ("[upstreams]\n[[[a]]]\ntype = direct", "[upstreams.a] a section has one or two brackets, not more"),
        (
            "[home]\ntype = direct",
            "[home] is in the wrong place: write it with two brackets, [[name]], below [upstreams]",
        ),
        (
            "[web]\nprotocol = websocket",
            "[web] is in the wrong place: write it with two brackets, [[name]], below [listeners]",
        ),
        ("[[proxy]]\ntimeout = 1", "has too many brackets: write [proxy]"),
        (
            "[upstreams\n[[a]]\ntype = direct",
            "not a section header: write [name], or [[name]] under [listeners] and [upstreams]",
        ),
    ],
)
def test_says_where_a_misplaced_name_belongs(text: str, expected: str) -> None:
    """CASES B52, H207."""
    (problem,) = problems(text + "\n" + LISTENER)
    assert problem.split(": ", 1)[1] == expected.replace("[upstreams.] ", "")


def test_a_repeated_key_or_section_is_named_with_both_lines() -> None:
    """CASES H208."""
    text = "[proxy]\ntimeout = 1\ntimeout = 2\n[proxy]\nsplice = off\n" + LISTENER
    assert problems(text) == [
        "proxy.ini:3: [proxy] timeout: is already set in line 2",
        "proxy.ini:4: [proxy] this section is already in line 1",
    ]


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("timeout = nan", "duration"),
        ("timeout = inf", "duration"),
        ("timeout = 1_000", "duration"),
        ("timeout = １０", "duration"),
        ("timeout = -1", "duration"),
        ("timeout =", "duration"),
        ("timeout = 0", "more than 0"),
        ("handshake_timeout = 0", "more than 0"),
        ("timeout = 1, 2", "comma"),
        ("timeout = 30s, 40s # x", "comma"),
        ("idle_timeout = 2y", "duration"),
        ("max_connections = 0", "at least 1"),
        ("max_connections = 1g", "at least 1 and at most 10000000"),
        ("max_connections = 999999999999999g", "at least 1 and at most 10000000"),
        ("max_connections = 1_000", "number"),
        ("max_connections =", "number"),
        ("history_size = 0", "at least 1"),
        ("history_size = 1g", "at most 10000000"),
        ("overload = drop", "must be one of wait, refuse"),
        ("enable_upstream = maybe", "neither yes nor no"),
        ("enable_upstream =", "neither yes nor no"),
        ("log_level = INFO", "did you mean info"),
        ("log_format = xml", "must be one of"),
        ("splice = on", "must be one of"),
        ("on_user_change = kill", "must be one of"),
        ("access_log =", "is empty"),
        ("access_log = /var/log/a#b", "comment"),
        ("access_log = /var/log/a,b", "comma"),
        ('access_log = "/var/log', "the closing quote is missing"),  # Case 360
        ("log_level", "no ="),
    ],
)
def test_refuses_a_wrong_value(setting: str, hint: str) -> None:
    """CASES H193."""
    (problem,) = problems(f"[proxy]\n{setting}{LISTENER}")
    assert problem.startswith("proxy.ini:2: ")
    assert hint in problem


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", ["1: [listeners.x] protocol: is missing", "1: [listeners.x] listen_addr: is missing"]),
        ("protocol = socks5", ["1: [listeners.x] listen_addr: is missing"]),
        ("listen_addr = :1", ["1: [listeners.x] protocol: is missing"]),
        (
            "protocl = socks5\nlisten_adr = :1",
            [
                "2: [listeners.x] protocl: unknown key; did you mean protocol?",
                "3: [listeners.x] listen_adr: unknown key; did you mean listen_addr?",
            ],
        ),
        (
            "protocol socks5\nlisten_addr: :1",
            ["2: has no =: write key = value", "3: has no =: write key = value"],
        ),
        (  # what is there is looked at all the same
            "protocl = socks5\nprotocol = socks6\nlisten_addr = :1",
            [
                "2: [listeners.x] protocl: unknown key; did you mean protocol?",
                "3: [listeners.x] protocol: must be one of socks5, websocket, mixed; did you mean socks5?",
            ],
        ),
        (
            "protocol = socks4\nlisten_addr = :1",
            ["2: [listeners.x] protocol: must be one of socks5, websocket, mixed; did you mean socks5?"],
        ),
        (
            "protocol = socks5\nlisten_addr = :0\nauth = non",
            ["4: [listeners.x] auth: must be one of auto, required, none; did you mean none?"],
        ),
        (
            "protocol = socks5\nlisten_addr = :0\nauth = required",
            ["4: [listeners.x] auth: authentication is required, but [auth_users] has no users"],
        ),
        (
            "protocol = socks5\nlisten_addr = :0\nupstream = home",
            ["4: [listeners.x] upstream: there is no home in [upstreams]"],
        ),
        (
            "protocol = socks5\nlisten_addr = :0\nupstream = dierct",
            ["4: [listeners.x] upstream: there is no dierct in [upstreams]; did you mean direct?"],
        ),
        # Case 360.
        (
            "protocol = socks5\nlisten_addr = :0\nupstream = direct; far",
            ['4: [listeners.x] upstream: there is no upstream "direct; far": names are separated by commas'],
        ),
        (
            'protocol = socks5\nlisten_addr = :0\nupstream = direct, "far',
            ["4: [listeners.x] upstream: the closing quote is missing"],
        ),
        (
            "protocol = socks5\nlisten_addr = :0\nupstream = socks5://me:hunter2@far",
            ["4: [listeners.x] upstream: is not a name from [upstreams]"],
        ),
        (
            "protocol = socks5\nlisten_addr = :0\nupstream = direct, direct",
            ["4: [listeners.x] upstream: has the same upstream twice"],
        ),
        (
            "protocol = socks5\nlisten_addr = :0\nupstream =",
            ["4: [listeners.x] upstream: is empty, or has an empty name: list upstreams, or write direct"],
        ),
        (
            "protocol = socks5\nlisten_addr = :0\nupstream = ,",
            ["4: [listeners.x] upstream: is empty, or has an empty name: list upstreams, or write direct"],
        ),
        (
            "protocol = websocket\nlisten_addr = :0\ntls_cert = c",
            ["1: [listeners.x] tls_key: tls_cert is set, so this must be set too"],
        ),
        (
            "protocol = websocket\nlisten_addr = :0\ntls_cert = c\ntls_key =",
            ["5: [listeners.x] tls_key: tls_cert is set, so this must be set too"],
        ),
    ],
)
def test_refuses_a_wrong_listener(settings: str, expected: list[str]) -> None:
    """CASES B52."""
    before = LISTENER.count("\n")
    wanted = []
    for each in expected:
        line, rest = each.split(":", 1)
        wanted.append(f"proxy.ini:{before + int(line)}:{rest}")
    assert sorted(problems(f"{LISTENER}[[x]]\n{settings}\n")) == sorted(wanted)


def test_two_listeners_do_not_share_an_address() -> None:
    text = LISTENER + "[[web]]\nprotocol = websocket\nlisten_addr = :1080\n"
    assert problems(text) == [
        "proxy.ini:8: [listeners.web] listen_addr: is the address of [listeners.socks] too"
    ]


def test_an_open_control_address_needs_a_token() -> None:
    assert problems(LISTENER + "[control]\nlisten_addr = 127.0.0.1:9180\ntoken =\n") == [
        "proxy.ini:8: [control] token: is missing: a control listen_addr needs one"
    ]


def test_every_problem_is_reported_at_once_in_the_order_of_the_lines() -> None:
    text = """\
[proxy]
timeout = nan
log_level = loud
bogus = 1
no equals sign
[auth_users]
alice =
bob = p#ss
[listeners]
[[socks]]
protocol = socks5
listen_addr = 127.0.0.1
path = /
tls_cert = c
[[web]]
protocol = websocket
listen_addr = :80
upstream = nowhere
path = x
[upstreams]
[[home]]
type = socks5
proxy_address = ws://h
proxy_username = a
retry_count = x
"""
    lines = [int(each.split(":")[1]) for each in problems(text)]
    assert lines == [2, 3, 4, 5, 7, 8, 10, 12, 13, 14, 18, 19, 21, 23, 25]


def test_a_value_that_cannot_be_used_hides_no_other_problem(tmp_path: Path) -> None:
    """Case 356."""
    path = tmp_path / "proxy.ini"
    path.write_text("""\
[listeners]
[[one]]
protocol = websocket
listen_addr = 127.0.0.1:80
path = bad
tls_cert = nocert.pem
tls_key = nokey.pem
[[two]]
protocol = nonsense
listen_addr = 127.0.0.1:80
path = bad
tls_cert = nocert.pem
[upstreams]
[[home]]
type = websocket
proxy_address = wss://far
timeout = 0
tls_ca = noca.pem
""")
    with pytest.raises(InvalidConfigError) as caught:
        load(str(path))
    assert [str(each).partition(": ")[2] for each in caught.value.problems] == [
        "[listeners.one] path: must begin with /",
        f"[listeners.one] tls_cert: {tmp_path}/nocert.pem: No such file or directory",
        f"[listeners.one] tls_key: {tmp_path}/nokey.pem: No such file or directory",
        "[listeners.two] tls_key: tls_cert is set, so this must be set too",
        "[listeners.two] protocol: must be one of socks5, websocket, mixed",
        "[listeners.two] listen_addr: is the address of [listeners.one] too",
        "[listeners.two] path: must begin with /",
        f"[listeners.two] tls_cert: {tmp_path}/nocert.pem: No such file or directory",
        "[upstreams.home] timeout: must be more than 0",
        f"[upstreams.home] tls_ca: {tmp_path}/noca.pem: No such file or directory",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"[auth_users]\nalice ={LISTENER}auth = required\n", 2),
        (f"[auth_users]\nalice = p#ss{LISTENER}auth = required\n", 2),
        (f"[auth_user]\nalice = wonderland{LISTENER}auth = required\n", 1),
        (f"[auth_users\nalice = wonderland{LISTENER}auth = required\n", 1),
        (f"[control]\nlisten_addr = 127.0.0.1:9180\ntoken = p#ss{LISTENER}", 3),
        (LISTENER.replace("127.0.0.1:1080", "127.0.0.1"), 5),
        (f"[upstreams\n[[home]]\ntype = direct{LISTENER}upstream = home\n", 1),
        (f"{LISTENER}[upstreams]\n[[home]]\ntype = websocket\nproxy_address = ws://h:x\ntls_ca = c\n", 9),
        (
            f"{LISTENER}[[web]]\nprotocol = websocket\nlisten_addr = wss://:443\ntls_cert = a#b\ntls_key = k\n",
            9,
        ),
    ],
    ids=[
        "user",
        "password",
        "users",
        "header of users",
        "token",
        "address",
        "header",
        "proxy",
        "certificate",
    ],
)
def test_what_follows_from_a_mistake_is_no_other_one(text: str, line: int) -> None:
    """Case 356."""
    (problem,) = problems(text)
    assert problem.startswith(f"proxy.ini:{line}: ")


def test_relative_paths_start_at_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 356: of all settings, and wherever the program was started."""
    authority = Authority(tmp_path)
    authority.issue("mine", "localhost")
    text = """\
[proxy]
access_log = access.log
[listeners]
[[web]]
protocol = websocket
listen_addr = 127.0.0.1:0
tls_cert = ./mine.pem
tls_key = mine.key
upstream = far
[upstreams]
[[far]]
type = websocket
proxy_address = wss://localhost:1
tls_ca = root.pem
"""
    path = tmp_path / "proxy.ini"
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    here = load("proxy.ini").config
    monkeypatch.chdir("/")
    assert load(str(path)).config == here
    (web,), (far,) = here.listeners, here.upstreams
    assert here.access_log == f"{tmp_path}/access.log"
    assert (web.tls_cert, web.tls_key) == (f"{tmp_path}/./mine.pem", f"{tmp_path}/mine.key")
    assert far.tls_ca == f"{tmp_path}/root.pem"
    assert read(dump(here)).config == here


@pytest.mark.parametrize("where", ["-", "off"])
def test_an_access_log_that_is_no_file_has_no_folder(tmp_path: Path, where: str) -> None:
    path = tmp_path / "proxy.ini"
    path.write_text(f"[proxy]\naccess_log = {where}{LISTENER}")
    assert load(str(path)).config.access_log == where


def test_a_problem_leaves_out_what_does_not_apply() -> None:
    assert str(Problem("a.ini", "no", 3, "proxy", "timeout")) == "a.ini:3: [proxy] timeout: no"
    assert str(Problem("a.ini", "no", 3, "proxy")) == "a.ini:3: [proxy] no"
    assert str(Problem("a.ini", "no")) == "a.ini: no"


def test_the_error_is_one_line() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        read("[proxy]\ntimeout = nan\nsplice = x" + LISTENER)
    assert str(caught.value).endswith("such as 30s (and 1 more)")
    assert "\n" not in str(caught.value)


# Secrets


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("wonderland", "wonderland"),
        ("100%(x)s$HOME", "100%(x)s$HOME"),
        ("a;b=c[d]", "a;b=c[d]"),
        ("two words", "two words"),
        ('pa"ss', 'pa"ss'),
        ("pass'", "pass'"),
        ('"p#ss,w ord "', "p#ss,w ord "),
        ("'p\"ss'", 'p"ss'),
        ("'''p\"s's'''", "p\"s's"),
        ('"x" # why', "x"),
    ],
)
@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("[auth_users]\nalice = {}" + LISTENER, lambda config: config.listeners[0].auth_users["alice"]),
        (
            "[upstreams]\n[[x]]\ntype = socks5\nproxy_address = h:1\nproxy_username = a\nproxy_password = {}"
            + LISTENER,
            lambda config: config.upstreams[0].proxy_password,
        ),
    ],
)
def test_a_secret_arrives_exactly(text: str, secret: Callable[..., Any], written: str, expected: str) -> None:
    assert secret(read(text.format(written)).config) == expected


@pytest.mark.parametrize(
    "written",
    [
        "p#hunter",
        "p #hunter",
        "p  #hunter",
        "hunter,x",
        "hunter,",
        '"hunter',
        '"hunter"x',
        "'''hunter",
        '"hunter"#x',
        "#hunter",
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "[auth_users]\nalice = {}" + LISTENER,
        "[control]\ntoken = {}" + LISTENER,
        "[upstreams]\n[[x]]\ntype = socks5\nproxy_address = h:1\nproxy_username = a\nproxy_password = {}"
        + LISTENER,
    ],
)
def test_a_secret_that_could_be_cut_is_refused_and_not_shown(text: str, written: str) -> None:
    reported = problems(text.format(written))
    assert any("quote" in each for each in reported)
    assert "hunter" not in "".join(reported)


@pytest.mark.parametrize(
    "line",
    [
        "alice hunter2",
        "alice: hunter2",
        "alice: hun = ter2",
        "hunter2 ter = x",
        "[hunter ter2",
        '"ter2',
        "alice = ",
        "= ter2",
    ],
)
def test_no_problem_repeats_what_may_be_a_password(line: str) -> None:
    for section in ("[auth_users]", "[control]", "[upstreams]\n[[x]]"):
        reported = "".join(problems(f"{section}\n{line}{LISTENER}"))
        assert "hun" not in reported
        assert "ter2" not in reported


def test_a_commented_out_user_is_no_user() -> None:
    """CASES B52: other INI files have comments after a semicolon."""
    assert problems("[auth_users]\n; alice = old" + LISTENER) == [
        "proxy.ini:2: a comment begins with #, not with ;"
    ]


def test_user_names_may_be_quoted() -> None:
    users = (
        read('[auth_users]\n"a = b" = x\n"#1" = y\nbob@example.com = z' + LISTENER)
        .config.listeners[0]
        .auth_users
    )
    assert users == {"a = b": "x", "#1": "y", "bob@example.com": "z"}


def test_five_thousand_users_are_no_burden() -> None:
    users = "".join(f"user{number} = password{number}\n" for number in range(5000))
    started = time.process_time()
    assert len(read(f"[auth_users]\n{users}{LISTENER}").config.listeners[0].auth_users) == 5000
    assert time.process_time() - started < 0.5


# The file itself


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "is a folder"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_problem(
    tmp_path: Path, make: Callable[..., Any], reason: str
) -> None:
    path = tmp_path / "proxy.ini"
    make(path)
    with pytest.raises(InvalidConfigError) as caught:
        load(str(path))
    (problem,) = caught.value.problems
    assert reason in str(problem)
    assert str(problem).startswith(f"{path}: ")


def test_a_forbidden_file_is_one_clear_problem(tmp_path: Path) -> None:
    path = tmp_path / "proxy.ini"
    path.touch(mode=0)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read everything
    try:
        with pytest.raises(InvalidConfigError, match="Permission denied"):
            load(str(path))
    finally:
        os.seteuid(user)


def test_a_file_name_with_nul_is_one_clear_problem() -> None:
    with pytest.raises(InvalidConfigError, match="file name"):
        load("a\0b")


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="larger than"):
        load("/dev/zero")


@pytest.mark.parametrize(
    ("mode", "text", "warned"),
    [
        (0o644, "[auth_users]\nalice = x", True),
        (0o640, "[control]\ntoken = x", True),
        (
            0o604,
            "[upstreams]\n[[x]]\ntype=socks5\nproxy_address=h:1\nproxy_username=a\nproxy_password=b",
            True,
        ),
        (0o600, "[auth_users]\nalice = x", False),
        (0o644, f"[auth_users]\nalice = scrypt$14$8$1$c2FsdA==${'A' * 43}=", False),
        (0o644, "", False),
    ],
)
def test_warns_of_passwords_that_others_may_read(tmp_path: Path, mode: int, text: str, warned: bool) -> None:
    """CASES J223."""
    path = tmp_path / "proxy.ini"
    path.write_text(text + LISTENER)
    path.chmod(mode)
    assert [f"chmod 600 {path}" in str(each) for each in load(str(path)).warnings] == [True] * warned


def test_warns_of_a_hash_that_another_program_made(tmp_path: Path) -> None:
    path = tmp_path / "proxy.ini"
    apr1 = "$apr1$r31.....$HqJZimcKQFAMYayBlzkI/0"
    path.write_text(
        f"[listeners]\n[[a]]\nprotocol = socks5\nlisten_addr = :1080\n[auth_users]\nbob = {apr1}\n"
    )
    path.chmod(0o600)
    (warning,) = map(str, load(str(path)).warnings)
    assert warning.startswith(f"{path}:6: [auth_users] bob: looks like a hash of another program")
    assert apr1 not in warning


@pytest.mark.parametrize(
    ("mode", "is_warned"), [(0o600, False), (0o644, False), (0o602, True), (0o666, True)]
)
def test_warns_of_a_file_that_others_may_write(tmp_path: Path, mode: int, is_warned: bool) -> None:
    """Whoever can write it controls the server, with passwords or without."""
    path = tmp_path / "proxy.ini"
    path.write_text(LISTENER)
    path.chmod(mode)
    warned = [str(each) for each in load(str(path)).warnings]
    assert [each.endswith(f"chmod go-w {path}") for each in warned] == [True] * is_warned


def test_the_template_runs_as_it_is(request: pytest.FixtureRequest) -> None:
    path = request.config.rootpath / "conf" / "proxy.ini"
    config, warnings = load(str(path))
    assert [(each.protocol, each.listen_addr) for each in config.listeners] == [
        (Protocol.SOCKS5, "127.0.0.1:1080"),
        (Protocol.WEBSOCKET, "127.0.0.1:8080"),
    ]
    assert all(each.upstream_config == (DIRECT,) and not each.needs_auth for each in config.listeners)
    assert warnings == ()


def test_the_examples_in_the_template_are_right(request: pytest.FixtureRequest) -> None:
    """Whoever takes away the comment signs gets a good file."""
    text = (request.config.rootpath / "conf" / "proxy.ini").read_text("utf-8")
    config = read(re.sub(r"^# (?=\[\[|[a-z_]+ +=)", "", text, flags=re.MULTILINE)).config
    assert list(config.listeners[0].auth_users) == ["alice", "bob"]
    assert [each.name for each in config.upstreams] == ["home", "backup", "second-line"]
    assert config.upstreams[-1].egress == Egress("192.0.2.7", "eth1")


def test_the_examples_in_the_reference_are_right(request: pytest.FixtureRequest) -> None:
    text = (request.config.rootpath / "docs" / "configuration.md").read_text("utf-8")
    blocks = re.findall(r"^```ini\n(\[.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    config = read("".join(blocks)).config
    assert list(config.listeners[0].auth_users) == ["alice", "bob", "carol"]
    assert [each.name for each in config.listeners[0].upstream_config] == ["home", "backup"]
    guarded = next(each for each in config.upstreams if each.name == "guarded")
    assert len(guarded.headers) == 3


def test_the_template_and_the_reference_name_every_setting(request: pytest.FixtureRequest) -> None:
    template = (request.config.rootpath / "conf" / "proxy.ini").read_text("utf-8")
    reference = (request.config.rootpath / "docs" / "configuration.md").read_text("utf-8")
    for section in SETTINGS.values():
        for key in section.keys() - {"__many__"}:
            assert f"{key} " in template or f"{key}=" in template, key
            assert f"`{key}`" in reference, key


# Anything at all


LINES = st.sampled_from(
    [
        *(
            "[proxy]",
            "[auth_users]",
            "[listeners]",
            "[upstreams]",
            "[control]",
            "[[x]]",
            "[[direct]]",
            "[[[y]]]",
            "[",
            "]",
        ),
        *(
            "protocol = socks5",
            "protocol = websocket",
            "listen_addr = :0",
            "listen_addr = ws://[::1]:1/x",
            "type = socks5",
        ),
        *(
            "proxy_address = h:1",
            "proxy_password = '''",
            "'''",
            "alice = x # y",
            "a = b, c",
            "upstream = x,",
            'timeout = "',
            "k",
        ),
    ]
)


@settings(max_examples=150)
@given(st.lists(LINES | st.text(max_size=10), max_size=20).map("\n".join) | st.text())
def test_any_text_is_a_configuration_or_an_invalid_one(text: str) -> None:
    try:
        read(text.encode("utf-8", "surrogatepass"))
    except InvalidConfigError as exc:
        lines = [problem.line for problem in exc.problems]
        assert lines
        assert lines == sorted(lines)


@settings(max_examples=80)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_an_invalid_one(data: bytes) -> None:
    with pytest.raises(InvalidConfigError):
        read(data)
