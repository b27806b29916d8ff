"""What a configuration is on this machine at this time."""

import os
import socket as std_socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy import selfcheck
from proxy.config import ProxyConfig
from proxy.listening import opening
from proxy.selfcheck import problems, warnings
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import DIRECT, UpstreamConfig, UpstreamType
from tests.integration.certificates import Authority, Certificate

NAMES = {"self.example": ["127.0.0.1"], "far.example": ["192.0.2.1"]}  # RFC 5737: no machine's


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have some names, and note which are asked for."""
    noted: list[str] = []

    def answer(host: str, port: int, *_: object) -> list[object]:
        noted.append(host)
        if host not in NAMES:
            raise std_socket.gaierror(std_socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(std_socket.AF_INET, std_socket.SOCK_STREAM, 6, "", (ip, port)) for ip in NAMES[host]]

    monkeypatch.setattr(opening, "_getaddrinfo", answer)
    return noted


def config(**listeners: str) -> ProxyConfig:
    """Make a configuration: each listener is its address, and the addresses of its upstreams."""
    made = []
    for name, text in listeners.items():
        address, *proxies = text.split()
        ways = [
            UpstreamConfig(f"up-{proxy}", UpstreamType.SOCKS5, proxy) for proxy in proxies if proxy != DIRECT
        ]
        direct = [UpstreamConfig(DIRECT, UpstreamType.DIRECT)] if DIRECT in proxies else []
        made.append(ServerConfig(address, Protocol.SOCKS5, name, upstream_config=(*direct, *ways)))
    return ProxyConfig(listeners=tuple(made))


def found(config: ProxyConfig) -> list[tuple[str, str]]:
    return [(each.field, str(each)) for each in problems(config)]


@pytest.mark.parametrize(
    ("address", "proxy"),
    [
        ("127.0.0.1:1080", "127.0.0.1:1080"),
        (":1080", "127.0.0.1:1080"),
        (":1080", "[::1]:1080"),
        ("0.0.0.0:1080", "127.3.4.5:1080"),
        ("127.0.0.1:1080", "self.example:1080"),
        ("self.example:1080", "127.0.0.1:1080"),
        (":1080", "0.0.0.0:1080"),
    ],
)
def test_a_listener_is_not_its_own_upstream(address: str, proxy: str) -> None:
    """Case 375."""
    circle = f"connections would go in a circle: from a by upstream up-{proxy} to a"
    assert found(config(a=f"{address} {proxy}")) == [("listeners.a.upstream", circle)]


def test_a_circle_may_take_several_listeners_and_is_told_once() -> None:
    """Case 375: whichever of its upstreams a listener prefers."""
    circle = (
        "connections would go in a circle: from a by upstream up-127.0.0.1:2 to b, "
        "by upstream up-[::1]:3 to c, by upstream up-127.0.0.1:1 to a"
    )
    listeners = {"a": ":1 direct 127.0.0.1:2", "b": ":2 127.0.0.1:9 [::1]:3", "c": ":3 127.0.0.1:1"}
    assert found(config(**listeners)) == [("listeners.a.upstream", circle)]


def test_each_circle_is_told() -> None:
    """Case 375."""
    circles = found(config(a=":1 127.0.0.1:1", b=":2 127.0.0.1:3", c=":3 127.0.0.1:2", d=":4 127.0.0.1:2"))
    assert [field for field, _ in circles] == ["listeners.a.upstream", "listeners.b.upstream"]


@pytest.mark.parametrize(
    "listeners",
    [
        {"a": ":1 127.0.0.1:2", "b": ":2 direct"},
        {"a": ":1 127.0.0.1:3", "b": ":2 127.0.0.1:3", "c": ":3"},
        {"a": "127.0.0.1:1080 127.0.0.2:1080"},
        {"a": "0.0.0.0:1080 [::1]:1080"},
        {"a": ":1080 192.0.2.1:1080"},
        {"a": ":1080 far.example:1080"},
        {"a": ":1080 unknown.example:1080"},
    ],
    ids=["chain", "two-to-one", "another-address", "another-family", "far", "far-by-name", "not-known-now"],
)
def test_a_chain_is_no_circle(listeners: dict[str, str]) -> None:
    """Case 375: a listener may go out by another one."""
    assert found(config(**listeners)) == []


def test_a_circle_that_is_switched_off_is_none() -> None:
    """Case 375: ``enable_upstream = no``."""
    (listener,) = config(a=":1080 127.0.0.1:1080").listeners
    assert found(ProxyConfig(listeners=(replace(listener, enable_upstream=False),))) == []


def test_two_spellings_of_one_address_are_found() -> None:
    """Case 350."""
    expected = [("listeners.b.listen_addr", "is the address of [listeners.a] too: 127.0.0.1:1080")]
    assert found(config(a="self.example:1080", b="127.0.0.1:1080")) == expected
    assert found(config(a="far.example:1080", b="127.0.0.1:1080")) == []


def test_a_name_is_looked_up_only_where_the_ports_are_the_same(asked: list[str]) -> None:
    assert found(config(a=":1080 far.example:443", b="self.example:8080")) == []
    assert asked == []


@pytest.mark.parametrize(("address", "more", "is_warned"), [
    ("wss://far.example", {}, True),
    ("wss://far.example", {"tls_verify": False}, False),
    ("ws://far.example", {}, False),
])  # fmt: skip
def test_a_system_without_authorities_is_warned_of_where_they_are_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, more: dict[str, Any], is_warned: bool
) -> None:
    """A container without ca-certificates refuses every proxy."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    upstream = UpstreamConfig("up", UpstreamType.WEBSOCKET, address, **more)
    listener = ServerConfig("127.0.0.1:1080", Protocol.SOCKS5, "a")
    config = ProxyConfig(listeners=(listener,), upstreams=(upstream,))
    said = [(each.field, str(each)) for each in warnings(config)]
    lack = f"the system has no authorities to trust, neither in /dev/null nor in {tmp_path}"
    cure = "install the package ca-certificates, or name a file in tls_ca"
    assert said == [("upstreams.up.tls_ca", f"{lack}: {cure}; its certificate is refused")] * is_warned


def test_a_certificate_whose_time_is_over_or_to_come_is_warned_of(
    authority: Authority, good: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every client refuses it, which only they would tell."""
    over = authority.issue("over", "localhost", expired=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.root.cert))  # not every system has authorities

    def warned(made: Certificate) -> list[tuple[str, str]]:
        cert, key = str(made.cert), str(made.key)
        listener = ServerConfig("127.0.0.1:443", Protocol.WEBSOCKET, "web", tls_cert=cert, tls_key=key)
        proxy = "wss://far.example"
        upstream = UpstreamConfig("up", UpstreamType.WEBSOCKET, proxy, tls_cert=cert, tls_key=key)
        config = ProxyConfig(listeners=(listener,), upstreams=(upstream,))
        return [(each.field, str(each).removeprefix(str(made.cert))) for each in warnings(config)]

    assert warned(good) == []
    assert warned(over) == [
        (
            "listeners.web.tls_cert",
            " has expired, at 2020-01-02 00:00:00 UTC: renew it; clients refuse it",
        ),
        (
            "upstreams.up.tls_cert",
            " has expired, at 2020-01-02 00:00:00 UTC: renew it; the proxy refuses it",
        ),
    ]
    monkeypatch.setattr(selfcheck, "time", lambda: 1577836799.0)
    assert {said.partition(": ")[0] for _, said in warned(over)} == {
        " is not valid before 2020-01-01 00:00:00 UTC"
    }
