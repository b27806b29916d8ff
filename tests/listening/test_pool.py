"""
A pool of greenlets that serve one client after another.

That its size can change is tested with an acceptor, in test_listen.py.
"""

import socket as std_socket
from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event

from proxy.address import Address
from proxy.listening.pool import Handler, Pool
from proxy.net.sock import LoopSocket

PATIENCE = 5.0  # seconds
CLIENT = Address("192.0.2.1", 1)


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Give one of two."""
    made = Pool(2)
    with gevent.Timeout(PATIENCE):
        yield made
        made.kill()


def serve(pool: Pool, handler: Handler) -> "gevent.Greenlet[..., object]":
    """Have a client served whose socket is connected to nobody."""
    return pool.serve(handler, LoopSocket(std_socket.AF_INET, std_socket.SOCK_STREAM), CLIENT)


def test_the_next_client_is_served_by_the_one_that_has_just_finished(pool: Pool) -> None:
    greenlets = []
    for _ in range(3):
        serve(pool, lambda *_: greenlets.append(gevent.getcurrent()))
        pool.join()
    assert len(greenlets) == 3
    assert len(set(greenlets)) == 1


def test_one_that_is_done_has_no_place_and_soon_ends(pool: Pool) -> None:
    greenlet = serve(pool, lambda *_: None)
    pool.join()
    assert len(pool) == 0
    assert not greenlet.dead
    greenlet.join()
    assert greenlet.dead
    assert len(pool) == 0


def test_each_is_given_its_own_client_whose_socket_is_closed_in_the_end(pool: Pool) -> None:
    seen: list[tuple[LoopSocket, Address]] = []
    clients = [Address("192.0.2.1", port) for port in (1, 2, 3)]
    for client in clients:
        sock = LoopSocket(std_socket.AF_INET, std_socket.SOCK_STREAM)
        pool.serve(lambda *given: seen.append(given), sock, client)
        pool.join()
        assert sock.fileno() == -1
    assert [client for _, client in seen] == clients


def test_a_client_that_comes_while_it_is_parked_is_counted_and_waited_for(pool: Pool) -> None:
    serve(pool, lambda *_: None)
    pool.join()
    go = Event()
    greenlet = serve(pool, lambda *_: go.wait())
    assert len(pool) == 1
    assert not pool.join(0.05)
    assert not greenlet.dead
    go.set()
    pool.join()
    assert len(pool) == 0


def test_one_at_work_is_not_disturbed_by_the_end_of_its_parking(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.listening.pool._PARKED", 0.01)
    serve(pool, lambda *_: None)
    pool.join()
    go = Event()
    woken: list[object] = []
    serve(pool, lambda *_: woken.append(go.wait()))
    gevent.sleep(0.02)  # longer than it would have been parked
    assert not woken
    go.set()
    pool.join()
    assert woken == [True]


def test_an_error_costs_neither_a_place_nor_a_socket(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)

    def fail(sock: LoopSocket, client: Address) -> None:
        raise ValueError("a bug")

    for _ in range(5):
        sock = LoopSocket(std_socket.AF_INET, std_socket.SOCK_STREAM)
        pool.serve(fail, sock, CLIENT)
        pool.join()
        assert sock.fileno() == -1
    assert len(pool) == 0


def test_killing_ends_those_at_work(pool: Pool) -> None:
    serve(pool, lambda *_: None)
    pool.join()
    greenlet = serve(pool, lambda *_: Event().wait())
    gevent.sleep(0)
    pool.kill()
    assert greenlet.dead
    assert len(pool) == 0


def test_killing_ends_one_that_has_not_begun(pool: Pool) -> None:
    greenlet = serve(pool, lambda *_: pytest.fail("nobody is served any more"))
    pool.kill()
    assert greenlet.dead
    assert len(pool) == 0


def test_who_waits_for_room_is_told_once_and_when_there_is_some(pool: Pool) -> None:
    """Two acceptors share a pool, as a listener has several addresses: either may have clients waiting."""
    told: list[str] = []
    go = Event()
    for _ in range(2):
        serve(pool, lambda *_: go.wait())
    assert pool.is_full
    one, other = (lambda: told.append("one")), (lambda: told.append("other"))
    for act in (one, other, one):
        pool.when_free(act)
    pool.resize(2)
    assert told == []
    go.set()
    pool.join()
    assert told == ["one", "other"]


def test_one_that_was_killed_while_it_was_parked_is_given_no_client(pool: Pool) -> None:
    greenlet = serve(pool, lambda *_: None)
    pool.join()
    greenlet.kill()
    served = Event()
    assert serve(pool, lambda *_: served.set()) is not greenlet
    served.wait()
