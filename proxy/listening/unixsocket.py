"""
A Unix socket to listen on: how its file comes, to whom it is open, and how it goes.

bind(2) makes the file, and never in the place of another one, whatever that is. So nothing can be lost but
what is taken away before: a socket on which nobody listens any more, as a crash leaves it behind. That looks
like one that is about to be listened on, so only one of us opens a socket in a folder at a time. From its
first moment the file is open to nobody whom its mode does not name. It goes with the last copy of the socket,
unless another file has come into its place.
"""

import _socket
import errno
import fcntl
import os
import socket as std_socket
import stat
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import gevent
from gevent import socket

from proxy.errors import reason_of

_ATTEMPTS, _PAUSE = 50, 0.01  # to be alone in a folder; seconds
_PEER = struct.Struct("3i")  # struct ucred: process, user, group (unix(7))


class UnixSocket(socket.socket):
    """A Unix socket with its file, which its copies share."""

    def __init__(self, fileno: int | None = None, file: "_File | None" = None) -> None:
        super().__init__(std_socket.AF_UNIX, std_socket.SOCK_STREAM, 0, fileno)
        self._file = file
        if file:
            file.copies += 1

    @classmethod
    def found(cls, fileno: int) -> "UnixSocket":
        """Take one that listens already, and its file with it, if that is there."""
        sock = cls(fileno)
        with suppress(OSError):
            file = _File(str(sock.getsockname()))
            file.copies += 1
            sock._file = file
        return sock

    def listen_at(self, path: str, mode: int, backlog: int, *, replace_living: bool = False) -> None:
        """
        Listen, with a file that has this mode; raises ``OSError`` that says what is in the way.

        Another socket gives way if nobody listens there; or always, if the caller knows who does.
        """
        os.fchmod(self.fileno(), mode)  # which Linux gives to the file that it makes, less the umask
        with _alone_in(os.path.dirname(path)):
            try:
                self.bind(path)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
                _make_way(path, replace_living=replace_living)
                self.bind(path)
            self._file = _File(path)
            self._file.copies += 1
            self.set_mode(mode)
            self.listen(backlog)

    def set_mode(self, mode: int) -> None:
        """Change who may connect, if that is not as it was left; raises ``OSError``."""
        if self._file:
            self._file.set_mode(mode)

    @property
    def has_file(self) -> bool:
        """True as long as clients find it: its file can be deleted, or another one come into its place."""
        return self._file is not None and self._file.is_there

    def copy(self) -> "UnixSocket":
        """Make another one of the same socket."""
        return UnixSocket(os.dup(self.fileno()), self._file)

    def leave_file(self) -> None:
        """Take the file away, if no other copy needs it, so that nobody comes any more."""
        file, self._file = self._file, None
        if file:
            file.leave()

    def keep_file(self) -> None:
        """Leave the file to whoever has the socket after us."""
        self._file = None

    def close(self) -> None:
        """Close it; the last of its copies takes the file away."""
        self.leave_file()
        super().close()


class _File:
    """A socket's file, as it was made and left."""

    def __init__(self, path: str) -> None:
        self.copies = 0  # of the socket
        self._path = path
        self._made = os.lstat(path)
        self._mode = stat.S_IMODE(self._made.st_mode)

    @property
    def is_there(self) -> bool:
        """True if it was not deleted or replaced."""
        with suppress(OSError):
            return os.path.samestat(os.lstat(self._path), self._made)
        return False

    def set_mode(self, mode: int) -> None:
        """Change its mode, unless that is as it was left; raises ``OSError``."""
        if mode != self._mode and self.is_there:
            os.chmod(self._path, mode)
            self._mode = mode

    def leave(self) -> None:
        """Have one copy less; with the last one it goes."""
        self.copies -= 1
        if not self.copies and self.is_there:
            with suppress(OSError):
                os.unlink(self._path)


@contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Wait while another one of us opens a socket there; but not for who keeps us waiting on purpose."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError as exc:
        raise OSError(exc.errno, f"there is no folder {folder}") from exc
    except PermissionError:  # to make a file there, one need not be allowed to read it
        yield
        return
    try:
        for _ in range(_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # also of file systems that have no locks
                gevent.sleep(_PAUSE)
        yield
    finally:
        os.close(descriptor)


def _make_way(path: str, *, replace_living: bool) -> None:
    """Take away a socket that nobody needs; raises ``OSError`` for everything else."""
    try:
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
            raise OSError(errno.EEXIST, f"{kind} is in its place, and is not a socket")
        if not replace_living and (owner := _who_listens(path)):
            raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}, by {owner}")
        os.unlink(path)
    except FileNotFoundError:
        return


_KINDS = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link"}


def _who_listens(path: str) -> str:
    """Tell who listens at a socket that is there; nothing if it is nobody. Raises ``FileNotFoundError``."""
    with closing(_socket.socket(std_socket.AF_UNIX, std_socket.SOCK_STREAM)) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return ""
        except FileNotFoundError:
            raise
        except OSError as exc:  # such as no right to connect, another kind of socket, or a full queue
            return f"another program ({reason_of(exc)})"
        return _process_behind(sock)


def _process_behind(sock: _socket.socket) -> str:
    pid = 0
    with suppress(OSError, AttributeError):  # elsewhere than on Linux
        pid, _, _ = _PEER.unpack(sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_PEERCRED, _PEER.size))
    if pid == os.getpid():
        return "this program itself"
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"{file.read().strip()} (process {pid})"
    except OSError:
        return "another program"
