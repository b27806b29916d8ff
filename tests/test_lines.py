"""What a line for an operator looks like: one event, one line, whoever wrote a part of it."""

import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from proxy import lines
from proxy.lines import JsonFormatter, TextFormatter

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


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    yield
    lines.say_in_json(False)


def record(
    message: object = "hello", *args: object, level: int = logging.INFO, **extra: object
) -> logging.LogRecord:
    """Make a record as ``log.info(message, *args, extra=extra)`` does."""
    made = logging.LogRecord("proxy.test", level, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


# What is logged


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


@pytest.mark.parametrize("text", [*NASTY, "forged\n2026-01-01T00:00:00.000Z warning authentication failed"])
def test_no_line_of_a_traceback_can_be_taken_for_one_of_the_log(text: str) -> None:
    """It is for debugging, and what the error says may have been written by others."""
    made = record("internal error", level=logging.DEBUG)
    try:
        raise ValueError(text)
    except ValueError:
        made.exc_info = sys.exc_info()
    first, *others = TextFormatter().format(made).split("\n")
    assert first.endswith(" debug internal error")
    assert any("ValueError" in line for line in others)
    assert all(line.startswith("  ") and line.isprintable() for line in others)


def test_a_traceback_in_json_is_a_field_of_its_line() -> None:
    made = record("internal error", level=logging.DEBUG)
    try:
        raise ValueError("of no use")
    except ValueError:
        made.exc_info = sys.exc_info()
    entry = json.loads(JsonFormatter().format(made))
    assert entry["message"] == "internal error"
    assert entry["exception"].rstrip().endswith("ValueError: of no use")


# What is said before there is a log


@pytest.mark.parametrize("text", NASTY)
def test_what_is_said_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """What it says may have been written by others: an upstream's reason phrase, a server's answer."""
    lines.say(text)
    said = capsys.readouterr().err
    assert said.endswith("\n")
    assert said[:-1].isprintable()
    lines.say_in_json(True)
    lines.say(text)
    said = capsys.readouterr().err
    assert said[:-1].isprintable()
    assert json.loads(said)["level"] == "error"


@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_logged_before_the_log_is_there_has_its_form(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    """CASES 380: Python would write it as it is."""
    logging.getLogger("proxy").handlers.clear()
    lines.begin(as_json=as_json)
    logging.getLogger("proxy.test").warning("%s is passed over", "7.ini")
    said = capsys.readouterr().err
    if as_json:
        entry = json.loads(said)
        assert (entry["level"], entry["message"]) == ("warning", "7.ini is passed over")
    else:
        assert said == "warning: 7.ini is passed over\n"


def test_what_is_said_has_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    lines.say("x" * 1_000_000)
    assert len(capsys.readouterr().err) < 2100
