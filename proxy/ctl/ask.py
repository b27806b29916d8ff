"""
Ask a server through its control socket.
"""

import http.client
import json
import os
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

from gevent import socket

from proxy.trust import Trust

SOCKET_NAME = "control.sock"  # in state_dir
CONFIG_HEADER = "X-Proxy-Config"  # the file with which the server runs that is meant

NOTHING_HERE = "there is nothing here"  # what a server says that knows no such path
UNKNOWN = "the server does not know what it is asked for: is it of another version?"
NOT_UNDERSTOOD = "the server's answer cannot be understood: is it of another version?"

_MOST = 64 << 20  # bytes of an answer
_PATIENCE = 2.0  # seconds for another server to say that it is there


class CtlError(Exception):
    """What the user is told, in one line."""


class _Connection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("localhost", timeout=patience)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(
    path: Path, method: str, target: str, content: object = None, *, patience: float, config: str = ""
) -> tuple[int, str]:
    """
    Ask the server whose socket has this path, and return the status and the body of its answer.

    If a ``config`` is named, a server that runs with another one answers 421. Raises ``OSError`` where
    none answers to the end, and ``http.client.HTTPException`` for what is no HTTP.
    """
    connection = _Connection(path, patience)
    # As bytes: a path need not be UTF-8.
    headers = {CONFIG_HEADER: quote(os.fsencode(os.path.abspath(config)))} if config else {}
    try:
        connection.request(method, target, None if content is None else json.dumps(content), headers)
        answer = connection.getresponse()
        body = answer.read(_MOST + 1)
        if len(body) > _MOST:
            raise http.client.HTTPException("the answer is too long")
        if answer.length:
            raise ConnectionError("its answer broke off")
        return answer.status, body.decode("utf-8", "replace")
    finally:
        connection.close()


def why_not_ours(folder: Path, trust: Trust) -> str:
    """Say why a folder is not for us to use as ours; nothing if it is."""
    reason = trust.why_not(folder)
    if not reason and is_taken(folder):
        reason = f"{folder} is the state_dir of another server, which runs"
    return reason


def is_taken(state_dir: Path) -> bool:
    """Tell whether a running server, which is not about to stop, has this folder as its own."""
    status, text = ask_health(state_dir)
    # One that drains makes room for its successor; one that only waits for an address does not.
    return bool(status) and (status != HTTPStatus.SERVICE_UNAVAILABLE or '"draining"' not in text)


def ask_health(state_dir: Path, config: str = "") -> tuple[int, str]:
    """Ask the server that has this folder how it is; the status is 0 if there is none."""
    try:
        return ask(state_dir / SOCKET_NAME, "GET", "/healthz", patience=_PATIENCE, config=config)
    except TimeoutError:
        return HTTPStatus.OK, ""  # it has no time for us, but it is there
    except (OSError, http.client.HTTPException):
        return 0, ""
