"""The HTTP door of a mixed listener, told in raw bytes to a running server."""

import re
import socket
import threading
from base64 import b64encode
from collections import deque
from collections.abc import Iterator
from functools import partial

import pytest

from tests.integration.programs import Proxy, mixed_door
from tests.wire.sockets import Door, connect, free_port, read_exact, read_rest, reset
from tests.wire.targets import Listener
from tests.wire.waits import wait_until

ALICE = b"Proxy-Authorization: Basic " + b64encode(b"alice:wonderland") + b"\r\n"
MALLORY = b"Proxy-Authorization: Basic " + b64encode(b"alice:guess") + b"\r\n"
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
DATE = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
PAGE = b"HTTP/1.1 200 OK\r\n" + DATE + b"Content-Length: 5\r\n\r\nhello"
# RFC 9110, section 7.6.3 and RFC 9112, section 9.6.
PAGE_FROM_US = PAGE.replace(b"\r\n\r\n", b"\r\nVia: 1.1 proxy-server\r\nConnection: close\r\n\r\n")


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    doors = {"open": mixed_door(auth="none"), "login": mixed_door()}
    users = {"alice": "wonderland"}
    with Proxy({"proxy": {"log_level": "debug"}, "listeners": doors, "auth_users": users}) as running:
        yield running
        assert "internal error" not in running.log


@pytest.fixture
def door(proxy: Proxy) -> Door:
    return proxy.door("open")


@pytest.fixture
def target() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener


def connect_to(port: int, *lines: bytes) -> bytes:
    """Write a CONNECT request."""
    return (
        b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % (port, port) + b"".join(lines) + b"\r\n"
    )


def get(port: int, *lines: bytes, method: bytes = b"GET") -> bytes:
    """Write a request in absolute form."""
    start = b"%s http://127.0.0.1:%d/page?q HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % (method, port, port)
    return start + b"".join(lines) + b"\r\n"


def ask(door: Door, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send a request that is to be refused, and read the answer, which must be all that comes."""
    with connect(door) as client:
        client.sendall(request)
        answer, end = read_rest(client)
    assert end == "FIN"
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    found = re.fullmatch(r"HTTP/1\.1 ([45][0-9]{2}) [A-Za-z -]+", first)
    assert found, first
    headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    assert headers["connection"] == "close"
    return int(found[1]), headers, body


def read_head(sock: socket.socket) -> bytes:
    """Read a head, byte by byte, so that what follows stays there."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exact(sock, 1)
    return head


# -- tunnels


def test_connect_is_answered_when_the_target_is_connected(door: Door, target: Listener) -> None:
    with connect(door) as client:
        client.sendall(connect_to(target.port))
        assert read_exact(client, len(CONNECTED)) == CONNECTED
        far = target.accept()
        client.sendall(b"up")
        assert read_exact(far, 2) == b"up"
        far.sendall(b"down")
        assert read_exact(client, 4) == b"down"


def test_bytes_glued_to_connect_belong_to_the_tunnel(door: Door, target: Listener) -> None:
    with connect(door) as client:
        client.sendall(connect_to(target.port) + b"\x16\x03\x01early")
        assert read_exact(target.accept(), 8) == b"\x16\x03\x01early"


def test_a_tunnel_is_half_closed_both_ways(door: Door, target: Listener) -> None:
    with connect(door) as client:
        client.sendall(connect_to(target.port) + b"all")
        client.shutdown(socket.SHUT_WR)
        far = target.accept()
        assert read_rest(far) == (b"all", "FIN")
        far.sendall(b"the answer")
        far.close()
        assert read_rest(client) == (CONNECTED + b"the answer", "FIN")


def test_a_head_may_come_byte_by_byte(door: Door, target: Listener) -> None:
    with connect(door) as client:
        for byte in connect_to(target.port):
            client.sendall(bytes([byte]))
        assert read_exact(client, len(CONNECTED)) == CONNECTED


def test_a_refused_target_is_told_with_its_cause(door: Door) -> None:
    """DESIGN 1.4; RFC 9209, section 2.3.12."""
    status, headers, body = ask(door, connect_to(free_port()))
    assert status == 502
    assert "error=connection_refused" in headers["proxy-status"]
    assert body == b"connection refused\n"


# -- one request, passed on


def test_a_request_goes_to_its_host_with_the_path_alone(door: Door, target: Listener) -> None:
    """DESIGN 1.9."""
    with connect(door) as client:
        client.sendall(get(target.port, ALICE, b"Accept: */*\r\n", b"Proxy-Connection: keep-alive\r\n"))
        far = target.accept()
        assert read_head(far).split(b"\r\n") == [
            b"GET /page?q HTTP/1.1",
            b"Host: 127.0.0.1:%d" % target.port,
            b"Accept: */*",
            b"Via: 1.1 proxy-server",
            b"Connection: close",
            b"",
            b"",
        ]
        far.sendall(PAGE)
        far.close()
        assert read_rest(client) == (PAGE_FROM_US, "FIN")


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (b"Content-Length: 11\r\n", b"hello world"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nExpires: 0\r\n\r\n"),
    ],
    ids=["with a length", "chunked"],
)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_body_goes_as_it_comes_and_nothing_behind_it(
    door: Door, target: Listener, line: bytes, body: bytes, *, in_pieces: bool
) -> None:
    """A second request would reach the target of the first, with the login that it has for us."""
    second = get(target.port, ALICE)
    with connect(door) as client:
        request = get(target.port, line, ALICE, method=b"POST")
        if in_pieces:
            client.sendall(request)
            far = target.accept()
            read_head(far)
            for byte in body + second:
                client.sendall(bytes([byte]))
        else:
            client.sendall(request + body + second)
            far = target.accept()
            read_head(far)
        assert read_rest(far) == (body, "FIN")  # the second request ends the connection to the target
        far.sendall(PAGE)
        far.close()
        assert read_rest(client)[0] == PAGE_FROM_US


def test_without_a_body_nothing_follows_the_head(door: Door, target: Listener) -> None:
    with connect(door) as client:
        client.sendall(get(target.port) + get(target.port, ALICE))
        far = target.accept()
        read_head(far)
        assert read_rest(far) == (b"", "FIN")


def test_a_client_that_waits_keeps_its_side_open(door: Door, target: Listener) -> None:
    """Some servers take a FIN behind a request for a client that has left."""
    with connect(door) as client:
        client.sendall(get(target.port))
        far = target.accept()
        read_head(far)
        far.sendall(PAGE)
        assert read_exact(client, len(PAGE_FROM_US)) == PAGE_FROM_US
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(1)


@pytest.mark.parametrize(
    ("line", "sent"),
    [(b"Content-Length: 11\r\n", b"hello"), (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n")],
    ids=["with a length", "chunked"],
)
def test_a_request_that_breaks_off_is_a_cut_for_the_target(
    door: Door, target: Listener, line: bytes, sent: bytes
) -> None:
    """DESIGN 1.5: a cut never looks like a clean end."""
    with connect(door) as client:
        client.sendall(get(target.port, line, method=b"POST") + sent)
        far = target.accept()
        read_head(far)
        assert read_exact(far, len(sent)) == sent
        client.shutdown(socket.SHUT_WR)
        assert read_rest(far) == (b"", "reset")


def test_a_malformed_chunk_is_a_cut_for_the_target(door: Door, target: Listener) -> None:
    with connect(door) as client:
        client.sendall(get(target.port, b"Transfer-Encoding: chunked\r\n", method=b"POST"))
        far = target.accept()
        read_head(far)
        client.sendall(b"zz\r\n")
        assert read_rest(far) == (b"", "reset")


def test_a_large_body_and_a_large_answer_arrive_whole(door: Door, target: Listener) -> None:
    size = 3_000_000
    with connect(door) as client:
        client.sendall(get(target.port, b"Content-Length: %d\r\n" % size, method=b"PUT"))
        far = target.accept()
        read_head(far)
        half = size // 2
        client.sendall(b"u" * half)
        assert read_exact(far, half) == b"u" * half
        client.sendall(b"v" * half)
        assert read_exact(far, half) == b"v" * half
        far.settimeout(20)
        far.sendall(b"d" * size)
        far.close()
        assert read_rest(client) == (b"d" * size, "FIN")


def test_the_client_is_told_that_its_connection_ends_whatever_the_target_says_of_its_own(
    door: Door, target: Listener
) -> None:
    """RFC 9110, section 7.6.1: else it sends its next request where nobody reads it."""
    with connect(door) as client:
        client.sendall(get(target.port))
        far = target.accept()
        read_head(far)
        connection = b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n"
        far.sendall(b"HTTP/1.1 200 OK\r\n" + DATE + connection + b"Content-Length: 2\r\n\r\n")
        assert read_head(client).split(b"\r\n") == [
            b"HTTP/1.1 200 OK",
            DATE.strip(),
            b"Content-Length: 2",
            b"Via: 1.1 proxy-server",
            b"Connection: close",
            b"",
            b"",
        ]
        far.sendall(b"ok")
        assert read_exact(client, 2) == b"ok"


@pytest.mark.parametrize("in_pieces", [False, True])
def test_an_interim_answer_is_passed_on_at_once(door: Door, target: Listener, *, in_pieces: bool) -> None:
    """RFC 9110, section 15.2: the client waits for it before it sends its body."""
    with connect(door) as client:
        client.sendall(get(target.port, b"Content-Length: 2\r\n", b"Expect: 100-continue\r\n", method=b"PUT"))
        far = target.accept()
        assert b"Expect: 100-continue" in read_head(far)
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        for piece in [interim[n : n + 1] for n in range(len(interim))] if in_pieces else [interim]:
            far.sendall(piece)
        assert read_head(client) == b"HTTP/1.1 100 Continue\r\nVia: 1.1 proxy-server\r\n\r\n"
        client.sendall(b"up")
        assert read_exact(far, 2) == b"up"
        far.sendall(PAGE)
        far.close()
        assert read_rest(client) == (PAGE_FROM_US, "FIN")


def test_no_interim_answer_is_passed_on_to_http_1_0(door: Door, target: Listener) -> None:
    """RFC 9110, section 15.2."""
    with connect(door) as client:
        client.sendall(get(target.port).replace(b"HTTP/1.1", b"HTTP/1.0"))
        far = target.accept()
        assert read_head(far).startswith(b"GET /page?q HTTP/1.0\r\n")
        far.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + PAGE)
        far.close()
        assert read_rest(client) == (PAGE_FROM_US, "FIN")


def have_answered(
    client: socket.socket, target: Listener, answer: bytes, end: str, *, client_ended: bool
) -> None:
    """Ask for a page, and have the target say this, and end its connection."""
    client.sendall(get(target.port))
    far = target.accept()
    read_head(far)
    if client_ended:
        client.shutdown(socket.SHUT_WR)
        assert read_rest(far) == (b"", "FIN")
    far.sendall(answer)
    if end == "FIN":
        far.close()
    else:
        reset(far)


@pytest.mark.parametrize("client_ended", [False, True])
@pytest.mark.parametrize("end", ["FIN", "reset"])
@pytest.mark.parametrize("answer", [b"ICY 200 OK\r\n\r\nmusic", b"hello"], ids=repr)
def test_what_is_no_head_at_all_reaches_the_client_as_it_came(
    door: Door, target: Listener, answer: bytes, end: str, *, client_ended: bool
) -> None:
    with connect(door) as client:
        have_answered(client, target, answer, end, client_ended=client_ended)
        if end == "FIN":
            assert read_rest(client) == (answer, "FIN")
        else:
            assert read_rest(client)[1] == "reset"


@pytest.mark.parametrize("client_ended", [False, True])
@pytest.mark.parametrize("end", ["FIN", "reset"])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "connection_terminated"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "connection_terminated"),
        (b"H", "http_response_incomplete"),
        (b"HTTP/1.1 200 OK\r\nContent-", "http_response_incomplete"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4, 5\r\n\r\nfour", "http_protocol_error"),
    ],
    ids=repr,
)
def test_a_target_that_gives_no_whole_and_valid_head_is_answered_for(
    door: Door, target: Listener, answer: bytes, error: str, end: str, *, client_ended: bool
) -> None:
    """RFC 9110, section 15.6.3; the errors are those of RFC 9209, section 2.3."""
    with connect(door) as client:
        have_answered(client, target, answer, end, client_ended=client_ended)
        if answer.startswith(b"HTTP/1.1 100"):
            assert read_head(client).startswith(b"HTTP/1.1 100 Continue\r\n")
        head = read_head(client)
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert f"Proxy-Status: proxy-server; error={error}\r\n".encode() in head
        body, how = read_rest(client)
        assert body.endswith(b"\n")
        assert how == "FIN"


def test_a_target_whose_answer_is_refused_is_blamed_in_the_log(proxy: Proxy, target: Listener) -> None:
    with connect(proxy.door("open")) as client:
        have_answered(client, target, b"HTTP/1.1 200 OK\r\nno field\r\n\r\n", "FIN", client_ended=False)
        assert read_head(client).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    line = proxy.wait_for_log("malformed head")
    assert f" target=127.0.0.1:{target.port} " in line
    assert line.endswith('end="cut: target: its answer has a malformed head"')


# More than any buffer on the way holds, so that a client that is not read cannot have sent it.
UPLOAD = 20_000_000


def test_a_refusal_is_read_by_a_client_that_sends_its_whole_body_first(door: Door) -> None:
    """RFC 9112, section 9.6: a reset would overtake it, so the server reads on for a while."""
    with connect(door) as client:
        client.sendall(get(free_port(), b"Content-Length: %d\r\n" % UPLOAD, method=b"PUT"))
        client.sendall(b"u" * UPLOAD)
        assert read_head(client).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        client.shutdown(socket.SHUT_WR)
        assert read_rest(client) == (b"connection refused\n", "FIN")


@pytest.mark.parametrize("end", ["FIN", "reset"])
def test_an_answer_in_the_place_of_a_target_is_read_by_a_client_that_sends_its_whole_body_first(
    door: Door, target: Listener, end: str
) -> None:
    """RFC 9112, section 9.6."""
    with connect(door) as client:
        client.sendall(get(target.port, b"Content-Length: %d\r\n" % UPLOAD, method=b"PUT"))
        far = target.accept()
        read_head(far)
        far.close() if end == "FIN" else reset(far)
        client.sendall(b"u" * UPLOAD)
        assert read_head(client).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        client.shutdown(socket.SHUT_WR)
        assert read_rest(client)[1] == "FIN"


def test_an_early_answer_is_read_by_a_client_that_sends_its_whole_body_first(
    door: Door, target: Listener
) -> None:
    """RFC 9110, section 10.1.1: a server may answer and close before it has read the body, as with 413."""
    with connect(door) as client:
        client.sendall(get(target.port, b"Content-Length: %d\r\n" % UPLOAD, method=b"PUT"))
        far = target.accept()
        read_head(far)
        far.sendall(PAGE)
        far.shutdown(socket.SHUT_WR)
        assert read_exact(client, len(PAGE_FROM_US)) == PAGE_FROM_US
        reset(far)
        client.sendall(b"u" * UPLOAD)
        client.shutdown(socket.SHUT_WR)
        assert read_rest(client) == (b"", "FIN")


def test_an_answer_is_read_by_a_client_that_sends_more_requests_meanwhile(
    door: Door, target: Listener
) -> None:
    """RFC 9112, section 9.6: of those nobody reads anything, which must not take the answer away."""
    with connect(door) as client:
        client.sendall(get(target.port) + get(target.port))
        far = target.accept()
        assert read_rest(far)[1] == "FIN"
        client.sendall(get(target.port) * 1000)
        far.sendall(PAGE)
        far.close()
        client.sendall(get(target.port) * 1000)
        assert read_exact(client, len(PAGE_FROM_US)) == PAGE_FROM_US
        client.shutdown(socket.SHUT_WR)
        assert read_rest(client) == (b"", "FIN")


def test_a_client_that_is_told_no_and_goes_on_sending_is_not_read_for_ever(door: Door) -> None:
    """Whoever sends without an end, so that its connection stays, is closed in some seconds."""
    with connect(door) as client:
        client.sendall(get(free_port(), b"Transfer-Encoding: chunked\r\n", method=b"PUT"))
        with pytest.raises(ConnectionError):
            deque(iter(partial(client.sendall, b"5\r\nhello\r\n" * 100), ...), 0)


def test_a_target_that_does_not_answer_head_is_answered_for_without_a_body(
    door: Door, target: Listener
) -> None:
    """RFC 9110, section 9.3.2."""
    with connect(door) as client:
        client.sendall(get(target.port, method=b"HEAD"))
        target.accept().close()
        assert read_head(client).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert read_rest(client) == (b"", "FIN")


def test_a_client_that_ends_in_the_middle_of_its_request_is_told_so(door: Door, target: Listener) -> None:
    with connect(door) as client:
        request = get(target.port, method=b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nab")
        client.sendall(request)
        far = target.accept()
        read_head(far)
        client.shutdown(socket.SHUT_WR)
        assert read_head(client).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert read_rest(client) == (b"the request broke off in its body\n", "FIN")


def test_an_answer_to_head_that_says_no_has_no_body(door: Door) -> None:
    """RFC 9110, section 9.3.2."""
    status, headers, body = ask(door, get(free_port(), method=b"HEAD"))
    assert (status, body) == (502, b"")
    assert int(headers["content-length"]) > 0


# -- logins


def test_who_sends_no_login_is_asked_for_one_and_has_not_failed(proxy: Proxy, target: Listener) -> None:
    """RFC 9110, section 15.5.8; programs send none before they are asked, so it is nothing for fail2ban."""
    status, headers, _ = ask(proxy.door("login"), connect_to(target.port))
    assert status == 407
    assert headers["proxy-authenticate"].startswith('Basic realm="')
    status, headers, _ = ask(proxy.door("login"), get(target.port, b"Proxy-Authorization: Negotiate YII\r\n"))
    assert status == 407
    assert "www-authenticate" not in headers
    assert target.untouched
    assert "authentication failed" not in proxy.log


def test_a_wrong_login_is_a_failure_that_fail2ban_sees(proxy: Proxy, target: Listener) -> None:
    for request in (connect_to(target.port, MALLORY), get(target.port, MALLORY)):
        status, headers, _ = ask(proxy.door("login"), request)
        assert status == 407
        assert "proxy-authenticate" in headers
    assert target.untouched
    line = "authentication failed: client=127.0.0.1 user=alice listener=login"
    wait_until(lambda: proxy.log.count(line) == 2, "both lines")
    assert "guess" not in proxy.log


def test_a_right_login_goes_through_and_no_further(proxy: Proxy, target: Listener) -> None:
    with connect(proxy.door("login")) as client:
        client.sendall(get(target.port, ALICE))
        far = target.accept()
        assert b"proxy-auth" not in read_head(far).lower()
        far.close()
    with connect(proxy.door("login")) as client:
        client.sendall(connect_to(target.port, ALICE))
        assert read_exact(client, len(CONNECTED)) == CONNECTED
        target.accept().close()
    wait_until(lambda: proxy.log.count(" user=alice client=") == 2, "both access lines")


# -- what is refused


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n", 400),
        (b"GET http://127.0.0.1/\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 400),
        (b"GET http://127.0.0.1/ HTTP/1.1\nHost: x\n\n", 400),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n", 400),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: x\0\r\n\r\n", 400),
        (b"PUT http://127.0.0.1/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"PUT http://127.0.0.1/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET http://127.0.0.1/" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET https://127.0.0.1/ HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"CONNECT bad_host!:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_in_one_line(door: Door, request_head: bytes, status: int) -> None:
    """CASES C70, C78, C79, C84, C90; DESIGN 1.9."""
    told, headers, body = ask(door, request_head)
    assert told == status
    assert body.count(b"\n") == 1
    assert b"127.0.0.1" not in body
    assert headers["content-type"].startswith("text/plain")


def test_a_body_of_thousands_of_chunks_arrives_whole_and_nothing_behind_it(
    door: Door, target: Listener
) -> None:
    body = b"1\r\nx\r\n" * 30_000 + b"0\r\n\r\n"
    with connect(door) as client:
        client.sendall(get(target.port, b"Transfer-Encoding: chunked\r\n", method=b"POST"))
        far = target.accept()
        read_head(far)
        sending = threading.Thread(target=client.sendall, args=(body + get(target.port, ALICE),))
        sending.start()
        assert read_rest(far) == (body, "FIN")
        sending.join(20)
        far.sendall(PAGE)
        far.close()
        assert read_rest(client)[0] == PAGE_FROM_US
