"""
Chromium without a window, by its DevTools protocol: it is told what to do, and tells what happens.
"""

import base64
import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import websocket

from tests.integration import peers
from tests.integration.programs import Program
from tests.wire.targets import Target
from tests.wire.waits import wait_until


def command_of(home: Path, *more: str) -> list[str]:
    """Write the command that runs it, without all that it does of its own accord."""
    switches = [
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-quic",
        "disable-sync",
        "disable-background-networking",
        "disable-component-update",
        "no-first-run",
        "ignore-certificate-errors",  # the authority is the tests' own; curl is who checks certificates
        f"user-data-dir={home}",
    ]
    return [peers.find("chromium"), *(f"--{switch}" for switch in switches), *more]


class DevTools:
    """A page of a running browser."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=30, suppress_origin=True)
        self._number = 0
        self._session: dict[str, str] = {}
        self.errors: list[str] = []  # that the page had, or wrote to its console
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session["sessionId"] = self.call("Target.attachToTarget", targetId=page, flatten=True)[
            "sessionId"
        ]

    def send(self, method: str, **parameters: Any) -> int:
        """Tell it something."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters, **self._session}
        self._socket.send(json.dumps(command))
        return self._number

    def hear(self) -> dict[str, Any]:
        """Give what it tells next."""
        message: dict[str, Any] = json.loads(self._socket.recv())
        if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.errors.append(json.dumps(message["params"]))
        return message

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Tell it something, and give its answer."""
        number = self.send(method, **parameters)
        while (message := self.hear()).get("id") != number:
            pass
        assert "result" in message, message
        result: dict[str, Any] = message["result"]
        return result

    def open(self, url: str, username: str, password: str) -> int:
        """Open a page, log in at the proxy when it asks, and tell how often it did."""
        asked = 0
        self.call("Page.enable")
        self.call("Fetch.enable", handleAuthRequests=True)
        self.send("Page.navigate", url=url)
        while (message := self.hear()).get("method") != "Page.loadEventFired":
            request = message.get("params", {}).get("requestId")
            if message.get("method") == "Fetch.requestPaused":
                self.send("Fetch.continueRequest", requestId=request)
            elif message.get("method") == "Fetch.authRequired":
                assert message["params"]["authChallenge"]["source"] == "Proxy"
                asked += 1
                login = {"response": "ProvideCredentials", "username": username, "password": password}
                self.send("Fetch.continueWithAuth", requestId=request, authChallengeResponse=login)
        return asked

    def visit(self, url: str) -> None:
        """Open a page, and note from now on what goes wrong in it."""
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # keys go where the focus is
        self.send("Page.navigate", url=url)
        while self.hear().get("method") != "Page.loadEventFired":
            pass

    def run(self, expression: str) -> Any:
        """Give what an expression of JavaScript comes to, and what a promise does."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Wait until an expression is true."""
        what = f"{expression} in:\n"
        return wait_until(
            lambda: self.run(expression), lambda: what + self.run("document.body.innerText"), 30
        )

    def press(self, *keys: str) -> None:
        """Press keys, as somebody without a mouse does."""
        for key in keys:
            about: dict[str, Any] = {"key": key, "code": key}
            if key == "Enter":
                about |= {"text": "\r", "windowsVirtualKeyCode": 13}
            elif key == "Tab":
                about |= {"windowsVirtualKeyCode": 9}
            elif key == "Escape":
                about |= {"windowsVirtualKeyCode": 27}
            self.call("Input.dispatchKeyEvent", type="keyDown", **about)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def resize(self, width: int, height: int, *, is_dark: bool = False) -> None:
        """Give the page another size, as on a phone, and light or dark colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> bytes:
        """Take a picture, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def connect_to(program: Program, home: Path) -> DevTools:
    """Connect to a browser that was started with ``--remote-debugging-port=0``."""
    told = home / "DevToolsActivePort"
    wait_until(lambda: told.exists() and len(told.read_text().splitlines()) == 2, f"{program} to listen")
    port, path = told.read_text().splitlines()
    return DevTools(f"ws://127.0.0.1:{port}{path}")


@contextmanager
def browsing() -> Iterator[DevTools]:
    """Run a browser, and give a page of it."""
    with tempfile.TemporaryDirectory(prefix="pxt-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        with Program(command_of(home, "--remote-debugging-port=0", "about:blank")) as program:
            page = connect_to(program, home)
            try:
                yield page
            finally:
                page.close()


@contextmanager
def forwarded(path: Path) -> Iterator[str]:
    """Forward a port to a control socket, as ``ssh -L`` does, and give its URL."""

    def forward(client: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(str(path))
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            _pump(server, client)

    with Target(forward) as target:
        yield f"http://localhost:{target.port}/"


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
