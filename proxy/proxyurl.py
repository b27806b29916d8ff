"""
A proxy as other programs name it too: by a URL, which may stand in the environment.

Which variable counts, and for which hosts none does, has no standard; it is as curl does it.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_network
from urllib.parse import unquote

from proxy.address import Endpoint
from proxy.errors import ConfigError
from proxy.settings.client import Term
from proxy.settings.upstream import UpstreamConfig, UpstreamType

ENVIRONMENT = "env"  # what is written in the place of a URL that stands there

_URL = re.compile(r"(?:(?P<scheme>[a-zA-Z0-9+.-]+)://)?(?:(?P<login>[^/?#]*)@)?(?P<place>[^@]*)")
_TYPES = {
    "http": UpstreamType.HTTP,
    "https": UpstreamType.HTTP,
    "socks5": UpstreamType.SOCKS5,
    "socks5h": UpstreamType.SOCKS5,  # names travel as names in any case
    "socks": UpstreamType.SOCKS5,
}
_VARIABLES = {"ws": "http_proxy", "http": "http_proxy", "wss": "https_proxy", "https": "https_proxy"}


def parse_proxy_url(url: str, source: str = "-proxy") -> UpstreamConfig:
    """
    Read ``[http://][user:password@]host[:port]``, or the same with https, socks5 or socks5h.

    Raises ``ConfigError``, which does not repeat it and names the ``source``.
    """
    match = _URL.fullmatch(url)
    scheme = ((match and match["scheme"]) or "http").lower()
    if not match or scheme not in _TYPES:
        raise ConfigError(
            source, f"is not a URL that begins with {', '.join(f'{each}://' for each in _TYPES)}"
        )
    username, _, password = (match["login"] or "").partition(":")
    kind = _TYPES[scheme]
    own_scheme = scheme if kind is UpstreamType.HTTP else "socks5"
    try:
        return UpstreamConfig(
            name=match["place"].rstrip("/"),
            type=kind,
            proxy_address=f"{own_scheme}://{match['place']}",
            proxy_username=unquote(username),
            proxy_password=unquote(password),
            authorities=Term("SSL_CERT_FILE"),  # as no option does it
        )
    except ConfigError as exc:
        raise ConfigError(source, str(exc)) from None


def variable_for(endpoint: Endpoint, environment: Mapping[str, str]) -> str:
    """Tell which variable of the environment has the URL for the way to an endpoint; "" for none."""

    def find(name: str) -> str:
        # http_proxy only in lower case: a CGI script's HTTP_PROXY is a header of whoever asks it.
        spellings = (name,) if name == "http_proxy" else (name, name.upper())
        return next((each for each in spellings if environment.get(each)), "")

    no_proxy = environment.get(find("no_proxy"), "")
    if any(_is_of(endpoint, entry.strip()) for entry in no_proxy.split(",")):
        return ""
    return find(_VARIABLES.get(endpoint.scheme, "all_proxy")) or find("all_proxy")


def _is_of(endpoint: Endpoint, entry: str) -> bool:
    """Tell whether an entry of no_proxy is an endpoint's: a name and all below it, an address, a network."""
    host, ip = endpoint.server_name, endpoint.address.ip
    if entry == "*":
        return True
    if ip:
        try:
            return ip in ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            return False
    name = entry.lower().strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))
