"""
Who is measured: our program, its peers set up to do the same, and no proxy at all as the limit.

Each is a SOCKS5 server to the load. None of them logs connections.
"""

import contextlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.integration import peers
from tests.integration.certificates import Authority, Certificate
from tests.integration.longwire import Site
from tests.integration.programs import REPOSITORY, Config, Program, Proxy, socks_door
from tests.wire.sockets import Door, free_port

HERE = "127.0.0.1"
LIMITS = {"access_log": "off", "max_connections": 8000}
BEFORE = os.environ.get("BEFORE", "")  # another checkout of ours, to be compared with this one

Stream = Mapping[str, Any]  # how v2ray carries a connection
T = TypeVar("T")


class Missing(Exception):
    """A contender, or the place for it, is not to be had; the text says why."""


@dataclass(frozen=True)
class Running:
    """A contender that runs: where the load connects, and its programs in the order of the way."""

    name: str
    door: Door | None
    sessions: Sequence[int] = field(default=())
    site: Site = field(default_factory=Site)


@contextlib.contextmanager
def running(name: str, site: Site | None = None) -> Iterator[Running]:
    """Run a contender, on this machine's loopback or elsewhere; say what is missing if it cannot be run."""
    site = site or Site()
    before = len(Program.running)
    with had(lambda: CONTENDERS[name](site)) as door:
        # A program leads a session of its own.
        yield Running(name, door, [program.pid for program in Program.running[before:]], site)


@contextlib.contextmanager
def had(make: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """Have something that a test would be skipped or fail without; here it is missing."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(make())
        except (pytest.skip.Exception, pytest.fail.Exception, OSError) as exc:
            first, *others = str(exc).splitlines()
            raise Missing(" ".join([first, *others[-1:]])) from exc
        yield made


@contextlib.contextmanager
def none(site: Site) -> Iterator[None]:
    """Run nothing."""
    yield None


@contextlib.contextmanager
def ours(site: Site, splice: str = "auto", tree: str = str(REPOSITORY), **settings: Any) -> Iterator[Door]:
    """Run our SOCKS5 server, which goes out directly."""
    config = {"proxy": {**LIMITS, "splice": splice, **settings}, "listeners": {"socks": socks_door()}}
    with Proxy(config, prefix=site.near.prefix, environment={"PYTHONPATH": tree}) as proxy:
        yield proxy.door("socks")


@contextlib.contextmanager
def chain(
    site: Site, scheme: str = "ws", splice: str = "auto", tree: str = str(REPOSITORY), **settings: Any
) -> Iterator[Door]:
    """Run our SOCKS5 server, and behind it our server for another scheme, which goes out directly."""
    limits = {**LIMITS, "splice": splice, **settings}
    kind = "socks5" if scheme == "socks5" else "websocket"
    far = {"protocol": kind, "listen_addr": f"{site.far.address}:{free_port()}"}
    way_out = {"type": kind, "proxy_address": f"{scheme}://{far['listen_addr']}"}
    environment = {"PYTHONPATH": tree}
    with ExitStack() as stack:
        if scheme == "wss":
            trusted, certificate = stack.enter_context(certificates(site.far.address))
            far |= certificate.settings
            way_out["tls_ca"] = str(trusted.cert)
        entry: Config = {
            "proxy": limits,
            "listeners": {"socks": socks_door(upstream="far")},
            "upstreams": {"far": way_out},
        }
        # At the end of a wire its address is not loopback, and the targets are on its own machine.
        guard = {"guard": "off"} if site.far.prefix else {}
        exit_: Config = {"proxy": {**limits, **guard}, "listeners": {"far": far}}
        proxy = stack.enter_context(Proxy(entry, prefix=site.near.prefix, environment=environment))
        stack.enter_context(Proxy(exit_, prefix=site.far.prefix, environment=environment))
        yield proxy.door("socks")


@contextlib.contextmanager
def certificates(host: str) -> Iterator[tuple[Certificate, Certificate]]:
    """Make a certificate authority, and a certificate for a host of which it vouches."""
    with tempfile.TemporaryDirectory(prefix="pxt-") as directory:
        authority = Authority(Path(directory))
        yield authority.root, authority.issue("exit", host)


V2RAY_USER = {"id": "2f3b1c54-7f0e-4b43-9d53-1b7a5a0c7c11"}


@contextlib.contextmanager
def v2ray(site: Site, *, tls: bool = False, mux: bool = False) -> Iterator[Door]:
    """Run v2ray as SOCKS5 server, and behind it v2ray as VLESS server over WebSocket."""
    binary = peers.find("v2ray")
    socks, web, there = free_port(), free_port(), site.far.address
    with ExitStack() as stack:
        near: Stream = {"network": "ws"}
        far = near
        if tls:
            near, far = over_tls(there, *stack.enter_context(certificates(there)))
        server = {"address": there, "port": web, "users": [{**V2RAY_USER, "encryption": "none"}]}
        clients = {"clients": [V2RAY_USER], "decryption": "none"}
        door = {"listen": HERE, "port": socks, "protocol": "socks", "settings": {"auth": "noauth"}}
        way = {"protocol": "vless", "settings": {"vnext": [server]}, "streamSettings": near}
        gateway = {"listen": there, "port": web, "protocol": "vless", "settings": clients}
        entry = {"inbounds": [door], "outbounds": [{**way, "mux": {"enabled": mux}}]}
        exit_ = {
            "inbounds": [{**gateway, "streamSettings": far}],
            "outbounds": [{"protocol": "freedom"}],
        }
        for end, port, config in ((site.near, socks, entry), (site.far, web, exit_)):
            program = Program(())
            path = program.directory / "v2ray.json"
            path.write_text(json.dumps({"log": {"loglevel": "none"}, **config}))
            program.command = [*end.prefix, binary, "-config", str(path)]
            stack.enter_context(program).wait_listening(port)
        yield HERE, socks


def over_tls(host: str, trusted: Certificate, certificate: Certificate) -> tuple[Stream, Stream]:
    """Describe WebSocket over TLS to v2ray, for the one that connects and the one that is connected to."""
    verify = {"usage": "verify", "certificateFile": str(trusted.cert)}
    serve = {"certificateFile": str(certificate.cert), "keyFile": str(certificate.key)}
    near = {"serverName": host, "certificates": [verify], "disableSystemRoot": True}
    wire = {"network": "ws", "security": "tls"}
    return {**wire, "tlsSettings": near}, {**wire, "tlsSettings": {"certificates": [serve]}}


@contextlib.contextmanager
def ssh(site: Site) -> Iterator[Door]:
    """Run OpenSSH's client as SOCKS5 server, and behind it its server."""
    port = free_port()
    with peers.sshd(site.far.address, site.far.prefix, runs_commands=False) as server:
        command = [*site.near.prefix, *server.command(DynamicForward=f"{HERE}:{port}"), "-N"]
        with Program(command) as client:
            client.wait_listening(port)
            yield HERE, port


@contextlib.contextmanager
def pproxy(site: Site) -> Iterator[Door]:
    """Run pproxy, a SOCKS5 server on asyncio."""
    if importlib.util.find_spec("pproxy") is None:
        install_extra()
    port = free_port()
    with Program([sys.executable, "-m", "pproxy", "-l", f"socks5://{HERE}:{port}"]) as program:
        program.wait_listening(port)
        yield HERE, port


def install_extra() -> None:
    """Install the peers that come from the package registry; without them the others are measured."""
    wanted = runpy.run_path(str(REPOSITORY / "setup.py"))["EXTRAS"]["bench"]
    install = [sys.executable, "-m", "pip", "install", "-q", "--retries", "1", "--timeout", "10", *wanted]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"cannot install {' '.join(wanted)}: {reason}")


@contextlib.contextmanager
def openssl(site: Site) -> Iterator[Door]:
    """Run two programs that keep TLS connections between them, which is all they do."""
    near, far = free_port(), free_port()
    with certificates(HERE) as (trusted, certificate), ExitStack() as stack:
        connect = ["connect", HERE, str(near), str(far), str(trusted.cert)]
        serve = ["serve", HERE, str(far), str(certificate.cert), str(certificate.key)]
        for port, arguments in ((near, connect), (far, serve)):
            program = Program([sys.executable, "-m", "tests.bench.bare", *arguments])
            stack.enter_context(program).wait_listening(port)
        yield HERE, near


CONTENDERS: dict[str, Callable[[Site], AbstractContextManager[Door | None]]] = {
    "none": none,
    "ours": ours,
    "ours-workers": lambda site: ours(site, workers=os.cpu_count() or 1),
    "microsocks": lambda site: peers.microsocks(),
    "dante": lambda site: peers.dante(),
    "pproxy": pproxy,
    "chain": chain,
    "v2ray": v2ray,
    "chain-tls": lambda site: chain(site, "wss"),
    "chain-tls-workers": lambda site: chain(site, "wss", workers=os.cpu_count() or 1),
    "v2ray-tls": lambda site: v2ray(site, tls=True),
    "openssl": openssl,
    "chain-socks": lambda site: chain(site, "socks5"),
    "v2ray-mux": lambda site: v2ray(site, tls=True, mux=True),
    "ssh": ssh,
    "ours-copying": lambda site: ours(site, "off"),
    "chain-copying": lambda site: chain(site, splice="off"),
    "ours-before": lambda site: ours(site, tree=BEFORE),
    "chain-before": lambda site: chain(site, tree=BEFORE),
    "chain-tls-before": lambda site: chain(site, "wss", tree=BEFORE),
    "chain-socks-before": lambda site: chain(site, "socks5", tree=BEFORE),
}
USUAL = [name for name in CONTENDERS if not name.endswith(("-copying", "-before"))]
QUICK = [name for name in USUAL if name != "pproxy"]
