"""
X-Forwarded-For: who the client is, told by the HTTP servers in between.

Each of them appends the address that it sees, so only what trusted ones
have added can be believed, and that is on the right.
"""

import logging
from ipaddress import ip_address

from proxy.address import Address, IPAddress
from proxy.http.heads import Headers
from proxy.networks import Networks
from proxy.relaying.channel import Channel
from proxy.settings.listener import ClientAddress, ServerConfig

X_FORWARDED_FOR = "X-Forwarded-For"

log = logging.getLogger(__name__)


def learn_client(channel: Channel, headers: Headers, config: ServerConfig) -> None:
    """Take the word of a trusted sender on who the client is; raises ``NotAClientError``."""
    if config.client_address is not ClientAddress.X_FORWARDED_FOR:
        return
    sender = channel.client
    if sender and config.trusts(sender):
        channel.client = client_behind(headers, config.trusted) or sender
    config.check_client(channel.client.ip if channel.client else None)


def client_behind(headers: Headers, trusted: Networks) -> Address | None:
    """
    Give the right-most address that is not trusted itself, or the left-most if all are.

    What stands to the left of something that is no address is not looked at. None if there is no header, or
    if the first thing on the right is no address.
    """
    found: IPAddress | None = None
    for text in reversed(",".join(headers.get_all(X_FORWARDED_FOR)).split(",")):
        address = _read(text.strip(" \t"))
        if address is None:
            log.debug("%s does not hold an address", X_FORWARDED_FOR)
            break
        found = address
        if found not in trusted:
            return Address(str(found), 0)
    return Address(str(found), 0) if found else None


def _read(text: str) -> IPAddress | None:
    """Read an address, which some servers write with a port behind it, and an IPv6 one in brackets."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    if "%" in text:  # a zone means nothing on another machine
        return None
    try:
        ip = ip_address(text)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip
