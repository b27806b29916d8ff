"""What is told of the running program: sums that agree, and durations that no clock can change."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.address import Address
from proxy.control import status
from proxy.control.program import Program
from proxy.errors import OverLimitError
from proxy.keeping.history import Version
from proxy.keeping.inifile import Trouble
from proxy.limiter import Limiter, Stay, Who
from proxy.metrics import ListenerMetrics, Metrics, render
from proxy.settings.limits import LimitConfig, Per
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from proxy.socks5.server import Socks5Server
from proxy.units import Rate
from tests.integration.certificates import Authority

HOME = UpstreamConfig("home", UpstreamType.SOCKS5, "10.0.0.2:1080")


class Live:
    """A session that has moved some bytes."""

    def __init__(self, server: Socks5Server, sent: int, received: int) -> None:
        self.id, self.started = 1, 0.0
        self.runtime = server.runtime
        self.relay = SimpleNamespace(sent=sent, received=received)


def program(*servers: Socks5Server, metrics: Metrics) -> Any:
    app = SimpleNamespace(
        servers=servers,
        metrics=metrics,
        limiter=Limiter(),
        draining=False,
        draining_for=0.0,
        reopen_logs=tuple,
    )
    return Program(app)


@pytest.fixture
def versions() -> Any:
    current = Version(1, 1.0, "start", "", "")
    return SimpleNamespace(
        current=current, trouble=None, outcomes=dict.fromkeys(status.OUTCOMES, 0), digest=lambda: "abc"
    )


def server(metrics: Metrics, name: str = "socks", most: int = 10) -> Socks5Server:
    config = ServerConfig("127.0.0.1:0", Protocol.SOCKS5, name, max_connections=most)
    return Socks5Server(config, metrics=metrics)


def samples(app: Any, versions: Any) -> dict[str, str]:
    lines = render(status.families(app, versions)).splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_the_whole_counts_what_listeners_did_that_are_gone(versions: Any) -> None:
    metrics = Metrics()
    here = server(metrics)
    here.sessions.add(Live(here, 3, 30))  # type: ignore[arg-type]
    here.metrics.accepted, here.metrics.sent, here.metrics.received = 2, 5, 50
    gone = ListenerMetrics()
    gone.accepted, gone.sent, gone.received = 1, 7, 70
    metrics.listeners["gone"] = gone
    told = status.describe(program(here, metrics=metrics), versions)
    assert (told["total"], told["sent"], told["received"]) == (3, 3 + 5 + 7, 30 + 50 + 70)


def test_a_listener_that_is_replaced_has_no_more_places_while_the_old_one_drains(versions: Any) -> None:
    metrics = Metrics()
    new, old = server(metrics, most=20), server(metrics, most=10)
    old.sessions.add(Live(old, 0, 0))  # type: ignore[arg-type]
    told = samples(program(new, old, metrics=metrics), versions)
    assert told['proxy_connections{listener="socks"}'] == "1"
    assert told['proxy_connections_max{listener="socks"}'] == "20"
    (row,) = status.describe(program(new, old, metrics=metrics), versions)["listeners"]
    assert (row["live"], row["max_connections"]) == (1, 20)


@pytest.mark.parametrize(
    "later", [(), (replace(HOME, timeout=7.0),), (replace(HOME, proxy_address="10.0.0.3:1080"),)]
)
def test_what_became_of_the_spares_of_an_upstream_is_counted_on_whatever_becomes_of_it(
    versions: Any, later: tuple[UpstreamConfig, ...]
) -> None:
    metrics = Metrics()
    config = ServerConfig("127.0.0.1:0", Protocol.SOCKS5, "socks", upstream_config=(HOME,))
    here = Socks5Server(config, metrics=metrics)
    app, name = program(here, metrics=metrics), 'proxy_upstream_spares_total{listener="socks",upstream="home"'
    assert samples(app, versions)[name + ',outcome="taken"}'] == "0"
    here.runtime.upstreams[0].health.spares.counts["taken"] += 2
    here.reload_config(replace(config, upstream_config=later))
    assert samples(app, versions)[name + ',outcome="taken"}'] == "2"
    assert samples(app, versions)[name + ',outcome="died"}'] == "0"
    here.reload_config(config)
    here.runtime.upstreams[0].health.spares.counts["taken"] += 1
    again = Socks5Server(config, metrics=metrics)  # as after a change of the address
    again.runtime.upstreams[0].health.spares.counts["taken"] += 1
    assert samples(program(again, metrics=metrics), versions)[name + ',outcome="taken"}'] == "4"


def test_a_file_that_is_not_in_effect_is_one_in_the_metrics(versions: Any) -> None:
    """Case 353."""
    app = program(metrics=Metrics())
    assert samples(app, versions)["proxy_config_file_rejected"] == "0"
    assert status.describe(app, versions)["file"] == {"in_effect": True}
    versions.trouble = Trouble("proxy.ini: is empty", 7.0)
    assert samples(app, versions)["proxy_config_file_rejected"] == "1"
    file = {"in_effect": False, "problem": "proxy.ini: is empty", "since": 7.0}
    assert status.describe(app, versions)["file"] == file


def test_it_is_told_when_the_certificate_that_is_shown_ends(
    authority: Authority, versions: Any, tmp_path: Path
) -> None:
    """What became of the file is another matter until it is read again."""
    over, good = authority.issue("over", "localhost", expired=True), authority.issue("new", "localhost")
    cert, key = tmp_path / "cert.pem", str(over.key)
    cert.write_bytes(over.cert.read_bytes())
    config = ServerConfig("127.0.0.1:0", Protocol.MIXED, "web", tls_cert=str(cert), tls_key=key)
    over_tls = Socks5Server(config)
    app = program(over_tls, server(Metrics()), metrics=Metrics())
    name = 'proxy_tls_certificate_expiry_timestamp_seconds{listener="%s"}'
    assert samples(app, versions)[name % "web"] == "1577923200"  # 2020-01-02 00:00:00 UTC
    assert [each["certificate_ends"] for each in status.describe(app, versions)["listeners"]] == [
        1577923200.0,
        None,
    ]
    assert name % "socks" not in samples(app, versions)
    cert.unlink()
    assert samples(app, versions)[name % "web"] == "1577923200"
    over_tls.reload_config(replace(config, tls_cert=str(good.cert), tls_key=str(good.key)))
    assert float(samples(app, versions)[name % "web"]) > time.time()


def test_the_uptime_goes_on_when_the_clock_is_set(versions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 313: and the start is when it was by the clock as it is set now."""
    app = program(metrics=Metrics())
    before, now = status.describe(app, versions), time.time
    for step in (-7200, 50 * 365 * 86400):
        monkeypatch.setattr("time.time", lambda step=step: now() + step)
        after = status.describe(app, versions)
        assert before["uptime"] <= after["uptime"] < before["uptime"] + 60
        assert after["started"] == pytest.approx(before["started"] + step, abs=5)
        started = float(samples(app, versions)["process_start_time_seconds"])
        assert started == after["started"]  # the same number each time


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock goes on while the machine sleeps")
def test_a_machine_that_has_slept_has_not_restarted_the_program(
    versions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux's monotonic clock stands still meanwhile (clock_gettime(2)), and alerts watch the start."""
    night = 8 * 3600.0
    app = program(metrics=Metrics())
    before = status.describe(app, versions)
    seconds, real = time.time, time.clock_gettime
    monkeypatch.setattr(time, "time", lambda: seconds() + night)
    monkeypatch.setattr(
        time, "clock_gettime", lambda clock: real(clock) + night * (clock == time.CLOCK_BOOTTIME)
    )
    after = status.describe(app, versions)
    assert after["started"] == before["started"]
    assert after["uptime"] >= before["uptime"] + night


def under_a_limit(*clients: tuple[str, int]) -> Limiter:
    """Make the limiter of a program to which each of these clients has so many connections."""
    limiter = Limiter([LimitConfig("fair", Per.CLIENT, 7, new=Rate(1000, "s"), bandwidth=1 << 20)])
    for client, count in clients:
        for _ in range(count):
            limiter.admit(Stay(), Who(Address(client, 1), "", "socks"))
    return limiter


def test_of_many_who_have_part_of_a_limit_the_biggest_are_told() -> None:
    limiter = under_a_limit(*((f"192.0.2.{number}", 1) for number in range(150)), ("198.51.100.1", 3))
    app = program(metrics=Metrics())
    app.app.limiter = limiter
    told = status.limits(app)
    assert (told["total"], len(told["accounts"])) == (151, 100)
    first = told["accounts"][0]
    assert (first["client"], first["live"], first["connections"]) == ("198.51.100.1", 3, 7)
    assert (first["new"], first["bandwidth"], first["waiting"]) == ("1000/s", 1 << 20, 0)
    assert first["rate"] > 0


def test_metrics_of_limits_name_no_client(versions: Any) -> None:
    metrics = Metrics()
    app = program(server(metrics), metrics=metrics)
    app.app.limiter = under_a_limit(("192.0.2.1", 7), ("192.0.2.2", 1))
    with pytest.raises(OverLimitError):
        app.app.limiter.admit(Stay(), Who(Address("192.0.2.1", 1), "", "socks"))
    told = samples(app, versions)
    assert told['proxy_limited_total{limit="fair"}'] == "1"
    assert told['proxy_limit_identities{limit="fair"}'] == "2"
    assert told['proxy_limit_waiting{limit="fair"}'] == "0"
    assert not [name for name in told if "192.0.2" in name]
    app.app.limiter.change([])
    told = samples(app, versions)
    assert told['proxy_limited_total{limit="fair"}'] == "1"  # a counter never falls
    assert 'proxy_limit_identities{limit="fair"}' not in told


def test_a_restart_is_safe_unless_something_would_be_lost(versions: Any) -> None:
    app = program(server(Metrics()), metrics=Metrics())
    told = status.describe(app, versions)["restart"]
    assert told == {"safe": True, "because": []}
    versions.current = Version(2, 1.0, "ctl", "", "", volatile=True)
    versions.trouble = Trouble("proxy.ini:3: no", 1.0)
    told = status.describe(app, versions)["restart"]
    assert told["safe"] is False
    assert told["because"] == [
        "the file is not what is in effect: proxy.ini:3: no",
        "a change that is not in the file would be lost",
    ]
