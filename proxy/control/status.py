"""
What the running program says of itself: status, live connections, metrics.

Everything here only looks, and makes plain values for JSON or ``metrics.render``. Nothing here is secret.
"""

import os
import resource
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from time import monotonic
from typing import Any, Protocol

from proxy import __version__
from proxy.config import BLOCK, GUARD
from proxy.control.history import Version
from proxy.control.keeper import Keeper
from proxy.limiter import Account, Limiter
from proxy.metrics import Family, ListenerMetrics, Metrics, listener_families
from proxy.policy.penalties import FREE
from proxy.redact import without_query
from proxy.server import ProxyServer
from proxy.session import Session
from proxy.spares import OUTCOMES as OUTCOMES_OF_SPARES
from proxy.upstream import Upstream

_MOST_ACCOUNTS = 100  # of limits, that are told
_TRIMMED = 1.0  # seconds by which a clock may go wrong in all
OUTCOMES = ("applied", "unchanged", "rejected")
_BEGAN = monotonic()


class Running(Protocol):
    """The running program, as far as it is looked at."""

    metrics: Metrics

    @property
    def limiter(self) -> Limiter:
        """What is kept of the limits."""

    @property
    def servers(self) -> Sequence[ProxyServer]:
        """The servers of all listeners, and those that still have connections."""

    @property
    def draining(self) -> bool:
        """True once it has been told to stop."""

    @property
    def draining_for(self) -> float:
        """How many seconds ago it was told so."""

    def reopen_logs(self) -> Sequence[str]:
        """Open the log files anew; returns what there is to say of it."""


def uptime() -> float:
    """How long the program has been running, in seconds, however its clock was set meanwhile."""
    return monotonic() - _BEGAN


class _Start:
    """When the program was started, by the clock as it is set now."""

    def __init__(self) -> None:
        self._time = time.time() - uptime()

    def __call__(self) -> float:
        now = time.time() - uptime()
        # The same number as long as the clock is only trimmed: who watches for restarts compares it.
        if abs(now - self._time) > _TRIMMED:
            self._time = now
        return self._time


started = _Start()


def describe(app: Running, keeper: Keeper) -> dict[str, Any]:
    """Describe the whole."""
    listeners, trouble = list(_listeners(app)), keeper.trouble
    moved = _bytes(app).values()
    return {
        "program": f"proxy-server {__version__}",
        "state": "draining" if app.draining else "running",
        "pid": os.getpid(),
        "started": started(),
        "uptime": uptime(),
        "draining_for": app.draining_for if app.draining else 0.0,
        "version": describe_version(keeper.current),
        "file": asdict(trouble) | {"in_effect": False} if trouble else {"in_effect": True},
        "live": sum(each["live"] for each in listeners),
        "total": sum(one.accepted for one in app.metrics.listeners.values()),
        "sent": sum(sent for sent, _ in moved),
        "received": sum(received for _, received in moved),
        "listeners": listeners,
        "upstreams": [_upstream(server, each) for server in app.servers for each in server.runtime.upstreams],
    }


def waiting(app: Running) -> list[str]:
    """Name the listeners that serve nobody, because none of their addresses is there yet."""
    return [server.config.name for server in app.servers if server.missing and not server.acceptors]


def describe_version(version: Version) -> dict[str, Any]:
    """Describe a version of the configuration, without its text."""
    return {name: value for name, value in asdict(version).items() if name != "text"}


def connections(app: Running) -> list[dict[str, Any]]:
    """Describe the live connections, the oldest first."""
    sessions = sorted(_sessions(app), key=lambda session: session.id)
    now = monotonic()
    return [_connection(session, now) for session in sessions]


def limits(app: Running) -> dict[str, Any]:
    """Describe who has how much of which limit: those who have most connections, or else move most."""
    now = monotonic()
    accounts = [_account(each, now) for each in app.limiter.accounts]
    accounts.sort(key=lambda each: (each["live"], each["sent"] + each["received"]), reverse=True)
    return {
        "limits": [each.name for each in app.limiter.limits],
        "refused": dict(app.limiter.refusals),
        "total": len(accounts),
        "accounts": accounts[:_MOST_ACCOUNTS],
    }


def _account(account: Account, now: float) -> dict[str, Any]:
    limit = account.settings
    return {
        "limit": limit.name,
        "per": limit.per.value,
        "user": account.identity.user,
        "client": account.identity.client,
        "live": account.live,
        "connections": limit.connections,
        "rate": account.meter.rate(now),
        "new": str(limit.new) if limit.new else None,
        # Only what is limited is measured.
        "sent": account.sent.used if account.sent else 0.0,
        "received": account.received.used if account.received else 0.0,
        "bandwidth": limit.bandwidth,
        "waiting": account.waiting,
    }


def refusals(app: Running) -> list[dict[str, Any]]:
    """Describe the latest clients that got no connection, and why, the last one at the end."""
    return [asdict(each) for each in app.metrics.refusals]


def penalties(app: Running) -> dict[str, Any]:
    """Describe who failed to log in of late, the latest first, and how long that is held against them."""
    now, kept = monotonic(), app.limiter.penalties
    penalty = max((server.config.login_penalty for server in app.servers), default=0.0)
    rows = [
        {"client": network, "seconds": left, "refused_for": max(0.0, left - FREE * penalty)}
        for network, left in kept.latest(now)
    ]
    return {"login_penalty": penalty, "refused": kept.refused, "penalties": rows}


def find_session(app: Running, number: int) -> Session | None:
    """Find a live connection by its id."""
    return next((session for session in _sessions(app) if session.id == number), None)


def _sessions(app: Running) -> Iterator[Session]:
    for server in app.servers:
        yield from server.sessions


def _connection(session: Session, now: float) -> dict[str, Any]:
    sent, received = _moved(session)
    return {
        "id": session.id,
        "state": "open" if session.relay else "dialling" if session.wanted else "handshake",
        "user": session.wanted.user if session.wanted else "",
        "client": str(session.client),
        "listener": session.runtime.config.name,
        "target": str(session.wanted.target) if session.wanted else "",
        "upstream": session.via,
        "age": now - session.started,
        "sent": sent,
        "received": received,
    }


def _moved(session: Session) -> tuple[int, int]:
    return (session.relay.sent, session.relay.received) if session.relay else (0, 0)


def _listeners(app: Running) -> Iterator[dict[str, Any]]:
    named: set[str] = set()
    for server in app.servers:
        # One that was replaced counted into the metrics that its successor shows.
        is_first = server.config.name not in named
        named.add(server.config.name)
        yield _listener(server, server.metrics if is_first else ListenerMetrics())


def _listener(server: ProxyServer, counted: ListenerMetrics) -> dict[str, Any]:
    config = server.config
    return {
        "name": config.name,
        "protocol": config.protocol.value,
        "tls": bool(config.tls_cert),
        "addresses": [str(address) for address in server.addresses],
        "waits_for": server.missing,
        "problem": server.opening.problem if server.opening and server.missing else "",
        "live": len(server.sessions),
        "max_connections": config.max_connections,
        "total": counted.accepted,
        "sent": counted.sent + sum(_moved(session)[0] for session in server.sessions),
        "received": counted.received + sum(_moved(session)[1] for session in server.sessions),
        "failed": sum(counted.failures.values()),
    }


def _upstream(server: ProxyServer, upstream: Upstream) -> dict[str, Any]:
    health = upstream.health
    return {
        "listener": server.config.name,
        "name": upstream.name,
        "type": upstream.config.type.value,
        "address": without_query(upstream.config.proxy_address),
        "health": "down" if health.failures else "up" if health.answered_at else "untried",
        "failures": health.failures,
        "confirms": health.confirms,
        "rests_for": max(0.0, health.cooldown_until - monotonic()) if health.failures else 0.0,
        "problem": health.problem,
        "spares": len(health.spares),
    }


# Metrics


def families(app: Running, keeper: Keeper) -> Iterator[Family]:
    """Make all that ``GET /metrics`` tells."""
    yield _gauge("proxy_info", "The version of the program.", 1, version=__version__)
    yield _gauge("proxy_draining", "1 while it stops.", int(app.draining))
    yield from listener_families(app.metrics.listeners)
    moved = {
        (name, direction): count
        for name, both in _bytes(app).items()
        for direction, count in zip(("sent", "received"), both, strict=True)
    }
    yield _family("proxy_bytes_total", "counter", "Payload moved.", ("listener", "direction"), moved)
    # By name: one that was replaced may still have connections, but lets in no more.
    live, most = Counter[tuple[str]](), dict[tuple[str], int]()
    for server in app.servers:
        live[(server.config.name,)] += len(server.sessions)
        most.setdefault((server.config.name,), server.config.max_connections)
    up = {(server.config.name,): bool(server.acceptors) for server in app.servers if server.opening}
    for name, text, values in (
        ("proxy_connections", "Live connections.", live),
        ("proxy_connections_max", "The most there may be.", most),
        ("proxy_listener_up", "0 while none of its addresses is there.", up),
    ):
        yield _family(name, "gauge", text, ("listener",), values)
    known = (rule for server in app.servers for rule in server.config.rules)
    decided = Counter({(GUARD, BLOCK): 0} | {(rule.name, rule.effect): 0 for rule in known})
    for one in app.metrics.listeners.values():
        decided.update(one.rules)
    what = "Connections that a rule decided about, or would have."
    yield _family("proxy_rule_total", "counter", what, ("rule", "action"), decided)
    what = "Logins that were not judged, as too many from there had failed."
    refused = app.limiter.penalties.refused
    yield Family("proxy_logins_penalized_total", "counter", what, [({}, refused)])
    yield from _limit_families(app.limiter)
    healths = {
        (server.config.name, each.name): each.health
        for server in app.servers
        for each in server.runtime.upstreams
    }
    failures = {name: health.failures for name, health in healths.items()}
    works = {name: not count for name, count in failures.items()}
    labels = ("listener", "upstream")
    yield _family("proxy_upstream_up", "gauge", "0 if its last attempt failed.", labels, works)
    yield _family("proxy_upstream_failures", "gauge", "Attempts that failed in a row.", labels, failures)
    spares = {name: len(health.spares) for name, health in healths.items()}
    yield _family("proxy_upstream_spares", "gauge", "Connections that are ready.", labels, spares)
    ends = {
        (*name, outcome): health.spares.counts[outcome]
        for name, health in healths.items()
        for outcome in OUTCOMES_OF_SPARES
    }
    what = "Connections that were ready, by what became of them."
    yield _family("proxy_upstream_spares_total", "counter", what, (*labels, "outcome"), ends)
    yield _gauge("proxy_config_version", "The configuration in effect.", keeper.current.number)
    is_rejected = int(keeper.trouble is not None)
    yield _gauge("proxy_config_file_rejected", "1 while the file is not what is in effect.", is_rejected)
    yield _gauge("proxy_config_time_seconds", "When it was applied.", keeper.current.time)
    outcomes = {(outcome,): keeper.outcomes[outcome] for outcome in OUTCOMES}
    what = "Reloads, changes and rollbacks, by what came of them."
    yield _family("proxy_reloads_total", "counter", what, ("outcome",), outcomes)
    yield from _process()


def _limit_families(limiter: Limiter) -> Iterator[Family]:
    # Those that are no more have their counts still: a counter never falls.
    refused = {(name,): 0 for name in (each.name for each in limiter.limits)}
    refused |= {(name,): count for name, count in limiter.refusals.items()}
    used, waiting = (Counter({(each.name,): 0 for each in limiter.limits}) for _ in range(2))
    for account in limiter.live:
        used[(account.settings.name,)] += 1
        waiting[(account.settings.name,)] += account.waiting
    for name, kind, text, values in (
        ("proxy_limited_total", "counter", "Connections that a limit refused.", refused),
        ("proxy_limit_identities", "gauge", "Who has connections under a limit.", used),
        ("proxy_limit_waiting", "gauge", "Directions of connections that wait for bandwidth.", waiting),
    ):
        yield _family(name, kind, text, ("limit",), values)


def _bytes(app: Running) -> dict[str, tuple[int, int]]:
    """Sum up what all connections of each listener have moved: those that ended, and those that live."""
    totals = {name: (one.sent, one.received) for name, one in app.metrics.listeners.items()}
    for session in _sessions(app):
        name = session.runtime.config.name
        (sent, received), (more_sent, more_received) = totals[name], _moved(session)
        totals[name] = sent + more_sent, received + more_received
    return totals


def _gauge(name: str, text: str, value: float, **labels: str) -> Family:
    return Family(name, "gauge", text, [(labels, value)])


def _family(name: str, kind: str, text: str, labels: tuple[str, ...], values: Mapping[Any, int]) -> Family:
    """Make a family of a sample for each tuple of labels."""
    return Family(
        name, kind, text, [(dict(zip(labels, key, strict=True)), int(value)) for key, value in values.items()]
    )


def _process() -> Iterator[Family]:
    """Make what the client libraries of Prometheus tell of every process, under the same names."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Family("process_cpu_seconds_total", "counter", "Processor time.", [({}, cpu)])
    yield _gauge("process_start_time_seconds", "When it was started.", started())
    yield _gauge("process_max_fds", "The most descriptors it may have.", soft)
    try:
        yield _gauge("process_open_fds", "The descriptors it has.", len(os.listdir("/proc/self/fd")))
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:  # not Linux
        return
    yield _gauge("process_resident_memory_bytes", "Memory in use.", pages * resource.getpagesize())
