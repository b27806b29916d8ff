"""
The life of one connection, with a door and a way out that do what a test says.

What the pipeline asks of them is written down in the order in which it happens.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import gevent
import pytest

from proxy import session
from proxy.accesslog import AccessLog, Record
from proxy.address import Address
from proxy.client import Connected, ProxyClient
from proxy.errors import AuthError, DialError, Failure, ProtocolError, ProxyError, UpstreamError
from proxy.http.heads import answer_to_question
from proxy.listening.pool import do
from proxy.metrics import ListenerMetrics
from proxy.net.deadline import Deadline
from proxy.net.dial import Check
from proxy.net.limits import Ballast
from proxy.policy.auth import Authenticator
from proxy.relaying.channel import Channel
from proxy.relaying.relay import DataForwarder
from proxy.relaying.stream import Ending, Stream, TcpStream
from proxy.routing import Router
from proxy.runtime import Runtime
from proxy.session import Session, Wanted
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from proxy.upstream import Ways
from tests.wire.greenlets import patience, settle, tcp_pair
from tests.wire.sockets import reset

CLIENT = Address("192.0.2.1", 50000)
TARGET = Address("target.example", 443)
BOUND = Address("198.51.100.1", 40000)

Act = Callable[[], object]


def nothing() -> None:
    """Do nothing."""


def fails(error: BaseException) -> Act:
    """Make an act that raises."""

    def act() -> None:
        raise error

    return act


def forever() -> None:
    """Block."""
    gevent.sleep(60)


class Way(ProxyClient):
    """A way out to a target of the test's own."""

    def __init__(self, story: list[str], act: Act) -> None:
        super().__init__("way", 10)
        self.story = story
        self.act = act
        self.asker = ""
        self.target, self._far = tcp_pair()

    def dial(self, target: Address, deadline: Deadline, check: Check | None = None) -> Connected:
        """Connect, or do what the test says."""
        self.story.append(f"dial {target}")
        self.asker = deadline.asker
        self.act()
        return Connected(TcpStream(self._far), BOUND, "home")


@dataclass
class Door:
    """One client at a door that speaks no protocol."""

    story: list[str]
    channel: Channel
    greeting: Act = nothing
    accepting: Act = nothing
    refusing: Act = nothing
    half_close_grace: float = 60.0
    user: str = "alice"

    def greet(self) -> Wanted:
        """Say where the client wants to go."""
        self.story.append("greet")
        self.greeting()
        return Wanted(TARGET, self.user)

    def accept(self, bound: Address | None) -> Stream:
        """Accept."""
        self.story.append(f"accept {bound}")
        self.accepting()
        return self.channel.stream()

    def refuse(self, error: ProxyError) -> None:
        """Refuse."""
        self.story.append(f"refuse {error.failure.name}")
        self.refusing()
        self.channel.send(b"no")


class Log(AccessLog):
    """Keeps the records."""

    def __init__(self) -> None:
        super().__init__(lambda line: None)
        self.records: list[Record] = []

    def add(self, record: Record) -> None:
        """Keep a record."""
        self.records.append(record)


@dataclass
class Stage:
    """Everything around one session."""

    dialling: Act = nothing
    door: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.story: list[str] = []
        self.log = Log()
        self.way = Way(self.story, self.dialling)
        self.client, inner = tcp_pair()
        listener = {"listen_addr": "127.0.0.1:0", "protocol": Protocol.SOCKS5, "name": "socks"}
        config = ServerConfig(**{**listener, **self.config})
        users = Authenticator({"alice": "wonderland"})
        router = Router(config, cast(Ways, SimpleNamespace(own=self.way)), ListenerMetrics())
        runtime = Runtime(config, users, router, DataForwarder(config.idle_timeout), self.log)
        self.now = 1000.0
        self.session = Session(7, inner, CLIENT, runtime, lambda: self.now)

    def passes(self, seconds: float) -> None:
        """Have some time pass on the session's clock."""
        self.now += seconds

    def run(self, *, full: bool = False) -> None:
        """Serve the client to the end."""
        do(self.session.run(self._open, full=full))

    def start(self) -> "gevent.Greenlet[..., None]":
        """Serve the client in the background."""
        running = gevent.spawn(self.run)
        settle()
        return running

    def hears(self, count: int) -> Act:
        """Make an act that reads so many bytes from the client."""
        return lambda: self.channel.read_exact(count)

    def _open(self, channel: Channel, runtime: Runtime) -> Door:
        self.channel = channel
        return Door(self.story, channel, **self.door)

    @property
    def record(self) -> Record:
        """The one record."""
        (record,) = self.log.records
        return record

    def client_hears(self) -> bytes:
        """Read what the client is sent, to the end."""
        return b"".join(iter(lambda: self.client.recv(100), b""))

    def refused(self, *, full: bool = False) -> bytes:
        """Serve a client that reads what it is told, and leaves."""
        running = gevent.spawn(self.run, full=full)
        heard = self.client_hears()
        self.client.close()
        running.get()
        return heard

    def is_over(self) -> bool:
        """Tell whether the client's connection is closed."""
        try:
            return self.client.recv(1) == b""
        except ConnectionError:
            return True


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with patience():
        yield


# -- as it should be


def test_a_connection_is_greeted_dialled_accepted_relayed_and_accounted_for() -> None:
    stage = Stage()
    running = stage.start()
    stage.client.sendall(b"question")
    assert stage.way.target.recv(100) == b"question"
    stage.way.target.sendall(b"the answer")
    assert stage.client.recv(100) == b"the answer"
    stage.client.shutdown(1)
    stage.way.target.shutdown(1)
    running.get()
    assert stage.story == ["greet", f"dial {TARGET}", f"accept {BOUND}"]
    record = stage.record
    assert (record.id, record.user, record.client, record.listener) == (7, "alice", str(CLIENT), "socks")
    assert (record.target, record.upstream) == (str(TARGET), "home")
    assert (record.sent, record.received, record.end) == (8, 10, "finished")
    assert stage.is_over()


def test_durations_are_those_of_the_handshake_the_dial_and_the_whole() -> None:
    """In seconds: a request after 0.75, its target 3 later; and from accept to close in milliseconds."""
    stage = Stage()
    stage.door["greeting"] = lambda: stage.passes(0.75)
    stage.way.act = lambda: stage.passes(3.0)
    running = stage.start()
    stage.passes(60.0004)
    stage.session.stop(Ending.STOPPED)
    running.get()
    metrics = stage.session.runtime.metrics
    assert (metrics.handshakes.sum, sum(metrics.handshakes.counts)) == (0.75, 1)
    assert (metrics.dials.sum, sum(metrics.dials.counts)) == (3.0, 1)
    assert stage.record.ms == 63_750


def test_the_time_of_a_failed_dial_is_in_the_record_and_not_among_those_of_targets() -> None:
    stage = Stage()
    stage.door["greeting"] = lambda: stage.passes(0.25)

    def fail() -> None:
        stage.passes(2.0)
        raise DialError("no", Failure.REFUSED)

    stage.way.act = fail
    stage.refused()
    metrics = stage.session.runtime.metrics
    assert sum(metrics.handshakes.counts) == 1
    assert sum(metrics.dials.counts) == 0
    assert stage.record.ms == 2250


@pytest.mark.parametrize(("user", "asker"), [("alice", "alice"), ("", CLIENT.host)])
def test_it_is_dialled_on_behalf_of_the_user_or_else_of_the_client(user: str, asker: str) -> None:
    """Case 345: so that slow names hold up only whoever asked for them."""
    stage = Stage(dialling=fails(DialError("no", Failure.REFUSED)), door={"user": user})
    stage.refused()
    assert stage.way.asker == asker


def test_the_record_says_who_broke_it() -> None:
    stage = Stage()
    running = stage.start()
    stage.client.sendall(b"x")
    stage.way.target.recv(1)
    reset(stage.way.target)
    running.get()
    assert stage.record.end == "cut: target: Connection reset by peer"
    assert stage.record.sent == 1


def test_a_relay_can_be_ended_from_outside() -> None:
    stage = Stage()
    running = stage.start()
    stage.session.stop(Ending.EVICTED)
    running.get()
    assert stage.record.end == "evicted"


@pytest.mark.parametrize("ending", [Ending.EVICTED, Ending.STOPPED])
def test_one_that_is_ended_before_its_target_is_reached_is_not_said_to_have_left(ending: Ending) -> None:
    stage = Stage(dialling=forever)
    running = stage.start()
    settle()
    assert stage.story[-1] == f"dial {TARGET}"
    stage.session.stop(ending)
    running.get()
    assert stage.record.end == ending.value
    assert not stage.session.runtime.metrics.failures


def test_one_that_is_ended_in_the_middle_of_its_request_is_not_said_to_have_left() -> None:
    stage = Stage()
    stage.door["greeting"] = stage.hears(2)
    stage.client.sendall(b"\x05")
    running = stage.start()
    settle()
    stage.session.stop(Ending.EVICTED)
    running.get()
    assert stage.record.end == "evicted"
    assert not stage.session.runtime.metrics.failures


def test_one_that_is_ended_in_its_request_is_not_said_to_be_malformed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A door may take the end of its client for a mistake."""
    stage = Stage()

    def greeting() -> None:
        stage.session.stop(Ending.EVICTED)
        raise ProtocolError("it ends in the middle of a line")

    stage.door["greeting"] = greeting
    with caplog.at_level(logging.INFO, "proxy"):
        stage.start().get()
    assert stage.record.end == "evicted"
    assert not caplog.records


def test_one_that_is_ended_while_it_is_accepted_is_not_relayed() -> None:
    stage = Stage()
    stage.door["accepting"] = lambda: stage.session.stop(Ending.EVICTED)
    stage.start().get()
    assert stage.record.end == "evicted"
    with pytest.raises(ConnectionResetError):
        stage.way.target.recv(1)


def test_ending_what_has_not_begun_does_no_harm() -> None:
    Stage().session.stop(Ending.STOPPED)


def test_a_session_that_is_killed_is_accounted_for_and_closes_both_sides() -> None:
    stage = Stage()
    running = stage.start()
    running.kill()
    assert stage.record.end == "stopped"
    with pytest.raises(ConnectionResetError):
        stage.client.recv(1)
    with pytest.raises(ConnectionResetError):
        stage.way.target.recv(1)


# -- before the request is complete


def test_a_malformed_request_is_refused_and_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(door={"greeting": fails(ProtocolError("a bad version"))})
    with caplog.at_level(logging.INFO, "proxy"):
        assert stage.refused() == b"no"
    assert stage.story == ["greet", "refuse MALFORMED"]
    assert [each.getMessage() for each in caplog.records] == ["socks 192.0.2.1:50000: a bad version"]
    assert (stage.record.end, stage.record.target, stage.record.user) == ("malformed: a bad version", "", "")


def test_a_proxy_that_asks_for_a_sign_of_life_is_answered_and_nothing_is_told_or_counted_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage(door={"greeting": fails(answer_to_question("no target"))})
    with caplog.at_level(logging.INFO, "proxy"):
        assert stage.refused() == b"no"
    assert stage.story == ["greet", "refuse MALFORMED"]
    assert not caplog.records
    assert not stage.log.records
    assert not stage.session.runtime.metrics.failures


def test_a_request_that_is_understood_and_not_served_is_called_refused() -> None:
    """Case 358."""
    stage = Stage(door={"greeting": fails(ProtocolError("BIND", Failure.UNSUPPORTED_COMMAND))})
    stage.refused()
    assert stage.record.end == "refused: BIND"


def test_different_errors_of_one_client_are_different_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """And the same ones are the same, whatever port they come from."""
    with caplog.at_level(logging.INFO, "proxy"):
        for error, listener in [("bad version", "socks"), ("bad name", "socks"), ("bad name", "web")] * 2:
            stage = Stage(door={"greeting": fails(ProtocolError(error))}, config={"name": listener})
            stage.refused()
    about = [each.__dict__["collapse"] for each in caplog.records]
    assert len(set(about)) == 3
    assert about[:3] == about[3:]
    assert {who for who, _ in about} == {"192.0.2.1"}


def test_a_failed_login_has_a_fixed_form(caplog: pytest.LogCaptureFixture) -> None:
    """DESIGN 1.7: so that fail2ban can match it."""
    stage = Stage(door={"greeting": fails(AuthError("alice"))})
    assert stage.refused() == b"no"
    assert stage.story == ["greet", "refuse CREDENTIALS"]
    assert (stage.record.end, stage.record.user) == ("login refused", "")  # nobody is logged in
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert line.getMessage() == "authentication failed: client=192.0.2.1 user=alice listener=socks"


def test_a_users_name_cannot_forge_a_failed_login(caplog: pytest.LogCaptureFixture) -> None:
    name = "eve listener=socks\nauthentication failed: client=203.0.113.9 user=x"
    Stage(door={"greeting": fails(AuthError(name))}).refused()
    (line,) = caplog.records
    said = line.getMessage()
    assert said.startswith('authentication failed: client=192.0.2.1 user="eve ')
    assert said.endswith('" listener=socks')
    assert "\n" not in said


def test_failed_logins_are_never_collapsed(caplog: pytest.LogCaptureFixture) -> None:
    """fail2ban counts them."""
    for _ in range(5):
        Stage(door={"greeting": fails(AuthError("alice"))}).refused()
    assert len(caplog.records) == 5
    assert not any(hasattr(each, "collapse") for each in caplog.records)


def test_a_client_that_is_too_slow_is_closed_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """CASES A9, A35, A36; and if it has said nothing, no word is lost about it either."""
    stage = Stage(door={"greeting": forever}, config={"handshake_timeout": 0.05})
    with caplog.at_level(logging.INFO, "proxy"):
        running = stage.start()
        assert stage.client_hears() == b""
        running.get()
    assert stage.story == ["greet"]
    assert not stage.log.records
    assert not caplog.records
    assert not stage.session.runtime.metrics.failures


def test_a_client_that_stops_in_the_middle_of_its_request_is_accounted_for() -> None:
    """Case 358."""
    stage = Stage(config={"handshake_timeout": 0.3})
    stage.door["greeting"] = stage.hears(2)
    stage.client.sendall(b"\x05")
    running = stage.start()
    assert stage.client_hears() == b""
    running.get()
    assert stage.record.end == "handshake timed out"


def test_a_client_that_leaves_in_the_middle_of_its_request_is_accounted_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Case 358."""
    stage = Stage()
    stage.door["greeting"] = stage.hears(2)
    stage.client.sendall(b"\x05")
    stage.client.close()
    with caplog.at_level(logging.INFO, "proxy"):
        stage.start().get()
    assert stage.record.end == "client left"
    assert stage.session.runtime.metrics.failures == {("handshake", "client left"): 1}
    assert not caplog.records


@pytest.mark.parametrize("leave", [lambda client: client.close(), reset], ids=["end", "reset"])
def test_a_client_that_leaves_without_a_byte_is_somebodys_health_check(
    caplog: pytest.LogCaptureFixture, leave: Callable[[Any], None]
) -> None:
    """Case 361: such as a load balancer's, every other second."""
    stage = Stage()
    stage.door["greeting"] = stage.hears(2)
    leave(stage.client)
    with caplog.at_level(logging.INFO, "proxy"):
        stage.start().get()
    assert stage.story == ["greet"]
    assert not caplog.records
    assert not stage.log.records
    assert not stage.session.runtime.metrics.failures


# -- on the way to the target


@pytest.mark.parametrize("error", [
    DialError("target.example:443: connection refused", Failure.REFUSED),
    UpstreamError("upstream home: closed the connection"),
])  # fmt: skip
def test_a_failure_is_passed_on_and_accounted_for(error: DialError) -> None:
    stage = Stage(dialling=fails(error))
    assert stage.refused() == b"no"
    assert stage.story == ["greet", f"dial {TARGET}", f"refuse {error.failure.name}"]
    assert stage.record.end == f"refused: {error}"
    assert (stage.record.sent, stage.record.received) == (0, 0)
    assert stage.record.upstream == "way"


def test_a_refusal_names_the_upstream_that_gave_it() -> None:
    """Case 358."""
    error = DialError("target.example:443: connection refused", Failure.REFUSED)
    error.via = "second"
    stage = Stage(dialling=fails(error))
    stage.refused()
    assert stage.record.upstream == "second"


def test_the_whole_way_has_one_timeout() -> None:
    stage = Stage(dialling=forever, config={"timeout": 0.05})
    stage.refused()
    assert stage.story[-1] == "refuse TIMED_OUT"
    assert "timed out" in stage.record.end


def test_a_client_that_leaves_is_not_dialled_for_any_longer() -> None:
    """CASES C89."""
    stage = Stage(dialling=forever)
    running = stage.start()
    reset(stage.client)
    running.get()
    assert stage.record.end == "client left"
    assert stage.story == ["greet", f"dial {TARGET}"]


def test_a_door_decides_how_long_a_half_closed_client_is_waited_for() -> None:
    """CASES A37."""
    stage = Stage(dialling=lambda: gevent.sleep(0.4), door={"half_close_grace": 5.0})
    running = stage.start()
    stage.client.shutdown(1)
    stage.way.target.sendall(b"banner")
    assert stage.client.recv(10) == b"banner"
    stage.way.target.shutdown(1)
    running.get()
    impatient = Stage(dialling=forever, door={"half_close_grace": 0.0})
    running = impatient.start()
    impatient.client.shutdown(1)
    running.get()
    assert impatient.record.end == "client left"


def test_a_client_that_cannot_be_told_of_success_costs_the_target_no_more() -> None:
    stage = Stage(door={"accepting": fails(BrokenPipeError(32, "Broken pipe"))})
    stage.start().get()
    assert stage.record.end.startswith("client: ")
    with pytest.raises(ConnectionResetError):
        stage.way.target.recv(1)
    assert stage.is_over()


def test_a_client_that_does_not_read_its_refusal_is_not_waited_for() -> None:
    error = DialError("no", Failure.REFUSED)
    stage = Stage(dialling=fails(error), door={"refusing": forever})
    stage.start().get()
    assert stage.is_over()


def test_there_is_no_place() -> None:
    """CASES G180, ``overload = refuse``: the client is heard out, so that the answer has a place."""
    stage = Stage()
    assert stage.refused(full=True) == b"no"
    assert stage.story == ["greet", "refuse LIMIT"]
    assert stage.record.upstream == ""
    assert stage.record.end.startswith("refused: ")


# -- what nobody thought of


@pytest.mark.parametrize("where", ["greeting", "dialling", "accepting"])
def test_a_bug_ends_one_session_in_one_line(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """CASES G191."""
    bug = fails(ValueError("a bug"))
    stage = Stage(dialling=bug) if where == "dialling" else Stage(door={where: bug})
    with caplog.at_level(logging.INFO, "proxy"):
        assert stage.refused() == (b"" if where == "greeting" else b"no")
    (line,) = caplog.records
    assert line.levelname == "ERROR"
    assert line.getMessage() == "socks 192.0.2.1:50000: internal error: ValueError: a bug"
    assert not line.exc_info
    assert stage.record.end == "internal error"


@pytest.mark.parametrize("where", ["greeting", "dialling", "accepting"])
def test_who_finds_no_memory_is_told_that_there_is_no_room(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a shortage of ours, and no bug."""
    monkeypatch.setattr(session, "BALLAST", Ballast())
    none = fails(MemoryError())
    stage = Stage(dialling=none) if where == "dialling" else Stage(door={where: none})
    assert stage.refused() == (b"" if where == "greeting" else b"no")
    assert ("refuse LIMIT" in stage.story) is (where != "greeting")
    assert stage.record.end == "no memory"
    assert all("no memory is left" in each.getMessage() for each in caplog.records)


def test_a_log_that_fails_is_no_reason_to_leave_a_connection_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(dialling=fails(DialError("no", Failure.REFUSED)))
    monkeypatch.setattr(stage.log, "add", lambda record: fails(OSError("disk full"))())
    assert stage.refused() == b"no"


def test_a_bug_between_accepting_and_relaying_leaves_neither_side_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is the client refused, in the middle of what it takes for its target's answer."""
    stage = Stage()
    monkeypatch.setattr(DataForwarder, "relay", lambda *_: fails(RuntimeError("a bug"))())
    stage.run()
    for end in (stage.client, stage.way.target):
        with pytest.raises(ConnectionResetError):
            end.recv(1)


# -- logging in


def test_a_user_is_known_by_name_and_password() -> None:
    runtime = Stage().session.runtime
    assert runtime.log_in(b"alice", b"wonderland") == "alice"
    with pytest.raises(AuthError) as refused:
        runtime.log_in(b"alice", b"other")
    assert refused.value.user == "alice"


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"j\xe4rgen", "user=j\u00e4rgen "),  # Latin-1
        (b"j\xc3\xa4rgen", "user=j\u00e4rgen "),  # UTF-8
        (b"\xff\xfe", "user=\u00ff\u00fe "),
        (b"a\x85b", r'user="a\u0085b" '),  # a control character, in Latin-1
    ],
)
def test_a_name_of_any_bytes_is_one_line_that_shows_each_once(
    caplog: pytest.LogCaptureFixture, sent: bytes, shown: str
) -> None:
    """DESIGN 1.4: any bytes are a user name. Case 347."""
    with pytest.raises(AuthError) as raised:
        Stage().session.runtime.log_in(sent, b"x")
    Stage(door={"greeting": fails(raised.value)}).refused()
    (line,) = caplog.records
    assert line.getMessage() == f"authentication failed: client=192.0.2.1 {shown}listener=socks"


def test_a_user_who_logs_in_with_latin_1_is_the_user_of_that_name() -> None:
    """Case 347: also for what changes with the users."""
    users = Authenticator({"j\u00e4rgen": "p\u00e4ss"})
    runtime = replace(Stage().session.runtime, authenticator=users)
    assert runtime.log_in(b"j\xe4rgen", b"p\xe4ss") == "j\u00e4rgen"
