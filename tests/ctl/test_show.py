"""What the control interface answers, as people like to read it."""

import re
import time
from typing import Any

import pytest

from proxy.ctl import cells, show
from proxy.ctl.units import moment
from tests.ctl.answers import STATUS


def health_of(**changes: Any) -> str:
    (upstream,) = STATUS["upstreams"]
    shown = show.render_status({**STATUS, "upstreams": [{**upstream, **changes}]})
    return shown.splitlines()[-1].partition("gateway.example.com/")[2].split(maxsplit=1)[1]


def test_how_many_connections_are_ready_is_shown_for_each_upstream() -> None:
    """DESIGN 1.12."""
    (upstream,) = STATUS["upstreams"]
    lines = show.render_status({**STATUS, "upstreams": [{**upstream, "spares": 3}]}).splitlines()
    assert lines[-2].split() == ["LISTENER", "UPSTREAM", "ADDRESS", "READY", "HEALTH"]
    assert lines[-1].split()[3] == "3"


def test_one_failure_is_one_failure() -> None:
    """Case 354."""
    assert health_of(failures=1).startswith("down (1 failure), tried again in 4 s: ")
    assert health_of(failures=2).startswith("down (2 failures), tried again in 4 s: ")


def test_a_success_that_is_a_promise_is_shown_as_one() -> None:
    """Case 334."""
    assert health_of(health="up", problem="") == "up"
    promise = health_of(health="up", problem="", confirms=False)
    assert promise.startswith("up; ")
    assert "promise (no X-Proxy-Bound)" in promise


def test_one_that_is_up_and_would_not_serve_the_last_client_says_why() -> None:
    """Case 371."""
    shown = health_of(health="up", problem="upstream home: answered 429")
    assert shown == "up; the last time: upstream home: answered 429"


def test_draining_is_counted_from_the_signal() -> None:
    """Case 354."""
    text = show.render_status({**STATUS, "state": "draining", "draining_for": 12.0})
    assert "draining for 12 s" in text


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (15 * 86400, ""),
        (13.5 * 86400, "the certificate of socks expires in 13 d 11 h: "),
        (-2.5 * 86400, "the certificate of socks has expired, 2 d 12 h ago: "),
        (None, ""),
    ],
)
def test_a_certificate_that_ends_soon_is_a_line_of_the_status(left: float | None, said: str) -> None:
    end = time.time() + left if left else None
    (listener,) = STATUS["listeners"]
    text = show.render_status({**STATUS, "listeners": [{**listener, "certificate_ends": end}]})
    line = next((line for line in text.splitlines() if "certificate" in line), "")
    assert line == (said and f"{said}{moment(end or 0)}")


def test_status_is_for_people() -> None:
    text = show.render_status(STATUS)
    assert "running for 1 d 1 h" in text
    assert "version 12" in text
    assert "1.5 KiB sent, 5.0 GiB received" in text
    rows = text.splitlines()
    assert next(row for row in rows if row.startswith("socks ")).split()[:5] == [
        *("socks", "socks5", "127.0.0.1:1080", "3", "1024")
    ]
    assert rows[-1].endswith(
        r"down (3 failures), tried again in 4 s: upstream home: Connection\x1b[31m refused"
    )


def test_connections_cannot_steer_the_terminal() -> None:
    """A user name is what a client says that it is."""
    one = {
        "id": 1,
        "state": "open",
        "user": "a\x1b]0;b",
        "client": "192.0.2.7:5",
        "listener": "socks",
        "target": "db:5432",
        "upstream": "home",
        "age": 61.5,
        "sent": 0,
        "received": 2048,
    }
    text = show.connections({"connections": [one]})
    assert "\x1b" not in text
    assert text.splitlines()[1].split("  ")[-3:] == ["1 m 1 s", " 0 B", " 2.0 KiB"]


def test_versions_mark_the_one_in_effect() -> None:
    versions = [
        {"number": number, "time": 0.0, "source": "file", "summary": "x", "volatile": number == 10}
        for number in (10, 9)
    ]
    first, second = show.versions({"current": 9, "versions": versions}).splitlines()[1:]
    assert first.split()[0] == "9*"
    assert second.split()[0] == "10"
    assert second.endswith("x (not in the file)")


def row_of(**changes: Any) -> str:
    (listener,) = STATUS["listeners"]
    text = show.render_status({**STATUS, "listeners": [{**listener, **changes}]})
    return next(row for row in text.splitlines() if row.startswith("socks "))


def test_a_listener_says_for_which_addresses_it_waits_and_why() -> None:
    row = row_of(waits_for=["198.51.100.7:1080"], problem="Cannot assign\x1b requested address")
    assert r"127.0.0.1:1080, 198.51.100.7:1080 (waiting: Cannot assign\x1b requested address)" in row
    row = row_of(addresses=[], waits_for=["198.51.100.7:1080"], problem="not here")
    assert " socks5  198.51.100.7:1080 (waiting: not here) " in row


def test_a_listener_that_has_left_is_closed() -> None:
    assert row_of(addresses=[]).split()[2] == "closed"


def test_an_upstream_that_rests_no_more_is_tried_next_time() -> None:
    assert health_of(rests_for=0).startswith("down (3 failures), tried again next time: ")


def test_an_older_server_that_says_nothing_of_its_file_is_shown() -> None:
    older = {name: value for name, value in STATUS.items() if name != "file"}
    assert show.render_status(older) == show.render_status(STATUS)


def test_nobody_connected_is_said() -> None:
    assert show.connections({"connections": []}) == "no connections"


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        (
            {"status": "applied", "version": 13, "problems": [], "notes": ["splice needs a restart"]},
            ["applied as version 13", "note: splice needs a restart"],
        ),
        (
            {"status": "unchanged", "version": 12, "problems": [], "notes": []},
            ["unchanged: version 12 stays"],
        ),
        (
            {"status": "rejected", "version": 12, "problems": ["proxy.ini:4: [x\x1b[2J]", "b"], "notes": []},
            ["rejected: version 12 stays", r"  proxy.ini:4: [x\x1b[2J]", "  b"],
        ),
    ],
)
def test_an_outcome_is_a_line_and_one_for_each_reason(answer: show.Object, lines: list[str]) -> None:
    assert show.outcome(answer).splitlines() == lines


def test_versions_that_are_the_same_have_no_difference() -> None:
    assert show.diff({"diff": ""}) == "no difference"
    assert show.diff({"diff": "-a\n+b\x1b\n"}) == "-a\n+b\\x1b"


ACCOUNT = {
    "limit": "fair",
    "per": "user",
    "user": "a\x1b]0;b",
    "client": "",
    "live": 3,
    "connections": 50,
    "rate": 1.26,
    "new": "10/s",
    "sent": 0.0,
    "received": 2.0 * (1 << 20),
    "bandwidth": 2 << 20,
    "waiting": 3,
}


def test_limits_are_a_table_that_cannot_steer_the_terminal() -> None:
    unlimited = {"user": "", "client": "192.0.2.7", "connections": None, "new": None, "bandwidth": None}
    everybody = {**ACCOUNT, "user": "", "client": ""}
    told = {"limits": ["fair"], "refused": {"fair": 7, "old": 0}, "total": 20}
    text = show.limits({**told, "accounts": [ACCOUNT, {**ACCOUNT, **unlimited}, everybody]})
    assert "\x1b" not in text
    heads, first, second, third, *rest = text.splitlines()
    assert heads.split() == ["LIMIT", "WHO", "LIVE", "NEW/S", "SENT/S", "RECEIVED/S", "WAITING"]
    assert re.split("  +", first)[2:] == [
        *("3 of 50", "1.3 of 10/s", "0 B of 2.0 MiB", "2.0 MiB of 2.0 MiB", "3"),
    ]
    assert second.split() == ["fair", "192.0.2.7", "3", "1.3", "-", "-", "3"]
    assert third.split()[1] == "all"
    assert rest == ["", "and 17 more with less", "", "limit fair: 7 refused"]


def test_no_limits_are_said_to_be_none() -> None:
    assert show.limits({"limits": [], "refused": {}, "total": 0, "accounts": []}) == "no limits"


def test_a_certificate_cannot_write_lines_of_its_own() -> None:
    says = {
        "for": ["a.example\nreached in 1 ms", "b", "c", "d", "e"],
        "by": "\x1b[2J",
        "until": 0,
        "trusted": False,
    }
    stage = {"stage": "tls", "ok": False, "seconds": 12.5, "said": "", "certificate": says}
    hop = {"upstream": "home", "type": "http", "address": "https://a.example", "stages": [stage]}
    answer = {"hops": [hop], "ok": False, "failure": "bad\nnews", "note": "", "seconds": 12.5}
    first, second, last = show.trial(answer).splitlines()
    assert first == "home  http https://a.example"
    assert second.startswith(
        r"  tls           12.5 s  failed; certificate for a.example\nreached in 1 ms, b, c, d and 1 more"
        r" by \x1b[2J, not trusted"
    )
    assert last == r"failed at tls: bad\nnews"


WIDE = {
    "connections": [
        {
            "id": 7,
            "user": "alice",
            "client": "192.0.2.7:50312",
            "listener": "socks",
            "target": "\u202e" + "very-long-name." * 6 + "example:443",
            "upstream": "home",
            "state": "open",
            "age": 5,
            "sent": 1,
            "received": 2,
        }
    ]
}


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_a_table_fits_the_terminal_and_cuts_the_longest_text(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "room", lambda: columns)
    head, row = show.connections(WIDE).splitlines()
    assert max(len(head), len(row)) <= columns
    assert row.isprintable()
    assert re.search(r"\\u202e\S+…  home", row)
    assert row.endswith("1 B       2 B")


def test_a_table_is_whole_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "very-long-name.example:443" in show.connections(WIDE)
    monkeypatch.setattr(cells, "room", lambda: 20)  # and where nothing helps, numbers stay
    assert show.connections(WIDE).splitlines()[1].endswith("1 B       2 B")
