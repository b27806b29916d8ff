"""A configuration as the text of a file: it says all there is but secrets, and reads back."""

from dataclasses import replace
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import ProxyConfig
from proxy.configfile.dump import dump
from proxy.configtext.sections import SETTINGS
from proxy.networks import Networks
from proxy.settings.egress import Family
from proxy.settings.limits import LimitConfig, Per
from proxy.settings.listener import Guard, Overload, ServerConfig, Strategy
from proxy.settings.protocols import Protocol
from proxy.settings.rules import RuleConfig
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from proxy.targets import Ports, Targets
from proxy.units import Rate
from tests.configfile import reading

DIRECT = UpstreamConfig("direct", UpstreamType.DIRECT)
LISTENER = "[listeners]\n[[one]]\nprotocol = socks5\nlisten_addr = 127.0.0.1:0\n"


def read(text: str) -> ProxyConfig:
    """Read the text of a file."""
    return reading.read(text).config


SECRETS = st.text(
    st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=20
).filter(lambda text: not text.startswith("scrypt$"))  # which is a hash, or none at all
NAMES = st.text("abcxyz019_.-", min_size=1, max_size=8).filter(lambda name: name != "direct")
PATHS = st.text(st.sampled_from("ab/#,'\" =[]%;ä"), max_size=8).filter(
    lambda text: not ('"""' in text and "'''" in text)
)
TARGETS = ["example.com", "*.example.com", "192.0.2.7", "10.0.0.0/8", "2001:db8::/32", "self", "private"]
SECONDS = st.floats(0.001, 86400) | st.sampled_from([0.5, 1.0, 60.0, 90.0, 3600.0])


@st.composite
def configurations(draw: st.DrawFn) -> ProxyConfig:
    upstreams = tuple(
        UpstreamConfig(
            name,
            UpstreamType.WEBSOCKET,
            "wss://gateway.example.com/tunnel",
            draw(SECRETS).strip() or "a",
            draw(SECRETS).strip() or "b",
            timeout=draw(SECONDS),
            retry_count=draw(st.integers(0, 5)),
            tls_ca=draw(PATHS),
            tls_verify=draw(st.booleans()),
            headers=draw(st.sampled_from([(), ("X-A: a, b # c",), ('X-A: "a"', "X-B: it's, a")])),
            source=draw(st.sampled_from(["", "192.0.2.7"])),
            interface=draw(st.sampled_from(["", "eth1"])),
            family=draw(st.sampled_from([Family.AUTO, Family.IPV4, Family.IPV4_ONLY])),
        )
        for name in draw(st.lists(NAMES, unique=True, max_size=3))
    )
    names = st.text(
        st.characters(codec="utf-8", categories=["L", "N", "S"], exclude_characters="='"),
        min_size=1,
        max_size=9,
    )
    shared: dict[str, Any] = {
        "auth_users": draw(st.dictionaries(names, SECRETS, max_size=3)),
        "timeout": draw(SECONDS),
        "idle_timeout": draw(SECONDS | st.just(0.0)),
        "enable_upstream": draw(st.booleans()),
        "overload": draw(st.sampled_from(Overload)),
    }
    users = names.filter(lambda name: "," not in name)
    called = draw(st.lists(NAMES, unique=True, min_size=1, max_size=3))
    everything = {each.name: each for each in (DIRECT, *upstreams)}
    actions = st.sampled_from([["allow"], ["block"]]) | st.lists(
        st.sampled_from(list(everything)), min_size=1, max_size=3, unique=True
    )
    rules = tuple(
        RuleConfig(
            name,
            to=Targets(draw(st.lists(st.sampled_from(TARGETS), unique=True, max_size=4))),
            port=Ports(draw(st.lists(st.sampled_from(["22", "80-90", "1-65535"]), unique=True, max_size=2))),
            user=tuple(draw(st.lists(users, unique=True, max_size=3))),
            from_=draw(st.sampled_from([Networks(), Networks(["10.0.0.0/8", "2001:db8::/32"])])),
            listener=tuple(draw(st.sets(st.sampled_from(called)))),
            action=(action := tuple(draw(actions))),
            resolve=draw(st.booleans()),
            report=draw(st.booleans()),
            upstream_config=()
            if {"allow", "block"} & set(action)
            else tuple(everything[one] for one in action),
        )
        for name in draw(st.lists(NAMES, unique=True, max_size=3))
    )
    shared |= {"rules": rules, "guard": draw(st.sampled_from(Guard))}
    listeners = tuple(
        ServerConfig(
            ":0",
            draw(st.sampled_from((Protocol.SOCKS5, Protocol.WEBSOCKET, Protocol.MIXED))),
            name,
            upstream_config=tuple(draw(st.permutations((DIRECT, *upstreams)))),
            strategy=draw(st.sampled_from(Strategy)),
            max_connections=draw(st.integers(1, 10**6)),
            **shared,
        )
        for name in called
    )
    limits = tuple(
        LimitConfig(
            name,
            draw(st.sampled_from(Per)),
            connections=draw(st.integers(1, 10**6)),
            new=draw(st.none() | st.builds(Rate, st.integers(1, 10**6), st.sampled_from("smh"))),
            bandwidth=draw(st.none() | st.integers(1 << 10, 1 << 40)),
            user=tuple(draw(st.lists(users, unique=True, max_size=3))),
            from_=draw(st.sampled_from([Networks(), Networks(["10.0.0.0/8", "2001:db8::/32"])])),
            listener=tuple(draw(st.sets(st.sampled_from(called)))),
        )
        for name in draw(st.lists(NAMES, unique=True, max_size=3))
    )
    return ProxyConfig(
        listeners,
        upstreams,
        auth_users=shared["auth_users"],
        rules=rules,
        limits=limits,
        state_dir=draw(PATHS),
        access_log=draw(PATHS) or "off",
        drain_timeout=draw(SECONDS),
        control_token=draw(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)),
    )


@settings(max_examples=60)
@given(configurations())
def test_what_is_written_reads_back_the_same(config: ProxyConfig) -> None:
    with mock.patch("proxy.configfile.dump.shown", lambda path, key, value: value):
        written = dump(config)
    assert read(written) == config


@settings(max_examples=20)
@given(configurations())
def test_a_dump_has_no_secret_and_is_a_file_itself(config: ProxyConfig) -> None:
    redacted = read(dump(config))
    listeners = config.listeners
    assert set(redacted.auth_users.values()) <= {"********"}
    assert {each.proxy_password for each in redacted.upstreams} <= {"********"}
    assert {each for way in redacted.upstreams for each in way.headers} <= {"********: ********"}
    assert redacted.control_token in ("", "********")
    users: dict[str, Any] = {"auth_users": redacted.auth_users}
    assert redacted.auth_users.keys() == config.auth_users.keys()
    assert [replace(each, upstream_config=(), rules=(), **users) for each in redacted.listeners] == [
        replace(each, upstream_config=(), rules=(), **users) for each in listeners
    ]


def test_a_dump_has_no_query_of_an_address() -> None:
    """CASES H210: it may be a token."""
    text = dump(read(f"{LISTENER}[upstreams]\n[[b]]\ntype = websocket\nproxy_address = wss://b/t?sesame"))
    assert "proxy_address = wss://b/t?********\n" in text


def test_a_dump_states_every_setting() -> None:
    text = dump(read(LISTENER))
    for key in (*SETTINGS["proxy"], *SETTINGS["listeners"], *SETTINGS["control"]):
        assert f"\n{key} =" in text
