"""Accepting on listening sockets, and the pool that bounds what is accepted."""

from collections.abc import Iterator
from contextlib import closing

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from proxy.address import Address, Endpoint
from proxy.listening.listen import Acceptor
from proxy.listening.opening import bind
from proxy.listening.pool import Job, Pool
from proxy.net.sock import LoopSocket
from tests.wire.greenlets import PATIENCE, settle, until
from tests.wire.sockets import free_port


class Service:
    """An acceptor with a pool of two, whose clients stay until they are let go."""

    def __init__(self) -> None:
        self.clients: list[Address] = []
        self.let_go = Event()
        self.fault: Exception | None = None
        self.pool = Pool(2)
        self.sock = bind(Endpoint("tcp", "127.0.0.1", 0))[0]
        self.address = self.sock.getsockname()
        self.acceptor = Acceptor(self.sock, self.handle, self.pool)
        self.acceptor.start()

    def handle(self, sock: LoopSocket, client: Address) -> Job:
        """Serve a client."""
        yield from ()
        with closing(sock):
            self.clients.append(client)
            if self.fault:
                raise self.fault
            self.let_go.wait()
            sock.send(b"served")

    def connect(self) -> socket.socket:
        """Be a client."""
        return socket.create_connection(self.address, timeout=PATIENCE)


@pytest.fixture
def service() -> Iterator[Service]:
    """Accept on the loopback interface."""
    made = Service()
    yield made
    made.let_go.set()
    made.acceptor.close()
    made.pool.join()


def test_a_client_is_handed_over_with_its_address(service: Service) -> None:
    with service.connect() as client:
        service.let_go.set()
        assert client.recv(10) == b"served"
        assert service.clients == [Address(*client.getsockname())]


def test_above_the_limit_clients_wait_until_a_place_is_free(service: Service) -> None:
    """CASES G180, ``overload = wait``."""
    clients = [service.connect() for _ in range(5)]
    assert served(service, 2) == 2
    service.let_go.set()
    assert [client.recv(10) for client in clients] == [b"served"] * 5


def served(service: Service, count: int) -> int:
    """Wait until so many were accepted, and for those who should not be; count them all."""
    until(lambda: len(service.clients) >= count)
    settle()
    return len(service.clients)


def test_more_places_are_taken_at_once_by_those_who_wait(service: Service) -> None:
    """CASES H204."""
    clients = [service.connect() for _ in range(5)]
    assert served(service, 2) == 2
    service.pool.resize(4)
    assert served(service, 4) == 4
    service.let_go.set()
    assert [client.recv(10) for client in clients] == [b"served"] * 5


def test_fewer_places_are_in_force_when_enough_have_left(service: Service) -> None:
    """CASES H204: those who have a place keep it."""
    service.pool.resize(3)
    first = [service.connect() for _ in range(3)]
    assert served(service, 3) == 3
    service.pool.resize(1)
    later = [service.connect() for _ in range(3)]
    let_the_first_go, service.let_go = service.let_go, Event()
    let_the_first_go.set()
    assert [client.recv(10) for client in first] == [b"served"] * 3
    assert served(service, 4) == 4
    service.let_go.set()
    assert [client.recv(10) for client in later] == [b"served"] * 3


def test_places_can_be_resized_over_and_over(service: Service) -> None:
    for size in (5, 1, 3, 1, 1, 2):
        service.pool.resize(size)
    clients = [service.connect() for _ in range(4)]
    assert served(service, 2) == 2
    service.let_go.set()
    assert [client.recv(10) for client in clients] == [b"served"] * 4
    assert len(service.pool) == 0


def test_a_great_many_places_come_and_go_in_one_step(service: Service) -> None:
    """CASES H211: nobody is served while a limit changes, so that must not take long."""
    for size in (1 << 30, 2):  # one by one, it would take minutes
        service.pool.resize(size)
    clients = [service.connect() for _ in range(3)]
    assert served(service, 2) == 2
    service.let_go.set()
    assert [client.recv(10) for client in clients] == [b"served"] * 3


def test_an_error_of_one_handler_does_not_end_the_accepting(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES G191."""
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
    service.fault = ValueError("a bug")
    for _ in range(5):
        with service.connect() as client:
            assert client.recv(1) == b""
    service.fault = None
    service.let_go.set()
    with service.connect() as client:
        assert client.recv(10) == b"served"


def test_who_waits_when_accepting_ends_is_still_served(service: Service) -> None:
    """CASES I212: for the client the connection stands already; closing would reset it."""
    clients = [service.connect() for _ in range(2)]  # nothing has been accepted yet: we have not yielded
    service.acceptor.finish()
    service.let_go.set()
    assert [client.recv(10) for client in clients] == [b"served"] * 2
    with pytest.raises(ConnectionRefusedError):
        service.connect()


def test_accepting_ends_at_once_when_nobody_waits(service: Service) -> None:
    service.acceptor.finish()
    with pytest.raises(ConnectionRefusedError):
        service.connect()
    assert free_port() != service.address[1]
