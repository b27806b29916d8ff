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
from proxy.net.places import Handler, Places
from proxy.net.sock import LoopSocket

PATIENCE = 5.0  # seconds
CLIENT = Address("192.0.2.1", 1)


@pytest.fixture
def places() -> Iterator[Places]:
    """Give two places."""
    made = Places(2)
    with gevent.Timeout(PATIENCE):
        yield made
        made.kill()


def serve(places: Places, handler: Handler) -> "gevent.Greenlet[..., object]":
    """Have a client served whose socket is connected to nobody."""
    return places.serve(handler, LoopSocket(std_socket.AF_INET, std_socket.SOCK_STREAM), CLIENT)


def test_the_next_client_is_served_by_the_one_that_has_just_finished(places: Places) -> None:
    workers = []
    for _ in range(3):
        serve(places, lambda *_: workers.append(gevent.getcurrent()))
        places.join()
    assert len(workers) == 3
    assert len(set(workers)) == 1


def test_one_that_is_done_has_no_place_and_soon_ends(places: Places) -> None:
    worker = serve(places, lambda *_: None)
    places.join()
    assert places.free_count() == 2
    assert not worker.dead
    worker.join()
    assert worker.dead
    assert places.free_count() == 2


def test_each_is_given_its_own_client_whose_socket_is_closed_in_the_end(places: Places) -> None:
    seen: list[tuple[LoopSocket, Address]] = []
    clients = [Address("192.0.2.1", port) for port in (1, 2, 3)]
    for client in clients:
        sock = LoopSocket(std_socket.AF_INET, std_socket.SOCK_STREAM)
        places.serve(lambda *given: seen.append(given), sock, client)
        places.join()
        assert sock.fileno() == -1
    assert [client for _, client in seen] == clients


def test_a_client_that_comes_while_it_rests_is_counted_and_waited_for(places: Places) -> None:
    serve(places, lambda *_: None)
    places.join()
    go = Event()
    worker = serve(places, lambda *_: go.wait())
    assert places.free_count() == 1
    assert not places.join(0.05)
    assert not worker.dead
    go.set()
    places.join()
    assert places.free_count() == 2


def test_one_at_work_is_not_disturbed_by_the_end_of_its_rest(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.net.places._STAY", 0.01)
    serve(places, lambda *_: None)
    places.join()
    woken: list[bool] = []

    def serve_slowly(*_: object) -> None:
        gevent.sleep(0.05)
        woken.append(True)

    serve(places, serve_slowly)
    gevent.sleep(0.02)
    assert not woken
    places.join()
    assert woken == [True]


def test_an_error_costs_neither_a_place_nor_a_socket(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)

    def fail(sock: LoopSocket, client: Address) -> None:
        raise ValueError("a bug")

    for _ in range(5):
        sock = LoopSocket(std_socket.AF_INET, std_socket.SOCK_STREAM)
        places.serve(fail, sock, CLIENT)
        places.join()
        assert sock.fileno() == -1
    assert places.free_count() == 2


def test_killing_ends_those_at_work(places: Places) -> None:
    serve(places, lambda *_: None)
    places.join()
    worker = serve(places, lambda *_: Event().wait())
    gevent.sleep(0)
    places.kill()
    assert worker.dead
    assert places.free_count() == 2


def test_one_that_was_killed_while_it_rested_is_given_no_client(places: Places) -> None:
    worker = serve(places, lambda *_: None)
    places.join()
    worker.kill()
    served = Event()
    assert serve(places, lambda *_: served.set()) is not worker
    served.wait()
