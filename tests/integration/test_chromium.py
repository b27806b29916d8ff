"""
Chromium without a window, at a mixed listener: by every protocol that a browser can be told of.

It asks the proxy without a login first. Whoever sits before a browser is asked for one then; here the
DevTools protocol answers.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.browser import command_of, connect_to
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
    """Write the command that runs it with a proxy."""
    # Without the second switch it would go directly to this machine.
    return command_of(home, f"--proxy-server={proxy}", "--proxy-bypass-list=<-loopback>", *more)


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


def test_it_logs_in_when_it_is_asked(node: Proxy, site: dict[str, str], tmp_path: Path) -> None:
    """At an HTTPS proxy, which remembers nobody: the browser does. To be asked is no failed login."""
    home = tmp_path / "profile"
    command = browser(at(node.door("login"), "https"), home, "--remote-debugging-port=0", "about:blank")
    with Program(command) as program:
        page = connect_to(program, home)
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
