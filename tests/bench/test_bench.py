"""The benchmark measures; what it measures is no matter here."""

import math
from collections.abc import Iterator

import pytest

from tests.bench.bars import BARS, Bar, Results
from tests.bench.contenders import Running, running
from tests.bench.medians import median, ratio
from tests.bench.tables import table_of, table_of_bars
from tests.bench.works import WORKS, Length

SHORT = Length(seconds=0.05, warm_up=0.02, idle=20)


@pytest.fixture(scope="module")
def ours() -> Iterator[Running]:
    with running("ours") as contender:
        yield contender


@pytest.mark.parametrize("name", WORKS)
def test_a_work_gives_what_its_table_shows(name: str, ours: Running) -> None:
    work = WORKS[name]
    sample = work.measure(ours, SHORT)
    # Only a chain has an entry and an exit. A few connections can cost less than memory varies by.
    figures = [column.figure for column in work.columns if "each, " not in column.figure]
    assert all(math.isfinite(sample[figure]) for figure in figures)
    assert sample.get("p50", 0) <= sample.get("p99", 0)
    assert work.title in table_of(work, {"ours": [sample]}).text()


@pytest.mark.parametrize("name", ["chain-tls", "v2ray-tls"])
def test_a_chain_over_tls_is_measured(name: str) -> None:
    with running(name) as contender:
        sample = WORKS["trips-64"].measure(contender, SHORT)
    assert len(contender.sessions) == 2
    assert sample["rate"] > 0


def test_idle_connections_are_measured_beside_those_of_openssl_alone() -> None:
    with running("openssl") as contender:
        sample = WORKS["idle"].measure(contender, SHORT)
    assert math.isfinite(sample["each, entry"])
    assert math.isfinite(sample["each, exit"])


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
