"""
The data path under load: memory stays flat, nothing is lost or left behind, and who is idle costs nothing.

LONG=1 in the environment asks for the full amounts, which take many minutes.
"""

import contextlib
import fcntl
import itertools
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.doors import Doors, how_it_ends
from tests.integration.programs import COMMAND, Proxy, socks_door, upstream, web_door
from tests.websocket.tunnels import chain, sending, tunnel
from tests.wire import websocket as wire
from tests.wire.clients import OPEN, SocksTunnel, Tunnel, WebTunnel
from tests.wire.processes import CLOSE_WAIT, Memory, descriptors_of, memory_of, sockets_of, table
from tests.wire.sockets import connect, read_exact, read_rest, reset
from tests.wire.socks5 import read_socks_reply, socks_greeting, socks_request
from tests.wire.targets import Listener, Target, blackhole, end_then_read, exchange, when
from tests.wire.waits import stands_still, wait_until
from tests.wire.websocket import BINARY, CONTINUATION, FIN, PING, PONG, upgrade_request

KIB, MIB = 1 << 10, 1 << 20
LONG = os.environ.get("LONG") == "1"
EACH_WAY = (1024 if LONG else 192) * MIB
TRANSFERS = 2000 if LONG else 40  # of each combination
CONNECTIONS = 10_000 if LONG else 1000
STALLED = 500
PIPE = 256 * KIB
BIG_PIPES = 4  # so many there may be besides
MOST_PIPES, MOST_WAITING_PIPES = 256 + BIG_PIPES, 32 + BIG_PIPES

pytestmark = pytest.mark.timeout(3600 if LONG else 240)

PLAIN_MODES = [f"{door}-{way}" for door in ("socks5", "websocket") for way in ("direct", "websocket")]
every_mode = pytest.mark.parametrize("mode", PLAIN_MODES)

# The program as ``python -m proxy`` starts it, but it can be asked what it holds.
INSPECTED = """
from gevent import monkey
monkey.patch_all()
import gc, json, os, signal, sys
import gevent, greenlet
from proxy.cli import run
from proxy.sharing.pipes import BIG_PIPES, PIPES

def report():
    gc.collect()
    live = sum(isinstance(one, greenlet.greenlet) and not one.dead for one in gc.get_objects())
    with open("held", "a") as file:
        file.write(json.dumps({"greenlets": live, "lent": PIPES.lent + BIG_PIPES.lent}) + "\\n")

gevent.signal_handler(signal.SIGUSR2, report)
sys.exit(run(sys.argv[1:]))
"""


class Node(Proxy):
    """A program with a listener for each door and way out, all of them its own."""

    def __init__(self, **settings: Any) -> None:
        """Describe it; the settings are those of ``[proxy]``."""
        behind = web_door()
        ways = {"direct": "direct", "websocket": "behind"}
        doors = {"socks5": socks_door, "websocket": web_door}
        listeners = {
            f"{door}-{way}": make(upstream=name) for door, make in doors.items() for way, name in ways.items()
        }
        settings = {"log_level": "warning", "access_log": "off", "reload_interval": 0, **settings}
        upstreams = {"behind": upstream("websocket", ("127.0.0.1", _port(behind)))}
        super().__init__(
            {"proxy": settings, "listeners": {**listeners, "behind": behind}, "upstreams": upstreams}
        )
        self.command = [sys.executable, "-c", INSPECTED, *self.command[len(COMMAND) :]]

    def open(self, mode: str, port: int, **settings: Any) -> Tunnel:
        """Open a tunnel to a target on this machine."""
        return OPEN[mode.partition("-")[0]](self.door(mode), "127.0.0.1", port, **settings)

    @property
    def held(self) -> dict[str, int]:
        """Ask for the number of greenlets that live, and of pipes that are lent."""
        answers = self.directory / "held"
        asked = answers.stat().st_size if answers.exists() else 0
        self.signal(signal.SIGUSR2)
        wait_until(lambda: answers.exists() and answers.stat().st_size > asked, "an answer to SIGUSR2")
        return dict(json.loads(answers.read_text().splitlines()[-1]))

    @property
    def descriptors(self) -> Counter[str]:
        """Count what it has open: pipes, sockets, and the rest."""
        kinds = Counter[str]()
        for _, link in descriptors_of(self.pid):
            kind = link.partition(":")[0]
            kinds[kind if kind in ("pipe", "socket") else "other"] += 1
        return kinds

    @property
    def pipes(self) -> int:
        """How many pipes it has open."""
        return self.descriptors["pipe"] // 2


def _port(listener: Mapping[str, Any]) -> int:
    return int(listener["listen_addr"].rpartition(":")[2])


@pytest.fixture(scope="module", autouse=True)
def _descriptors() -> Iterator[None]:
    """Allow this process as many descriptors as hundreds of tunnels take."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if before[1] == resource.RLIM_INFINITY else min(4096, before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], wanted), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, Node]]:
    """Run one that splices, and one that does not."""
    with ExitStack() as stack:
        yield {splice: stack.enter_context(Node(splice=splice)) for splice in ("auto", "off")}


@pytest.fixture(scope="module")
def node(nodes: dict[str, Node]) -> Node:
    """Run one that splices."""
    return nodes["auto"]


# -- memory stays flat

# No buffer, pipe or frame divides its length, so that a piece which is lost or comes twice is noticed.
BLOCK = os.urandom(MIB - 7)


def pour(send: Callable[[bytes], Any], size: int) -> None:
    """Send so many bytes, block after block."""
    while size > 0:
        send(BLOCK[:size])
        size -= len(BLOCK)


def check(receive: Callable[[int], bytes], size: int) -> None:
    """Receive so many bytes, and compare each with what was poured."""
    twice, place = BLOCK * 2, 0
    while size:
        data = receive(min(size, len(BLOCK)))
        assert data, f"it ended {size} bytes early"
        assert data == twice[place : place + len(data)]
        place = (place + len(data)) % len(BLOCK)
        size -= len(data)


@contextlib.contextmanager
def pouring(send: Callable[[bytes], Any], size: int) -> Iterator[None]:
    """Pour in a thread, while the block receives."""
    thread = threading.Thread(target=pour, args=(send, size), daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


def both_ways(size: int) -> Callable[[socket.socket], bool]:
    """Make a target that pours and checks."""

    def behave(connection: socket.socket) -> bool:
        connection.settimeout(60)
        with pouring(connection.sendall, size):
            check(connection.recv, size)
        return True

    return behave


def carry(client: Tunnel, target: Target, size: int) -> None:
    """Carry so much each way at once."""
    with pouring(client.sendall, size):
        check(client.recv, size)
    assert target.result(60)


@pytest.mark.parametrize("splice", ["auto", "off"])
@every_mode
def test_memory_stays_flat(nodes: dict[str, Node], mode: str, splice: str) -> None:
    """CASES E136."""
    node = nodes[splice]
    for size in (8 * MIB, EACH_WAY):  # the first one meets everything that is allocated only once
        memory = Memory(node.pid)
        with Target(both_ways(size)) as target:
            client = node.open(mode, target.port, timeout=60)
            carry(client, target, size)
            client.close()
    note(f"{mode} splice={splice}", memory)
    assert memory.growth <= 16 * MIB


def note(what: str, memory: Memory) -> None:
    """Say what was measured, for whoever runs this with -s."""
    print(f"{what}: {EACH_WAY >> 20} MiB each way, memory grew by {memory.growth >> 10} KiB")


def test_memory_stays_flat_through_tls() -> None:
    """CASES E136: where every byte passes through our memory."""
    with Doors(log_level="warning") as doors:
        for size in (8 * MIB, EACH_WAY):
            memory = Memory(doors.pid)
            with Target(both_ways(size)) as target:
                client = doors.open("tls-chain", target.port, timeout=60)
                carry(client, target, size)
                client.close()
        note("socks5-wss", memory)
        assert memory.growth <= 16 * MIB


def test_memory_of_a_client_on_standard_input_stays_flat(node: Node) -> None:
    """CASES E136."""
    with Target(both_ways(EACH_WAY)) as target, on_stdin(node, target.port) as client:
        assert client.stdin
        assert client.stdout
        wait_until(lambda: target.accepted, "the client to connect")
        memory = Memory(client.pid)
        with pouring(client.stdin.write, EACH_WAY):
            check(client.stdout.read, EACH_WAY)
        assert target.result(60)
        note("standard input", memory)
        assert memory.growth <= 16 * MIB


@contextlib.contextmanager
def on_stdin(node: Node, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the client that joins its standard input and output to a target."""
    way = f"-mode client -protocol socks5 -addr 127.0.0.1:{node.door('socks5-direct')[1]}"
    command = [*COMMAND, *way.split(), "-host", "127.0.0.1", "-port", str(port)]
    with subprocess.Popen(
        command, env=node.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as client:
        try:
            yield client
        finally:
            client.kill()


# -- stalled tunnels


def blast(connection: socket.socket) -> None:
    """Send until nobody takes it any more, and wait."""
    connection.settimeout(60)
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(BLOCK)


def blast_from_little(connection: socket.socket) -> None:
    """Do so with little in the kernel, where hundreds would fill gigabytes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * KIB)
    blast(connection)


def stalled(node: Node, mode: str, target: Target, count: int) -> list[socket.socket]:
    """Open tunnels whose clients read nothing, and wait until nothing moves."""
    made = []
    for _ in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        sock.settimeout(20)
        sock.connect(node.door(mode))
        made.append(sock)
        greet(sock, mode, target.port)
    stands_still(lambda: (memory_of(node.pid), node.pipes))
    return made


def greet(sock: socket.socket, mode: str, port: int) -> None:
    """Ask for a target, and read the answer but nothing behind it."""
    if mode.startswith("socks5"):
        sock.sendall(socks_greeting())
        assert read_exact(sock, 2) == b"\x05\x00"
        sock.sendall(socks_request("127.0.0.1", port))
        assert read_socks_reply(sock) == 0
    else:
        sock.sendall(upgrade_request("127.0.0.1", port))
        assert read_exact(sock, 12) == b"HTTP/1.1 101"


def bytes_in_pipes(pid: int) -> int:
    """Tell how many bytes wait in the pipes of a process."""
    count = 0
    for path, link in descriptors_of(pid):
        if link.startswith("pipe:"):
            with contextlib.suppress(OSError), open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as end:
                count += int.from_bytes(fcntl.ioctl(end, termios.FIONREAD, bytes(4)), sys.byteorder)
    return count // 2  # both ends were asked


@every_mode
def test_a_stalled_tunnel_costs_little_memory(node: Node, mode: str) -> None:
    """CASES E133: also one that is stalled in both directions."""
    count = 20
    hops = 2 if mode.endswith("websocket") else 1
    with Target(blast) as target:
        warm_up(node, mode)
        before = memory_of(node.pid)
        socks = stalled(node, mode, target, count)
        down = (memory_of(node.pid) - before + bytes_in_pipes(node.pid)) // (count * hops)
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(stuff, socks, [mode.startswith("websocket")] * count))
        stands_still(lambda: (memory_of(node.pid), node.pipes))
        both = (memory_of(node.pid) - before + bytes_in_pipes(node.pid)) // (count * hops)
        print(f"{mode}: a stalled tunnel costs {down >> 10} KiB, both ways {both >> 10} KiB")
        assert down <= 256 * KIB
        assert both <= 256 * KIB
        for sock in socks:
            reset(sock)
            sock.close()
        node.wait_until_empty()
        assert node.held["lent"] == 0


def stuff(sock: socket.socket, framed: bool) -> None:
    """Send until nobody takes it any more."""
    if framed:
        sock.sendall(wire.header(FIN | BINARY, 1 << 40, wire.KEY))
    sock.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        while True:
            sock.sendall(BLOCK)


def warm_up(node: Node, mode: str) -> None:
    """Let the program meet everything once that it allocates only once."""
    with Target(both_ways(8 * MIB)) as target:
        client = node.open(mode, target.port)
        carry(client, target, 8 * MIB)
        client.close()
    node.wait_until_empty()


@pytest.mark.parametrize("mode", ["socks5-direct", *(["websocket-direct"] if LONG else [])])
def test_hundreds_of_stalled_tunnels_leave_pipes_and_memory_bounded_and_others_work(mode: str) -> None:
    """CASES E133: and when all pipes are taken, bytes are copied."""
    with Node() as node, Target(blast_from_little) as target, Target(both_ways(16 * MIB)) as other:
        warm_up(node, mode)
        before, own = memory_of(node.pid), node.pipes
        socks = stalled(node, mode, target, STALLED)
        pipes = node.pipes
        cost = memory_of(node.pid) - before + pipes * PIPE
        print(f"{mode}: {STALLED} stalled tunnels hold {pipes} pipes and cost {cost >> 20} MiB")
        assert MOST_WAITING_PIPES < pipes <= MOST_PIPES + own
        assert cost <= 128 * MIB
        client = node.open(mode, other.port)
        carry(client, other, 16 * MIB)
        client.close()
        for sock in socks:
            reset(sock)
            sock.close()
        node.wait_until_empty()
        assert node.held["lent"] == 0
        assert node.pipes <= MOST_WAITING_PIPES + own


@pytest.mark.parametrize("mode", ["socks5-direct", "websocket-websocket"])
def test_without_descriptors_for_pipes_bytes_are_copied(mode: str) -> None:
    """CASES G178."""
    go = threading.Event()
    with Node() as node, Target(when(go, both_ways(16 * MIB))) as target:
        stands_still(lambda: node.pipes)  # a program that starts has one for a moment
        own = node.pipes
        tunnels = [node.open(mode, target.port) for _ in range(4)]
        limits = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (next_descriptor(node.pid), limits[1]))
        go.set()
        for one in tunnels[:3]:
            carry(one, target, 16 * MIB)
        assert node.pipes == own
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, limits)
        carry(tunnels[3], target, 16 * MIB)
        assert node.pipes > own  # with descriptors to be had, it splices again
        for one in tunnels:
            one.close()


def next_descriptor(pid: int) -> int:
    """Tell which descriptor a process would be given next: the lowest that is free."""
    taken = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    return next(number for number in itertools.count() if number not in taken)


def test_a_declared_length_costs_nothing(node: Node) -> None:
    """CASES D125: hundreds of frames that say they are the longest there can be."""
    with ExitStack() as stack:
        ends = [stack.enter_context(tunnel(node.door("websocket-direct"))) for _ in range(200)]
        memory = Memory(node.pid)
        for client, target in ends:
            client.write(
                wire.header(FIN | BINARY, (1 << 63) - 1, wire.KEY) + wire.xor(b"some of it", wire.KEY)
            )
            assert read_exact(target, 10) == b"some of it"
        assert memory.growth <= 2 * MIB
        for client, target in ends:
            reset(client.sock)
            client.sock.close()
            assert read_rest(target) == (b"", "reset")


# -- nothing is lost


@dataclass(frozen=True)
class Part:
    """What one side of a transfer does: it sends something, at once or when the other has ended."""

    sends: bytes
    pieces: int  # bytes at most, at a time
    waits: bool = False  # for the end of the other
    takes: int | None = None  # bytes, after which it closes; else it reads to the end
    ends: bool = True  # its own direction, when all is sent
    resets: bool = False  # when all is sent, and it has received a byte


@dataclass(frozen=True)
class Plan:
    """Both sides of a transfer."""

    number: int
    client: Part
    target: Part
    half_close: bool = True

    @property
    def is_cut(self) -> bool:
        """True if one side resets."""
        return self.client.resets or self.target.resets


Outcome = tuple[bytes, str]  # what was received, and how it ended


def plan(number: int, choice: random.Random) -> Plan:
    """Make up a transfer."""

    def some(least: int = 0) -> bytes:
        size = choice.choice([0, 1, 100, 4 * KIB, 64 * KIB, 300 * KIB, MIB])
        start = choice.randrange(1000)
        return BLOCK[start:][: max(least, choice.randint(0, size))]

    def part(least: int = 0, **settings: Any) -> Part:
        return Part(some(least), choice.choice([1, 100, 1460, 16 * KIB, 70_000, 300_000]), **settings)

    kind = choice.choice(
        ["at once", "at once", "client first", "target first", "no half-close", "cut", "cut"]
    )
    if kind == "client first":
        return Plan(number, part(), part(waits=True))
    if kind == "target first":
        return Plan(number, part(waits=True), part())
    if kind == "no half-close":
        client = part(ends=False)
        return Plan(number, client, part(takes=len(client.sends)), half_close=False)
    if kind == "cut":
        mine = choice.random() < 0.5
        return Plan(number, part(1, resets=mine), part(1, resets=not mine))
    return Plan(number, part(), part())


def play(end: Tunnel, part: Part, choice: random.Random) -> Outcome:
    """Do one side's part."""
    if part.resets:
        return play_reset(end, part, choice)
    broken: list[OSError] = []

    def send_all() -> None:
        try:
            send(end, part, choice)
            if part.ends and part.takes is None:
                end.end()
        except OSError as exc:
            broken.append(exc)

    sender = threading.Thread(target=send_all, daemon=True)
    if not part.waits:
        sender.start()
    received, how = receive(end, part.takes)
    if part.waits:
        sender.start()
    sender.join(30)
    assert not sender.is_alive()
    if isinstance(end, WebTunnel) and how == "end" and not broken:
        end.recv_close()  # leaving before that would be a cut
    # An error is told once: to the one who sends, or to the one who receives.
    return received, "reset" if broken else how


def receive(end: Tunnel, size: int | None) -> Outcome:
    """Receive so many bytes, or to the end."""
    received = bytearray()
    try:
        while (size is None or len(received) < size) and (data := end.recv(MIB)):
            received += data
    except ConnectionResetError:
        return bytes(received), "reset"
    code = getattr(end, "close_code", None)
    return bytes(received), "end" if code in (None, 1000) else f"close {code}"


def play_reset(end: Tunnel, part: Part, choice: random.Random) -> Outcome:
    """Send, receive a byte, so that the other is known to be there, and reset."""
    sender = threading.Thread(target=send, args=(end, part, choice), daemon=True)
    sender.start()
    data = end.recv(1)
    sender.join(30)
    assert not sender.is_alive()
    reset(end.sock)
    end.close()
    return data, "left"


def send(end: Tunnel, part: Part, choice: random.Random) -> None:
    """Send in pieces of random sizes."""
    if isinstance(end, WebTunnel):
        send_frames(end, part, choice)
        return
    for piece in cut_up(part, choice):
        end.sendall(piece)


def send_frames(end: WebTunnel, part: Part, choice: random.Random) -> None:
    """Send in messages and fragments of random sizes, with Pings between them."""
    opcode = BINARY
    for piece, is_last in cut_up_and_tell_the_last(part, choice):
        fin = is_last or choice.random() < 0.5
        end.send_frame(opcode, piece, fin=fin)
        opcode = BINARY if fin else CONTINUATION
        if choice.random() < 0.1:
            end.send_frame(PING, b"?")


def cut_up_and_tell_the_last(part: Part, choice: random.Random) -> Iterator[tuple[bytes, bool]]:
    """Cut what a part sends into pieces; with each say whether it is the last."""
    left = len(part.sends)
    for piece in cut_up(part, choice):
        left -= len(piece)
        yield piece, not left


def cut_up(part: Part, choice: random.Random) -> Iterator[bytes]:
    """Cut what a part sends into pieces; of small ones not too many, for the sake of time."""
    most, place = max(part.pieces, len(part.sends) // 200), 0
    while place < len(part.sends):
        size = choice.randint(1, most)
        yield part.sends[place : place + size]
        place += size


@pytest.mark.parametrize("splice", ["auto", "off"])
@every_mode
def test_nothing_is_lost(nodes: dict[str, Node], mode: str, splice: str) -> None:
    """CASES E119, E120, E126, E127, E130, E136: random transfers, some half-closed, some reset."""
    choice = random.Random(f"{mode} {splice}")
    plans = {number: plan(number, choice) for number in range(TRANSFERS)}
    outcomes: dict[int, Outcome] = {}

    def behave(connection: socket.socket) -> None:
        number = int.from_bytes(read_exact(connection, 4), "big")
        outcomes[number] = play(SocksTunnel(connection), plans[number].target, random.Random(number))

    def transfer(plan: Plan) -> Outcome:
        extra = {} if plan.half_close or mode.startswith("socks5") else {"half_close": False}
        end = nodes[splice].open(mode, target.port, **extra)
        with contextlib.closing(end):
            end.sendall(plan.number.to_bytes(4, "big"))
            return play(end, plan.client, random.Random(-plan.number))

    with Target(behave) as target, ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(transfer, plans.values()))
        wait_until(lambda: len(outcomes) == len(plans), "the targets to be told of the ends")
    for one, outcome in zip(plans.values(), seen, strict=True):
        assert_is_true(one, outcome, outcomes[one.number], "socks5" in mode)


def assert_is_true(plan: Plan, at_client: Outcome, at_target: Outcome, is_socks: bool) -> None:
    """Check what both sides of a transfer have seen."""
    cut = {"reset"} if is_socks else {"reset", "close 1011", "close 1014"}
    for part, (received, how), other, name, ends in (
        (plan.client, at_client, plan.target, "client", cut),
        (plan.target, at_target, plan.client, "target", {"reset"}),
    ):
        where = f"transfer {plan.number}, {name}"
        if plan.is_cut:
            assert other.sends.startswith(received), where
            assert how in ({"left"} if part.resets else ends), where
        else:
            assert how == "end", where
            assert received == other.sends, where


# -- nothing is left behind


def obey(connection: socket.socket) -> None:
    """Do what the first byte says."""
    connection.settimeout(10)
    order = connection.recv(1)
    with contextlib.suppress(OSError):
        if order == b"e":
            while data := connection.recv(MIB):
                connection.sendall(data)
        elif order == b"b":
            blast(connection)
        elif order == b"f":
            end_then_read(connection)
        elif order == b"r":
            connection.sendall(BLOCK[: 300 * KIB])
            reset(connection)


class Visitor:
    """A client that comes once: it does its work, or is cut at some stage."""

    def __init__(self, node: Node, port: int, hole: int, seed: int) -> None:
        self.node, self.port, self.hole = node, port, hole
        self.choice = random.Random(seed)
        self.mode = self.choice.choice(PLAIN_MODES)

    def come(self) -> None:
        """Visit."""
        if self.choice.random() < 0.7:
            self.work()
        else:
            self.choice.choice([self.leave_in_greeting, self.leave_in_dial, self.leave, self.be_left])()

    def work(self) -> None:
        """Have something echoed, and leave in good order."""
        data = BLOCK[: self.choice.choice([1, 100, 5000, 300 * KIB])]
        end = self.open(b"e")
        with contextlib.closing(end):
            sender = threading.Thread(target=end.sendall, args=(data,), daemon=True)
            sender.start()
            assert read_exact(end, len(data)) == data
            sender.join(20)
            end.end()
            assert how_it_ends(end) == "end"

    def leave_in_greeting(self) -> None:
        """Leave before all of the request is said."""
        said = self.request(self.port)
        with connect(self.node.door(self.mode)) as sock:
            sock.sendall(said[: self.choice.randrange(len(said))])
            self.depart(sock)

    def leave_in_dial(self) -> None:
        """Leave while the target is dialled, which neither takes nor refuses it."""
        with connect(self.node.door(self.mode)) as sock:
            sock.sendall(self.request(self.hole))
            if self.choice.random() < 0.5:
                time.sleep(0.02)
            self.depart(sock)

    def leave(self) -> None:
        """Leave in the middle of a download."""
        end = self.open(b"b")
        read_exact(end, self.choice.choice([1, 70_000, 400_000]))
        self.depart(end.sock)

    def be_left(self) -> None:
        """Send much to a target that ends or resets."""
        end = self.open(self.choice.choice([b"f", b"r"]))
        with contextlib.closing(end):
            with contextlib.suppress(OSError):
                end.sendall(BLOCK[: self.choice.choice([1, 70_000, 600_000])])
            with contextlib.suppress(OSError):
                end.recv(KIB)

    def open(self, order: bytes) -> Tunnel:
        """Open a tunnel, and say what the target is to do."""
        end = self.node.open(self.mode, self.port)
        end.sendall(order)
        return end

    def request(self, port: int) -> bytes:
        """Say all that opens a tunnel, without waiting for an answer."""
        if self.mode.startswith("socks5"):
            return socks_greeting() + socks_request("127.0.0.1", port)
        return upgrade_request("127.0.0.1", port)

    def depart(self, sock: socket.socket) -> None:
        """Leave, by a FIN or by a reset."""
        if self.choice.random() < 0.5:
            reset(sock)
        sock.close()


def test_nothing_is_left_behind() -> None:
    """CASES G185: descriptors, greenlets, pipes, memory and half-closed sockets, after cuts at any stage."""
    with Node() as node, Target(obey) as target, blackhole() as hole, ThreadPoolExecutor(16) as threads:

        def visit(first: int, count: int) -> None:
            visitors = (Visitor(node, target.port, hole, seed) for seed in range(first, first + count))
            list(threads.map(Visitor.come, visitors))
            node.wait_until_empty()

        visit(0, 200)
        held, descriptors, memory = rest(node), node.descriptors, memory_of(node.pid)
        visit(200, CONNECTIONS)
        now = rest(node, at_most=held["greenlets"])
        growth = memory_of(node.pid) - memory
        print(
            f"after {CONNECTIONS}: {held} -> {now}, {descriptors} -> {node.descriptors}, {growth >> 10} KiB"
        )
        assert now["greenlets"] <= held["greenlets"]
        assert now["lent"] == 0
        assert node.pipes <= MOST_WAITING_PIPES
        for kind in ("socket", "other"):
            assert node.descriptors[kind] == descriptors[kind]
        assert growth <= 8 * MIB
        assert in_close_wait(node) == []


def rest(node: Node, at_most: int = 0) -> dict[str, int]:
    """Wait until the number of greenlets is what it was, or has come to rest; give what is held then."""
    seen = [node.held]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (
        seen[-1]["greenlets"] > at_most if at_most else len(seen) < 3 or seen[-1] != seen[-3]
    ):
        time.sleep(0.3)
        seen.append(node.held)
    return seen[-1]


def in_close_wait(node: Node) -> list[str]:
    """List the connections at our doors whose client has closed, and we have not."""
    doors = {node.door(name)[1] for name in node.config["listeners"]}
    ours = {row.inode for row in sockets_of(node.pid)}
    return [
        row.local
        for row in table(node.pid)
        if row.state == CLOSE_WAIT and (row.inode in ours or row.port in doors)
    ]


# -- who is idle costs nothing


def test_an_idle_connection_holds_no_pipe_and_no_buffer() -> None:
    """Also one that has moved much."""
    size, count = 1 * MIB, 30
    with Node() as node, Target(exchange(bytes(size), size)) as target:
        for mode in PLAIN_MODES:
            warm_up(node, mode)
        before = memory_of(node.pid)
        tunnels = [node.open(mode, target.port) for mode in PLAIN_MODES for _ in range(count)]
        for end in tunnels:
            end_of_sending = threading.Thread(target=end.sendall, args=(bytes(size),), daemon=True)
            end_of_sending.start()
            assert read_exact_quickly(end, size) == size
            end_of_sending.join(20)
        hops = 6 * count  # two of the four modes have two
        cost = (memory_of(node.pid) - before) / hops
        print(f"an idle connection costs {cost / 1024:.1f} KiB, and {node.pipes} pipes wait")
        assert node.held["lent"] == 0
        assert node.pipes <= MOST_WAITING_PIPES
        assert bytes_in_pipes(node.pid) == 0
        assert cost < 32 * KIB  # half a buffer
        for end in tunnels:
            end.close()


def read_exact_quickly(end: Tunnel, size: int) -> int:
    """Read so many bytes, and keep none."""
    left = size
    while left:
        data = end.recv(left)
        assert data
        left -= len(data)
    return size


def test_an_idle_program_sleeps() -> None:
    """Nothing wakes it without connections; with one it is the sweep alone, twice a second."""
    seconds = 3.0 if LONG else 2.0
    with Node() as empty, Node() as busy, Target(both_ways(8 * MIB)) as target:
        for node in (empty, busy):
            warm_up(node, "socks5-websocket")
        held = busy.open("socks5-direct", target.port)
        carry(held, target, 8 * MIB)
        rest(empty)
        rest(busy)
        before = {node: switches(node.pid) for node in (empty, busy)}
        time.sleep(seconds)
        woken = {node: sum((switches(node.pid) - before[node]).values()) for node in (empty, busy)}
        print(f"in {seconds:g} s: {woken[empty]} without a connection, {woken[busy]} with one")
        assert woken[empty] <= 1
        assert woken[busy] <= 2 * seconds + 2
        held.close()


def switches(pid: int) -> Counter[str]:
    """Tell how often each thread of a process has gone to sleep."""
    counts = Counter[str]()
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):  # ended meanwhile
            status = Path(f"/proc/{pid}/task/{task}/status").read_text()
            counts[task] = int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return counts


# -- control frames around spliced payloads


@pytest.mark.parametrize("is_slow", [False, True], ids=["fast", "slow"])
@pytest.mark.parametrize("way", ["direct", "websocket"])
def test_the_door_answers_pings_between_spliced_frames(node: Node, way: str, is_slow: bool) -> None:
    """CASES D103: never in the middle of one, also where it is stuck there; and Close comes last."""
    data = BLOCK * (16 if is_slow else 48)
    door = node.door(f"websocket-{way}")
    with tunnel(door, half_close=True, receive_buffer=16 * KIB if is_slow else 0) as (client, target):
        pinger, received, sizes = Pinger(client), bytearray(), list[int]()
        with sending(target, data), pinger:
            while len(received) < len(data):
                if is_slow and len(sizes) % 4 == 0:
                    client.wait(0.005)
                frame = client.recv()
                assert frame.key is None
                if frame.opcode == PONG:
                    pinger.take(frame)
                    continue
                assert frame.first == FIN | BINARY
                received += frame.payload
                sizes.append(len(frame.payload))
            assert pinger.answered > 5
        assert received == data
        assert 64 * KIB < max(sizes) <= PIPE  # else it was not spliced
        while pinger.answered < pinger.sent:
            pinger.take(client.recv())
        target.shutdown(socket.SHUT_WR)
        assert client.recv() == wire.Frame(FIN | BINARY, None, b"")
        client.send(PING, b"after the end")
        assert client.recv() == wire.Frame(FIN | PONG, None, b"after the end")
        client.send(BINARY)
        assert client.recv_close() == 1000
        assert read_rest(target) == (b"", "FIN")


class Pinger:
    """Sends numbered Pings all the time, and checks the order of the Pongs."""

    def __init__(self, peer: wire.Peer) -> None:
        self.sent = self.answered = 0
        self._peer = peer
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ping, daemon=True)

    def _ping(self) -> None:
        while not self._enough.wait(0.0005):
            self.sent += 1
            self._peer.send(PING, self.sent.to_bytes(4, "big") * (1 + self.sent % 31))

    def take(self, frame: wire.Frame) -> None:
        """Check a Pong: of many that wait the last is the one that counts (RFC 6455, section 5.5.3)."""
        assert frame.first == FIN | PONG
        number = int.from_bytes(frame.payload[:4], "big")
        assert frame.payload == number.to_bytes(4, "big") * (1 + number % 31)
        assert self.answered < number <= self.sent
        self.answered = number

    def __enter__(self) -> "Pinger":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._enough.set()
        self._thread.join(20)


class Upstream(Proxy):
    """A program whose way out is a WebSocket proxy that a test plays."""

    def __init__(self, behind: Listener) -> None:
        """Describe it."""
        way = upstream("websocket", ("127.0.0.1", behind.port))
        super().__init__({"listeners": {"socks": socks_door(upstream="way")}, "upstreams": {"way": way}})


@pytest.mark.parametrize("uploads", [False, True], ids=["down", "both-ways"])
def test_pings_between_big_frames_of_an_upstream_are_answered(uploads: bool) -> None:
    """CASES D103: however its frames are cut into segments; and its Close ends it when all has arrived."""
    choice = random.Random(1)
    script, down, pings = big_frames(choice, 16 * MIB)
    up = (BLOCK * 9)[: 8 * MIB] if uploads else b"ready"
    with (
        Listener() as behind,
        Upstream(behind) as node,
        chain(node.door("socks"), behind) as (client, server),
    ):
        pongs, uploaded = list[bytes](), bytearray()

        def listen() -> None:
            while len(uploaded) < len(up) or pongs[-1:] != pings[-1:]:
                frame = server.recv()
                assert frame.key is not None
                if frame.first == FIN | PONG:
                    pongs.append(frame.payload)
                else:
                    assert frame.first == FIN | BINARY
                    assert len(frame.payload) <= 64 * KIB
                    uploaded.extend(frame.payload)

        with ThreadPoolExecutor(3) as threads:
            work = [
                threads.submit(listen),
                threads.submit(client.sendall, up),
                threads.submit(write_in_segments, server, script, choice),
            ]
            assert read_exact(client, len(down)) == down
            for one in work:
                one.result(30)
        assert uploaded == up
        # Of those that are read at once the last one is answered, and only so many answers wait for a frame.
        assert pongs == sorted(pongs)
        assert set(pongs) <= set(pings)
        assert pongs[-1] == pings[-1]
        last = wire.frame(FIN | BINARY, b"the last", None)
        server.write(last + wire.frame(FIN | wire.CLOSE, wire.close_payload(1000), None))
        assert read_rest(client) == (b"the last", "FIN")
        assert server.recv_close() == 1000


def big_frames(choice: random.Random, size: int) -> tuple[bytes, bytes, list[bytes]]:
    """Write messages in fragments with Pings between them; give the payload and the Pings as well."""
    script, payload, pings = bytearray(), bytearray(), list[bytes]()
    opcode, fin = BINARY, False
    while len(payload) < size or not fin:
        fin = choice.random() < 0.3
        piece = BLOCK[: choice.choice([0, 1, 5, 125, 126, 70_000, 300_000, len(BLOCK)])]
        script += wire.frame((FIN if fin else 0) | opcode, piece, None)
        payload += piece
        opcode = BINARY if fin else CONTINUATION
        if choice.random() < 0.7:
            pings.append(len(pings).to_bytes(4, "big") * choice.randint(1, 31))
            script += wire.frame(FIN | PING, pings[-1], None)
    return bytes(script), bytes(payload), pings


def write_in_segments(peer: wire.Peer, data: bytes, choice: random.Random) -> None:
    """Write in pieces of any size, so that headers and Pings are cut, or stand behind payload."""
    place = 0
    while place < len(data):
        size = choice.choice([1, 2, 3, 9, 11, 1460, 65_536, 262_143, 500_000])
        peer.write(data[place : place + size])
        place += size
