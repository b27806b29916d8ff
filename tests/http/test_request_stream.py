"""
A request that is passed on, as one end of a relay: followed to its end, a bounded part of it at a time.

What is counted is work, which is the same on a busy machine.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import gevent
import pytest
from gevent.socket import wait_read

from proxy.errors import ProtocolError
from proxy.http.heads import HttpError, parse_request
from proxy.http.requests import vet_proxy_request
from proxy.http.server import RequestStream
from proxy.net.deadline import wait
from proxy.relaying.stream import Buffer, Ending, TcpStream, TlsStream
from proxy.sharing.pipes import AVAILABLE, PIPES
from proxy.sharing.turns import FEW_FRAMES, FRAMES_AT_A_TIME, TURNS
from proxy.tls.contexts import client_context, server_context
from proxy.tls.tlssocket import TlsSocket
from tests.integration.certificates import Authority, Certificate
from tests.relaying.test_relay import unread
from tests.relaying.test_relay_over_tls import tls_pair
from tests.wire.greenlets import patience, tcp_pair, until
from tests.wire.sockets import reset

CHUNKED = b"POST http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET http://127.0.0.1/ HTTP/1.0\r\n\r\n"
CRUMBS = b"".join(b"1\r\n%c\r\n" % (number % 256) for number in range(9000)) + b"0\r\n\r\n"
SECOND = b"GET http://other.example/ HTTP/1.1\r\nProxy-Authorization: Basic dTpw\r\n\r\n"


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience(60):
        yield


def stream_of(sent: bytes, head: bytes = CHUNKED) -> tuple[RequestStream, Any]:
    """Make the stream of a client that has sent this behind the head of a request, which is chunked."""
    client, near = tcp_pair()
    client.sendall(sent)
    return RequestStream(vet_proxy_request(parse_request(head)), TcpStream(near)), client


def receive(stream: RequestStream, buffer: Buffer) -> bytes:
    """Do one operation that brings something; b"" is the end."""
    while (count := stream.recv_into(buffer, bulk=False)) is None:
        gevent.sleep(0.001)
    data = bytes(buffer.payload[:count])
    buffer.view[:] = b"\xee" * len(buffer.view)  # as other connections use it, too
    return data


def test_thousands_of_chunks_are_followed_a_few_at_a_time_and_arrive_as_they_were() -> None:
    """
    Those of one read take 30 ms, in which nobody else is served.

    So an operation follows as many lines as a turn of the loop has left, and the rest waits for a later one.
    """
    stream, _client = stream_of(CRUMBS + SECOND)
    buffer, got, operations, told = Buffer(), b"", 0, 0
    receive(stream, buffer)  # the head
    allowed = TURNS.frames
    while data := receive(stream, buffer):
        assert stream._body.lines <= allowed
        got += data
        operations += 1
        told += stream.buffered
        allowed = TURNS.frames
    assert got == CRUMBS
    assert operations >= 2 * 9000 / FRAMES_AT_A_TIME
    assert told > operations / 2  # so a relay comes again, though the socket has nothing to say


def test_what_a_turn_has_left_is_for_all_connections() -> None:
    """One that has followed many chunks in this turn leaves less of it to the next."""
    buffer = Buffer()
    streams = [stream_of(CRUMBS)[0] for _ in range(12)]
    for stream in streams:
        receive(stream, buffer)
    lines = 0
    for stream in streams:  # nothing here waits, so this is one turn of the loop
        assert stream.recv_into(buffer, bulk=False)
        lines += stream._body.lines
    assert TURNS.is_full
    assert lines <= 2 * FRAMES_AT_A_TIME + FEW_FRAMES * len(streams)


def test_a_client_that_ends_while_some_of_it_waits_is_seen_to_break_off_after_that() -> None:
    whole = CRUMBS[: -len(b"0\r\n\r\n")]
    stream, client = stream_of(whole)
    client.close()
    buffer, got = Buffer(), b""
    receive(stream, buffer)
    while len(got) < len(whole):
        got += receive(stream, buffer)
    assert got == whole
    with pytest.raises(ProtocolError, match="broke off in its body"):
        receive(stream, buffer)


def test_what_was_left_of_a_big_read_goes_into_a_small_buffer_a_piece_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunks = b"".join(b"1f40\r\n" + bytes([number]) * 8000 + b"\r\n" for number in range(1, 7)) + b"0\r\n\r\n"
    stream, _client = stream_of(chunks + SECOND)
    receive(stream, Buffer())  # the head
    until(lambda: unread(stream._client) == len(chunks + SECOND))
    monkeypatch.setattr(TURNS, "is_full", True)  # so that only a few chunks are followed at a time
    got = receive(stream, Buffer())
    assert len(stream._rest) > 8192
    while data := receive(stream, Buffer(1000)):
        assert len(data) <= 1000
        got += data
    assert got == chunks


# -- over TLS, which has no half-close


def over_tls(authority: Authority, good: Certificate, head: bytes) -> tuple[RequestStream, TlsSocket]:
    """Make the stream of a client that has sent this head."""
    contexts = server_context(str(good.cert), str(good.key)), client_context(str(authority.root.cert))
    served, client = tls_pair(contexts)
    return RequestStream(vet_proxy_request(parse_request(head)), TlsStream(served)), client


def answer(stream: RequestStream, client: TlsSocket) -> None:
    """Have the target answer with a head, and the client read it."""
    head, buffer = b"HTTP/1.1 200 OK\r\n\r\n", Buffer()
    buffer.payload[: len(head)] = head
    stream.send(buffer, len(head))
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        wait(client.reader)
        with suppress(BlockingIOError):
            got += client.recv(4096)


def test_the_end_of_an_answer_is_told_at_once_to_who_has_sent_its_request(
    authority: Authority, good: Certificate
) -> None:
    """RFC 9112, section 6.3: where no length is given, only the end of the connection ends the body."""
    stream, client = over_tls(authority, good, GET)
    receive(stream, Buffer())
    answer(stream, client)
    stream.end()
    wait(client.reader)
    assert client.recv(1) == b""
    assert not client.is_cut
    client._sock.close()  # without a word of TLS, as many do
    assert receive(stream, Buffer()) == b""
    stream.begin_close(Ending.FINISHED)


def test_who_leaves_before_that_without_a_word_of_tls_is_cut_off(
    authority: Authority, good: Certificate
) -> None:
    stream, client = over_tls(authority, good, GET)
    receive(stream, Buffer())
    client._sock.close()
    with pytest.raises(ProtocolError, match="without close_notify"):
        receive(stream, Buffer())
    stream.begin_close(Ending.CUT)


def test_who_still_sends_its_request_is_not_told_of_the_end_by_tls(
    authority: Authority, good: Certificate
) -> None:
    """Many clients take it for the end of both directions."""
    stream, client = over_tls(authority, good, CHUNKED)
    receive(stream, Buffer())
    answer(stream, client)
    stream.end()
    client.write(b"1\r\nx\r\n")
    assert receive(stream, Buffer()) == b"1\r\nx\r\n"
    with pytest.raises(BlockingIOError):
        client.recv(1)
    client.close()
    stream.begin_close(Ending.CUT)


@pytest.mark.parametrize(
    ("ending", "status", "error"),
    [
        (Ending.IDLE, "504 Gateway Timeout", "connection_read_timeout"),
        (Ending.CUT, "502 Bad Gateway", "connection_terminated"),
        (
            Ending.FAILED,
            "500 Internal Server Error",
            "proxy_internal_error",
        ),  # which is not the target's fault
    ],
)
def test_where_there_is_no_answer_the_client_is_told_why(ending: Ending, status: str, error: str) -> None:
    """RFC 9209, section 2.3."""
    stream, client = stream_of(b"", GET)
    stream.begin_close(ending)
    answer = client.recv(4096).decode()
    assert answer.startswith(f"HTTP/1.1 {status}\r\n")
    assert f"Proxy-Status: proxy-server; error={error}\r\n" in answer
    assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("head", "sent", "status"),
    [
        (CHUNKED, b"", b"408 Request Timeout"),
        (CHUNKED, b"5\r\nhello\r\n", b"408 Request Timeout"),
        (CHUNKED, b"0\r\n\r\n", b"504 Gateway Timeout"),
        # It may send nothing before the target has said that it may (RFC 9110, section 10.1.1).
        (CHUNKED.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"), b"", b"504 Gateway Timeout"),
    ],
)
def test_who_was_silent_for_too_long_is_told_apart(head: bytes, sent: bytes, status: bytes) -> None:
    """RFC 9110, sections 15.5.9 and 15.6.5."""
    stream, client = stream_of(sent, head)
    receive(stream, Buffer())
    if sent:
        assert receive(stream, Buffer()) == sent
    stream.begin_close(Ending.IDLE)
    assert client.recv(4096).startswith(b"HTTP/1.1 " + status + b"\r\n")


def test_a_target_that_takes_nothing_of_a_body_is_the_one_that_was_silent() -> None:
    stream, client = stream_of(b"5\r\nhello\r\n")
    until(lambda: unread(stream._client))
    stream.begin_close(Ending.IDLE)
    assert client.recv(4096).startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")


def test_a_target_is_not_blamed_for_a_chunk_of_the_client_s_that_waited_for_its_turn() -> None:
    """RFC 9110, section 15.5.1: the client is told itself, as long as there is no answer."""
    stream, client = stream_of(CRUMBS[: -len(b"0\r\n\r\n")] + b"zz\r\n")
    with pytest.raises(HttpError, match="does not begin with its size"):
        deque(iter(lambda: receive(stream, Buffer()), b""))
    stream.begin_close(Ending.CUT)
    assert client.recv(4096).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert client.recv(1) == b""


@pytest.mark.parametrize("ending", [Ending.STOPPED, Ending.EVICTED])
def test_nobody_is_answered_for_where_we_end_it(ending: Ending) -> None:
    stream, client = stream_of(b"")
    stream.begin_close(ending)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


# -- spliced


@pytest.mark.skipif(not AVAILABLE, reason="no splice here")
def test_a_pipe_behind_a_head_that_nobody_takes_goes_back() -> None:
    """Else it stays lent for ever, and its two descriptors open. What it had belongs to the head, too."""
    stream, client = stream_of(b"")
    source, sink = tcp_pair()
    source.sendall(b"rest\r\n\r\n")
    lent, pipe = PIPES.lent, PIPES.take()
    assert pipe
    wait_read(sink.fileno())
    count = pipe.fill(sink.fileno(), 8)
    buffer, head = Buffer(), b"HTTP/1.1 200 OK\r\nA: "
    buffer.payload[: len(head)] = head
    stream.send(buffer, len(head))
    reset(client)
    with pytest.raises(ConnectionError):
        stream.splice_out(pipe, count)
    stream.begin_close(Ending.CUT)
    assert PIPES.lent == lent
