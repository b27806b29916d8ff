"""
The page of the control interface in Chromium: by a port that leads to the control socket, as
``ssh -L 9180:…/control.sock`` makes one, and on TCP with a token.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.browser import DevTools, browsing, forwarded
from tests.integration.certificates import Authority
from tests.integration.programs import Proxy, run_proxy, socks_door
from tests.wire import clients, targets
from tests.wire.sockets import free_port
from tests.wire.targets import Target

TOKEN = "open sesame"
HOSTILE = '<img src=x onerror="document.title=1">'
REVERSED = "gpj\u202eexe"
USERS = {"alice": "wonderland", HOSTILE: "x", REVERSED: "y"}
ROWS = "[...document.querySelectorAll('#connections tbody tr')]"


@pytest.fixture(scope="module")
def chromium() -> Iterator[DevTools]:
    with browsing() as page:
        yield page


@pytest.fixture
def page(chromium: DevTools) -> Iterator[DevTools]:
    chromium.resize(1200, 900)
    chromium.errors.clear()
    yield chromium
    chromium.visit("about:blank")


@pytest.fixture
def node() -> Iterator[Proxy]:
    config = {
        "listeners": {"socks": socks_door()},
        "proxy": {"users_file": "users"},
        "control": {"listen_addr": f"127.0.0.1:{free_port()}", "token": TOKEN},
    }
    node = Proxy(config)
    users = Path(node.directory, "users")
    users.write_text("".join(f"{name}:{password}\n" for name, password in USERS.items()), "utf-8")
    users.chmod(0o600)
    with node:
        yield node


@pytest.fixture
def address(node: Proxy) -> Iterator[str]:
    with forwarded(node.control_socket) as address:
        yield address


@pytest.fixture
def tunnels(node: Proxy) -> Iterator[dict[str, clients.Tunnel]]:
    """Connect each user."""
    with Target(targets.echo) as target, contextlib.ExitStack() as stack:
        tunnels: dict[str, clients.Tunnel] = {}
        for name, password in USERS.items():
            tunnel = clients.socks5(node.door("socks"), "localhost", target.port, (name, password))
            stack.callback(tunnel.sock.close)
            tunnels[name] = tunnel
        yield tunnels


def ctl(node: Proxy, *words: str) -> None:
    assert run_proxy("ctl", "-c", str(node.config_path), *words).returncode == 0


def test_connections_are_seen_and_ended_without_a_mouse(
    page: DevTools, address: str, tunnels: dict[str, clients.Tunnel]
) -> None:
    page.visit(address)
    page.wait_for(f"!document.getElementById('all').hidden && {ROWS}.length === 3")
    text = page.run("document.getElementById('connections').innerText")
    assert HOSTILE in text  # as text
    assert "gpj\\u{202e}exe" in text
    assert page.run("document.querySelectorAll('img').length") == 0

    page.run("document.getElementById('filter').focus()")
    page.call("Input.insertText", text="alice")
    page.wait_for(f"{ROWS}.filter(row => !row.classList.contains('gone')).length === 1")
    page.wait_for("document.getElementById('count').innerText.startsWith('1 of 1 that match, 3 in all')")
    page.wait_for(f"{ROWS}.length === 1")
    # By Tab from the filter through the heads, by which one sorts, to the button of the only row.
    for _ in range(20):
        page.press("Tab")
        if page.run("document.activeElement.innerText") == "End":
            break
    assert page.run("document.activeElement.getAttribute('aria-label')").startswith("End connection ")
    page.press("Enter")
    page.wait_for("document.getElementById('ask').open")
    assert "alice" in page.run("document.getElementById('question').innerText")
    page.press("Escape")
    page.wait_for("!document.getElementById('ask').open")
    tunnels["alice"].sendall(b"still there")
    assert tunnels["alice"].recv(5) == b"still"
    page.run("document.activeElement.click()")
    page.wait_for("document.getElementById('ask').open")
    page.run("document.getElementById('yes').focus()")
    page.press("Enter")
    page.wait_for("/connection .* is ended/.test(document.getElementById('said').innerText)")
    tunnels["alice"].recv(6)
    with contextlib.suppress(ConnectionResetError):
        assert tunnels["alice"].recv(1) == b""
    # What the policy stops, and what fails in the script, would stand here.
    assert page.errors == []


def test_they_are_sorted_by_their_heads(
    page: DevTools, address: str, tunnels: dict[str, clients.Tunnel]
) -> None:
    page.visit(address)
    page.wait_for(f"!document.getElementById('all').hidden && {ROWS}.length === 3")
    head = "document.querySelector('#connections th[data-by=user]')"
    users = f"{ROWS}.map(row => row.cells[1].innerText)"
    for order in ("ascending", "descending"):
        page.run(f"{head}.firstChild.click()")
        page.wait_for(f"{head}.getAttribute('aria-sort') === '{order}'")
        names = sorted((HOSTILE, "alice", "gpj\\u{202e}exe"), reverse=order == "descending")
        page.wait_for(f"JSON.stringify({users}) === JSON.stringify({json.dumps(names)})")


def test_a_version_is_compared_and_gone_back_to(page: DevTools, node: Proxy, address: str) -> None:
    ctl(node, "set", "listeners.socks.max_connections", "77")
    page.visit(address)
    page.wait_for("document.querySelectorAll('#versions tbody tr').length === 2")
    old = "document.querySelectorAll('#versions tbody tr')[1]"
    page.run(f"{old}.querySelectorAll('button')[0].click()")
    page.wait_for("document.getElementById('ask').open")
    assert "max_connections = 77" in page.run("document.getElementById('text').innerText")
    page.run("document.getElementById('no').click()")
    page.run(f"{old}.querySelectorAll('button')[1].click()")
    page.wait_for("document.getElementById('question').innerText.startsWith('Roll back to version 1')")
    page.run("document.getElementById('yes').click()")
    page.wait_for("document.getElementById('said').innerText.startsWith('applied: version 3')")
    page.wait_for("document.querySelectorAll('#versions tbody tr').length === 3")
    assert "max_connections" not in node.config_path.read_text()
    assert page.errors == []


def test_a_server_that_is_started_anew_is_looked_at_again(page: DevTools, node: Proxy, address: str) -> None:
    page.visit(address)
    page.wait_for("document.getElementById('restart').innerText.startsWith('Safe to restart: yes')")
    page.run("document.getElementById('filter').value = 'al'")
    node.stop()
    page.wait_for("document.getElementById('trouble').innerText.startsWith('The server does not answer')")
    assert page.run("document.getElementById('listeners').innerText.includes('socks5')")
    node.start()
    page.wait_for("document.getElementById('said').innerText === 'the server was restarted'")
    page.wait_for("document.getElementById('trouble').innerText === ''")
    assert page.run("document.getElementById('filter').value") == "al"


def test_a_certificate_that_ends_soon_is_told(
    page: DevTools, node: Proxy, address: str, authority: Authority
) -> None:
    """As `ctl status` tells it."""
    page.visit(address)
    page.wait_for("!document.getElementById('all').hidden")
    told = "document.getElementById('certificates').innerText"
    assert page.run(told) == ""
    for name, is_over in (("soon", False), ("over", True)):
        made = authority.issue(name, "localhost", expired=is_over)
        listener = {"protocol": "mixed", "listen_addr": f"127.0.0.1:{free_port()}", **made.settings}
        words = [word for key, value in listener.items() for word in (f"listeners.{name}.{key}", value)]
        ctl(node, "set", *words)
    # Two days from when it was made; and until 2020-01-02, as the authority says of those that are over.
    page.wait_for(f"/the certificate of soon expires in (2 d|1 d \\d+ h): /.test({told})")
    page.wait_for(f"/the certificate of over has expired, \\d+ d( \\d+ h)? ago: .*20/.test({told})")
    assert page.errors == []


def test_the_token_is_typed_in_and_stands_in_no_address(page: DevTools, node: Proxy) -> None:
    page.visit(f"http://{node.config['control']['listen_addr']}/")
    page.wait_for("!document.getElementById('login').hidden")
    assert "authentication failed" not in node.log  # nothing was asked without it
    for token in ("gueß", TOKEN):
        page.run("document.getElementById('token').focus()")
        page.call("Input.insertText", text=token)
        page.press("Enter")
        if token != TOKEN:
            page.wait_for("document.getElementById('trouble').innerText === 'The token is not right.'")
    page.wait_for("document.getElementById('listeners').innerText.includes('socks5')")
    assert node.log.count("authentication failed") == 1  # nobody guesses on
    assert page.run("location.pathname + location.search + location.hash") == "/"
    page.visit(page.run("location.href"))
    page.wait_for("document.getElementById('listeners').innerText.includes('socks5')")
    page.run("sessionStorage.clear()")


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(
    page: DevTools, address: str, tunnels: dict[str, clients.Tunnel], is_dark: bool
) -> None:
    page.resize(360, 740, is_dark=is_dark)
    page.visit(address)
    page.wait_for(f"!document.getElementById('all').hidden && {ROWS}.length === 3")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    # WCAG 2, 1.4.3: 4.5 to 1 for text.
    assert page.run(CONTRAST) >= 4.5
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    named = ("button", "searchbox", "table", "textbox", "image", "region")
    found = [each for each in tree if each.get("role", {}).get("value") in named and not each["ignored"]]
    assert {each["role"]["value"] for each in found} >= {"button", "searchbox", "table", "image", "region"}
    assert [each for each in found if not each["name"]["value"]] == []


# The lowest contrast of the text of the page with what is behind it.
CONTRAST = """
Math.min(...[...document.querySelectorAll("p, th, td, button, b, span")].map(element => {
  const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(each => {
    const part = each / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const light = ([red, green, blue]) => 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  const front = light(rgb(getComputedStyle(element).color));
  const back = light(rgb(getComputedStyle(document.querySelector("section")).backgroundColor));
  return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
}))
"""


def test_a_page_of_another_origin_changes_nothing(page: DevTools, node: Proxy, address: str) -> None:
    """It can send what needs no leave: a form, or a request that reads nothing."""
    ctl(node, "set", "listeners.socks.max_connections", "77")
    answer = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello"
    with targets.Scripted(answer) as attacker:
        page.visit(f"http://localhost:{attacker.port}/")
        for method, mode in (("POST", "no-cors"), ("POST", "cors"), ("DELETE", "cors"), ("GET", "cors")):
            target = f"{address}rollback" if method == "POST" else f"{address}connections/1"
            options = f"{{method: '{method}', mode: '{mode}'}}"
            said = page.run(f"fetch('{target}', {options}).then(answer => answer.type, () => 'failed')")
            assert said in ("opaque", "failed")
        page.run(
            "const form = document.createElement('form'); form.method = 'post';"
            f"form.action = '{address}rollback'; document.body.append(form); form.submit()"
        )
        page.wait_for("document.body.innerText.includes('a page of another origin')")
    assert "max_connections = 77" in node.config_path.read_text()
