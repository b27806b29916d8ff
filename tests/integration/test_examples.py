"""The files in conf/examples, as people start from them: what has to be changed is changed, and they run."""

import re
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.certificates import Authority, Certificate
from tests.integration.programs import REPOSITORY, Proxy, mixed_door, run_proxy
from tests.wire import clients, targets
from tests.wire.clients import Tunnel
from tests.wire.sockets import connect, free_port, read_exact, read_rest
from tests.wire.socks5 import GREETING
from tests.wire.targets import Target

EXAMPLES = REPOSITORY / "conf" / "examples"
NAMES = sorted(path.name for path in EXAMPLES.iterdir())
LOGIN = ("alice", "wonderland")
USERS = {"# alice = scrypt$14$8$1$...": "alice = wonderland"}
PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Example(Proxy):
    """A program that runs from an example, with other values where it says that they are to be changed."""

    def __init__(self, name: str, changes: dict[str, str], **environment: str) -> None:
        super().__init__({"listeners": {}}, environment=environment)
        text = (EXAMPLES / name).read_text("utf-8")
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        self.config_path.write_text(text)
        # For those who wait for it to listen, or come to it.
        found = re.findall(r"^\[\[(\w+)]].*?^listen_addr *= (\S+)", text, re.MULTILINE | re.DOTALL)
        self.config = {"listeners": {listener: {"listen_addr": where} for listener, where in found}}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pxt-") as name:
        yield Path(name)


@pytest.fixture
def certificate(folder: Path) -> Certificate:
    return Authority(folder).self_signed("gateway", "localhost", "subjectAltName=DNS:localhost")


def gateway(certificate: Certificate) -> Example:
    """Make a gateway of the example for one."""
    return Example(
        "gateway-with-tls.ini",
        {
            ":443": f"127.0.0.1:{free_port()}",
            "/etc/letsencrypt/live/gateway.example.com/fullchain.pem": str(certificate.cert),
            "/etc/letsencrypt/live/gateway.example.com/privkey.pem": str(certificate.key),
            **USERS,
        },
    )


def assert_carries(tunnel: Tunnel) -> None:
    with closing(tunnel):
        tunnel.sendall(b"hello")
        assert read_exact(tunnel, 5) == b"hello"


def url(node: Proxy) -> str:
    return f"wss://localhost:{node.door('web')[1]}/tunnel"


def is_a_hint(line: str) -> bool:
    return "warning: " in line or "note: " in line


@pytest.mark.parametrize("name", NAMES)
def test_each_is_checked_as_it_is_and_says_what_is_missing(name: str) -> None:
    """Nobody runs a gateway with a password that stands in an example."""
    done = run_proxy("-c", str(EXAMPLES / name), "-check")
    said = [line.partition(": ")[2] for line in done.stderr.decode().splitlines() if not is_a_hint(line)]
    missing = {
        "container.ini": ["[listeners.mixed] auth"],
        "gateway-behind-nginx.ini": ["[listeners.web] auth"],
        "gateway-with-tls.ini": [
            "[listeners.web] auth",
            "[listeners.web] tls_cert",
            "[listeners.web] tls_key",
        ],
    }
    assert [line.partition(": ")[0] for line in said] == missing.get(name, [])
    assert done.returncode == (2 if name in missing else 0)


@pytest.mark.parametrize("name", NAMES)
def test_each_marks_what_is_to_be_changed(name: str) -> None:
    """All that is somebody's own stands below a mark: a name, a password, a path, a network."""
    lines = (EXAMPLES / name).read_text("utf-8").splitlines()
    is_marked = False
    for line in lines:
        is_marked = "<<<" in line or (is_marked and bool(line) and not line.startswith("["))
        own = re.search(r"example\.|alice|wonderland|/run/|/tunnel|192\.168", line)
        assert is_marked or not own or line.startswith("#"), line


def test_the_gateway_behind_nginx_serves(folder: Path, echo: Target) -> None:
    node = Example("gateway-behind-nginx.ini", {"/run/proxy-server/web.sock": f"{folder}/web.sock", **USERS})
    with node:
        assert_carries(clients.websocket(node.door("web"), "127.0.0.1", echo.port, LOGIN, path="/tunnel"))
        with pytest.raises(clients.HttpRefused) as refused:
            clients.websocket(node.door("web"), "127.0.0.1", echo.port, path="/tunnel")
        assert refused.value.status == 401
        assert "open proxy" not in node.log


def test_the_gateway_with_its_own_certificate_serves(certificate: Certificate, echo: Target) -> None:
    tls = ssl.create_default_context(cafile=str(certificate.cert))
    with gateway(certificate) as node:
        door = node.door("web")
        assert_carries(clients.websocket(door, "127.0.0.1", echo.port, LOGIN, path="/tunnel", tls=tls))


def test_a_laptop_comes_through_the_proxy_of_its_network(certificate: Certificate, echo: Target) -> None:
    with Proxy({"listeners": {"corporate": mixed_door()}}) as corporate, gateway(certificate) as outside:
        laptop = Example(
            "behind-a-corporate-proxy.ini",
            {
                "127.0.0.1:1080": f"127.0.0.1:{free_port()}",
                "wss://gateway.example.com/tunnel": url(outside),
                "proxy.corp.example:3128": f"127.0.0.1:{corporate.door('corporate')[1]}",
            },
            SSL_CERT_FILE=str(certificate.cert),
        )
        laptop.config_path.chmod(0o600)
        with laptop:
            assert_carries(clients.socks5(laptop.door("laptop"), "127.0.0.1", echo.port))
            outside.wait_for_log("user=alice client=127.0.0.1:")
            corporate.wait_for_log(f"target=localhost:{outside.door('web')[1]}")


def test_the_second_gateway_serves_when_the_first_is_gone(certificate: Certificate, echo: Target) -> None:
    with gateway(certificate) as first, gateway(certificate) as second:
        home = Example(
            "two-gateways.ini",
            {
                "127.0.0.1:1080": f"127.0.0.1:{free_port()}",
                "wss://gateway.example.com/tunnel": url(first),
                "wss://gateway.example.net/tunnel": url(second),
            },
            SSL_CERT_FILE=str(certificate.cert),
        )
        home.config_path.chmod(0o600)
        with home:
            assert_carries(clients.socks5(home.door("home"), "127.0.0.1", echo.port))
            home.wait_for_log("upstream=first")
            first.kill()
            assert_carries(clients.socks5(home.door("home"), "127.0.0.1", echo.port))
            home.wait_for_log("upstream=second")


def test_the_port_for_the_lan_is_for_the_lan_alone() -> None:
    port = free_port()
    with (
        targets.Scripted(PAGE) as page,
        Example("lan.ini", {":3128": f"127.0.0.1:{port}", "192.168.0.0/16": "127.0.0.0/24"}) as node,
    ):
        with connect(node.door("lan")) as client:
            client.sendall(b"GET http://localhost:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % page.port)
            assert read_rest(client)[0].endswith(b"hello")
        with connect(node.door("lan"), source="127.0.1.1") as stranger:
            stranger.sendall(GREETING)
            assert read_rest(stranger)[0] == b""
        node.wait_for_log("is not among the clients of this listener")


def test_a_port_for_some_networks_is_no_open_proxy() -> None:
    """With its own address: the kernel has it, and nobody is asked to come."""
    with Example("lan.ini", {":3128": f":{free_port()}"}) as node:
        node.wait_for_log("lan listens on")
        assert "open proxy" not in node.log
