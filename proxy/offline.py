"""
What is asked of a configuration file without serving: ``-check``, ``-dump``, ``-explain`` and ``-test``.

Each prints what there is to say, and returns an exit code. A file that is invalid is raised as
``InvalidConfigError``, and an option that is, as ``UsageError``.
"""

from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from proxy import console
from proxy.accesslog import NO_LOG
from proxy.config import ProxyConfig
from proxy.configfile.dump import dump as dumped
from proxy.configfile.load import load
from proxy.console import FAILED, OK
from proxy.ctl import show
from proxy.explain import choose, explain_request, read_client, read_target
from proxy.lines import say
from proxy.listeners import Listeners, make_server
from proxy.metrics import Metrics
from proxy.options import UsageError
from proxy.policy.rules import Policy, openness
from proxy.selfcheck import machine_with
from proxy.server import ProxyServer
from proxy.settings.listener import ServerConfig
from proxy.stages import examine, find

T = TypeVar("T")


def check(path: str) -> int:
    """Build what a start would, and open nothing."""
    config = _load_and_warn(path)
    numbers = count(1)
    with console.progress() as tell:

        def make(listener: ServerConfig, *others: Any) -> ProxyServer:
            tell(f"building listener {next(numbers)} of {len(config.listeners)}")
            return make_server(listener, *others)

        Listeners(make, NO_LOG, Metrics()).plan(config)
    for listener in config.listeners:
        if not listener.is_local:
            say(f"note: {listener.name}: {openness(listener)}")
    print("ok")
    return OK


def dump(path: str) -> int:
    """Print the file with all its defaults, and without secrets."""
    print(dumped(_load_and_warn(path)), end="")
    return OK


def _load_and_warn(path: str) -> ProxyConfig:
    with console.progress() as tell:
        tell("reading the configuration")
        loaded = load(path)
    for warning in loaded.warnings:
        say(f"warning: {warning}")
    return loaded.config


def explain(path: str, target: str, listener: str, user: str, client: str) -> int:
    """Say what the rules of a file make of a target; exit code 1 if they refuse it."""
    config = load(path).config
    address = _read("-explain", read_target, target)
    ip = _read("-from", read_client, client)
    door = _read("-listener", lambda name: choose(config.listeners, name), listener)
    told = explain_request(Policy(door, machine_with(config)), door, address, user, ip)
    print(show.text(show.explanation(told)))
    return OK if told["goes"] else FAILED


def test(path: str, upstream: str, target: str | None) -> int:
    """Reach an upstream of a file stage by stage, and a target behind it; exit code 1 if that fails."""
    config = load(path).config
    address = _read("-test", read_target, target) if target is not None else None
    try:
        told = examine(find(config, upstream), address)
    except (LookupError, ValueError) as exc:
        raise UsageError(f"-test: {exc}") from None
    print(show.text(show.trial(told)))
    return OK if told["ok"] else FAILED


def _read(option: str, read: Callable[[str], T], text: str) -> T:
    try:
        return read(text)
    except ValueError as exc:
        raise UsageError(f"{option}: {exc}") from None
