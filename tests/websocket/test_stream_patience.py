"""
What takes its time: keepalive, half-closed tunnels, and peers that do not answer (CASES D117 to D119, D124).

A scenario waits for seconds and does nothing meanwhile, so all of them run at once, each in a thread
and a tunnel of its own; the tests ask one after the other how they went.
"""

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import gevent
import pytest

from proxy.net.sock import LoopSocket
from proxy.relaying.stream import Ending, TcpStream
from proxy.websocket import stream as module
from proxy.websocket.stream import WebSocketStream
from tests.integration.programs import Proxy, socks_door, upstream, web_door
from tests.websocket.tunnels import assert_relays, chain, recv_masked, sending, tunnel
from tests.wire.greenlets import patience, tcp_pair
from tests.wire.sockets import TIMEOUT, Door, is_silent, read_exact, read_rest, read_to_end, reset
from tests.wire.targets import Listener
from tests.wire.waits import Stopwatch
from tests.wire.websocket import BINARY, CLOSE, FIN, PING, PONG, close_payload, frame, header

MEBIBYTE = 1 << 20
PING_INTERVAL = 0.5  # seconds, where a peer is silent until it is taken for dead
ANSWERED = 2.0  # seconds, where a peer answers, and may be kept from running for twice as long
LIFETIME = 4 * ANSWERED  # twice what a peer without a sign of life has
SLACK = 20.0  # seconds by which a busy machine may be late

# The program with another patience. Each place is what would otherwise take two, ten and five seconds.
RETIMED = """
import sys
from proxy import __main__ as program
from proxy.relaying import relay
from proxy.websocket import stream
relay.LINGER, relay.LINGER_AT_MOST, stream.CLOSE_TIMEOUT = {linger}, {linger_at_most}, {close}
sys.exit(program.main())
"""
AT_MOST = 3.0  # seconds


class Bench(NamedTuple):
    """The doors of a running program."""

    web: Door
    patient: Door  # of a program that waits long for what a client still says, and for the end
    hasty: Door  # of one that gives it ``AT_MOST``, however much is still said
    pinging: Door
    answered: Door  # pings with time for an answer
    socks: Door  # goes out through a WebSocket proxy, and pings it
    socks_answered: Door  # the same, with time for an answer
    behind: Listener  # that proxy


Scenario = Callable[[Bench], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(play: Scenario) -> Scenario:
    """Note a scenario."""
    SCENARIOS[play.__name__] = play
    return play


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    short, long = f"{PING_INTERVAL}s", f"{ANSWERED}s"
    with Listener() as behind, ExitStack() as stack:
        door = ("127.0.0.1", behind.port)
        config = {
            "listeners": {
                "web": web_door(ping_interval=0),
                "pinging": web_door(ping_interval=short),
                "answered": web_door(ping_interval=long),
                "socks": socks_door(upstream="behind"),
                "socks_answered": socks_door(upstream="behind_answered"),
            },
            "upstreams": {
                "behind": upstream("websocket", door, ping_interval=short),
                "behind_answered": upstream("websocket", door, ping_interval=long),
            },
        }
        doors = stack.enter_context(Proxy(config)).door
        patient = stack.enter_context(Retimed(linger=6.0, linger_at_most=600.0, close=600.0)).door("web")
        hasty = stack.enter_context(Retimed(linger=600.0, linger_at_most=AT_MOST, close=5.0)).door("web")
        named = {name: doors(name) for name in config["listeners"]}
        yield Bench(**named, patient=patient, hasty=hasty, behind=behind)


class Retimed(Proxy):
    """A program with one door, and another patience."""

    def __init__(self, **seconds: float) -> None:
        super().__init__({"listeners": {"web": web_door(ping_interval=0)}})
        at = self.command.index("-m")
        self.command[at : at + 2] = ["-c", RETIMED.format(**seconds)]


@pytest.fixture(scope="module")
def playing(bench: Bench) -> Iterator[dict[str, "Future[None]"]]:
    """Start all scenarios."""
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {name: pool.submit(play, bench) for name, play in SCENARIOS.items()}


# -- Close


@scenario
def the_server_closes_tcp_first(bench: Bench) -> None:
    """CASES D117; RFC 6455, section 7.1.1."""
    with tunnel(bench.web) as (client, _target):
        client.send(CLOSE, close_payload(1000))
        assert client.recv_close() == 1000  # though the target keeps its side open
        assert client.read_rest() == (b"", "FIN")


@scenario
def the_server_closes_tcp_first_when_the_target_has_ended(bench: Bench) -> None:
    """CASES D117."""
    with tunnel(bench.patient) as (client, target):
        target.close()
        assert client.recv_close() == 1000
        assert client.is_silent(0.5)  # it waits for our Close
        client.send(CLOSE, close_payload(1000))
        assert client.read_rest() == (b"", "FIN")


@scenario
def a_client_that_never_answers_our_close_is_left(bench: Bench) -> None:
    """CASES D118."""
    with tunnel(bench.web) as (client, target):
        watch = Stopwatch()
        reset(target)
        assert client.recv_close() == 1011
        client.read_rest()
        assert 4.5 < watch.seconds < 5 + SLACK


@scenario
def a_client_that_goes_on_talking_instead_of_answering_our_close_is_left(bench: Bench) -> None:
    """CASES D118."""
    with tunnel(bench.web) as (client, target):
        reset(target)
        assert client.recv_close() == 1011
        watch = Stopwatch()
        with suppress(ConnectionError):
            while watch.seconds < 20:
                client.send(BINARY, b"x" * 1000)
                is_silent(client.sock, 0.05)
        assert watch.seconds < 6 + SLACK


@scenario
def the_target_does_not_wait_for_the_goodbye_of_the_client(bench: Bench) -> None:
    """CASES D118."""
    with tunnel(bench.patient) as (client, target):
        target.shutdown(socket.SHUT_WR)
        assert client.recv_close() == 1000
        assert read_rest(target) == (b"", "FIN")


# -- half-close


@scenario
def between_peers_that_agreed_a_half_closed_tunnel_has_time(bench: Bench) -> None:
    """CASES D119."""
    with tunnel(bench.web, half_close=True) as (client, target):
        client.send(BINARY)
        assert read_rest(target) == (b"", "FIN")
        assert client.is_silent(3.0)  # longer than a peer that agreed on nothing is given
        target.sendall(b"answer")
        assert client.recv_data(6) == b"answer"


@scenario
def without_an_agreement_the_other_direction_may_finish(bench: Bench) -> None:
    """CASES D119."""
    with tunnel(bench.patient) as (client, target):
        target.shutdown(socket.SHUT_WR)
        for piece in (b"some", b"more"):
            assert client.is_silent(0.3)  # no empty message, and no Close yet
            client.send(BINARY, piece)
            assert read_exact(target, 4) == piece
        assert client.recv_close() == 1000
        client.send(CLOSE, close_payload(1000))
        assert read_rest(target) == (b"", "FIN")


@scenario
def a_target_that_never_ends_is_not_waited_for_long(bench: Bench) -> None:
    """CASES D119."""
    with tunnel(bench.web) as (client, target):
        client.send(CLOSE, close_payload(1000))
        watch = Stopwatch()
        target.sendall(b"and on")
        said = client.recv()
        while said.opcode == BINARY:
            with suppress(ConnectionError):  # the Close is then on its way
                target.sendall(b"and on")
            is_silent(target, 0.05)
            said = client.recv()
        assert (said.first, said.payload) == (FIN | CLOSE, close_payload(1000))
        assert watch.seconds < 12 + SLACK


@scenario
def what_a_client_still_sends_when_its_target_has_long_ended_is_not_all(bench: Bench) -> None:
    """Case 391."""
    with tunnel(bench.hasty) as (client, target):
        watch = Stopwatch()
        target.shutdown(socket.SHUT_WR)
        data = b"?"
        with suppress(ConnectionResetError):
            while data:
                client.send(BINARY, b"and on")
                client.wait(0.05)
                data = target.recv(65536)
        assert data, "the target read a clean end"
        assert watch.seconds >= AT_MOST
        assert client.recv_close() == 1011


@scenario
def a_client_that_is_slow_to_read_after_its_close_is_not_deceived(bench: Bench) -> None:
    """CASES D119, D120."""
    down = os.urandom(24 * MEBIBYTE)  # more than fits into the sockets between
    with tunnel(bench.web, receive_buffer=64 * 1024) as (client, target):
        client.send(CLOSE, close_payload(1000))
        assert read_rest(target) == (b"", "FIN")
        with sending(target, down):
            client.wait(3.0)
            received = bytearray()
            with suppress(ConnectionError):  # a frame was cut, which is no deceit
                while (got := client.recv()).opcode == BINARY:
                    received += got.payload
                assert received == down


@scenario
def a_socks_client_that_is_slow_to_read_after_its_end_is_not_deceived(bench: Bench) -> None:
    """CASES D119, D120."""
    down = os.urandom(24 * MEBIBYTE)
    script = frame(FIN | BINARY, down, None) + frame(FIN | CLOSE, close_payload(1000), None)
    with chain(bench.socks, bench.behind) as (client, server):
        client.shutdown(socket.SHUT_WR)
        with sending(server, script):
            server.wait(3.0)
            received, end = read_rest(client)
            assert received == down or end == "reset"


# -- keepalive


@scenario
def an_idle_tunnel_is_pinged(bench: Bench) -> None:
    """CASES D124."""
    with tunnel(bench.pinging) as (client, _target):
        ping = client.recv()
        assert (ping.first, ping.key) == (FIN | PING, None)


def a_silent_client_is_dead(door: Door, *, half_close: bool) -> None:
    watch = Stopwatch()
    with tunnel(door, half_close=half_close) as (client, target):
        assert client.recv().opcode == PING
        assert read_rest(target) == (b"", "reset")
        assert 2 * PING_INTERVAL - 0.1 < watch.seconds < 2 * PING_INTERVAL + SLACK
        client.read_rest()
        assert watch.seconds < 2 * PING_INTERVAL + SLACK


@scenario
def a_client_that_is_silent_for_two_intervals_is_dead(bench: Bench) -> None:
    """CASES D124."""
    a_silent_client_is_dead(bench.pinging, half_close=False)


@scenario
def a_client_that_agreed_on_half_close_and_is_silent_is_dead(bench: Bench) -> None:
    """CASES D124."""
    a_silent_client_is_dead(bench.pinging, half_close=True)


@scenario
def a_client_that_ended_its_direction_and_is_silent_is_dead(bench: Bench) -> None:
    """CASES D124."""
    with tunnel(bench.pinging, half_close=True) as (client, target):
        client.send(BINARY)
        assert read_rest(target) == (b"", "FIN")
        assert client.recv().opcode == PING
        watch = Stopwatch()
        client.read_rest()
        assert watch.seconds < PING_INTERVAL + SLACK


@scenario
def a_client_that_is_slow_to_read_is_not_dead(bench: Bench) -> None:
    """CASES D124."""
    down = bytes(24 * MEBIBYTE)  # more than fits into the sockets between
    with tunnel(bench.answered, receive_buffer=64 * 1024) as (client, target), sending(target, down):
        assert is_silent(target, LIFETIME)
        client.sock.close()


@scenario
def a_client_whose_target_is_slow_to_read_is_not_dead(bench: Bench) -> None:
    """CASES D124."""
    script = header(FIN | BINARY, 24 * MEBIBYTE, bytes(4)) + bytes(24 * MEBIBYTE)
    with tunnel(bench.answered) as (client, target), sending(client, script):
        client.wait(LIFETIME)  # its Pongs would come behind what is not taken
        assert not any(read_exact(target, MEBIBYTE))
        client.sock.close()


@scenario
def no_pings_are_sent_if_none_are_configured(bench: Bench) -> None:
    """CASES D124."""
    with tunnel(bench.web) as (client, target):
        assert client.is_silent(6 * PING_INTERVAL)
        assert_relays(client, target)


@scenario
def a_silent_server_is_pinged_and_then_dead(bench: Bench) -> None:
    """CASES D124."""
    watch = Stopwatch()
    with chain(bench.socks, bench.behind) as (client, server):
        recv_masked(server, FIN | PING)
        assert read_rest(client) == (b"", "reset")
        assert 2 * PING_INTERVAL - 0.1 < watch.seconds < 2 * PING_INTERVAL + SLACK
        server.read_rest()


@scenario
def a_server_that_is_slow_to_read_is_not_dead(bench: Bench) -> None:
    """CASES D124."""
    up = bytes(24 * MEBIBYTE)
    with chain(bench.socks_answered, bench.behind) as (client, server), sending(client, up):
        assert is_silent(client, LIFETIME)
        server.sock.close()


@scenario
def a_server_whose_client_is_slow_to_read_is_not_dead(bench: Bench) -> None:
    """CASES D124."""
    script = frame(FIN | BINARY, bytes(24 * MEBIBYTE), None)
    with chain(bench.socks_answered, bench.behind) as (client, server), sending(server, script):
        server.wait(LIFETIME)
        assert not any(read_exact(client, MEBIBYTE))
        server.sock.close()


@scenario
def while_a_target_takes_nothing_its_client_hears_that_we_live(bench: Bench) -> None:
    """Case 330: it cannot be listened to, so it is not asked (Ping), and need not answer."""
    script = header(FIN | BINARY, 24 * MEBIBYTE, bytes(4)) + bytes(24 * MEBIBYTE)
    with tunnel(bench.pinging) as (client, _target), sending(client, script):
        for _pong in range(3):
            shown = client.recv()
            assert (shown.first, shown.payload) == (FIN | PONG, b"")
        client.sock.close()


@scenario
def while_a_client_takes_nothing_its_server_hears_that_we_live(bench: Bench) -> None:
    """Case 330."""
    script = frame(FIN | BINARY, bytes(24 * MEBIBYTE), None)
    with chain(bench.socks, bench.behind) as (_client, server), sending(server, script):
        for _pong in range(3):
            assert recv_masked(server, FIN | PONG).payload == b""
        server.sock.close()


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_takes_time(playing: dict[str, "Future[None]"], name: str) -> None:
    """CASES D117, D118, D119, D124: each scenario names its own."""
    playing[name].result(2 * TIMEOUT)


# -- in process, where a socket can be made to take nothing


class Full(LoopSocket):
    """A socket whose send buffer has no room."""

    __slots__ = ()

    def send(self, data: Any, flags: int = 0, timeout: object = None) -> int:
        """Take nothing now."""
        raise BlockingIOError


def test_a_cut_that_cannot_be_told_is_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES D120."""
    monkeypatch.setattr(module, "CLOSE_TIMEOUT", 0.05)
    with patience():
        client, server = tcp_pair()
        full = Full(server.family, socket.SOCK_STREAM, fileno=server.detach())
        stream = WebSocketStream(TcpStream(full), server=True, half_close=False, ping_interval=0)
        stream.begin_close(Ending.CUT)
        stream.finish_close()
        with pytest.raises(ConnectionResetError):
            read_to_end(client)
        client.close()


def test_a_goodbye_that_is_interrupted_is_no_reset() -> None:
    """A server that stops does not wait for all answers; what it said arrives all the same."""
    with patience():
        client, server = tcp_pair()
        stream = WebSocketStream(TcpStream(server), server=True, half_close=False, ping_interval=0)
        stream.begin_close(Ending.STOPPED)
        closing = gevent.spawn(stream.finish_close)
        gevent.sleep(0.01)
        closing.kill()
        assert client.recv(4) == b"\x88\x17\x03\xe9"  # Close, 23 bytes, 1001
        read_to_end(client)
        client.close()
