"""Logs that cannot stop the proxy, and that hold one line for each event."""

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from proxy import logs
from proxy.logs import Collapse, JsonFormatter, LineWriter, TextFormatter, set_up
from tests.integration.programs import wait_until

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
NASTY = [
    "two\nlines",
    "carriage\rreturn",
    "\x1b[31mred",
    "\x00",
    "\u2028separator",
    "bidi\u202eoverride",
    "\x85",
]


def record(
    message: object = "hello", *args: object, level: int = logging.INFO, **extra: object
) -> logging.LogRecord:
    """Make a record as ``log.info(message, *args, extra=extra)`` does."""
    made = logging.LogRecord("proxy.test", level, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


# -- the writer


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[tuple[LineWriter, int]]:
    """Log into a pipe that nobody reads; give the pipe's other end too."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield LineWriter(str(path)), reader
    os.close(reader)


def test_a_line_is_written_soon(tmp_path: Path) -> None:
    writer = LineWriter(str(tmp_path / "log"))
    writer.write("one")
    writer.write("two")
    writer.flush()
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_an_existing_file_is_added_to(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    writer = LineWriter(str(tmp_path / "log"))
    writer.write("after")
    writer.flush()
    assert (tmp_path / "log").read_text() == "before\nafter\n"


def test_a_new_file_is_nobody_elses_to_read(tmp_path: Path) -> None:
    """User names and targets stand in it."""
    LineWriter(str(tmp_path / "log"))
    assert (tmp_path / "log").stat().st_mode & 0o007 == 0


def test_a_file_that_cannot_be_opened_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LineWriter(str(tmp_path / "missing" / "log"))


def test_a_pipe_without_a_reader_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        LineWriter(str(tmp_path / "pipe"))


def test_a_full_pipe_takes_its_lines_when_it_is_read(stalled: tuple[LineWriter, int]) -> None:
    writer, reader = stalled
    lines = [f"{number} " + "x" * 1000 for number in range(500)]
    for line in lines:
        writer.write(line)
    text = ""

    def is_whole() -> bool:
        nonlocal text
        with suppress(BlockingIOError):
            text += os.read(reader, 1 << 20).decode()
        return text.count("\n") == len(lines)

    wait_until(is_whole, "every line", 10)
    assert text.splitlines() == lines


def test_a_stalled_log_drops_and_counts_and_never_blocks(
    stalled: tuple[LineWriter, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "QUEUE_SIZE", 100)
    writer, reader = stalled
    sent = 5000
    slowest = 0.0
    for number in range(sent):
        started = time.monotonic()
        writer.write(f"{number:04} " + "x" * 1000)
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < 0.5

    text = ""

    def all_is_told() -> bool:
        nonlocal text
        with suppress(BlockingIOError):
            text += os.read(reader, 1 << 20).decode()
        writer.write("more")  # what was dropped is told with the next lines
        return len(numbers_in(text)) + dropped_in(text) >= sent

    wait_until(all_is_told, "an account of every line", 10)
    assert dropped_in(text) > sent / 2
    assert numbers_in(text) == sorted(set(numbers_in(text)))


def numbers_in(text: str) -> list[int]:
    """Find the lines that were not dropped."""
    return [int(number) for number in re.findall(r"^(\d{4}) x+$", text, re.MULTILINE)]


def dropped_in(text: str) -> int:
    """Add up what the log says was dropped."""
    return sum(int(count) for count in re.findall(r"^\((\d+) log lines were dropped", text, re.MULTILINE))


def test_flushing_a_stalled_log_ends(stalled: tuple[LineWriter, int]) -> None:
    writer, _ = stalled
    for _ in range(200):
        writer.write("x" * 1000)
    started = time.monotonic()
    writer.flush()
    assert time.monotonic() - started < 3


def test_a_log_whose_disk_is_full_does_no_harm() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    writer = LineWriter("/dev/full")
    for _ in range(100):
        writer.write("lost")
    writer.flush()


def test_bytes_that_are_no_text_are_written_all_the_same(tmp_path: Path) -> None:
    writer = LineWriter(str(tmp_path / "log"))
    writer.write("user \udcff")
    writer.flush()
    assert (tmp_path / "log").read_text() == "user \\udcff\n"


# -- the formats


def test_a_text_line_has_time_level_and_message() -> None:
    line = TextFormatter().format(record("%s listens on %s", "socks", "127.0.0.1:1080"))
    assert re.fullmatch(f"{TIME} info socks listens on 127\\.0\\.0\\.1:1080", line)


def test_the_time_is_utc() -> None:
    made = record()
    made.created, made.msecs = 0.0, 7.0
    assert TextFormatter().format(made).startswith("1970-01-01T00:00:00.007Z ")
    assert json.loads(JsonFormatter().format(made))["time"] == "1970-01-01T00:00:00.007Z"


@pytest.mark.parametrize("text", NASTY)
def test_a_message_cannot_forge_a_line(text: str) -> None:
    line = TextFormatter().format(record("user=%s listener=socks", text))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert line.endswith("listener=socks")


@pytest.mark.parametrize("text", NASTY)
def test_a_json_line_is_one_object(text: str) -> None:
    line = JsonFormatter().format(record("user=%s", text, level=logging.WARNING))
    assert len(line.splitlines()) == 1
    entry = json.loads(line)
    assert re.fullmatch(TIME, entry["time"])
    assert (entry["level"], entry["message"]) == ("warning", f"user={text}")


def test_letters_of_any_language_are_left_as_they_are() -> None:
    assert TextFormatter().format(record("Zoë 你好")).endswith("Zoë 你好")


# -- repetitions


def at(seconds: float, message: str = "upstream %s failed", subject: str = "home") -> logging.LogRecord:
    """Make a record that may be collapsed, at a point in time."""
    made = record(message, subject, collapse=subject)
    made.created = 1000 + seconds
    return made


def test_an_error_passes_once_and_its_repetitions_are_counted() -> None:
    """DESIGN 1.7: repeated errors are collapsed."""
    collapse = Collapse()
    assert collapse.filter(at(0))
    assert not any(collapse.filter(at(second)) for second in range(1, 30))
    later = at(31)
    assert collapse.filter(later)
    assert later.getMessage() == "upstream home failed (29 more like this since the last line)"


def test_an_error_that_comes_rarely_always_passes() -> None:
    collapse = Collapse()
    for second in (0, 31, 62):
        passing = at(second)
        assert collapse.filter(passing)
        assert passing.getMessage() == "upstream home failed"


def test_other_errors_and_other_subjects_are_not_held_back() -> None:
    collapse = Collapse()
    assert collapse.filter(at(0))
    assert collapse.filter(at(0, subject="backup"))
    assert collapse.filter(at(0, "upstream %s is slow"))


def test_what_names_no_subject_is_never_held_back() -> None:
    collapse = Collapse()
    assert all(collapse.filter(record("authentication failed")) for _ in range(100))


def test_a_percent_sign_in_a_repeated_message_does_no_harm() -> None:
    collapse = Collapse()
    for second in (0, 1, 40):
        passing = at(second, "%s", "100%d")
        collapse.filter(passing)
    assert passing.getMessage().startswith("100%d (1 more")


def test_subjects_without_number_do_not_grow_memory() -> None:
    """CASES G187: such as a line for each of a million clients."""
    collapse = Collapse()
    for number in range(5000):
        collapse.filter(at(0, subject=str(number)))
    assert len(collapse._seen) <= 2000


# -- all together


@pytest.fixture
def package_log() -> Iterator[logging.Logger]:
    """Give the package's logger, and put it back as it was."""
    logger = logging.getLogger("proxy")
    before = logger.handlers[:], logger.level, logger.propagate
    yield logging.getLogger("proxy.test")
    logger.handlers[:], logger.level, logger.propagate = before


def test_the_level_decides_what_is_written(package_log: logging.Logger, tmp_path: Path) -> None:
    writer = LineWriter(str(tmp_path / "log"))
    set_up(writer, "warning")
    package_log.info("hidden")
    package_log.warning("shown")
    writer.flush()
    assert [line.split()[1:] for line in (tmp_path / "log").read_text().splitlines()] == [
        ["warning", "shown"]
    ]


def test_a_log_can_be_json(package_log: logging.Logger, tmp_path: Path) -> None:
    writer = LineWriter(str(tmp_path / "log"))
    set_up(writer, "info", as_json=True)
    package_log.info("shown")
    writer.flush()
    assert json.loads((tmp_path / "log").read_text())["message"] == "shown"


def test_setting_up_again_replaces(package_log: logging.Logger, tmp_path: Path) -> None:
    for name in ("first", "second"):
        writer = LineWriter(str(tmp_path / name))
        set_up(writer, "info")
    package_log.info("shown")
    writer.flush()
    assert (tmp_path / "first").read_text() == ""
    assert "shown" in (tmp_path / "second").read_text()


def test_a_call_with_the_wrong_arguments_is_not_what_fails(
    package_log: logging.Logger, tmp_path: Path
) -> None:
    writer = LineWriter(str(tmp_path / "log"))
    set_up(writer, "info")
    package_log.info("%s and %s", "one")
    writer.flush()
    assert len((tmp_path / "log").read_text().splitlines()) == 1
