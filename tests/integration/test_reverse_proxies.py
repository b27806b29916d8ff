"""
What docs/reverse-proxies.md says of other servers, done by them.

Each snippet is taken from the document, with other places in it, and run by the program that it is for.
"""

import re
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from tests.integration import peers
from tests.integration.certificates import Authority, Certificate
from tests.integration.programs import REPOSITORY, Proxy
from tests.test_docs import fences
from tests.wire import clients
from tests.wire.sockets import Door, connect, free_port, read_exact
from tests.wire.socks5 import GREETING, to_ip
from tests.wire.targets import Target
from tests.wire.websocket import Peer, upgrade

DOCUMENT = REPOSITORY / "docs" / "reverse-proxies.md"
SERVERS = ("nginx", "haproxy", "caddy", "apache")
LANGUAGE = {"caddy": "caddyfile"}
STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
CLIENT = "127.0.0.77"
WEB, SOCKS = "/run/proxy-server/web.sock", "/run/proxy-server/socks.sock"
LOGIN = {"X_Proxy_Username": "alice", "X_Proxy_Password": "wonderland"}

Front = Callable[[int, str], AbstractContextManager[Door]]


def snippets(language: str) -> list[str]:
    return [fence.text for fence in fences(DOCUMENT) if fence.language == language]


def with_names(text: str, names: dict[str, str]) -> str:
    """Put other places into a snippet; each has to stand there."""
    for old, new in names.items():
        assert old in text, f"{old!r} is not in the snippet:\n{text}"
        text = text.replace(old, new)
    return text


def forms(server: str) -> tuple[str, str]:
    """Give the line that leads to the listener at a Unix socket, and the one that leads there by TCP."""
    found = re.search(rf"^- {server}: `(.+)` or `(.+)`$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert found
    return found[1], found[2]


def snippet(server: str, where: str) -> str:
    """Give the snippet of a server, with the line that leads to the listener as it is to be."""
    text = snippets(LANGUAGE.get(server, server))[0]
    unix, tcp = forms(server)
    (there,) = [form for form in (unix, tcp) if form in text]
    return text.replace(there, unix if where == "unix" else tcp)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pxt-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def certificate(folder: Path) -> Certificate:
    made = Authority(folder).self_signed("gateway", "localhost", "subjectAltName=DNS:localhost")
    (folder / "both.pem").write_bytes(made.cert.read_bytes() + made.key.read_bytes())
    return made


def gateway(text: str, names: dict[str, str], users: str = "[auth_users]\nalice = wonderland\n") -> Proxy:
    """Make the program that runs from a configuration of the document."""
    node = Proxy({"listeners": {}})
    text = with_names(text, names)
    text = text if "[proxy]" in text else f"[proxy]\nguard = off\n{text}"  # the targets are on this machine
    node.config_path.write_text(text + users)
    # For those who wait for it to listen.
    address = re.findall(r"^\[\[(\w+)]].*?^listen_addr *= (\S+)$", text, re.MULTILINE | re.DOTALL)
    node.config = {"listeners": {name: {"listen_addr": where} for name, where in address}}
    return node


def front_of(server: str, text: str, port: int, certificate: Certificate) -> AbstractContextManager[Door]:
    """Run a snippet on a port, with a certificate, by the server that it is for."""
    run: dict[str, Front] = {
        "nginx": peers.nginx_with,
        "haproxy": peers.haproxy_with,
        "caddy": peers.caddy_with,
        "apache": peers.apache_with,
    }
    files = {"/etc/ssl/gateway.crt": str(certificate.cert), "/etc/ssl/gateway.key": str(certificate.key)}
    tls = f"\n\ttls {certificate.cert} {certificate.key}\n\tbind 127.0.0.1"
    names = {
        "nginx": {"443": f"127.0.0.1:{port}", **files},
        "haproxy": {
            ":443": f"127.0.0.1:{port}",
            "/etc/ssl/gateway.pem": str(certificate.cert.parent / "both.pem"),
        },
        "caddy": {"gateway.example.com {": f"https://localhost:{port} {{{tls}"},
        "apache": {"*:443": f"127.0.0.1:{port}", **files},
    }
    return run[server](port, with_names(text, names[server]))


def ask(front: Door, certificate: Certificate, port: int, headers: dict[str, str]) -> Peer:
    """Ask for a tunnel by TLS, as a client that tells lies of its address."""
    context = ssl.create_default_context(cafile=str(certificate.cert))
    sock = connect(front, source=CLIENT)
    peer = Peer(context.wrap_socket(sock, server_hostname="localhost"))
    headers = {"X_Forwarded_For": "192.0.2.66", "Host": "localhost", **headers}
    peer.write(upgrade(port, line="GET /tunnel HTTP/1.1", without="", **headers))
    return peer


@pytest.mark.parametrize("where", ["unix", "tcp"])
@pytest.mark.parametrize("server", SERVERS)
def test_a_tunnel_goes_through_it_and_the_log_has_the_client(
    server: str, where: str, folder: Path, certificate: Certificate, echo: Target
) -> None:
    """In the access log, and in the line for fail2ban; and what the client says of itself counts nothing."""
    port, door = free_port(), free_port()
    listener = snippets("ini")[0 if where == "unix" else 1]
    # The server may have become another user.
    place = {WEB: f"{folder}/web.sock"} if where == "unix" else {"127.0.0.1:8080": f"127.0.0.1:{door}"}
    mode = {"0660": "0666"} if where == "unix" else {}
    text = with_names(snippet(server, where), place)
    with (
        gateway(listener, {**place, **mode}) as node,
        front_of(server, text, port, certificate) as front,
        ask(front, certificate, echo.port, LOGIN) as peer,
    ):
        status, headers = peer.read_head()
        assert status.split()[1] == "101"
        with closing(clients.WebTunnel(peer, headers)) as tunnel:
            tunnel.sendall(b"hello")
            assert read_exact(tunnel, 5) == b"hello"
        line = node.wait_for_log(f" target=127.0.0.1:{echo.port} ")
        assert f" client={CLIENT}:0 " in line

        with ask(front, certificate, echo.port, LOGIN | {"X_Proxy_Password": "guess"}) as stranger:
            assert stranger.read_head()[0].split()[1] == "401"
        node.wait_for_log(f"authentication failed: client={CLIENT} user=alice listener=web")


def test_haproxy_may_tell_by_the_proxy_protocol_instead(
    folder: Path, certificate: Certificate, echo: Target
) -> None:
    """As the document says below its snippet: then the port is known, too."""
    port = free_port()
    place = {WEB: f"{folder}/web.sock"}
    text = snippet("haproxy", "unix")
    text = with_names(text, {**place, "    option forwardfor\n": ""}).rstrip() + " send-proxy-v2\n"
    listener = snippets("ini")[0]
    with (
        gateway(listener, {**place, "x_forwarded_for": "proxy_protocol"}, users="") as node,
        front_of("haproxy", text, port, certificate) as front,
        ask(front, certificate, echo.port, {}) as peer,
    ):
        assert peer.read_head()[0].split()[1] == "101"
        source = peer.sock.getsockname()[1]
        peer.sock.close()
        node.wait_for_log(f" client={CLIENT}:{source} listener=web ")


@pytest.mark.parametrize("server", ["haproxy", "nginx"])
def test_socks5_goes_through_a_balancer_and_the_log_has_the_client(
    server: str, folder: Path, echo: Target
) -> None:
    port = free_port()
    (listener,) = [text for text in snippets("ini") if "proxy_protocol" in text]
    text = with_names(snippets(server)[1], {SOCKS: f"{folder}/socks.sock"})
    if server == "haproxy":
        front = peers.haproxy_with(port, with_names(text, {":1080": f"127.0.0.1:{port}"}))
    else:
        peers.require(STREAM.exists(), "nginx has no stream module (Debian package libnginx-mod-stream)")
        text = with_names(text, {"listen 1080": f"listen 127.0.0.1:{port}"})
        front = peers.nginx_with(port, stream=text, modules=f"load_module {STREAM};")
    with gateway(listener, {SOCKS: f"{folder}/socks.sock"}, users="") as node, front as door:
        with connect(door, source=CLIENT) as client:
            client.sendall(GREETING + to_ip("127.0.0.1", echo.port) + b"hello")
            read_exact(client, 12)
            assert read_exact(client, 5) == b"hello"
            source = client.getsockname()[1]
        node.wait_for_log(f" client={CLIENT}:{source} listener=socks ")


def test_what_is_said_of_cloudflare_is_a_configuration(folder: Path, certificate: Certificate) -> None:
    """More cannot be tested, and the document says so."""
    assert "**Untested here**" in DOCUMENT.read_text("utf-8")
    (text,) = [text for text in snippets("ini") if "173.245" in text]
    names = {
        "/etc/ssl/gateway.crt": str(certificate.cert),
        "/etc/ssl/gateway.key": str(certificate.key),
        ":443": f"127.0.0.1:{free_port()}",
    }
    with gateway(text, names) as node:
        node.wait_for_log("web listens on")
