"""What each worker gets of what holds for all: a part of it, and all parts make the whole."""

from collections import Counter

import pytest

from proxy.config import ProxyConfig
from proxy.control.snapshot import Flow, Snapshot
from proxy.limiter import Limiter
from proxy.metrics import ListenerMetrics
from proxy.policy.limits import Identity
from proxy.settings.limits import LimitConfig, Per
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from proxy.workers.limits import share_out
from proxy.workers.worker import share_of

KEY = ("fair", Identity(client="192.0.2.1"))


def config(most: int, workers: int) -> ProxyConfig:
    listener = ServerConfig("127.0.0.1:0", Protocol.SOCKS5, "socks", max_connections=most)
    return ProxyConfig(listeners=(listener,), workers=workers, drain_delay=5.0)


@pytest.mark.parametrize(("most", "workers"), [(2, 2), (10, 3), (1024, 2), (1025, 64)])
def test_connections_are_divided_and_none_is_lost(most: int, workers: int) -> None:
    parts = [share_of(config(most, workers), row).listeners[0].max_connections for row in range(workers)]
    assert sum(parts) == most
    assert max(parts) - min(parts) <= 1


def test_a_worker_waits_for_nobody_when_it_is_told_to_stop() -> None:
    assert share_of(config(10, 2), 0).drain_delay == 0


def limiter(bandwidth: int) -> Limiter:
    return Limiter([LimitConfig("fair", Per.CLIENT, bandwidth=bandwidth)])


def snapshot(sent: int, received: int) -> Snapshot:
    return Snapshot(flows={KEY: Flow(sent_waiting=sent, received_waiting=received)})


def test_bandwidth_goes_where_connections_wait_for_it() -> None:
    shares = share_out(limiter(4000), {1: snapshot(3, 0), 2: snapshot(1, 0)})
    assert shares == {1: [(KEY, 3000, 2000)], 2: [(KEY, 1000, 2000)]}


def test_who_has_none_that_waits_has_something_left_for_the_next() -> None:
    ((_, sent, _),) = share_out(limiter(11000), {1: snapshot(1, 0), 2: snapshot(0, 0)})[2]
    assert sent == pytest.approx(1000, abs=1)


def test_who_has_nobody_of_an_identity_gets_no_share_of_it() -> None:
    assert share_out(limiter(2000), {1: snapshot(2, 2), 2: Snapshot()}) == {1: [(KEY, 2000, 2000)], 2: []}


def test_snapshots_add_up_and_what_is_gone_keeps_what_it_counted() -> None:
    def one(accepted: int, live: int) -> Snapshot:
        metrics = ListenerMetrics()
        metrics.accepted, metrics.failures["target", "refused"] = accepted, 1
        metrics.dials.observe(0.01)
        return Snapshot({"socks": metrics}, Counter({"socks": live}), penalized=1)

    both = one(5, 2) + one(7, 3).what_was()
    socks = both.listeners["socks"]
    assert (socks.accepted, sum(socks.failures.values()), sum(socks.dials.counts)) == (12, 2, 2)
    assert (both.live["socks"], both.penalized) == (2, 2)
