"""The file of a Unix socket: to whom it is open, what it never takes the place of, and how it goes."""

import errno
import fcntl
import os
import re
import socket as std_socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from proxy.address import UNIX, Address, Endpoint
from proxy.errors import ProxyError
from proxy.listening import unixsocket
from proxy.listening.listen import Acceptor
from proxy.listening.opening import Opening, bind
from proxy.listening.pool import Job, Pool
from proxy.listening.unixsocket import UnixSocket
from proxy.net.sock import LoopSocket

TIMEOUT = 20  # seconds


@pytest.fixture
def place() -> Iterator[Path]:
    """A path in a folder of its own, short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="pxt-") as folder:
        yield Path(folder) / "s.sock"


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def listen(path: Path, mode: int = 0o660) -> UnixSocket:
    (sock,) = bind(Endpoint.parse(f"unix:{path}"), mode)
    assert isinstance(sock, UnixSocket)
    return sock


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def answers(path: Path) -> bool:
    """Tell whether somebody listens there."""
    with std_socket.socket(std_socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


def leave_stale(path: Path) -> None:
    """Do what a crash does."""
    with std_socket.socket(std_socket.AF_UNIX) as left:
        left.bind(str(path))


# -- to whom it is open


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_file_has_its_mode_whatever_the_umask(place: Path, umask: int, mode: int) -> None:
    sock = listen(place, mode)
    assert mode_of(place) == mode
    sock.close()


def test_it_is_never_open_to_more_than_that(place: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even between bind(2) and chmod(2)."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "chmod", lambda path, mode: None)
        sock = listen(place, 0o600)
    assert not mode_of(place) & ~0o600
    sock.close()


def test_another_mode_is_for_all_copies(place: Path) -> None:
    sock = listen(place)
    copy = sock.copy()
    sock.close()
    copy.set_mode(0o600)
    assert mode_of(place) == 0o600
    copy.close()


def test_a_mode_that_an_administrator_changed_stays_until_it_is_another_one_here(place: Path) -> None:
    sock = listen(place, 0o660)
    place.chmod(0o666)
    sock.set_mode(0o660)
    assert mode_of(place) == 0o666
    sock.set_mode(0o600)
    assert mode_of(place) == 0o600
    sock.close()


# -- what it takes the place of


def test_one_that_nobody_listens_on_any_more_gives_way(place: Path) -> None:
    leave_stale(place)
    sock = listen(place)
    assert answers(place)
    sock.close()


@contextmanager
def another_program(path: Path) -> Iterator[int]:
    """Have another process listen, and give its number."""
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(0)"
    command = [sys.executable, "-c", f"{code}; print(flush=True); sys.stdin.read()", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        yield other.pid
        other.kill()


def test_one_of_a_program_that_runs_is_left_alone_and_named(place: Path) -> None:
    with another_program(place) as number:
        inode = place.stat().st_ino
        with pytest.raises(ProxyError) as caught:
            listen(place)
        name = Path(f"/proc/{number}/comm").read_text().strip()
        said = f"cannot listen on unix:{place}: Address already in use, by {name} (process {number})"
        assert str(caught.value) == said
        assert place.stat().st_ino == inode


def test_one_that_is_about_to_be_listened_on_is_not_taken_for_one_that_was_left(place: Path) -> None:
    """Two programs that start at once: the second finds a socket that is bound, and refuses connections."""
    folder = os.open(place.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with std_socket.socket(std_socket.AF_UNIX) as first:
        first.bind(str(place))
        second = gevent.spawn(listen, place)
        gevent.sleep(0)
        first.listen()
        os.close(folder)
        with pytest.raises(ProxyError, match="Address already in use"):
            second.get(timeout=TIMEOUT)
        assert answers(place)


def test_who_keeps_a_folder_locked_keeps_nobody_from_listening_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unixsocket, "_PAUSE", 0)
    folder = os.open(place.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    listen(place).close()
    os.close(folder)


def test_one_whose_queue_is_full_is_left_alone_too(place: Path) -> None:
    """It does not answer, but it is there: unix(7), EAGAIN."""
    with another_program(place), std_socket.socket(std_socket.AF_UNIX) as first:
        first.connect(str(place))
        with pytest.raises(ProxyError, match="Address already in use, by another program"):
            listen(place)
        assert place.exists()


def test_one_for_datagrams_is_left_alone_too(place: Path) -> None:
    with std_socket.socket(std_socket.AF_UNIX, std_socket.SOCK_DGRAM) as other:
        other.bind(str(place))
        with pytest.raises(ProxyError, match="Address already in use, by another program"):
            listen(place)
        assert place.exists()


def test_two_of_one_program_are_not_taken_for_one(place: Path) -> None:
    sock = listen(place)
    with pytest.raises(ProxyError, match="Address already in use, by this program itself"):
        listen(place)
    sock.close()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Path.touch, "a file"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("nowhere"), "a symbolic link"),
        (os.mkfifo, "something else"),
    ],
    ids=["file", "folder", "link", "pipe"],
)
def test_what_is_no_socket_is_left_alone(place: Path, make: object, what: str) -> None:
    make(place)  # type: ignore[operator]
    before = place.lstat()
    with pytest.raises(
        ProxyError, match=rf"^cannot listen on unix:.*: {what} is in its place, and is not a socket$"
    ):
        listen(place)
    assert place.lstat() == before


def test_a_link_to_a_socket_is_left_alone_too(place: Path) -> None:
    leave_stale(place.with_name("other"))
    place.symlink_to("other")
    with pytest.raises(ProxyError, match="a symbolic link is in its place"):
        listen(place)
    assert place.with_name("other").exists()


def test_a_folder_that_is_missing_is_named(place: Path) -> None:
    where = place.parent / "gone" / "s.sock"
    said = f"cannot listen on unix:{where}: there is no folder {where.parent}"
    with pytest.raises(ProxyError, match=f"^{re.escape(said)}$"):
        listen(where)


def test_a_path_of_107_bytes_is_the_longest(place: Path) -> None:
    """unix(7): sun_path has 108, with the NUL at the end."""
    longest = place.with_name("x" * (107 - len(f"{place.parent}/")))
    listen(longest).close()
    with pytest.raises(ValueError, match="longer than 107 bytes"):
        Endpoint.parse(f"unix:{longest}x")


# -- how it goes


def test_it_goes_with_the_last_copy(place: Path) -> None:
    sock = listen(place)
    copy = sock.copy()
    sock.close()
    sock.close()
    assert answers(place)
    copy.close()
    assert not place.exists()


def test_who_comes_before_it_goes_is_served(place: Path) -> None:
    """The queue is taken when nobody can come into it any more."""
    found: list[bool] = []

    class Watched(Acceptor):
        def do_read(self) -> Any:
            found.append(place.exists())
            return super().do_read()

    served: list[object] = []

    def serve(sock: LoopSocket, client: Address) -> Job:
        served.append(client)
        sock.close()
        yield from ()

    acceptor = Watched(listen(place), serve, pool := Pool(2))
    acceptor.start()
    with std_socket.socket(std_socket.AF_UNIX) as client:
        client.connect(str(place))
        acceptor.finish()
        assert pool.join(TIMEOUT)
    assert served == [UNIX]
    assert found == [False, False]


def test_that_of_a_successor_stays(place: Path) -> None:
    sock = listen(place)
    place.unlink()
    successor = listen(place)
    assert not sock.has_file
    sock.set_mode(0o600)
    sock.close()
    assert answers(place)
    assert mode_of(place) == 0o660
    successor.close()


def test_what_cannot_be_opened_leaves_nothing_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(sock: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("proxy.listening.opening.listen_on", refuse)
    opening = Opening(Endpoint.parse(f"unix:{place}"), 0o660)
    opening.look_up()
    with pytest.raises(ProxyError, match="Permission denied"):
        opening.open()
    assert not place.exists()
