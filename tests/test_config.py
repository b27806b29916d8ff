"""A whole configuration: where its mistakes are, and that its secrets stay inside."""

from typing import Any

import pytest

from proxy.config import ProxyConfig
from proxy.settings.checked import SettingsError
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from tests.settings.refusals import fields_of

SOCKS = ServerConfig("127.0.0.1:1080", Protocol.SOCKS5, name="socks")


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("listeners", {"listeners": ()}),
        ("control.token", {"control_listen_addr": "127.0.0.1:9180"}),
        ("control.token", {"control_token": "two\nlines"}),
        ("control.listen_addr", {"control_listen_addr": "9180", "control_token": "t"}),
        ("control.listen_addr", {"control_listen_addr": "ws://:9180", "control_token": "t"}),
        ("control.listen_addr", {"control_listen_addr": ":1080", "control_token": "t"}),
        (
            "listeners.two.listen_addr",
            {"listeners": (SOCKS, ServerConfig(":1080", Protocol.WEBSOCKET, "two"))},
        ),
        ("proxy.log_level", {"log_level": "loud"}),
        ("proxy.splice", {"splice": "on"}),
        ("proxy.access_log", {"access_log": ""}),
        ("proxy.history_size", {"history_size": 0}),
        ("proxy.drain_timeout", {"drain_timeout": -1}),
    ],
)
def test_a_configuration_names_the_place_of_a_mistake(
    field: str,
    settings: dict[str, Any],
) -> None:
    with pytest.raises(SettingsError) as caught:
        ProxyConfig(**({"listeners": (SOCKS,)} | settings))
    assert fields_of(caught) == {field}


def test_no_repr_shows_a_secret() -> None:
    users = {"alice": "hunter2"}
    upstream = UpstreamConfig("home", UpstreamType.SOCKS5, "h:1", "alice", "hunter2")
    listener = ServerConfig(":1080", Protocol.SOCKS5, auth_users=users, upstream_config=(upstream,))
    config = ProxyConfig((listener,), (upstream,), users, control_token="hunter2")
    assert "hunter2" not in repr(config) + repr(upstream.client_config)
