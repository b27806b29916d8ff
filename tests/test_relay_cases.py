"""
What must hold while bytes flow (CASES, group E), at every door of a running program.

The times of the cases are scaled down; what they show does not depend on them.
"""

import contextlib
import hashlib
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.doors import KIB, MIB, WAYS, Doors, cut_of, how_it_ends
from tests.wire import clients
from tests.wire.clients import HttpRefused, SocksRefused, Tunnel
from tests.wire.processes import ESTABLISHED, memory_of, sockets_of
from tests.wire.sockets import TIMEOUT, free_port, read_exact, read_to_end, reset
from tests.wire.targets import (
    Target,
    answer_after_end,
    banner,
    blackhole,
    close_after_accept,
    echo,
    end_then_read,
    exchange,
    reset_after,
)
from tests.wire.waits import stands_still, wait_until

IDLE = 1.0  # seconds: long enough for a busy machine to say a byte in between

every_way = pytest.mark.parametrize("way", WAYS)
most_ways = pytest.mark.parametrize("way", ["socks5", "websocket", "chain", "tls-chain"])


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    """Run one program for all of the tests; at the end it holds nothing any more."""
    with Doors(timeout="20s", log_level="warning") as doors:
        yield doors
        doors.wait_until_empty()


@pytest.fixture(scope="module")
def impatient() -> Iterator[Doors]:
    """Run one that ends what is idle."""
    with Doors(idle_timeout=f"{IDLE}s", log_level="warning") as doors:
        yield doors
        doors.wait_until_empty()


def in_every_way_at_once(check: Callable[[str], None]) -> None:
    """Do what mostly waits for all ways in the same time."""
    with ThreadPoolExecutor(len(WAYS)) as threads:
        list(threads.map(check, WAYS))


# -- half-close


@every_way
def test_a_client_that_half_closes_still_gets_its_answer(doors: Doors, way: str) -> None:
    """CASES E126."""
    answer = os.urandom(MIB)
    with Target(answer_after_end(answer)) as target:
        tunnel = doors.open(way, target.port)
        tunnel.sendall(b"question")
        tunnel.end()
        assert read_to_end(tunnel) == answer
        assert target.result() == b"question"
        tunnel.close()


@every_way
def test_a_target_that_half_closes_still_gets_the_rest(doors: Doors, way: str) -> None:
    """CASES E127."""
    rest = os.urandom(MIB)
    with Target(end_then_read) as target:
        tunnel = doors.open(way, target.port)
        assert tunnel.recv(1) == b""
        tunnel.sendall(rest)
        tunnel.end()
        assert target.result() == (MIB, hashlib.sha256(rest).hexdigest())
        tunnel.close()


def test_a_websocket_client_that_knows_no_half_close_gets_a_moment_for_the_rest(doors: Doors) -> None:
    """CASES E127: then it gets Close 1000, since that is all it understands."""
    with Target(end_then_read) as target:
        tunnel = doors.open("websocket", target.port, half_close=False)
        tunnel.sendall(b"the rest")
        started = time.monotonic()
        assert how_it_ends(tunnel) == "end"
        assert time.monotonic() - started > 0.2
        tunnel.close()
        assert target.result()[0] == len(b"the rest")


# -- resets


@every_way
def test_a_client_that_resets_while_it_receives_is_taken_from_the_target(doors: Doors, way: str) -> None:
    """CASES E130."""
    with Target(blast_until_it_breaks) as target:
        tunnel = doors.open(way, target.port)
        read_exact(tunnel, 100 * KIB)
        reset(tunnel.sock)
        target.result()


def blast_until_it_breaks(connection: socket.socket) -> int:
    """Send all that is taken; give how much it was."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
    sent = 0
    with contextlib.suppress(ConnectionError):
        while True:
            sent += connection.send(bytes(256 * KIB))
    return sent


@every_way
def test_a_reset_by_the_client_is_no_clean_end_to_the_target(doors: Doors, way: str) -> None:
    """CASES E130: a target that reads must not take what came for all of it."""
    with Target(lambda connection: read_to_end(connection)) as target:
        tunnel = doors.open(way, target.port)
        tunnel.sendall(b"half of it")
        reset(tunnel.sock)
        with pytest.raises(ConnectionResetError):
            target.result()


@most_ways
def test_a_client_that_resets_is_missed_although_the_target_takes_nothing(doors: Doors, way: str) -> None:
    """CASES E130: whoever cannot send must still notice that there is nobody to send for."""

    def never_read(connection: socket.socket) -> int:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        watch = select.poll()
        watch.register(connection, select.POLLHUP | select.POLLERR)
        return len(watch.poll(20_000))

    with Target(never_read) as target:
        tunnel = doors.open(way, target.port)
        tunnel.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            tunnel.sendall(bytes(256 * MIB))
        reset(tunnel.sock)
        assert target.result() == 1


@every_way
def test_a_reset_by_the_target_is_no_clean_end_to_the_client(doors: Doors, way: str) -> None:
    """CASES E131."""
    with Target(reset_after(b"")) as target:
        tunnel = doors.open(way, target.port)
        tunnel.sendall(b"x")
        assert how_it_ends(tunnel) in cut_of(way)
        tunnel.close()


@every_way
def test_a_target_that_resets_at_once_is_never_a_clean_end(doors: Doors, way: str) -> None:
    """CASES E143: refused or cut, as the race goes."""
    with Target(reset) as target:
        for _ in range(20):
            try:
                tunnel = doors.open(way, target.port)
            except (SocksRefused, HttpRefused):
                continue
            assert how_it_ends(tunnel) in cut_of(way)
            tunnel.close()


@every_way
@pytest.mark.parametrize("reads", ["at once", "when sending failed", "slowly"])
def test_what_a_target_said_before_it_refused_the_rest_is_heard(doors: Doors, way: str, reads: str) -> None:
    """Case 346: a server that has heard enough answers and closes; its reset follows the answer at once."""
    upload = bytes(20 * MIB)
    answers = [os.urandom(1 * KIB), os.urandom(60 * KIB)]

    def refuse_the_rest(connection: socket.socket) -> None:
        read_exact(connection, 10 * KIB)
        connection.sendall(answers[0])

    with Target(refuse_the_rest) as target:
        for _ in range(10):
            answers.reverse()
            tunnel = doors.open(way, target.port)
            sender = threading.Thread(target=send_until_it_breaks, args=(tunnel, upload))
            sender.start()
            if reads == "when sending failed":
                sender.join(TIMEOUT)
            heard = b""
            with contextlib.suppress(ConnectionError):
                while data := tunnel.recv(1000 if reads == "slowly" else MIB):
                    heard += data
                    if reads == "slowly" and len(heard) % 10_000 < 1000:
                        time.sleep(0.002)
            assert heard == answers[0]
            sender.join(TIMEOUT)
            assert not sender.is_alive()
            tunnel.close()


def send_until_it_breaks(tunnel: Tunnel, data: bytes) -> None:
    """Send as much as is taken."""
    with contextlib.suppress(OSError):
        tunnel.sendall(data)


@every_way
def test_a_target_that_closes_at_once_was_reached(doors: Doors, way: str) -> None:
    """CASES E141: success, and then the end."""
    with Target(close_after_accept) as target:
        for _ in range(20):
            tunnel = doors.open(way, target.port)
            assert how_it_ends(tunnel) == "end"
            tunnel.close()


# -- backpressure


@most_ways
def test_a_client_that_does_not_read_holds_back_the_target_and_not_in_our_memory(
    doors: Doors, way: str
) -> None:
    """CASES E132."""
    total = 256 * MIB  # several times what the kernel takes into the buffers of three connections
    digest = hashlib.sha256()
    progress = [0]

    def blast(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * KIB)
        pattern = random.Random(way).randbytes(256 * KIB)
        while progress[0] < total:
            count = connection.send(pattern[: total - progress[0]])
            digest.update(pattern[:count])
            progress[0] += count

    with Target(blast) as target:
        warm_up(doors, way)
        before = doors.memory
        tunnel = doors.open(way, target.port)
        stands_still(lambda: progress[0], seconds=0.6)
        taken = progress[0]
        grown = doors.memory - before
        assert taken < total // 2
        assert grown <= 512 * KIB
        received = hashlib.sha256()
        left = total
        while left:
            data = tunnel.recv(MIB)
            assert data
            received.update(data)
            left -= len(data)
        target.result()
        assert received.digest() == digest.digest()
        tunnel.close()


def warm_up(doors: Doors, way: str) -> None:
    """Let the program meet everything once that it allocates only once."""
    data = bytes(2 * MIB)
    with Target(exchange(data, len(data))) as target:
        for _ in range(2):
            tunnel = doors.open(way, target.port)
            sender = threading.Thread(target=tunnel.sendall, args=(data,))
            sender.start()
            read_exact(tunnel, len(data))
            sender.join()
            tunnel.close()
    doors.wait_until_empty()


@most_ways
def test_hundreds_of_stalled_tunnels_hold_little_memory(doors: Doors, way: str) -> None:
    """CASES E133: each may hold one buffer a hop, and no more however long it stalls."""
    count, hops = (60, 2) if "chain" in way else (200, 1)
    # A hop with TLS holds the buffer and what OpenSSL keeps itself: 88 to 116 KiB, by release and heap.
    each = 150 * KIB if "tls" in way else 100 * KIB
    with Target(blast_until_it_breaks) as target, contextlib.ExitStack() as stack:
        warm_up(doors, way)
        stack.callback(doors.wait_until_empty)
        before = doors.memory
        for _ in range(count):
            stack.callback(reset, doors.open(way, target.port).sock)
        stands_still(lambda: doors.memory)
        assert doors.memory - before < count * hops * each


# -- idle


def test_an_idle_tunnel_is_closed_and_any_byte_either_way_keeps_it(impatient: Doors) -> None:
    """CASES E134: and nobody takes it for the end of the data."""

    def check(way: str) -> None:
        with Target(answer_late) as target:
            tunnel = impatient.open(way, target.port)
            for _ in range(2):
                time.sleep(0.6 * IDLE)
                quiet = time.monotonic()
                tunnel.sendall(b"up")
                read_exact(tunnel, 1)
            seen = how_it_ends(tunnel)
            assert time.monotonic() - quiet > IDLE
            assert seen in idle_end_of(way)
            with pytest.raises(ConnectionResetError):
                target.result()
            tunnel.close()

    in_every_way_at_once(check)


def idle_end_of(way: str) -> set[str]:
    """Tell what a client sees when its tunnel was idle; of two doors in a row, either may be the first."""
    told = {"close 1001"} if WAYS[way] is clients.websocket else {"reset"}
    return told | cut_of(way) if "chain" in way else told


def answer_late(connection: socket.socket) -> None:
    """Answer each message with a byte, when more than half of the idle time is over."""
    while connection.recv(100):
        time.sleep(0.6 * IDLE)
        connection.sendall(b"d")


def test_a_client_that_never_reads_is_closed_when_nothing_could_be_written(impatient: Doors) -> None:
    """CASES E135."""

    def check(way: str) -> None:
        with Target(blast_until_it_breaks) as target:
            tunnel = impatient.open(way, target.port)
            started = time.monotonic()
            assert target.result() > 0
            assert time.monotonic() - started > IDLE / 2
            impatient.wait_until_empty()
            tunnel.close()

    in_every_way_at_once(check)


# -- much, and little


@pytest.mark.parametrize(
    ("way", "size"),
    [("socks5", 128 * MIB), ("websocket", 16 * MIB), ("chain", 64 * MIB), ("tls-chain", 48 * MIB)],
)
def test_a_long_stream_each_way_at_once_arrives_as_sent_in_constant_memory(
    doors: Doors, way: str, size: int
) -> None:
    """CASES E136."""
    data = random.Random(way).randbytes(MIB) * (size // MIB)
    digest = hashlib.sha256(data).hexdigest()
    with Target(exchange(data, size)) as target:
        warm_up(doors, way)
        before = doors.memory
        tunnel = doors.open(way, target.port)
        sender = threading.Thread(target=tunnel.sendall, args=(data,), daemon=True)
        sender.start()
        received, highest = hashlib.sha256(), before
        for _ in range(size // MIB):
            received.update(read_exact(tunnel, MIB))
            highest = max(highest, doors.memory)
        sender.join(20)
        assert received.hexdigest() == digest
        assert target.result() == digest
        assert highest - before < 4 * MIB
        tunnel.close()


@every_way
def test_small_messages_are_not_held_back(doors: Doors, way: str) -> None:
    """CASES E137: with Nagle's algorithm on any leg, the second byte waits 40 ms for an ACK of the first."""
    delay = 1.0
    with Target(answer_each_pair) as target:
        tunnel = doors.open(way, target.port)
        for _ in range(100):
            tunnel.sendall(b"a")
            time.sleep(0.005)  # so that the second travels by itself
            started = time.monotonic()
            tunnel.sendall(b"b")
            assert read_exact(tunnel, 2) == b"ok"
            delay = time.monotonic() - started
            if delay < 0.02:  # of a machine that has other things to do, at least one
                break
        tunnel.close()
    assert delay < 0.02


def answer_each_pair(connection: socket.socket) -> None:
    """Answer two bytes with two, sent one by one: nothing acknowledges the first of them early."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(ConnectionError):
        while read_exact(connection, 2):
            connection.sendall(b"o")
            time.sleep(0.005)
            connection.sendall(b"k")


def test_a_trickle_is_not_taken_for_silence(impatient: Doors) -> None:
    """CASES E137: a byte now and then, for three times the idle timeout."""

    def check(way: str) -> None:
        with Target(echo) as target:
            tunnel = impatient.open(way, target.port)
            started = time.monotonic()
            while time.monotonic() - started < 3 * IDLE:
                tunnel.sendall(b"x")
                assert read_exact(tunnel, 1) == b"x"
                time.sleep(0.1)
            tunnel.close()

    in_every_way_at_once(check)


@every_way
def test_both_sides_may_close_at_the_same_time(doors: Doors, way: str) -> None:
    """CASES E140: nobody sees more than an end, and nothing is left behind."""
    rounds = 100
    meet = threading.Barrier(2, timeout=20)

    def close_with_the_client(connection: socket.socket) -> bytes:
        meet.wait()
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1)

    with Target(close_with_the_client) as target:
        for _ in range(rounds):
            tunnel = doors.open(way, target.port)
            meet.wait()
            tunnel.end()
            assert how_it_ends(tunnel) == "end"
            assert target.result() == b""
            tunnel.close()
    doors.wait_until_empty()


@every_way
def test_a_target_that_speaks_first_is_heard(doors: Doors, way: str) -> None:
    """CASES E142."""
    greeting = b"SSH-2.0-OpenSSH_9.9\r\n"  # RFC 4253, section 4.2
    with Target(banner(greeting)) as target:
        tunnel = doors.open(way, target.port)
        assert read_exact(tunnel, len(greeting)) == greeting
        tunnel.close()


# -- causes; tests.integration.test_truth has all of them


def test_the_true_cause_comes_through(doors: Doors) -> None:
    """CASES E144, E145: refused and timed out."""

    def check(way: str) -> None:
        assert refusal(doors, way, free_port()) in ({"05"}, {"502", "connection_refused"})
        assert refusal(hasty, way, silent) in ({"06"}, {"504", "connection_timeout"})

    with blackhole() as silent, Doors(timeout="1s") as hasty:
        in_every_way_at_once(check)


def refusal(doors: Doors, way: str, port: int) -> set[str]:
    """Connect, and tell what the refusal says: a reply, or a status and the error of Proxy-Status."""
    try:
        doors.open(way, port).close()
    except SocksRefused as refused:
        return {f"{refused.reply:02x}"}
    except HttpRefused as refused:
        return {str(refused.status), refused.proxy_error}
    return {"connected"}


STUB = """
from gevent import monkey
monkey.patch_all()
import json, os, socket, sys
from proxy.net import lookup
names = json.loads(os.environ["NAMES"])
real = lookup._getaddrinfo
def stub(host, family):
    return [info for ip in names.get(host, [host]) for info in real(ip, family)]
lookup._getaddrinfo = stub
from proxy.cli import run
sys.exit(run(sys.argv[1:]))
"""


class WithNames(Doors):
    """A node whose machine knows two addresses of ``two.example``."""

    def __init__(self) -> None:
        super().__init__(timeout="20s")
        self.environment["NAMES"] = '{"two.example": ["127.0.0.1", "127.0.0.2"]}'
        at = self.command.index("-m")
        self.command[at : at + 2] = ["-c", STUB]


@pytest.fixture(scope="module")
def with_names() -> Iterator[WithNames]:
    """Run a program with a resolver of its own."""
    with WithNames() as doors:
        yield doors


@pytest.mark.parametrize("first", ["refuses", "is silent"])
@pytest.mark.parametrize("way", ["socks5", "chain"])
def test_the_second_address_of_a_name_is_used_when_the_first_fails(
    with_names: WithNames, way: str, first: str
) -> None:
    """CASES E152."""
    with contextlib.ExitStack() as stack:
        port = free_port()  # at 127.0.0.1 too
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.settimeout(TIMEOUT)
        listener.bind(("127.0.0.2", port))
        listener.listen()
        if first == "is silent":
            stack.enter_context(blackhole(port=port))
        tunnel = with_names.open(way, port, "two.example")
        connection = stack.enter_context(listener.accept()[0])
        connection.sendall(b"second")
        assert read_exact(tunnel, 6) == b"second"
        tunnel.close()


# -- TCP itself


@pytest.mark.parametrize("way", ["socks5", "chain"])
def test_urgent_data_does_no_harm(doors: Doors, way: str) -> None:
    """CASES E153: the urgent byte may get lost, as TCP has it; the stream goes on."""
    with Target(echo) as target:
        tunnel = doors.open(way, target.port)
        tunnel.sendall(b"before")
        assert read_exact(tunnel, 6) == b"before"
        tunnel.sock.send(b"!", socket.MSG_OOB)
        tunnel.sendall(b"after")
        heard = b""
        while not heard.endswith(b"after"):
            heard += read_exact(tunnel, 1)
        assert heard in (b"after", b"!after")
        tunnel.close()


@every_way
def test_urgent_data_from_the_target_does_no_harm(doors: Doors, way: str) -> None:
    """CASES E153."""

    def shout(connection: socket.socket) -> None:
        connection.sendall(b"before")
        connection.recv(1)
        connection.send(b"!", socket.MSG_OOB)
        connection.sendall(b"after")

    with Target(shout) as target:
        tunnel = doors.open(way, target.port)
        assert read_exact(tunnel, 6) == b"before"
        tunnel.sendall(b"x")
        tunnel.end()
        assert read_to_end(tunnel) in (b"after", b"!after")
        tunnel.close()


@pytest.mark.parametrize("way", ["socks5", "websocket", "chain", "back-chain"])
def test_every_leg_is_asked_for_a_sign_of_life_within_a_minute_or_two(doors: Doors, way: str) -> None:
    """CASES E154, case 343."""
    doors.wait_until_empty()
    with Target(lambda connection: connection.recv(1)) as target:
        tunnel = doors.open(way, target.port)
        legs = 4 if "chain" in way else 2

        def are_watched() -> bool:
            probes = [row.next_probe for row in sockets_of(doors.pid) if row.state == ESTABLISHED]
            return len(probes) == legs and all(0 < probe <= 120 for probe in probes)

        wait_until(are_watched, "every leg to have a keepalive timer")
        tunnel.end()
        target.result()
        tunnel.close()


# -- at random


@every_way
def test_whatever_is_sent_in_whatever_pieces_arrives(doors: Doors, way: str) -> None:
    """CASES E155."""
    transfers = 100
    with Target(echo) as target, ThreadPoolExecutor(8) as threads:
        done = threads.map(lambda seed: transfer(doors, way, target.port, seed), range(transfers))
        assert all(done)
    doors.wait_until_empty()


def transfer(doors: Doors, way: str, port: int, seed: int) -> bool:
    """Send random data in random pieces; tell whether it came back."""
    rng = random.Random(seed)
    data = rng.randbytes(int(2 ** rng.uniform(0, 18)))
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(8)))
    tunnel = doors.open(way, port)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(read_to_end(tunnel)))
    reader.start()
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if start < end:  # an empty message would be the end of the stream
            tunnel.sendall(data[start:end])
    tunnel.end()
    reader.join(TIMEOUT)
    tunnel.close()
    return received == [data]


def test_memory_is_measured_where_it_is_claimed() -> None:
    """The figures above mean something: this process is bigger than nothing."""
    assert memory_of(os.getpid()) > 8 * MIB
