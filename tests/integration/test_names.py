"""
Host names, on real resolvers: how they are spelt, and whose answers are waited for.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.certificates import Authority
from tests.integration.netns import Namespace
from tests.integration.peers import StubDns
from tests.integration.programs import Config, Proxy, run_proxy, socks_door, upstream, web_door
from tests.wire import clients, targets
from tests.wire.clients import HttpRefused, SocksRefused
from tests.wire.sockets import free_port, read_exact
from tests.wire.targets import Target

NAMES = {
    # IDNA 2008; what IDNA 2003 makes of them does not exist.
    "xn--fa-hia.test": ["127.0.0.1"],
    "xn--nxasmm1c.test": ["127.0.0.1"],
    "xn--bcher-kva.test": ["127.0.0.1"],
    # The resolver gives the answer for IPv4 at once, and the other one as each name says.
    **{f"{how}.test": ["127.0.0.1"] for how in ("silent", "truncated", "refused", "servfail", "nxdomain")},
    "silent.test AAAA": StubDns.SILENCE,
    "truncated.test AAAA": StubDns.TRUNCATED,
    "refused.test AAAA": StubDns.REFUSED,
    "servfail.test AAAA": StubDns.SERVFAIL,
    "nxdomain.test AAAA": StubDns.NXDOMAIN,
    # A host that only the search list leads to.
    "printer.lan.test": ["127.0.0.1"],
    "printer.lan.test AAAA": StubDns.SILENCE,
    # The hosts file has it at another address.
    "filed.test": ["127.0.0.9"],
    "filed.test AAAA": StubDns.SILENCE,
}
# Less than the resolver's 5 s: whoever waits for an answer that does not come is refused.
PROXY = {"timeout": "4s"}


class Patched(Proxy):
    """The program, after some Python of the test's own."""

    def __init__(self, patch: str, config: Config, prefix: Sequence[str] = ()) -> None:
        super().__init__(config, prefix=prefix)
        at = self.command.index("-m")
        self.command[at : at + 2] = ["-c", f"{patch}\nfrom proxy.__main__ import main\nmain()"]


@dataclass
class Bench:
    """A node in a namespace with a resolver, and a target there."""

    space: Namespace
    node: Proxy
    target: Target

    def reaches(self, door: str, host: str) -> None:
        """Connect to the target by a name, and hear from it."""
        opener = clients.OPEN["socks5" if door.startswith("socks") else "websocket"]
        tunnel = self.space.run(lambda: opener(self.node.door(door), host, self.target.port))
        tunnel.sendall(b"hello")
        assert read_exact(tunnel, 5) == b"hello"
        tunnel.close()


@pytest.fixture(scope="module", params=["with-ipv6", "without-ipv6"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Run a node that goes out directly."""
    with ExitStack() as stack:
        space = stack.enter_context(Namespace())
        if request.param == "without-ipv6":
            space.without_ipv6()
        space.resolver("nameserver 127.0.0.1\nsearch lan.test\noptions timeout:5 attempts:1\n")
        space.hosts("127.0.0.1 localhost filed.test\n")
        stack.enter_context(space.run(lambda: StubDns(NAMES)))
        target = stack.enter_context(space.run(lambda: Target(targets.echo)))
        doors = {"socks": socks_door(), "web": web_door()}
        node = stack.enter_context(Proxy({"proxy": PROXY, "listeners": doors}, prefix=space.prefix))
        yield Bench(space, node, target)


@pytest.mark.parametrize("how", ["silent", "truncated", "refused", "servfail", "nxdomain"])
def test_a_missing_answer_for_ipv6_holds_up_nobody(bench: Bench, how: str) -> None:
    """Case 344; RFC 8305, section 3."""
    bench.reaches("socks", f"{how}.test")


def test_the_search_list_leads_to_a_host(bench: Bench) -> None:
    """Case 344."""
    bench.reaches("socks", "printer")


def test_the_hosts_file_comes_before_the_resolver(bench: Bench) -> None:
    """Case 344."""
    bench.reaches("socks", "filed.test")


@pytest.mark.parametrize(
    ("name", "dialled"),
    [
        ("faß.test", "xn--fa-hia.test"),
        ("βόλος.test", "xn--nxasmm1c.test"),
        ("BÜCHER.Test", "xn--bcher-kva.test"),
        ("bücher.test.", "xn--bcher-kva.test."),
    ],
)
@pytest.mark.parametrize("door", ["socks", "web"])
def test_a_name_is_dialled_as_idna_2008_spells_it(bench: Bench, door: str, name: str, dialled: str) -> None:
    """Case 308: and the log has the name that was dialled."""
    bench.reaches(door, name)
    bench.node.wait_for_log(f"listener={door} target={dialled}:{bench.target.port} ")


@pytest.mark.parametrize("door", ["socks", "web"])
def test_a_name_that_idna_2008_does_not_allow_is_refused(bench: Bench, door: str) -> None:
    """Case 308."""
    with pytest.raises((SocksRefused, HttpRefused)) as refused:
        bench.reaches(door, "fa\u200dß.test")
    assert getattr(refused.value, "reply", 1) == 1
    assert getattr(refused.value, "status", 400) == 400


def test_the_command_line_spells_names_likewise(bench: Bench) -> None:
    """Case 308."""
    at = f"localhost:{bench.node.door('socks')[1]}"
    options = ["-mode", "client", "-protocol", "socks5", "-addr", at, "-port", str(bench.target.port)]
    done = run_proxy(*options, "-host", "faß.test", stdin=b"hello", prefix=bench.space.prefix)
    assert (done.returncode, done.stdout) == (0, b"hello"), done.stderr


def test_a_tls_upstream_is_verified_by_the_same_spelling(bench: Bench, tmp_path: Path) -> None:
    """Case 308."""
    authority = Authority(tmp_path)
    certificate = authority.issue("fass", "xn--fa-hia.test")
    door = web_door(**certificate.settings)
    port = door["listen_addr"].rpartition(":")[2]
    way = upstream("websocket", f"wss://faß.test:{port}/", tls_ca=authority.root.cert)
    config = {"proxy": PROXY, "listeners": {"web": door, "socks": socks_door(upstream="way")}}
    with Proxy({**config, "upstreams": {"way": way}}, prefix=bench.space.prefix) as node:
        Bench(bench.space, node, bench.target).reaches("socks", "localhost")


# -- zones


@pytest.fixture(scope="module")
def link() -> Iterator[Namespace]:
    """Make a namespace with an interface that has the address fe80::1."""
    with Namespace() as space:
        space.ip("link", "add", "near", "type", "veth", "peer", "name", "far")
        for end in ("near", "far"):
            space.ip("link", "set", end, "up")
        space.ip("address", "add", "fe80::1/64", "dev", "near", "nodad")
        yield space


def test_a_proxy_listens_and_is_reached_at_a_link_local_address(link: Namespace) -> None:
    """Case 342."""
    doors = {
        "near": {"protocol": "socks5", "listen_addr": f"[fe80::1%near]:{free_port()}"},
        "socks": socks_door(upstream="way"),
    }
    way = upstream("socks5", doors["near"]["listen_addr"])
    config = {"proxy": {"guard": "off"}, "listeners": doors, "upstreams": {"way": way}}
    with link.run(lambda: Target(targets.echo)) as target, Proxy(config, prefix=link.prefix) as node:
        Bench(link, node, target).reaches("socks", "127.0.0.1")
        node.wait_for_log(f"near listens on {doors['near']['listen_addr']} (socks5)")
        assert "client=[fe80::1%near]:" in node.wait_for_log("listener=near ")


MDNS = """
from gevent import monkey
monkey.patch_all()
from proxy.net import lookup
real = lookup._getaddrinfo
lookup._getaddrinfo = lambda host, family: real("fe80::1%near" if host == "near.local" else host, family)
"""


def test_a_name_leads_to_a_link_local_address_on_its_interface(link: Namespace) -> None:
    """Case 342: as mDNS finds it, which is not to be had in a test."""
    near = {"protocol": "socks5", "listen_addr": f"[fe80::1%near]:{free_port()}"}
    config = {"listeners": {"near": near, "socks": socks_door(), "web": web_door()}}
    with Patched(MDNS, config, prefix=link.prefix) as node:
        port = node.door("near")[1]
        tunnels = (
            link.run(lambda: clients.socks5(node.door("socks"), "near.local", port)),
            web := link.run(lambda: clients.websocket(node.door("web"), "near.local", port)),
        )
        for tunnel in tunnels:
            tunnel.sendall(b"\x05\x01\x00")
            assert read_exact(tunnel, 2) == b"\x05\x00"
            tunnel.close()
        assert web.headers["x-proxy-bound"].startswith("[fe80::1]:"), "the zone is this machine's own"


@pytest.mark.parametrize("setting", ["listen_addr", "proxy_address"])
def test_a_missing_interface_is_asked_for(tmp_path: Path, setting: str) -> None:
    """Case 342."""
    door = "fe80::1" if setting == "listen_addr" else "fe80::1%lo"
    config = tmp_path / "proxy.ini"
    config.write_text(
        f"[listeners]\n[[socks]]\nprotocol = socks5\nlisten_addr = [{door}]:1080\nupstream = way\n"
        "[upstreams]\n[[way]]\ntype = socks5\nproxy_address = [fe80::1]:1080\n"
    )
    done = run_proxy("-c", str(config), "-check")
    assert done.returncode == 2
    complaints = [line for line in done.stderr.decode().splitlines() if setting in line]
    assert len(complaints) == 1
    assert "the interface of a link-local address is missing: write [fe80::1%eth0]" in complaints[0]


def test_a_link_local_target_without_its_interface_is_out_of_reach(link: Namespace) -> None:
    """Case 342: reply 03 or 04, not 01."""
    with Proxy({"listeners": {"socks": socks_door()}}, prefix=link.prefix) as node:
        with pytest.raises(SocksRefused) as refused:
            link.run(lambda: clients.socks5(node.door("socks"), "fe80::2", 80))
        assert refused.value.reply in (3, 4)


# -- a small Python


SMALL = """
import sys
for missing in ("encodings.idna", "encodings.punycode", "stringprep", "idna", "unicodedata"):
    sys.modules[missing] = None
"""


def test_a_python_without_an_idna_codec_serves_addresses_and_ascii_names(tmp_path: Path) -> None:
    """Case 348: through every door, by TLS too."""
    authority = Authority(tmp_path)
    web = web_door(**authority.issue("good", "localhost").settings)
    web["listen_addr"] = web["listen_addr"].replace("127.0.0.1", "localhost")
    url = f"wss://localhost:{web['listen_addr'].rpartition(':')[2]}/"
    doors = {"web": web, "socks": socks_door(), "tunnel": socks_door(upstream="way")}
    way = upstream("websocket", url, tls_ca=authority.root.cert)
    with (
        Patched(SMALL, {"listeners": doors, "upstreams": {"way": way}}) as node,
        Target(targets.echo) as target,
    ):
        for door in ("socks", "tunnel"):
            for host in ("127.0.0.1", "localhost"):
                tunnel = clients.socks5(node.door(door), host, target.port)
                tunnel.sendall(b"hello")
                assert read_exact(tunnel, 5) == b"hello"
                tunnel.close()
            with pytest.raises(SocksRefused) as refused:
                clients.socks5(node.door(door), "bücher.test", target.port)
            assert refused.value.reply == 1
        node.wait_for_log("this Python cannot read a host name that is not ASCII")
        assert "internal error" not in node.log
