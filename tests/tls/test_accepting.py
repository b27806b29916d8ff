"""What a client is told that speaks plain HTTP where TLS is wanted, and how it is told from others."""

import ssl
from collections.abc import Iterator

import gevent
import pytest

from proxy.errors import ProtocolError
from proxy.relaying.channel import Channel
from proxy.tls.accepting import secure
from proxy.tls.contexts import client_context, server_context
from proxy.tls.tlssocket import TlsSocket, connect_tls
from tests.integration.certificates import Certificate
from tests.wire.greenlets import Pair, patience, settle, tcp_pair


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    with patience():
        yield


@pytest.fixture
def context(good: Certificate) -> ssl.SSLContext:
    return server_context(str(good.cert), str(good.key))


@pytest.fixture
def pair() -> Pair:
    return tcp_pair()


def accept(channel: Channel, context: ssl.SSLContext) -> "gevent.Greenlet[..., None]":
    """Begin to wait for a handshake."""
    accepting = gevent.spawn(secure, channel, context)
    accepting.rawlink(lambda _: None)  # so that its error is not printed
    return accepting


METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "get"]


@pytest.mark.parametrize("early", [0, 3, 12])
@pytest.mark.parametrize("method", METHODS)
def test_a_client_that_speaks_plain_http_is_told_so_in_plain_http(
    context: ssl.SSLContext, pair: Pair, method: str, early: int
) -> None:
    """RFC 9110, section 9, and others; however its request is cut."""
    request = f"{method} / HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    channel = Channel(pair[0])
    channel.push_back(request[:early])
    accepting = accept(channel, context)
    for byte in request[early:]:
        pair[1].sendall(bytes([byte]))
    with pytest.raises(ProtocolError, match=r"^TLS handshake: the client speaks plain HTTP: .* wss://"):
        accepting.get()
    head, _, body = pair[1].recv(4096).partition(b"\r\n\r\n")
    start, *fields = head.decode().split("\r\n")
    assert start == "HTTP/1.1 400 Bad Request"
    assert "Connection: close" in fields
    if method == "HEAD":  # RFC 9110, section 9.3.2
        assert body == b""
    else:
        assert f"Content-Length: {len(body)}" in fields
        assert body.startswith(b"The plain HTTP request was sent to HTTPS port")  # as nginx says it
        assert body.count(b"\n") == 1


@pytest.mark.parametrize(
    "said",
    [
        *(b"SSH-2.0-OpenSSH_9.9 Debian-1\r\n", b"EHLO x\r\n", b"\x05\x01\x00", b"PRI * HTTP/2.0\r\n"),
        *(b"GET / HTTP/1.1\n", b"a" * 9000),
    ],
)
def test_who_speaks_neither_is_told_nothing_in_http(context: ssl.SSLContext, pair: Pair, said: bytes) -> None:
    accepting = accept(Channel(pair[0]), context)
    pair[1].sendall(said + bytes(5))
    with pytest.raises(ProtocolError, match=r"^TLS handshake: the peer does not speak TLS$"):
        accepting.get()
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)


@pytest.mark.parametrize("said", [b"", b"GET"])
def test_who_leaves_before_it_is_clear_what_it_speaks_is_told_nothing(
    context: ssl.SSLContext, pair: Pair, said: bytes
) -> None:
    accepting = accept(Channel(pair[0]), context)
    pair[1].sendall(said)
    pair[1].shutdown(1)
    with pytest.raises(EOFError):
        accepting.get()
    pair[0].close()


def test_a_client_that_speaks_tls_is_served(context: ssl.SSLContext, pair: Pair) -> None:
    channel = Channel(pair[0])
    accepting = accept(channel, context)
    settle()
    assert not channel.heard
    client = connect_tls(pair[1], client_context(verify=False), "localhost")
    accepting.get()
    assert channel.heard
    assert isinstance(channel.sock, TlsSocket)
    client.write(b"hello")
    assert channel.read_exact(5) == b"hello"
