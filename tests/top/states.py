"""States of ``ctl top``, and what is seen of them."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

from proxy.top.keys import Action
from proxy.top.keys import press as press_one
from proxy.top.picture import draw
from proxy.top.samples import Sample
from proxy.top.state import State, path
from proxy.top.updates import take
from tests.ctl.answers import STATUS


def row(number: object, **changes: Any) -> dict[str, Any]:
    known = {
        "id": number,
        "state": "open",
        "user": "alice",
        "client": f"192.0.2.1:{4000 + int(str(number).rpartition('-')[2])}",
        "listener": "socks",
        "target": "www.example.com:443",
        "upstream": "home",
        "age": 61.0,
        "sent": 2048,
        "received": 5 << 20,
        "sent_rate": 1024.0,
        "received_rate": 3.0 * (1 << 20),
    }
    return known | changes


def sample(
    time: float = 1.0, rows: list[dict[str, Any]] | None = None, listing: Any = (), **status: Any
) -> Sample:
    rows = [row(number) for number in (3, 2, 1)] if rows is None else rows
    answer = {"live": len(rows), "matching": len(rows), "connections": rows}
    return Sample(time, {**STATUS, "uptime": 100 + time, **status}, answer | dict(listing))


def text(state: State) -> list[str]:
    return ["".join(span.text for span in line) for line in draw(state)]


def looks(state: State, fragment: str) -> set[str]:
    return {span.look for line in draw(state) for span in line if fragment in span.text}


def state(**changes: Any) -> State:
    size = {"columns": 120, "lines": 30} | {k: v for k, v in changes.items() if k in ("columns", "lines")}
    rest = {k: v for k, v in changes.items() if k not in size}
    return take(State(**size), sample(**rest))


def press(now: State, *keys: str) -> tuple[State, Action]:
    action: Action = None
    for key in keys:
        now, action = press_one(now, key)
    return now, action


def query(now: State) -> dict[str, str]:
    return {name: value for name, (value,) in parse_qs(urlsplit(path(now)).query).items()}
