"""
Logins that wait for a hash: how the threads for them are shared out, and what becomes of those who leave.

A hash is scripted here: a wrong one takes until a test lets it end, a right one no time.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gevent
import pytest
from gevent import socket

from proxy import runtime as module
from proxy.net import checking
from proxy.net.checking import Checkers
from proxy.policy import auth
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from proxy.socks5.server import Socks5Server
from tests.wire.greenlets import PATIENCE, patience, settle, until

WITH_LOGIN = b"\x05\x01\x02"  # RFC 1928, section 3: version 5, one method, username and password
RIGHT, REFUSED = b"\x01\x00", b"\x01\x01"  # RFC 1929, section 2
HASH = f"scrypt$10$8$1${'A' * 24}${'A' * 43}"
OTHER_HASH = f"scrypt$10$8$1${'B' * 24}${'B' * 43}"


class Hashes:
    """Compares passwords to hashes."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.go = threading.Event()

    def __call__(self, password: bytes, stored: bytes) -> bool:
        if not stored:
            return False  # nobody's: it is no hash
        self.begun.append(password)
        if password.startswith(b"wrong"):
            self.go.wait(PATIENCE)
        return password == b"right"


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hashes]:
    """Take the place of scrypt."""
    made = Hashes()
    monkeypatch.setattr(auth, "verify", made)
    monkeypatch.setattr(module, "_hashing", Checkers(2))
    with patience():
        yield made
        made.go.set()


@pytest.fixture
def servers(hashes: Hashes) -> Iterator[list[Socks5Server]]:
    """Run two listeners with the same users."""
    made = []
    for name in ("one", "other"):
        config = ServerConfig("127.0.0.1:0", Protocol.SOCKS5, name=name, auth_users={"alice": HASH})
        made.append(Socks5Server(config))
        made[-1].listen()
    yield made
    hashes.go.set()
    for server in made:
        server.shutdown()


def log_in(server: Socks5Server, password: bytes, source: str = "127.0.0.1") -> Any:
    """Send a login, and wait for nothing."""
    sock = socket.create_connection(
        ("127.0.0.1", server.addresses[0].port), timeout=PATIENCE, source_address=(source, 0)
    )
    sock.sendall(WITH_LOGIN + b"\x01\x05alice" + bytes([len(password)]) + password)
    return sock


def answer(sock: Any) -> bytes:
    """Read the answer to a login."""
    assert sock.recv(2) == b"\x05\x02"
    return bytes(sock.recv(2))


def flood(server: Socks5Server, count: int) -> list[Any]:
    """Try so many passwords, all of them wrong, and wait until they are heard."""
    socks = [log_in(server, b"wrong %d" % number) for number in range(count)]
    until(lambda: len(server.sessions) >= count - answered(socks))
    settle()
    return socks


def answered(socks: list[Any]) -> int:
    """Count those who were told."""
    count = 0
    for sock in socks:
        sock.setblocking(False)
        try:
            count += len(sock.recv(16, socket.MSG_PEEK)) > 2
        except BlockingIOError:
            pass
        sock.settimeout(PATIENCE)
    return count


def test_many_wrong_logins_hold_up_no_right_one_elsewhere(
    hashes: Hashes, servers: list[Socks5Server]
) -> None:
    """Case 376: 700 of one address wait, and another address at another listener does not."""
    flood(servers[0], 700)
    assert answer(log_in(servers[1], b"right", "127.0.0.2")) == RIGHT
    assert len(hashes.begun) == 2  # one of all those, and this one
    assert answer(log_in(servers[0], b"right", "127.0.0.3")) == RIGHT


def test_above_a_bound_the_answer_is_at_once(hashes: Hashes, servers: list[Socks5Server]) -> None:
    """Case 376: and it costs no hash."""
    socks = flood(servers[0], 100)
    at_most = 1 + int(checking.MOST_WAIT / checking._USUAL)
    until(lambda: answered(socks) >= 100 - at_most)
    assert answered(socks) == 100 - at_most
    assert len(hashes.begun) == 1
    told = [sock for sock in socks if answered([sock])]
    assert {answer(sock) for sock in told} == {REFUSED}


def test_the_bound_is_one_of_time(hashes: Hashes, servers: list[Socks5Server]) -> None:
    """Where a check takes long, those who would have to wait for too long are told when that shows."""
    socks = flood(servers[0], 20)
    gevent.sleep(0.5)  # how long the first one takes; and whoever asked in vain rests for eight times as long
    assert answered(socks) == 0
    hashes.go.set()
    until(lambda: answered(socks) >= 20 - 2)
    assert len(hashes.begun) == 1
    assert {answer(sock) for sock in socks if answered([sock])} == {REFUSED}


def test_who_guesses_costs_a_ninth_of_a_processor(hashes: Hashes, servers: list[Socks5Server]) -> None:
    """And others wait no longer for that."""
    ends = []

    def take_a_while(password: bytes, stored: bytes) -> bool:
        hashes.begun.append(password)
        busy = 0.02
        threading.Event().wait(busy)
        ends.append(time.monotonic())
        return password == b"right"

    auth.verify = take_a_while  # the fixture puts it back
    began = time.monotonic()
    socks = [log_in(servers[0], b"wrong %d" % number) for number in range(4)]
    assert answer(log_in(servers[1], b"right", "127.0.0.2")) == RIGHT
    assert {answer(sock) for sock in socks} == {REFUSED}
    assert len(hashes.begun) == 5
    assert ends[-1] - began >= 4 * 0.02 + 3 * 8 * 0.02  # four checks, and three rests between them


def test_the_check_of_a_client_that_left_is_never_made(
    hashes: Hashes, servers: list[Socks5Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 376."""
    # However long this takes: who asked in vain would rest for eight times that, and the right login with it.
    monkeypatch.setattr(module, "_hashing", Checkers(2, lambda: 0.0))
    socks = flood(servers[0], 30)
    for sock in socks:
        sock.close()
    until(lambda: not servers[0].sessions)
    hashes.go.set()
    assert answer(log_in(servers[0], b"right")) == RIGHT
    assert len(hashes.begun) == 2


def test_those_who_wait_for_the_same_check_share_it(hashes: Hashes, servers: list[Socks5Server]) -> None:
    """Case 376."""
    first = log_in(servers[0], b"wrong at first")
    until(lambda: hashes.begun)
    socks = [log_in(servers[0], b"wrong", f"127.0.0.{1 + number // 50}") for number in range(100)]
    until(lambda: len(servers[0].sessions) >= 101)
    settle()
    assert answered(socks) == 0  # they are one check, so they are not too many
    hashes.go.set()
    assert {answer(sock) for sock in (first, *socks)} == {REFUSED}
    assert hashes.begun == [b"wrong at first", b"wrong"]


def test_a_login_is_remembered_over_a_reload_that_leaves_its_user_alone(
    hashes: Hashes, servers: list[Socks5Server]
) -> None:
    """Such as that of a certificate, which must not make all clients pay for a hash at once."""
    server = servers[0]
    assert answer(log_in(server, b"right")) == RIGHT
    server.reload_config(replace(server.config, timeout=7.0, auth_users={"alice": HASH, "bob": HASH}))
    assert answer(log_in(server, b"right")) == RIGHT
    assert len(hashes.begun) == 1
    server.reload_config(replace(server.config, auth_users={"alice": OTHER_HASH}))
    assert answer(log_in(server, b"right")) == RIGHT
    assert len(hashes.begun) == 2
