"""What processes have counted, added up, and what is left of one that is gone."""

from collections import Counter
from dataclasses import replace

from proxy.control.snapshot import Ready, Snapshot
from proxy.health import State
from proxy.metrics import MOST_REFUSALS, ListenerMetrics, Refusal

WELL = State(0, "", 0, False, True, 0.0, 0.0, 0.0)
DOWN = State(1, "it refuses", 0, True, True, 0.0, 50.0, 51.0)


def knowing(state: State, taken: int) -> Snapshot:
    counted = ListenerMetrics()
    counted.spares_of("home")["taken"] = taken
    return Snapshot({"socks": counted}, upstreams={("socks", "home"): Ready(state, 1)})


def test_the_latest_that_is_known_of_an_upstream_is_told() -> None:
    both = knowing(WELL, 1) + knowing(DOWN, 2)
    assert both.upstreams == {("socks", "home"): Ready(DOWN, 2)}
    assert both.listeners["socks"].spares == {"home": Counter(taken=3)}


def refused(moment: float) -> Snapshot:
    what = "192.0.2.1:50000", "", "socks", "192.0.2.7:80", "", "target", "timed out", "it timed out", "", ""
    return Snapshot(refusals=(Refusal(moment, *what),))


def test_the_latest_refusals_of_all_are_kept_in_their_order_by_whomever_they_were() -> None:
    both = sum((refused(moment) for moment in range(MOST_REFUSALS)), refused(99.5).what_was())
    moments = [each.time for each in both.refusals]
    assert moments == sorted([*range(1, MOST_REFUSALS), 99.5])


def test_why_an_upstream_could_not_be_tried_is_told_though_others_do_not_know() -> None:
    stuck = replace(WELL, problem="source 192.0.2.7: this machine does not have this address")
    for both in (knowing(WELL, 0) + knowing(stuck, 0), knowing(stuck, 0) + knowing(WELL, 0)):
        assert both.upstreams == {("socks", "home"): Ready(stuck, 2)}


def test_what_only_one_knew_that_is_gone_is_not_told_but_what_it_counted_is() -> None:
    both = knowing(WELL, 1) + knowing(DOWN, 2).what_was()
    assert both.upstreams == {("socks", "home"): Ready(WELL, 1)}
    assert both.listeners["socks"].spares == {"home": Counter(taken=3)}
