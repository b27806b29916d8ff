"""
A server in this process: opening, reloading, refusing, and closing.

The clients are plain sockets that speak the bytes of RFC 1928.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gevent
import pytest
from gevent import socket

from proxy.accesslog import AccessLog
from proxy.errors import ConfigError, DialError, Failure, ProxyError, UpstreamError
from proxy.session import Session
from proxy.settings.listener import Overload, ServerConfig, Strategy
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from proxy.socks5.server import Socks5Server
from tests.wire.greenlets import PATIENCE, patience, settle, until
from tests.wire.sockets import free_port

LATE = 8.0  # seconds: how late a busy machine may be

NO_LOGIN = b"\x05\x01\x00"  # RFC 1928, section 3: version 5, one method, no authentication
WITH_LOGIN = b"\x05\x01\x02"
LOGIN = b"\x01\x05alice\x0awonderland"  # RFC 1929, section 2


class House:
    """A server, the targets behind it, and its clients."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.servers: list[Socks5Server] = []
        self.targets = socket.socket()
        self.targets.bind(("127.0.0.1", 0))
        self.targets.listen()
        self.targets.settimeout(PATIENCE)

    def serve(self, **settings: Any) -> Socks5Server:
        """Run a server with these settings."""
        config = ServerConfig("127.0.0.1:0", Protocol.SOCKS5, name="socks", **settings)
        server = Socks5Server(config, AccessLog(self.lines.append))
        server.listen()
        self.servers.append(server)
        return server

    @property
    def request(self) -> bytes:
        """A request for the targets' address (RFC 1928, section 4)."""
        port: int = self.targets.getsockname()[1]
        return b"\x05\x01\x00\x01" + bytes([127, 0, 0, 1]) + port.to_bytes(2, "big")

    def connect(self, server: Socks5Server) -> "Client":
        """Be a client."""
        return Client(server.addresses[0].port, self)

    def close(self) -> None:
        """Stop everything."""
        for server in self.servers:
            server.shutdown()
        self.targets.close()


class Client:
    """A client of the server's."""

    def __init__(self, port: int, house: House) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._house = house

    def ask(self, *, login: bool = False) -> int:
        """Ask for the target, and give the reply's code."""
        self.sock.sendall(WITH_LOGIN + LOGIN if login else NO_LOGIN)
        answer = self.read(4 if login else 2)
        assert answer == (b"\x05\x02\x01\x00" if login else b"\x05\x00")
        self.sock.sendall(self._house.request)
        return self.read(10)[1]

    def open(self, **how: bool) -> socket.socket:
        """Connect to the target, and give the target's end."""
        assert self.ask(**how) == 0
        return self._house.targets.accept()[0]

    def read(self, count: int) -> bytes:
        """Read so many bytes, or up to the end."""
        data = b""
        while len(data) < count and (piece := self.sock.recv(count - len(data))):
            data += piece
        return data


@pytest.fixture
def house() -> Iterator[House]:
    """Give a house to serve in."""
    with patience():
        made = House()
        yield made
        made.close()


def is_alive(client: Client, target: socket.socket) -> bool:
    """Tell whether bytes go both ways."""
    client.sock.sendall(b"ping")
    assert target.recv(10) == b"ping"
    target.sendall(b"pong")
    return client.read(4) == b"pong"


# -- opening


def test_a_server_tells_where_it_listens(house: House) -> None:
    server = house.serve()
    (address,) = server.addresses
    assert address.host == "127.0.0.1"
    assert address.port > 0


def test_an_address_can_be_given_instead_of_the_configured_one(house: House) -> None:
    server = Socks5Server(ServerConfig("127.0.0.1:0", Protocol.SOCKS5))
    port = free_port()
    server.listen(f"127.0.0.1:{port}")
    house.servers.append(server)
    assert [each.port for each in server.addresses] == [port]


def test_an_address_in_use_is_an_error_and_leaves_nothing_open(house: House) -> None:
    first = house.serve()
    second = Socks5Server(ServerConfig(str(first.addresses[0]), Protocol.SOCKS5))
    with pytest.raises(ProxyError, match="Address already in use"):
        second.listen()
    assert second.addresses == []


def test_a_tls_file_that_is_of_no_use_is_an_error_before_anything_opens() -> None:
    from proxy.websocket.server import WebSocketServer

    config = ServerConfig(
        "127.0.0.1:0", Protocol.WEBSOCKET, tls_cert="/nowhere/c.pem", tls_key="/nowhere/k.pem"
    )
    with pytest.raises(ConfigError, match=r"/nowhere/c\.pem"):
        WebSocketServer(config)


# -- serving


def test_live_and_past_connections_are_counted(house: House) -> None:
    server = house.serve()
    client = house.connect(server)
    target = client.open()
    assert (len(server.sessions), server.total) == (1, 1)
    assert is_alive(client, target)
    (session,) = server.sessions
    assert session.relay is not None
    assert (session.relay.sent, session.relay.received) == (4, 4)
    client.sock.close()
    target.close()
    wait_until_empty(server)
    assert server.total == 1
    (line,) = house.lines
    assert "end=finished" in line


def wait_until_empty(server: Socks5Server) -> None:
    """Wait for the last session to end."""
    until(lambda: not server.sessions)


def test_each_connection_has_a_number_of_its_own(house: House) -> None:
    server = house.serve()
    clients = [house.connect(server) for _ in range(3)]
    for client in clients:
        client.open()
    assert len({session.id for session in server.sessions}) == 3


def test_an_internal_error_ends_one_connection_and_no_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES G191."""
    server = house.serve()
    with monkeypatch.context() as patch:
        patch.setattr(Session, "_greet", lambda *_: 1 // 0)
        assert house.connect(server).read(1) == b""
    wait_until_empty(server)
    client = house.connect(server)
    assert is_alive(client, client.open())
    assert (len(server.sessions), server.total) == (1, 2)


# -- too many


def test_above_the_limit_a_client_is_refused_at_once(house: House) -> None:
    """CASES G180, ``overload = refuse``."""
    server = house.serve(max_connections=2, overload=Overload.REFUSE)
    first, second = house.connect(server), house.connect(server)
    targets = [first.open(), second.open()]
    started = time.monotonic()
    assert [house.connect(server).ask() for _ in range(5)] == [1] * 5  # RFC 1928, section 6: general failure
    assert time.monotonic() - started < LATE
    assert is_alive(first, targets[0])
    second.sock.close()
    targets[1].close()
    until(lambda: len(server.sessions) != 2)
    assert house.connect(server).ask() == 0


def test_above_the_limit_a_client_waits(house: House) -> None:
    """CASES G180, ``overload = wait``."""
    server = house.serve(max_connections=1)
    first = house.connect(server)
    target = first.open()
    waiting = house.connect(server)
    asking = gevent.spawn(waiting.ask)
    settle()
    assert not asking.ready()
    first.sock.close()
    target.close()
    assert asking.get() == 0


# -- authentication and ways out


@pytest.mark.parametrize(("overload", "fate"), [(Overload.WAIT, "wait"), (Overload.REFUSE, "are refused")])
def test_a_listener_that_is_full_says_so_once_with_its_limit_and_counts_it(
    house: House,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    overload: Overload,
    fate: str,
) -> None:
    """Case 331."""
    monkeypatch.setattr("proxy.listening.fullness._SETTLED", 0.01)
    caplog.set_level(logging.INFO, "proxy.listening.fullness")
    server = house.serve(max_connections=2, overload=overload)
    assert server.metrics.filled == 0
    clients = [house.connect(server) for _ in range(3)]
    for client in clients[:2]:
        client.open()
    assert server.metrics.filled == 1
    assert [each.getMessage() for each in caplog.records] == [
        f"socks is full: its max_connections are in use (2); new clients {fate} until one ends"
    ]
    for client in clients:
        client.sock.close()
    until(lambda: len(caplog.records) >= 2)
    assert caplog.records[1].getMessage().startswith("socks has room again: ")


def test_credentials_are_judged_as_at_the_door(house: House) -> None:
    """The specification's ``authenticate``."""
    open_house = house.serve()
    assert open_house.authenticate("anyone", "")
    strict = house.serve(auth_users={"alice": "wonderland"})
    assert strict.authenticate("alice", "wonderland")
    assert not strict.authenticate("alice", "other")
    assert not strict.authenticate("", "")


def test_a_target_is_reached_by_the_configured_way(house: House) -> None:
    """The specification's ``select_upstream_connection``."""
    host, port = house.targets.getsockname()
    inner = house.serve()
    upstream = UpstreamConfig("inner", UpstreamType.SOCKS5, str(inner.addresses[0]))
    outer = house.serve(upstream_config=(upstream,))
    for server, via in ((inner, "direct"), (outer, "inner")):
        connected = server.select_upstream_connection(host, port)
        assert connected.via == via
        connected.close()
        house.targets.accept()[0].close()
    with pytest.raises(DialError) as raised:
        inner.select_upstream_connection("127.0.0.1", free_port())
    assert raised.value.failure is Failure.REFUSED


def test_ways_out_share_no_health_between_servers(house: House) -> None:
    down = UpstreamConfig("down", UpstreamType.SOCKS5, f"127.0.0.1:{free_port()}", retry_count=0)
    servers = [house.serve(upstream_config=(down,), strategy=Strategy.FAILOVER) for _ in range(2)]
    for server in servers:
        with pytest.raises(UpstreamError):
            server.select_upstream_connection("127.0.0.1", 9)


# -- reloading


def test_a_reload_is_for_new_connections_and_old_ones_keep_what_they_had(house: House) -> None:
    """CASES H200, H204."""
    server = house.serve()
    old = house.connect(server)
    target = old.open()
    half_way = house.connect(server)
    half_way.sock.sendall(NO_LOGIN)
    assert half_way.read(2) == b"\x05\x00"

    server.reload_config(replace(server.config, auth_users={"alice": "wonderland"}))

    assert is_alive(old, target)
    half_way.sock.sendall(house.request)
    assert half_way.read(10)[1] == 0
    house.targets.accept()
    refused = house.connect(server)
    refused.sock.sendall(NO_LOGIN)
    assert refused.read(2) == b"\x05\xff"  # RFC 1928, section 3
    assert house.connect(server).ask(login=True) == 0


def test_a_reload_that_fails_changes_nothing(house: House) -> None:
    """CASES H193: all or nothing."""
    server = house.serve()
    before = server.config
    missing = UpstreamConfig("home", UpstreamType.WEBSOCKET, "wss://localhost:1/", tls_ca="/nowhere/ca.pem")
    with pytest.raises(ConfigError, match=r"/nowhere/ca\.pem"):
        server.reload_config(replace(before, upstream_config=(missing,)))
    assert server.config is before
    assert house.connect(server).ask() == 0


def test_fifty_reloads_do_not_disturb_a_transfer(house: House) -> None:
    """CASES H200."""
    server = house.serve()
    client = house.connect(server)
    target = client.open()
    data = bytes(range(256)) * 20_000
    sending = gevent.spawn(client.sock.sendall, data)
    received = b""
    for number in range(50):
        server.reload_config(replace(server.config, timeout=1.0 + number))
        received += target.recv(1 << 16)
    while len(received) < len(data):
        received += target.recv(1 << 16)
    assert received == data
    sending.get()


def test_a_reload_changes_the_number_of_places(house: House) -> None:
    """CASES H204: ``max_connections`` is for new connections too."""
    server = house.serve(max_connections=1)
    assert house.connect(server).ask() == 0
    server.reload_config(replace(server.config, max_connections=3))
    assert house.connect(server).ask() == 0
    assert house.connect(server).ask() == 0


# -- closing


def test_a_server_that_stops_accepting_serves_on(house: House) -> None:
    """CASES I212."""
    server = house.serve()
    port = server.addresses[0].port
    client = house.connect(server)
    target = client.open()
    server.stop_accepting()
    assert server.addresses == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    assert is_alive(client, target)


def test_a_shutdown_waits_for_connections_that_end(house: House) -> None:
    """CASES I212."""
    server = house.serve()
    client = house.connect(server)
    target = client.open()
    stopping = gevent.spawn(server.shutdown, 30.0)
    settle()
    assert not stopping.ready()
    assert is_alive(client, target)
    client.sock.close()
    target.close()
    stopping.get(timeout=LATE)
    assert "end=finished" in house.lines[0]


def test_a_shutdown_cuts_what_does_not_end(house: House) -> None:
    """CASES I213: nobody takes it for the end of the data."""
    server = house.serve()
    client = house.connect(server)
    target = client.open()
    greeting = house.connect(server)
    started = time.monotonic()
    server.shutdown(0.1)
    assert 0.1 <= time.monotonic() - started < 1.0 + LATE
    for sock in (client.sock, target):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert "end=stopped" in house.lines[0]
    assert greeting.read(1) == b""
    assert not server.sessions


def test_a_shutdown_of_an_idle_server_is_immediate(house: House) -> None:
    server = house.serve()
    started = time.monotonic()
    server.shutdown(30.0)
    assert time.monotonic() - started < LATE


def test_a_server_can_be_shut_down_twice(house: House) -> None:
    server = house.serve()
    server.shutdown()
    server.shutdown()


# -- those that ask for nothing


@pytest.mark.parametrize("overload", [Overload.WAIT, Overload.REFUSE])
def test_who_asks_for_nothing_keeps_no_client_out(house: House, overload: Overload) -> None:
    """DESIGN 1.12: they may be connections that another proxy has ready, as many as there are places."""
    server = house.serve(max_connections=2, overload=overload, handshake_timeout=3600.0)
    ready = [house.connect(server) for _ in range(2)]
    for client in ready:
        client.sock.sendall(NO_LOGIN)
        assert client.read(2) == b"\x05\x00"
    until(lambda: len(server.sessions) < 2)
    assert house.connect(server).ask() == 0
    assert not house.lines  # nobody has a line who asked for nothing
    assert ready[0].sock.recv(1) == b""  # it has waited for longest


def test_who_is_served_keeps_its_place(house: House) -> None:
    """The counter-example, and so does one that has begun to ask."""
    server = house.serve(max_connections=3, handshake_timeout=3600.0)
    tunnel, asking, idle = (house.connect(server) for _ in range(3))
    assert tunnel.ask() == 0
    asking.sock.sendall(NO_LOGIN)
    assert asking.read(2) == b"\x05\x00"
    asking.sock.sendall(house.request[:1])
    assert idle.sock.recv(1) == b""  # only this one gives way
    settle()
    assert len(server.sessions) == 2
