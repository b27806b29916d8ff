"""
The command line.

Every error is one line on standard error, and none is a traceback.
"""

import os
import shlex
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

from proxy import __version__, console, signals
from proxy.address import Address
from proxy.config import ProxyConfig
from proxy.console import BAD_USAGE, FAILED, KILLED, OK, InputError, OutputError
from proxy.errors import ConfigError, ProtocolError, ProxyError
from proxy.lines import say
from proxy.options import Option, UsageError, describe, read
from proxy.redact import without_query
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import LISTENER_SCHEMES, PROXY_SCHEMES, Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from proxy.users import to_bytes
from proxy.workers import VARIABLE as WORKER

T = TypeVar("T")

CLIENT_TIMEOUT = 30.0  # seconds for -mode client to reach its target

# What a command line is about; each option belongs to some of these.
_FILE, _SERVER, _CLIENT, _INIT, _HASH = "-c FILE", "-mode server", "-mode client", "-init", "-hash-password"

USAGE = """\
usage: proxy-server -c proxy.ini [-check | -dump | -last-good]
       proxy-server -c proxy.ini -explain TARGET [-listener NAME] [-user NAME] [-from ADDRESS]
       proxy-server -c proxy.ini -test UPSTREAM [HOST:PORT]
       proxy-server -mode server -protocol socks5|websocket|mixed -addr ADDRESS [options]
       proxy-server -mode client -protocol socks5|http|websocket -addr ADDRESS -host HOST -port PORT [options]
       proxy-server ctl [-c proxy.ini] [--json] [--volatile] COMMAND [ARGUMENT ...]   (ctl -h lists them)
       proxy-server -init [FILE]
       proxy-server -hash-password
       proxy-server -version | -h

options (one dash or two):"""

_LOOKS = {"check", "dump", "explain", "test"}  # what ends without having served
_ABOUT_EXPLAIN = {"listener", "user", "from"}
_TARGET = "test-target"  # what stands behind -test UPSTREAM, and is no option
_PROTOCOLS = tuple(each.value for each in Protocol)
_TYPES = tuple(each.value for each in UpstreamType)
OPTIONS = (
    Option("config", "FILE", "run from a configuration file", (_FILE,), also=("c",)),
    Option("check", "", "with -c: validate, and print every problem", (_FILE,)),
    Option("dump", "", "with -c: print the effective configuration, without secrets", (_FILE,)),
    Option("last-good", "", "with -c: start with the last valid version if need be", (_FILE,)),
    Option("explain", "TARGET", "with -c: what the rules make of a host:port, and why", (_FILE,)),
    Option("listener", "NAME", "explain: the listener that is asked", (_FILE,)),
    Option("user", "NAME", "explain: who asks, if there was a login", (_FILE,)),
    Option("from", "ADDRESS", "explain: the address of the client", (_FILE,)),
    Option("test", "UPSTREAM", "with -c: reach it stage by stage, and a HOST:PORT behind it", (_FILE,)),
    Option("mode", "MODE", "run without a configuration file", (_SERVER, _CLIENT), ("server", "client")),
    Option(
        "protocol", "NAME", "what to serve, or what the proxy speaks", (_SERVER, _CLIENT), choices=_PROTOCOLS
    ),
    Option("addr", "ADDRESS", "where to listen, or where the proxy is", (_SERVER, _CLIENT)),
    Option("username", "NAME", "the user who may use the server, or to log in as", (_SERVER, _CLIENT)),
    Option("password", "PASSWORD", "better in the environment, as PROXY_PASSWORD", (_SERVER, _CLIENT)),
    Option("upstream-type", "TYPE", "server: what the upstream is", (_SERVER,), choices=_TYPES),
    Option("upstream-address", "ADDRESS", "server: where the upstream proxy is", (_SERVER,)),
    Option("upstream-username", "NAME", "server: to log in there as", (_SERVER,)),
    Option("upstream-password", "PASSWORD", "server: or PROXY_UPSTREAM_PASSWORD", (_SERVER,)),
    Option("upstream-tls-ca", "FILE", "server: trust this CA, not the system's, for TLS", (_SERVER,)),
    Option("tls-ca", "FILE", "client: trust this CA, not the system's, for TLS", (_CLIENT,)),
    Option(
        "proxy",
        "URL",
        "client: reach the proxy itself through this one; env: as the environment says",
        (_CLIENT,),
    ),
    Option("host", "HOST", "client: the target", (_CLIENT,)),
    Option("port", "PORT", "client: its port", (_CLIENT,)),
    Option("listen", "ADDRESS", "client: carry every local connection there to the target", (_CLIENT,)),
    Option("init", "FILE", "write a short file to start from; -: print it", (_INIT,), default="proxy.ini"),
    Option("hash-password", "", "read a password, print its hash for [auth_users]", (_HASH,)),
    Option("version", "", "print the version"),
    Option("help", "", "print this help", also=("h",)),
)

# What a configuration value is called on the command line.
_NAMES = {
    _SERVER: {
        "listen_addr": "-addr",
        "proxy_address": "-upstream-address",
        "proxy_username": "-upstream-username",
        "proxy_password": "-upstream-password",
        "tls_ca": "-upstream-tls-ca",
        "type": "-upstream-type",
    },
    _CLIENT: {
        "listen_addr": "-listen",
        "proxy_address": "-addr",
        "proxy_username": "-username",
        "proxy_password": "-password",
        "tls_ca": "-tls-ca",
    },
}


def run(arguments: Sequence[str]) -> int:
    """Run the program with these arguments, and return its exit code."""
    try:
        try:
            signals.unblock_interrupt()
            if worker := os.environ.pop(WORKER, ""):
                return _work(worker)
            return _control(arguments[1:]) if arguments[:1] == ["ctl"] else _run(arguments)
        finally:
            console.flush()
    except UsageError as exc:
        say(f"proxy-server: {exc} (-h for help)")
        return BAD_USAGE
    except InputError as exc:
        say(f"proxy-server: {exc}")
        return BAD_USAGE
    except OutputError as exc:
        console.give_up_output()
        if not exc.unwanted:
            say(f"proxy-server: {exc}")
        return FAILED
    except ProxyError as exc:
        say(f"proxy-server: {exc}")
        return FAILED
    except KeyboardInterrupt:
        return KILLED + signal.SIGINT
    except Exception as exc:
        say(f"proxy-server: internal error: {type(exc).__name__}: {exc}")
        return FAILED


def _run(arguments: Sequence[str]) -> int:
    given, others = read(arguments, OPTIONS)
    if "test" in given and others:
        given[_TARGET] = others.pop(0)
    if "help" in given:
        print(f"{USAGE}\n{describe(OPTIONS)}")
        return OK
    if "version" in given:
        print(f"proxy-server {__version__}")
        return OK
    mode = _mode(given)
    _refuse_strangers(given, others, mode)
    serves = mode == _SERVER or (mode == _FILE and not given.keys() & _LOOKS)
    if not serves:
        signals.unblock()  # a client ends with its terminal
    try:
        return _MODES[mode](given)
    except ConfigError as exc:
        say(f"proxy-server: {_NAMES.get(mode, {}).get(exc.field, exc.field)}: {exc}")
        return BAD_USAGE


def _mode(given: Mapping[str, str]) -> str:
    if "config" in given:
        return _FILE
    if "mode" in given:
        return f"-mode {given['mode']}"
    return next((f"-{each}" for each in ("init", "hash-password") if each in given), "")


def _refuse_strangers(given: Mapping[str, str], others: Sequence[str], mode: str) -> None:
    """Refuse what would have no effect: whoever wrote it believes that it has one."""
    if others:
        raise UsageError(_stray(others[0]))
    used = [option for option in OPTIONS if option.name in given]
    for option in used:
        if option.value and not given[option.name]:
            # Most likely a variable of a shell that is not set; without a user, say, a server would be open.
            raise UsageError(f"-{option.name} has an empty value")
    if not mode and used:
        raise UsageError(f"-{used[0].name} belongs to {' or '.join(used[0].modes)}, which is missing")
    if not mode:
        raise UsageError("nothing to do: give -c FILE, or -mode server, or -mode client, or -init")
    strange = [f"-{option.name}" for option in used if mode not in option.modes]
    if strange:
        raise UsageError(f"{', '.join(strange)} cannot be used with {mode}")
    if "last-good" in given and given.keys() & _LOOKS:
        raise UsageError(
            "-last-good is for a start: it cannot be used with -check, -dump, -explain and -test"
        )
    lonely = given.keys() & _ABOUT_EXPLAIN
    if lonely and "explain" not in given:
        raise UsageError(f"-{min(lonely)} belongs to -explain, which is missing")


def _stray(word: str) -> str:
    if word == "ctl":
        return "ctl comes first: proxy-server ctl -c FILE COMMAND"
    if word.endswith((".ini", ".conf")) or os.path.isfile(word):
        return f"to run from a file, write -c {word}"
    return "an argument belongs to no option: a value with blanks goes into quotes"


def _require(given: Mapping[str, str], *names: str) -> None:
    for name in names:
        if not given.get(name):
            raise ConfigError(f"-{name}", f"-mode {given['mode']} needs it")


def _protocol(given: Mapping[str, str], known: Iterable[Protocol]) -> Protocol:
    words = [each.value for each in known]
    if given["protocol"] not in words:
        raise ConfigError("-protocol", f"with -mode {given['mode']} it is one of {', '.join(words)}")
    return Protocol(given["protocol"])


def _login(given: Mapping[str, str], prefix: str = "") -> tuple[str, str]:
    """Give a user name and password, of which the second can come from the environment; or neither."""
    variable = f"PROXY_{prefix.upper().replace('-', '_')}PASSWORD"
    username, password = given.get(f"{prefix}username", ""), given.get(f"{prefix}password", "")
    if username and not password:
        password = os.environ.get(variable, "")
        if not password:
            raise ConfigError(f"-{prefix}password", f"the user needs one: give it here, or in {variable}")
    elif password and not username:
        raise ConfigError(f"-{prefix}username", f"-{prefix}password is given, so this is needed too")
    elif not username and os.environ.get(variable):
        raise ConfigError(f"-{prefix}username", f"{variable} is set, so this is needed too; or unset it")
    return username, password


# -- serving


def _run_file(given: Mapping[str, str]) -> int:
    # The control plane is imported only here: without it there is still a proxy.
    from proxy.configfile.load import InvalidConfigError

    try:
        if given.keys() & {"check", "dump"}:
            return _inspect(given)
        if "explain" in given:
            return _explain(given)
        if "test" in given:
            return _test(given)
        from proxy import live

        live.serve(given["config"], last_good="last-good" in given)
        return OK
    except InvalidConfigError as exc:
        for problem in exc.problems:
            say(str(problem))
        return BAD_USAGE


def _inspect(given: Mapping[str, str]) -> int:
    from proxy.accesslog import NO_LOG
    from proxy.configfile.dump import dump
    from proxy.configfile.load import load
    from proxy.listeners import Listeners, make_server
    from proxy.metrics import Metrics
    from proxy.policy.rules import openness
    from proxy.server import ProxyServer

    with console.progress() as tell:
        tell("reading the configuration")
        loaded = load(given["config"])
    for warning in loaded.warnings:
        say(f"warning: {warning}")
    if "dump" in given:
        print(dump(loaded.config), end="")
    else:
        with console.progress() as tell:
            numbers = count(1)

            def make(listener: ServerConfig, *others: Any) -> ProxyServer:
                tell(f"building listener {next(numbers)} of {len(loaded.config.listeners)}")
                return make_server(listener, *others)

            # Build what a start would, and open nothing.
            Listeners(make, NO_LOG, Metrics()).plan(loaded.config)
        for listener in loaded.config.listeners:
            if not listener.is_local:
                say(f"note: {listener.name}: {openness(listener)}")
        print("ok")
    return OK


def _explain(given: Mapping[str, str]) -> int:
    """Say what the rules of a file make of a target; exit code 1 if they refuse it."""
    from proxy.configfile.load import load
    from proxy.ctl import show
    from proxy.explain import choose, explain_request, read_client, read_target
    from proxy.policy.rules import Policy
    from proxy.selfcheck import machine_with

    config = load(given["config"]).config
    target = _read("-explain", read_target, given["explain"])
    client = _read("-from", read_client, given.get("from", ""))
    try:
        listener = choose(config.listeners, given.get("listener", ""))
    except ConfigError as exc:
        raise UsageError(f"-listener: {exc}") from None
    policy = Policy(listener, machine_with(config))
    told = explain_request(policy, listener, target, given.get("user", ""), client)
    print(show.text(show.explanation(told)))
    return OK if told["goes"] else FAILED


def _test(given: Mapping[str, str]) -> int:
    """Reach an upstream of a file stage by stage; exit code 1 if that fails."""
    from proxy.configfile.load import load
    from proxy.ctl import show
    from proxy.explain import read_target
    from proxy.stages import examine, find

    config = load(given["config"]).config
    target = _read("-test", read_target, given[_TARGET]) if _TARGET in given else None
    try:
        told = examine(find(config, given["test"]), target)
    except (LookupError, ValueError) as exc:
        raise UsageError(f"-test: {exc}") from None
    print(show.text(show.trial(told)))
    return OK if told["ok"] else FAILED


def _read(option: str, read: Callable[[str], T], text: str) -> T:
    try:
        return read(text)
    except ValueError as exc:
        raise UsageError(f"{option}: {exc}") from None


def _control(arguments: Sequence[str]) -> int:
    from proxy.ctl import commands

    signals.unblock()
    return commands.run(arguments)


def _work(descriptors: str) -> int:
    from proxy.workers.worker import run

    return run(descriptors)


def _run_server(given: Mapping[str, str]) -> int:
    from proxy.app import App

    _require(given, "protocol", "addr")
    username, password = _login(given)
    listener = ServerConfig(
        name=given["protocol"],
        listen_addr=given["addr"],
        protocol=_protocol(given, LISTENER_SCHEMES),
        auth_users={username: password} if username else {},
        upstream_config=_upstreams(given),
    )
    App(_without_circle(listener)).run()
    return OK


def _without_circle(listener: ServerConfig) -> ProxyConfig:
    """Make the configuration of a single listener, whose upstream must not be the listener."""
    from proxy import selfcheck

    config = ProxyConfig(listeners=(listener,), auth_users=listener.auth_users)
    if any(selfcheck.problems(config)):
        raise ConfigError(
            "proxy_address", "this program itself listens there: connections would go in a circle"
        )
    return config


def _upstreams(given: Mapping[str, str]) -> tuple[UpstreamConfig, ...]:
    if not given.get("upstream-type"):
        lonely = [name for name in given if name.startswith("upstream-")]
        if lonely:
            raise ConfigError("-upstream-type", f"-{lonely[0]} needs it")
        return ()
    username, password = _login(given, "upstream-")
    return (
        UpstreamConfig(
            name=given["upstream-type"],
            type=UpstreamType(given["upstream-type"]),
            proxy_address=given.get("upstream-address", ""),
            proxy_username=username,
            proxy_password=password,
            tls_ca=given.get("upstream-tls-ca", ""),
        ),
    )


# -- being a client


def _run_client(given: Mapping[str, str]) -> int:
    _require(given, "protocol", "addr", "host", "port")
    target = _target(given)
    username, password = _login(given)
    # The proxy that a client asks is an upstream that is asked once.
    proxy = UpstreamConfig(
        name=without_query(given["addr"]),
        type=UpstreamType(_protocol(given, PROXY_SCHEMES).value),
        proxy_address=given["addr"],
        proxy_username=username,
        proxy_password=password,
        tls_ca=given.get("tls-ca", ""),
        timeout=CLIENT_TIMEOUT,
        retry_count=0,
    )
    proxy = replace(proxy, via=_proxy_on_the_way(given.get("proxy", ""), proxy))
    if "listen" in given:
        return _listen(given["listen"], target, proxy)
    from proxy import netcat

    return netcat.join(target, proxy)


def _proxy_on_the_way(url: str, proxy: UpstreamConfig) -> UpstreamConfig | None:
    from proxy.proxyurl import ENVIRONMENT, parse_proxy_url, proxy_for

    if url == ENVIRONMENT:
        url = proxy_for(proxy.client_config.endpoint, os.environ)
    return replace(parse_proxy_url(url), timeout=CLIENT_TIMEOUT) if url else None


def _target(given: Mapping[str, str]) -> Address:
    if not given["port"].isdecimal() or not 0 < int(given["port"]) < 65536:
        raise ConfigError("-port", "not a number from 1 to 65535")
    try:
        return Address(given["host"], int(given["port"]))
    except ProtocolError as exc:
        raise ConfigError("-host", str(exc)) from None


def _listen(address: str, target: Address, proxy: UpstreamConfig) -> int:
    from proxy.app import App
    from proxy.portforward import PortForwarder

    config = ServerConfig(
        name="listen", listen_addr=address, protocol=Protocol.SOCKS5, upstream_config=(proxy,)
    )
    App(_without_circle(config), lambda config, *told: PortForwarder(config, target, *told)).run()
    return OK


# -- what helps to write a configuration


def _init(given: Mapping[str, str]) -> int:
    from proxy.starter import STARTER, write_starter

    path = given["init"]
    if path == "-":
        print(STARTER, end="")
        return OK
    write_starter(path)
    run = f"proxy-server -c {shlex.quote(path)}"
    print(f"{path} is written: a proxy for this machine alone. Have a look at it, then run it:\n  {run}")
    return OK


def _hash_password(given: Mapping[str, str]) -> int:
    from proxy.policy.auth import hash_password

    password = console.read_secret("Password: ", again="Again: ")
    if not 1 <= len(to_bytes(password)) <= 255 or "\0" in password:
        raise InputError("a password has 1 to 255 bytes, and no NUL")
    print(hash_password(password))
    return OK


_MODES = {
    _FILE: _run_file,
    _SERVER: _run_server,
    _CLIENT: _run_client,
    _INIT: _init,
    _HASH: _hash_password,
}
