"""
Where a client may go: the sentences of DESIGN 1.10, each on its own.

No socket and no resolver is asked here; what machine this is, a test says.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from proxy.address import Address, IPAddress
from proxy.errors import DialError, Failure
from proxy.networks import Networks
from proxy.policy import rules
from proxy.policy.rules import (
    Answer,
    Course,
    ElsewhereError,
    Machine,
    NotAllowedError,
    Policy,
    Query,
    Reason,
    Verdict,
)
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from proxy.settings.rules import RuleConfig
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from proxy.targets import Ports, Targets

HOME = UpstreamConfig("home", UpstreamType.SOCKS5, "192.0.2.1:1080")
OWN = ip_address("203.0.113.9")  # of this machine, which listens there on port 1080


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",  # RFC 1122, section 3.2.1.3: this host on this network
        "255.255.255.255",  # limited broadcast
        "224.0.0.1",  # RFC 5771: the first and the last multicast address
        "239.255.255.255",
        "::",  # RFC 4291, section 2.5.2: unspecified
        "ff00::",  # section 2.7: multicast
        "ff02::1",
        "::ffff:0.0.0.0",  # section 2.5.5.2: the same IPv4 addresses in IPv6
        "::ffff:224.0.0.1",
        "::ffff:255.255.255.255",
    ],
)
def test_refuses_what_is_no_hosts_address(text: str) -> None:
    """CASES A31, J219."""
    with pytest.raises(DialError, match="not the address of a host") as refused:
        rules.check(ip_address(text))
    assert refused.value.failure is Failure.NOT_ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "192.0.2.255",  # a broadcast address in some networks, a host's in others
        "223.255.255.255",
        "240.0.0.1",
        "255.255.255.254",
        "::1",
        "fe80::1",
        "2001:db8::1",
        "feff::1",
        "::ffff:127.0.0.1",
    ],
)
def test_allows_a_hosts_address(text: str) -> None:
    rules.check(ip_address(text))


# The rules


def rule(name: str = "one", **settings: Any) -> RuleConfig:
    """Make a rule as the file has it."""
    lists = {
        "to": Targets,
        "port": Ports,
        "from_": Networks,
        "user": tuple,
        "listener": tuple,
        "action": tuple,
    }
    values = {
        key: lists[key](each.strip() for each in value.split(",")) if key in lists else value
        for key, value in settings.items()
    }
    if "action" in values and not {"allow", "block"} & set(values["action"]):
        known = {"home": HOME, "direct": UpstreamConfig("direct", UpstreamType.DIRECT)}
        values["upstream_config"] = tuple(known[each] for each in values["action"])
    return RuleConfig(name, **values)


def policy(*those: RuleConfig, listen: str = "127.0.0.1:1080", **settings: Any) -> Policy:
    """Make the policy of a listener named web."""
    config = ServerConfig(listen, Protocol.SOCKS5, "web", rules=those, **settings)
    return Policy(
        config, Machine(lambda ip: ip == OWN or ip.is_loopback, lambda ip, port: (ip, port) == (OWN, 1080))
    )


def query(target: str, port: int = 443, **who: Any) -> Query:
    """Make the wish of a client at web."""
    return Query(Address(target, port), listener="web", **who)


def decides(found: Policy, asked: Query, ip: str = "", look_up: Any = None) -> str:
    """Give the name of the rule that decides."""
    verdict = found.judge(asked, ip_address(ip) if ip else None, look_up)
    return verdict.rule.name if verdict.rule else ""


def test_the_first_rule_that_matches_decides() -> None:
    found = policy(rule("a", to="a.example"), rule("b", to="*.example"), rule("c"))
    assert decides(found, query("a.example")) == "a"
    assert decides(found, query("b.example")) == "b"
    assert decides(found, query("c.test")) == "c"


def test_without_a_rule_for_it_anything_is_allowed() -> None:
    verdict = policy(rule(to="a.example", action="block")).judge(query("b.example"))
    assert verdict.rule is None
    assert not verdict.is_block


@pytest.mark.parametrize(
    ("settings", "asked", "matches"),
    [
        ({"user": "alice, bob"}, {"user": "bob"}, True),
        ({"user": "alice"}, {"user": "eve"}, False),
        ({"user": "alice"}, {}, False),  # who has not logged in is nobody
        ({"from_": "10.0.0.0/8"}, {"client": ip_address("10.1.2.3")}, True),
        ({"from_": "10.0.0.0/8"}, {"client": ip_address("11.1.2.3")}, False),
        ({"from_": "10.0.0.0/8"}, {}, False),  # a Unix socket's client has no address
        ({"listener": "web"}, {}, True),
        ({"listener": "socks"}, {}, False),
        ({"port": "443, 8000-8999"}, {"port": 8443}, True),
        ({"port": "443, 8000-8999"}, {"port": 444}, False),
        ({}, {}, True),
    ],
)
def test_all_conditions_must_hold_and_of_a_list_any_entry(
    settings: dict[str, str], asked: dict[str, Any], matches: bool
) -> None:
    port = asked.pop("port", 443) if (asked := dict(asked)) else 443
    found = policy(rule(to="a.example", **settings))
    assert decides(found, query("a.example", port, **asked)) == ("one" if matches else "")
    assert decides(found, query("b.example", port, **asked)) == ""


@pytest.mark.parametrize("target", [
    "192.0.2.33", "::ffff:192.0.2.33", "64:ff9b::192.0.2.33", "2002:c000:221::", "0xc0000221", "3221226017",
])  # fmt: skip
def test_a_literal_address_is_judged_as_one_in_every_spelling(target: str) -> None:
    """CASES 219."""
    assert decides(policy(rule(to="192.0.2.0/24")), query(target)) == "one"
    assert decides(policy(rule(to="192.0.2.34")), query(target)) == ""


def test_a_name_is_not_judged_by_addresses_before_it_is_resolved_here() -> None:
    found = policy(rule("net", to="10.0.0.0/8, corp.example", action="block"))
    assert [step.answer for step in found.walk(query("a.example"))] == [Answer.OPEN]
    assert [step.answer for step in found.walk(query("corp.example"))] == [Answer.YES]
    assert decides(found, query("a.example")) == ""
    assert decides(found, query("a.example"), ip="10.1.2.3") == "net"
    assert decides(found, query("a.example"), ip="11.1.2.3") == ""


def looks_up(*ips: str) -> Any:
    """Make a resolver that is asked once at the most."""
    answers = iter([[ip_address(ip) for ip in ips]])
    found: list[Sequence[IPAddress]] = []

    def look_up() -> Sequence[IPAddress]:
        found[:] = found or [next(answers)]
        return found[0]

    return look_up


def test_with_resolve_a_name_is_judged_by_its_addresses_though_it_travels_as_a_name() -> None:
    found = policy(
        rule("near", to="203.0.113.0/24", resolve=True, action="direct"), rule("rest", action="home")
    )
    assert decides(found, query("a.example"), look_up=looks_up("203.0.113.5")) == "near"
    assert decides(found, query("a.example"), look_up=looks_up("192.0.2.1")) == "rest"


def test_with_resolve_a_block_is_for_any_of_the_addresses_and_all_else_for_the_first() -> None:
    ips = ("192.0.2.1", "10.0.0.1")
    for action, decided in (("block", "net"), ("allow", ""), ("home", "")):
        found = policy(rule("net", to="10.0.0.0/8", resolve=True, action=action))
        assert decides(found, query("a.example"), look_up=looks_up(*ips)) == decided
        assert decides(found, query("a.example"), look_up=looks_up(*reversed(ips))) == "net"


def test_a_lookup_that_fails_ends_it_and_is_never_the_next_rule() -> None:
    def fails() -> Sequence[IPAddress]:
        raise DialError("a.example does not resolve", Failure.NAME_NOT_FOUND)

    found = policy(rule("net", to="10.0.0.0/8", resolve=True, action="block"), rule("rest"))
    with pytest.raises(DialError, match="does not resolve"):
        found.judge(query("a.example"), look_up=fails)


def test_a_lookup_that_fails_ends_nothing_for_a_rule_that_only_reports() -> None:
    def fails() -> Sequence[IPAddress]:
        raise DialError("a.example does not resolve", Failure.NAME_NOT_FOUND)

    found = policy(rule("try", to="10.0.0.0/8", resolve=True, action="block", report=True), rule("rest"))
    assert decides(found, query("a.example"), look_up=fails) == "rest"


def test_nothing_is_looked_up_for_a_rule_that_is_for_others() -> None:
    def nobody() -> Sequence[IPAddress]:
        raise AssertionError("a lookup that nobody needs")

    found = policy(
        rule(to="10.0.0.0/8", resolve=True, user="alice"),
        rule(to="10.0.0.0/8", resolve=True, port="22"),
        rule(to="a.example, 10.0.0.0/8", resolve=True),
    )
    assert decides(found, query("a.example"), look_up=nobody) == "one"


def test_a_rule_that_only_reports_decides_nothing() -> None:
    found = policy(rule("try", to="a.example", action="block", report=True), rule("rest"))
    reported: list[RuleConfig] = []
    verdict = found.judge(query("a.example"), reported=reported.append)
    assert verdict.rule
    assert verdict.rule.name == "rest"
    assert [each.name for each in reported] == ["try"]


def test_rules_of_other_listeners_are_none_of_this_one() -> None:
    assert policy(rule(listener="socks")).rules == ()
    assert len(policy(rule(listener="socks, web")).rules) == 1


# The guard


@pytest.mark.parametrize(
    ("listen", "settings", "guarded"),
    [
        ("127.0.0.1:1080", {}, None),  # only this machine reaches it
        ("[::1]:1080", {}, None),
        ("localhost:1080", {}, None),
        ("unix:/run/proxy.sock", {}, None),
        ("unix:/run/proxy.sock", {"client_address": "proxy_protocol"}, "self"),  # others come by it
        ("127.0.0.1:1080", {"client_address": "proxy_protocol", "trusted": Networks(["127.0.0.1"])}, "self"),
        (":1080", {}, "self"),
        ("0.0.0.0:1080", {"auth_users": {"alice": "wonderland"}}, "metadata"),
        (":1080", {"auth_users": {"alice": "wonderland"}, "auth": "none"}, "self"),
        (":1080", {"guard": "off"}, None),
        (":1080", {"guard": "private"}, "private"),
        ("127.0.0.1:1080", {"guard": "metadata"}, "metadata"),
    ],
)
def test_the_guard_is_as_strict_as_who_can_come_calls_for(
    listen: str, settings: dict[str, Any], guarded: str | None
) -> None:
    level = ServerConfig(listen, Protocol.SOCKS5, "web", **settings).guarded
    assert (level.value if level else None) == guarded


def stops(found: Policy, target: str, port: int = 443, ip: str = "") -> str:
    """Give the rule by which a direct connection is stopped, if it is."""
    asked = query(target, port)
    try:
        verdict = found.judge(asked)
        if verdict.is_block:
            raise rules.blocked(target, verdict)
        Course(found, asked, verdict).check(ip_address(ip or target))
    except NotAllowedError as exc:
        return exc.rule
    return ""


@pytest.mark.parametrize(
    ("level", "free", "stopped"),
    [
        ("off", ["169.254.169.254", "127.0.0.1", "203.0.113.9", "10.0.0.1", "192.0.2.1"], []),
        ("metadata", ["127.0.0.1", "203.0.113.9", "10.0.0.1", "192.0.2.1"], ["169.254.169.254", "fe80::1"]),
        (
            "self",
            ["10.0.0.1", "192.0.2.1", "198.18.0.1"],
            ["169.254.169.254", "127.0.0.1", "::1", "0.1.2.3", "203.0.113.9"],
        ),
        (
            "private",
            ["192.0.2.1", "198.18.0.1"],
            ["169.254.1.1", "127.9.9.9", "10.0.0.1", "fd00::1", "100.64.0.1"],
        ),
    ],
)
def test_the_guard_stops_what_its_level_contains(level: str, free: list[str], stopped: list[str]) -> None:
    found = policy(guard=level)
    assert {ip: stops(found, ip) for ip in free + stopped} == dict.fromkeys(free, "") | dict.fromkeys(
        stopped, "guard"
    )
    assert {ip: stops(found, "a.example", ip=ip) for ip in stopped} == dict.fromkeys(stopped, "guard")


def test_only_a_rule_that_names_an_address_lets_through_what_the_guard_stops() -> None:
    for to in ("127.0.0.1", "127.0.0.0/8", "self", "private", "a.example, 127.0.0.1"):
        assert stops(policy(rule(to=to), guard="self"), "127.0.0.1") == "", to
        assert stops(policy(rule(to=to), guard="self"), "a.example", ip="127.0.0.1") == "", to
    for settings in ({}, {"to": "a.example"}, {"to": "*.example"}, {"port": "443"}, {"action": "direct"}):
        found = policy(rule(**settings), guard="self")
        assert stops(found, "a.example", ip="127.0.0.1") == "guard", settings
    assert stops(policy(rule(to="127.0.0.1", user="alice"), guard="self"), "127.0.0.1") == "guard"


@pytest.mark.parametrize("level", ["auto", "metadata", "self", "private"])
def test_our_own_listeners_are_no_targets_unless_a_rule_names_address_and_port(level: str) -> None:
    """CASES 375."""
    assert stops(policy(guard=level), "203.0.113.9", 1080) == "guard"
    assert stops(policy(rule(to="203.0.113.9"), guard=level), "203.0.113.9", 1080) == "guard"
    assert stops(policy(rule(port="1080"), guard=level), "203.0.113.9", 1080) == "guard"
    assert stops(policy(rule(to="203.0.113.9", port="1080"), guard=level), "203.0.113.9", 1080) == ""


def test_with_the_guard_off_our_own_listeners_are_targets_like_others() -> None:
    assert stops(policy(guard="off"), "203.0.113.9", 1080) == ""


def test_the_refusal_says_which_setting_lets_it_through_and_tells_a_client_no_address() -> None:
    found, asked = policy(listen=":1080"), query("a.example")
    with pytest.raises(NotAllowedError) as refused:
        Course(found, asked, Verdict(None)).check(ip_address("127.0.0.1"))
    assert str(refused.value) == (
        "a.example:443 (127.0.0.1): 127.0.0.1 is this machine: "
        "only a rule that names the address allows it (guard = auto, which is self here)"
    )
    assert refused.value.failure is Failure.NOT_ALLOWED
    assert "127.0.0.1" not in refused.value.told
    assert "guard = auto" in refused.value.told


# A direct connection: each address is judged, and the first that is not refused says by which way


def course(found: Policy, target: str = "a.example") -> Course:
    asked = query(target)
    return Course(found, asked, found.judge(asked))


def test_a_blocked_address_is_not_dialled_and_the_others_are() -> None:
    found = course(policy(rule("lan", to="private", action="block")))
    with pytest.raises(NotAllowedError, match="not allowed by rule lan"):
        found.check(ip_address("10.0.0.1"))
    found.check(ip_address("192.0.2.1"))
    with pytest.raises(NotAllowedError):
        found.check(ip_address("10.0.0.2"))


def test_an_earlier_rule_for_the_name_counts_for_its_addresses_too() -> None:
    lan = rule("lan", to="private", action="block")
    course(policy(rule("printer", to="a.example"), lan)).check(ip_address("10.0.0.1"))
    with pytest.raises(NotAllowedError, match="rule lan"):
        course(policy(lan, rule("printer", to="a.example"))).check(ip_address("10.0.0.1"))


def test_where_the_verdict_on_an_address_names_another_way_the_connection_goes_there() -> None:
    found = course(policy(rule("intranet", to="10.0.0.0/8", action="home")))
    with pytest.raises(ElsewhereError) as elsewhere:
        found.check(ip_address("10.0.0.1"))
    assert elsewhere.value.verdict == Verdict(found._policy.rules[0], Reason.ADDRESS)


def test_when_the_way_is_settled_addresses_that_go_another_are_left_out() -> None:
    found = course(policy(rule("intranet", to="10.0.0.0/8", action="home")))
    found.check(ip_address("192.0.2.1"))
    with pytest.raises(NotAllowedError, match="goes another way than others, by rule intranet"):
        found.check(ip_address("10.0.0.1"))


def test_the_guard_is_for_direct_connections_only() -> None:
    """DESIGN 1.10: it holds where a connection goes out directly from here."""
    found = course(policy(rule("intranet", to="10.0.0.0/8", action="home"), guard="private"))
    with pytest.raises(ElsewhereError):
        found.check(ip_address("10.0.0.1"))


def test_with_upstreams_switched_off_a_rule_leads_nowhere_else() -> None:
    found = policy(rule("intranet", to="10.0.0.0/8", action="home"), enable_upstream=False)
    course(found).check(ip_address("10.0.0.1"))
    assert found.ways(found.judge(query("10.0.0.1"))) == found.ways(Verdict(None))
