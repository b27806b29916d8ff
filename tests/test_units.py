"""Durations and numbers as they are written in a file."""

import pytest

from proxy.units import MOST, check_count, parse_duration, parse_rate, parse_size, write_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("0", 0), ("500ms", 0.5), ("30s", 30), ("5m", 300), ("1h", 3600), ("1.5m", 90), ("2 s", 2)],
)
def test_reads_a_duration(text: str, seconds: float | int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "inf",
        "-1",
        "+1",
        "1_000",
        "1e3",
        "３０",
        "30S",
        "30 sec",
        "1d",
        ".5",
        "0x10",
        "5m30s",
        "9" * 400,
    ],
)
def test_refuses_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (30.0, "30s"),
        (300.0, "5m"),
        (7200.0, "2h"),
        (0.5, "500ms"),
        (90.0, "90s"),
        (0.0, "0"),
        (1e-05, "0.00001"),
    ],
)
def test_a_duration_is_written_in_its_largest_unit(seconds: float, text: str) -> None:
    assert write_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("1024", 1024), ("64k", 65536), ("2M", 2 << 20), ("1g", 1 << 30)]
)
def test_reads_a_size(text: str, number: int) -> None:
    assert parse_size(text) == number


@pytest.mark.parametrize(
    "text", ["", "nan", "inf", "-1", "+1", "1_000", "1e3", "１２", "1.5k", "1t", "0x10", "9" * 20]
)
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "per_second"), [("10/s", 10), ("5/m", 5 / 60), ("100/h", 100 / 3600), (" 7 / s ", 7)]
)
def test_reads_a_rate(text: str, per_second: float) -> None:
    rate = parse_rate(text)
    assert rate.per_second == pytest.approx(per_second)
    assert parse_rate(str(rate)) == rate


@pytest.mark.parametrize(
    "text", ["", "10", "10/", "/s", "10/d", "1.5/s", "-1/s", "0/s", "10/ms", "10 per s", "9" * 9 + "/s"]
)
def test_refuses_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a rate|at least 1"):
        parse_rate(text)


@pytest.mark.parametrize("number", [0, MOST + 1, 1 << 80])
def test_refuses_a_count_that_nobody_can_mean(number: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 and at most {MOST}"):
        check_count(number, 1)


def test_takes_a_count_up_to_the_bounds() -> None:
    assert [check_count(number, 1) for number in (1, MOST)] == [1, MOST]
