"""
What the rules make of a connection, and that ``explain`` says the same.

The ways out are scripted: one that goes out directly judges the addresses that a name has as ``dial`` does,
and one through an upstream always succeeds.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import routing
from proxy.address import Address
from proxy.client import Connected
from proxy.ctl import show
from proxy.errors import DialError, Failure, ProxyError
from proxy.explain import explain, read_target
from proxy.metrics import ListenerMetrics
from proxy.net.deadline import Deadline
from proxy.net.dial import Check, interleave
from proxy.net.lookup import Found
from proxy.networks import Networks
from proxy.policy.rules import Machine, Policy, Query
from proxy.routing import Router
from proxy.settings.egress import Family
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from proxy.settings.rules import RuleConfig
from proxy.settings.upstream import DIRECT_UPSTREAM, UpstreamConfig, UpstreamType
from proxy.targets import Ports, Targets
from proxy.upstream import Ways

HOME = UpstreamConfig("home", UpstreamType.SOCKS5, "192.0.2.1:1080")
BACKUP = UpstreamConfig("backup", UpstreamType.SOCKS5, "192.0.2.2:1080")
ONLY_4 = UpstreamConfig("only4", UpstreamType.DIRECT, family=Family.IPV4_ONLY)
FROM_6 = UpstreamConfig("from6", UpstreamType.DIRECT, source="2001:db8::1")
UPSTREAMS = {"direct": DIRECT_UPSTREAM, "home": HOME, "backup": BACKUP, "only4": ONLY_4, "from6": FROM_6}
CLIENT = ip_address("198.51.100.7")

NAMES: Mapping[str, Sequence[str]] = {
    "public.example": ["203.0.113.5", "2001:db8::5"],
    "corp.example": ["10.1.2.3"],
    "mixed.example": ["203.0.113.6", "10.1.2.4", "fd00::4"],
    "here.example": ["127.0.0.1"],
    "gone.example": [],
}


def resolve(host: str, deadline: Deadline | None = None) -> Found:
    """Be the resolver."""
    if not NAMES[host]:
        raise DialError(f"{host} does not resolve", Failure.NAME_NOT_FOUND)
    return Found([ip_address(ip) for ip in NAMES[host]], is_all=True)


@pytest.fixture(autouse=True)
def _resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "look_up_all", resolve)


class Way:
    """
    A choice among upstreams of which the first answers; a direct one judges addresses as ``dial`` does.

    One that leaves out all that there are has failed.
    """

    def __init__(self, ways: tuple[UpstreamConfig, ...]) -> None:
        self.ways = ways
        self.name = ", ".join(each.name for each in ways)

    def dial(self, target: Address, deadline: Deadline, check: Check) -> Connected:
        """Connect, in name only."""
        for way in self.ways:
            is_direct = way.type is UpstreamType.DIRECT
            via = self._directly(way, target, check) if is_direct else way.name
            if via:
                return Connected(cast(Any, None), None, via)
        raise DialError(f"{target} is left out", Failure.NETWORK_UNREACHABLE)

    def _directly(self, way: UpstreamConfig, target: Address, check: Check) -> str:
        out = way.egress
        if target.ip:
            check(target.ip)
            return "" if out.why_not(target.ip.version) else f"{way.name} to {target.ip}"
        ips = [ip for ip in resolve(target.host).ips if not out.why_not(ip.version)]
        if not ips:
            return ""
        refusals, dialled = [], []
        for ip in interleave(ips, out.preferred):
            try:
                check(ip)
                dialled.append(ip)
            except DialError as exc:
                refusals.append(exc)
        if not dialled:
            raise refusals[0]
        return f"{way.name} to {' '.join(map(str, dialled))}"


class AllWays:
    """The ways out of a listener, whichever are wanted."""

    def __init__(self, config: ServerConfig) -> None:
        self.own = Way(config.ways)

    def __getitem__(self, ways: tuple[UpstreamConfig, ...]) -> Way:
        return Way(ways)


def rule(name: str, *, to: str = "", action: str = "allow", **more: Any) -> RuleConfig:
    """Make a rule."""
    actions = tuple(action.split(", "))
    leads = () if action in ("allow", "block") else tuple(UPSTREAMS[each] for each in actions)
    targets = Targets(filter(None, to.split(", ")))
    return RuleConfig(name, to=targets, action=actions, upstream_config=leads, **more)


def listener(*rules: RuleConfig, **settings: Any) -> ServerConfig:
    """Make the listener named web."""
    return ServerConfig("127.0.0.1:1080", Protocol.SOCKS5, "web", rules=rules, **settings)


def go(
    config: ServerConfig, target: str, user: str = "", counted: ListenerMetrics | None = None
) -> tuple[str, str, str]:
    """Connect; tell how, by which rule, and by which way it was tried."""
    router = Router(config, cast(Ways, AllWays(config)), counted or ListenerMetrics())
    # No routes of this machine play a part.
    router.policy._machine = Machine(
        lambda ip: ip.is_loopback, lambda ip, port: port == 1080 and ip.is_loopback
    )
    trip = router.trip(read_target(target), user, CLIENT)
    try:
        outcome = trip.dial(Deadline(10)).via
    except ProxyError as exc:
        outcome = f"refused: {exc.failure.name}"
    return outcome, trip.rule, trip.via


# A connection


def test_without_rules_and_guard_the_way_out_is_asked_as_it_is() -> None:
    config = listener(upstream_config=(HOME,))
    assert Router(config, cast(Ways, AllWays(config)), ListenerMetrics()).policy.is_plain


def test_a_rule_chooses_the_way_out() -> None:
    config = listener(rule("intranet", to="corp.example", action="home, backup"))
    assert go(config, "corp.example:80") == ("home", "intranet", "home, backup")
    assert go(config, "public.example:80") == ("direct to 203.0.113.5 2001:db8::5", "", "direct")


def test_a_blocked_target_is_refused_by_the_rule_and_nothing_is_tried() -> None:
    config = listener(rule("no", to="corp.example", action="block"), upstream_config=(HOME,))
    assert go(config, "corp.example:80") == ("refused: NOT_ALLOWED", "no", "")


def test_addresses_that_are_blocked_are_left_out_of_a_direct_connection() -> None:
    config = listener(rule("lan", to="private", action="block"))
    assert go(config, "mixed.example:80")[0] == "direct to 203.0.113.6"
    assert go(config, "corp.example:80") == ("refused: NOT_ALLOWED", "lan", "")
    assert go(listener(*config.rules, upstream_config=(HOME,)), "corp.example:80")[0] == "home"


def test_by_its_address_a_direct_connection_goes_another_way() -> None:
    config = listener(rule("intranet", to="10.0.0.0/8", action="home"))
    assert go(config, "corp.example:80") == ("home", "intranet", "home")
    assert go(config, "mixed.example:80")[0] == "direct to 203.0.113.6 fd00::4"


def test_by_its_address_a_connection_turns_once_and_never_in_a_circle() -> None:
    config = listener(
        rule("name", to="corp.example", port=Ports(["81"]), action="direct"),
        rule("net", to="10.0.0.0/8", action="direct, home"),
        upstream_config=(DIRECT_UPSTREAM, HOME),
    )
    assert go(config, "corp.example:80") == ("direct to 10.1.2.3", "net", "direct, home")


def test_what_a_rule_did_is_counted_once_for_each_connection() -> None:
    counted = ListenerMetrics()
    config = listener(
        rule("try", to="private", action="block", report=True),
        rule("intranet", to="10.0.0.0/8", action="home"),
        rule("lan", to="private", action="block"),
        rule("any"),
        guard="self",
    )
    for target in (
        "mixed.example:80",
        "corp.example:80",
        "here.example:80",
        "public.example:80",
        "public.example:1",
    ):
        go(config, target, counted=counted)
    assert counted.rules == {
        ("any", "allow"): 3,  # of mixed.example it is the first address that says so
        ("intranet", "lead"): 1,
        ("lan", "block"): 1,
        ("try", "would_block"): 3,
    }
    go(listener(guard="self"), "here.example:80", counted=counted)
    assert counted.rules["guard", "block"] == 1


def test_a_rule_has_decided_also_where_the_target_cannot_be_reached() -> None:
    counted = ListenerMetrics()
    assert go(listener(rule("any")), "gone.example:80", counted=counted)[:2] == (
        "refused: NAME_NOT_FOUND",
        "any",
    )
    assert counted.rules == {("any", "allow"): 1}


def test_a_rule_that_only_reports_says_what_it_would_have_done(caplog: pytest.LogCaptureFixture) -> None:
    config = listener(rule("try", to="corp.example", action="block", report=True))
    with caplog.at_level(logging.INFO):
        assert go(config, "corp.example:80", "alice") == ("direct to 10.1.2.3", "", "direct")
    assert [record.getMessage() for record in caplog.records] == [
        "web: rule try would block: corp.example:80 (user alice)"
    ]


# What is explained


def told(config: ServerConfig, target: str, user: str = "") -> dict[str, Any]:
    """Explain, without dialling anything."""
    query = Query(read_target(target), user, CLIENT, config.name)
    machine = Machine(lambda ip: ip.is_loopback, lambda ip, port: port == 1080 and ip.is_loopback)
    answer = explain(Policy(config, machine), config, query, lambda: resolve(query.target.host).ips)
    assert json.loads(json.dumps(answer)) == answer
    assert show.explanation(answer)
    return answer


def test_only_a_name_is_said_to_be_looked_up() -> None:
    config = listener(guard="self")
    assert "looked up" not in show.explanation(told(config, "[2001:db8::5]:80"))
    assert "looked up here: 10.1.2.3\n" in show.explanation(told(config, "corp.example:80"))


def test_addresses_that_a_direct_way_leaves_out_are_told_and_do_not_go() -> None:
    answer = told(listener(upstream_config=(ONLY_4,), guard="self"), "public.example:80")
    assert [(each["ip"], each["goes"]) for each in answer["addresses"]] == [
        ("203.0.113.5", True),
        ("2001:db8::5", False),
    ]
    assert "  2001:db8::5  family = ipv4_only leaves IPv6 out" in show.explanation(answer).splitlines()
    refused = told(listener(upstream_config=(ONLY_4,), guard="self"), "[2001:db8::5]:80")
    assert refused["failure"] == "[2001:db8::5]:80: family = ipv4_only leaves IPv6 out"
    by_backup = told(listener(upstream_config=(FROM_6, BACKUP), guard="self"), "203.0.113.5:80")
    assert by_backup["by"] == ["backup"]


def test_people_are_told_which_rule_has_a_connection_go_another_way() -> None:
    config = listener(rule("intranet", to="10.0.0.0/8", action="home"))
    lines = show.explanation(told(config, "corp.example:80")).splitlines()
    assert "  10.1.2.3  goes another way" in lines
    assert lines[-2:] == [
        "its address sends it another way, by rule intranet: through home",
        "goes: through home",
    ]


_SOME_TARGETS = (
    "public.example",
    "*.example",
    "corp.example",
    "10.0.0.0/8",
    "private",
    "self",
    "203.0.113.5",
    "metadata",
)
some_rules = st.lists(
    st.builds(
        rule,
        st.just("some"),
        to=st.lists(st.sampled_from(_SOME_TARGETS), max_size=2, unique=True).map(", ".join),
        action=st.sampled_from(
            ["allow", "block", "home", "direct", "home, direct", "direct, backup", "only4", "from6, backup"]
        ),
        port=st.sampled_from([Ports(), Ports(["80"]), Ports(["1-1080"])]),
        user=st.sampled_from([(), ("alice",)]),
        from_=st.sampled_from([Networks(), Networks(["198.51.100.0/24"]), Networks(["192.0.2.1"])]),
        listener=st.sampled_from([(), ("web",), ("other",)]),
        resolve=st.booleans(),
        report=st.booleans(),
    ),
    max_size=4,
).map(lambda rules: [RuleConfig(**{**vars(one), "name": f"r{number}"}) for number, one in enumerate(rules)])
targets = st.builds(
    "{}:{}".format,
    st.sampled_from(
        [*NAMES, "10.1.2.3", "127.0.0.1", "203.0.113.5", "169.254.169.254", "[64:ff9b::a01:203]"]
    ),
    st.sampled_from([22, 80, 1080]),
)


@settings(max_examples=300, deadline=None)
@given(
    some_rules,
    targets,
    st.sampled_from(["", "alice"]),
    st.sampled_from(["auto", "off", "metadata", "self", "private"]),
    st.sampled_from(
        [
            (),
            (HOME,),
            (HOME, DIRECT_UPSTREAM),
            (DIRECT_UPSTREAM, BACKUP),
            (ONLY_4,),
            (ONLY_4, BACKUP),
            (FROM_6, ONLY_4),
        ]
    ),
)
def test_explain_says_what_happens(
    rules: list[RuleConfig], target: str, user: str, guard: str, ways: tuple[UpstreamConfig, ...]
) -> None:
    config = listener(*rules, guard=guard, upstream_config=ways)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(routing, "look_up_all", resolve)
        if Policy(config, Machine(bool, lambda ip, port: False)).is_plain:
            return
        outcome, by_rule, _ = go(config, target, user)
    answer = told(config, target, user)
    if not answer["goes"]:
        assert outcome == f"refused: {_failure(answer)}"
        if outcome == "refused: NOT_ALLOWED":
            assert by_rule == (answer["addresses"] or [{"rule": answer["decided"]["rule"]}])[0]["rule"]
        return
    assert outcome.split()[0] == answer["by"][0]
    if " to " in outcome:
        dialled = [each["ip"] for each in answer["addresses"] if each["goes"]]
        assert outcome == f"{answer['by'][0]} to {' '.join(dialled)}"
    else:
        assert by_rule == (answer.get("turned") or answer["decided"])["rule"]


def _failure(answer: dict[str, Any]) -> str:
    return {2: "NOT_ALLOWED", 3: "NETWORK_UNREACHABLE", 4: "NAME_NOT_FOUND"}[answer["socks"]]
