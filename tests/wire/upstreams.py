"""
Upstream proxies that do what a test says, step by step, as the RFCs print the messages.

A script is a list of steps; each is bytes to send, or a function of the connection. An upstream
counts its connections, keeps what each of them heard, and can come and go on one port.
"""

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence

from tests.wire.sockets import read_exact
from tests.wire.socks5 import hear_greeting, hear_request
from tests.wire.targets import Target
from tests.wire.websocket import CLOSE, FIN, close_payload, frame, switching

Step = bytes | Callable[[socket.socket], object]
Script = Sequence[Step]


class Upstream(Target):
    """Plays the script to every connection; its result is what was heard."""

    def __init__(self, port: int, steps: Script) -> None:
        super().__init__(self._play, port=port)
        self._steps = steps
        self._questions = 0  # WebSocket requests without a target, which only ask for a sign of life
        self.requests = 0  # of SOCKS5; a greeting without one only asks for a sign of life

    @property
    def attempts(self) -> int:
        """How many connections were made to reach a target."""
        return self.accepted - self._questions

    def _play(self, connection: socket.socket) -> list[object]:
        heard: list[object] = []
        for step, what in take(self._steps, connection):
            heard.append(what)
            self.requests += step is hear_request
            self._questions += isinstance(what, str) and "X-Proxy-Target-Host" not in what
        return heard


def upstream(port: int, *steps: Step) -> Upstream:
    """Listen on a port, and play the script to every connection."""
    return Upstream(port, steps)


def take(steps: Script, connection: socket.socket) -> Iterator[tuple[Step, object]]:
    """Take one step after the other; give those that are functions, with what they heard."""
    for step in steps:
        if isinstance(step, bytes):
            connection.sendall(step)
        else:
            yield step, step(connection)


def play(steps: Script, connection: socket.socket) -> list[object]:
    """Take all steps, and give what was heard."""
    return [heard for _, heard in take(steps, connection)]


# What an upstream does beside sending bytes.


def end(connection: socket.socket) -> None:
    """Close in good order: our FIN first, and nothing left unread that would make it a reset."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(3)
        while connection.recv(4096):
            pass


def stall(connection: socket.socket) -> None:
    """Do nothing until the peer leaves."""
    with contextlib.suppress(OSError):
        while connection.recv(4096):
            pass


def drip(connection: socket.socket) -> None:
    """Send one harmless byte after the other, so that no timeout of a single read ever expires."""
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 101 " + b"x" * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)


SOCKS_GREETED: tuple[Step, ...] = (hear_greeting, b"\x05\x00", hear_request)


def hear_head(connection: socket.socket) -> str:
    """Read the head of a request, and nothing behind it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exact(connection, 1)
    return head.decode("latin-1")


def switch(
    *headers: str, accept: str | None = None, behind: bytes = b"", without: str = "", half_close: bool = True
) -> Step:
    """
    Read a request and answer 101 (section 4.2.2).

    ``without`` names a header to leave out, ``accept`` is said instead of what would be right, and
    ``behind`` comes in the same piece.
    """

    def step(connection: socket.socket) -> str:
        head = hear_head(connection)
        answer = switching(key_of(head), *headers, accept=accept, without=without, half_close=half_close)
        connection.sendall(answer + behind)
        return head

    return step


def key_of(head: str) -> str:
    """Find the key in the head of a request."""
    match = re.search(r"^Sec-WebSocket-Key: *(\S+)\r$", head, re.MULTILINE | re.IGNORECASE)
    assert match, head
    return match[1]


def http_answer(status: int, *headers: str, body: bytes = b"a body of its own") -> bytes:
    """Write an answer with a body, as web servers do."""
    length = [] if status == 204 else [f"Content-Length: {len(body)}", "Content-Type: text/html"]
    lines = [f"HTTP/1.1 {status} Whatever", *length, *headers, "", ""]
    return "\r\n".join(lines).encode() + (b"" if status == 204 else body)


MALFORMED = http_answer(400)


def judge(with_target: Step, without: Step = MALFORMED) -> Callable[[socket.socket], str]:
    """Read the head of a request, and behave so if it has a target; without one it is malformed, or so."""

    def step(connection: socket.socket) -> str:
        head = hear_head(connection)
        play([with_target if "X-Proxy-Target-Host" in head else without], connection)
        return head

    return step


def unmasked(opcode: int, payload: bytes = b"") -> bytes:
    """Write a server's frame (section 5.2)."""
    return frame(FIN | opcode, payload, None)


def close_frame(code: int) -> bytes:
    """Write a server's Close frame (section 5.5.1)."""
    return unmasked(CLOSE, close_payload(code))
