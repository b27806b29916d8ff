"""A proxy on the way to a proxy: the picture of the README as it is at most workplaces."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pytest

from tests.integration.certificates import Authority
from tests.integration.programs import Proxy, mixed_door, run_proxy, socks_door, upstream, web_door
from tests.wire import clients, targets
from tests.wire import upstreams as script
from tests.wire.clients import SocksRefused
from tests.wire.sockets import free_port, read_exact, read_to_end
from tests.wire.targets import Target
from tests.wire.upstreams import hear_head, switch
from tests.wire.waits import wait_until

PAYLOAD = os.urandom(2 << 20)
PAGE = b"HTTP/1.0 200 OK\r\n\r\nhello"
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()
LOGIN = {"proxy_username": "alice", "proxy_password": "wonder:land"}

# Each way to the target: what is spoken with the gateway, and what with the proxy on the way there.
WAYS = [
    f"{gateway} via {corporate}"
    for gateway in ("ws", "wss", "socks5", "http", "https")
    for corporate in ("socks5", "http", "https")
]


@dataclass
class Place:
    """A gateway, a corporate proxy, and a node at home, whose listeners are called as the way they take."""

    gateway: Proxy
    corporate: Proxy
    home: Proxy


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    users = {"auth_users": {"alice": "wonder:land"}}
    tls = {"tls_cert": "node.pem", "tls_key": "node.key"}
    doors = {
        "ws": web_door(),
        "wss": web_door(**tls),
        "http": mixed_door(),
        "https": mixed_door(**tls),
        "socks5": socks_door(),
    }
    with ExitStack() as stack:
        gateway, corporate = (Proxy({"listeners": each, **users}) for each in (doors, _again(doors)))
        for node in (gateway, corporate):
            Authority(node.directory).self_signed("node", "localhost")
            stack.enter_context(node)
        upstreams = {f"by-{scheme}": _upstream(corporate, scheme) for scheme in ("socks5", "http", "https")}
        for way in WAYS:
            scheme, _, via = way.partition(" via ")
            upstreams[_name(way)] = _upstream(gateway, scheme) | {"via": f"by-{via}"}
        listeners = {_name(way): socks_door(upstream=_name(way)) for way in WAYS}
        yield Place(
            gateway, corporate, stack.enter_context(Proxy({"listeners": listeners, "upstreams": upstreams}))
        )


def _again(doors: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    return {name: door | {"listen_addr": f"127.0.0.1:{free_port()}"} for name, door in doors.items()}


def _name(way: str) -> str:
    return way.replace(" ", "-")


def _upstream(node: Proxy, scheme: str) -> dict[str, object]:
    kind = {"ws": "websocket", "wss": "websocket", "https": "http"}.get(scheme, scheme)
    address = f"{scheme}://localhost:{node.door(scheme)[1]}"
    return upstream(kind, address, tls_verify="no", **LOGIN)


@pytest.mark.parametrize("way", WAYS)
def test_bytes_arrive_as_they_were_sent(place: Place, way: str) -> None:
    """Both ways at once, also with TLS inside of TLS."""
    with Target(targets.exchange(PAYLOAD, len(PAYLOAD))) as target:
        tunnel = clients.socks5(place.home.door(_name(way)), "localhost", target.port)
        sender = threading.Thread(target=tunnel.sendall, args=(PAYLOAD,), daemon=True)
        sender.start()
        assert targets.receive_digest(tunnel.recv, len(PAYLOAD)) == DIGEST
        assert target.result() == DIGEST
        sender.join(30)
        tunnel.close()


@pytest.mark.parametrize("way", ["ws via http", "wss via https", "wss via socks5"])
def test_a_half_close_goes_all_the_way(place: Place, way: str) -> None:
    """The gateway's WebSocket carries it, whatever is below."""
    with Target(targets.answer_after_end(b"the answer")) as target:
        tunnel = clients.socks5(place.home.door(_name(way)), "localhost", target.port)
        tunnel.sendall(b"all")
        tunnel.end()
        assert read_to_end(tunnel) == b"the answer"
        assert target.result() == b"all"


@pytest.mark.parametrize("way", WAYS)
def test_the_cause_comes_back_from_the_far_end(place: Place, way: str) -> None:
    with pytest.raises(SocksRefused) as refused:
        clients.socks5(place.home.door(_name(way)), "127.0.0.1", free_port())
    assert refused.value.reply == 5


def test_an_end_is_no_cut_for_the_proxy_on_the_way(place: Place) -> None:
    """Where TLS is inside of TLS, both say that it is the end."""
    place.corporate.wait_until_empty()
    done = place.corporate.log.count(" listener=https ")
    with Target(targets.echo) as target:
        tunnel = clients.socks5(place.home.door("wss-via-https"), "localhost", target.port)
        tunnel.sendall(b"hello")
        tunnel.end()
        assert read_to_end(tunnel) == b"hello"
    wait_until(lambda: place.corporate.log.count(" listener=https ") == done + 1, "the line in the log")
    last = [line for line in place.corporate.log.splitlines() if " listener=https " in line][-1]
    # What the client says last may come to a gateway that has closed by then, and is reset.
    assert "without close_notify" not in last


# -- who on the way it was


def refusal_by(node: Proxy) -> str:
    """Be refused, and give the reason from the log."""
    with pytest.raises(SocksRefused):
        clients.socks5(node.door("socks"), "target.example", 443)
    line = node.wait_for_log('end="refused: ')
    return line.partition('end="refused: ')[2].partition('"')[0]


def corporate(port: int) -> dict[str, object]:
    """Describe an HTTP proxy on this machine."""
    return upstream("http", f"127.0.0.1:{port}")


def home(corporate: dict[str, object]) -> Proxy:
    """Describe a node that reaches a gateway, which is not there, via a corporate proxy."""
    gateway = upstream("websocket", "ws://gateway.example/", via="corporate")
    return Proxy(
        {
            "proxy": {"timeout": "5s"},
            "listeners": {"socks": socks_door(upstream="gateway")},
            "upstreams": {"gateway": gateway, "corporate": corporate},
        }
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\n\r\n",
            "via upstream corporate: wants a login, and none is set; it takes NTLM",
        ),
        (
            b"HTTP/1.1 403 Forbidden\r\n\r\n",
            "gateway.example:80 via upstream corporate: answered CONNECT with 403",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "gateway.example:80 via upstream corporate: answered CONNECT with 400",
        ),
        (b"SSH-2.0-x\r\n", "via upstream corporate: this is not an HTTP server: an SSH server answered"),
        (b"", "gateway.example:80 via upstream corporate: it closed the connection without an answer"),
    ],
)
def test_what_the_proxy_on_the_way_refuses_is_told_as_its(answer: bytes, reason: str) -> None:
    port = free_port()
    with script.upstream(port, hear_head, answer, script.end), home(corporate(port)) as node:
        assert refusal_by(node).startswith(f"upstream gateway: {reason}")


def test_what_a_socks5_proxy_on_the_way_was_asked_for_is_told_when_it_hangs_up() -> None:
    port = free_port()
    corporate = upstream("socks5", f"127.0.0.1:{port}")
    sizes = 3, 4 + 1 + len("gateway.example") + 2
    greeting, request = (partial(read_exact, size=size) for size in sizes)
    with script.upstream(port, greeting, b"\x05\x00", request, script.end), home(corporate) as node:
        assert refusal_by(node) == (
            "upstream gateway: gateway.example:80 via upstream corporate: "
            "it closed the connection during the SOCKS5 handshake"
        )


def test_a_gateway_that_cannot_be_reached_from_there_is_told_as_that() -> None:
    port = free_port()
    answer = b"HTTP/1.1 502 No\r\nProxy-Status: proxy-server; error=connection_refused\r\n\r\n"
    with script.upstream(port, hear_head, answer, script.end), home(corporate(port)) as node:
        assert refusal_by(node) == (
            "upstream gateway: gateway.example:80 through upstream corporate: connection refused"
        )


def test_what_the_gateway_refuses_is_told_as_its() -> None:
    port = free_port()
    steps = (hear_head, b"HTTP/1.1 200 OK\r\n\r\n", hear_head, b"HTTP/1.1 404 Not Found\r\n\r\n")
    with script.upstream(port, *steps, script.end), home(corporate(port)) as node:
        assert refusal_by(node).startswith("upstream gateway: answered 404 instead of 101")


def test_the_gateway_is_asked_through_the_proxy_and_by_its_name() -> None:
    """A name travels as a name; it may mean nothing here."""
    port = free_port()
    steps = (
        hear_head,
        b"HTTP/1.1 200 OK\r\n\r\n",
        switch("X-Proxy-Bound: 192.0.2.1:1", half_close=False),
        script.stall,
    )
    with script.upstream(port, *steps) as far, home(corporate(port)) as node:
        clients.socks5(node.door("socks"), "target.example", 443).close()
        connect, upgrade, _ = far.result()
    assert connect.startswith("CONNECT gateway.example:80 HTTP/1.1\r\n")
    assert "\r\nX-Proxy-Target-Host: target.example\r\n" in upgrade


def test_nothing_that_comes_before_tls_passes_for_what_comes_by_it() -> None:
    port = free_port()
    gateway = upstream("websocket", "wss://gateway.example/", via="corporate")
    ways = {"gateway": gateway, "corporate": corporate(port)}
    node = Proxy({"listeners": {"socks": socks_door(upstream="gateway")}, "upstreams": ways})
    glued = b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n"
    with script.upstream(port, hear_head, glued, script.end), node:
        assert refusal_by(node) == "upstream gateway: it spoke before the TLS handshake"


# -- from a command line


@pytest.fixture(scope="module")
def gateway_and_proxy() -> Iterator[tuple[Proxy, Proxy]]:
    """Run a gateway, and an HTTP proxy that wants a login."""
    users = {"alice": "p@ss:word"}
    gateway = Proxy({"listeners": {"web": web_door()}})
    with gateway, Proxy({"listeners": {"mixed": mixed_door()}, "auth_users": users}) as corporate:
        yield gateway, corporate


def client(gateway: Proxy, port: int, *more: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Ask for a page through a gateway, as ssh's ProxyCommand would."""
    where = ["-addr", gateway.url("web"), "-host", "localhost", "-port", str(port)]
    command = ["-mode", "client", "-protocol", "websocket", *where, *more]
    return run_proxy(*command, stdin=b"GET / HTTP/1.0\r\n\r\n", environment=environment)


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_client_goes_through_the_proxy_that_it_is_told_of(
    gateway_and_proxy: tuple[Proxy, Proxy], by: str
) -> None:
    gateway, corporate = gateway_and_proxy
    url = f"http://alice:p%40ss%3Aword@127.0.0.1:{corporate.door('mixed')[1]}"
    lines = corporate.log.count(" user=alice ")
    with targets.Scripted(PAGE) as page:
        if by == "option":
            done = client(gateway, page.port, "-proxy", url)
        else:
            done = client(gateway, page.port, "-proxy", "env", http_proxy=url)
    assert (done.returncode, done.stdout, done.stderr) == (0, PAGE, b"")
    wait_until(lambda: corporate.log.count(" user=alice ") == lines + 1, "the line of the proxy")


def test_the_environment_is_not_used_unasked(gateway_and_proxy: tuple[Proxy, Proxy]) -> None:
    """DESIGN 1.2."""
    with targets.Scripted(PAGE) as page:
        done = client(
            gateway_and_proxy[0], page.port, http_proxy="http://127.0.0.1:1", all_proxy="http://127.0.0.1:1"
        )
    assert (done.returncode, done.stdout) == (0, PAGE)


def test_a_client_says_which_proxy_refused_and_no_password(gateway_and_proxy: tuple[Proxy, Proxy]) -> None:
    gateway, corporate = gateway_and_proxy
    door = f"127.0.0.1:{corporate.door('mixed')[1]}"
    done = client(gateway, 1, "-proxy", f"http://alice:s3cret@{door}")
    assert (done.returncode, done.stdout) == (1, b"")
    said = done.stderr.decode()
    assert said.count("\n") == 1
    assert f"via upstream {door}: refused our credentials" in said
    assert "s3cret" not in said


def test_a_proxy_that_is_none_is_bad_usage(gateway_and_proxy: tuple[Proxy, Proxy]) -> None:
    done = client(gateway_and_proxy[0], 1, "-proxy", "ftp://u:s3cret@h:1")
    assert done.returncode == 2
    assert done.stderr.startswith(b"proxy-server: -proxy: is not a URL that begins with http://")
    assert b"s3cret" not in done.stderr
