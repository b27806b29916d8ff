"""
Frames on the way out through a WebSocket proxy, told in raw bytes to a running program (CASES D).

A test holds both ends: it is the SOCKS5 client in front, and the WebSocket server behind. What takes
seconds (CASES D124) is in ``test_stream_patience``.
"""

import os
import socket
from collections.abc import Iterator

import pytest

from tests.integration.programs import Proxy, socks_door, upstream
from tests.websocket.tunnels import Chain, assert_bears_frames_of_one_byte, chain, recv_masked, sending
from tests.websocket.violations import VIOLATIONS, Violation
from tests.wire.processes import Memory
from tests.wire.sockets import read_exact, read_rest, reset
from tests.wire.targets import Listener
from tests.wire.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    KEY,
    PING,
    PONG,
    SAID_IN_TEN_FRAMES,
    Peer,
    close_payload,
    frame,
    header,
    ten_frames,
)

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def behind() -> Iterator[Listener]:
    """Listen where the way out leads to."""
    with Listener() as listener:
        yield listener


@pytest.fixture(scope="module", params=["auto", "off"])
def proxy(request: pytest.FixtureRequest, behind: Listener) -> Iterator[Proxy]:
    address = ("127.0.0.1", behind.port)
    config = {
        "proxy": {"splice": request.param},
        "listeners": {"socks": socks_door(upstream="behind")},
        "upstreams": {"behind": upstream("websocket", address, ping_interval=0)},
    }
    with Proxy(config) as running:
        yield running


@pytest.fixture
def plain(proxy: Proxy, behind: Listener) -> Iterator[Chain]:
    """Open a tunnel to a server that knows nothing of half-close."""
    with chain(proxy.door("socks"), behind) as opened:
        yield opened


@pytest.fixture
def agreed(proxy: Proxy, behind: Listener) -> Iterator[Chain]:
    """Open a tunnel to a server that agrees on half-close."""
    with chain(proxy.door("socks"), behind, half_close=True) as opened:
        yield opened


def assert_relays(client: socket.socket, server: Peer) -> None:
    """Check that a tunnel still does what it is for."""
    client.sendall(b"up")
    assert recv_masked(server, FIN | BINARY).payload == b"up"
    server.send(BINARY, b"down")
    assert read_exact(client, 4) == b"down"


# -- violations


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_violation_fails_the_connection_and_reaches_no_client(plain: Chain, violation: Violation) -> None:
    """CASES D95, D96, D97, D98, D102, D110, D111, D112, D113, D114: see the ids."""
    plain.server.write(violation.written(None))
    code = int.from_bytes(recv_masked(plain.server, FIN | CLOSE).payload[:2], "big")
    assert code in violation.codes
    assert read_rest(plain.client) == (b"", "reset")  # a cut must not look like an end


@pytest.mark.parametrize("opcode", [CONTINUATION, BINARY, PING, PONG, CLOSE])
@pytest.mark.parametrize("payload", [b"", b"Hello", b"x" * 70_000])
def test_a_masked_frame_of_a_server_fails_the_connection(plain: Chain, opcode: int, payload: bytes) -> None:
    """CASES D93; RFC 6455, section 5.1."""
    plain.server.write(frame(FIN | opcode, payload, KEY))
    assert recv_masked(plain.server, FIN | CLOSE).payload[:2] == close_payload(1002)
    assert read_rest(plain.client) == (b"", "reset")


def test_what_came_before_a_violation_is_delivered(plain: Chain) -> None:
    """CASES D96."""
    good, bad = frame(FIN | BINARY, b"good", None), frame(FIN | 3, b"bad", None)
    plain.server.write(good + bad + frame(FIN | BINARY, b"late", None))
    assert recv_masked(plain.server, FIN | CLOSE).payload[:2] == close_payload(1002)
    assert read_rest(plain.client) == (b"good", "reset")


def test_a_violation_behind_much_data_fails_the_connection(plain: Chain) -> None:
    """CASES D95."""
    data = os.urandom(4 * MEBIBYTE)
    with sending(plain.server, frame(FIN | BINARY, data, None)):
        assert read_exact(plain.client, len(data)) == data
    plain.server.write(frame(FIN | 0x40 | BINARY, b"x", None))
    assert recv_masked(plain.server, FIN | CLOSE).payload[:2] == close_payload(1002)
    assert read_rest(plain.client) == (b"", "reset")


# -- what we send


def test_every_frame_is_masked_with_a_key_of_its_own(plain: Chain) -> None:
    """CASES D93; RFC 6455, section 5.3."""
    keys = set()
    for number in range(50):
        plain.client.sendall(bytes([number]))
        got = recv_masked(plain.server, FIN | BINARY)
        assert got.payload == bytes([number])
        keys.add(got.key)
    assert len(keys) >= 49  # two of 50 may meet by chance, once in a million runs


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 8 * MEBIBYTE])
def test_sends_whole_binary_frames_of_at_most_64_kib(plain: Chain, size: int) -> None:
    sent = os.urandom(size)
    received = bytearray()
    with sending(plain.client, sent):
        while len(received) < size:
            got = recv_masked(plain.server, FIN | BINARY)
            assert 0 < len(got.payload) <= 64 * 1024
            received += got.payload
    assert received == sent


# -- what we understand


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 125])
def test_pings_are_answered_by_masked_pongs(plain: Chain, payload: bytes) -> None:
    """CASES D103."""
    plain.server.send(BINARY, b"begun", fin=False)
    plain.server.send(PING, payload)
    assert recv_masked(plain.server, FIN | PONG).payload == payload
    plain.server.send(CONTINUATION, b" and done")
    assert read_exact(plain.client, 14) == b"begun and done"


def test_an_unsolicited_pong_is_ignored(plain: Chain) -> None:
    """CASES D123."""
    for payload in (b"", b"nobody asked", b"x" * 125):
        plain.server.send(PONG, payload)
    assert_relays(*plain)


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 300_000, 5 * MEBIBYTE])
def test_frames_of_every_form_of_length_arrive(plain: Chain, size: int) -> None:
    data = os.urandom(size)
    with sending(plain.server, frame(FIN | BINARY, data, None)):
        assert read_exact(plain.client, size) == data
    assert_relays(*plain)


def test_messages_in_fragments_with_pings_between_arrive(plain: Chain) -> None:
    """CASES D103: as servers written in Go send them, 32 KiB in fragments of 4 KiB."""
    data = os.urandom(8 * MEBIBYTE)
    pieces = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    script = b"".join(
        frame((FIN if number % 8 == 7 else 0) | (CONTINUATION if number % 8 else BINARY), piece, None)
        + (frame(FIN | PING, b"?", None) if number % 64 == 3 else b"")
        for number, piece in enumerate(pieces)
    )
    with sending(plain.server, script):
        assert read_exact(plain.client, len(data)) == data
    for _ in range(len(pieces) // 64):
        assert recv_masked(plain.server, FIN | PONG).payload == b"?"


def test_big_frames_mixed_with_small_ones_arrive(plain: Chain) -> None:
    sizes = [300_000, 1, 65536, 65537, 2, 262_144, 262_145, 125, 126, 1_000_000, 3, 32768, 16384, 8192, 8191]
    data = os.urandom(sum(sizes) * 4)
    script, at = bytearray(), 0
    for size in sizes * 4:
        script += frame(FIN | BINARY, data[at : at + size], None) + frame(FIN | BINARY, b"", None)
        at += size
    with sending(plain.server, bytes(script)):
        assert read_exact(plain.client, len(data)) == data
    assert_relays(*plain)


def test_very_many_frames_of_one_byte(proxy: Proxy, plain: Chain) -> None:
    """CASES D108."""
    assert_bears_frames_of_one_byte(proxy.pid, plain.server, plain.client, 250_000)


def test_a_frame_that_declares_a_gibibyte_costs_no_memory(proxy: Proxy, plain: Chain) -> None:
    """CASES D125."""
    data = os.urandom(MEBIBYTE)
    plain.server.write(header(FIN | BINARY, 1 << 30, None) + b"at once")
    assert read_exact(plain.client, 7) == b"at once"  # not a byte of it waits for the rest
    memory = Memory(proxy.pid)
    with sending(plain.server, data * 64):
        for _ in range(64):
            assert read_exact(plain.client, MEBIBYTE) == data
    assert memory.growth < 4 * MEBIBYTE
    plain.server.sock.close()
    assert read_rest(plain.client) == (b"", "reset")


@pytest.mark.parametrize("glued", [False, True])
def test_a_script_of_ten_frames_may_come_byte_by_byte_or_at_once(
    proxy: Proxy, behind: Listener, glued: bool
) -> None:
    """CASES D122."""
    script = ten_frames(None)
    with chain(proxy.door("socks"), behind, glued=script if glued else b"") as (client, server):
        for byte in b"" if glued else script:
            server.write(bytes([byte]))
        assert read_rest(client) == (SAID_IN_TEN_FRAMES, "FIN")
        client.close()
        pong = recv_masked(server, FIN | PONG).payload
        if pong == b"ping":  # the Pings were not read at once; else only the last one is answered
            pong = recv_masked(server, FIN | PONG).payload
        assert pong == b""
        assert recv_masked(server, FIN | CLOSE).payload == close_payload(1000)


# -- Close


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 3000, 4999])
def test_a_close_is_answered_with_its_code(plain: Chain, code: int) -> None:
    """CASES D115."""
    plain.server.send(CLOSE, close_payload(code, b"bye"))
    ending = "FIN" if code == 1000 else "reset"
    assert read_rest(plain.client) == (b"", ending)
    plain.client.close()
    assert recv_masked(plain.server, FIN | CLOSE).payload == close_payload(code)


def test_what_follows_a_close_is_ignored(plain: Chain) -> None:
    """CASES D116."""
    plain.server.write(
        frame(FIN | CLOSE, close_payload(1000), None) + frame(FIN | BINARY, b"too late", None) + b"\xff" * 100
    )
    assert read_rest(plain.client) == (b"", "FIN")
    plain.client.close()
    assert recv_masked(plain.server, FIN | CLOSE).payload == close_payload(1000)


def test_the_client_lets_the_server_close_tcp_first(plain: Chain) -> None:
    """CASES D117; RFC 6455, section 7.1.1."""
    plain.server.send(CLOSE, close_payload(1000))
    assert read_rest(plain.client) == (b"", "FIN")
    plain.client.close()
    recv_masked(plain.server, FIN | CLOSE)
    assert plain.server.is_silent(0.3)
    plain.server.sock.shutdown(socket.SHUT_WR)
    assert plain.server.read_rest() == (b"", "FIN")


def test_a_server_that_does_not_close_tcp_is_left(plain: Chain) -> None:
    """CASES D117."""
    plain.server.send(CLOSE, close_payload(1000))
    assert read_rest(plain.client) == (b"", "FIN")
    plain.client.close()
    recv_masked(plain.server, FIN | CLOSE)
    plain.server.read_rest()


def test_a_client_that_dies_is_no_normal_end(plain: Chain) -> None:
    """CASES E130."""
    plain.client.sendall(b"last words")
    assert recv_masked(plain.server, FIN | BINARY).payload == b"last words"
    reset(plain.client)
    assert recv_masked(plain.server, FIN | CLOSE).payload[:2] == close_payload(1011)


# -- half-close


def test_the_end_of_the_client_is_an_empty_message(agreed: Chain) -> None:
    """CASES D119."""
    down = os.urandom(MEBIBYTE)
    agreed.client.sendall(b"question")
    assert recv_masked(agreed.server, FIN | BINARY).payload == b"question"
    agreed.client.shutdown(socket.SHUT_WR)
    assert recv_masked(agreed.server, FIN | BINARY).payload == b""
    with sending(agreed.server, frame(FIN | BINARY, down, None) + frame(FIN | BINARY, b"", None)):
        assert read_rest(agreed.client) == (down, "FIN")
    assert recv_masked(agreed.server, FIN | CLOSE).payload == close_payload(1000)


def test_an_empty_message_is_the_end_of_the_server(agreed: Chain) -> None:
    """CASES D119."""
    up = os.urandom(MEBIBYTE)
    agreed.server.write(frame(FIN | BINARY, b"that is all", None) + frame(FIN | BINARY, b"", None))
    assert read_rest(agreed.client) == (b"that is all", "FIN")
    agreed.server.send(PING, b"?")  # it still has to be answered
    recv_masked(agreed.server, FIN | PONG)
    with sending(agreed.client, up):
        received = b""
        while len(received) < len(up):
            received += recv_masked(agreed.server, FIN | BINARY).payload
    assert received == up
    agreed.client.close()
    assert recv_masked(agreed.server, FIN | BINARY).payload == b""
    assert recv_masked(agreed.server, FIN | CLOSE).payload == close_payload(1000)


def test_without_an_agreement_an_empty_message_is_nothing(plain: Chain) -> None:
    """CASES D119."""
    plain.server.send(BINARY)
    plain.server.write(frame(BINARY, b"", None) + frame(FIN | CONTINUATION, b"", None))
    assert_relays(*plain)


def test_without_an_agreement_the_server_may_finish(plain: Chain) -> None:
    """CASES D119."""
    plain.client.shutdown(socket.SHUT_WR)
    assert plain.server.is_silent(0.3)
    plain.server.send(BINARY, b"answer")
    assert read_exact(plain.client, 6) == b"answer"
    assert recv_masked(plain.server, FIN | CLOSE).payload == close_payload(1000)


# -- cuts

MID_FRAME = {
    "payload": header(FIN | BINARY, 100, None) + b"half of it",
    "payload of much": header(FIN | BINARY, 100_000, None) + b"half of it",
    "header": frame(FIN | BINARY, b"half of it", None) + header(FIN | BINARY, 300, None)[:3],
    "first byte": frame(FIN | BINARY, b"half of it", None) + b"\x82",
    "ping": frame(FIN | BINARY, b"half of it", None) + frame(FIN | PING, b"whole", None)[:-1],
}


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("where", MID_FRAME)
def test_the_loss_of_tcp_in_a_frame_resets_the_client(
    proxy: Proxy, behind: Listener, where: str, half_close: bool
) -> None:
    """CASES D120."""
    with chain(proxy.door("socks"), behind, half_close=half_close) as (client, server):
        server.write(MID_FRAME[where])
        assert read_exact(client, 10) == b"half of it"
        server.sock.close()
        assert read_rest(client) == (b"", "reset")


def test_the_loss_of_tcp_in_a_spliced_frame_resets_the_client(plain: Chain) -> None:
    """CASES D120."""
    data = os.urandom(MEBIBYTE)
    with sending(plain.server, header(FIN | BINARY, 2 * MEBIBYTE, None) + data):
        assert read_exact(plain.client, MEBIBYTE) == data
    plain.server.sock.shutdown(socket.SHUT_WR)
    assert read_rest(plain.client) == (b"", "reset")


def test_the_end_of_tcp_without_a_close_resets_the_client_of_a_server_that_agreed(agreed: Chain) -> None:
    """CASES D120."""
    agreed.server.send(BINARY, b"all of it")
    agreed.server.sock.close()
    assert read_rest(agreed.client) == (b"all of it", "reset")


def test_the_end_of_tcp_without_a_close_is_the_end_for_any_other_server(plain: Chain) -> None:
    """CASES D120."""
    plain.server.send(BINARY, b"all of it")
    plain.server.sock.shutdown(socket.SHUT_WR)
    assert read_rest(plain.client) == (b"all of it", "FIN")
    plain.client.sendall(b"understood")
    assert recv_masked(plain.server, FIN | BINARY).payload == b"understood"


@pytest.mark.parametrize("half_close", [False, True])
def test_a_reset_is_passed_on(proxy: Proxy, behind: Listener, half_close: bool) -> None:
    """CASES D120."""
    with chain(proxy.door("socks"), behind, half_close=half_close) as (client, server):
        server.send(BINARY, b"all of it")
        assert read_exact(client, 9) == b"all of it"
        reset(server.sock)
        assert read_rest(client) == (b"", "reset")
