"""
The command line.

Exit codes: 0 ended as asked, 1 failed at run time, 2 bad usage or configuration. Every error is one
line on standard error, and none is a traceback.
"""

import argparse
import getpass
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from proxy import __version__, signals
from proxy.address import Address, without_query
from proxy.config import (
    Protocol,
    ProxyConfig,
    ServerConfig,
    UpstreamConfig,
    UpstreamType,
    to_bytes,
)
from proxy.errors import ConfigError, ProtocolError, ProxyError
from proxy.logs import say

OK, FAILED, BAD_USAGE = 0, 1, 2
CLIENT_TIMEOUT = 30.0  # seconds for -mode client to reach its target

_USAGE = """\
proxy-server -c proxy.ini [-check | -dump | -last-good]
       proxy-server -mode server -protocol socks5|websocket -addr ADDRESS [options]
       proxy-server -mode client -protocol socks5|websocket -addr ADDRESS -host HOST -port PORT [options]
       proxy-server ctl -c proxy.ini [--json] [--volatile] COMMAND [ARGUMENT ...]   (ctl -h lists them)
       proxy-server -hash-password
       proxy-server -version | -h"""


def run(arguments: Sequence[str]) -> int:
    """Run the program with these arguments, and return its exit code."""
    options = _parse(() if arguments[:1] == ["ctl"] else arguments)
    if not options.config and options.mode != "server":
        signals.heed()  # a client ends with its terminal
    try:
        return _control(arguments[1:]) if arguments[:1] == ["ctl"] else _run(options)
    except ConfigError as exc:
        name = _OPTIONS.get(options.mode, {}).get(exc.field, exc.field)
        say(f"proxy-server: {name}: {exc}")
        return BAD_USAGE
    except ProxyError as exc:
        say(f"proxy-server: {exc}")
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    except Exception as exc:
        say(f"proxy-server: internal error: {type(exc).__name__}: {exc}")
        return FAILED


def _run(options: argparse.Namespace) -> int:
    if options.version:
        print(f"proxy-server {__version__}")
        return OK
    if options.hash_password:
        return _hash_password()
    if options.config:
        return _run_file(options)
    if options.mode == "server":
        return _serve(ProxyConfig(listeners=(_server_config(options),)))
    if options.mode == "client":
        return _run_client(options)
    raise ConfigError("-c", "nothing to do: give -c FILE, or -mode server, or -mode client (-h for help)")


# -- options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        say(f"proxy-server: {message} (-h for help)")
        sys.exit(BAD_USAGE)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="proxy-server", usage=_USAGE, add_help=False, allow_abbrev=False)
    add = parser.add_argument_group("options (one dash or two)").add_argument

    def option(name: str, *aliases: str, **settings: object) -> None:
        names = [dashes + one for one in (name, *aliases) for dashes in ("-", "--")]
        add(*names, dest=name.replace("-", "_"), **settings)  # type: ignore[arg-type]

    option("config", "c", metavar="FILE", help="run from a configuration file")
    option("check", action="store_true", help="with -c: validate, and print every problem")
    option("dump", action="store_true", help="with -c: print the effective configuration, without secrets")
    option("last-good", action="store_true", help="with -c: start with the last valid version if need be")
    option("mode", choices=["server", "client"], help="run without a configuration file")
    option("protocol", choices=["socks5", "websocket"], help="what to serve, or what the proxy speaks")
    option("addr", metavar="ADDRESS", help="where to listen, or where the proxy is")
    option("username", default="", help="the user who may use the server, or to log in as")
    option("password", default="", help="the password; better in the environment, as PROXY_PASSWORD")
    option("upstream-type", choices=[kind.value for kind in UpstreamType], help="server: the way out")
    option("upstream-address", default="", metavar="ADDRESS", help="server: the upstream proxy")
    option("upstream-username", default="", metavar="USERNAME", help="server: to log in there as")
    option("upstream-password", default="", metavar="PASSWORD", help="or PROXY_UPSTREAM_PASSWORD")
    option("host", metavar="HOST", help="client: the target")
    option("port", metavar="PORT", help="client: its port")
    option("listen", metavar="ADDRESS", help="client: carry every local connection there to the target")
    option("hash-password", action="store_true", help="read a password, print its hash for [auth_users]")
    option("version", action="store_true", help="print the version")
    add("-h", "-help", "--help", action="help", help="print this help")
    return parser.parse_args(arguments)


# What a configuration value is called on the command line, in each mode.
_OPTIONS = {
    "server": {
        "listen_addr": "-addr",
        "proxy_address": "-upstream-address",
        "proxy_username": "-upstream-username",
        "proxy_password": "-upstream-password",
        "type": "-upstream-type",
    },
    "client": {
        "listen_addr": "-listen",
        "proxy_address": "-addr",
        "proxy_username": "-username",
        "proxy_password": "-password",
    },
}


def _require(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if not getattr(options, name):
            raise ConfigError(f"-{name}", f"-mode {options.mode} needs it")


def _secret(given: str, variable: str) -> str:
    return given or os.environ.get(variable, "")


# -- serving


def _run_file(options: argparse.Namespace) -> int:
    # The control plane is imported only here: without it there is still a proxy.
    from proxy.control.configfile import InvalidConfigError

    try:
        if options.check or options.dump:
            return _inspect(options)
        from proxy import live

        live.serve(options.config, last_good=options.last_good)
        return OK
    except InvalidConfigError as exc:
        for problem in exc.problems:
            say(str(problem))
        return BAD_USAGE


def _inspect(options: argparse.Namespace) -> int:
    from proxy.app import App
    from proxy.control import configfile

    loaded = configfile.load(options.config)
    for warning in loaded.warnings:
        say(f"warning: {warning}")
    if options.dump:
        print(configfile.dump(loaded.config), end="")
    else:
        App(loaded.config)
    return OK


def _control(arguments: Sequence[str]) -> int:
    from proxy.control import ctl

    return ctl.run(arguments)


def _server_config(options: argparse.Namespace) -> ServerConfig:
    _require(options, "protocol", "addr")
    password = _secret(options.password, "PROXY_PASSWORD")
    if bool(options.username) != bool(password):
        raise ConfigError("-username" if password else "-password", "the two come together")
    return ServerConfig(
        name=options.protocol,
        listen_addr=options.addr,
        protocol=Protocol(options.protocol),
        auth_users={options.username: password} if options.username else {},
        upstream_config=_upstreams(options),
    )


def _upstreams(options: argparse.Namespace) -> tuple[UpstreamConfig, ...]:
    if not options.upstream_type:
        if options.upstream_address:
            raise ConfigError("-upstream-type", "-upstream-address needs it")
        return ()
    return (
        UpstreamConfig(
            name=options.upstream_type,
            type=UpstreamType(options.upstream_type),
            proxy_address=options.upstream_address,
            proxy_username=options.upstream_username,
            proxy_password=_secret(options.upstream_password, "PROXY_UPSTREAM_PASSWORD"),
        ),
    )


def _serve(config: ProxyConfig) -> int:
    from proxy.app import App

    App(config).run()
    return OK


# -- being a client


def _run_client(options: argparse.Namespace) -> int:
    _require(options, "protocol", "addr", "host", "port")
    target = _target(options)
    # The proxy that a client asks is an upstream that is asked once.
    proxy = UpstreamConfig(
        name=without_query(options.addr),
        type=UpstreamType(options.protocol),
        proxy_address=options.addr,
        proxy_username=options.username,
        proxy_password=_secret(options.password, "PROXY_PASSWORD"),
        timeout=CLIENT_TIMEOUT,
        retry_count=0,
    )
    return _listen(options.listen, target, proxy) if options.listen else _join_stdio(target, proxy)


def _target(options: argparse.Namespace) -> Address:
    if not options.port.isdecimal() or not 0 < int(options.port) < 65536:
        raise ConfigError("-port", "not a number from 1 to 65535")
    try:
        return Address(options.host, int(options.port))
    except ProtocolError as exc:
        raise ConfigError("-host", str(exc)) from None


def _join_stdio(target: Address, proxy: UpstreamConfig) -> int:
    from proxy.net.stdio import StdioStream
    from proxy.net.stream import Ending
    from proxy.upstream import make_client

    client = make_client(proxy)
    client.connect(target.host, target.port)
    transfer = client.forward_data(StdioStream())
    if transfer.ending is Ending.FINISHED:
        return OK
    say(f"proxy-server: {target}: {transfer.detail or transfer.ending.value}")
    return FAILED


def _listen(address: str, target: Address, proxy: UpstreamConfig) -> int:
    from proxy.app import App
    from proxy.portforward import PortForwarder

    config = ServerConfig(
        name="listen", listen_addr=address, protocol=Protocol.SOCKS5, upstream_config=(proxy,)
    )
    App(ProxyConfig(listeners=(config,)), lambda config, *told: PortForwarder(config, target, *told)).run()
    return OK


# -- passwords


def _hash_password() -> int:
    from proxy.auth import hash_password

    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            say("proxy-server: the two passwords differ")
            return BAD_USAGE
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not 1 <= len(to_bytes(password)) <= 255 or "\0" in password:
        say("proxy-server: a password has 1 to 255 bytes, and no NUL")
        return BAD_USAGE
    print(hash_password(password))
    return OK
