"""A service manager, as far as a program sees it."""

import array
import os
import socket
import tempfile
from contextlib import ExitStack


class Manager:
    """The service manager's end of sd_notify(3)."""

    def __init__(self, stack: ExitStack) -> None:
        self.address = f"{stack.enter_context(tempfile.TemporaryDirectory(prefix='pxt-'))}/notify"
        self._sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._sock.settimeout(20)
        self._sock.bind(self.address)

        self.store: dict[str, list[int]] = {}  # descriptors that it keeps, by name
        stack.callback(self.forget)

    def hear(self) -> str:
        """Wait for what is said next, apart from signs of life and what is to be kept; its first line."""
        while (told := self._receive()).startswith(("WATCHDOG=1", "FDSTORE")):
            pass
        return told.partition("\n")[0]

    def feel(self) -> None:
        """Wait for a sign of life."""
        while self._receive() != "WATCHDOG=1":
            pass

    def hear_of(self, *names: str) -> None:
        """Wait until it keeps descriptors of these names, and of no others."""
        while self.store.keys() != set(names):
            self._receive()

    def forget(self) -> None:
        """Close what it keeps."""
        for name in list(self.store):
            self._remove(name)

    def _receive(self) -> str:
        room = socket.CMSG_SPACE(64 * array.array("i").itemsize)
        data, rights, _, _ = self._sock.recvmsg(4096, room)
        told, fds = data.decode(), array.array("i")
        for _, _, packed in rights:
            fds.frombytes(packed)
        lines = dict(line.partition("=")[::2] for line in told.split("\n"))
        if "FDSTORE" in lines:
            self.store.setdefault(lines["FDNAME"], []).extend(fds)
        if "FDSTOREREMOVE" in lines:
            self._remove(lines["FDNAME"])
        return told

    def _remove(self, name: str) -> None:
        for fd in self.store.pop(name, ()):
            os.close(fd)
