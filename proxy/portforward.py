"""
Port forwarding (``-listen``): no protocol, every client is carried to the same target.
"""

from proxy.accesslog import NO_LOG, AccessLog
from proxy.address import Address
from proxy.errors import ProxyError
from proxy.limiter import Limiter
from proxy.metrics import Metrics
from proxy.relaying.channel import Channel
from proxy.relaying.stream import Stream
from proxy.runtime import Runtime
from proxy.server import ProxyServer
from proxy.session import Wanted
from proxy.settings.listener import ServerConfig


class PortForwarder(ProxyServer):
    """Listens, and connects whoever comes to one target."""

    def __init__(
        self,
        config: ServerConfig,
        target: Address,
        access_log: AccessLog = NO_LOG,
        metrics: Metrics | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        super().__init__(config, access_log, metrics, limiter)
        self._target = target

    @property
    def offers(self) -> str:
        """What it offers its clients: no protocol, only a way."""
        return f"forwarding to {self._target}"

    def exposure(self, address: Address) -> str:
        """Say what anyone can do who reaches an address of it."""
        return f"is open: anyone who reaches {address} is carried to {self._target}"

    def inbound(self, channel: Channel, runtime: Runtime) -> "ForwardedClient":
        """Greet a client that has just connected."""
        return ForwardedClient(channel, self._target)


class ForwardedClient:
    """A client that knows nothing of proxies."""

    half_close_grace = 0.5  # seconds

    def __init__(self, channel: Channel, target: Address) -> None:
        self._channel = channel
        self._target = target

    def greet(self) -> Wanted:
        """Know what the client wants without a word."""
        return Wanted(self._target)

    def accept(self, bound: Address | None) -> Stream:
        """Join the client as it is."""
        return self._channel.stream()

    def refuse(self, error: ProxyError) -> None:
        """Say nothing: there are no words for it."""
