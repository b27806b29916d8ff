"""The benchmark measures; what it measures is no matter here."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.bench import plan
from tests.bench.bars import BARS, Bar, Results
from tests.bench.contenders import CONTENDERS, QUICK, USUAL, Running, running
from tests.bench.measuring import Length, Sample
from tests.bench.medians import median, ratio
from tests.bench.tables import counterpart, table_of, table_of_bars
from tests.bench.works import QUICK as QUICK_WORKS
from tests.bench.works import WORKS
from tests.integration import peers
from tests.integration.longwire import Law, Wire
from tests.integration.programs import REPOSITORY

SHORT = Length(seconds=0.05, warm_up=0.02, idle=20)
LONGEST = 6.0  # seconds


def measure(name: str, contender: Running) -> Sample:
    """Measure for longer and longer until something was done: on a busy machine that may take its time."""
    length = SHORT
    while True:
        sample = WORKS[name].measure(contender, length)
        if all(math.isfinite(sample[figure]) for figure in figures(name)) or length.seconds > LONGEST:
            return sample
        length = replace(length, seconds=4 * length.seconds)


def figures(name: str) -> list[str]:
    """Name the figures of a work that every contender has: only a chain has an entry and an exit."""
    return [column.figure for column in WORKS[name].columns if "each, " not in column.figure]


@pytest.fixture(scope="module")
def ours() -> Iterator[Running]:
    with running("ours") as contender:
        yield contender


@pytest.mark.parametrize("name", WORKS)
def test_a_work_gives_what_its_table_shows(name: str, ours: Running) -> None:
    sample = measure(name, ours)
    assert all(math.isfinite(sample[figure]) for figure in figures(name))
    assert sample.get("p50", 0) <= sample.get("p99", math.inf)
    assert WORKS[name].title in table_of(WORKS[name], {"ours": [sample]}).text()


@pytest.mark.parametrize("name", ["chain-tls", "v2ray-tls"])
def test_a_chain_over_tls_is_measured(name: str) -> None:
    if name == "v2ray-tls":
        peers.find("v2ray")
    with running(name) as contender:
        sample = measure("trips-64", contender)
    assert len(contender.sessions) == 2
    assert sample["rate"] > 0


def test_idle_connections_are_measured_beside_those_of_openssl_alone() -> None:
    peers.find("openssl")
    with running("openssl") as contender:
        sample = WORKS["idle"].measure(contender, SHORT)
    assert math.isfinite(sample["each, entry"])
    assert math.isfinite(sample["each, exit"])


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with Wire(Law(delay=0.005)) as wire:
        yield wire


@pytest.mark.parametrize("name", ["none", "chain-tls", "chain-socks", "v2ray-mux", "ssh"])
def test_a_long_wire_is_between_the_two_ends(name: str, wire: Wire) -> None:
    with running(name, wire) as contender:
        first, several, bulk = (measure(work, contender) for work in ("first-1", "first-8", "far-down"))
    # v2ray says that a target is connected before it is, but even its echo has to go there and back.
    assert 0.01 <= first["p50"] == first["last"]
    assert 0.01 <= several["p50"] <= several["last"]
    assert bulk["rate"] > 0


@pytest.mark.parametrize(("scale", "works", "names"), [
    (plan.FULL, list(WORKS), USUAL),
    (plan.QUICK, QUICK_WORKS, QUICK),
])  # fmt: skip
def test_a_whole_run_is_planned_to_end_in_time(scale: plan.Scale, works: list[str], names: list[str]) -> None:
    planned = plan.make(scale, works, names)
    seconds = 0.0
    for work in map(WORKS.__getitem__, works):
        length = planned.length_of(work)
        each = length.seconds + length.warm_up + work.overhead + work.each * length.idle
        times = planned.rounds_of(work) + work.warm_ups
        seconds += each * times * sum(name in work.contenders for name in names)
    assert planned.length.seconds >= plan.SHORTEST
    assert seconds <= scale.budget * 1.05 < scale.limit


def test_a_run_of_few_works_has_all_rounds_and_long_ones() -> None:
    planned = plan.make(plan.QUICK, ["down-1"], ["ours", "microsocks"])
    assert (planned.rounds, planned.length.seconds) == (plan.QUICK.rounds, plan.LONGEST)


def test_a_bar_may_be_about_what_one_of_ours_needs_beyond_another() -> None:
    bar = Bar("", ["idle"], "each", "chain-tls", 1.2, "openssl", beyond="chain")
    plain, alone = [{"each": 10.0}], [{"each": 20.0}]
    measured = {"chain-tls": [{"each": 32.0}], "chain": plain, "openssl": alone}
    assert bar.values({"idle": measured}) == [1.1]
    assert bar.values({"idle": {**measured, "chain": []}}) == []


def test_a_ratio_is_that_of_rounds_next_to_each_other() -> None:
    ours = [{"rate": 10.0}, {"rate": 20.0}, {"rate": 90.0}]
    theirs = [{"rate": 5.0}, {"rate": 10.0}, {"rate": 10.0}]
    assert (median(ours, "rate"), median(theirs, "rate"), ratio(ours, theirs, "rate")) == (20, 10, 2)
    slow_second_round = [{"rate": 5.0}, {"rate": 1.0}, {"rate": 45.0}]
    assert ratio(ours, slow_second_round, "rate") == 2


def test_what_was_not_measured_is_neither_passed_nor_failed() -> None:
    bar = "≤ 1.15× microsocks"
    ours, slow, fast = ([{"cpu": cpu}] for cpu in (2e-4, 2e-4, 1e-4))
    assert verdicts({"short": {"ours": ours}})[bar] == "not measured"
    assert verdicts({"short": {"ours": ours, "microsocks": []}})[bar] == "not measured"
    assert verdicts({"short": {"ours": ours, "microsocks": slow}})[bar] == "pass"
    assert verdicts({"short": {"ours": ours, "microsocks": fast}})[bar] == "FAIL"


def verdicts(results: Results) -> dict[str, str]:
    """Tell what became of each bar for a short connection, by what is wanted."""
    return {row[2]: row[-1] for row in table_of_bars(results).rows if row[0].startswith("short")}


def test_bars_are_about_what_is_measured() -> None:
    for bar in BARS:
        for work in bar.works:
            assert {bar.contender, *filter(None, (bar.peer, bar.beyond))} <= set(WORKS[work].contenders)
            assert bar.figure in {column.figure for column in WORKS[work].columns}


@pytest.mark.parametrize(("work", "name", "ours"), [
    ("short", "microsocks", "ours"),
    ("short", "v2ray-tls", "chain-tls"),
    ("short", "ours-before", "ours"),
    ("first-1", "none", "chain-tls"),
    ("first-1", "chain-socks-before", "chain-socks"),
])  # fmt: skip
def test_a_contender_is_compared_with_the_one_of_ours_that_does_the_same(
    work: str, name: str, ours: str
) -> None:
    assert name in WORKS[work].contenders
    assert counterpart(name, WORKS[work]) == ours


def test_the_page_about_performance_names_every_work_and_contender() -> None:
    page = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    assert [name for name in [*WORKS, *CONTENDERS] if f"`{name}`" not in page] == []
