"""Rules in the file: what is read, refused and warned of, and the examples of the documents."""

# ruff: noqa: E501

import re
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from proxy.address import Address, IPAddress
from proxy.configfile.content import Content, InvalidConfigError
from proxy.configfile.load import Loaded, understand
from proxy.configtext.document import edit
from proxy.explain import explain
from proxy.networks import Networks
from proxy.policy.rules import Machine, Policy, Query
from proxy.settings.listener import Guard
from proxy.settings.rules import RuleConfig
from proxy.settings.upstream import DIRECT_UPSTREAM
from proxy.targets import Ports, Targets
from tests.configfile import reading

BASE = """\
[auth_users]
alice = wonderland
ci = robot
[listeners]
[[web]]
protocol = websocket
listen_addr = 0.0.0.0:8080
[[socks]]
protocol = socks5
listen_addr = 127.0.0.1:1080
[upstreams]
[[home]]
type = socks5
proxy_address = 192.0.2.1:1080
[[backup]]
type = socks5
proxy_address = 192.0.2.2:1080
"""


def read(rules: str) -> Loaded:
    return reading.read(f"{BASE}[rules]\n{rules}\n")


def problems(rules: str) -> list[str]:
    with pytest.raises(InvalidConfigError) as refused:
        read(rules)
    return [str(each).partition(": ")[2] for each in refused.value.problems]


def warnings(rules: str) -> list[str]:
    return [str(each).partition(": ")[2] for each in read(rules).warnings]


def test_rules_arrive_in_the_order_of_the_file_at_every_listener() -> None:
    config = read(
        "[[first]]\nto = *.Example.com, 10.0.0.0/8, self\nport = 22, 8000-8999\nuser = alice\n"
        "from = 192.0.2.0/24\nlistener = web\naction = home, direct\nresolve = yes\nreport = yes\n"
        "[[last]]\naction = block"
    ).config
    home = config.upstreams[0]
    first = RuleConfig(
        "first",
        Targets(["*.example.com", "10.0.0.0/8", "self"]),
        Ports(["22", "8000-8999"]),
        ("alice",),
        Networks(["192.0.2.0/24"]),
        ("web",),
        ("home", "direct"),
        resolve=True,
        report=True,
        upstream_config=(home, DIRECT_UPSTREAM),
    )
    assert config.rules == (first, RuleConfig("last", action=("block",)))
    assert [each.rules for each in config.listeners] == [config.rules] * 2
    assert [each.own_rules for each in config.listeners] == [config.rules, config.rules[1:]]


def test_an_empty_list_is_any() -> None:
    (rule,) = read("[[all]]\nto =\nport =\nuser =\nfrom =\nlistener =").config.rules
    assert rule == RuleConfig("all")


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (
            "to = 10.0.0.0/33",
            "[rules.x] to: '10.0.0.0/33' is not a network such as 10.0.0.0/8 or 2001:db8::/32",
        ),
        (
            "to = *",
            "[rules.x] to: '*' is not a name, a *.domain, an address or a network: for any target leave it",
        ),
        ("port = http", "[rules.x] port: 'http' is not a port from 1 to 65535 or a range such as 8000-8999"),
        (
            "action = hom",
            "[rules.x] action: there is no hom in [upstreams], and it is not allow or block; did you mean home?",
        ),
        (
            "action = blok",
            "[rules.x] action: there is no blok in [upstreams], and it is not allow or block; did you mean block?",
        ),
        ("action =", "[rules.x] action: is empty"),
        ("action = allow, home", "[rules.x] action: is allow, or block, or a list of upstreams"),
        ("action = block, allow", "[rules.x] action: is allow, or block, or a list of upstreams"),
        ("action = home, home", "[rules.x] action: has an empty name, or the same one twice"),
        ("listener = sock", "[rules.x] listener: there is no sock in [listeners]; did you mean socks?"),
        ("resolve = perhaps", "[rules.x] resolve: is neither yes nor no"),
        ("timeout = 5s", "[rules.x] timeout: unknown key here: it belongs into [proxy]"),
    ],
)
def test_what_cannot_be_meant_is_refused(rule: str, problem: str) -> None:
    (told,) = problems(f"[[x]]\n{rule}")
    assert told.startswith(problem)


def test_the_rule_that_is_built_in_has_its_name_for_itself() -> None:
    assert problems("[[guard]]\nto = self") == [
        "[rules.guard] guard is the name of the built-in rule: give this one another name"
    ]


@pytest.mark.parametrize(
    ("rules", "warning"),
    [
        ("[[a]]\nto = *.corp.example\n[[b]]\nto = www.corp.example", "[rules.b] is never reached: all that it is for, a decides"),
        ("[[a]]\n[[b]]\nto = 10.0.0.0/8\nuser = alice", "[rules.b] is never reached: all that it is for, a decides"),
        ("[[a]]\nto = a.example\naction = block", "[rules.a] to: blocks names only: who asks for their addresses comes there all the same"),
        ("[[a]]\nto = a.example\nresolve = yes", "[rules.a] resolve: has no effect: to has no address, network or word"),
        ("[[a]]\nuser = bbo", "[rules.a] user: not in [auth_users]: bbo"),
    ],
)  # fmt: skip
def test_what_can_hardly_be_meant_gets_a_warning(rules: str, warning: str) -> None:
    assert warnings(rules) == [warning]


@pytest.mark.parametrize(
    "rules",
    [
        "[[a]]\nto = www.corp.example\n[[b]]\nto = *.corp.example",
        "[[a]]\nuser = ci\n[[b]]\nto = 10.0.0.0/8",
        "[[a]]\nreport = yes\n[[b]]\nto = 10.0.0.0/8",
        "[[a]]\nlistener = web\n[[b]]\nlistener = web, socks",
        "[[a]]\nport = 1-79\n[[b]]\nport = 80",
        "[[a]]\nfrom = 10.0.0.0/8\n[[b]]\nto = self",
        "[[a]]\nto = 10.0.0.0/8\n[[b]]\nto = 10.1.0.0/16\nresolve = yes",
        "[[a]]\nto = a.example, 192.0.2.1\naction = block",
    ],
)
def test_what_makes_sense_gets_none(rules: str) -> None:
    assert warnings(rules) == []


def test_ctl_makes_a_rule_that_is_the_last_one() -> None:
    text = f"{BASE}[rules]\n[[a]]\naction = block\n[limits]\n"
    changed = edit(text, [("rules.b.to", "*.example.com, 10.0.0.0/8"), ("rules.b.port", "22, 80-90")])
    assert [each.name for each in reading.read(changed).config.rules] == ["a", "b"]
    assert "to = *.example.com, 10.0.0.0/8\nport = 22, 80-90\n" in changed


def test_the_guard_is_a_setting_of_all_listeners() -> None:
    config = reading.read(f"{BASE}[proxy]\nguard = private\n").config
    assert {each.guard for each in config.listeners} == {Guard.PRIVATE}


def test_a_circle_by_way_of_a_rule_is_one() -> None:
    text = (
        BASE.replace("192.0.2.1:1080", "127.0.0.1:1080") + "[rules]\n[[x]]\nto = a.example\naction = home\n"
    )
    with pytest.raises(InvalidConfigError) as refused:
        understand(Content(text.encode()), "proxy.ini")
    (told,) = refused.value.problems
    assert "connections would go in a circle: from socks by upstream home to socks" in str(told)


# The examples of docs/rules.md

DOCUMENT = Path(__file__).parents[2] / "docs" / "rules.md"
NAMES = {"printer.lan": "192.168.1.20", "near.example": "203.0.113.9", "inside.example": "10.20.0.1"}


def example(number: int) -> str:
    text = re.findall(r"```ini\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)[number]
    return str(text).removeprefix("[rules]").partition("\n")[2]


def outcome(rules: str, target: str, user: str, listener: str) -> str:
    """Say by which rule a target is refused, or by which ways it goes."""
    config = read(rules).config
    (one,) = (each for each in config.listeners if each.name == listener)
    host, _, port = target.rpartition(":")
    query = Query(Address(host, int(port)), user, ip_address("192.0.2.7"), listener)

    def look_up() -> Sequence[IPAddress]:
        return [ip_address(NAMES.get(host, "198.51.100.1"))]

    answer = explain(Policy(one, Machine(lambda ip: False, lambda ip, port: False)), one, query, look_up)
    if answer["goes"]:
        return ", ".join(answer["by"])
    refusals = [each["rule"] for each in answer["addresses"]] or [answer["decided"]["rule"]]
    return f"refused by {refusals[0]}"


@pytest.mark.parametrize(
    ("target", "user", "listener", "expected"),
    [
        ("api.example.com:443", "ci", "web", "direct"),
        ("a.mirror.example.org:443", "ci", "socks", "direct"),
        ("api.example.com:80", "ci", "web", "refused by deploy-else"),
        ("www.example.com:443", "ci", "web", "refused by deploy-else"),
        ("www.corp.example.com:22", "alice", "web", "home, backup"),
        ("10.1.2.3:22", "alice", "web", "home, backup"),
        ("near.example:80", "alice", "socks", "direct"),
        ("mail.example:25", "alice", "socks", "refused by mail"),
        ("127.0.0.1:22", "alice", "web", "direct"),
        ("127.0.0.1:23", "alice", "web", "refused by guests"),
        ("printer.lan:9100", "bob", "web", "refused by guests"),
        ("printer.lan:9100", "bob", "socks", "direct"),
    ],
)
def test_the_six_examples_do_what_is_said_of_them(
    target: str, user: str, listener: str, expected: str
) -> None:
    assert warnings(example(0)) == []
    assert outcome(example(0), target, user, listener) == expected


def test_a_network_and_nothing_else_is_reached_by_names_too_if_they_are_looked_up() -> None:
    assert outcome(example(1), "inside.example:80", "", "socks") == "direct"
    assert outcome(example(1), "10.20.9.9:80", "", "socks") == "direct"
    assert outcome(example(1), "www.example.com:80", "", "socks") == "refused by else"
    without = example(1).replace("resolve = yes", "")
    assert outcome(without, "inside.example:80", "", "socks") == "refused by else"
