"""
``-mode server`` and ``-mode client``: what runs from options alone, without a file.

Options become the same configuration that a file would. What is wrong with it is raised as ``ConfigError``,
which names an option.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from proxy.address import Address, read_ip
from proxy.config import ProxyConfig
from proxy.console import OK
from proxy.errors import ConfigError, ProtocolError
from proxy.redact import without_query
from proxy.settings.client import Term
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import LISTENER_SCHEMES, PROXY_SCHEMES, Protocol
from proxy.settings.upstream import UpstreamConfig, UpstreamType

Given = Mapping[str, str]  # the options, by their names

CLIENT_TIMEOUT = 30.0  # seconds for -mode client to reach its target

# What a setting is called on the command line.
_OF_SERVER = {
    "listen_addr": "-addr",
    "proxy_address": "-upstream-address",
    "proxy_username": "-upstream-username",
    "proxy_password": "-upstream-password",
    "tls_ca": "-upstream-tls-ca",
    "type": "-upstream-type",
}
_OF_CLIENT = {
    "listen_addr": "-listen",
    "proxy_address": "-addr",
    "proxy_username": "-username",
    "proxy_password": "-password",
    "tls_ca": "-tls-ca",
}


def run_server(given: Given) -> int:
    """Serve until it is told to stop."""
    with _named(_OF_SERVER):
        return _serve(given)


def run_client(given: Given) -> int:
    """Join standard input and output to the target through a proxy, or carry local connections there."""
    with _named(_OF_CLIENT):
        return _connect(given)


@contextmanager
def _named(options: Mapping[str, str]) -> Iterator[None]:
    """Have what is wrong with a setting named by its option."""
    try:
        yield
    except ConfigError as exc:
        raise ConfigError(options.get(exc.field, exc.field), str(exc)) from exc


# -- being a server


def _serve(given: Given) -> int:
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


def _upstreams(given: Given) -> tuple[UpstreamConfig, ...]:
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
            authorities=Term(_OF_SERVER["tls_ca"]),
        ),
    )


# -- being a client


def _connect(given: Given) -> int:
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
        authorities=Term(_OF_CLIENT["tls_ca"]),
        timeout=CLIENT_TIMEOUT,
        retry_count=0,
    )
    proxy = replace(proxy, via=_proxy_on_the_way(given.get("proxy", ""), proxy))
    if "listen" in given:
        return _listen(given["listen"], target, proxy)
    from proxy import netcat

    return netcat.join(target, proxy)


def _proxy_on_the_way(url: str, proxy: UpstreamConfig) -> UpstreamConfig | None:
    from proxy.proxyurl import ENVIRONMENT, parse_proxy_url, variable_for

    source = "-proxy"
    if url == ENVIRONMENT:
        source = variable_for(proxy.client_config.endpoint, os.environ)
        url = os.environ.get(source, "")
    return replace(parse_proxy_url(url, source), timeout=CLIENT_TIMEOUT) if url else None


def _target(given: Given) -> Address:
    if not given["port"].isdecimal() or not 0 < int(given["port"]) < 65536:
        raise ConfigError("-port", "not a number from 1 to 65535")
    host = given["host"]
    if host[:1] == "[" and host[-1:] == "]" and read_ip(host[1:-1]):
        raise ConfigError("-host", f"brackets are for an address with a port in one: write {host[1:-1]}")
    try:
        return Address(host, int(given["port"]))
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


# -- options of both


def _require(given: Given, *names: str) -> None:
    for name in names:
        if not given.get(name):
            raise ConfigError(f"-{name}", f"-mode {given['mode']} needs it")


def _protocol(given: Given, known: Iterable[Protocol]) -> Protocol:
    words = [each.value for each in known]
    if given["protocol"] not in words:
        raise ConfigError("-protocol", f"with -mode {given['mode']} it must be one of {', '.join(words)}")
    return Protocol(given["protocol"])


def _login(given: Given, prefix: str = "") -> tuple[str, str]:
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
