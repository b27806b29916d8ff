"""
What a listener has learnt, and goes on with under its next configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.auth import Logins
from proxy.config import ServerConfig, UpstreamConfig
from proxy.upstream import Health


@dataclass(frozen=True)
class Memory:
    """Handed from runtime to runtime. What is shared in it is the same object in both."""

    health: Mapping[UpstreamConfig, Health] = field(default_factory=dict)
    logins: Logins = field(default_factory=Logins)

    def under(self, config: ServerConfig) -> "Memory":
        """Keep what another configuration still needs; what is new in it begins anew."""
        health = {one: self.health.get(one) or Health(one.name) for one in config.upstream_config}
        return Memory(health, self.logins)
