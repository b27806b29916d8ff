"""How a server is asked through its control socket, and how one finds out that there is none."""

import http.client
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from proxy.ctl import ask as module
from proxy.ctl.ask import CONFIG_HEADER, SOCKET_NAME, ask, is_taken, why_not_ours
from proxy.trust import Trust

TIMEOUT = 30.0  # seconds


class Server:
    """Answers on the control socket of a folder, one client after the other."""

    def __init__(self, folder: Path, act: Callable[[socket.socket], object]) -> None:
        self.heard: list[bytes] = []
        self._act = act
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(os.fsencode(folder / SOCKET_NAME))
        self._sock.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._sock.accept()
                with peer, suppress(OSError):
                    peer.settimeout(TIMEOUT)
                    data = b""
                    while b"\r\n\r\n" not in data and (more := peer.recv(65536)):
                        data += more
                    self.heard.append(data)
                    self._act(peer)

    def close(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
        self._sock.close()
        self._thread.join(TIMEOUT)


Serve = Callable[[Callable[[socket.socket], object]], Server]


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not below pytest's own: its long names leave no room for a Unix socket's path.
    with tempfile.TemporaryDirectory(prefix="pxt-") as path:
        yield Path(path)


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    servers = []

    def start(act: Callable[[socket.socket], object]) -> Server:
        servers.append(Server(folder, act))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def answers(data: bytes) -> Callable[[socket.socket], object]:
    return lambda peer: peer.sendall(data)


def with_status(status: int, body: bytes = b"{}") -> Callable[[socket.socket], object]:
    return answers(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


def stays(peer: socket.socket) -> None:
    """Say nothing until the client leaves."""
    while peer.recv(1):
        pass


def ask_it(folder: Path, patience: float = TIMEOUT, config: str = "") -> tuple[int, str]:
    return ask(folder / SOCKET_NAME, "GET", "/status", patience=patience, config=config)


def test_status_and_body_of_an_error_are_an_answer_too(folder: Path, serve: Serve) -> None:
    serve(with_status(409, '{"error": "j\u00fcrgen"}'.encode()))
    assert ask_it(folder) == (409, '{"error": "j\u00fcrgen"}')


def test_the_file_that_is_meant_is_named_whatever_bytes_its_path_has(
    folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header has room for ASCII alone; and a relative path means nothing to the server."""
    server = serve(with_status(200))
    monkeypatch.chdir(folder)
    ask_it(folder, config=os.fsdecode(b"caf\xe9 \xc3\xbc.ini"))
    (named,) = [line for line in server.heard[0].split(b"\r\n") if line.startswith(CONFIG_HEADER.encode())]
    value = named.partition(b": ")[2]
    assert value.isascii()
    assert unquote_to_bytes(value) == os.fsencode(folder.resolve()) + b"/caf\xe9 \xc3\xbc.ini"


def test_an_answer_that_is_no_text_does_not_end_the_program(folder: Path, serve: Serve) -> None:
    serve(with_status(200, b"\xff{}"))
    assert ask_it(folder) == (200, "\ufffd{}")


def test_an_answer_without_end_is_not_kept(
    folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST", 1000)

    def endless(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 X\r\n\r\n")
        while True:
            peer.sendall(bytes(65536))

    serve(endless)
    with pytest.raises(http.client.HTTPException, match="too long"):
        ask_it(folder)


def test_half_an_answer_is_none(folder: Path, serve: Serve) -> None:
    """The server may end in the middle of it; and half of the metrics look like metrics."""
    serve(answers(b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\na_metric 1\n"))
    with pytest.raises(OSError, match="broke off"):
        ask_it(folder)


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n"])
def test_what_is_no_answer_is_an_error_of_http(folder: Path, serve: Serve, said: bytes) -> None:
    serve(answers(said))
    with pytest.raises(http.client.HTTPException):
        ask_it(folder)


def test_nobody_is_waited_for_without_end(folder: Path, serve: Serve) -> None:
    serve(stays)
    with pytest.raises(TimeoutError):
        ask_it(folder, patience=0.05)


def test_where_there_is_no_server_it_is_an_error_of_the_system(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ask_it(folder)
    with socket.socket(socket.AF_UNIX) as left:  # as a server leaves it that was killed
        left.bind(str(folder / SOCKET_NAME))
    with pytest.raises(ConnectionRefusedError):
        ask_it(folder)


# Whose folder it is


@pytest.mark.parametrize(
    ("act", "taken"),
    [
        (with_status(200), True),
        (with_status(401), True),  # of another version, perhaps: but it is there
        (with_status(503, b'{"status": "draining"}'), False),  # we are its successor
        (with_status(503, b'{"status": "waiting", "waiting": ["socks"]}'), True),  # for an address
        (answers(b"SSH-2.0-OpenSSH\r\n"), False),
    ],
    ids=["serves", "refuses", "drains", "waits", "is none"],
)
def test_a_folder_is_taken_by_a_server_that_goes_on(
    folder: Path, serve: Serve, act: Callable[[socket.socket], object], taken: bool
) -> None:
    serve(act)
    assert is_taken(folder) is taken
    assert bool(why_not_ours(folder, Trust())) is taken


def test_a_server_that_has_no_time_to_answer_has_its_folder_all_the_same(
    folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    serve(stays)
    assert is_taken(folder)
    assert why_not_ours(folder, Trust()) == f"{folder} is the state_dir of another server, which runs"


def test_a_folder_without_a_server_is_ours(folder: Path) -> None:
    assert why_not_ours(folder, Trust()) == ""
    assert why_not_ours(folder / "not made yet", Trust()) == ""


def test_nobody_is_asked_in_a_folder_where_others_may_write(folder: Path, serve: Serve) -> None:
    """Whatever listens there may be anybody's."""
    server = serve(with_status(200))
    folder.chmod(0o777)
    assert why_not_ours(folder, Trust()) == f"others may write in {folder}"
    assert server.heard == []
