"""
TLS over a socket of ours: its records, what it says by itself, its ends, and its sessions.

The other end is OpenSSL, which a test has say what it wants, or the openssl program.
"""

import fcntl
import os
import signal
import socket as std_socket
import ssl
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
import pytest
from gevent import socket

from proxy.errors import LimitError, ProtocolError
from proxy.net import limits
from proxy.net.deadline import next_turn, wait
from proxy.net.sock import LoopSocket
from proxy.relaying.channel import Channel
from proxy.relaying.stream import TlsStream
from proxy.tls import contexts as module
from proxy.tls import tlssocket
from proxy.tls.contexts import ClientContext, client_context, server_context
from proxy.tls.tlssocket import TlsSocket, accept_tls, connect_tls
from tests.integration.certificates import Authority, Certificate
from tests.wire.greenlets import tcp_pair, until
from tests.wire.processes import listening_ports
from tests.wire.sockets import free_port, is_silent, read_exact
from tests.wire.waits import wait_until

PAYLOAD = 1 << 14  # bytes, of the longest record: RFC 8446, section 5.1


class Peer:
    """OpenSSL at the other end."""

    def __init__(self, sock: Any, context: ssl.SSLContext, **side: Any) -> None:
        self.sock = sock  # of gevent's, which blocks the greenlet
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, **side)

    def shake_hands(self, *, last: bool = True) -> None:
        """Do the handshake, with or without the last word."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(self.outgoing.read())
                self.hear()
        if last:
            self.sock.sendall(self.outgoing.read())

    def records(self, *payloads: bytes) -> bytes:
        """Write records, one for each piece, behind what TLS itself has to say."""
        for payload in payloads:
            self.tls.write(payload)
        return self.outgoing.read()

    def end(self) -> bytes:
        """Write close_notify."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()

    def hear(self) -> None:
        """Receive once."""
        data = self.sock.recv(1 << 16)
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    def read(self, count: int) -> bytes:
        """Read so many bytes of payload."""
        data = b""
        while len(data) < count:
            try:
                data += self.tls.read(count - len(data))
            except ssl.SSLWantReadError:
                self.hear()
        return data


class Counting:
    """OpenSSL, with its reads counted."""

    def __init__(self, tls: Any) -> None:
        self._tls = tls
        self.reads = 0

    def read(self, *args: Any) -> Any:
        """Count and read."""
        self.reads += 1
        return self._tls.read(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tls, name)


@pytest.fixture
def server(good: Certificate) -> ssl.SSLContext:
    """Make a server's context."""
    return server_context(str(good.cert), str(good.key))


@pytest.fixture
def client(authority: Authority) -> ClientContext:
    """Make a client's context."""
    return client_context(str(authority.root.cert))


def dial(client: ClientContext, server: ssl.SSLContext, host: str = "localhost") -> tuple[TlsSocket, Peer]:
    """Connect our client to OpenSSL as a server."""
    ours, theirs = tcp_pair()
    peer = Peer(theirs, server, server_side=True)
    shaking = gevent.spawn(peer.shake_hands)
    tls = connect_tls(ours, client, host)
    shaking.get()
    return tls, peer


def serve(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[TlsSocket, Peer]:
    """Connect OpenSSL as a client to our server."""
    ours, theirs = tcp_pair()
    peer = Peer(theirs, client, server_hostname="localhost")
    accepting = gevent.spawn(accept_tls, ours, server)
    peer.shake_hands()
    return accepting.get(), peer


Joined = tuple[TlsSocket, Peer]


@pytest.fixture(params=["client, TLS 1.3", "server, TLS 1.3", "client, TLS 1.2", "server, TLS 1.2"])
def joined(request: pytest.FixtureRequest, server: ssl.SSLContext, client: ClientContext) -> Iterator[Joined]:
    """Join our socket to a peer, after what TLS says behind a handshake."""
    if "1.2" in request.param:
        server.maximum_version = ssl.TLSVersion.TLSv1_2
    if "client" in request.param:
        tls, peer = dial(client, server)
        peer.sock.sendall(peer.records(b"hello"))
        assert receive(tls, 5) == b"hello"
    else:
        tls, peer = serve(server, client)
        tls.write(b"hello")
        assert peer.read(5) == b"hello"
    yield tls, peer
    tls.close()
    peer.sock.close()


def receive(tls: TlsSocket, count: int) -> bytes:
    """Receive so many bytes, or up to the end."""
    data = b""
    while len(data) < count:
        try:
            got = tls.recv(count - len(data))
        except BlockingIOError:
            if tls.pending:
                next_turn()
            else:
                wait(tls.reader)
            continue
        if not got:
            break
        data += got
    return data


def arrive(tls: TlsSocket, data: bytes, peer: Peer) -> None:
    """Send data to our socket, and see that all of it has arrived."""
    peer.sock.sendall(data)
    until(lambda: waiting(tls) == len(data))


def waiting(tls: TlsSocket) -> int:
    """Tell how many bytes the kernel has for us."""
    return int.from_bytes(fcntl.ioctl(tls.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, method: str) -> Iterator[list[int]]:
    """Count the calls of a method of the sockets below, with what each of them gives."""
    counts: list[int] = []
    original = getattr(LoopSocket, method)

    def counting(self: LoopSocket, *args: Any) -> int:
        counts.append(original(self, *args))
        return counts[-1]

    with monkeypatch.context() as patch:
        patch.setattr(LoopSocket, method, counting)
        yield counts


# -- records


def test_one_receive_brings_many_records(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, peer = joined
    pieces = [os.urandom(size) for size in (1, 1000, PAYLOAD, PAYLOAD, 5)]
    data = b"".join(pieces)
    arrive(tls, peer.records(*pieces), peer)
    with counted(monkeypatch, "recv_into") as receives:
        buffer = bytearray(1 << 16)
        assert tls.recv_into(memoryview(buffer)) == len(data)
    assert buffer.startswith(data)
    assert len(receives) == 1
    assert not tls.pending


def test_one_send_takes_many_records(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, peer = joined
    data = os.urandom(4 * PAYLOAD)
    with counted(monkeypatch, "send") as sends:
        tls.write(data)
    assert len(sends) == 1
    reading = gevent.spawn(peer.read, len(data))
    while tls.unsent:
        wait(tls.writer)
        tls.flush()
    assert reading.get() == data


# What a segment carries on Ethernet (1500 bytes), besides IPv6 (40: RFC 8200, section 3), TCP (20: RFC 9293,
# section 3.1) and its timestamps (12: RFC 7323, appendix A).
SEGMENT = 1500 - 40 - 20 - 12  # bytes


def lengths_of_records(tls: TlsSocket, peer: Peer, size: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Write so many bytes, and tell how long the records are in which they went (RFC 8446, section 5.1)."""
    with counted(monkeypatch, "send") as sends:
        tls.write(bytes(size))
    assert not tls.unsent
    lengths: list[int] = []
    data = read_exact(peer.sock, sum(sends))
    while data:
        lengths.append(5 + int.from_bytes(data[3:5], "big"))
        data = data[lengths[-1] :]
    return lengths


def test_after_a_pause_a_peer_need_not_wait_for_a_long_record(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can read nothing of a record before all of it is there, and 16 KiB are 130 ms at 1 Mbit/s."""
    now = [100.0]
    monkeypatch.setattr(tlssocket, "monotonic", lambda: now[0])
    tls, peer = joined
    for _ in range(2):
        first, *others = lengths_of_records(tls, peer, 2 * PAYLOAD, monkeypatch)
        assert SEGMENT - 100 < first <= SEGMENT
        before = first
        for length in others[:-1]:
            assert before < length <= before + SEGMENT
            before = length
        # Without a pause there is no reason for short ones, each of which takes as long as a long one.
        for _ in range(3):
            last = lengths_of_records(tls, peer, 2 * PAYLOAD, monkeypatch)
        assert len(last) == 2
        now[0] += 1.0


def test_a_small_message_is_one_record(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, peer = joined
    for size in (1, 64, 1000):
        assert len(lengths_of_records(tls, peer, size, monkeypatch)) == 1


def test_openssl_is_asked_only_for_what_is_there(joined: Joined) -> None:
    """To find that there is nothing takes as long as to decrypt a small record."""
    tls, peer = joined
    tls._tls = asked = Counting(tls._tls)
    record = peer.records(b"whole")
    for byte in record[:-1]:
        arrive(tls, bytes([byte]), peer)
        with pytest.raises(BlockingIOError):
            tls.recv(100)
        assert not tls.pending
    arrive(tls, record[-1:] + peer.records(b"one", b"two") + peer.records(b"three")[:7], peer)
    assert tls.recv(100) == b"wholeonetwo"
    assert asked.reads == 3
    with pytest.raises(BlockingIOError):
        tls.recv(100)
    assert asked.reads == 3


def test_openssl_never_has_more_than_a_record_in_its_memory(joined: Joined) -> None:
    """It would keep as much memory until the end of the connection."""
    tls, peer = joined
    most = 0

    class Watched:
        """What OpenSSL reads from, or writes to."""

        def __init__(self, bio: ssl.MemoryBIO) -> None:
            self._bio = bio

        def write(self, data: Any) -> None:
            """Note how much is in it."""
            self._bio.write(data)
            self.note()

        def read(self) -> bytes:
            """Note how much is in it."""
            self.note()
            return self._bio.read()

        def note(self) -> None:
            """Note it."""
            nonlocal most
            most = max(most, self._bio.pending)

        @property
        def pending(self) -> int:
            """Tell how much is in it."""
            return self._bio.pending

    tls._incoming, tls._outgoing = Watched(tls._incoming), Watched(tls._outgoing)  # type: ignore[assignment]
    data = os.urandom(8 * PAYLOAD)
    sending = gevent.spawn(peer.sock.sendall, peer.records(data))
    assert receive(tls, len(data)) == data
    sending.get()
    tls.write(data)
    assert PAYLOAD < most < PAYLOAD + 100


def test_what_does_not_fit_is_there_though_the_kernel_knows_nothing_of_it(joined: Joined) -> None:
    tls, peer = joined
    data = os.urandom(PAYLOAD)
    arrive(tls, peer.records(data, b"next"), peer)
    assert tls.recv(1000) == data[:1000]
    assert tls.pending
    assert is_silent(tls.fileno(), 0)
    assert receive(tls, len(data) - 1000) == data[1000:]
    assert tls.pending
    assert tls.recv(1000) == b"next"
    assert not tls.pending


def test_of_thousands_of_tiny_records_only_so_many_are_decrypted_at_a_time(joined: Joined) -> None:
    tls, peer = joined
    data = bytes(range(250)) * 8
    arrive(tls, peer.records(*(data[i : i + 1] for i in range(len(data)))), peer)
    got = b""
    buffer = memoryview(bytearray(1 << 16))
    while len(got) < len(data):
        count = tls.recv_into(buffer, 64)
        assert count == tls.records == min(64, len(data) - len(got))
        got += buffer[:count]
        assert tls.pending == (len(got) < len(data))
    assert got == data


def test_what_the_kernel_does_not_take_is_sent_later_and_in_order(joined: Joined) -> None:
    tls, peer = joined
    expected = b""
    while not tls.unsent:
        data = os.urandom(4 * PAYLOAD)
        tls.write(data)
        expected += data
    assert len(tls.unsent) < 4 * PAYLOAD + 1000
    tls.write(b"behind it")
    reading = gevent.spawn(peer.read, len(expected) + 9)
    while tls.unsent:
        wait(tls.writer)
        tls.flush()
    assert reading.get() == expected + b"behind it"


def test_there_is_no_way_past_tls() -> None:
    """``ssl.SSLSocket`` sends plain text after a shutdown."""
    assert {"send", "sendall", "sendmsg", "detach", "makefile"}.isdisjoint(dir(TlsSocket))


# -- what TLS says by itself


def test_a_servers_tickets_go_out_with_its_first_answer(
    server: ssl.SSLContext, client: ClientContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch, "send") as sends:
        tls, peer = serve(server, client)
        assert len(sends) == 1  # from ServerHello to Finished
        tls.write(b"answer")
        assert len(sends) == 2
    assert peer.read(6) == b"answer"
    assert peer.tls.session
    assert peer.tls.session.has_ticket


@pytest.mark.skipif(not hasattr(std_socket, "TCP_QUICKACK"), reason="Linux alone is told")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_whose_handshake_is_followed_by_no_word_of_ours_is_acknowledged_at_once(
    server: ssl.SSLContext, client: ClientContext, version: ssl.TLSVersion
) -> None:
    """Nagle's algorithm would hold its request back for the 40 ms that the kernel takes by itself."""
    server.maximum_version = version
    session = None
    for _ in range(2):  # in TLS 1.2 the last word is the client's if a session is resumed
        ours, theirs = tcp_pair()
        peer = Peer(theirs, client, server_hostname="localhost", session=session)
        accepting = gevent.spawn(accept_tls, ours, server)
        peer.shake_hands()
        tls = accepting.get()
        session = peer.tls.session
        has_acknowledged = tls.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)
        tls.close()
        theirs.close()
    assert peer.tls.session_reused or version is ssl.TLSVersion.TLSv1_3
    assert has_acknowledged


def test_tickets_are_no_payload(server: ssl.SSLContext, client: ClientContext) -> None:
    server.num_tickets = 2
    tls, peer = dial(client, server)
    wait(tls.reader)
    assert tls.is_quiet()
    with pytest.raises(BlockingIOError):
        tls.recv(100)
    peer.sock.sendall(peer.records(b"payload"))
    assert receive(tls, 7) == b"payload"


def test_data_behind_the_handshake_is_not_waited_for(server: ssl.SSLContext, client: ClientContext) -> None:
    """The last flight of a handshake and the first data may come in one segment."""
    ours, theirs = tcp_pair()
    peer = Peer(theirs, client, server_hostname="localhost")
    accepting = gevent.spawn(accept_tls, ours, server)
    peer.shake_hands(last=False)
    theirs.sendall(peer.records(b"question"))
    tls = accepting.get()
    if not tls.pending:  # TCP is free to make two of it
        wait(tls.reader)
    assert tls.recv(100) == b"question"


def openssl_server(certificate: Certificate, *options: str) -> tuple["subprocess.Popen[bytes]", int]:
    """Run the openssl program as a server, which does what it reads from its standard input."""
    port = free_port()
    files = ["-cert", str(certificate.cert), "-key", str(certificate.key)]
    command = ["openssl", "s_server", "-accept", str(port), *files, *options]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_until(lambda: port in listening_ports(process.pid), "the server to listen")
    return process, port


Asked = tuple[TlsSocket, "subprocess.Popen[bytes]"]

NEW_KEYS = 5 + 4 + 1 + 1 + 16  # bytes of KeyUpdate: header; type, length and wish; type of the content; tag


@pytest.fixture
def asked(good: Certificate, client: ClientContext) -> Iterator[Asked]:
    """Connect to a server that has asked for new keys a hundred times, and has then said something."""
    process, port = openssl_server(good, "-tls1_3", "-num_tickets", "0")
    with process:
        try:
            tls = connect_tls(socket.create_connection(("127.0.0.1", port)), client, "localhost")
            assert process.stdin
            for number in range(1, 101):
                process.stdin.write(b"K\n")  # what comes in one read is one command
                process.stdin.flush()
                while waiting(tls) < number * NEW_KEYS:
                    gevent.sleep(0.001)
            process.stdin.write(b"over\n")
            process.stdin.flush()
            until(lambda: waiting(tls) > 100 * NEW_KEYS)
            yield tls, process
            tls.close()
        finally:
            process.kill()


def test_new_keys_are_answered_with_new_keys(asked: Asked) -> None:
    """RFC 8446, section 4.6.3."""
    tls, process = asked
    assert receive(tls, 5) == b"over\n"
    tls.write(b"after all these keys\n")
    assert process.stdout
    while b"after all these keys" not in process.stdout.readline():
        pass


def test_a_peer_that_wants_answers_and_takes_none_is_cut_off(asked: Asked) -> None:
    tls, process = asked
    wait(tls.reader)
    process.send_signal(signal.SIGSTOP)
    while len(tls.unsent) <= 256 * 1024:
        tls.write(bytes(4 * PAYLOAD))
    with pytest.raises(ProtocolError, match="TLS: the peer keeps asking for answers, and reads none"):
        receive(tls, 100)


def test_an_answer_that_is_not_taken_makes_a_stream_wait_for_its_socket(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise BlockingIOError

    tls, _ = asked
    stream, blocked = TlsStream(tls), []
    stream.on_blocked = lambda: blocked.append(True)
    monkeypatch.setattr(LoopSocket, "send", full)
    assert stream.receive(memoryview(bytearray(100))) is None
    assert stream.blocked
    assert blocked


# -- ends


def test_a_peer_that_says_so_has_ended(joined: Joined) -> None:
    """RFC 8446, section 6.1."""
    tls, peer = joined
    arrive(tls, peer.records(b"last") + peer.end(), peer)
    assert tls.recv(100) == b"last"
    assert tls.pending
    assert tls.recv(100) == b""
    assert not tls.is_cut
    tls.write(b"answer")  # TLS 1.3 ends one direction
    assert tls.recv(100) == b""


def test_a_peer_that_only_ends_tcp_was_cut(joined: Joined) -> None:
    tls, peer = joined
    peer.sock.sendall(peer.records(b"last") + peer.records(b"torn")[:-1])
    peer.sock.close()
    assert receive(tls, 100) == b"last"
    assert tls.is_cut


def test_what_came_before_a_forged_record_is_given_out_before_it_is_refused(joined: Joined) -> None:
    tls, peer = joined
    good, forged = peer.records(b"good"), bytearray(peer.records(b"forged"))
    forged[-1] ^= 1
    arrive(tls, good + forged + peer.records(b"late"), peer)
    assert tls.recv(100) == b"good"
    assert tls.pending
    for _ in range(2):
        # In the words of OpenSSL before 3.2, and since.
        with pytest.raises(
            ProtocolError, match=r"^TLS: (decryption failed or bad record mac|record layer failure)$"
        ):
            tls.recv(100)
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):  # it was told
        peer.read(1)


def test_a_record_longer_than_any_is_not_waited_for(joined: Joined) -> None:
    tls, peer = joined
    arrive(tls, bytes.fromhex("17 0303 ffff"), peer)
    with pytest.raises(ProtocolError, match=r"^TLS: "):
        tls.recv(100)


def test_our_own_end_is_said(joined: Joined) -> None:
    tls, peer = joined
    tls.write(b"last")
    tls.shutdown(std_socket.SHUT_WR)
    assert peer.read(4) == b"last"
    assert peer.tls.read(1) == b""  # and no error, which the end of TCP alone would be
    peer.sock.sendall(peer.end())
    assert receive(tls, 1) == b""
    assert not tls.is_cut


def test_a_peer_that_says_goodbye_in_the_handshake_is_called_so(client: ClientContext) -> None:
    ours, theirs = tcp_pair()
    theirs.sendall(bytes.fromhex("15 0303 0002 01 00"))  # RFC 8446, section 6: warning, close_notify
    with pytest.raises(ProtocolError, match="closed the connection during the handshake"):
        connect_tls(ours, client, "localhost")


def test_the_peer_is_told_why_a_handshake_failed(server: ssl.SSLContext, client: ClientContext) -> None:
    ours, theirs = tcp_pair()
    peer = Peer(theirs, server, server_side=True)
    shaking = gevent.spawn(connect_tls, ours, client, "other.example")
    shaking.rawlink(lambda _: None)
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.certificate"):
        peer.shake_hands()
    assert isinstance(shaking.exception, ProtocolError)


def test_a_connection_that_waits_unused_is_seen_to_end(joined: Joined) -> None:
    tls, peer = joined
    assert tls.is_quiet()
    arrive(tls, peer.end(), peer)
    assert not tls.is_quiet()


def test_a_flood_of_records_without_payload_leaves_the_loop_to_others(asked: Asked) -> None:
    """A channel has to look again, though nothing came of it."""
    tls, _ = asked
    turns: list[None] = []
    look = gevent.get_hub().loop.check()
    look.start(lambda: turns.append(None))
    assert Channel(tls).read_exact(5) == b"over\n"
    look.close()
    assert turns


# -- sessions


def is_resumed(client: ClientContext, server: ssl.SSLContext, host: str = "localhost") -> bool:
    """Connect, hear the server, and tell whether the session was one from before."""
    tls, peer = dial(client, server, host)
    peer.sock.sendall(peer.records(b"x"))
    assert receive(tls, 1) == b"x"
    tls.close()
    peer.sock.close()
    assert peer.tls.session_reused == tls._tls.session_reused
    return bool(peer.tls.session_reused)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_by_all_that_follow(
    server: ssl.SSLContext, client: ClientContext, version: ssl.TLSVersion
) -> None:
    server.maximum_version = version
    assert [is_resumed(client, server) for _ in range(4)] == [False, True, True, True]


def test_a_session_serves_no_other_settings_and_no_other_name(
    server: ssl.SSLContext, client: ClientContext, authority: Authority, good: Certificate
) -> None:
    """Who resumes one looks at no certificate."""
    is_resumed(client, server)
    assert not is_resumed(client_context(str(authority.root.cert)), server)
    with pytest.raises(ProtocolError, match="certificate refused: Hostname mismatch"):
        dial(client, server, "other.example")


def test_a_server_that_does_not_know_a_session_any_more_gives_another_one(
    client: ClientContext, good: Certificate
) -> None:
    """It was started again, say."""
    for _ in range(2):
        server = server_context(str(good.cert), str(good.key))
        assert [is_resumed(client, server) for _ in range(2)] == [False, True]


def test_a_session_is_forgotten_if_a_handshake_with_it_fails(
    server: ssl.SSLContext, client: ClientContext
) -> None:
    """It may be what the server does not like."""
    is_resumed(client, server)
    ours, theirs = tcp_pair()
    theirs.close()
    with pytest.raises((ProtocolError, ConnectionError)):  # an end, or a reset
        connect_tls(ours, client, "localhost")
    assert not is_resumed(client, server)


def test_the_certificate_is_looked_at_again_after_an_hour(
    server: ssl.SSLContext, client: ClientContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    is_resumed(client, server)
    now += 3599
    assert is_resumed(client, server)
    now += 1
    assert not is_resumed(client, server)
    assert is_resumed(client, server)


def test_a_handshake_for_which_there_is_no_memory_is_a_shortage_of_ours(
    client: ClientContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL calls it an internal error; the peer must not be made to rest for it."""

    def allocate(size: int) -> bytes:
        raise MemoryError

    ours, theirs = tcp_pair()
    monkeypatch.setattr(limits, "BALLAST", limits.Ballast())
    monkeypatch.setattr(limits, "bytes", allocate, raising=False)
    theirs.sendall(b"this is no TLS")
    with pytest.raises(LimitError, match="TLS handshake: no memory"):
        connect_tls(ours, client, "localhost")
    theirs.close()
