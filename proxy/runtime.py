"""
All that connections need of a configuration, and what outlives it.

A runtime is built completely beside the one in use, or not at all. Then only a reference moves: new
connections use the new runtime, and live ones keep theirs until they end.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from proxy.accesslog import NO_LOG, AccessLog
from proxy.errors import AuthError, LimitError
from proxy.health import Health
from proxy.limiter import Limiter
from proxy.metrics import ListenerMetrics
from proxy.net.checking import Checkers
from proxy.policy.auth import Authenticator, Check, Logins, name_of
from proxy.relaying.channel import Channel
from proxy.relaying.relay import DataForwarder
from proxy.routing import Router
from proxy.settings.listener import ServerConfig
from proxy.settings.upstream import UpstreamConfig
from proxy.tls.contexts import server_context, validity_of
from proxy.upstream import Upstream, Ways

# Seconds for which a client that has ended its side is waited for: it may have said all it has to say.
_GRACE = 0.5
_hashing = Checkers(2)


@dataclass(frozen=True)
class Memory:
    """
    What a listener has learnt, and goes on with under its next configuration.

    It is handed from runtime to runtime. What is shared in it is the same object in both.
    """

    health: Mapping[UpstreamConfig, Health] = field(default_factory=dict)
    logins: Logins = field(default_factory=Logins)

    def under(self, config: ServerConfig, metrics: ListenerMetrics) -> "Memory":
        """Keep what another configuration still needs; what is new in it begins anew, but no counter does."""
        health = {
            one: self.health.get(one) or Health(one, metrics.spares_of(one.name))
            for one in config.all_upstreams
        }
        return Memory(health, self.logins)


@dataclass(frozen=True)
class Runtime:
    """All that a connection needs of the configuration with which it began."""

    config: ServerConfig
    authenticator: Authenticator
    router: Router
    forwarder: DataForwarder
    access_log: AccessLog
    tls: Any = None
    metrics: ListenerMetrics = field(default_factory=ListenerMetrics)
    limiter: Limiter = field(default_factory=Limiter)  # of all listeners
    memory: Memory = field(default_factory=Memory)
    certificate_ends: float | None = None  # until when the certificate that is shown is valid, as a Unix time

    @property
    def needs_auth(self) -> bool:
        """True if clients must log in."""
        return self.config.needs_auth

    @property
    def upstreams(self) -> Sequence[Upstream]:
        """The upstreams among which there is a choice."""
        return self.router.ways.upstreams

    def log_in(self, username: bytes, password: bytes, channel: Channel | None = None) -> str:
        """
        Return the user's name, fit for a log; raises ``AuthError`` if the password is not theirs.

        It may have to wait, and raises ``ClientLeftError`` if the client of the channel does not. Raises
        ``PenaltyError`` if too many logins from there have failed.
        """
        name, client = name_of(username), channel.client if channel else None
        if client:
            self.limiter.check_login(self.config, name, client)
        if self.authenticator.check(username, password, channel):
            return name
        if client:
            # Others may have failed while this one waited for its hash.
            self.limiter.check_login(self.config, name, client)
            self.limiter.note_failure(self.config, client)
        raise AuthError(name)

    def under(self, config: ServerConfig) -> "Runtime":
        """Build the one that follows it under another configuration; raises ``ConfigError``."""
        return build_runtime(config, self.access_log, self.metrics, self.memory, self.limiter)

    def begin(self) -> None:
        """Look after its upstreams from now on, as it is in use."""
        self.router.ways.begin()

    def retire(self) -> None:
        """Leave its upstreams to the next one, or to nobody."""
        self.router.ways.retire()


def build_runtime(
    config: ServerConfig,
    access_log: AccessLog = NO_LOG,
    metrics: ListenerMetrics | None = None,
    before: Memory | None = None,
    limiter: Limiter | None = None,
) -> Runtime:
    """
    Build all that connections need; raises ``ConfigError``, and then nothing has changed.

    ``before`` is what was learnt until now.
    """
    counted, shared = metrics or ListenerMetrics(), limiter or Limiter()
    memory = (before or Memory()).under(config, counted)
    check_apart = partial(_check_apart, config, shared)
    validity = validity_of(config.tls_cert) if config.tls_cert else None
    return Runtime(
        config=config,
        authenticator=Authenticator(config.auth_users, check_apart, memory.logins),
        router=Router(config, Ways(config, memory.health), counted),
        forwarder=DataForwarder(config.idle_timeout, zero_copy=config.splice == "auto"),
        access_log=access_log,
        tls=server_context(config.tls_cert, config.tls_key) if config.tls_cert else None,
        metrics=counted,
        limiter=shared,
        memory=memory,
        certificate_ends=validity[1] if validity else None,
    )


def _check_apart(config: ServerConfig, limiter: Limiter, check: Check) -> bool:
    """
    Have a password checked by a thread, as long as its client is there; raises ``LimitError``.

    It may have to wait for others. If too many have failed by then, its answer is no without a hash.
    """
    channel: Channel | None = check.client
    client = channel.client if channel else None
    try:
        with channel.watched(_GRACE) if channel else nullcontext():
            return _hashing.run(
                lambda: not limiter.has_penalty(config, client) and check(),
                channel.network if channel else "",
                check.key,
            )
    except LimitError as exc:
        raise LimitError(f"the password could not be checked: {exc}") from exc
