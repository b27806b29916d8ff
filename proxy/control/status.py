"""
What the running program reports about itself: status, live connections, metrics.

Everything here only reads, and makes plain values for JSON or ``metrics.render``. Nothing here is secret.
"""

import os
import resource
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from time import monotonic
from typing import Any

from proxy import __version__
from proxy.control.program import Program
from proxy.control.snapshot import Flow, Named, Process, Ready, Snapshot
from proxy.keeping.history import Version
from proxy.keeping.keeper import Keeper
from proxy.limiter import Account, Limiter
from proxy.metrics import Family, ListenerMetrics, listener_families
from proxy.policy.penalties import FREE
from proxy.redact import without_query
from proxy.server import ProxyServer
from proxy.settings.rules import BLOCK, GUARD
from proxy.settings.upstream import UpstreamConfig
from proxy.spares import OUTCOMES as OUTCOMES_OF_SPARES

_MOST_ACCOUNTS = 100  # of limits, that are told
_TRIMMED = 1.0  # seconds by which a clock may go wrong in all
OUTCOMES = ("applied", "unchanged", "rejected")
# It goes on while the machine sleeps, where there is such a clock: else each sleep would look like a restart.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BEGAN = time.clock_gettime(_CLOCK)


def uptime() -> float:
    """How long the program has been running, in seconds, however the time of day was set meanwhile."""
    return time.clock_gettime(_CLOCK) - _BEGAN


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


def describe(program: Program, keeper: Keeper) -> dict[str, Any]:
    """Describe the whole."""
    counted, trouble = program.snapshot(), keeper.trouble
    return {
        "program": f"proxy-server {__version__}",
        "state": "draining" if program.app.draining else "running",
        "pid": os.getpid(),
        "started": started(),
        "uptime": uptime(),
        "draining_for": program.app.draining_for,
        "version": describe_version(keeper.current),
        "file": asdict(trouble) | {"in_effect": False} if trouble else {"in_effect": True},
        "restart": _restart(program, keeper),
        "live": counted.live.total(),
        "total": sum(each.accepted for each in counted.listeners.values()),
        "sent": sum(each.sent for each in counted.listeners.values()),
        "received": sum(each.received for each in counted.listeners.values()),
        "listeners": list(_listeners(program.app.servers, counted)),
        "upstreams": list(_upstreams(program.app.servers, counted)),
        "workers": list(program.workers),
        "upgrade": program.upgrade,
    }


def _restart(program: Program, keeper: Keeper) -> dict[str, Any]:
    """Say what would be lost if it were started anew now, beside the connections."""
    because = []
    if keeper.trouble:
        because.append(f"the file is not what is in effect: {keeper.trouble.problem}")
    if keeper.current.volatile:
        because.append("a change that is not in the file would be lost")
    if program.app.draining:
        because.append("it is stopping already")
    return {"safe": not because, "because": because}


def describe_version(version: Version) -> dict[str, Any]:
    """Describe a version of the configuration, without its text."""
    return {name: value for name, value in asdict(version).items() if name != "text"}


def limits(program: Program) -> dict[str, Any]:
    """Describe who has how much of which limit: those who have most connections, or else move most."""
    now, flows = monotonic(), program.snapshot().flows
    accounts = [_account(each, flows.get(each.key, Flow()), now) for each in program.app.limiter.accounts]
    accounts.sort(key=lambda each: (each["live"], each["sent"] + each["received"]), reverse=True)
    return {
        "limits": [each.name for each in program.app.limiter.limits],
        "refused": dict(program.app.limiter.refusals),
        "total": len(accounts),
        "accounts": accounts[:_MOST_ACCOUNTS],
    }


def _account(account: Account, flow: Flow, now: float) -> dict[str, Any]:
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
        "sent": flow.sent,
        "received": flow.received,
        "bandwidth": limit.bandwidth,
        "waiting": flow.waiting,
    }


def refusals(program: Program) -> list[dict[str, Any]]:
    """Describe the latest clients that got no connection, and why, the last one at the end."""
    return [asdict(each) for each in program.refusals()]


def penalties(program: Program) -> dict[str, Any]:
    """Describe who failed to log in of late, the latest first, and how long that is held against them."""
    now = monotonic()
    penalty = max((server.config.login_penalty for server in program.app.servers), default=0.0)
    rows = [
        {"client": network, "seconds": left, "refused_for": max(0.0, left - FREE * penalty)}
        for network, left in program.app.limiter.penalties.latest(now)
    ]
    return {"login_penalty": penalty, "refused": program.snapshot().penalized, "penalties": rows}


def _listeners(servers: Sequence[ProxyServer], counted: Snapshot) -> Iterator[dict[str, Any]]:
    named = set[str]()
    for server in servers:
        name = server.config.name
        if name not in named:  # of one that was replaced its successor tells all
            named.add(name)
            yield _listener(server, counted.listeners.get(name) or ListenerMetrics(), counted.live[name])


def _listener(server: ProxyServer, counted: ListenerMetrics, live: int) -> dict[str, Any]:
    config = server.config
    return {
        "name": config.name,
        "protocol": config.protocol.value,
        "tls": bool(config.tls_cert),
        "certificate_ends": server.runtime.certificate_ends,
        "addresses": [str(address) for address in server.addresses],
        "waits_for": server.missing,
        "problem": server.opening.problem if server.opening and server.missing else "",
        "live": live,
        "max_connections": config.max_connections,
        "total": counted.accepted,
        "sent": counted.sent,
        "received": counted.received,
        "failed": sum(counted.failures.values()),
    }


def _upstreams(servers: Sequence[ProxyServer], counted: Snapshot) -> Iterator[dict[str, Any]]:
    told = set[Named]()
    for server in servers:
        for each in server.runtime.upstreams:
            key = server.config.name, each.name
            if key not in told and (known := counted.upstreams.get(key)):
                told.add(key)
                yield _upstream(server, each.config, known)


def _upstream(server: ProxyServer, config: UpstreamConfig, known: Ready) -> dict[str, Any]:
    state = known.state
    return {
        "listener": server.config.name,
        "name": config.name,
        "type": config.type.value,
        "address": without_query(config.proxy_address),
        "health": "down" if state.failures else "up" if state.answered_at else "untried",
        "failures": state.failures,
        "confirms": state.confirms,
        "rests_for": max(0.0, state.cooldown_until - monotonic()) if state.failures else 0.0,
        "problem": state.problem,
        "spares": known.spares,
    }


# Metrics


def families(program: Program, keeper: Keeper) -> Iterator[Family]:
    """Make all that ``GET /metrics`` tells."""
    counted = program.snapshot()
    servers = program.app.servers  # after that, which tells where connections are left
    yield _one("proxy_info", "The version of the program.", 1, version=__version__)
    yield _one("proxy_draining", "1 while the program is stopping.", int(program.app.draining))
    yield from listener_families(counted.listeners)
    both = ("sent", "received")
    moved = {(name, way): getattr(one, way) for name, one in counted.listeners.items() for way in both}
    yield _many(
        "proxy_bytes_total", "Payload bytes, sent and received by clients.", moved, "listener", "direction"
    )
    live, most, ends = dict[str, int](), dict[str, int](), dict[str, int]()
    for server in servers:
        # By name: one that was replaced may still have connections, but lets in no more.
        live[server.config.name] = counted.live[server.config.name]
        most.setdefault(server.config.name, server.config.max_connections)
        if end := server.runtime.certificate_ends:
            ends.setdefault(server.config.name, int(end))
    up = {server.config.name: bool(server.acceptors) for server in servers if server.opening}
    yield _many("proxy_connections", "Live connections.", live, "listener")
    yield _many("proxy_connections_max", "The listener's max_connections.", most, "listener")
    yield _many("proxy_listener_up", "0 while the listener has none of its addresses open.", up, "listener")
    name = "proxy_tls_certificate_expiry_timestamp_seconds"
    yield _many(name, "When the listener's certificate expires, in Unix time.", ends, "listener")
    known = (rule for server in servers for rule in server.config.rules)
    decided = Counter({(GUARD, BLOCK): 0} | {(rule.name, rule.effect): 0 for rule in known})
    for one in counted.listeners.values():
        decided.update(one.rules)
    what = "Connections decided by a rule, or that a report-only rule would have decided."
    yield _many("proxy_rule_total", what, decided, "rule", "action")
    what = "Logins refused unchecked, after too many failures from their address."
    yield _one("proxy_logins_penalized_total", what, counted.penalized)
    yield from _limit_families(program.app.limiter, counted)
    yield from _upstream_families(servers, counted)
    yield _one(
        "proxy_config_version", "The number of the configuration version in effect.", keeper.current.number
    )
    what = "A hash of the configuration in effect, without its secrets."
    yield _one("proxy_config_info", what, 1, hash=keeper.digest())
    yield _one("proxy_workers", "Processes that serve clients.", len(program.workers) or 1)
    yield _one("proxy_worker_deaths_total", "Workers that ended unexpectedly.", program.deaths)
    is_rejected = int(keeper.trouble is not None)
    yield _one(
        "proxy_config_file_rejected",
        "1 while the file differs from the configuration in effect.",
        is_rejected,
    )
    yield _one(
        "proxy_config_time_seconds",
        "When the configuration in effect was applied, in Unix time.",
        keeper.current.time,
    )
    outcomes = {outcome: keeper.outcomes[outcome] for outcome in OUTCOMES}
    what = "Reloads, changes and rollbacks, by outcome."
    yield _many("proxy_reloads_total", what, outcomes, "outcome")
    yield from _process(counted.process)


def _upstream_families(servers: Sequence[ProxyServer], counted: Snapshot) -> Iterator[Family]:
    in_use = {(server.config.name, each.name) for server in servers for each in server.runtime.upstreams}
    known = {key: each for key, each in counted.upstreams.items() if key in in_use}
    labels = ("listener", "upstream")
    failures = {key: each.state.failures for key, each in known.items()}
    works = {key: not count for key, count in failures.items()}
    yield _many(
        "proxy_upstream_up", "0 from a failed attempt until the upstream answers again.", works, *labels
    )
    yield _many("proxy_upstream_failures", "Consecutive failed attempts.", failures, *labels)
    spares = {key: each.spares for key, each in known.items()}
    yield _many("proxy_upstream_spares", "Spare connections that are ready for use.", spares, *labels)
    ends = dict.fromkeys(((*key, end) for key in known for end in OUTCOMES_OF_SPARES), 0)
    for name, one in counted.listeners.items():
        for upstream, counts in one.spares.items():
            if counts:  # also of an upstream that is no more
                ends |= {(name, upstream, end): counts[end] for end in OUTCOMES_OF_SPARES}
    what = "Spare connections, by outcome."
    yield _many("proxy_upstream_spares_total", what, ends, *labels, "outcome")


def _limit_families(limiter: Limiter, counted: Snapshot) -> Iterator[Family]:
    none = {each.name: 0 for each in limiter.limits}
    # Those that are no more have their counts still: a counter never falls.
    refused = none | dict(limiter.refusals)
    yield _many("proxy_limited_total", "Connections refused by a limit.", refused, "limit")
    used = Counter(none)
    used.update(account.settings.name for account in limiter.live)
    yield _many(
        "proxy_limit_identities",
        "Users or clients with live connections that count towards a limit.",
        used,
        "limit",
    )
    waiting = Counter(none)
    for (name, _), flow in counted.flows.items():
        waiting[name] += flow.waiting
    what = "Directions of connections that are waiting for bandwidth."
    yield _many("proxy_limit_waiting", what, waiting, "limit")


def _process(used: Process) -> Iterator[Family]:
    """Make what the client libraries of Prometheus tell of every process, under the same names."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield _one("process_cpu_seconds_total", "Processor time used, in seconds.", used.cpu)
    yield _one("process_start_time_seconds", "When the process was started, in Unix time.", started())
    yield _one("process_max_fds", "The limit of open descriptors.", soft)
    if used.files is not None and used.memory is not None:
        yield _one("process_open_fds", "Open descriptors.", used.files)
        yield _one("process_resident_memory_bytes", "Resident memory, in bytes.", used.memory)


def _one(name: str, text: str, value: float, **labels: str) -> Family:
    return Family(name, _kind_of(name), text, [(labels, value)])


def _many(name: str, text: str, values: Mapping[Any, int], *labels: str) -> Family:
    """Make a family of a sample for each key, which is a tuple where there are several labels."""
    keys = [key if isinstance(key, tuple) else (key,) for key in values]
    named = [dict(zip(labels, key, strict=True)) for key in keys]
    return Family(name, _kind_of(name), text, [*zip(named, map(int, values.values()), strict=True)])


def _kind_of(name: str) -> str:
    return "counter" if name.endswith("_total") else "gauge"
