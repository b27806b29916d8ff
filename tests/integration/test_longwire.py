"""The long wire does to packets what its law says, and nothing of it outlives whoever made it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.integration.longwire import Direction, Law, Wire
from tests.integration.programs import REPOSITORY
from tests.wire.waits import wait_until

FULL = bytes(1400)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire(Law(delay=0.05)) as wire:
        yield wire


def test_a_round_trip_takes_twice_the_delay(wire: Wire) -> None:
    with listening(wire) as listener:
        began = time.monotonic()
        wire.near.run(lambda: socket.create_connection(listener.getsockname(), 20)).close()
        assert time.monotonic() - began >= 0.1


def test_a_law_holds_from_when_it_is_given(wire: Wire) -> None:
    wire.obey(Law(delay=0.0, loss=1.0))
    with listening(wire) as listener:
        there = listener.getsockname()
        with pytest.raises(TimeoutError):
            wire.near.run(lambda: socket.create_connection(there, 0.3))
        wire.obey(Law(delay=0.0))
        wire.near.run(lambda: socket.create_connection(there, 20)).close()


def listening(wire: Wire) -> socket.socket:
    """Listen at the far end."""
    return wire.far.run(lambda: socket.create_server((wire.far.address, 0)))


def carried(law: Law, packets: list[bytes]) -> list[bytes]:
    """Send packets through one direction, and give those that arrive."""
    with ExitStack() as stack:
        ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        (source, taken), (given, sink) = ends
        for sock in (source, taken, given, sink):
            stack.enter_context(sock).setblocking(False)
        way = Direction(taken.fileno(), given.fileno(), law)
        arrived = []
        for packet in packets:
            source.send(packet)
            way.take()
            way.give()
            try:
                arrived.append(sink.recv(2000))
            except BlockingIOError:
                continue
        return arrived


def test_a_seed_says_which_packets_are_lost() -> None:
    packets = [number.to_bytes(2, "big") + FULL for number in range(400)]
    first, again, other = (carried(Law(0.0, loss=0.1, seed=seed), packets) for seed in (1, 1, 2))
    assert first == again != other
    assert 300 < len(first) < 400


def test_what_lies_between_full_packets_does_not_change_which_are_lost() -> None:
    full = [number.to_bytes(2, "big") + FULL for number in range(400)]
    mixed = [packet for each in full for packet in (each, b"an acknowledgement")]
    law = Law(0.0, loss=0.1, seed=1)
    assert [packet for packet in carried(law, mixed) if len(packet) > 1000] == carried(law, full)


def test_a_queue_takes_no_more_than_it_holds() -> None:
    with ExitStack() as stack:
        source, taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock in (source, taken):
            stack.enter_context(sock).setblocking(False)
        way = Direction(taken.fileno(), -1, Law(rate=1.0, queue=2 * len(FULL)))
        for _ in range(8):
            source.send(FULL)
            way.take()
    # One is being sent, which at a byte a second takes long; behind it the queue is full with two.
    assert len(way.due) == 3


def test_whatever_runs_at_an_end_ends_with_the_wire() -> None:
    with ExitStack() as stack:
        with Wire() as wire:
            command = [*wire.far.prefix, "setsid", "sleep", "60"]
            sleeper = stack.enter_context(subprocess.Popen(command))
            stack.callback(sleeper.kill)
            here = os.stat("/proc/self/ns/net").st_ino
            wait_until(lambda: namespace_of(sleeper.pid) != here, "the program to be at the far end")
        assert sleeper.wait(20) == -signal.SIGKILL


CRASHES = """
import os, signal, sys
from tests.integration.longwire import Wire
from tests.integration.programs import Program
from tests.wire.waits import wait_until

here = os.stat("/proc/self/ns/net").st_ino
with Wire() as wire, Program([*wire.far.prefix, "sleep", "60"]) as sleeper:
    def there():
        return os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino
    wait_until(lambda: there() != here, "the program to be at the far end")
    print(there(), wire.helper, sleeper.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_left_of_a_wire_whose_maker_is_killed(wire: Wire) -> None:
    # The wire is asked for only to skip where there can be none.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    maker = subprocess.run(
        [sys.executable, "-c", CRASHES], capture_output=True, text=True, timeout=40, env=environment
    )
    assert maker.returncode == -signal.SIGKILL, maker.stderr
    namespace, carrier, sleeper = map(int, maker.stdout.split())
    wait_until(lambda: namespace_of(carrier) == namespace_of(sleeper) == 0, "both processes to be gone")
    assert not any(namespace_of(int(name)) == namespace for name in os.listdir("/proc") if name.isdecimal())


def namespace_of(pid: int) -> int:
    """Tell in which network namespace a process is; 0 if it is no more."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0
