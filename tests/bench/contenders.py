"""
Who is measured: our program, its peers set up to do the same, and no proxy at all as the limit.

Each is a SOCKS5 server to the load. None of them logs connections.
"""

import contextlib
import importlib.util
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import pytest

from tests.integration import peers
from tests.integration.programs import REPOSITORY, Config, Program, Proxy, socks_door, upstream, web_door
from tests.wire.sockets import Door, free_port


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
def chain(splice: str = "auto") -> Iterator[Door]:
    """Run our SOCKS5 server, and behind it our WebSocket server."""
    limits = {**LIMITS, "splice": splice}
    with ExitStack() as stack:
        web = web_door()
        way_out = {"web": upstream("websocket", ("127.0.0.1", int(web["listen_addr"].rpartition(":")[2])))}
        entry: Config = {
            "proxy": limits,
            "listeners": {"socks": socks_door(upstream="web")},
            "upstreams": way_out,
        }
        proxy = stack.enter_context(Proxy(entry))
        stack.enter_context(Proxy({"proxy": limits, "listeners": {"web": web}}))
        yield proxy.door("socks")


V2RAY_ENTRY = """
{{
  "log": {{"loglevel": "none"}},
  "inbounds": [{{
    "listen": "127.0.0.1", "port": {socks}, "protocol": "socks",
    "settings": {{"auth": "noauth", "udp": false}}
  }}],
  "outbounds": [{{
    "protocol": "vless",
    "settings": {{"vnext": [{{
      "address": "127.0.0.1", "port": {web}, "users": [{{"id": "{user}", "encryption": "none"}}]
    }}]}},
    "streamSettings": {{"network": "ws"}}
  }}]
}}
"""
V2RAY_EXIT = """
{{
  "log": {{"loglevel": "none"}},
  "inbounds": [{{
    "listen": "127.0.0.1", "port": {web}, "protocol": "vless",
    "settings": {{"clients": [{{"id": "{user}"}}], "decryption": "none"}},
    "streamSettings": {{"network": "ws"}}
  }}],
  "outbounds": [{{"protocol": "freedom"}}]
}}
"""
V2RAY_USER = "2f3b1c54-7f0e-4b43-9d53-1b7a5a0c7c11"


@contextlib.contextmanager
def v2ray() -> Iterator[Door]:
    """Run v2ray as SOCKS5 server, and behind it v2ray as VLESS server over WebSocket."""
    binary = peers.find("v2ray")
    socks, web = free_port(), free_port()
    with ExitStack() as stack:
        for port, config in ((socks, V2RAY_ENTRY), (web, V2RAY_EXIT)):
            program = Program(())
            path = program.directory / "v2ray.json"
            path.write_text(config.format(socks=socks, web=web, user=V2RAY_USER))
            program.command = [binary, "-config", str(path)]
            stack.enter_context(program).wait_listening(port)
        yield "127.0.0.1", socks


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


CONTENDERS: dict[str, Callable[[], AbstractContextManager[Door | None]]] = {
    "none": none,
    "ours": ours,
    "microsocks": peers.microsocks,
    "dante": peers.dante,
    "pproxy": pproxy,
    "chain": chain,
    "v2ray": v2ray,
    "ours-copying": lambda: ours("off"),
    "chain-copying": lambda: chain("off"),
}
USUAL = ["none", "ours", "microsocks", "dante", "pproxy", "chain", "v2ray"]
QUICK = [name for name in USUAL if name != "pproxy"]
