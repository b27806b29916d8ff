"""
Our program, started as a fork of a process that has imported it already.

The tests start it more than a thousand times. What each start does before it looks at its command line is to
import always the same, and took a third of the processor time of all tests. So there is one process that has
done that, the nursery, and each program is a fork of it, with descriptors, a folder and an environment of its
own. Above each is a fork that waits for it, and tells the tests how it ended.

Whoever has to see a start as it is (its command line in /proc, closed descriptors, an environment that
Python itself reads) starts a real one.
"""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_MOST = 1 << 20  # bytes of a request
# What Python, the C library or the program read before they look at their command line.
_READ_EARLY = ("GEVENT", "LANG", "LC_", "LD_", "LISTEN_", "PYTHON")


class Fork:
    """A program that was started so, as ``subprocess.Popen`` shows it."""

    def __init__(self, pid: int, fate: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._fate = fate

    def poll(self) -> int | None:
        """Tell how it ended, if it has."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and tell how; raises ``subprocess.TimeoutExpired``."""
        ended = self._look(timeout)
        if ended is None:
            raise subprocess.TimeoutExpired(["proxy"], timeout or 0.0)
        return ended

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._fate, select.POLLIN)
            if poll.poll(None if timeout is None else 1000 * timeout):
                told = os.read(self._fate, 100)
                os.close(self._fate)
                self.returncode = os.waitstatus_to_exitcode(int(told)) if told else -signal.SIGKILL
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that has imported the program, for one process of tests."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self._starting = threading.Lock()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(90)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd="/",
                env=dict(environment),
                start_new_session=True,
            )

    def can_start(self, environment: Mapping[str, str]) -> bool:
        """Tell whether what a program's environment says comes early enough."""
        both = {*environment, *self.environment}
        early = [name for name in both if name.startswith(_READ_EARLY)]
        return all(environment.get(name) == self.environment.get(name) for name in early)

    def start(
        self,
        arguments: Sequence[str],
        folder: str | Path,
        environment: Mapping[str, str],
        descriptors: tuple[int, int, int],
    ) -> Fork:
        """Start a program with these standard descriptors."""
        request = json.dumps([list(arguments), os.fspath(folder), dict(environment)])
        reader, writer = os.pipe()
        try:
            with self._starting:
                socket.send_fds(
                    self._sock, [request.encode("utf-8", "surrogateescape")], [*descriptors, writer]
                )
                return Fork(int(self._sock.recv(100)), reader)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)


def _become_a_program(sock: socket.socket) -> None:
    """Start programs until the tests have ended; this returns in each of them, and not in the nursery."""
    fork, wait, poll = os.fork, os.waitpid, select.poll()  # before gevent has its own
    import proxy.__main__

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to wait for those who watch
    while True:
        request, descriptors, _, _ = socket.recv_fds(sock, _MOST, 4)
        if not request:
            sys.exit()
        if not fork():
            break
        for fd in descriptors:
            os.close(fd)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    watcher = os.getpid()
    if pid := fork():
        poll.register(os.pidfd_open(pid), select.POLLIN)
        poll.register(descriptors[3], 0)  # POLLERR: nobody reads it any more
        if any(event == select.POLLERR for _, event in poll.poll()):
            os.kill(pid, signal.SIGKILL)  # as the tests were
        else:
            os.write(descriptors[3], str(wait(pid, 0)[1]).encode())
        os._exit(0)
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != watcher:
        os._exit(1)  # it was too late
    sock.send(str(os.getpid()).encode())
    sock.close()
    for number, fd in enumerate(descriptors[:3]):
        os.dup2(fd, number)
    for fd in descriptors:
        os.close(fd)
    arguments, folder, environment = json.loads(request.decode("utf-8", "surrogateescape"))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [proxy.__main__.__file__, *arguments]
    sys.orig_argv = [sys.executable, "-m", "proxy", *arguments]


if __name__ == "__main__":
    _become_a_program(socket.socket(fileno=int(sys.argv[1])))
    from proxy.__main__ import main

    main()
