"""
Chromium without a window, at a mixed listener: by every protocol that a browser can be told of.

It asks the proxy without a login first. Whoever sits before a browser is asked for one then; here the
DevTools protocol answers.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

from tests.integration import peers
from tests.integration.certificates import Certificate
from tests.integration.programs import Program, Proxy, clean_environment, mixed_door
from tests.integration.test_mixed_clients import at, serving
from tests.wire.waits import wait_until

PAGE = "<p>it came through</p>"
USERS = {"alice": "wonder@land"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, good: Certificate) -> Iterator[dict[str, str]]:
    """Serve a page, in the clear and over TLS."""
    directory = tmp_path_factory.mktemp("site")
    (directory / "page.html").write_text(f"<!doctype html>{PAGE}")
    with serving(directory, []) as http, serving(directory, [], good) as https:
        yield {"http": f"{http}/page.html", "https": f"{https}/page.html"}


@pytest.fixture(scope="module")
def node(good: Certificate) -> Iterator[Proxy]:
    doors = {
        "plain": mixed_door(auth="none"),
        "secure": mixed_door(auth="none", **good.settings),
        "login": mixed_door(**good.settings),
    }
    with Proxy({"listeners": doors, "auth_users": USERS}) as node:
        yield node
        assert "internal error" not in node.log


def browser(proxy: str, home: Path, *more: str) -> list[str]:
    """Write the command that runs it with a proxy, and without all that it does of its own accord."""
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
        "proxy-bypass-list=<-loopback>",  # else it would go directly to this machine
        f"proxy-server={proxy}",
        f"user-data-dir={home}",
    ]
    return [peers.find("chromium"), *(f"--{switch}" for switch in switches), *more]


def lines_of(node: Proxy, listener: str) -> list[str]:
    """Give the lines of the access log of a listener."""
    return [line for line in node.log.splitlines() if f" listener={listener} " in line]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("spoken", "door"), [("http", "plain"), ("https", "secure"), ("socks5", "plain")])
def test_it_fetches_a_page(
    node: Proxy, site: dict[str, str], tmp_path: Path, spoken: str, door: str, scheme: str
) -> None:
    """The node says that it was asked: a browser may well know a way of its own."""
    before = len(lines_of(node, door))
    command = browser(at(node.door(door), spoken), tmp_path, "--dump-dom", site[scheme])
    done = subprocess.run(command, capture_output=True, timeout=50, env=clean_environment(tmp_path))
    assert PAGE.encode() in done.stdout, done.stderr.decode(errors="replace")[-2000:]
    port = site[scheme].split(":")[2].partition("/")[0]
    wait_until(
        lambda: any(f"target=localhost:{port} " in line for line in lines_of(node, door)[before:]),
        "the line in the access log",
    )


class DevTools:
    """A page of a running browser, which is told what to do and tells what happens."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=30, suppress_origin=True)
        self._number = 0
        self._session: dict[str, str] = {}
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
        return message

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Tell it something, and give its answer."""
        number = self.send(method, **parameters)
        while (message := self.hear()).get("id") != number:
            pass
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

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def test_it_logs_in_when_it_is_asked(node: Proxy, site: dict[str, str], tmp_path: Path) -> None:
    """At an HTTPS proxy, which remembers nobody: the browser does. To be asked is no failed login."""
    home = tmp_path / "profile"
    command = browser(at(node.door("login"), "https"), home, "--remote-debugging-port=0", "about:blank")
    with Program(command) as program:
        told = home / "DevToolsActivePort"
        wait_until(lambda: told.exists() and len(told.read_text().splitlines()) == 2, f"{program} to listen")
        port, path = told.read_text().splitlines()
        page = DevTools(f"ws://127.0.0.1:{port}{path}")
        try:
            assert page.open(site["https"], "alice", USERS["alice"]) == 1
            text = page.call("Runtime.evaluate", expression="document.body.innerText")
            assert text["result"]["value"].strip() == "it came through"
            assert page.open(site["http"], "alice", USERS["alice"]) <= 1
        finally:
            page.close()
    wait_until(lambda: sum(" user=alice " in line for line in lines_of(node, "login")) >= 2, "its lines")
    assert "authentication failed" not in node.log
    assert 'end="refused: a login is needed"' in node.log
