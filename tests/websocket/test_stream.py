"""
Frames at the WebSocket door, told in raw bytes to a running server (CASES D).

What takes seconds (CASES D117 to D119, D124) is in ``test_stream_patience``, and frames in the other
role, which is that of the way out, in ``test_stream_as_client``.
"""

import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.integration.programs import Config, Proxy, web_door
from tests.websocket.tunnels import Tunnel, assert_bears_frames_of_one_byte, assert_relays, sending, tunnel
from tests.websocket.violations import VIOLATIONS, Violation
from tests.wire.processes import Memory
from tests.wire.sockets import Door, is_silent, read_exact, read_rest, reset
from tests.wire.targets import Listener
from tests.wire.waits import Stopwatch
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
    upgrade,
    xor,
)

MEBIBYTE = 1 << 20


# The longest frame (DESIGN 1.5): what is copied fits a buffer, and what is spliced fits a pipe.
LONGEST = {"auto": 256 * 1024, "off": 64 * 1024}


def config(splice: str) -> Config:
    return {"proxy": {"splice": splice}, "listeners": {"web": web_door(ping_interval=0)}}


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with Proxy(config("auto")) as running:
        yield running


@pytest.fixture(scope="module")
def doors(proxy: Proxy) -> Iterator[dict[str, Door]]:
    """Give a door that splices, and one that copies: what differs is what the server sends."""
    with Proxy(config("off")) as copying:
        yield {"auto": proxy.door("web"), "off": copying.door("web")}


@pytest.fixture
def plain(proxy: Proxy) -> Iterator[Tunnel]:
    """Open a tunnel for a client that knows nothing of half-close."""
    with tunnel(proxy.door("web")) as opened:
        yield opened


@pytest.fixture
def agreed(proxy: Proxy) -> Iterator[Tunnel]:
    """Open a tunnel for a client that agrees on half-close."""
    with tunnel(proxy.door("web"), half_close=True) as opened:
        yield opened


# -- violations


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_violation_fails_the_connection_and_reaches_no_target(plain: Tunnel, violation: Violation) -> None:
    """CASES D93, D95, D96, D97, D98, D102, D110, D111, D112, D113, D114: see the ids."""
    plain.client.write(violation.written(KEY))
    assert plain.client.recv_close() in violation.codes
    assert plain.client.read_rest() == (b"", "FIN")
    plain.client.sock.close()
    assert read_rest(plain.target) == (b"", "reset")  # a cut must not look like an end


@pytest.mark.parametrize("opcode", [CONTINUATION, BINARY, PING, PONG, CLOSE])
@pytest.mark.parametrize("payload", [b"", b"Hello", b"x" * 70_000])
def test_an_unmasked_frame_fails_the_connection(plain: Tunnel, opcode: int, payload: bytes) -> None:
    """CASES D93."""
    plain.client.write(frame(FIN | opcode, payload, key=None))
    assert plain.client.recv_close() == 1002
    assert plain.client.read_rest() == (b"", "FIN")
    plain.client.sock.close()
    assert read_rest(plain.target) == (b"", "reset")


def test_what_came_before_a_violation_is_delivered(plain: Tunnel) -> None:
    """CASES D96."""
    plain.client.write(frame(FIN | BINARY, b"good") + frame(FIN | 3, b"bad") + frame(FIN | BINARY, b"late"))
    assert plain.client.recv_close() == 1002
    plain.client.sock.close()
    assert read_rest(plain.target) == (b"good", "reset")


def test_a_violation_within_a_message_fails_the_connection(plain: Tunnel) -> None:
    """CASES D102."""
    plain.client.send(BINARY, b"begun", fin=False)
    assert read_exact(plain.target, 5) == b"begun"
    plain.client.send(BINARY, b"another")
    assert plain.client.recv_close() == 1002
    plain.client.sock.close()
    assert read_rest(plain.target) == (b"", "reset")


# -- what is understood


def test_reads_the_masked_example_of_the_rfc(plain: Tunnel) -> None:
    # RFC 6455, section 5.7: "Hello", masked, as the payload of a Pong; here that of a Ping.
    plain.client.write(bytes.fromhex("89 85 37fa213d 7f9f4d5158"))
    assert plain.client.read(7) == bytes.fromhex("8a 05") + b"Hello"


def test_a_ping_between_fragments_is_answered_at_once(plain: Tunnel) -> None:
    """CASES D103."""
    plain.client.send(BINARY, b"first, ", fin=False)
    plain.client.send(PING, b"are you there?")
    assert plain.client.read(16) == b"\x8a\x0eare you there?"
    plain.client.send(CONTINUATION, b"second, ", fin=False)
    plain.client.send(PING)
    assert plain.client.read(2) == b"\x8a\x00"
    plain.client.send(CONTINUATION, b"third")
    assert read_exact(plain.target, 20) == b"first, second, third"
    assert_relays(*plain)


def test_fragments_are_relayed_as_they_come(plain: Tunnel) -> None:
    """CASES D103."""
    plain.client.send(BINARY, b"one", fin=False)
    assert read_exact(plain.target, 3) == b"one"  # though the message goes on
    plain.client.write(header(FIN | CONTINUATION, 6, KEY) + xor(b"two", KEY))
    assert read_exact(plain.target, 3) == b"two"  # though the frame goes on
    plain.client.write(xor(b"\0\0\0ten", KEY)[3:])
    assert read_exact(plain.target, 3) == b"ten"


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 125])
def test_pongs_repeat_the_payload_of_pings(plain: Tunnel, payload: bytes) -> None:
    """CASES D103."""
    plain.client.send(PING, payload)
    pong = plain.client.recv()
    assert (pong.first, pong.key, pong.payload) == (FIN | PONG, None, payload)


def test_many_pings_of_a_client_that_does_not_read_do_no_harm(proxy: Proxy, plain: Tunnel) -> None:
    """CASES D103."""
    memory = Memory(proxy.pid)
    with sending(plain.client, frame(FIN | PING, b"x" * 125) * 100_000 + frame(FIN | BINARY, b"done")):
        assert read_exact(plain.target, 4) == b"done"
    assert memory.growth < 4 * MEBIBYTE
    assert plain.client.recv().first == FIN | PONG


def test_an_unsolicited_pong_is_ignored(plain: Tunnel) -> None:
    """CASES D123."""
    for payload in (b"", b"nobody asked", b"x" * 125):
        plain.client.send(PONG, payload)
    assert_relays(*plain)


@pytest.mark.parametrize("size", [1, 125, 126, 127, 65535, 65536, 65537, 300_000])
def test_frames_of_every_form_of_length_arrive(plain: Tunnel, size: int) -> None:
    data = os.urandom(size)
    with sending(plain.client, frame(FIN | BINARY, data, os.urandom(4))):
        assert read_exact(plain.target, size) == data


def test_a_key_of_zeros_is_a_key(plain: Tunnel) -> None:
    plain.client.write(frame(FIN | BINARY, b"in the clear", bytes(4)))
    assert read_exact(plain.target, 12) == b"in the clear"


def test_a_million_frames_of_one_byte(proxy: Proxy, plain: Tunnel) -> None:
    """CASES D108."""
    assert_bears_frames_of_one_byte(proxy.pid, plain.client, plain.target, 1_000_000)


def test_a_frame_that_declares_a_gibibyte_costs_no_memory(proxy: Proxy, plain: Tunnel) -> None:
    """CASES D125."""
    size = 64 * MEBIBYTE
    data = os.urandom(MEBIBYTE)
    head = header(FIN | BINARY, 1 << 30, KEY)
    plain.client.write(head + xor(b"at once", KEY))
    assert read_exact(plain.target, 7) == b"at once"  # not a byte of it waits for the rest
    memory = Memory(proxy.pid)
    masked = xor(bytes(7) + data, KEY)[7:] + xor(bytes(3) + data, KEY)[3:] * 63
    with sending(plain.client, masked[: size - 7]):
        for _ in range(63):
            assert read_exact(plain.target, MEBIBYTE) == data
        assert read_exact(plain.target, MEBIBYTE - 7) == data[:-7]
    assert memory.growth < 4 * MEBIBYTE


@pytest.mark.parametrize("declared", [(1 << 63) - 1, 1 << 40])
def test_a_frame_may_declare_any_length(plain: Tunnel, declared: int) -> None:
    """CASES D125."""
    plain.client.write(header(FIN | BINARY, declared, KEY) + xor(b"begin", KEY))
    assert read_exact(plain.target, 5) == b"begin"


# Of the Pings that are read at once only the last one is answered (RFC 6455, section 5.5.3; case 372).
ANSWERS = [first + b"\x8a\x00" + b"\x88\x02\x03\xe8" for first in (b"\x8a\x04ping", b"")]


def test_a_script_of_ten_frames_may_be_cut_anywhere(proxy: Proxy) -> None:
    """CASES D122."""
    door, script = proxy.door("web"), ten_frames(KEY)
    cuts = range(1, len(script))
    with tunnel(door) as clock:
        for group in (cuts[at : at + 40] for at in range(0, len(cuts), 40)):
            play_in_two_pieces(door, script, group, clock)


def play_in_two_pieces(door: Door, script: bytes, cuts: range, clock: Tunnel) -> None:
    """Play a script in a tunnel for each cut; the clock ticks when the first pieces have been read."""
    with Listener() as listener:
        clients = [Peer.connect(door) for _ in cuts]
        for client in clients:
            client.write(upgrade(listener.port))
        targets = [listener.accept() for _ in cuts]
        for client, cut in zip(clients, cuts, strict=True):
            assert client.read_answer()[0] == 101
            client.write(script[:cut])
        assert_relays(*clock)
        for client, cut in zip(clients, cuts, strict=True):
            client.write(script[cut:])
        for target in targets:
            assert read_rest(target) == (SAID_IN_TEN_FRAMES, "FIN")
            target.close()
        for client, cut in zip(clients, cuts, strict=True):
            answered, end = client.read_rest()
            assert answered in ANSWERS, f"cut at {cut}"
            assert end == "FIN"
            client.sock.close()


def test_a_script_of_ten_frames_may_come_byte_by_byte(plain: Tunnel) -> None:
    """CASES D122."""
    for byte in ten_frames(KEY):
        plain.client.write(bytes([byte]))
    assert read_rest(plain.target) == (SAID_IN_TEN_FRAMES, "FIN")
    plain.target.close()
    answered, end = plain.client.read_rest()
    assert answered in ANSWERS
    assert end == "FIN"


# -- what the server sends


@pytest.mark.parametrize("splice", LONGEST)
@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 65537, 8 * MEBIBYTE])
def test_sends_whole_binary_unmasked_frames_of_bounded_length(
    doors: dict[str, Door], splice: str, size: int
) -> None:
    sent = os.urandom(size)
    received = bytearray()
    with tunnel(doors[splice]) as (client, target), sending(target, sent):
        while len(received) < size:
            got = client.recv()
            assert (got.first, got.key) == (FIN | BINARY, None)
            assert 0 < len(got.payload) <= LONGEST[splice]
            received += got.payload
    assert received == sent


def test_sends_lengths_in_their_shortest_form(plain: Tunnel) -> None:
    for size, head in ((125, "82 7d"), (126, "82 7e 007e"), (5, "82 05")):
        plain.target.sendall(b"x" * size)
        assert plain.client.read(len(bytes.fromhex(head)) + size) == bytes.fromhex(head) + b"x" * size


@pytest.mark.parametrize("splice", LONGEST)
@pytest.mark.parametrize("receive_buffer", [0, 4096])
def test_relays_both_ways_at_once(doors: dict[str, Door], splice: str, receive_buffer: int) -> None:
    with tunnel(doors[splice], receive_buffer=receive_buffer) as both:
        relay_both_ways(*both)


def relay_both_ways(client: Peer, target: socket.socket) -> None:
    """Move megabytes both ways, with Pings and their Pongs between them."""
    up, down = os.urandom(8 * MEBIBYTE), os.urandom(8 * MEBIBYTE)
    pieces = (up[at : at + 50_000] for at in range(0, len(up), 50_000))
    frames = b"".join(frame(FIN | BINARY, piece) + frame(FIN | PING, b"?") for piece in pieces)
    received = bytearray()

    def read_down() -> None:
        while len(received) < len(down):
            got = client.recv()
            if got.opcode != PONG:
                assert got.first == FIN | BINARY
                received.extend(got.payload)

    reader = threading.Thread(target=read_down, daemon=True)
    reader.start()
    with sending(target, down), sending(client, frames):
        assert read_exact(target, len(up)) == up
    reader.join(20)
    assert received == down


# -- Close


def test_a_close_is_answered_with_its_code(plain: Tunnel) -> None:
    """CASES D115."""
    plain.client.send(CLOSE, close_payload(1000))
    assert read_rest(plain.target) == (b"", "FIN")
    plain.target.close()
    assert plain.client.read(4) == b"\x88\x02\x03\xe8"


@pytest.mark.parametrize("code", [1001, 1008, 1011, 3000, 3999, 4000, 4999])
def test_every_code_that_may_be_sent_is_echoed(plain: Tunnel, code: int) -> None:
    """CASES D115."""
    plain.client.send(CLOSE, close_payload(code, "über".encode()))
    assert plain.client.recv_close() == code
    assert plain.client.read_rest() == (b"", "FIN")


def test_a_close_without_a_code_is_answered(plain: Tunnel) -> None:
    """CASES D115."""
    plain.client.send(CLOSE)
    assert read_rest(plain.target) == (b"", "FIN")
    plain.target.close()
    assert plain.client.recv_close() in (None, 1000)
    assert plain.client.read_rest() == (b"", "FIN")


def test_what_follows_a_close_is_ignored(plain: Tunnel) -> None:
    """CASES D116."""
    plain.client.write(
        frame(FIN | CLOSE, close_payload(1000))
        + frame(FIN | BINARY, b"too late")
        + frame(FIN | PING, b"?")
        + b"\xff" * 1000
    )
    assert read_rest(plain.target) == (b"", "FIN")
    plain.target.close()
    assert plain.client.recv_close() == 1000
    assert plain.client.read_rest() == (b"", "FIN")


def test_what_follows_a_close_later_is_ignored(plain: Tunnel) -> None:
    """CASES D116."""
    plain.client.send(CLOSE, close_payload(1000))
    assert read_rest(plain.target) == (b"", "FIN")
    plain.client.send(PING, b"?")
    plain.client.send(BINARY, b"too late")
    plain.target.sendall(b"still")
    assert plain.client.recv_data(5) == b"still"
    plain.target.close()
    assert plain.client.recv_close() == 1000
    assert plain.client.read_rest() == (b"", "FIN")


@pytest.mark.parametrize("half_close", [False, True])
def test_a_target_that_dies_is_no_normal_end(proxy: Proxy, half_close: bool) -> None:
    """CASES E131."""
    with tunnel(proxy.door("web"), half_close=half_close) as (client, target):
        reset(target)
        assert client.recv_close() == 1011
        client.send(CLOSE, close_payload(1011))
        assert client.read_rest() == (b"", "FIN")


def test_a_target_that_dies_in_mid_transfer_is_no_normal_end(plain: Tunnel) -> None:
    """CASES E131."""
    with sending(plain.target, bytes(32 * MEBIBYTE)):
        plain.client.recv()
        reset(plain.target)
    with suppress(ConnectionError):  # a frame may have been cut
        while (got := plain.client.recv()).opcode == BINARY:
            pass
        assert (got.first, got.payload[:2]) == (FIN | CLOSE, close_payload(1011))


def test_a_client_that_leaves_right_after_its_close_has_ended_well(plain: Tunnel) -> None:
    """CASES D115."""
    plain.client.write(frame(FIN | BINARY, b"all of it") + frame(FIN | CLOSE, close_payload(1000)))
    plain.client.sock.close()
    assert read_rest(plain.target) == (b"all of it", "FIN")


def test_what_the_target_sent_before_it_died_arrives(plain: Tunnel) -> None:
    """CASES E131."""
    plain.target.sendall(b"last words")
    assert plain.client.recv_data(10) == b"last words"
    reset(plain.target)
    assert plain.client.recv_close() == 1011


# -- half-close


@pytest.mark.parametrize(
    ("end", "pongs"),
    [
        pytest.param(frame(FIN | BINARY), 0, id="an empty message"),
        pytest.param(frame(BINARY) + frame(FIN | CONTINUATION), 0, id="in two fragments"),
        pytest.param(
            frame(BINARY) + frame(FIN | PING, b"?") + frame(CONTINUATION) + frame(FIN | CONTINUATION),
            1,
            id="in three fragments, with a ping between",
        ),
    ],
)
def test_an_empty_message_ends_one_direction(agreed: Tunnel, end: bytes, pongs: int) -> None:
    """CASES D119."""
    down = os.urandom(MEBIBYTE)
    agreed.client.write(frame(FIN | BINARY, b"question") + end)
    assert read_rest(agreed.target) == (b"question", "FIN")
    for _ in range(pongs):
        assert agreed.client.recv().first == FIN | PONG
    with sending(agreed.target, down):
        assert agreed.client.recv_data(len(down)) == down
    agreed.target.close()
    assert agreed.client.read(2) == b"\x82\x00"
    assert agreed.client.recv_close() == 1000


def test_a_target_that_ends_leaves_the_other_direction_open(agreed: Tunnel) -> None:
    """CASES D119."""
    up = os.urandom(MEBIBYTE)
    agreed.target.sendall(b"that is all")
    agreed.target.shutdown(socket.SHUT_WR)
    assert agreed.client.recv_data(11) == b"that is all"
    assert agreed.client.read(2) == b"\x82\x00"
    with sending(agreed.client, frame(FIN | BINARY, up) + frame(FIN | PING, b"?") + frame(FIN | BINARY)):
        assert read_rest(agreed.target) == (up, "FIN")
    assert agreed.client.recv().first == FIN | PONG
    assert agreed.client.recv_close() == 1000
    agreed.client.send(CLOSE, close_payload(1000))
    assert agreed.client.read_rest() == (b"", "FIN")


def test_an_empty_fragment_is_no_empty_message(agreed: Tunnel) -> None:
    """CASES D119."""
    empty = frame(CONTINUATION)
    agreed.client.write(frame(BINARY) + empty + frame(FIN | CONTINUATION, b"x"))
    agreed.client.write(frame(BINARY, b"y") + empty + frame(FIN | CONTINUATION))
    assert read_exact(agreed.target, 2) == b"xy"
    assert_relays(*agreed)


def test_pings_are_answered_after_the_end_of_a_direction(agreed: Tunnel) -> None:
    """CASES D119."""
    agreed.client.send(BINARY)
    assert read_rest(agreed.target) == (b"", "FIN")
    agreed.client.send(PING, b"?")
    assert agreed.client.recv().first == FIN | PONG


@pytest.mark.parametrize("before", [b"", b"all of it"])
def test_payload_after_the_end_of_its_direction_reaches_no_target(agreed: Tunnel, before: bytes) -> None:
    """CASES D119."""
    said = frame(FIN | BINARY, before) if before else b""
    agreed.client.write(said + frame(FIN | BINARY) + frame(FIN | BINARY, b"one more thing"))
    assert read_rest(agreed.target)[0] == before
    assert agreed.client.recv_close() == 1002


def test_without_an_agreement_an_empty_message_is_nothing(plain: Tunnel) -> None:
    """CASES D119."""
    plain.client.send(BINARY)
    plain.client.write(frame(BINARY) + frame(FIN | CONTINUATION))
    assert_relays(*plain)


def test_what_the_target_has_to_say_is_delivered_after_a_close(plain: Tunnel) -> None:
    """CASES D119."""
    down = os.urandom(4 * MEBIBYTE)
    plain.client.send(CLOSE, close_payload(1000))
    assert read_rest(plain.target) == (b"", "FIN")
    with sending(plain.target, down):
        assert plain.client.recv_data(len(down)) == down
    plain.target.close()
    assert plain.client.recv_close() == 1000
    assert plain.client.read_rest() == (b"", "FIN")


# -- cuts


MID_FRAME = {
    "payload": header(FIN | BINARY, 100, KEY) + xor(b"half of it", KEY),
    "header": frame(FIN | BINARY, b"half of it") + header(FIN | BINARY, 300, KEY)[:3],
    "first byte": frame(FIN | BINARY, b"half of it") + b"\x82",
    "ping": frame(FIN | BINARY, b"half of it") + frame(FIN | PING, b"whole")[:-1],
}


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("where", MID_FRAME)
def test_the_loss_of_tcp_in_a_frame_resets_the_target(proxy: Proxy, where: str, half_close: bool) -> None:
    """CASES D120."""
    with tunnel(proxy.door("web"), half_close=half_close) as (client, target):
        client.write(MID_FRAME[where])
        assert read_exact(target, 10) == b"half of it"
        client.sock.close()
        assert read_rest(target) == (b"", "reset")


def test_a_reset_is_passed_on_to_a_target_that_takes_nothing(plain: Tunnel) -> None:
    """CASES D120, E130."""
    plain.client.sock.setblocking(False)
    data = frame(FIN | BINARY, bytes(32 * MEBIBYTE))
    while is_writable(plain.client.sock, 0.3):  # after that it takes nothing more
        data = data[plain.client.sock.send(data) :]
    assert data
    reset(plain.client.sock)
    poll = select.poll()
    poll.register(plain.target, 0)
    assert poll.poll(2000), "the target was not told"


def is_writable(sock: socket.socket, seconds: float) -> bool:
    """Tell whether a socket takes bytes within so long."""
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(1000 * seconds))


@pytest.mark.parametrize("half_close", [False, True])
def test_a_reset_is_passed_on(proxy: Proxy, half_close: bool) -> None:
    """CASES D120."""
    with tunnel(proxy.door("web"), half_close=half_close) as (client, target):
        client.send(BINARY, b"all of it")
        assert read_exact(target, 9) == b"all of it"
        reset(client.sock)
        assert read_rest(target) == (b"", "reset")


def test_the_end_of_tcp_without_a_close_resets_the_target_of_a_peer_that_agreed(agreed: Tunnel) -> None:
    """CASES D120."""
    agreed.client.send(BINARY, b"all of it")
    agreed.client.sock.shutdown(socket.SHUT_WR)
    assert read_rest(agreed.target) == (b"all of it", "reset")


def test_the_end_of_tcp_after_the_end_of_a_direction_resets_the_target_too(agreed: Tunnel) -> None:
    """CASES D120."""
    agreed.client.write(frame(FIN | BINARY, b"question") + frame(FIN | BINARY))
    assert read_rest(agreed.target) == (b"question", "FIN")
    agreed.client.sock.close()
    with pytest.raises(ConnectionError):  # what it says now would be lost, and it learns so
        keep_sending(agreed.target)


def keep_sending(sock: socket.socket) -> None:
    """Send until the connection is gone."""
    watch = Stopwatch()
    while watch.seconds < 20:
        sock.sendall(b"and on")
        is_silent(sock, 0.02)


def test_the_end_of_tcp_without_a_close_is_the_end_for_any_other_peer(plain: Tunnel) -> None:
    """CASES D120."""
    plain.client.send(BINARY, b"all of it")
    plain.client.sock.shutdown(socket.SHUT_WR)
    assert read_rest(plain.target) == (b"all of it", "FIN")
    plain.target.sendall(b"understood")
    assert plain.client.recv_data(10) == b"understood"


def test_the_end_of_tcp_between_fragments_is_a_cut(plain: Tunnel) -> None:
    """Case 393."""
    plain.client.send(BINARY, b"half of it", fin=False)
    plain.client.sock.shutdown(socket.SHUT_WR)
    assert read_rest(plain.target) == (b"half of it", "reset")


def test_a_close_between_fragments_is_a_cut_whatever_its_code(plain: Tunnel) -> None:
    """Case 393."""
    plain.client.write(frame(BINARY, b"half of it") + frame(FIN | CLOSE, close_payload(1000)))
    assert plain.client.recv_close() == 1000
    assert read_rest(plain.target) == (b"half of it", "reset")


def test_a_close_that_says_that_something_went_wrong_resets_the_target(plain: Tunnel) -> None:
    """CASES D120."""
    plain.client.send(BINARY, b"half of it")
    plain.client.send(CLOSE, close_payload(1011))
    assert read_rest(plain.target) == (b"half of it", "reset")
