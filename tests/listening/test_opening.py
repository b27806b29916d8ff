"""The addresses of a listener: those that are there, and those that come later."""

import errno
import os
import socket as std_socket
from collections.abc import Iterator

import gevent
import pytest
from gevent import socket

from proxy.address import Endpoint, Place
from proxy.errors import Failure, ProxyError
from proxy.listening import opening
from proxy.listening.opening import BACKLOG, Latecomers, Opening, bind, place_of
from tests.wire.greenlets import PATIENCE, until
from tests.wire.sockets import free_port

NOT_OURS = "192.0.2.1"  # RFC 5737: no machine has it


@pytest.fixture(autouse=True)
def within_seconds() -> Iterator[None]:
    with gevent.Timeout(20):
        yield


needs_ipv6 = pytest.mark.skipif(not std_socket.has_dualstack_ipv6(), reason="no IPv6 here")


def listen(text: str) -> list[socket.socket]:
    """Open what an address means."""
    return bind(Endpoint.parse(text))


def can_connect(host: str, port: int) -> bool:
    """Tell whether something listens there."""
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
        return True
    except ConnectionRefusedError:
        return False


@needs_ipv6
def test_an_empty_host_is_every_address_of_both_families() -> None:
    (sock,) = listen(":0")
    port = sock.getsockname()[1]
    assert can_connect("127.0.0.1", port)
    assert can_connect("::1", port)
    sock.close()


@needs_ipv6
@pytest.mark.parametrize(("text", "there", "not_there"), [
    ("127.0.0.1:0", "127.0.0.1", "::1"),
    ("[::1]:0", "::1", "127.0.0.1"),
])  # fmt: skip
def test_an_address_is_that_address_only(text: str, there: str, not_there: str) -> None:
    (sock,) = listen(text)
    port = sock.getsockname()[1]
    assert can_connect(there, port)
    assert not can_connect(not_there, port)
    sock.close()


def test_all_addresses_of_a_name_have_one_port() -> None:
    socks = listen("localhost:0")
    assert len({sock.getsockname()[1] for sock in socks}) == 1
    for sock in socks:
        assert can_connect(*sock.getsockname()[:2])
        sock.close()


def test_an_address_in_use_is_named_in_one_line() -> None:
    """DESIGN 1.2: errors name the stage, the peer and the cause."""
    (sock,) = listen("127.0.0.1:0")
    address = f"127.0.0.1:{sock.getsockname()[1]}"
    with pytest.raises(ProxyError, match=rf"^cannot listen on {address}: Address already in use$"):
        listen(address)
    sock.close()


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(ProxyError, match=r"^cannot listen on 192\.0\.2\.1:0: "):
        listen("192.0.2.1:0")


def test_a_name_that_does_not_resolve_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise std_socket.gaierror(std_socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(opening, "_getaddrinfo", fail)
    with pytest.raises(ProxyError, match=r"cannot listen on no\.example:80: Name or service not known"):
        listen("no.example:80")


def test_a_port_that_was_just_in_use_can_be_had_again() -> None:
    """CASES I217: connections of the one before, in TIME_WAIT, are no hindrance."""
    (sock,) = listen("127.0.0.1:0")
    address = sock.getsockname()
    with socket.create_connection(address, timeout=PATIENCE) as client:
        accepted, _ = sock.accept()
        accepted.close()  # the side that closes first is left in TIME_WAIT
        assert client.recv(1) == b""
    sock.close()
    (again,) = listen(f"127.0.0.1:{address[1]}")
    again.close()


def test_accepted_sockets_have_nodelay_and_keepalive() -> None:
    """CASES E154."""
    (sock,) = listen("127.0.0.1:0")
    with socket.create_connection(sock.getsockname(), timeout=PATIENCE):
        accepted, _ = sock.accept()
        assert accepted.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY)
        assert accepted.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE)
        accepted.close()
    sock.close()


def test_a_burst_of_clients_waits_to_be_accepted() -> None:
    """CASES G192."""
    assert BACKLOG >= 512
    (sock,) = listen("127.0.0.1:0")
    clients = [socket.create_connection(sock.getsockname(), timeout=PATIENCE) for _ in range(500)]
    for client in clients:
        client.close()
    sock.close()


# -- one address beside another


@needs_ipv6
@pytest.mark.parametrize("narrow", ["0.0.0.0", "127.0.0.1"])
def test_every_address_of_ipv6_stands_beside_one_of_ipv4(narrow: str) -> None:
    """Case 301."""
    port = free_port()
    for order in ([f"[::]:{port}", f"{narrow}:{port}"], [f"{narrow}:{port}", f"[::]:{port}"]):
        socks = [sock for text in order for sock in listen(text)]
        assert can_connect("127.0.0.1", port)
        assert can_connect("::1", port)
        for sock in socks:
            sock.close()


@needs_ipv6
def test_every_address_of_ipv6_is_none_of_ipv4() -> None:
    """Cases 301 and 302: DESIGN 1.2."""
    port = free_port()
    (sock,) = listen(f"[::]:{port}")
    assert place_of(sock) == Place("::", port)
    assert can_connect("::1", port)
    assert not can_connect("127.0.0.1", port)
    sock.close()


# -- what is not there


def resolve_to(monkeypatch: pytest.MonkeyPatch, *outcomes: list[str] | Exception) -> None:
    """Have every name lead to these addresses, at one lookup after another; the last outcome stays."""
    left = list(outcomes)

    def answer(host: str, port: int, *_: object) -> list[object]:
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return [(std_socket.AF_INET, std_socket.SOCK_STREAM, 6, "", (ip, port)) for ip in outcome]

    monkeypatch.setattr(opening, "_getaddrinfo", answer)


NO_ANSWER = std_socket.gaierror(std_socket.EAI_AGAIN, "Temporary failure in name resolution")


def test_what_is_there_of_a_name_is_opened_and_the_rest_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Case 303."""
    resolve_to(monkeypatch, [NOT_OURS, "127.0.0.1"])
    port = free_port()
    (sock,) = listen(f"both.example:{port}")
    assert sock.getsockname() == ("127.0.0.1", port)
    assert f"nothing listens on {NOT_OURS}:{port}: Cannot assign requested address" in caplog.text
    sock.close()


@pytest.mark.parametrize("outcome", [[NOT_OURS], NO_ANSWER])
def test_a_name_of_which_nothing_is_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, outcome: list[str] | Exception
) -> None:
    """Case 303."""
    resolve_to(monkeypatch, outcome)
    with pytest.raises(ProxyError, match=r"^cannot listen on gone\.example:80: (Cannot assign|Temporary)"):
        listen("gone.example:80")


def test_a_busy_address_is_not_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was opened before it is closed again."""
    (busy,) = listen("127.0.0.2:0")
    port = busy.getsockname()[1]
    resolve_to(monkeypatch, ["127.0.0.1", "127.0.0.2"])
    with pytest.raises(ProxyError, match="Address already in use"):
        bind(Endpoint.parse(f"both.example:{port}"))
    assert not can_connect("127.0.0.1", port)
    busy.close()


def test_no_descriptor_for_a_copy_is_our_own_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    (sock,) = listen("127.0.0.1:0")
    place = place_of(sock)

    def none_left(descriptor: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", none_left)
    opened = Opening(Endpoint.parse(str(place)))
    opened.look_up()
    with pytest.raises(ProxyError, match="Too many open files") as caught:
        opened.open({place: sock})
    assert caught.value.failure is Failure.LIMIT
    sock.close()


@pytest.fixture
def latecomers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Latecomers]:
    monkeypatch.setattr(opening, "RETRY", 0.01)
    latecomers = Latecomers()
    yield latecomers
    latecomers.stop()


@pytest.mark.parametrize(
    "outcomes",
    [(NO_ANSWER, NO_ANSWER, ["127.0.0.1"]), (["127.0.0.1"],)],
    ids=["no-answer", "busy-for-a-while"],
)
def test_what_comes_later_is_opened_then(
    latecomers: Latecomers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    outcomes: tuple[list[str] | Exception, ...],
) -> None:
    """Case 312: a name server that is down at boot, and one who was quicker, pass as well."""
    port = free_port()
    (before,) = listen(f"127.0.0.1:{port}")
    resolve_to(monkeypatch, *outcomes)
    late = Opening(Endpoint.parse(f"late.example:{port}"))
    if len(outcomes) > 1:
        assert late.look_up() == []
        assert late.missing == [f"late.example:{port}"]
    arrived: list[socket.socket] = []
    latecomers.expect(late, arrived.extend)
    until(lambda: "Address already in use" in caplog.text)
    assert caplog.text.count("Address already in use") == 1  # however often it is tried
    before.close()
    until(lambda: arrived)
    assert late.missing == []
    assert can_connect("127.0.0.1", port)
    arrived[0].close()


def test_what_nobody_waits_for_any_more_is_not_opened(
    latecomers: Latecomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    asked: list[object] = []

    def answer(*question: object) -> list[object]:
        asked.append(question)
        latecomers.forget(late)  # while it is looked up
        return [(std_socket.AF_INET, std_socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    late = Opening(Endpoint.parse(f"late.example:{port}"))
    monkeypatch.setattr(opening, "_getaddrinfo", answer)
    latecomers.expect(late, lambda socks: pytest.fail("it was forgotten"))
    until(lambda: asked)
    until(lambda: not can_connect("127.0.0.1", port))
