"""Counting, and the text of it: judged by the parser that Prometheus' own client library has."""

import math
import pickle

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.errors import Failure
from proxy.metrics import (
    BOUNDS,
    ENDINGS,
    Family,
    Histogram,
    ListenerMetrics,
    Metrics,
    listener_families,
    render,
)
from proxy.relaying.stream import Ending


def parse(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Read the samples of a text by their names and labels."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


class TestHistogram:
    @pytest.mark.parametrize("seconds", [0.0, 0.001, 0.0011, 0.7, 30.0, 30.1, 1e6])
    def test_a_duration_is_counted_in_every_bucket_that_holds_it(self, seconds: float) -> None:
        """A bucket is cumulative, and its bound belongs to it (Prometheus: le, less or equal)."""
        histogram = Histogram()
        histogram.observe(seconds)
        samples = parse(render([Family("t", "histogram", "Time.", [({}, histogram)])]))
        for bound in (*BOUNDS, math.inf):
            label = "+Inf" if bound == math.inf else str(bound)
            assert samples["t_bucket", (("le", label),)] == (1 if seconds <= bound else 0)
        assert (samples["t_count", ()], samples["t_sum", ()]) == (1, seconds)


class TestMetrics:
    def test_a_listener_that_is_made_anew_counts_on(self) -> None:
        metrics = Metrics()
        metrics.listener("socks").accepted += 1
        metrics.listener("socks").accepted += 1
        assert metrics.listener("socks").accepted == 2

    def test_all_that_is_counted_is_in_the_text(self) -> None:
        metrics = Metrics()
        one = metrics.listener("socks")
        one.accepted += 3
        one.failures["target", "connection refused"] += 2
        one.endings["finished"] += 1
        one.dials.observe(0.2)
        samples = parse(render(listener_families(metrics.listeners)))
        assert samples["proxy_connections_total", (("listener", "socks"),)] == 3
        failed = (("cause", "connection_refused"), ("listener", "socks"), ("stage", "target"))
        assert samples["proxy_failures_total", failed] == 2
        assert samples["proxy_tunnels_total", (("ending", "finished"), ("listener", "socks"))] == 1
        assert samples["proxy_dial_seconds_count", (("listener", "socks"),)] == 1

    def test_a_cause_that_has_not_occurred_is_there_as_zero(self) -> None:
        """Case 310: or an alert on its increase would miss the first one."""
        metrics = Metrics()
        metrics.listener("socks")
        samples = parse(render(listener_families(metrics.listeners)))
        assert {*ENDINGS} == {ending.value for ending in Ending}
        for ending in Ending:
            assert samples["proxy_tunnels_total", (("ending", ending.value), ("listener", "socks"))] == 0
        for failure in Failure:
            cause = failure.value.replace(" ", "_")
            assert (
                samples[
                    "proxy_failures_total", (("cause", cause), ("listener", "socks"), ("stage", "target"))
                ]
                == 0
            )


@pytest.mark.parametrize("text", ['"', "\\", "\n", 'a"b\\c\nd', "\\n", "é", "{}", ","])
def test_a_label_reads_back_as_it_was(text: str) -> None:
    samples = parse(render([Family("up", "gauge", "Up.", [({"name": text}, 1)])]))
    assert samples == {("up", (("name", text),)): 1.0}


@pytest.mark.parametrize("value", [0, 1, 2**63, 0.1, 1e-9, 1e21])
def test_a_number_reads_back_as_it_was(value: float) -> None:
    assert parse(render([Family("up", "gauge", "Up.", [({}, value)])])) == {("up", ()): value}


def test_what_an_earlier_version_has_counted_is_added_though_it_counted_less() -> None:
    """An upgrade hands it over, and old workers report it until they have ended."""
    before = ListenerMetrics()
    before.accepted = 3
    del before.spares  # which came later
    read = pickle.loads(pickle.dumps(before))
    assert (read + ListenerMetrics()).accepted == 3
    assert (ListenerMetrics() + read).spares == {}
