"""Values whose fields are settings: what they are made of need not be of the right type."""

from typing import Any, cast

from proxy.settings.client import ClientConfig
from proxy.settings.listener import AuthPolicy, Overload, ServerConfig, Strategy
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType


def test_a_word_is_as_good_as_the_member_that_it_names() -> None:
    """Or "websocket" would be a listener of another protocol, and "refuse" one that lets clients wait."""
    words: dict[str, Any] = {"overload": "refuse", "auth": "none", "strategy": "random"}
    listener = ServerConfig(":80", cast(Any, "websocket"), **words)
    assert (listener.protocol, listener.overload) == (Protocol.WEBSOCKET, Overload.REFUSE)
    assert (listener.auth, listener.strategy) == (AuthPolicy.NONE, Strategy.RANDOM)
    assert UpstreamConfig("far", cast(Any, "socks5"), "h:1").type is UpstreamType.SOCKS5
    assert ClientConfig("ws://h:1", cast(Any, "websocket")).protocol is Protocol.WEBSOCKET
