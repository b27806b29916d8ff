"""
A proxy at work, as it is shown in pictures: its clients, and ways out to targets that nobody has to reach.

All of it stays on this machine. A load balancer seems to stand in front, which says who the clients are, and
behind the proxy stands one that answers for every target by itself.
"""

import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator

from tests.integration.programs import Proxy, run_proxy, socks_door, upstream, web_door
from tests.wire.clients import SocksTunnel
from tests.wire.sockets import connect, free_port, read_exact
from tests.wire.socks5 import (
    hear_greeting,
    hear_request,
    login,
    read_socks_reply,
    socks_greeting,
    socks_reply,
    socks_request,
)
from tests.wire.targets import Target

USERS = {"alice": "wonderland", "bob": "builder", "carol": "carols", "backup-job": "tape"}

# User, client, target, and KiB a second up and down.
CLIENTS = (
    ("alice", "192.0.2.17", "video.example.net", 12, 2300),
    ("backup-job", "198.51.100.9", "backup.example.org", 1450, 20),
    ("bob", "192.0.2.44", "downloads.example.com", 6, 640),
    ("carol", "203.0.113.80", "meet.example.com", 190, 210),
    ("alice", "192.0.2.17", "www.example.com", 4, 75),
    ("alice", "192.0.2.17", "cdn.example.com", 2, 48),
    ("bob", "192.0.2.44", "mail.example.org", 3, 9),
    ("carol", "2001:db8::51", "chat.example.net", 1, 2),
    ("bob", "192.0.2.44", "git.example.org", 0, 0),
    ("carol", "203.0.113.80", "www.example.org", 0, 0),
    ("alice", "2001:db8::17", "updates.example.com", 0, 0),
)
_TURN = 0.1  # seconds between two pieces of what is sent
_CALM = 7.0  # seconds of a wave


@contextlib.contextmanager
def proxy_at_work() -> Iterator[Proxy]:
    """Run it until the end of the block."""
    ended = threading.Event()
    with Target(lambda far: _answer(far, ended)) as anywhere, contextlib.ExitStack() as stack:
        config = {
            "proxy": {"access_log": "off", "login_penalty": "0"},
            "listeners": {
                "socks": socks_door(
                    client_address="proxy_protocol", trusted="127.0.0.1", upstream=["home", "backup"]
                ),
                "web": web_door(),
            },
            "upstreams": {
                "home": upstream("socks5", ("127.0.0.1", anywhere.port)),
                "backup": upstream("socks5", ("127.0.0.1", free_port())),
            },
            "rules": {"no-telnet": {"port": "23", "action": "block"}},
            "auth_users": USERS,
        }
        node = stack.enter_context(Proxy(config))
        run_proxy("ctl", "-c", str(node.config_path), "set", "listeners.web.max_connections", "200")
        run_proxy("ctl", "-c", str(node.config_path), "set", "proxy.idle_timeout", "1h")
        for user, client, target, up, _ in CLIENTS:
            sock = _connect(node, user, client, target, 443)
            stack.callback(sock.close)
            threading.Thread(target=_send, args=(sock, up, ended), daemon=True).start()
            threading.Thread(target=_drain, args=(sock,), daemon=True).start()
        for client, port in (("203.0.113.80", 23), ("192.0.2.44", 23)):
            with contextlib.suppress(Exception):
                _connect(node, "carol", client, "old.example.org", port)
        try:
            yield node
        finally:
            ended.set()


def _connect(node: Proxy, user: str, client: str, target: str, port: int) -> socket.socket:
    sock = connect(node.door("socks"))
    family = "TCP6 {0} ::1" if ":" in client else "TCP4 {0} 127.0.0.1"
    sock.sendall(f"PROXY {family.format(client)} {_port(user, target)} 1080\r\n".encode())
    credentials = (user, USERS[user])
    sock.sendall(socks_greeting(credentials))
    read_exact(sock, 2)
    sock.sendall(login(*(text.encode() for text in credentials)))
    read_exact(sock, 2)
    sock.sendall(socks_request(target, port))
    if reply := read_socks_reply(sock):
        raise ConnectionError(f"reply {reply}")
    return SocksTunnel(sock).sock


def _port(user: str, target: str) -> int:
    """Choose the port from which a client seems to come: one that is the same the next time."""
    return 40000 + sum(f"{user} {target}".encode()) * 37 % 20000


def _answer(far: socket.socket, ended: threading.Event) -> None:
    """Be every target: speak SOCKS5 up to the request, and send what this target sends."""
    hear_greeting(far)
    far.sendall(b"\x05\x00")
    request = hear_request(far)
    far.sendall(socks_reply(0))
    name = next((each for each in CLIENTS if each[2].encode() in request), None)
    threading.Thread(target=_drain, args=(far,), daemon=True).start()
    _send(far, name[4] if name else 0, ended)


def _send(sock: socket.socket, rate: int, ended: threading.Event) -> None:
    """Send so many KiB a second, in waves, until it is over."""
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while not ended.wait(_TURN):
            seconds = time.monotonic() - began
            swell = 0.75 + 0.25 * math.sin(2 * math.pi * seconds / _CALM + rate)
            sock.sendall(b"\0" * int(rate * 1024 * _TURN * swell))


def _drain(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 16):
            pass
