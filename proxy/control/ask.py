"""
Ask a server through its control socket.
"""

import http.client
import json
from pathlib import Path

from gevent import socket

SOCKET_NAME = "control.sock"  # in state_dir


class _Connection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("localhost", timeout=patience)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, method: str, target: str, content: object = None, *, patience: float) -> tuple[int, str]:
    """
    Ask the server whose socket has this path, and return the status and the body of its answer.

    Raises ``OSError`` where none answers, and ``http.client.HTTPException`` for what is no HTTP.
    """
    connection = _Connection(path, patience)
    try:
        connection.request(method, target, None if content is None else json.dumps(content))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
