"""
Who is measured: our program, its peers set up to do the same, and no proxy at all as the limit.

Each is a SOCKS5 server to the load. None of them logs connections.
"""

import contextlib
import importlib.util
import json
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration import peers
from tests.integration.certificates import Authority, Certificate
from tests.integration.programs import REPOSITORY, Config, Program, Proxy, socks_door, upstream, web_door
from tests.wire.sockets import Door, free_port

HERE = "127.0.0.1"

Stream = Mapping[str, Any]  # how v2ray's connections are carried


class Missing(Exception):
    """A contender cannot run here; the text says why."""


@dataclass(frozen=True)
class Running:
    """A contender that runs: where the load connects, and its programs in the order of the way."""

    name: str
    door: Door | None
    sessions: Sequence[int] = field(default=())


@contextlib.contextmanager
def running(name: str) -> Iterator[Running]:
    """Run a contender; say what is missing if it cannot be run."""
    with ExitStack() as stack:
        before = len(Program.running)
        try:
            door = stack.enter_context(CONTENDERS[name]())
        except (pytest.skip.Exception, pytest.fail.Exception, OSError) as exc:
            first, *others = str(exc).splitlines()
            raise Missing(" ".join([first, *others[-1:]])) from exc
        # A program leads a session of its own.
        yield Running(name, door, [program.pid for program in Program.running[before:]])


@contextlib.contextmanager
def none() -> Iterator[None]:
    """Run nothing."""
    yield None


LIMITS = {"access_log": "off", "max_connections": 8000}


@contextlib.contextmanager
def ours(splice: str = "auto") -> Iterator[Door]:
    """Run our SOCKS5 server, which goes out directly."""
    with Proxy({"proxy": {**LIMITS, "splice": splice}, "listeners": {"socks": socks_door()}}) as proxy:
        yield proxy.door("socks")


@contextlib.contextmanager
def chain(splice: str = "auto", tls: bool = False) -> Iterator[Door]:
    """Run our SOCKS5 server, and behind it our WebSocket server."""
    limits = {**LIMITS, "splice": splice}
    with ExitStack() as stack:
        web, scheme, trust = web_door(), "ws", {}
        if tls:
            trusted, certificate = stack.enter_context(certificates(HERE))
            web |= certificate.settings
            scheme, trust = "wss", {"tls_ca": str(trusted.cert)}
        entry: Config = {
            "proxy": limits,
            "listeners": {"socks": socks_door(upstream="web")},
            "upstreams": {"web": upstream("websocket", f"{scheme}://{web['listen_addr']}/", **trust)},
        }
        proxy = stack.enter_context(Proxy(entry))
        stack.enter_context(Proxy({"proxy": limits, "listeners": {"web": web}}))
        yield proxy.door("socks")


@contextlib.contextmanager
def certificates(host: str) -> Iterator[tuple[Certificate, Certificate]]:
    """Make a certificate authority, and a certificate for a host of which it vouches."""
    with tempfile.TemporaryDirectory(prefix="pxt-") as directory:
        authority = Authority(Path(directory))
        yield authority.root, authority.issue("exit", host)


V2RAY_USER = {"id": "2f3b1c54-7f0e-4b43-9d53-1b7a5a0c7c11"}


@contextlib.contextmanager
def v2ray(tls: bool = False) -> Iterator[Door]:
    """Run v2ray as SOCKS5 server, and behind it v2ray as VLESS server over WebSocket."""
    binary = peers.find("v2ray")
    socks, web = free_port(), free_port()
    with ExitStack() as stack:
        there: Stream = {"network": "ws"}
        here = there
        if tls:
            there, here = over_tls(*stack.enter_context(certificates(HERE)))
        server = {"address": HERE, "port": web, "users": [{**V2RAY_USER, "encryption": "none"}]}
        entry = {
            "inbounds": [
                {"listen": HERE, "port": socks, "protocol": "socks", "settings": {"auth": "noauth"}}
            ],
            "outbounds": [{"protocol": "vless", "settings": {"vnext": [server]}, "streamSettings": there}],
        }
        clients = {"clients": [V2RAY_USER], "decryption": "none"}
        door = {"listen": HERE, "port": web, "protocol": "vless", "settings": clients, "streamSettings": here}
        exit_ = {"inbounds": [door], "outbounds": [{"protocol": "freedom"}]}
        for port, config in ((socks, entry), (web, exit_)):
            program = Program(())
            path = program.directory / "v2ray.json"
            path.write_text(json.dumps({"log": {"loglevel": "none"}, **config}))
            program.command = [binary, "-config", str(path)]
            stack.enter_context(program).wait_listening(port)
        yield HERE, socks


def over_tls(trusted: Certificate, certificate: Certificate) -> tuple[Stream, Stream]:
    """Describe WebSocket over TLS to v2ray, for the one that connects and the one that is connected to."""
    verify = {"usage": "verify", "certificateFile": str(trusted.cert)}
    serve = {"certificateFile": str(certificate.cert), "keyFile": str(certificate.key)}
    near = {"serverName": HERE, "certificates": [verify], "disableSystemRoot": True}
    wire = {"network": "ws", "security": "tls"}
    return {**wire, "tlsSettings": near}, {**wire, "tlsSettings": {"certificates": [serve]}}


@contextlib.contextmanager
def pproxy() -> Iterator[Door]:
    """Run pproxy, a SOCKS5 server on asyncio."""
    if importlib.util.find_spec("pproxy") is None:
        install_extra()
    port = free_port()
    with Program([sys.executable, "-m", "pproxy", "-l", f"socks5://127.0.0.1:{port}"]) as program:
        program.wait_listening(port)
        yield "127.0.0.1", port


def install_extra() -> None:
    """Install the peers that come from the package registry; without them the others are measured."""
    wanted = runpy.run_path(str(REPOSITORY / "setup.py"))["EXTRAS"]["bench"]
    install = [sys.executable, "-m", "pip", "install", "-q", "--retries", "1", "--timeout", "10", *wanted]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"cannot install {' '.join(wanted)}: {reason}")


@contextlib.contextmanager
def openssl() -> Iterator[Door]:
    """Run two programs that keep TLS connections between them, which is all they do."""
    near, far = free_port(), free_port()
    with certificates(HERE) as (trusted, certificate), ExitStack() as stack:
        connect = ["connect", HERE, str(near), str(far), str(trusted.cert)]
        serve = ["serve", HERE, str(far), str(certificate.cert), str(certificate.key)]
        for port, arguments in ((near, connect), (far, serve)):
            program = Program([sys.executable, "-m", "tests.bench.bare", *arguments])
            stack.enter_context(program).wait_listening(port)
        yield HERE, near


CONTENDERS: dict[str, Callable[[], AbstractContextManager[Door | None]]] = {
    "none": none,
    "ours": ours,
    "microsocks": peers.microsocks,
    "dante": peers.dante,
    "pproxy": pproxy,
    "chain": chain,
    "v2ray": v2ray,
    "chain-tls": lambda: chain(tls=True),
    "v2ray-tls": lambda: v2ray(tls=True),
    "openssl": openssl,
    "ours-copying": lambda: ours("off"),
    "chain-copying": lambda: chain("off"),
}
USUAL = [name for name in CONTENDERS if not name.endswith("-copying")]
QUICK = [name for name in USUAL if name != "pproxy"]
