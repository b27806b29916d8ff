"""
What happens to the program as a whole while it carries something: it is killed, or stopped for a while.
"""

import signal
import socket
import time

import pytest

from tests.doors import WAYS, Doors, how_it_ends
from tests.integration.programs import Proxy, socks_door, web_door
from tests.wire import clients, targets
from tests.wire.sockets import connect, read_exact, read_to_end
from tests.wire.socks5 import read_socks_reply, socks_greeting, socks_request
from tests.wire.targets import Target
from tests.wire.websocket import PING, PONG

PLAIN_WAYS = [way for way in WAYS if way != "tls-chain"]


@pytest.mark.parametrize("way", PLAIN_WAYS)
def test_a_killed_node_resets_whatever_it_carried(way: str) -> None:
    """Case 390: to a FIN, which is what the kernel sends by itself, half a transfer looks like all of it."""

    def speak_and_listen(connection: socket.socket) -> bytes:
        connection.sendall(b"half of an answer")
        return read_to_end(connection)

    with Doors() as doors, Target(speak_and_listen) as target:
        tunnel = doors.open(way, target.port)
        tunnel.sendall(b"half of a question")
        read_exact(tunnel, len(b"half of an answer"))
        doors.kill()
        assert how_it_ends(tunnel) == "reset"
        with pytest.raises(ConnectionResetError):
            target.result()
        tunnel.close()


def test_after_a_stop_nobody_is_judged_before_what_came_meanwhile_was_read() -> None:
    """Case 395: data, a request and a Pong wait in the sockets for longer than any of them has time."""
    limits = {"handshake_timeout": "600ms", "idle_timeout": "600ms"}
    impatient = Proxy({"proxy": limits, "listeners": {"socks": socks_door()}})
    pinging = Proxy({"listeners": {"web": web_door(ping_interval="600ms")}})
    with impatient, pinging, Target(targets.echo) as target:
        tunnel = clients.websocket(pinging.door("web"), "127.0.0.1", target.port)
        opcode, payload = tunnel.recv_frame()
        assert opcode == PING
        idle = clients.socks5(impatient.door("socks"), "127.0.0.1", target.port)
        early = connect(impatient.door("socks"))
        early.sendall(socks_greeting())
        assert read_exact(early, 2) == b"\x05\x00"

        for node in (impatient, pinging):
            node.signal(signal.SIGSTOP)
        tunnel.send_frame(PONG, payload)
        idle.sendall(b"data")
        early.sendall(socks_request("127.0.0.1", target.port))
        time.sleep(2.0)  # the time for which they are stopped
        for node in (impatient, pinging):
            node.signal(signal.SIGCONT)

        assert read_exact(idle, 4) == b"data"
        assert read_socks_reply(early) == 0
        tunnel.sendall(b"alive")
        assert read_exact(tunnel, 5) == b"alive"
        for end in (idle, early, tunnel):
            end.close()
