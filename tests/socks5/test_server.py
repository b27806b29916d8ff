"""
The SOCKS5 door from outside: raw bytes to a running server, in the order of CASES.md, groups A and B.

One node serves most of it; what needs a short deadline, another network or other users has its own.
"""

import contextlib
import hashlib
import os
import random
import re
import secrets
import socket
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.errors import AuthError
from proxy.socks5.server import Socks5Inbound
from tests.integration.netns import Namespace
from tests.integration.peers import StubDns
from tests.integration.programs import COMMAND, Program, Proxy, run_proxy, socks_door, upstream
from tests.wire import clients, targets
from tests.wire.processes import memory_of, sockets_of
from tests.wire.sockets import Door, free_port, read_exact
from tests.wire.socks5 import (
    AT_ONCE,
    CHOSEN,
    GREETING,
    LOGGED_IN,
    LOGIN_CHOSEN,
    LOGIN_GREETING,
    NONE_ACCEPTABLE,
    REPLY,
    Peer,
    code_of,
    login,
    talk,
    to_ip,
    to_name,
)
from tests.wire.targets import Target
from tests.wire.waits import wait_until

ALICE = (b"alice", b"wonderland")
USERS = {
    "alice": "wonderland",
    "u": "p",
    "L" * 255: "x" * 255,
    "zoë": "пароль 密码",
    "mallory": "#;%(x)s$'=",
}
PAYLOAD = random.Random(1928).randbytes(100)
HANDSHAKE = 0.6  # seconds, of the node that is in a hurry


# Lines of one client that are alike are collapsed, so a client that looks for its own has its own address.
SOURCES = (f"127.1.0.{number}" for number in range(1, 255))


@pytest.fixture(scope="module")
def node() -> Iterator[Proxy]:
    """Run a node with a door for anybody and one for users; none of its tests may leave anything behind."""
    doors = {"open": socks_door(auth="none"), "locked": socks_door()}
    # What is closed at once is not closed by a timeout, then.
    proxy = {"log_level": "debug", "handshake_timeout": "1h"}
    with Proxy({"proxy": proxy, "listeners": doors, "auth_users": USERS}) as node:
        with Target(targets.echo) as target:  # the first name lookup starts a thread, which stays
            clients.socks5(node.door("open"), "localhost", target.port).close()
        wait_until(lambda: node.log.count(" access ") == 1, "the connection to end")
        before = len(sockets_of(node.pid))
        yield node
        wait_until(lambda: len(sockets_of(node.pid)) <= before, "all connections to be closed")
        assert "internal error" not in node.log


@pytest.fixture(scope="module")
def hasty() -> Iterator[Proxy]:
    """Run a node that gives a client little time, with one place at each door."""
    proxy = {"handshake_timeout": f"{HANDSHAKE * 1000:g}ms", "max_connections": 1}
    doors = {"open": socks_door(auth="none"), "locked": socks_door(), "single": socks_door(auth="none")}
    with Proxy({"proxy": proxy, "listeners": doors, "auth_users": USERS}) as hasty:
        yield hasty


@pytest.fixture
def echo() -> Iterator[Target]:
    """Run a target that sends everything back."""
    with Target(targets.echo) as target:
        yield target


def split_answer(answer: bytes, *parts: bytes) -> int:
    """Check that an answer is these parts and then one reply, and give its code."""
    start = b"".join(parts)
    assert answer.startswith(start), answer.hex(" ")
    return code_of(answer[len(start) :])


# A. The handshake, in any segmentation


def dialogue(door: str, port: int) -> bytes:
    """Write all that a client says, up to its payload."""
    start = GREETING if door == "open" else LOGIN_GREETING + login(*ALICE)
    return start + to_name(b"localhost", port) + PAYLOAD


def check_echoed(door: str, answer: bytes) -> None:
    """Check all that a server says to a whole dialogue."""
    start = CHOSEN if door == "open" else LOGIN_CHOSEN + LOGGED_IN
    assert answer.endswith(PAYLOAD)
    assert split_answer(answer[: -len(PAYLOAD)], start) == 0


def converse(door: Door, segments: list[bytes], pause: float) -> bytes:
    """Send segments apart from each other and then a FIN, and give the whole answer."""
    with Peer(door) as peer:
        for segment in segments:
            peer.send(segment)
            time.sleep(pause)
        peer.end()
        return peer.rest()


@pytest.mark.parametrize("door", ["open", "locked"])
def test_a_dialogue_may_be_cut_anywhere(node: Proxy, echo: Target, door: str) -> None:
    """CASES A1."""
    script = dialogue(door, echo.port)
    for cut in range(1, len(script)):
        check_echoed(door, converse(node.door(door), [script[:cut], script[cut:]], 0.002))


@pytest.mark.parametrize("door", ["open", "locked"])
def test_a_dialogue_may_come_byte_by_byte(node: Proxy, echo: Target, door: str) -> None:
    """CASES A1."""
    segments = [bytes([byte]) for byte in dialogue(door, echo.port)]
    check_echoed(door, converse(node.door(door), segments, 0.001))


@pytest.mark.parametrize("door", ["open", "locked"])
@pytest.mark.parametrize("size", [1, 100, 5000, 300_000])
def test_early_data_arrives_exactly_once(node: Proxy, door: str, size: int) -> None:
    """CASES A2: all in one piece, without waiting for any answer."""
    early = random.Random(size).randbytes(size)
    with Target(targets.answer_after_end(b"bye")) as target, Peer(node.door(door)) as peer:
        peer.send(dialogue(door, target.port)[: -len(PAYLOAD)] + early)
        peer.end()
        answer = peer.rest()
        assert target.result() == early
        assert target.accepted == 1
    assert answer.endswith(b"bye")
    start = CHOSEN if door == "open" else LOGIN_CHOSEN + LOGGED_IN
    assert split_answer(answer[:-3], start) == 0


def test_early_data_does_not_hide_the_reply_when_the_target_refuses(node: Proxy) -> None:
    """CASES A3."""
    early = b"precious-early-data " * 5000
    answer = talk(node.door("open"), GREETING + to_ip("127.0.0.1", free_port()) + early)
    assert split_answer(answer, CHOSEN) == 5
    assert "precious" not in node.log


# Methods


@pytest.mark.parametrize(
    ("door", "greeting"),
    [
        pytest.param("open", b"\x05\x00", id="A4-no-methods"),
        pytest.param("locked", b"\x05\x00", id="A4-no-methods-and-users"),
        pytest.param("locked", b"\x05\x01\x00", id="A5-no-login"),
        pytest.param("locked", b"\x05\x03\x99\x21\x10", id="A5-unknown"),
        pytest.param("open", b"\x05\x03\x99\x21\x10", id="A5-unknown-without-users"),
        pytest.param("locked", b"\x05\x02\xff\xff", id="A8-ff"),
        pytest.param("open", b"\x05\x02\xff\xff", id="A8-ff-without-users"),
        pytest.param("open", b"\x05\x01\x02", id="login-without-users"),
        pytest.param("locked", b"\x05\x01\x01", id="gssapi"),
    ],
)
def test_refuses_a_client_that_offers_no_method_we_accept(node: Proxy, door: str, greeting: bytes) -> None:
    """CASES A4, A5, A8: two bytes (RFC 1928, section 3), then close."""
    assert talk(node.door(door), greeting) == b"\x05\xff"


@pytest.mark.parametrize(
    ("door", "greeting", "words"),
    [
        ("locked", b"\x05\x01\x00", "the client offers only methods [0], but has to log in (2)"),
        ("open", b"\x05\x01\x02", "the client offers only methods [2], but this listener has no logins (0)"),
        ("open", b"\x05\xff" + b"\x99" * 255, f"the client offers only methods {[0x99] * 8} ..., but "),
    ],
)
def test_the_log_says_which_login_is_missing(node: Proxy, door: str, greeting: bytes, words: str) -> None:
    """CASES 333."""
    source = next(SOURCES)
    with Peer(node.door(door), source) as peer:
        peer.send(greeting)
        assert peer.rest() == b"\x05\xff"
    assert words in node.wait_for_log(f"{source}:")


@pytest.mark.parametrize(
    ("door", "greeting", "chosen"),
    [
        pytest.param("locked", b"\x05\xff" + b"\x80" * 254 + b"\x02", b"\x05\x02", id="A6-last-of-255"),
        pytest.param("open", b"\x05\xff" + b"\x80" * 254 + b"\x00", b"\x05\x00", id="A6-without-users"),
        pytest.param("locked", b"\x05\x02\x00\x02", b"\x05\x02", id="A7-both"),
        pytest.param("open", b"\x05\x02\x02\x00", b"\x05\x00", id="A7-both-without-users"),
    ],
)
def test_picks_the_method_it_needs(node: Proxy, door: str, greeting: bytes, chosen: bytes) -> None:
    """CASES A6, A7."""
    with Peer(node.door(door)) as peer:
        peer.send(greeting)
        assert peer.read(2) == chosen


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"", id="A36-nothing"),
        pytest.param(b"\x05", id="version"),
        pytest.param(b"\x05\x03\x00", id="A9-methods-missing"),
    ],
)
def test_a_client_that_stops_in_its_greeting_is_closed_without_a_word(hasty: Proxy, start: bytes) -> None:
    """CASES A9, A36."""
    began = time.monotonic()
    with Peer(hasty.door("open")) as peer:
        peer.send(start)
        assert peer.rest() == b""
    assert time.monotonic() - began > HANDSHAKE - 0.05


# Clients that speak something else

CLIENT_HELLO = bytes.fromhex("16030102000100") + b"\x01\xfc\x03\x03" + bytes(508)
PROTOCOLS = {
    "A10-socks4": b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
    "A10-socks4a": b"\x04\x01\x00\x50\x00\x00\x00\x01user\x00localhost\x00",
    "A11-http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "A11-http-connect": b"CONNECT localhost:443 HTTP/1.1\r\n\r\n",
    "A12-tls": CLIENT_HELLO,
    "A12-ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "A12-proxy-protocol": b"PROXY TCP4 127.0.0.1 127.0.0.1 56324 443\r\n",
    "A12-proxy-protocol-2": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12),
    "A12-random": b"\xa7" + random.Random(12).randbytes(1023),
    "A13-version-0": b"\x00\x01\x00",
    "A13-version-1": b"\x01\x01\x00",
    "A13-version-6": b"\x06\x01\x00",
    "A13-version-ff": b"\xff\x01\x00",
    "B49-login-first": b"\x01\x02me\x02me",
}


@pytest.mark.parametrize("door", ["open", "locked"])
@pytest.mark.parametrize("script", PROTOCOLS.values(), ids=PROTOCOLS)
def test_another_protocol_is_closed_at_once_and_logged_in_one_line(
    node: Proxy, door: str, script: bytes
) -> None:
    """CASES A10-A13, B49."""
    source = next(SOURCES)
    with Peer(node.door(door), source) as peer:
        peer.send(script)
        assert peer.rest() == b""
    line = node.wait_for_log(f" {source}:")
    assert node.log.count(f" {source}:") == 1
    assert " info " in line
    assert "not SOCKS5" in line


def test_a_socks4_client_is_never_connected(node: Proxy, echo: Target) -> None:
    """CASES A10."""
    port = echo.port.to_bytes(2, "big")
    assert talk(node.door("open"), b"\x04\x01" + port + b"\x7f\x00\x00\x01\x00") == b""
    assert talk(node.door("open"), b"\x04\x01" + port + b"\x00\x00\x00\x01\x00localhost\x00") == b""
    assert echo.accepted == 0


# Requests that are not served

REFUSALS = {
    "A14-version-4": (b"\x04\x01\x00\x01\x7f\x00\x00\x01", {1}),
    "A14-version-0": (b"\x00\x01\x00\x01\x7f\x00\x00\x01", {1}),
    "A15-reserved": (b"\x05\x01\xff\x01\x7f\x00\x00\x01", {1}),
    "A15-reserved-1": (b"\x05\x01\x01\x01\x7f\x00\x00\x01", {1}),
    "A16-bind": (b"\x05\x02\x00\x01\x7f\x00\x00\x01", {7}),
    "A16-udp": (b"\x05\x03\x00\x01\x7f\x00\x00\x01", {7}),
    "A16-command-0": (b"\x05\x00\x00\x01\x7f\x00\x00\x01", {7}),
    "A16-command-4": (b"\x05\x04\x00\x01\x7f\x00\x00\x01", {7}),
    "A16-resolve": (b"\x05\xf0\x00\x03\x09localhost", {7}),
    "A16-command-ff": (b"\x05\xff\x00\x01\x7f\x00\x00\x01", {7}),
    "A17-type-0": (b"\x05\x01\x00\x00\x7f\x00\x00\x01", {8}),
    "A17-type-2": (b"\x05\x01\x00\x02\x7f\x00\x00\x01", {8}),
    "A17-type-5": (b"\x05\x01\x00\x05\x7f\x00\x00\x01", {8}),
    "A17-type-ff": (b"\x05\x01\x00\xff\x7f\x00\x00\x01", {8}),
    "A18-both": (b"\x05\x02\x00\x02\x7f\x00\x00\x01", {7, 8}),
}


@pytest.mark.parametrize("door", ["open", "locked"])
@pytest.mark.parametrize(("request_bytes", "codes"), REFUSALS.values(), ids=REFUSALS)
def test_a_request_that_is_not_served_has_one_reply(
    node: Proxy, echo: Target, door: str, request_bytes: bytes, codes: set[int]
) -> None:
    """CASES A14-A18, A39."""
    start, chosen = (GREETING, CHOSEN)
    if door == "locked":
        start, chosen = LOGIN_GREETING + login(*ALICE), LOGIN_CHOSEN + LOGGED_IN
    answer = talk(node.door(door), start + request_bytes + echo.port.to_bytes(2, "big"))
    assert split_answer(answer, chosen) in codes
    assert echo.accepted == 0


def test_udp_associate_opens_no_port(node: Proxy) -> None:
    """CASES A16: neither before the reply nor after it."""
    before = sockets_of(node.pid, "udp")
    with Peer(node.door("open")) as peer:
        peer.send(GREETING + b"\x05\x03\x00\x01" + bytes(6))
        assert peer.read(2) == CHOSEN
        assert peer.reply() == 7
        assert sockets_of(node.pid, "udp") == before


# Names and addresses


def ask(node: Proxy, request: bytes, within: float = AT_ONCE) -> int:
    """Ask for a target that cannot be had, and give the code of the one reply."""
    return split_answer(talk(node.door("open"), GREETING + request, within=within), CHOSEN)


BAD_NAMES = {
    "A19-empty": b"",
    "A22-latin-1": b"b\xfccher.example",
    "A22-cut-utf-8": b"\xc3",
    "A22-surrogate": b"\xed\xa0\x80.example",
    "A22-no-idna": "\u2028.example".encode(),
    "A22-label-of-64": "ü".encode() * 64 + b".example",
    "nul": b"localhost\x00.example",
    "newline": b"localhost\n",
    "blank": b"local host",
    "slash": b"localhost/",
    "at": b"me@localhost",
    "port": b"localhost:80",
    "A26-brackets": b"[::1]",
    "A26-brackets-port": b"[::1]:80",
    "A26-zone": b"fe80::1%lo",
    "A26-loopback-zone": b"::1%lo",
    "A26-brackets-zone": b"[fe80::1%25lo]",
    "A26-brackets-ipv4": b"[127.0.0.1]",
    "five-numbers": b"127.0.0.0.1",
    "too-big": b"127.0.0.256",
    "two-dots": b"a..b",
    "label-of-64": b"a" * 64,
    "255-dots": b"." * 255,
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_what_is_no_name_is_refused(node: Proxy, echo: Target, name: bytes) -> None:
    """CASES A19, A22, A26: malformed is reply 01."""
    assert ask(node, to_name(name, echo.port)) == 1
    assert echo.accepted == 0


@pytest.mark.parametrize(
    "name",
    [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.1.",
        "::1",
        "0:0:0:0:0:0:0:1",
        "::ffff:127.0.0.1",
        "localhost",
        "LOCALHOST",
    ],
)
def test_an_address_written_as_a_name_is_that_address(node: Proxy, echo: Target, name: str) -> None:
    """CASES A25, A26."""
    with Peer(node.door("open")) as peer:
        peer.send(GREETING + to_name(name.encode(), echo.port) + PAYLOAD)
        assert peer.read(2) == CHOSEN
        assert peer.reply() == 0
        assert peer.read(len(PAYLOAD)) == PAYLOAD


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_an_address_is_connected_to(node: Proxy, echo: Target, ip: str) -> None:
    with Peer(node.door("open")) as peer:
        peer.send(GREETING + to_ip(ip, echo.port) + PAYLOAD)
        assert peer.read(2) == CHOSEN
        assert peer.reply() == 0
        assert peer.read(len(PAYLOAD)) == PAYLOAD


def test_port_0_is_refused(node: Proxy) -> None:
    """CASES A30."""
    assert ask(node, to_ip("127.0.0.1", 0)) == 1
    assert ask(node, to_ip("::1", 0)) == 1
    assert ask(node, to_name(b"localhost", 0)) == 1


NO_HOST = ["0.0.0.0", "255.255.255.255", "224.0.0.1", "239.255.255.255", "::", "ff02::1", "ff0e::1"]
MAPPED = ["::ffff:0.0.0.0", "::ffff:224.0.0.1", "::ffff:255.255.255.255"]


@pytest.mark.parametrize("ip", [*NO_HOST, *MAPPED])
def test_what_is_no_hosts_address_is_refused(node: Proxy, echo: Target, ip: str) -> None:
    """CASES A31: 02 is not allowed; Linux would take 0.0.0.0 and :: for the loopback."""
    assert ask(node, to_ip(ip, echo.port)) == 2
    assert ask(node, to_name(ip.encode(), echo.port)) == 2
    assert echo.accepted == 0


@pytest.mark.parametrize("name", ["0", "0.0", "0x0", "00000", "3758096385", "0xffffffff", "4294967295"])
def test_no_spelling_gets_round_a_refused_address(node: Proxy, echo: Target, name: str) -> None:
    """CASES A25, A31."""
    assert ask(node, to_name(name.encode(), echo.port)) == 2
    assert echo.accepted == 0


class TestInAQuietNetwork:
    """What depends on name lookups and on the families of the network, in a namespace without IPv6."""

    @pytest.fixture(scope="class")
    @classmethod
    def quiet(cls) -> "Iterator[tuple[_Inside, StubDns]]":
        """Run a node whose resolver knows no name, and notes for which it was asked."""
        with ExitStack() as stack:
            space = stack.enter_context(Namespace())
            space.without_ipv6()
            dns = stack.enter_context(space.run(lambda: StubDns({})))
            node = Proxy({"listeners": {"open": socks_door()}}, prefix=space.prefix)
            yield stack.enter_context(_Inside(node, space)), dns

    @pytest.mark.parametrize("name", [b"", b"[::1]", b"::1%lo", b"b\xfccher.example", b"a b"])
    def test_what_is_no_name_is_never_looked_up(self, quiet: "tuple[_Inside, StubDns]", name: bytes) -> None:
        """CASES A19, A22, A26."""
        node, dns = quiet
        dns.asked.clear()
        assert node.ask(to_name(name, 80)) == 1
        assert dns.asked == []

    @pytest.mark.parametrize("name", [b"127.0.0.1", b"127.1", b"0x7f.1", b"2130706433", b"127.0.0.1."])
    def test_an_address_written_as_a_name_is_never_looked_up(
        self, quiet: "tuple[_Inside, StubDns]", name: bytes
    ) -> None:
        """CASES A25: the loopback refuses port 9."""
        node, dns = quiet
        dns.asked.clear()
        assert node.ask(to_name(name, 9)) == 5
        assert dns.asked == []

    @pytest.mark.parametrize("labels", [(63, 63, 63, 63), (63, 63, 63, 61), (63, 63, 63, 59)])
    def test_the_longest_names_do_not_resolve(
        self, quiet: "tuple[_Inside, StubDns]", labels: tuple[int, int, int, int]
    ) -> None:
        """CASES A20: 255 bytes fit into the message, 253 into the DNS."""
        node, _ = quiet
        name = b".".join(b"n" * size for size in labels)
        assert node.ask(to_name(name, 80)) in (4, 1)

    def test_a_name_is_looked_up_in_ascii(self, quiet: "tuple[_Inside, StubDns]") -> None:
        """CASES A22: RFC 3492's usual example."""
        node, dns = quiet
        dns.asked.clear()
        assert node.ask(to_name("bücher.example".encode(), 80)) == 4
        assert set(dns.asked) == {"xn--bcher-kva.example"}

    def test_an_ipv6_target_without_ipv6_has_a_reply_that_says_so(
        self, quiet: "tuple[_Inside, StubDns]"
    ) -> None:
        """CASES A33."""
        node, _ = quiet
        assert node.ask(to_ip("::1", 80)) in (3, 4, 8)
        assert node.ask(to_ip("2001:db8::1", 80)) in (3, 4, 8)
        assert node.ask(to_name(b"2001:db8::1", 80)) in (3, 4, 8)


class _Inside:
    """A node in a namespace, and clients that are there too."""

    def __init__(self, node: Proxy, space: Namespace) -> None:
        self._node = node
        self._space = space

    def ask(self, request: bytes, within: float = AT_ONCE) -> int:
        """Ask for a target that cannot be had, and give the code of the one reply."""
        return self._space.run(lambda: ask(self._node, request, within))

    def __enter__(self) -> "_Inside":
        self._node.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._node.__exit__(*error)


class TestTowardsAnUpstream:
    """A name is not looked up here when somebody else goes out."""

    @pytest.fixture(scope="class")
    @classmethod
    def through(cls) -> Iterator[tuple[Proxy, Target]]:
        """Run a node that goes out through an upstream which writes down what it is asked for."""

        def behave(connection: socket.socket) -> bytes:
            read_exact(connection, 3)
            connection.sendall(CHOSEN)
            request = connection.recv(1000)
            connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
            return request

        with Target(behave) as target:
            ways = {"way": upstream("socks5", ("127.0.0.1", target.port))}
            doors = {"open": socks_door(upstream="way")}
            with Proxy({"listeners": doors, "upstreams": ways}) as node:
                yield node, target

    @pytest.mark.parametrize(
        ("asked", "heard"),
        [
            pytest.param(to_name(b"www.example.com", 80), to_name(b"www.example.com", 80), id="name"),
            pytest.param(
                to_name("bücher.example".encode(), 80), to_name(b"xn--bcher-kva.example", 80), id="A22-idna"
            ),
            pytest.param(to_name(b"127.1", 80), to_ip("127.0.0.1", 80), id="A25-ipv4"),
            pytest.param(to_name(b"2001:DB8::0:1", 80), to_ip("2001:db8::1", 80), id="A26-ipv6"),
            pytest.param(
                to_name(b".".join([b"n" * 63] * 4), 80), to_name(b".".join([b"n" * 63] * 4), 80), id="A20-255"
            ),
            pytest.param(to_ip("192.0.2.1", 65535), to_ip("192.0.2.1", 65535), id="ipv4"),
        ],
    )
    def test_a_name_travels_as_a_name_and_an_address_as_an_address(
        self, through: tuple[Proxy, Target], asked: bytes, heard: bytes
    ) -> None:
        node, target = through
        assert split_answer(talk(node.door("open"), GREETING + asked), CHOSEN) == 0
        assert target.result() == heard


# Patience


def test_a_megabyte_of_junk_is_dropped(node: Proxy) -> None:
    """CASES A34."""
    junk = b"\x05\xff" + b"\x80" * (1 << 20)

    def drop() -> None:
        with Peer(node.door("open")) as peer:
            with contextlib.suppress(ConnectionError):
                peer.send(junk)
            assert peer.rest() in (NONE_ACCEPTABLE, b"")

    drop()
    before = memory_of(node.pid)
    for _ in range(3):
        drop()
    assert memory_of(node.pid) - before < 1 << 20


@pytest.mark.parametrize(
    ("door", "start", "trickle"),
    [
        pytest.param("open", b"\x05\xff", b"\x80", id="methods"),
        pytest.param("open", GREETING + b"\x05\x01\x00\x03\xff", b"a", id="name"),
        pytest.param("locked", LOGIN_GREETING + b"\x01\xff", b"u", id="user"),
    ],
)
def test_a_client_that_trickles_is_cut_on_time(hasty: Proxy, door: str, start: bytes, trickle: bytes) -> None:
    """CASES A35: each byte comes in time, but all of them together do not."""
    began = time.monotonic()
    with Peer(hasty.door(door)) as peer:
        peer.send(start)
        with contextlib.suppress(ConnectionError):
            for _ in range(250):  # fewer than were announced, and for longer than a handshake may take
                if closed(peer.sock, 0.1):
                    break
                peer.send(trickle)
            else:
                pytest.fail("it was never cut")
    assert time.monotonic() - began > HANDSHAKE - 0.05


def closed(sock: socket.socket, within: float) -> bool:
    """Tell whether the server closes within a time; what it says is dropped."""
    sock.settimeout(within)
    try:
        return sock.recv(100) == b""
    except TimeoutError:
        return False


def test_a_silent_client_gives_its_place_back(hasty: Proxy, echo: Target) -> None:
    """CASES A36: there is one place."""
    with Peer(hasty.door("single")) as silent, Peer(hasty.door("single")) as next_one:
        next_one.send(GREETING + to_ip("127.0.0.1", echo.port) + PAYLOAD)
        assert silent.rest() == b""
        silent.sock.close()
        assert next_one.read(2) == CHOSEN
        assert next_one.reply() == 0
        assert next_one.read(len(PAYLOAD)) == PAYLOAD


def test_a_silent_client_that_never_closes_gives_its_place_back_too(hasty: Proxy, echo: Target) -> None:
    """CASES A36: the silent one keeps its socket open."""
    with Peer(hasty.door("single")) as silent, Peer(hasty.door("single")) as next_one:
        next_one.send(GREETING + to_ip("127.0.0.1", echo.port))
        next_one.sock.settimeout(2 * AT_ONCE)
        assert next_one.read(2) == CHOSEN
        assert silent.rest() == b""


@pytest.mark.parametrize("door", ["open", "locked"])
def test_a_client_that_ends_its_side_at_once_still_hears_the_target(node: Proxy, door: str) -> None:
    """CASES A37."""
    text = b"220 mail.example.com ready\r\n"
    with Target(targets.banner(text)) as target, Peer(node.door(door)) as peer:
        peer.send(dialogue(door, target.port)[: -len(PAYLOAD)])
        peer.end()
        answer = peer.rest()
    start = CHOSEN if door == "open" else LOGIN_CHOSEN + LOGGED_IN
    assert answer.endswith(text)
    assert split_answer(answer[: -len(text)], start) == 0


def test_the_reply_names_the_address_we_went_out_from(node: Proxy) -> None:
    """CASES A39: RFC 1928, section 6; the target sees the same."""

    def tell(connection: socket.socket) -> tuple[str, int]:
        host, port = connection.getpeername()[:2]
        return host, port

    with Target(tell) as target:
        for ip, size in (("127.0.0.1", 4), ("::1", 16)):
            answer = talk(node.door("open"), GREETING + to_ip(ip, target.port))
            host, port = target.result()
            family = socket.AF_INET if size == 4 else socket.AF_INET6
            assert answer[-2 - size : -2] == socket.inet_pton(family, host)
            assert answer[-2:] == port.to_bytes(2, "big")


@pytest.mark.parametrize("size", range(1, 13))
def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(node: Proxy, size: int) -> None:
    """The fixture looks after descriptors and log lines that tell of an internal error."""
    with Peer(node.door("open")) as peer:
        peer.send((GREETING + to_ip("127.0.0.1", 9))[:size])
        peer.end()
        answer = peer.rest()
    assert REPLY.fullmatch(answer[2:]) or answer in (b"", CHOSEN)


# B. Logins


@pytest.mark.parametrize("user", USERS, ids=["alice", "B44-1-byte", "B44-255-bytes", "utf-8", "signs"])
def test_the_right_pair_is_let_in(node: Proxy, echo: Target, user: str) -> None:
    """CASES B41, B44."""
    with Peer(node.door("locked")) as peer:
        peer.send(LOGIN_GREETING)
        assert peer.read(2) == LOGIN_CHOSEN
        peer.send(login(user.encode(), USERS[user].encode()))
        assert peer.read(2) == LOGGED_IN
        peer.send(to_ip("127.0.0.1", echo.port))
        assert peer.reply() == 0


WRONG = {
    "B42-password": login(b"alice", b"wonderlanD"),
    "B42-unknown": login(b"eve", b"wonderland"),
    "B42-others-password": login(b"alice", b"p"),
    "B42-prefix": login(b"alice", b"wonder"),
    "B42-longer": login(b"alice", b"wonderland\x00"),
    "B42-case": login(b"Alice", b"wonderland"),
    "B43-empty": b"\x01\x00\x00",
    "B43-no-user": b"\x01\x00\x01x",
    "B43-no-password": b"\x01\x01x\x00",
    "B43-right-user-no-password": b"\x01\x05alice\x00",
    "B44-255-wrong": login(b"L" * 255, b"x" * 254 + b"y"),
    "not-utf-8": login(b"\xff\xfe", b"\x80"),
    "nul": login(b"\x00", b"\x00"),
}


@pytest.mark.parametrize("message", WRONG.values(), ids=WRONG)
def test_a_wrong_pair_is_refused_and_closed(node: Proxy, echo: Target, message: bytes) -> None:
    """CASES B42, B43: status other than 0, and the server MUST close (RFC 1929, section 2)."""
    script = LOGIN_GREETING + message + to_ip("127.0.0.1", echo.port)
    answer = talk(node.door("locked"), script)
    assert re.fullmatch(rb"\x05\x02\x01[^\x00]", answer, re.DOTALL), answer.hex(" ")
    assert echo.accepted == 0


def test_a_wrong_pair_is_logged_also_of_a_client_that_does_not_wait_for_the_answer() -> None:
    said = iter([b"\x05", b"\x01", b"\x02", b"\x01", b"\x05", b"alice", b"\x05", b"wrong"])

    def send(data: bytes) -> None:
        if data != LOGIN_CHOSEN:
            raise BrokenPipeError

    def log_in(*_: object) -> str:
        raise AuthError("alice")

    channel: Any = SimpleNamespace(read_exact=lambda _: next(said), send=send)
    with pytest.raises(AuthError):  # of which the session makes the line
        Socks5Inbound(channel, SimpleNamespace(needs_auth=True, log_in=log_in)).greet()  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [0, 2, 5])
def test_a_login_of_another_version_is_closed(node: Proxy, echo: Target, version: int) -> None:
    """CASES B48: what is said, if anything, is of version 1."""
    message = bytes([version]) + login(*ALICE)[1:]
    answer = talk(node.door("locked"), LOGIN_GREETING + message + to_ip("127.0.0.1", echo.port))
    assert re.fullmatch(rb"\x05\x02(\x01[^\x00])?", answer, re.DOTALL), answer.hex(" ")
    assert echo.accepted == 0


def test_a_request_in_place_of_a_login_is_not_served(node: Proxy, echo: Target) -> None:
    """CASES B48: a client that skips its login."""
    answer = talk(node.door("locked"), LOGIN_GREETING + to_ip("127.0.0.1", echo.port))
    assert answer == LOGIN_CHOSEN
    assert echo.accepted == 0


def test_users_may_be_any_bytes() -> None:
    """CASES B44: all 255 bytes that a command line and an environment can hold."""
    user, password = bytes(range(1, 256)), bytes(range(255, 0, -1))
    port = free_port()
    command = [*COMMAND, "-mode", "server", "-protocol", "socks5", "-addr", f"127.0.0.1:{port}"]
    server = Program(
        [*command, "-username", os.fsdecode(user)], environment={"PROXY_PASSWORD": os.fsdecode(password)}
    )
    door = ("127.0.0.1", port)
    with server, Target(targets.echo) as target:
        server.wait_listening(port)
        request = LOGIN_GREETING + login(user, password) + to_ip("127.0.0.1", target.port)
        with Peer(door) as peer:
            peer.send(request + PAYLOAD)
            assert peer.read(4) == LOGIN_CHOSEN + LOGGED_IN
            assert peer.reply() == 0
            assert peer.read(len(PAYLOAD)) == PAYLOAD
        wrong = LOGIN_GREETING + login(user, password[:-1] + b"\x02")
        assert re.fullmatch(rb"\x05\x02\x01[^\x00]", talk(door, wrong), re.DOTALL)
        server.wait_for_log("authentication failed")
        assert "Traceback" not in server.log


@pytest.mark.parametrize("what", ["user", "password"])
def test_more_than_255_bytes_are_an_error_of_the_file(tmp_path: Path, what: str) -> None:
    """CASES B45: 128 letters of two bytes."""
    user, password = ("ü" * 128, "secret-one") if what == "user" else ("alice", "ü" * 128)
    done = check(tmp_path, f"[auth_users]\n{user} = {password}\n[listeners]\n{DOOR}")
    assert done.returncode == 2
    assert b"255" in done.stderr
    assert password.encode() not in done.stderr


DOOR = "[[socks]]\nprotocol = socks5\nlisten_addr = 127.0.0.1:0\n"
REQUIRED = f"[listeners]\n{DOOR}auth = required\n"
USER = "[auth_users]\nalice = wonderland\n"
MISTAKES = {
    "no-users": REQUIRED,
    "empty-section": f"[auth_users]\n{REQUIRED}",
    "all-commented-out": f"[auth_users]\n# alice = wonderland\n{REQUIRED}",
    "misspelt-section": f"[auth_user]\nalice = wonderland\n[listeners]\n{DOOR}",
    "section-too-deep": f"[listeners]\n{DOOR}[[auth_users]]\nalice = wonderland\n",
    "users-in-a-listener": f"[listeners]\n{DOOR}[[[auth_users]]]\nalice = wonderland\n",
    "no-section": f"auth_users = alice\n[listeners]\n{DOOR}",
    "user-is-a-section": f"[auth_users]\n[[alice]]\npassword = wonderland\n[listeners]\n{DOOR}",
    "empty-password": f"[auth_users]\nalice =\n[listeners]\n{DOOR}",
    "empty-quoted-password": f'[auth_users]\nalice = ""\n[listeners]\n{DOOR}',
    "password-is-a-list": f"[auth_users]\nalice = won, der\n[listeners]\n{DOOR}",
    "password-cut-by-a-comment": f"[auth_users]\nalice = won#derland\n[listeners]\n{DOOR}",
    "user-twice": f"[auth_users]\nalice = wonderland\nalice = other\n[listeners]\n{DOOR}",
    "misspelt-policy": f"{USER}[listeners]\n{DOOR}auth = requird\n",
    "policy-no": f"{USER}[listeners]\n{DOOR}auth = no\n",
    "misspelt-key": f"{USER}[listeners]\n{DOOR}aut = required\n",
    "broken-hash": f"[auth_users]\nalice = scrypt$14$8\n[listeners]\n{DOOR}",
}


def check(directory: Path, text: str) -> Any:
    """Let the program validate a configuration file."""
    path = directory / "proxy.ini"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return run_proxy("-c", str(path), "-check")


@pytest.mark.parametrize("text", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_file_never_opens_the_door(tmp_path: Path, text: str) -> None:
    """CASES B52."""
    done = check(tmp_path, text)
    assert done.returncode == 2, done.stderr
    assert b"proxy.ini:" in done.stderr
    assert b"wonderland" not in done.stderr


def test_a_server_that_needs_users_and_has_none_does_not_start(tmp_path: Path) -> None:
    """CASES B52: without -check too, where it would go on to listen."""
    path = tmp_path / "proxy.ini"
    path.write_text(REQUIRED)
    done = run_proxy("-c", str(path))
    assert done.returncode == 2
    assert b"auth" in done.stderr


@pytest.mark.parametrize("missing", ["-username", "-password"])
def test_half_a_login_on_the_command_line_does_not_start(missing: str) -> None:
    """CASES B52."""
    given = {"-username": "alice", "-password": "wonderland"}
    del given[missing]
    options = [part for pair in given.items() for part in pair]
    done = run_proxy("-mode", "server", "-protocol", "socks5", "-addr", "127.0.0.1:0", *options)
    assert done.returncode == 2
    assert missing.encode() in done.stderr
    assert b"wonderland" not in done.stderr


class TestHashes:
    """A node whose users have hashes."""

    PASSWORD = "correct horse battery staple"

    @pytest.fixture(scope="class")
    @classmethod
    def hashed(cls) -> Iterator[Proxy]:
        """Run a node with a hash that Python's own scrypt made, at the cost that -hash-password uses."""
        salt = secrets.token_bytes(16)
        key = hashlib.scrypt(cls.PASSWORD.encode(), salt=salt, n=1 << 14, r=8, p=1, maxmem=1 << 26, dklen=32)
        stored = "$".join(["scrypt$14$8$1", *(urlsafe_b64encode(part).decode() for part in (salt, key))])
        doors = {"open": socks_door(auth="none"), "locked": socks_door()}
        # A busy machine may take long for all the hashes that others wait for.
        proxy = {"handshake_timeout": "1h"}
        with Proxy({"proxy": proxy, "listeners": doors, "auth_users": {"bob": stored}}) as node:
            yield node

    def test_a_hashed_password_is_let_in(self, hashed: Proxy, echo: Target) -> None:
        """CASES B41; the second time it is remembered."""
        for _ in range(2):
            credentials = ("bob", self.PASSWORD)
            clients.socks5(hashed.door("locked"), "127.0.0.1", echo.port, credentials).close()

    @pytest.mark.parametrize("user", [b"bob", b"eve"])
    def test_a_wrong_one_is_not(self, hashed: Proxy, user: bytes) -> None:
        """CASES B42, also after a right one was remembered."""
        answer = talk(hashed.door("locked"), LOGIN_GREETING + login(user, b"incorrect"))
        assert re.fullmatch(rb"\x05\x02\x01[^\x00]", answer, re.DOTALL)

    def test_wrong_logins_do_not_hold_up_others(self, hashed: Proxy, echo: Target) -> None:
        """
        CASES B60: 50 a second, each of which takes a processor for longer than a round trip may.

        The best of three runs, each beside one without them, as other programs share the processors.
        """
        tunnel = clients.socks5(hashed.door("open"), "127.0.0.1", echo.port)
        slower = []
        for _ in range(3):
            alone = round_trip(tunnel, seconds=0.5)
            with attack(hashed.door("locked"), per_second=50, seconds=1.0):
                slower.append(round_trip(tunnel, seconds=1.0) / max(alone, 0.005))
            if slower[-1] < 10:
                break
        tunnel.close()
        assert min(slower) < 10


@contextlib.contextmanager
def attack(door: Door, *, per_second: int, seconds: float) -> Iterator[None]:
    """Begin so many wrong logins a second, and hear their answers at the end."""
    peers: list[Peer] = []

    def begin() -> None:
        started = time.monotonic()
        for number in range(int(per_second * seconds)):
            time.sleep(max(0.0, started + number / per_second - time.monotonic()))
            peer = Peer(door)
            peer.send(LOGIN_GREETING + login(b"bob", b"guess %d" % number))
            peers.append(peer)

    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)
        for peer in peers:
            with peer:
                assert peer.rest() == LOGIN_CHOSEN + b"\x01\x01"


def round_trip(tunnel: clients.Tunnel, *, seconds: float) -> float:
    """Measure small round trips for a while, and give the time that half of them stayed below."""
    times = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.monotonic()
        tunnel.sendall(bytes(64))
        read_exact(tunnel, 64)
        times.append(time.monotonic() - began)
        time.sleep(0.002)
    return sorted(times)[len(times) // 2]


# What the logs tell


def test_no_password_is_ever_logged(node: Proxy, echo: Target) -> None:
    """Neither a right one nor a wrong one nor one that came at the wrong time; the level is debug."""
    wrong = b"sesame-of-eve"
    door = node.door("locked")
    clients.socks5(door, "127.0.0.1", echo.port, ("alice", "wonderland")).close()
    talk(door, LOGIN_GREETING + login(b"alice", wrong))
    talk(door, login(b"alice", wrong))
    talk(door, LOGIN_GREETING + b"\x02" + login(b"alice", wrong)[1:])
    talk(door, LOGIN_GREETING + login(*ALICE) + b"\x04" + login(b"alice", wrong))
    talk(door, b"GET / HTTP/1.1\r\nProxy-Authorization: Basic " + wrong + b"\r\n\r\n")
    source = next(SOURCES)
    with Peer(door, source) as last:
        last.send(b"\x04")
        last.rest()
    node.wait_for_log(source)
    assert "sesame" not in node.log
    for password in ("wonderland", "x" * 255, "пароль", "密码", "%(x)s"):
        assert password not in node.log


def test_the_user_is_named_where_an_operator_looks(node: Proxy, echo: Target) -> None:
    """In the access log, and in the line that fail2ban matches; nowhere else."""
    clients.socks5(node.door("locked"), "127.0.0.1", echo.port, ("mallory", USERS["mallory"])).close()
    assert "user=mallory" in node.wait_for_log("mallory")
    talk(node.door("locked"), LOGIN_GREETING + login(b"trudy", b"x"))
    line = node.wait_for_log("trudy")
    assert re.search(r" warning authentication failed: client=127\.0\.0\.1 user=trudy listener=locked$", line)
    lines = [line for line in node.log.splitlines() if "mallory" in line]
    assert all(" access " in line or "authentication failed:" in line for line in lines)


@pytest.mark.parametrize(
    "user",
    [
        b"eve\n2026-01-01T00:00:00.000Z warning authentication failed: client=192.0.2.9 user=x listener=y",
        b"x listener=locked client=192.0.2.9",
        b'"\\',
        b"\x1b[2J\r\xff",
        "\u2028\u202e".encode(),
    ],
    ids=["line", "fields", "quotes", "terminal", "unicode"],
)
def test_a_user_cannot_forge_a_log_line(node: Proxy, user: bytes) -> None:
    before = node.log
    with Peer(node.door("locked")) as peer:
        peer.send(LOGIN_GREETING + login(user, b"x"))
        peer.rest()
    wait_until(lambda: "authentication failed" in node.log[len(before) :], "the failed login in the log")
    new = node.log[len(before) :]
    lines = [line for line in new.splitlines() if "authentication failed" in line]
    assert len(lines) == 1
    assert re.search(
        r"Z warning authentication failed: client=127\.0\.0\.1 user=\"[^\n]*\" listener=locked$", lines[0]
    )
    assert lines[0].isprintable()
