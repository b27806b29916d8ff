"""The access log: one line for each connection, whatever its fields hold."""

import json
import re
import shlex
from dataclasses import asdict, replace

import pytest

from proxy.accesslog import NO_LOG, AccessLog, Record, quoted, shortened

RECORD = Record(
    id=7,
    user="alice",
    client="192.0.2.1:50000",
    listener="socks",
    target="www.example.com:443",
    upstream="home",
    rule="",
    sent=517,
    received=4096,
    ms=1234,
    end="finished",
)
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"  # RFC 3339, in UTC

NASTY = [
    "two\nlines",
    "carriage\rreturn",
    "\x1b[31mred",
    "a \"quoted\" 'word'",
    "end=finished",
    "back\\slash",
    "\u2028separator",
    "\x00",
    "bidi\u202eoverride",
    "",
]


def written(record: Record, *, as_json: bool = False) -> str:
    """Write one record, and give its line."""
    lines: list[str] = []
    AccessLog(lines.append, as_json=as_json).add(record)
    (line,) = lines
    return line


def fields_of(line: str) -> dict[str, str]:
    """Read a text line as a shell would split it."""
    return dict(word.split("=", 1) for word in shlex.split(line)[2:])


def test_a_line_has_the_time_and_every_field() -> None:
    """DESIGN 1.7."""
    assert re.fullmatch(
        f"{TIME} access id=7 user=alice client=192.0.2.1:50000 listener=socks target=www.example.com:443"
        " upstream=home sent=517 received=4096 ms=1234 end=finished",
        written(RECORD),
    )


def test_what_is_not_known_is_left_out() -> None:
    fields = fields_of(written(replace(RECORD, user="", target="", upstream="")))
    assert not fields.keys() & {"user", "target", "upstream"}
    assert fields["client"] == "192.0.2.1:50000"


def test_a_count_of_nothing_is_still_told() -> None:
    assert fields_of(written(replace(RECORD, sent=0)))["sent"] == "0"


def test_several_words_are_quoted() -> None:
    line = written(replace(RECORD, end="refused: connection refused"))
    assert line.endswith('end="refused: connection refused"')


@pytest.mark.parametrize("name", NASTY)
def test_a_users_name_cannot_forge_a_line_or_a_field(name: str) -> None:
    line = written(replace(RECORD, user=name))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert fields_of(line)["end"] == "finished"
    assert list(fields_of(line)).count("end") == 1


@pytest.mark.parametrize("name", NASTY)
def test_a_json_line_is_one_object_that_holds_all(name: str) -> None:
    record = replace(RECORD, user=name)
    line = written(record, as_json=True)
    assert len(line.splitlines()) == 1
    entry = json.loads(line)
    assert re.fullmatch(TIME, entry.pop("time"))
    assert entry.pop("log") == "access"
    assert entry == asdict(record)


@pytest.mark.parametrize(("text", "shown"), [
    ("alice", "alice"),
    ("alice@example.com", "alice@example.com"),
    ("[::1]:80", "[::1]:80"),
    ("two words", '"two words"'),
    ("a=b", '"a=b"'),
    ("line\nfeed", r'"line\nfeed"'),
    ('say "hi"', r'"say \"hi\""'),
    ("", '""'),
])  # fmt: skip
def test_text_is_quoted_where_it_could_be_taken_for_something_else(text: str, shown: str) -> None:
    assert quoted(text) == shown
    assert json.loads(shown if shown.startswith('"') else f'"{shown}"') == text


def test_a_log_that_is_off_takes_records() -> None:
    NO_LOG.add(RECORD)


LONG = {
    "ascii": "x" * 8192,
    "backslashes": "\\" * 8192,
    "quotes": '"' * 255,
    "controls": "\x00" * 255,
    "latin-1": "\xff" * 255,
    "emoji": "\U0001f600" * 255,
    "surrogates": "\udcff" * 255,
    "separators": "\u2028" * 8192,
}


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("name", LONG)
def test_no_line_has_more_than_1_kb_whatever_is_asked_for(name: str, as_json: bool) -> None:
    """Case 377."""
    host = ".".join(["n" * 63] * 4)  # 255 bytes: the longest
    requests = [
        replace(RECORD, user=LONG[name], target=f"{host}:65535", end=f"refused: {host}:65535: {'why ' * 9}"),
        replace(RECORD, user="", target="", end=f"malformed: {LONG[name]}"),
    ]
    for record in requests:
        line = written(record, as_json=as_json)
        assert len(line.encode("utf-8", "backslashreplace")) < 1000
        assert json.loads(line) if as_json else len(shlex.split(line)) >= 10


def test_a_text_that_is_too_long_loses_its_middle() -> None:
    assert shortened("begin " + 100 * "x" + " end", 20) == "begin x ... xxx end"


@pytest.mark.parametrize("name", ["alice", "Zoë", "用户" * 15, "a" * 100, *NASTY])
def test_a_text_that_fits_stays_as_it_is(name: str) -> None:
    assert shortened(name, 120) == name
