"""
HTTP for a handful of clients: what a request may cost, who gives way, and what an answer looks like.

What requests mean is their handler's business (``test_admin``); here it only says what it was asked.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from http.client import HTTPResponse
from io import BytesIO
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from proxy.control import http
from proxy.control.http import MAX_BODY, PLACES, STRANGERS, Answer, HttpServer, Request
from proxy.errors import ProtocolError
from proxy.http.heads import HttpError
from proxy.net import farewell
from proxy.net.limits import BALLAST
from tests.wire.greenlets import PATIENCE, patience, until


class House:
    """A server whose handler says what it was asked, and does before that whatever a test wants."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.act: Callable[[Request], Answer | None] = lambda request: None
        self.guarded: list[str] = []
        self.guard: Callable[[], None] = lambda: None
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen(100)
        self.server = HttpServer(sock, self._handle, self._guard)
        self.server.start()

    def _guard(self, head: Any, client: Any) -> None:
        self.guarded.append(head.target)
        self.guard()

    def _handle(self, request: Request) -> Answer:
        self.asked.append(request)
        return self.act(request) or Answer({"path": request.path})

    def connect(self) -> Any:
        """Connect, and say nothing."""
        address = self.server.address
        return socket.create_connection((address.host, address.port), timeout=PATIENCE)

    def ask(self, data: bytes) -> "Told":
        """Send a request, and read the answer to the end."""
        with self.connect() as sock:
            sock.sendall(data)
            return Told(sock)


class Told:
    """An answer, taken apart by the standard library."""

    def __init__(self, sock: Any, *, head: bool = False) -> None:
        self.data = b"".join(iter(lambda: sock.recv(65536), b""))
        fake: Any = type("Fake", (), {"makefile": lambda _, mode: BytesIO(self.data)})()
        answer = HTTPResponse(fake, method="HEAD" if head else "GET")
        answer.begin()
        self.status, self.headers, self.body = answer.status, answer.headers, answer.read()

    @property
    def content(self) -> Any:
        """What the body says, in JSON."""
        return json.loads(self.body)


@pytest.fixture
def house() -> Iterator[House]:
    with patience():
        made = House()
        yield made
        made.server.stop()


def request(target: str = "/path", *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
    """Write a request as a good client does."""
    length = [f"Content-Length: {len(body)}"] if body else []
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *length, *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


# A request


def test_a_request_arrives_with_all_its_parts(house: House) -> None:
    told = house.ask(request("/a/b?to=current&x=%20y&empty=", "If-Match: 7", method="PATCH", body=b"{}"))
    assert (told.status, told.content) == (200, {"path": "/a/b"})
    (asked,) = house.asked
    assert (asked.method, asked.path, asked.body) == ("PATCH", "/a/b", b"{}")
    assert asked.query["to"] == "current"
    assert asked.query["x"] == " y"
    assert asked.headers.get("if-match") == "7"


@pytest.mark.parametrize("cut", [1, 10, len(request(body=b"in two")) - 3])
def test_it_may_come_in_pieces(house: House, cut: int) -> None:
    data = request(body=b"in two", method="POST")
    with house.connect() as sock:
        sock.sendall(data[:cut])
        gevent.idle()
        sock.sendall(data[cut:])
        assert Told(sock).status == 200
    assert house.asked[0].body == b"in two"


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def test_who_waits_to_be_told_sends_its_body_then(house: House) -> None:
    """RFC 9110, section 10.1.1; curl waits a second for it, and others for good."""
    data = request("/path", "Expect: 100-Continue", method="POST", body=b"late")
    with house.connect() as sock:
        sock.sendall(data[:-4])
        told = b"".join(sock.recv(1) for _ in CONTINUE)
        assert told == CONTINUE
        sock.sendall(data[-4:])
        assert Told(sock).status == 200
    assert house.asked[0].body == b"late"


@pytest.mark.parametrize(
    "data",
    [
        request("/path", "Expect: 100-continue"),
        request("/path", "Expect: 100-continue", method="POST", body=b"x").replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["no body", "HTTP/1.0"],
)
def test_who_has_nothing_to_wait_for_is_not_told_to_go_on(house: House, data: bytes) -> None:
    """RFC 9110, sections 10.1.1 and 15.2."""
    assert house.ask(data).data.startswith(b"HTTP/1.1 200 ")


def test_only_the_first_of_a_connection_is_served(house: House) -> None:
    assert house.ask(request("/one") + request("/two")).content == {"path": "/one"}
    assert [each.path for each in house.asked] == ["/one"]


@pytest.mark.parametrize("target", ["*", "http://localhost/path", "localhost:80", "path"])
def test_a_target_that_is_no_path_is_refused(house: House, target: str) -> None:
    assert house.ask(request(target)).status == 400
    assert house.asked == []


@pytest.mark.parametrize(
    ("field", "status"),
    [
        (f"Content-Length: {MAX_BODY + 1}", 413),
        ("Content-Length: 9999999999999999999999", 413),
        ("Content-Length: -1", 400),
        ("Content-Length: 1e3", 400),
        ("Content-Length: \xb2", 400),  # a superscript, which Python takes for a digit
        ("Content-Length: 1\r\nContent-Length: 1", 400),
        ("Transfer-Encoding: chunked", 411),
    ],
)
def test_a_body_is_bounded_before_it_is_read(house: House, field: str, status: int) -> None:
    """RFC 9110, section 8.6, and RFC 9112, section 6: two readers must not see two lengths."""
    assert house.ask(request("/path", field, method="POST")).status == status
    assert house.asked == []


def test_a_body_of_the_size_that_is_allowed_is_taken(house: House) -> None:
    assert house.ask(request(method="POST", body=b"x" * MAX_BODY)).status == 200
    assert len(house.asked[0].body) == MAX_BODY


def test_who_leaves_in_the_middle_is_nobodys_trouble(house: House) -> None:
    with house.connect() as sock:
        sock.sendall(request(method="POST", body=b"half")[:-2])
    with house.connect() as sock:
        sock.sendall(b"GET /pa")
    assert house.ask(request()).status == 200
    assert len(house.asked) == 1


@pytest.mark.parametrize("sent", [b"", b"GET /path HT", request(method="POST", body=b"half")[:-2]])
def test_a_request_that_does_not_arrive_in_time_is_told(
    house: House, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http, "PATIENCE", 0.05)
    with house.connect() as sock:
        sock.sendall(sent)
        assert Told(sock).status == 408
    assert house.asked == []


# The guard


def test_whom_the_guard_does_not_let_in_sends_its_body_in_vain(house: House) -> None:
    """The guard decides by the head alone, and nothing is read behind it."""

    def refuse() -> None:
        raise HttpError(401, "who are you?", headers=(("WWW-Authenticate", "Bearer"),))

    house.guard = refuse
    told = house.ask(request("/secret", "Content-Length: 60000", "Expect: 100-continue", method="POST"))
    assert (told.status, told.content) == (401, {"error": "who are you?"})
    assert told.headers["WWW-Authenticate"] == "Bearer"
    assert house.asked == []


def test_the_guard_is_asked_again_when_the_body_is_there(house: House) -> None:
    """What opened the door may have been taken away while it came."""
    data = request(method="POST", body=b"{}")
    with house.connect() as sock:
        sock.sendall(data[:-1])
        until(lambda: house.guarded)

        def refuse() -> None:
            raise HttpError(401, "not any more")

        house.guard = refuse
        sock.sendall(data[-1:])
        assert Told(sock).status == 401
    assert house.asked == []


# Those who hold others up


def test_any_number_of_silent_strangers_hold_nobody_up(house: House) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(house.connect()) for _ in range(3 * (PLACES + STRANGERS))]
        assert house.ask(request()).status == 200
        assert silent[0].recv(1) == b""  # the oldest gave way


def test_who_gave_way_holds_no_place_for_a_last_word(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_QUIET", "_AT_MOST"):
        monkeypatch.setattr(farewell, name, 10 * PATIENCE)
    test_any_number_of_silent_strangers_hold_nobody_up(house)


def test_of_those_who_are_served_none_gives_way_to_strangers(house: House) -> None:
    """As many as there are places wait for their answers, and then strangers come."""
    go = Event()

    def wait(request: Request) -> None:
        go.wait(PATIENCE)

    house.act = wait
    with ExitStack() as stack:
        served = [stack.enter_context(house.connect()) for _ in range(PLACES)]
        for sock in served:
            sock.sendall(request())
        until(lambda: len(house.asked) == PLACES)
        strangers = [stack.enter_context(house.connect()) for _ in range(STRANGERS + 5)]
        assert strangers[0].recv(1) == b""
        go.set()
        assert [Told(sock).status for sock in served] == [200] * PLACES


# An answer


def test_an_object_is_json_and_a_text_is_plain(house: House) -> None:
    told = house.ask(request())
    assert told.headers["Content-Type"] == "application/json"
    house.act = lambda request: Answer("a_metric 1\n")
    told = house.ask(request())
    # The type that Prometheus asks for: text format, version 0.0.4.
    assert told.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert told.body == b"a_metric 1\n"


def test_an_answer_says_how_long_it_is_and_that_it_is_the_last(house: House) -> None:
    house.act = lambda request: Answer({"name": "j\u00fcrgen"}, 202, (("X-More", "yes"),))
    told = house.ask(request())
    assert (told.status, told.content) == (202, {"name": "j\u00fcrgen"})
    assert int(told.headers["Content-Length"]) == len(told.body)
    assert told.headers["Connection"] == "close"
    assert told.headers["X-More"] == "yes"


def test_no_answer_is_kept_or_taken_for_something_else_by_a_browser(house: House) -> None:
    for told in (house.ask(request()), house.ask(request("*"))):
        assert told.headers["Cache-Control"] == "no-store"
        assert told.headers["X-Content-Type-Options"] == "nosniff"


def test_an_answer_has_a_date(house: House) -> None:
    """RFC 9110, section 6.6.1."""
    sent = house.ask(request()).headers["Date"]
    assert abs(parsedate_to_datetime(sent).timestamp() - time.time()) < 60


def test_head_is_told_all_but_the_body(house: House) -> None:
    """RFC 9110, section 9.3.2: the same fields as for GET."""
    whole = house.ask(request())
    with house.connect() as sock:
        sock.sendall(request(method="HEAD"))
        told = Told(sock, head=True)
    assert told.data.endswith(b"\r\n\r\n")
    assert told.headers["Content-Length"] == whole.headers["Content-Length"]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (HttpError(404, "there is no such connection"), 404, "there is no such connection"),
        (ProtocolError("a fault of ours, with a path /home/alice"), 500, "internal error"),
        (ZeroDivisionError("division by zero"), 500, "internal error"),
    ],
)
def test_an_error_of_the_handler_is_an_answer_and_the_next_one_is_served(
    house: House, error: Exception, status: int, said: str
) -> None:
    def fail(request: Request) -> Answer:
        raise error

    house.act = fail
    told = house.ask(request())
    assert (told.status, told.content) == (status, {"error": said})
    house.act = lambda request: None
    assert house.ask(request()).status == 200


def test_one_who_does_not_take_the_answer_is_left(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PATIENCE", 0.2)
    house.act = lambda request: Answer("x" * (32 << 20))
    with house.connect() as sock:
        sock.sendall(request())
        until(lambda: not house.server._server.pool)
    house.act = lambda request: None
    assert house.ask(request()).status == 200


# While memory is short


def test_an_operator_is_answered_while_clients_wait(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is when somebody wants to know what is going on."""
    leaves = iter([MemoryError, None])

    def leave_some() -> None:
        if error := next(leaves, None):
            raise error

    monkeypatch.setattr(BALLAST, "allows_another", lambda: False)
    monkeypatch.setattr(BALLAST, "leave_some", leave_some)
    assert house.ask(request()).status == 200  # as soon as some is left


def test_a_request_for_which_there_is_no_memory_is_told_so(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(request: Request) -> Answer | None:
        raise MemoryError

    given_up: list[bool] = []
    monkeypatch.setattr(BALLAST, "give_up", lambda: given_up.append(True))
    house.act = act
    told = house.ask(request())
    assert (told.status, told.content) == (503, {"error": "there is not enough memory: raise its limit"})
    assert given_up == [True]
