"""Pipes between sockets: how many there are, and that none carries one tunnel's bytes into another."""

import fcntl
import os
import sys
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from proxy.net import splice
from proxy.net.relay import DataForwarder
from proxy.net.splice import AVAILABLE, PIPES, Pipe, PipePool
from tests.net.wires import read_to_end, reset, send_and_end, tcp_pair

MIB = 1 << 20

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no splice here")


@pytest.fixture
def pool() -> Iterator[PipePool]:
    """Make a pool of two pipes at most."""
    made = PipePool(most=2)
    yield made
    for pipe in made._free:
        pipe.close()


def test_it_is_there_on_linux() -> None:
    assert sys.platform == "linux"


def test_a_pipe_that_comes_back_empty_is_lent_again(pool: PipePool) -> None:
    first = pool.take()
    assert first is not None
    pool.give_back(first)
    assert pool.take() is first
    pool.give_back(first)


def test_only_so_many_are_lent(pool: PipePool) -> None:
    pipes = [pool.take() for _ in range(3)]
    assert [pipe is not None for pipe in pipes] == [True, True, False]
    assert pool.lent == 2
    for pipe in pipes[:2]:
        assert pipe is not None
        pool.give_back(pipe)
    assert pool.lent == 0
    assert pool.take() is not None
    pool.lent = 0


def test_a_pipe_that_is_not_empty_serves_nobody_else(pool: PipePool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    used = pool.take()
    assert used is not None
    pool.give_back(used, empty=False)
    assert len(os.listdir("/proc/self/fd")) == before
    again = pool.take()
    assert again is not None
    assert again is not used
    pool.give_back(again)


def test_a_system_without_descriptors_gives_none(pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES G178: then copying has to do."""

    def fail(flags: int) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe2", fail)
    assert pool.take() is None
    assert pool.lent == 0


def test_a_user_who_may_not_have_big_pipes_gets_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refuse(descriptor: int, command: int, *rest: int) -> int:
        if command == splice._SET_SIZE:
            raise PermissionError(1, "Operation not permitted")
        return int(real(descriptor, command, *rest))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    pipe = Pipe()
    assert pipe.size >= 4096
    pipe.close()


def transfer(data: bytes) -> bytes:
    """Send data through a relay, and give what came out."""
    client, a = tcp_pair()
    target, b = tcp_pair()
    running = gevent.spawn(DataForwarder().forward_data, a, b)
    sending = gevent.spawn(send_and_end, client, data)
    received = read_to_end(target)
    target.close()
    sending.get()
    running.get()
    client.close()
    return received


def test_where_there_is_no_pipe_bytes_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIPES, "take", lambda: None)
    data = os.urandom(4 * MIB)
    assert transfer(data) == data


def stall() -> tuple[socket.socket, socket.socket, "gevent.Greenlet[Any, Any]"]:
    """Fill a tunnel until nothing moves, so that a pipe is full; give its ends, and the relay."""
    client, a = tcp_pair()
    target, b = tcp_pair()
    running = gevent.spawn(DataForwarder().forward_data, a, b)
    pouring = gevent.spawn(client.sendall, b"SECRET" * (6 * MIB))
    gevent.sleep(0.1)
    pouring.kill()
    return client, target, running


def test_what_a_cut_tunnel_had_in_flight_never_shows_up_in_another() -> None:
    """The most dangerous mistake that a pool of pipes can make."""
    before = PIPES.lent
    tunnels = [stall() for _ in range(3)]
    assert PIPES.lent == before + 3
    for client, target, running in tunnels:
        running.kill()
        reset(client)
        target.close()
    assert PIPES.lent == before
    for _ in range(6):
        data = os.urandom(2 * MIB)
        assert transfer(data) == data
