"""
How connections leave this machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from ipaddress import ip_address

from proxy.address import IPAddress
from proxy.errors import ConfigError
from proxy.settings.checked import Settings
from proxy.settings.kinds import Interface, SourceAddress


class Family(str, Enum):
    """Of which family the addresses are that are connected to; without ``_ONLY``, the others come second."""

    AUTO = "auto"
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    IPV4_ONLY = "ipv4_only"
    IPV6_ONLY = "ipv6_only"


_VERSIONS = {Family.IPV4: 4, Family.IPV4_ONLY: 4, Family.IPV6: 6, Family.IPV6_ONLY: 6}


@dataclass(frozen=True)
class Egress(Settings):
    """
    How connections leave this machine: from one of its addresses, by one of its interfaces, in which family.

    Whatever is left out is for the system to choose.
    """

    source: SourceAddress = ""
    interface: Interface = ""
    family: Family = Family.AUTO

    def _problems(self) -> Iterator[ConfigError]:
        try:
            ip = self.source_ip
        except ValueError:  # which its kind complains of
            return
        if ip and self.preferred not in (0, ip.version):
            yield ConfigError("family", f"is {self.family.value}, and source is an IPv{ip.version} address")
        if ip and ip.is_link_local and ip.version == 6 and not (ip.scope_id or self.interface):
            yield ConfigError("source", "a link-local address needs its interface: write fe80::1%eth1")

    def __str__(self) -> str:
        places = {"from": self.source, "by": self.interface}
        return " ".join(f"{word} {place}" for word, place in places.items() if place)

    @cached_property
    def source_ip(self) -> IPAddress | None:
        """The source as an address."""
        return ip_address(self.source) if self.source else None

    @property
    def preferred(self) -> int:
        """The IP version that is tried first: 4 or 6, or 0 for that of the name's first address."""
        return _VERSIONS.get(self.family, 0)

    def why_not(self, version: int) -> str:
        """Say why addresses of an IP version are out of reach; nothing, if they are not."""
        if self.source_ip and self.source_ip.version != version:
            return f"source {self.source} does not reach IPv{version}"
        if self.family in (Family.IPV4_ONLY, Family.IPV6_ONLY) and self.preferred != version:
            return f"family = {self.family.value} leaves IPv{version} out"
        return ""


ANYHOW = Egress()
