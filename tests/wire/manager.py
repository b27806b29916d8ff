"""A service manager, as far as a program sees it."""

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

    def hear(self) -> str:
        """Wait for what is said next, apart from signs of life; its first line."""
        while (told := self._sock.recv(4096).decode()) == "WATCHDOG=1":
            pass
        return told.partition("\n")[0]

    def feel(self) -> None:
        """Wait for a sign of life."""
        while self._sock.recv(4096) != b"WATCHDOG=1":
            pass
