"""
What strangers and users who mean harm do to a proxy. Each attack is a process of its own.

``python -m tests.siege.attacks NAME PORTS SECONDS`` runs one against the doors of a node on this
machine, and prints what it has sent. All are bounded in time, in count, and in connections.
"""

import json
import os
import random
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from tests.wire.sockets import read_exact
from tests.wire.socks5 import read_socks_reply
from tests.wire.websocket import BINARY, PING, Peer, upgrade_request

HERE = "127.0.0.1"
TUNNELS = int(os.environ.get("TUNNELS") or 100)
LOGINS = 700
DEPTH = 200
HOSTS = 4200

Ports = Mapping[str, int]


@dataclass
class Sent:
    """What an attack has sent so far."""

    requests: int = 0
    size: int = 0


def paced(each_second: float, seconds: float, most: int = 1 << 20) -> Iterator[int]:
    """Count so fast, for so long, and no further than that; what cannot be done in time is left out."""
    began = time.monotonic()
    number = 0
    while number < most and (now := time.monotonic()) - began < seconds:
        yield number
        number += 1
        time.sleep(max(0.0, min(1 / each_second, began + number / each_second - now)))


def ask(port: int, data: bytes, sent: Sent, patience: int = 1 << 20) -> None:
    """Connect, say something, and hear the answer out; with less patience, only so many pieces of it."""
    with socket.create_connection((HERE, port), 5) as sock, suppress(OSError):
        sock.sendall(data)
        sent.requests, sent.size = sent.requests + 1, sent.size + len(data)
        while patience and sock.recv(4096):
            patience -= 1


def strange(count: int, first: int = 0x4E00, last: int = 0x9FFF) -> str:
    """Make a name that nobody has asked for before."""
    return "".join(chr(random.randint(first, last)) for _ in range(count))


def request(host: str) -> bytes:
    """Write an upgrade request without a login, for a host in any characters."""
    return upgrade_request(host, 80)


def connects(ports: Ports, seconds: float, sent: Sent) -> None:
    """Connect 300 times a second, and leave at once: with all packets some 100 kB a second."""
    for _ in paced(300, seconds):
        ask(ports["login"], b"\x05", sent, patience=0)


def hellos(ports: Ports, seconds: float, sent: Sent) -> None:
    """Begin TLS, and leave when the server has done its part (at most 100 kB a second)."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    for _ in paced(100_000 / len(hello), seconds):
        ask(ports["wss"], hello, sent, patience=1)


def names(ports: Ports, seconds: float, sent: Sent) -> None:
    """Have names of 1,000 different characters turned into ASCII (at most 100 kB a second)."""
    for _ in paced(25, seconds):
        ask(ports["web"], request(strange(1000)), sent)


def labels(ports: Ports, seconds: float, sent: Sent) -> None:
    """Have names turned into ASCII that are just short enough to be begun (at most 100 kB a second)."""
    for _ in paced(200, seconds):
        ask(ports["web"], request(strange(59)), sent)


def targets(ports: Ports, seconds: float, sent: Sent) -> None:
    """Ask the upstream for a target that cannot be, so that it looks broken."""
    greeting, target = b"\x05\x01\x00", b"\x05\x01\x00\x04" + socket.inet_pton(socket.AF_INET6, "fe80::1")
    for _ in paced(50, seconds):
        ask(ports["chain"], greeting + target + b"\x00\x50", sent)


def frames(ports: Ports, seconds: float, sent: Sent) -> None:
    """Send frames of one byte through many tunnels at once."""
    _flood(lambda: _tunnel(ports), bytes([0x80 | BINARY, 0x81, 0, 0, 0, 0]) + b"x", seconds, sent)


def pings(ports: Ports, seconds: float, sent: Sent) -> None:
    """Send empty pings through many tunnels at once."""
    _flood(lambda: _tunnel(ports), bytes([0x80 | PING, 0x80, 0, 0, 0, 0]), seconds, sent)


def chunks(ports: Ports, seconds: float, sent: Sent) -> None:
    """Send bodies in chunks of one byte with many requests at once."""
    _flood(lambda: _upload(ports), b"1\r\nx\r\n", seconds, sent)


def _tunnel(ports: Ports) -> socket.socket:
    sock = socket.create_connection((HERE, ports["open-web"]), 5)
    sock.sendall(upgrade_request(HERE, ports["sink"]))
    assert Peer(sock).read_answer()[0] == 101
    return sock


def _upload(ports: Ports) -> socket.socket:
    sock = socket.create_connection((HERE, ports["mixed"]), 5)
    target = f"{HERE}:{ports['sink']}"
    head = f"POST http://{target}/ HTTP/1.1\r\nHost: {target}\r\nTransfer-Encoding: chunked\r\n\r\n"
    sock.sendall(head.encode())
    return sock


def _flood(open_one: Callable[[], socket.socket], unit: bytes, seconds: float, sent: Sent) -> None:
    data = unit * (65_000 // len(unit))
    with ExitStack() as stack:
        socks = [stack.enter_context(open_one()) for _ in range(TUNNELS)]
        for sock in socks:
            sock.setblocking(False)
        left = dict.fromkeys(socks, b"")
        for _ in paced(1, seconds):
            left = {sock: rest or data for sock, rest in left.items()}
            sent.requests += 1
            until = time.monotonic() + 1
            while any(left.values()) and time.monotonic() < until:
                for sock in socks:
                    with suppress(BlockingIOError):
                        count = sock.send(left[sock]) if left[sock] else 0
                        left[sock] = left[sock][count:]
                        sent.size += count
                    with suppress(BlockingIOError):
                        sock.recv(1 << 16)  # pongs
                time.sleep(0.001)


def hosts(ports: Ports, seconds: float, sent: Sent) -> None:
    """Send 4,200 requests, each with another host of 8 kB."""
    for number in paced(HOSTS / seconds, seconds, HOSTS):
        letters = strange(1990, 0x1F300, 0x1FAFF) if number % 2 else strange(7900, ord("a"), ord("z"))
        ask(ports["web"], request(letters), sent)


def loop(ports: Ports, seconds: float, sent: Sent) -> None:
    """Ask the proxy for its own listener, and inside that again, 200 deep."""
    own = b"\x05\x01\x00\x01" + socket.inet_aton(HERE) + ports["open"].to_bytes(2, "big")
    for _ in paced(10, seconds):
        with socket.create_connection((HERE, ports["open"]), 5) as sock, suppress(OSError):
            for _ in range(DEPTH):
                sock.sendall(b"\x05\x01\x00" + own)
                sent.requests, sent.size = sent.requests + 1, sent.size + 3 + len(own)
                read_exact(sock, 2)
                if read_socks_reply(sock):
                    break


def logins(ports: Ports, seconds: float, sent: Sent) -> None:
    """Have wrong logins wait for their hash, at most 700: with all packets some 100 kB a second."""
    message = b"\x05\x01\x02" + b"\x01\x04good\x05wrong"
    waiting: list[socket.socket] = []
    for _ in paced(240, seconds, 20_000):
        with suppress(OSError):
            # From another address than the good client's, whose checks have a queue of their own.
            sock = socket.create_connection((HERE, ports["login"]), 1, source_address=("127.0.0.3", 0))
            sock.sendall(message)
            sock.setblocking(False)
            waiting.append(sock)
            sent.requests, sent.size = sent.requests + 1, sent.size + len(message)
        while len(waiting) >= LOGINS:
            time.sleep(0.01)
            waiting = [sock for sock in waiting if _still_waits(sock)]
    for sock in waiting:
        sock.close()


def _still_waits(sock: socket.socket) -> bool:
    with suppress(BlockingIOError):
        while True:
            try:
                if sock.recv(100):
                    continue
            except ConnectionError:
                pass
            sock.close()
            return False
    return True


ATTACKS: Mapping[str, Callable[[Ports, float, Sent], None]] = {
    each.__name__: each
    for each in (connects, hellos, names, labels, targets, frames, pings, chunks, hosts, loop, logins)
}


def main() -> None:
    """Run one attack."""
    name, ports, seconds = sys.argv[1:]
    sent = Sent()
    ATTACKS[name](json.loads(ports), float(seconds), sent)
    print(json.dumps({"requests": sent.requests, "size": sent.size}))


if __name__ == "__main__":
    main()
