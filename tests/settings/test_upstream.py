"""A way out that exists is right, and so is the client that dials it."""

from dataclasses import replace
from typing import Any

import pytest

from proxy.errors import ConfigError
from proxy.settings.checked import SettingsError
from proxy.settings.client import ClientConfig
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from tests.settings.refusals import fields_of


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("proxy_address", {"type": UpstreamType.SOCKS5}),
        ("proxy_address", {"type": UpstreamType.SOCKS5, "proxy_address": "ws://h:1"}),
        ("proxy_address", {"type": UpstreamType.WEBSOCKET, "proxy_address": "socks5://h:1"}),
        ("proxy_address", {"type": UpstreamType.WEBSOCKET, "proxy_address": ":80"}),
        ("proxy_address", {"type": UpstreamType.SOCKS5, "proxy_address": "h:0"}),
        ("tls_ca", {"type": UpstreamType.WEBSOCKET, "proxy_address": "ws://h", "tls_ca": "ca.pem"}),
        ("tls_ca", {"type": UpstreamType.SOCKS5, "proxy_address": "h:1", "tls_ca": "ca.pem"}),
        ("proxy_password", {"type": UpstreamType.SOCKS5, "proxy_address": "h:1", "proxy_username": "a"}),
        ("proxy_username", {"type": UpstreamType.SOCKS5, "proxy_address": "h:1", "proxy_password": "a"}),
        ("type", {"type": UpstreamType.DIRECT, "proxy_address": "h:1"}),
        ("timeout", {"type": UpstreamType.DIRECT, "timeout": 0}),
        ("retry_count", {"type": UpstreamType.DIRECT, "retry_count": -1}),
    ],
)
def test_an_upstream_refuses_a_contradiction(
    field: str,
    settings: dict[str, Any],
) -> None:
    with pytest.raises(SettingsError) as caught:
        UpstreamConfig("home", **settings)
    assert fields_of(caught) == {field}


def test_credentials_for_a_websocket_proxy_fit_into_a_header() -> None:
    with pytest.raises(SettingsError) as caught:
        ClientConfig("ws://h", Protocol.WEBSOCKET, username="a", password="secret\n")
    assert fields_of(caught) == {"password"}
    assert "secret" not in str(caught.value)


def test_how_many_may_be_ready_is_what_is_set_or_eight() -> None:
    """DESIGN 1.12; what goes out directly has nothing to be ready."""
    way = UpstreamConfig("home", UpstreamType.SOCKS5, "127.0.0.1:1080")
    assert [replace(way, spare=spare).most_spares for spare in ("auto", 0, 64)] == [8, 0, 64]
    assert UpstreamConfig("line", UpstreamType.DIRECT).most_spares == 0
    for wrong in ("many", -1, 65):
        with pytest.raises(ConfigError):
            replace(way, spare=wrong)
