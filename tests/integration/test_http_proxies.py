"""HTTP proxies that other people wrote, as a way out and on the way to a gateway."""

import hashlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration import peers
from tests.integration.certificates import Authority
from tests.integration.programs import COMMAND, Proxy, clean_environment, socks_door, upstream, web_door
from tests.wire import clients, targets
from tests.wire.clients import SocksRefused
from tests.wire.sockets import Door, free_port, read_to_end
from tests.wire.targets import Target
from tests.wire.waits import wait_until

PAYLOAD = os.urandom(2 << 20)
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()
ALICE = ("alice", "wonder-land")
LOGIN = {"proxy_username": ALICE[0], "proxy_password": ALICE[1]}
PORTS = "1024-65535"  # to which one may connect; 1 is refused

PROGRAMS = ("tinyproxy", "squid", "apache")
SECURE = ("squid", "apache")  # those that take TLS from their clients
GATEWAYS = ("ws", "wss")


@dataclass
class Corporate:
    """A running HTTP proxy: a door for anybody, one with a login, and one with a login and TLS."""

    open: Door
    login: Door
    secure: Door | None = None
    digest: Door | None = None  # where it wants a login of another kind than ours

    def upstreams(self) -> dict[str, dict[str, object]]:
        """Describe the ways through it."""
        ways = {
            "open": upstream("http", self.open),
            "login": upstream("http", self.login, **LOGIN),
            "none": upstream("http", self.login),
            "wrong": upstream("http", self.login, **LOGIN | {"proxy_password": "s3cret"}),
        }
        if self.secure:
            ways["secure"] = upstream("http", f"https://localhost:{self.secure[1]}", tls_verify="no", **LOGIN)
        if self.digest:
            ways["digest"] = upstream("http", self.digest, **LOGIN)
        return ways


def _hash(password: str) -> str:
    command = [peers.find("openssl"), "passwd", "-apr1", password]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _tinyproxy(stack: ExitStack, directory: Path) -> Corporate:
    login = f"BasicAuth {' '.join(ALICE)}"
    return Corporate(*(("127.0.0.1", stack.enter_context(peers.tinyproxy(more))[1]) for more in ("", login)))


SQUID = """
http_port 127.0.0.1:{open} name=open
http_port 127.0.0.1:{login} name=login
https_port 127.0.0.1:{secure} name=secure tls-cert=cert.pem tls-key=key.pem
auth_param basic program {helper} users
auth_param basic realm corporate
acl guarded myportname login secure
acl known proxy_auth REQUIRED
acl allowed port {ports}
http_access deny !allowed
http_access deny guarded !known
http_access allow all
"""


def _squid(stack: ExitStack, directory: Path) -> Corporate:
    helper = "/usr/lib/squid/basic_ncsa_auth"
    peers.require(os.path.exists(helper), f"{helper} is not there (Debian package squid)")
    ports = {name: free_port() for name in ("open", "login", "secure")}
    pair = Authority(directory).self_signed("corporate", "localhost")
    files = {"users": _users(), "cert.pem": pair.cert.read_text(), "key.pem": pair.key.read_text()}
    text = SQUID.format(**ports, helper=helper, ports=PORTS)
    stack.enter_context(peers.squid_with(list(ports.values()), text, files))
    return Corporate(**{name: ("127.0.0.1", port) for name, port in ports.items()})


APACHE = """
LoadModule proxy_connect_module modules/mod_proxy_connect.so
LoadModule auth_basic_module modules/mod_auth_basic.so
LoadModule auth_digest_module modules/mod_auth_digest.so
LoadModule authn_core_module modules/mod_authn_core.so
LoadModule authn_file_module modules/mod_authn_file.so
LoadModule authz_user_module modules/mod_authz_user.so
Listen 127.0.0.1:{login}
Listen 127.0.0.1:{secure}
Listen 127.0.0.1:{digest}
AllowCONNECT {ports}
<VirtualHost 127.0.0.1:{open}>
    ProxyRequests On
</VirtualHost>
<VirtualHost 127.0.0.1:{login}>
    {guarded}
</VirtualHost>
<VirtualHost 127.0.0.1:{digest}>
    {digest_guarded}
</VirtualHost>
<VirtualHost 127.0.0.1:{secure}>
    SSLEngine on
    SSLCertificateFile {cert}
    SSLCertificateKeyFile {key}
    {guarded}
</VirtualHost>
"""

APACHE_GUARDED = """
    ProxyRequests On
    <Proxy "*">
        AuthType {kind}
        AuthName corporate
        AuthUserFile {users}
        Require valid-user
    </Proxy>
"""


def _apache(stack: ExitStack, directory: Path) -> Corporate:
    ports = {name: free_port() for name in ("open", "login", "secure", "digest")}
    pair = Authority(directory).self_signed("corporate", "localhost")
    shared = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pxt-")))
    shared.chmod(0o755)  # whom Apache becomes reads it
    users = shared / "users"
    users.write_text(_users())
    guards = {
        name: APACHE_GUARDED.format(users=users, kind=kind)
        for name, kind in (("guarded", "Basic"), ("digest_guarded", "Digest"))
    }
    text = APACHE.format(**ports, ports=PORTS, cert=pair.cert, key=pair.key, **guards)
    stack.enter_context(peers.apache_with(ports["open"], text))
    return Corporate(**{name: ("127.0.0.1", port) for name, port in ports.items()})


def _users() -> str:
    return f"{ALICE[0]}:{_hash(ALICE[1])}\n"


MAKERS = {"tinyproxy": _tinyproxy, "squid": _squid, "apache": _apache}


@dataclass
class Place:
    """A proxy of theirs, a gateway of ours, and a node whose listeners are called as the way they take."""

    program: str
    corporate: Corporate
    gateway: Proxy
    home: Proxy

    def ways(self, *names: str) -> list[str]:
        """Give those of some ways that the program has."""
        return [name for name in names if name in self.home.config["listeners"]]

    def reach(self, way: str, port: int, host: str = "localhost") -> clients.Tunnel:
        """Open a tunnel by a way."""
        return clients.socks5(self.home.door(way), host, port)

    def refusal(self, way: str, port: int, host: str = "localhost") -> tuple[int, str]:
        """Be refused, and give the reply and the reason from the log."""
        told = f" listener={way} "
        seen = self.home.log.count(told)
        with pytest.raises(SocksRefused) as refused:
            self.reach(way, port, host)
        wait_until(lambda: self.home.log.count(told) > seen, "the line in the log")
        line = [line for line in self.home.log.splitlines() if told in line][-1]
        return refused.value.reply, line.partition('end="refused: ')[2].partition('"')[0]


@pytest.fixture(scope="module", params=MAKERS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("corporate")
    tls = {"tls_cert": "node.pem", "tls_key": "node.key"}
    gateway = Proxy({"listeners": {"ws": web_door(), "wss": web_door(**tls)}})
    Authority(gateway.directory).self_signed("node", "localhost")
    with ExitStack() as stack:
        corporate = MAKERS[request.param](stack, directory)
        ways = corporate.upstreams()
        for scheme in GATEWAYS:
            for via in ("open", "login", "secure", "wrong"):
                if via in ways:
                    way = upstream("websocket", gateway.url(scheme, scheme), tls_verify="no", via=via)
                    ways[f"{scheme}-{via}"] = way
        listeners = {name: socks_door(upstream=name) for name in ways}
        stack.enter_context(gateway)
        home = stack.enter_context(Proxy({"listeners": listeners, "upstreams": ways}))
        yield Place(request.param, corporate, gateway, home)


def exchange(place: Place, way: str) -> None:
    """Send in both directions at once, and end one of them before the answer."""
    with Target(targets.exchange(PAYLOAD, len(PAYLOAD))) as target:
        tunnel = place.reach(way, target.port)
        sender = threading.Thread(target=tunnel.sendall, args=(PAYLOAD,), daemon=True)
        sender.start()
        assert targets.receive_digest(tunnel.recv, len(PAYLOAD)) == DIGEST
        assert target.result() == DIGEST
        sender.join(30)
        tunnel.close()


def test_bytes_arrive_as_they_were_sent(place: Place) -> None:
    for way in place.ways("open", "login", "secure"):
        exchange(place, way)


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_it_leads_to_a_gateway(place: Place, gateway: str) -> None:
    """The picture of the README as it is at most workplaces."""
    for way in place.ways(*(f"{gateway}-{via}" for via in ("open", "login", "secure"))):
        exchange(place, way)


REASONS = {
    "none": "wants a login, and none is set",
    "wrong": "refused our credentials",
    "digest": "refused our credentials; it takes Digest, and what we have is Basic",
}


def test_who_does_not_let_us_in_is_named(place: Place) -> None:
    for way in place.ways(*REASONS):
        assert place.refusal(way, free_port()) == (1, f"upstream {way}: {REASONS[way]}")
    assert "s3cret" not in place.home.log


def test_a_gateway_behind_a_login_that_fails_is_not_to_blame(place: Place) -> None:
    said = "upstream ws-wrong: via upstream wrong: refused our credentials"
    assert place.refusal("ws-wrong", free_port()) == (1, said)


# What each says of a target that it does not reach: a bare status, so that no cause is told.
STATUS = {"tinyproxy": 500, "squid": 503, "apache": 503}


def test_a_target_that_is_not_there_is_not_the_proxys_fault(place: Place) -> None:
    """All of them live, as they say when they are asked without a target; so nobody has to wait for them."""
    for way in place.ways("open", "login", "secure"):
        port = free_port()
        said = f"localhost:{port} through upstream {way}: answered CONNECT with {STATUS[place.program]}"
        assert place.refusal(way, port) == (1, said)


def test_a_name_that_does_not_resolve_there_is_not_the_proxys_fault(place: Place) -> None:
    reply, said = place.refusal("open", 2000, "no.such.name.invalid")
    assert reply == 1
    assert said.startswith("no.such.name.invalid:2000 through upstream open: answered CONNECT with 50")


@pytest.fixture
def strict(place: Place) -> Iterator[Place]:
    """Give a proxy that forbids port 1; tinyproxy would forbid all ports but some, so it is another one."""
    if place.program != "tinyproxy":
        yield place
        return
    with peers.tinyproxy("ConnectPort 443") as door:
        ways = {"open": upstream("http", door)}
        with Proxy({"listeners": {"open": socks_door(upstream="open")}, "upstreams": ways}) as home:
            yield Place(place.program, place.corporate, place.gateway, home)


def test_a_port_that_is_forbidden_there(strict: Place) -> None:
    """RFC 1928, section 6: 02, connection not allowed by ruleset."""
    said = "localhost:1 through upstream open: answered CONNECT with 403"
    assert strict.refusal("open", 1) == (2, said)


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_the_cause_comes_back_from_the_far_end(place: Place, gateway: str) -> None:
    """Whatever is on the way: the gateway says it."""
    port = free_port()
    said = f"localhost:{port} through upstream {gateway}-login: connection refused"
    assert place.refusal(f"{gateway}-login", port) == (5, said)


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_a_half_close_goes_all_the_way(place: Place, gateway: str) -> None:
    """The gateway's WebSocket carries it, whatever is below."""
    with Target(targets.answer_after_end(b"the answer")) as target:
        tunnel = place.reach(f"{gateway}-login", target.port)
        tunnel.sendall(b"all")
        tunnel.end()
        assert read_to_end(tunnel) == b"the answer"
        assert target.result() == b"all"


def test_ssh_goes_through_it_to_a_gateway(place: Place) -> None:
    """``ssh -o ProxyCommand='proxy-server -mode client … -proxy URL'`` against a real server."""
    url = f"http://{ALICE[0]}:{ALICE[1]}@127.0.0.1:{place.corporate.login[1]}"
    ca = ["-tls-ca", str(place.gateway.directory / "node.pem")]
    where = ["-addr", place.gateway.url("wss", "wss"), *ca, "-host", "%h", "-port", "%p", "-proxy", url]
    with peers.sshd() as server:
        command = [*COMMAND, "-mode", "client", "-protocol", "websocket", *where]
        done = subprocess.run(
            server.client(" ".join(command), "cat"),
            input=PAYLOAD,
            capture_output=True,
            timeout=50,
            env=clean_environment(server.program.directory),
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == PAYLOAD
