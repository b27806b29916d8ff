"""
Standard input and output as one end of a relay.

They may be files, or a terminal that others share, which must not be made non-blocking. So two
native threads read and write them, and the relay has the other end of a socket pair.
"""

import _socket
import os
import socket as std_socket
from contextlib import suppress

import gevent
from gevent import socket

from proxy.net import descriptors
from proxy.net.threads import NativeThreads
from proxy.relaying.stream import BUFFER_SIZE, Buffer, Ending, TcpStream
from proxy.sharing.pipes import Pipe


class StdioStream(TcpStream):
    """Reads standard input, and writes standard output."""

    def __init__(self, stdin: int = 0, stdout: int = 1) -> None:
        near, far = socket.socketpair()
        super().__init__(near)
        self._far = _socket.socket(fileno=far.detach())  # not gevent's: threads use it
        self._far.setblocking(True)
        self._stdin = stdin
        self._stdout = stdout
        self.not_read: OSError | None = None
        """Why the rest of the input could not be read."""
        self.not_written: OSError | None = None
        """Why the rest of the output could not be written."""
        threads = NativeThreads(2)
        gevent.spawn(threads.run, self._read)
        self._output = gevent.spawn(threads.run, self._write)

    def _read(self) -> None:
        # The relay may end first: then nobody wants the rest.
        with suppress(OSError):
            while data := self._next_input():
                self._far.sendall(data)
        with suppress(OSError):
            self._far.shutdown(std_socket.SHUT_WR)

    def _next_input(self) -> bytes:
        try:
            return descriptors.read(self._stdin, BUFFER_SIZE)
        except OSError as exc:
            self.not_read = exc
            return b""

    def _write(self) -> None:
        with suppress(OSError):
            while data := self._far.recv(BUFFER_SIZE):
                self._put_output(data)
        with suppress(OSError):
            self._far.shutdown(std_socket.SHUT_RD)
        # The reader of our output sees the end of it now, not when this process is gone.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stdout)

    def _put_output(self, data: bytes) -> None:
        try:
            descriptors.write_all(self._stdout, data)
        except OSError as exc:
            # The relay may be over before it hears of it, as all of a short answer fits into the socket pair.
            self.not_written = exc
            raise

    def recv_into(self, buffer: Buffer, *, bulk: bool) -> int | None:
        """Receive what was read."""
        return self._end_checked(super().recv_into(buffer, bulk=bulk))

    def splice_in(self, pipe: Pipe, most: int) -> int | None:
        """Fill a pipe with what was read."""
        return self._end_checked(super().splice_in(pipe, most))

    def _end_checked(self, count: int | None) -> int | None:
        # The socket pair has no reset, so a failure comes through it as an end.
        if count == 0 and self.not_read:
            raise self.not_read
        return count

    def begin_close(self, ending: Ending) -> None:
        """Say nothing but that it ended: the exit code tells how."""
        super().begin_close(Ending.FINISHED)

    def finish_close(self) -> None:
        """Wait until all is written, and leave the descriptors open: they are not ours."""
        self._output.join()
