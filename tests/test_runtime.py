"""
What connections need of a configuration: made whole or not at all, and what the next one goes on with.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gevent
import pytest

from proxy import runtime as module
from proxy.address import Address
from proxy.client import DirectClient
from proxy.errors import AuthError, ClientLeftError, ConfigError, LimitError, UpstreamError
from proxy.net.checking import Checkers
from proxy.policy.auth import hash_password
from proxy.relaying.channel import Channel
from proxy.runtime import Memory, Runtime, build_runtime
from proxy.settings.listener import AuthPolicy, ServerConfig
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from proxy.upstream import Upstream
from tests.wire.greenlets import PATIENCE, patience, tcp_pair, until

HOME = UpstreamConfig("home", UpstreamType.SOCKS5, "home.example:1080")
BACKUP = UpstreamConfig("backup", UpstreamType.SOCKS5, "backup.example:1080")
CONFIG = ServerConfig("127.0.0.1:0", Protocol.SOCKS5, upstream_config=(HOME, BACKUP))
FAULT = UpstreamError("home.example:1080 does not answer")


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience():
        yield


def upstream(runtime: Runtime, name: str) -> Upstream:
    (found,) = (each for each in runtime.upstreams if each.name == name)
    return found


# What outlives a configuration


def test_what_is_known_of_an_upstream_holds_under_the_next_configuration() -> None:
    before = build_runtime(CONFIG)
    upstream(before, "home").health.failed(FAULT, 0.0)
    after = before.under(replace(CONFIG, timeout=7.0, upstream_config=(BACKUP, HOME)))
    assert upstream(after, "home").health.failures == 1
    assert upstream(after, "backup").health.failures == 0


def test_who_still_connects_under_the_old_one_reports_to_the_new_one_too() -> None:
    before = build_runtime(CONFIG)
    after = before.under(replace(CONFIG, timeout=7.0))
    upstream(before, "home").health.failed(FAULT, 0.0)
    assert upstream(after, "home").health.failures == 1


@pytest.mark.parametrize(
    "other", [replace(HOME, proxy_address="moved.example:1080"), replace(HOME, timeout=3.0)]
)
def test_an_upstream_with_other_settings_begins_anew(other: UpstreamConfig) -> None:
    """What failed may have been mended by just that."""
    before = build_runtime(CONFIG)
    upstream(before, "home").health.failed(FAULT, 0.0)
    after = before.under(replace(CONFIG, upstream_config=(other, BACKUP)))
    assert upstream(after, "home").health.failures == 0


def test_an_upstream_that_was_gone_in_between_begins_anew() -> None:
    """Else what was known of all that ever stood in the file would be kept."""
    before = build_runtime(CONFIG)
    upstream(before, "home").health.failed(FAULT, 0.0)
    between = before.under(replace(CONFIG, upstream_config=(BACKUP,)))
    assert set(between.memory.health) == {BACKUP}
    assert upstream(between.under(CONFIG), "home").health.failures == 0


def test_counters_and_the_access_log_go_on() -> None:
    before = build_runtime(CONFIG)
    before.metrics.accepted += 3
    after = before.under(replace(CONFIG, timeout=7.0))
    assert after.metrics.accepted == 3
    assert after.access_log is before.access_log


def test_only_the_runtime_in_use_looks_after_its_upstreams() -> None:
    before = build_runtime(CONFIG)
    health = upstream(before, "home").health
    assert health.keeper is None
    before.begin()
    assert health.keeper is upstream(before, "home")
    after = before.under(replace(CONFIG, timeout=7.0))
    after.begin()
    before.retire()  # in this order: a configuration takes over from the one before
    assert health.keeper is upstream(after, "home")
    after.retire()
    assert health.keeper is None


# Whole or not at all


def test_a_tls_file_that_is_of_no_use_is_an_error_and_leaves_the_old_one_as_it_was(tmp_path: Path) -> None:
    before = build_runtime(CONFIG)
    nothing = str(tmp_path / "missing.pem")
    tls = ServerConfig("wss://127.0.0.1:0", Protocol.WEBSOCKET, tls_cert=nothing, tls_key=nothing)
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        before.under(tls)
    assert set(before.memory.health) == {HOME, BACKUP}


def test_without_upstreams_one_goes_out_directly() -> None:
    for config in (replace(CONFIG, upstream_config=()), replace(CONFIG, enable_upstream=False)):
        runtime = build_runtime(config)
        assert isinstance(runtime.router.ways.own, DirectClient)
        runtime.begin()  # there is nothing to look after
        runtime.retire()


# Logins

HASH = hash_password("wonderland")


@pytest.mark.parametrize(
    ("policy", "users", "needs"),
    [
        (AuthPolicy.AUTO, {}, False),
        (AuthPolicy.AUTO, {"alice": HASH}, True),
        (AuthPolicy.REQUIRED, {"alice": HASH}, True),
        (AuthPolicy.NONE, {"alice": HASH}, False),
    ],
)
def test_whether_clients_must_log_in(policy: AuthPolicy, users: dict[str, str], needs: bool) -> None:
    """The table of docs/configuration.md; ``required`` without users is refused by the configuration."""
    assert build_runtime(replace(CONFIG, auth=policy, auth_users=users)).needs_auth is needs


def test_a_login_gives_the_name_that_a_log_shows_in_either_encoding() -> None:
    runtime = build_runtime(replace(CONFIG, auth_users={"j\u00fcrgen": "wonderland"}))
    assert runtime.log_in("j\u00fcrgen".encode(), b"wonderland") == "j\u00fcrgen"
    assert runtime.log_in(b"j\xfcrgen", b"wonderland") == "j\u00fcrgen"


def test_a_refused_login_says_who_it_was_and_not_with_what() -> None:
    runtime = build_runtime(replace(CONFIG, auth_users={"alice": "wonderland"}))
    with pytest.raises(AuthError) as refused:
        runtime.log_in(b"mallory", b"looking-glass")
    assert refused.value.user == "mallory"
    assert "looking-glass" not in str(refused.value)


def test_a_login_that_was_right_is_remembered_under_the_next_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would cost a hash otherwise: here there is no thread for one any more."""
    before = build_runtime(replace(CONFIG, auth_users={"alice": HASH}))
    before.log_in(b"alice", b"wonderland")
    monkeypatch.setattr(module, "_hashing", None)
    after = before.under(replace(CONFIG, auth_users={"alice": HASH, "bob": "builder"}))
    assert after.log_in(b"alice", b"wonderland") == "alice"
    with pytest.raises(AttributeError):
        build_runtime(after.config, before=Memory()).log_in(b"alice", b"wonderland")


class Slow(Checkers):
    """One thread, in which a first check stays."""

    def __init__(self) -> None:
        super().__init__(1)
        self.end = threading.Event()
        gevent.spawn(self.run, lambda: self.end.wait(PATIENCE), "other")
        until(lambda: self._held["other"])


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    made = Slow()
    monkeypatch.setattr(module, "_hashing", made)
    yield made
    made.end.set()


def test_the_check_of_a_client_that_leaves_is_given_up(slow: Slow) -> None:
    runtime = build_runtime(replace(CONFIG, auth_users={"alice": HASH}))
    client, inner = tcp_pair()
    channel = Channel(inner, Address("192.0.2.1", 50000))
    waiting = gevent.spawn(runtime.log_in, b"alice", b"wonderland", channel)
    until(lambda: "192.0.2.1" in slow._queues)
    client.close()
    with pytest.raises(ClientLeftError):
        waiting.get()
    assert "192.0.2.1" not in slow._queues


@pytest.mark.parametrize("with_client", [True, False])
def test_a_password_that_could_not_be_checked_is_our_shortage_and_no_wrong_one(
    slow: Slow, monkeypatch: pytest.MonkeyPatch, with_client: bool
) -> None:
    monkeypatch.setattr(slow, "_most_waiting", lambda asker: 0)
    runtime = build_runtime(replace(CONFIG, auth_users={"alice": HASH}))
    _client, inner = tcp_pair()
    channel = Channel(inner, Address("192.0.2.1", 50000)) if with_client else None
    with pytest.raises(LimitError, match=r"^the password could not be checked: too many checks"):
        runtime.log_in(b"alice", b"wonderland", channel)
