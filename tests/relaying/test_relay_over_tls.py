"""
Two relays of ours with wss:// between them, in one process; the tests hold the far ends.
"""

import os
import random
import socket as std_socket
import ssl
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from proxy.net.deadline import wait
from proxy.relaying.relay import DataForwarder, Transfer
from proxy.relaying.stream import BUFFER_SIZE, Buffer, Ending, TcpStream, TlsStream
from proxy.sharing.turns import FEW_FRAMES, FRAMES_AT_A_TIME
from proxy.tls.contexts import ClientContext, client_context, server_context
from proxy.tls.tlssocket import TlsSocket, accept_tls, connect_tls
from proxy.websocket.stream import WebSocketStream
from tests.integration.certificates import Authority, Certificate
from tests.net.wires import arrived
from tests.wire.greenlets import send_and_end, tcp_pair, until
from tests.wire.sockets import read_exact, read_rest, read_to_end, reset
from tests.wire.websocket import BINARY, FIN, frame

MIB = 1 << 20


@pytest.fixture(scope="module")
def contexts(authority: Authority, good: Certificate) -> tuple[ssl.SSLContext, ClientContext]:
    """Make a server's context, and a client's."""
    return server_context(str(good.cert), str(good.key)), client_context(str(authority.root.cert))


Contexts = tuple[ssl.SSLContext, ClientContext]


def tls_pair(contexts: Contexts) -> tuple[TlsSocket, TlsSocket]:
    """Connect a server and a client."""
    one, other = tcp_pair()
    accepting = gevent.spawn(accept_tls, one, contexts[0])
    client = connect_tls(other, contexts[1], "localhost")
    return accepting.get(), client


class Chain:
    """A client, two relays and a target."""

    def __init__(self, contexts: Contexts, *, half_close: bool = True) -> None:
        self.client, near = tcp_pair()
        self.target, far = tcp_pair()
        self.served, self.dialled = tls_pair(contexts)
        entrance = self.framed(self.dialled, server=False, half_close=half_close)
        gate = self.framed(self.served, server=True, half_close=half_close)
        self.entrance = gevent.spawn(DataForwarder().forward_data, TcpStream(near), entrance)
        self.exit = gevent.spawn(DataForwarder().forward_data, gate, TcpStream(far))

    @staticmethod
    def framed(tls: TlsSocket, *, server: bool, half_close: bool) -> WebSocketStream:
        """Make an end of the tunnel."""
        return WebSocketStream(TlsStream(tls), server=server, half_close=half_close, ping_interval=0)

    def results(self) -> list[Transfer]:
        """Wait for both ends."""
        return [self.entrance.get(), self.exit.get()]

    def ends(self, first: str) -> tuple[socket.socket, socket.socket]:
        """Give both far ends, the named one first."""
        return (self.client, self.target) if first == "client" else (self.target, self.client)

    def close(self) -> None:
        """Clean up."""
        gevent.killall([self.entrance, self.exit])
        self.client.close()
        self.target.close()


@pytest.fixture
def chain(contexts: Contexts) -> Iterator[Chain]:
    """Open a chain whose ends agree on half-close."""
    made = Chain(contexts)
    yield made
    made.close()


both = pytest.mark.parametrize("side", ["client", "target"])


@pytest.mark.parametrize("seed", range(8))
def test_bytes_arrive_as_sent_both_ways_at_once(chain: Chain, seed: int) -> None:
    """In pieces of all sizes, and with readers that stop for a while."""
    chances = random.Random(seed)
    data = {
        end: chances.randbytes(chances.choice([1, 70_000, 3 * MIB])) for end in (chain.client, chain.target)
    }

    def send(end: socket.socket) -> None:
        left = memoryview(data[end])
        while left:
            size = chances.choice([1, 100, 16_384, 65_522, 500_000])
            end.sendall(left[:size])
            left = left[size:]
            gevent.sleep(chances.choice([0, 0, 0.002]))
        end.shutdown(std_socket.SHUT_WR)

    def read(end: socket.socket) -> bytes:
        pieces = []
        while piece := end.recv(chances.choice([1000, 1 << 16, 1 << 20])):
            pieces.append(piece)
            gevent.sleep(chances.choice([0, 0, 0.005]))
        return b"".join(pieces)

    sending = [gevent.spawn(send, end) for end in data]
    reading = [gevent.spawn(read, end) for end in data]
    assert reading[0].get() == data[chain.target]
    assert reading[1].get() == data[chain.client]
    gevent.joinall(sending, raise_error=True)
    sizes = [len(data[chain.client]), len(data[chain.target])]
    for result in chain.results():
        assert [result.sent, result.received] == sizes
        assert result.ending is Ending.FINISHED


@both
def test_the_end_of_one_direction_leaves_the_other_alone(chain: Chain, side: str) -> None:
    """TLS cannot half-close; the WebSocket does."""
    one, other = chain.ends(side)
    send_and_end(one, b"question")
    assert read_to_end(other) == b"question"
    answer = os.urandom(2 * MIB)
    sending = gevent.spawn(send_and_end, other, answer)
    assert read_to_end(one) == answer
    sending.get()
    assert [result.ending for result in chain.results()] == [Ending.FINISHED] * 2


@both
def test_a_reset_goes_all_the_way_and_is_no_end(chain: Chain, side: str) -> None:
    one, other = chain.ends(side)
    one.sendall(b"begun")
    assert other.recv(5) == b"begun"
    reset(one)
    assert read_rest(other) == (b"", "reset")
    assert [result.ending for result in chain.results()] == [Ending.CUT] * 2


@pytest.mark.parametrize("half_close", [True, False], ids=["half-close", "none"])
def test_an_end_of_tcp_without_a_word_of_tls_is_a_cut(contexts: Contexts, *, half_close: bool) -> None:
    """RFC 8446, section 6.1: anybody on the way can end TCP, also between two messages."""
    chain = Chain(contexts, half_close=half_close)
    chain.client.sendall(b"begun")
    assert chain.target.recv(5) == b"begun"
    chain.dialled._sock.shutdown(std_socket.SHUT_WR)
    assert read_rest(chain.target) == (b"", "reset")
    assert chain.exit.get().ending is Ending.CUT
    chain.close()


@both
def test_nothing_is_looked_at_on_its_own_as_if_the_rest_could_be_spliced(
    chain: Chain, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[int] = set()
    receive = TlsSocket.recv_into

    def note(tls: TlsSocket, view: memoryview, most: int) -> int:
        asked.add(len(view))
        return receive(tls, view, most)

    monkeypatch.setattr(TlsSocket, "recv_into", note)
    sending, receiving = chain.ends(side)
    data = os.urandom(MIB)
    greenlet = gevent.spawn(send_and_end, sending, data)
    assert read_exact(receiving, MIB) == data
    greenlet.get()
    assert asked == {BUFFER_SIZE}


@both
def test_who_does_not_read_holds_up_who_sends(chain: Chain, side: str) -> None:
    """And only so much is kept on the way."""
    one, other = chain.ends(side)
    sent = 0
    one.setblocking(False)
    quiet = 0
    while quiet < 50:
        try:
            sent += one.send(bytes(1 << 16))
            quiet = 0
        except BlockingIOError:
            quiet += 1
            gevent.sleep(0.002)
    assert max(len(chain.served.unsent), len(chain.dialled.unsent)) < 70_000
    other.sendall(b"the other way is free")
    one.settimeout(10)
    assert one.recv(100) == b"the other way is free"
    one.shutdown(std_socket.SHUT_WR)
    assert len(read_to_end(other)) == sent


# -- one byte in each record


class Door:
    """A relay from a WebSocket client over TLS, whose records are all there when it begins."""

    def __init__(self, contexts: Contexts, crumbs: int) -> None:
        served, self.client = tls_pair(contexts)
        self.target, far = tcp_pair()
        tunnel = WebSocketStream(TlsStream(served), server=True, half_close=True, ping_interval=0)
        self.relay = DataForwarder().relay(tunnel, TcpStream(far))
        self.running = gevent.Greenlet(DataForwarder().run, self.relay)
        self.reader = served.reader
        for byte in b"".join(frame(FIN | BINARY, bytes([n % 251])) for n in range(crumbs)):
            self.client.write(bytes([byte]))

    def close(self) -> None:
        """Clean up."""
        self.client.close()
        self.target.close()
        self.running.get()


def test_records_of_a_byte_leave_each_turn_to_others(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost as much to decrypt as such frames to decode (case 372)."""
    counts = [0]
    receive = TlsSocket.recv_into

    def counting(self: TlsSocket, *args: Any) -> int:
        try:
            return receive(self, *args)
        finally:
            counts[-1] += self.records

    doors = [Door(contexts, 300) for _ in range(6)]
    monkeypatch.setattr(TlsSocket, "recv_into", counting)
    look = gevent.get_hub().loop.check()
    look.start(lambda: counts.append(0))
    for door in doors:
        door.running.start()
    until(lambda: sum(door.relay.sent for door in doors) == 6 * 300)
    look.close()
    assert sum(counts) >= 6 * 300 * 7
    # Two slices a turn, one for those whose sockets are ready, and two operations before one is used up.
    assert max(counts) <= 2 * 2 * FRAMES_AT_A_TIME + 6 * FEW_FRAMES
    for door in doors:
        assert read_exact(door.target, 300) == bytes(n % 251 for n in range(300))
        door.close()


# -- a stream


def test_what_came_with_the_handshake_goes_first(contexts: Contexts) -> None:
    served, client = tls_pair(contexts)
    client.write(b"head and payload")
    wait(served.reader)
    early = served.recv(100)
    stream = TlsStream(served, early[8:])
    assert stream.buffered
    client.write(b" and more")
    buffer = Buffer()
    count = arrived(stream, buffer)
    assert bytes(buffer.payload[:count]) == b" payload"
    count = arrived(stream, buffer)
    assert bytes(buffer.payload[:count]) == b" and more"
    client.close()
    stream.begin_close(Ending.CUT)


@pytest.mark.parametrize("ending", [Ending.FINISHED, Ending.CUT])
def test_only_what_finished_ends_with_a_word_of_tls(contexts: Contexts, ending: Ending) -> None:
    """CASES D120: a cut must not look like an end."""
    served, client = tls_pair(contexts)
    TlsStream(served).begin_close(ending)
    wait(client.reader)
    if ending is Ending.FINISHED:
        assert client.recv(1) == b""
        assert not client.is_cut
    else:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    client.close()


def test_who_has_nothing_to_lose_is_told_of_the_end_at_once(contexts: Contexts) -> None:
    """RFC 8446, section 6.1: close_notify ends one direction; what the peer still sends is read."""
    served, client = tls_pair(contexts)
    stream = TlsStream(served)
    stream.end_both()
    wait(client.reader)
    assert client.recv(1) == b""
    assert not client.is_cut
    client.write(b"late")
    buffer = Buffer()
    assert arrived(stream, buffer) == 4
    client.close()
    stream.begin_close(Ending.FINISHED)
