"""
Programs that people use, at a mixed listener: each as its manual says that it is told of a proxy.

What they fetch is served by Python's own HTTP server, in the clear and over TLS.
"""

import contextlib
import hashlib
import os
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration import peers
from tests.integration.certificates import Authority, Certificate
from tests.integration.programs import Proxy, clean_environment, mixed_door
from tests.wire.sockets import Door

PAGE = os.urandom(300_000)
DIGEST = hashlib.sha256(PAGE).hexdigest()
ALICE = "alice:wonder%40land"  # as it stands in a URL
USERS = {"alice": "wonder@land"}


class Handler(SimpleHTTPRequestHandler):
    """Serves files, and gives back what is sent; its connections stay open."""

    protocol_version = "HTTP/1.1"
    seen: list[str]

    def do_PUT(self) -> None:
        """Answer with the digest of what came, in whatever coding."""
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Remember the headers, among which none may be for the proxy."""
        self.seen += [name.lower() for name in self.headers]


@dataclass
class Site:
    """What there is to fetch, and from where."""

    http: str
    https: str
    authority: Authority


@contextlib.contextmanager
def serving(directory: Path, seen: list[str], certificate: Certificate | None = None) -> Iterator[str]:
    """Serve a directory, and give its address."""
    handler = type("Recording", (Handler,), {"seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(directory)))
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.cert, certificate.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if certificate else ''}://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, authority: Authority, good: Certificate) -> Iterator[Site]:
    directory, seen = tmp_path_factory.mktemp("site"), list[str]()
    (directory / "page").write_bytes(PAGE)
    # What comes by a tunnel is the client's own: wget sends a Proxy-Connection there too.
    with serving(directory, seen) as http, serving(directory, [], good) as https:
        yield Site(http, https, authority)
    assert not [name for name in seen if name.startswith(("proxy-", "x-proxy-"))]


@pytest.fixture(scope="module")
def node(good: Certificate) -> Iterator[Proxy]:
    """Run a node with a mixed listener for anybody, one for alice, and one that is an HTTPS proxy."""
    doors = {
        "open": mixed_door(auth="none"),
        "login": mixed_door(),
        "secure": mixed_door(**good.settings),
    }
    with Proxy({"listeners": doors, "auth_users": USERS}) as node:
        yield node
        assert "authentication failed" not in node.log
        assert "internal error" not in node.log


def run(
    program: str, *arguments: str, home: Path | str = "/nonexistent", **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    """Run a program with nothing of the developer's own."""
    command = [program, *arguments]
    settings = clean_environment(home, **environment)
    done = subprocess.run(command, capture_output=True, timeout=90, env=settings, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, (done.stderr, done.stdout)
    return done


def at(door: Door, scheme: str = "http", login: str = "") -> str:
    """Write a listener's URL."""
    return f"{scheme}://{login + '@' if login else ''}localhost:{door[1]}"


def curl(*arguments: str) -> str:
    """Run curl, and give the digest of what it fetched."""
    # Where it looks localhost up itself, there may be an IPv6 address too, on which the site does not listen.
    options = ["-sS", "-4", "--max-time", "30"]
    return hashlib.sha256(run(peers.find("curl"), *options, *arguments).stdout).hexdigest()


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("scheme", ["http", "socks4", "socks4a", "socks5", "socks5h"])
def test_curl_by_every_protocol(node: Proxy, site: Site, scheme: str, *, secure: bool) -> None:
    url = site.https if secure else site.http
    trust = ["--cacert", str(site.authority.root.cert)]
    assert curl("-x", at(node.door("open"), scheme), *trust, f"{url}/page") == DIGEST


@pytest.mark.parametrize("options", [["-x"], ["--proxytunnel", "-x"], ["--proxy1.0"]], ids=" ".join)
def test_curl_in_its_other_forms(node: Proxy, site: Site, options: list[str]) -> None:
    assert curl(*options, at(node.door("open")), f"{site.http}/page") == DIGEST


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_curl_logs_in(node: Proxy, site: Site, scheme: str, *, secure: bool) -> None:
    url = site.https if secure else site.http
    trust = ["--cacert", str(site.authority.root.cert)]
    assert curl("-x", at(node.door("login"), scheme, ALICE), *trust, f"{url}/page") == DIGEST


def test_curl_that_is_asked_for_its_login_first(node: Proxy, site: Site) -> None:
    """It asks without a login, and with one when it is told to: no failed login."""
    asks = ["--proxy-anyauth", "-U", "alice:wonder@land"]
    assert curl("-x", at(node.door("login")), *asks, f"{site.http}/page") == DIGEST


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_curl_at_an_https_proxy(node: Proxy, site: Site, *, secure: bool) -> None:
    """TLS to the proxy, and TLS to the site inside of it."""
    url = site.https if secure else site.http
    ca = str(site.authority.root.cert)
    proxy = ["-x", at(node.door("secure"), "https", ALICE), "--proxy-cacert", ca]
    assert curl(*proxy, "--cacert", ca, f"{url}/page") == DIGEST


@pytest.mark.parametrize("options", [[], ["-H", "Transfer-Encoding: chunked"]], ids=["length", "chunked"])
def test_curl_uploads(node: Proxy, site: Site, tmp_path: Path, options: list[str]) -> None:
    """It also asks for 100 Continue, which is between it and the site."""
    (tmp_path / "page").write_bytes(PAGE)
    proxy = ["-x", at(node.door("open")), "-H", "Expect: 100-continue"]
    upload = ["-sS", "-T", str(tmp_path / "page"), f"{site.http}/x"]
    done = run(peers.find("curl"), "--max-time", "30", *proxy, *options, *upload)
    assert done.stdout.decode() == DIGEST


def test_curl_fetches_one_page_after_another(node: Proxy, site: Site) -> None:
    """One request goes over each connection; the next one comes on another."""
    pages = [f"{site.http}/page"] * 3
    done = run(peers.find("curl"), "-sS", "--max-time", "30", "-x", at(node.door("open")), *pages)
    assert done.stdout == PAGE * 3


def test_wget(node: Proxy, site: Site) -> None:
    proxy = at(node.door("login"), login=ALICE)
    trust = ["--ca-certificate", str(site.authority.root.cert)]
    for url, name in ((site.http, "http_proxy"), (site.https, "https_proxy")):
        done = run(peers.find("wget"), "-q", "-t", "1", "-O", "-", *trust, f"{url}/page", **{name: proxy})
        assert hashlib.sha256(done.stdout).hexdigest() == DIGEST


def test_apt(node: Proxy, site: Site, tmp_path: Path) -> None:
    helper = "/usr/lib/apt/apt-helper"
    peers.require(os.path.exists(helper), f"{helper} is not there (Debian package apt)")
    proxy = ["-o", f"Acquire::http::Proxy={at(node.door('login'), login=ALICE)}"]
    # Where root runs it, it would fetch as a user of its own, who cannot write here.
    user = ["-o", "APT::Sandbox::User="]
    run(helper, *proxy, *user, "download-file", f"{site.http}/page", str(tmp_path / "page"))
    assert (tmp_path / "page").read_bytes() == PAGE


def test_git(node: Proxy, tmp_path: Path) -> None:
    git, work, served = peers.find("git"), str(tmp_path / "work"), str(tmp_path / "served.git")
    me = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    for command in (
        ["init", "-q", "-b", "main", work],
        ["-C", work, *me, "commit", "-q", "--allow-empty", "-m", "x"],
        ["clone", "-q", "--bare", work, served],
        ["-C", served, "update-server-info"],
    ):
        run(git, *command, home=tmp_path)
    with serving(tmp_path, []) as address:
        proxy = ["-c", f"http.proxy={at(node.door('login'), login=ALICE)}"]
        done = run(git, *proxy, "ls-remote", f"{address}/served.git", home=tmp_path)
    assert b"refs/heads/main" in done.stdout


def test_pip(node: Proxy, tmp_path: Path) -> None:
    index = tmp_path / "simple" / "demo"
    index.mkdir(parents=True)
    wheel = "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(index / wheel, "w") as archive:
        archive.writestr("demo.py", "")
        archive.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        archive.writestr("demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("demo-1.0.dist-info/RECORD", "")
    (index / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    with serving(tmp_path, []) as address:
        options = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check", "-d", str(tmp_path / "got")]
        where = ["--index-url", f"{address}/simple/", "--proxy", at(node.door("login"), login=ALICE)]
        run(sys.executable, "-m", "pip", "download", "-q", *options, *where, "demo", home=tmp_path)
    assert (tmp_path / "got" / wheel).exists()


def test_npm(node: Proxy, tmp_path: Path) -> None:
    (tmp_path / "-").mkdir()
    (tmp_path / "-" / "ping").write_text("{}")
    version = run(peers.find("npm"), "--version", home=tmp_path).stdout.decode().strip()
    if int(version.partition(".")[0]) < 10:
        pytest.skip(f"npm {version} gives no login to a proxy for a registry without TLS")
    with serving(tmp_path, []) as address:
        proxy = ["--proxy", at(node.door("login"), login=ALICE), "--noproxy", ""]
        run(peers.find("npm"), "ping", "--registry", f"{address}/", *proxy, home=tmp_path)
    assert " user=alice " in node.log


FETCH = """
import java.net.*;
public class Fetch {
    public static void main(String[] words) throws Exception {
        Authenticator.setDefault(new Authenticator() {
            protected PasswordAuthentication getPasswordAuthentication() {
                return new PasswordAuthentication("alice", "wonder@land".toCharArray());
            }
        });
        URI.create(words[0]).toURL().openStream().transferTo(System.out);
    }
}
"""


def test_a_jvm(node: Proxy, site: Site, tmp_path: Path) -> None:
    """It asks without a login first, and again on the connection that it got the 407 on, or on another."""
    (tmp_path / "Fetch.java").write_text(FETCH)
    port = node.door("login")[1]
    told = ["-Dhttp.proxyHost=localhost", f"-Dhttp.proxyPort={port}", "-Dhttp.nonProxyHosts="]
    java = peers.find("java", "default-jdk-headless")
    done = run(java, *told, str(tmp_path / "Fetch.java"), f"{site.http}/page", home=tmp_path)
    assert hashlib.sha256(done.stdout).hexdigest() == DIGEST


def test_pythons_own_library(node: Proxy, site: Site) -> None:
    """It knows the environment."""
    script = "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1]).read())"
    trust = {"SSL_CERT_FILE": str(site.authority.root.cert)}
    proxy = at(node.door("login"), login=ALICE)
    for url in (site.http, site.https):
        done = run(sys.executable, "-c", script, f"{url}/page", http_proxy=proxy, https_proxy=proxy, **trust)
        assert hashlib.sha256(done.stdout).hexdigest() == DIGEST
