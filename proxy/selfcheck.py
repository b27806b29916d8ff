"""
What is wrong with a configuration on this machine at this time, which its text does not show.

Two listeners may have the same address, one of them by name. A listener's upstream may be the listener
itself, or lead back to it through others: then every connection would loop until there is
no room for another. A certificate may have expired, and the system may know of no authorities that could
vouch for a proxy's.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import combinations
from time import gmtime, strftime, time

from proxy.address import Endpoint, IPAddress, Place
from proxy.config import ProxyConfig
from proxy.errors import ConfigError, EgressError
from proxy.listening.opening import find_within
from proxy.listening.ours import is_local, leads_to
from proxy.net.egress import try_out
from proxy.policy.rules import Machine
from proxy.settings.listener import ServerConfig
from proxy.tls.contexts import lack_of_authorities, validity_of

_LOOKUP = 1.0  # seconds: what takes longer is hardly a name of this machine

Find = Callable[[Endpoint], list[Place]]
Ways = list[tuple[int, str]]  # listeners, by number, and the names of the upstreams that lead to them


def problems(config: ProxyConfig) -> Iterator[ConfigError]:
    """Find what cannot be; names are looked up for it, but only where ports are the same."""
    find = cache(partial(find_within, _LOOKUP))
    yield from _shared_addresses(config, find)
    ways = [_ways_from(listener, config.listeners, find) for listener in config.listeners]
    for start, listener in enumerate(config.listeners):
        circle = _circle(start, ways)
        if circle and start == min(number for number, _ in circle):  # to tell of each once
            steps = ", ".join(
                f"by upstream {upstream} to {config.listeners[number].name}" for number, upstream in circle
            )
            message = f"connections would go in a circle: from {listener.name} {steps}"
            yield ConfigError(f"listeners.{listener.name}.upstream", message)


def warnings(config: ProxyConfig) -> Iterator[ConfigError]:
    """Find what is not right now and may be in a moment: certificates, authorities, what to go out by."""
    for listener in config.listeners:
        yield from _dates(f"listeners.{listener.name}", listener.tls_cert, "clients refuse it")
    for upstream in config.upstreams:
        yield from _dates(f"upstreams.{upstream.name}", upstream.tls_cert, "the proxy refuses it")
    for upstream in config.upstreams:
        if (
            upstream.proxy_address
            and upstream.client_config.trusts_system
            and (lack := lack_of_authorities())
        ):
            yield ConfigError(f"upstreams.{upstream.name}.tls_ca", f"{lack}; its certificate is refused")
    for upstream in config.upstreams:
        try:
            try_out(upstream.egress)
        except EgressError as exc:
            what = "its connections fail until that changes"
            yield ConfigError(f"upstreams.{upstream.name}.{exc.setting}", f"{exc.reason}: {what}")
        except OSError:  # for want of something else, or of a family
            continue


def _dates(section: str, cert: str, effect: str) -> Iterator[ConfigError]:
    """Say of a certificate if its time is over, or not come yet, as where the clock of a box is wrong."""
    validity, now = validity_of(cert) if cert else None, time()
    if validity and not validity[0] <= now <= validity[1]:
        is_over = now > validity[1]
        when = strftime("%Y-%m-%d %H:%M:%S UTC", gmtime(validity[is_over]))
        what = (
            f"has expired, at {when}: renew it"
            if is_over
            else f"is not valid before {when}: is the clock right?"
        )
        yield ConfigError(f"{section}.tls_cert", f"{cert} {what}; {effect}")


def machine_with(config: ProxyConfig) -> Machine:
    """Describe this machine as it is while this program listens on all addresses of a configuration."""
    find = cache(partial(find_within, _LOOKUP))

    def listens_on(ip: IPAddress, port: int) -> bool:
        here = [each.endpoint for each in config.listeners if each.endpoint.port == port]
        return any(leads_to(ip, place) for endpoint in here for place in find(endpoint))

    return Machine(is_local, listens_on)


def _shared_addresses(config: ProxyConfig, find: Find) -> Iterator[ConfigError]:
    endpoints = [(f"listeners.{each.name}", each.endpoint) for each in config.listeners]
    if config.control_listen_addr:
        endpoints.append(("control", Endpoint.parse(config.control_listen_addr)))
    for (first, one), (second, other) in combinations(endpoints, 2):
        if one.port == other.port != 0 and not (one.place and other.place):  # these have been compared
            shared = [here for here in find(one) if any(map(here.overlaps, find(other)))]
            if shared:
                yield ConfigError(f"{second}.listen_addr", f"is the address of [{first}] too: {shared[0]}")


def _ways_from(listener: ServerConfig, listeners: Sequence[ServerConfig], find: Find) -> Ways:
    """Find the listeners to which the upstreams of one lead."""
    proxies = [
        (each.name, each.hops[-1].client_config.endpoint)
        for each in listener.all_upstreams
        if each.proxy_address
    ]
    return [
        (number, name)
        for name, proxy in proxies
        for number, to in enumerate(listeners)
        if proxy.port == to.endpoint.port
        and any(leads_to(target.ip, place) for target in find(proxy) for place in find(to.endpoint))
    ]


def _circle(start: int, ways: Sequence[Ways]) -> Ways:
    """Find the shortest way from a listener back to it, if there is one."""
    seen: set[int] = set()
    paths: list[Ways] = [[]]
    for path in paths:  # to which the longer ones are added
        for number, upstream in ways[path[-1][0] if path else start]:
            if number not in seen:
                seen.add(number)
                paths.append([*path, (number, upstream)])
            if number == start:
                return paths[-1]
    return []
