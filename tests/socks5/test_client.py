"""
As a client of other SOCKS5 proxies: what we say to them, and every legal form of what they may answer.

A scripted upstream stands behind doors of a running node: one without credentials, and one for each pair.
"""

import os
import queue
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.address import Address
from proxy.net.deadline import Deadline
from proxy.settings.client import ClientConfig
from proxy.socks5.client import Socks5Client
from tests.integration.programs import COMMAND, Program, Proxy, socks_door, upstream
from tests.wire import clients
from tests.wire.clients import SocksRefused, SocksTunnel
from tests.wire.greenlets import patience
from tests.wire.sockets import free_port, read_exact
from tests.wire.socks5 import (
    CHOSEN,
    GRANTED,
    LOGGED_IN,
    LOGIN_CHOSEN,
    hear_greeting,
    hear_login,
    hear_request,
    login,
    to_ip,
    to_name,
)
from tests.wire.targets import Target

GLUED = random.Random(40).randbytes(3000)
PORT = b"\xff\x00"

# RFC 1928, section 6: BND.ADDR, by its type. We need none of it, and no server checks that it makes sense.
BOUND = {
    "ipv4": b"\x01\xc0\x00\x02\x01",
    "ipv4-nowhere": b"\x01\x00\x00\x00\x00",
    "ipv6": b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01",
    "ipv6-mapped": b"\x04" + bytes(10) + b"\xff\xff\x7f\x00\x00\x01",
    "name": b"\x03\x0fwww.example.com",
    "name-of-1": b"\x03\x01x",
    "name-of-0": b"\x03\x00",
    "name-of-127": b"\x03\x7f" + b"x" * 127,
    "name-of-128": b"\x03\x80" + b"x" * 128,
    "name-of-255": b"\x03\xff" + b"x" * 255,
    "name-of-any-bytes": b"\x03\x05\x00\xff \x80\n",
}

PAIRS = {
    "1-byte": ("u", "p"),
    "127-bytes": ("u" * 127, "p" * 127),
    "128-bytes": ("u" * 128, "p" * 128),
    "255-bytes": ("u" * 255, "p" * 255),
    "128-bytes-of-utf-8": ("ü" * 64, "я" * 64),
    "255-bytes-of-utf-8": ("密" * 85, "码" * 85),
    "long-and-short": ("u" * 255, "p"),
}
DEFAULT_PAIR = PAIRS["1-byte"]

Cut = Callable[[bytes], list[bytes]]


def whole(message: bytes) -> list[bytes]:
    """Send a message as it is."""
    return [message]


def bytewise(message: bytes) -> list[bytes]:
    """Send a message one byte at a time."""
    return [bytes([byte]) for byte in message]


def cut_at(position: int) -> Cut:
    """Send a message in two pieces."""
    return lambda message: [piece for piece in (message[:position], message[position:]) if piece]


@dataclass
class Heard:
    """What an upstream was told: messages as they came."""

    greeting: bytes = b""
    login: bytes = b""
    request: bytes = b""
    payload: bytes = b""


@dataclass
class Script:
    """What one connection to an upstream is told, how that is cut into segments, and what it said."""

    method: bytes = CHOSEN
    status: bytes = LOGGED_IN
    reply: bytes = b"\x05\x00\x00" + BOUND["ipv4"] + PORT
    cut: Cut = whole
    heard: "queue.Queue[Heard]" = field(default_factory=queue.Queue)

    def play(self, connection: socket.socket) -> None:
        """Read one message, answer it, and so on; then echo."""
        heard = Heard()
        try:
            heard.greeting = hear_greeting(connection)
            self._say(connection, self.method)
            if self.method == LOGIN_CHOSEN:
                heard.login = hear_login(connection)
                self._say(connection, self.status)
            heard.request = hear_request(connection)
            self._say(connection, self.reply)
            while data := connection.recv(1 << 16):
                heard.payload += data
                connection.sendall(data)
        except (ConnectionError, TimeoutError):
            pass  # our client has had enough
        finally:
            self.heard.put(heard)

    def _say(self, connection: socket.socket, message: bytes) -> None:
        for piece in self.cut(message):
            connection.sendall(piece)
            if self.cut is not whole:
                time.sleep(0.001)  # so that the next piece is read apart from this one


class Upstream(Target):
    """
    A SOCKS5 proxy that says what a test tells it.

    It reads as the RFCs print the messages: exactly one, and then it answers.
    """

    def __init__(self) -> None:
        super().__init__(self._begin)
        self.script()

    def script(self, **script: Any) -> None:
        """Set what the next connection is told."""
        self._script = Script(**script)

    def heard(self) -> Heard:
        """Wait until the connection has ended, and give what it said."""
        return self._script.heard.get(timeout=20)

    def _begin(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._script.play(connection)


@dataclass
class Bench:
    """The node, and the upstream behind all of its doors."""

    node: Proxy
    upstream: Upstream

    def connect(self, door: str = "nobody", host: str = "192.0.2.1", port: int = 80) -> SocksTunnel:
        """Connect through the upstream."""
        return clients.socks5(self.node.door(door), host, port)

    def refusal(self, door: str = "nobody") -> int:
        """Fail to connect, and give the code of the reply."""
        with pytest.raises(SocksRefused) as refused:
            self.connect(door).close()
        return refused.value.reply


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """Run a node with a door for each pair of credentials, and one for none."""
    with ExitStack() as stack:
        proxy = stack.enter_context(Upstream())
        door = ("127.0.0.1", proxy.port)
        ways = {"nobody": upstream("socks5", door)}
        for name, (user, password) in PAIRS.items():
            ways[name] = upstream("socks5", door, proxy_username=user, proxy_password=password)
        doors = {name: socks_door(upstream=name) for name in ways}
        settings = {"log_level": "debug", "timeout": "5s"}
        node = stack.enter_context(Proxy({"proxy": settings, "listeners": doors, "upstreams": ways}))
        yield Bench(node, proxy)
        assert "internal error" not in node.log
        for _, password in list(PAIRS.values())[1:-1]:
            assert password not in node.log


# What we say


@pytest.mark.parametrize("pair", PAIRS)
def test_credentials_arrive_as_they_are(bench: Bench, pair: str) -> None:
    """CASES B44: each length is one byte, from 128 on too."""
    user, password = PAIRS[pair]
    bench.upstream.script(method=LOGIN_CHOSEN)
    bench.connect(pair).close()
    heard = bench.upstream.heard()
    # Version 5, and the login among the methods (RFC 1928, section 3).
    assert heard.greeting[0] == 5
    assert 0x02 in heard.greeting[2:]
    assert heard.login == login(user.encode(), password.encode())
    assert heard.request == to_ip("192.0.2.1", 80)


def test_credentials_may_be_any_bytes() -> None:
    """CASES B44: all 255 bytes that a command line and an environment can hold."""
    user, password = bytes(range(1, 256)), bytes(range(255, 0, -1))
    with Upstream() as proxy:
        proxy.script(method=LOGIN_CHOSEN)
        port = free_port()
        server = Program(
            [
                *COMMAND,
                *("-mode", "server", "-protocol", "socks5", "-addr", f"127.0.0.1:{port}"),
                *("-upstream-type", "socks5", "-upstream-address", f"127.0.0.1:{proxy.port}"),
                *("-upstream-username", os.fsdecode(user)),
            ],
            environment={"PROXY_UPSTREAM_PASSWORD": os.fsdecode(password)},
        )
        with server:
            server.wait_listening(port)
            clients.socks5(("127.0.0.1", port), "192.0.2.1", 80).close()
            assert proxy.heard().login == login(user, password)


def test_without_credentials_only_no_authentication_is_offered(bench: Bench) -> None:
    bench.upstream.script()
    bench.connect().close()
    assert bench.upstream.heard().greeting == b"\x05\x01\x00"


def test_no_password_is_sent_to_an_upstream_that_wants_none(bench: Bench) -> None:
    bench.upstream.script(method=CHOSEN)
    tunnel = bench.connect("1-byte")
    tunnel.sendall(b"hello")
    assert read_exact(tunnel, 5) == b"hello"
    tunnel.close()
    heard = bench.upstream.heard()
    assert heard.login == b""
    assert heard.payload == b"hello"


def name_of(size: int) -> str:
    """Make a name of so many bytes, with labels of 63 at most."""
    name = ".".join(["n" * 63] * 4)[:size]
    assert len(name) == size
    assert not name.endswith(".")
    return name


@pytest.mark.parametrize("size", [1, 63, 65, 127, 129, 130, 191, 200, 253, 255])
def test_a_name_travels_as_a_name(bench: Bench, size: int) -> None:
    """Its length is one byte, from 128 on too; nobody looks it up here."""
    name = name_of(size)
    bench.upstream.script()
    bench.connect(host=name, port=8080).close()
    assert bench.upstream.heard().request == to_name(name.encode(), 8080)


@pytest.mark.parametrize("name", ["nowhere.invalid", "localhost", "xn--bcher-kva.example", "_srv.example."])
def test_a_name_is_not_resolved_here(bench: Bench, name: str) -> None:
    bench.upstream.script()
    bench.connect(host=name).close()
    assert bench.upstream.heard().request == to_name(name.encode(), 80)


@pytest.mark.parametrize("ip", ["192.0.2.1", "2001:db8::1", "0.0.0.0"])
def test_an_address_travels_as_an_address(bench: Bench, ip: str) -> None:
    """Whether it is allowed is for the one to say who goes out."""
    bench.upstream.script()
    bench.connect(host=ip, port=65535).close()
    assert bench.upstream.heard().request == to_ip(ip, 65535)


# What we may be answered


def check_glued(bench: Bench, door: str) -> None:
    """Connect, and receive what was glued to the reply, and then an echo."""
    tunnel = bench.connect(door)
    tunnel.sendall(b"and more")
    assert read_exact(tunnel, len(GLUED)) == GLUED
    assert read_exact(tunnel, 8) == b"and more"
    tunnel.end()
    assert tunnel.recv(1) == b""
    tunnel.close()
    assert bench.upstream.heard().payload == b"and more"


@pytest.mark.parametrize("door", ["nobody", "1-byte"])
@pytest.mark.parametrize("bound", BOUND.values(), ids=BOUND)
def test_every_form_of_a_reply_is_read_and_what_follows_is_kept(
    bench: Bench, bound: bytes, door: str
) -> None:
    """CASES A40."""
    method = CHOSEN if door == "nobody" else LOGIN_CHOSEN
    bench.upstream.script(method=method, reply=b"\x05\x00\x00" + bound + PORT + GLUED)
    check_glued(bench, door)


@pytest.mark.parametrize("bound", BOUND.values(), ids=BOUND)
def test_every_form_of_a_reply_may_come_byte_by_byte(bench: Bench, bound: bytes) -> None:
    """CASES A1, A40."""
    reply = b"\x05\x00\x00" + bound + PORT
    bench.upstream.script(method=LOGIN_CHOSEN, reply=reply, cut=bytewise)
    tunnel = bench.connect("1-byte")
    tunnel.sendall(b"hello")
    assert read_exact(tunnel, 5) == b"hello"
    tunnel.close()


@pytest.mark.parametrize("form", ["ipv4", "ipv6", "name"])
def test_a_reply_may_be_cut_anywhere(bench: Bench, form: str) -> None:
    """CASES A1, A40: what is glued to it comes with its second half, or in a piece of its own."""
    reply = b"\x05\x00\x00" + BOUND[form] + PORT
    for position in range(1, len(reply) + 2):
        bench.upstream.script(reply=reply + GLUED, cut=cut_at(position))
        check_glued(bench, "nobody")


@pytest.mark.parametrize("form", ["ipv4", "ipv6", "name"])
@pytest.mark.parametrize("code", range(1, 9))
def test_a_refusal_is_passed_on(bench: Bench, code: int, form: str) -> None:
    """CASES A40, F164: in every form of the address that comes with it."""
    bench.upstream.script(reply=bytes([5, code, 0]) + BOUND[form] + PORT)
    assert bench.refusal() == code


@pytest.mark.parametrize("cut", [bytewise, cut_at(1), cut_at(2), cut_at(3), cut_at(4), cut_at(9)])
@pytest.mark.parametrize("code", [2, 5, 8])
def test_a_refusal_in_pieces_is_the_same_refusal(bench: Bench, code: int, cut: Callable[..., Any]) -> None:
    """CASES A1, A40."""
    bench.upstream.script(reply=bytes([5, code, 0]) + BOUND["ipv4"] + PORT, cut=cut)
    assert bench.refusal() == code


@pytest.mark.parametrize("code", [9, 0x5B, 0x80, 0xFF])
@pytest.mark.parametrize("cut", [whole, bytewise])
def test_a_code_that_the_rfc_does_not_know_is_a_general_failure(
    bench: Bench, code: int, cut: Callable[..., Any]
) -> None:
    """CASES F164."""
    bench.upstream.script(reply=bytes([5, code, 0]) + BOUND["ipv4"] + PORT, cut=cut)
    assert bench.refusal() == 1


ILLEGAL: dict[str, dict[str, Any]] = {
    "method-version-4": {"method": b"\x04\x00"},
    "method-version-0": {"method": b"\x00\x00"},
    "method-http": {"method": b"HTTP/1.1 400 Bad Request\r\n\r\n"},
    "no-method": {"method": b"\x05\xff"},
    "method-gssapi": {"method": b"\x05\x01"},
    "method-unknown": {"method": b"\x05\x80"},
    "status-version-5": {"method": LOGIN_CHOSEN, "status": b"\x05\x00"},
    "status-version-0": {"method": LOGIN_CHOSEN, "status": b"\x00\x00"},
    "status-1": {"method": LOGIN_CHOSEN, "status": b"\x01\x01"},
    "status-ff": {"method": LOGIN_CHOSEN, "status": b"\x01\xff"},
    "reply-version-4": {"reply": b"\x04\x00\x00\x01" + bytes(6)},
    "reply-version-0": {"reply": b"\x00\x5a" + bytes(6)},  # SOCKS4's success
    "reply-type-0": {"reply": b"\x05\x00\x00\x00" + bytes(6)},
    "reply-type-2": {"reply": b"\x05\x00\x00\x02" + bytes(6)},
    "reply-type-ff": {"reply": b"\x05\x00\x00\xff" + bytes(300)},
}


@pytest.mark.parametrize("script", ILLEGAL.values(), ids=ILLEGAL)
@pytest.mark.parametrize("cut", [whole, bytewise])
def test_nonsense_is_the_upstreams_fault(
    bench: Bench, script: dict[str, bytes], cut: Callable[..., Any]
) -> None:
    """CASES F160, F166: reply 01, at once."""
    bench.upstream.script(**script, cut=cut)
    assert bench.refusal("1-byte") == 1


def test_a_login_that_we_did_not_offer_is_the_upstreams_fault(bench: Bench) -> None:
    """CASES F166: we have no credentials, and say so."""
    bench.upstream.script(method=LOGIN_CHOSEN)
    assert bench.refusal("nobody") == 1


@pytest.mark.parametrize("form", ["ipv4", "ipv6", "name"])
def test_an_upstream_that_leaves_in_mid_reply_is_at_fault(form: str) -> None:
    """CASES F156: at each byte of all that it says."""
    said = [LOGIN_CHOSEN, LOGGED_IN, b"\x05\x00\x00" + BOUND[form] + PORT]
    whole_script = b"".join(said)
    with ExitStack() as stack:
        scripts = [stack.enter_context(Target(_says(whole_script[:end]))) for end in range(len(whole_script))]
        ways = {
            f"cut-{end}": upstream(
                "socks5", ("127.0.0.1", script.port), proxy_username="u", proxy_password="p"
            )
            for end, script in enumerate(scripts)
        }
        doors = {name: socks_door(upstream=name) for name in ways}
        proxy = {"timeout": "1h"}  # what ends does not end by a timeout, then
        node = stack.enter_context(Proxy({"proxy": proxy, "listeners": doors, "upstreams": ways}))
        for name in ways:
            with pytest.raises(SocksRefused) as refused:
                clients.socks5(node.door(name), "192.0.2.1", 80)
            assert refused.value.reply == 1
        assert "internal error" not in node.log


def _says(data: bytes) -> Callable[[socket.socket], None]:
    """Say something at once, end, and read on: closing with unread bytes would reset what was said."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass

    return behave


# -- its two parts


def hear_all_before_the_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """Let a client log in."""
    greeting = hear_greeting(connection)
    connection.sendall(LOGIN_CHOSEN)
    credentials = hear_login(connection)
    connection.sendall(LOGGED_IN)
    return greeting, credentials


def test_what_comes_before_the_request_says_nothing_of_a_target() -> None:
    """RFC 1928, section 3, and RFC 1929, section 2: a greeting, a login, and not a byte more."""

    def behave(connection: socket.socket) -> tuple[bytes, ...]:
        return (*hear_all_before_the_request(connection), connection.recv(1))

    with patience(15), Target(behave) as proxy:
        channel = a_client_of(proxy).reach(Deadline(10))
        channel.abort()
        assert proxy.result() == (b"\x05\x02\x00\x02", b"\x01\x05alice\x0awonderland", b"")


def test_the_request_comes_without_a_second_greeting() -> None:
    """RFC 1928, section 4."""

    def behave(connection: socket.socket) -> bytes:
        hear_all_before_the_request(connection)
        request = hear_request(connection)
        connection.sendall(GRANTED)
        return request

    with patience(15), Target(behave) as proxy:
        client = a_client_of(proxy)
        connected = client.request(client.reach(Deadline(10)), Address("192.0.2.7", 80), Deadline(10))
        assert str(connected.bound) == "127.0.0.1:1234"
        connected.close()
        assert proxy.result() == b"\x05\x01\x00\x01\xc0\x00\x02\x07\x00\x50"


def a_client_of(proxy: Target) -> Socks5Client:
    """Make a client that logs in."""
    return Socks5Client(ClientConfig(f"127.0.0.1:{proxy.port}", username="alice", password="wonderland"))
