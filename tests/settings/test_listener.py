"""A listener that exists is right, and one that cannot be says all that is wrong with it."""

import re
from typing import Any

import pytest

from proxy.address import UNIX, Address
from proxy.errors import ConfigError
from proxy.networks import Networks
from proxy.settings.checked import SettingsError
from proxy.settings.listener import AuthPolicy, ClientAddress, ServerConfig
from proxy.settings.protocols import Protocol
from tests.settings.refusals import fields_of


def test_a_listener_names_everything_that_is_wrong_with_it() -> None:
    with pytest.raises(SettingsError) as caught:
        ServerConfig(
            "127.0.0.1",
            Protocol.SOCKS5,
            timeout=0,
            idle_timeout=-1,
            max_connections=0,
            path="tunnel",
            tls_cert="cert.pem",
            auth=AuthPolicy.REQUIRED,
        )
    assert fields_of(caught) == {
        *("listen_addr", "timeout", "idle_timeout", "max_connections", "path", "tls_cert", "tls_key", "auth")
    }


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("listen_addr", {"listen_addr": "ws://:80", "protocol": Protocol.SOCKS5}),
        ("listen_addr", {"listen_addr": "tcp://:80", "protocol": Protocol.WEBSOCKET}),
        ("listen_addr", {"listen_addr": "ws://:80/path", "protocol": Protocol.WEBSOCKET}),
        ("tls_cert", {"listen_addr": "wss://:443", "protocol": Protocol.WEBSOCKET}),
        ("tls_cert", {"listen_addr": ":443", "protocol": Protocol.WEBSOCKET, "tls_key": "k"}),
        (
            "listen_addr",
            {"listen_addr": "ws://:80", "protocol": Protocol.WEBSOCKET, "tls_cert": "c", "tls_key": "k"},
        ),
        ("path", {"listen_addr": ":80", "protocol": Protocol.WEBSOCKET, "path": "/a b"}),
        ("splice", {"listen_addr": ":80", "protocol": Protocol.SOCKS5, "splice": "of"}),
        ("mode", {"listen_addr": ":80", "protocol": Protocol.SOCKS5, "mode": "0660"}),
        ("mode", {"listen_addr": "unix:/s", "protocol": Protocol.SOCKS5, "mode": "rw-rw----"}),
        ("clients", {"listen_addr": "unix:/s", "protocol": Protocol.SOCKS5, "clients": Networks(["::/0"])}),
        ("trusted", {"listen_addr": "unix:/s", "protocol": Protocol.SOCKS5, "trusted": Networks(["::/0"])}),
        ("protocol", {"listen_addr": ":80", "protocol": "socks"}),
        ("overload", {"listen_addr": ":80", "protocol": "socks5", "overload": "refused"}),
        ("timeout", {"listen_addr": ":80", "protocol": Protocol.WEBSOCKET, "timeout": float("nan")}),
        ("timeout", {"listen_addr": ":80", "protocol": Protocol.WEBSOCKET, "timeout": float("inf")}),
    ],
)
def test_a_listener_refuses_a_contradiction(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        ServerConfig(**settings)
    assert fields_of(caught) == {field}


@pytest.mark.parametrize(
    ("path", "cure"),
    [
        ("/tunnel#top", "%23"),
        ("/tünnel x", "write /t%C3%BCnnel%20x"),
        ("/a/../b", ". or .."),
        ("/a/.", ". or .."),
        ("tunnel", "begin with /"),
    ],
)
def test_a_path_that_nobody_could_ask_for_is_refused_with_the_cure(path: str, cure: str) -> None:
    """CASES 305."""
    with pytest.raises(ConfigError, match=re.escape(cure)):
        ServerConfig(":80", Protocol.WEBSOCKET, path=path)


@pytest.mark.parametrize("path", ["/", "/tunnel?ed=2048", "/a..b/.c", "/50%", "/t%c3%bc?a=../b"])
def test_a_path_that_can_be_asked_for_is_taken(path: str) -> None:
    """CASES 305."""
    assert ServerConfig(":80", Protocol.WEBSOCKET, path=path).path == path


def test_a_unix_socket_is_open_to_its_group_unless_something_else_is_said() -> None:
    assert ServerConfig("unix:/s", Protocol.SOCKS5).mode == "0660"
    assert ServerConfig("unix:/s", Protocol.SOCKS5, mode="600").file_mode == 0o600


def test_who_says_who_the_client_is_need_not_be_named_at_a_unix_socket() -> None:
    config = ServerConfig("unix:/s", Protocol.SOCKS5, client_address=ClientAddress.PROXY_PROTOCOL)
    assert config.trusts(UNIX)
    assert not config.trusts(Address("127.0.0.1", 80))


def test_an_auth_requirement_without_users_is_an_error() -> None:
    """CASES B52."""
    with pytest.raises(ConfigError, match="no users"):
        ServerConfig(":1080", Protocol.SOCKS5, auth=AuthPolicy.REQUIRED)


@pytest.mark.parametrize(
    ("policy", "users", "expected"),
    [
        (AuthPolicy.AUTO, {}, False),
        (AuthPolicy.AUTO, {"alice": "wonderland"}, True),
        (AuthPolicy.REQUIRED, {"alice": "wonderland"}, True),
        (AuthPolicy.NONE, {"alice": "wonderland"}, False),
    ],
)
def test_clients_log_in_where_there_are_users(
    policy: AuthPolicy, users: dict[str, str], expected: bool
) -> None:
    assert ServerConfig(":1080", Protocol.SOCKS5, auth=policy, auth_users=users).needs_auth is expected
