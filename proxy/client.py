"""
Everything one can connect through: directly, through a proxy, or through a choice of these.

The server's upstreams and the command line's client mode use the same objects. ``dial`` is what they need;
``connect`` and the methods after it are the same for users of the library.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial

from proxy.address import Address, IPAddress
from proxy.errors import DialError, EgressError, Failure, ProxyError, UpstreamError, is_shortage
from proxy.listening import ours
from proxy.net.deadline import Deadline
from proxy.net.dial import Check, dial
from proxy.net.limits import shortage
from proxy.net.sock import GeventSocket, LoopSocket, address_of
from proxy.policy import rules
from proxy.relaying.channel import Channel
from proxy.relaying.relay import DataForwarder, Transfer
from proxy.relaying.stream import Ending, Stream, TcpStream
from proxy.settings.client import ClientConfig
from proxy.settings.egress import ANYHOW, Egress
from proxy.users import to_bytes

CONNECT = 1.0  # seconds in which an upstream is connected to that is asked for a sign of life


@dataclass(frozen=True, slots=True)
class Connected:
    """
    A connection to a target: its bytes, the address it is bound to, and the way it took.

    ``bound`` is None where a proxy does not tell it, as it may not have connected yet.
    """

    stream: Stream
    bound: Address | None
    via: str

    @property
    def confirmed(self) -> bool:
        """True unless all that is known is that the proxy would pass bytes on."""
        return self.bound is not None

    def close(self, ending: Ending = Ending.FINISHED) -> None:
        """Close it without a relay, telling the far end how it ended."""
        self.stream.begin_close(ending)
        self.stream.finish_close()


class ProxyClient(ABC):
    """
    A way to reach targets.

    Use ``dial`` for any number of connections at once, or the others for one at a time:
    ``authenticate`` if the proxy wants it, ``connect``, ``forward_data``, ``close``.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self.name = name
        self.timeout = timeout
        self.credentials: tuple[bytes, bytes] | None = None
        self._connected: Connected | None = None

    @abstractmethod
    def dial(self, target: Address, deadline: Deadline, check: Check | None = None) -> Connected:
        """
        Connect to a target before the deadline.

        Where it goes out directly from here, ``check`` judges each address before it is used, and raises to
        refuse it. Without one, only our own listeners are refused, and what is not the address of a host.

        Raises ``DialError`` if the target cannot be reached, ``UpstreamError`` if the proxy on the way
        to it failed, and ``LimitError`` if we ourselves have no descriptor or port left for it.
        """

    # -- the rest of the specification's ProxyClient; of these the program itself uses ``authenticate`` only

    def connect(self, target_host: str, target_port: int) -> Connected:
        """Connect to a target within the timeout, and keep the connection; raises like ``dial``."""
        self.close()
        self._connected = self.dial(Address(target_host, target_port), Deadline(self.timeout))
        return self._connected

    def authenticate(self, username: str, password: str) -> None:
        """Use these credentials from the next connection on: that is when the proxy judges them."""
        self.credentials = (to_bytes(username), to_bytes(password)) if username else None

    def forward_data(self, client: Stream | GeventSocket) -> Transfer:
        """Join a client to the connection until both directions have ended, and close both."""
        if self._connected is None:
            raise ProxyError("forward_data comes after connect")
        connected, self._connected = self._connected, None
        return DataForwarder().forward_data(client, connected.stream)

    def close(self) -> None:
        """Close the connection that ``connect`` made, if it is still there."""
        connected, self._connected = self._connected, None
        if connected:
            connected.close()

    def set_timeout(self, timeout: float) -> None:
        """Set how long ``connect`` may take, in seconds."""
        self.timeout = timeout


class Way(ProxyClient):
    """
    One way to targets, in two parts: what comes before the request, and the request.

    Nothing that ``reach`` does tells anybody where a client wants to go. So it may be done ahead of time, for
    several ways at once, or for nothing. A request is made once.
    """

    def dial(self, target: Address, deadline: Deadline, check: Check | None = None) -> Connected:
        """Do both parts, one after the other; raises what they do."""
        return self.request(self.reach(deadline), target, deadline, check)

    @abstractmethod
    def reach(self, deadline: Deadline) -> Channel | None:
        """
        Give a connection that is ready for a request; None where nothing comes before that.

        Raises ``UpstreamError`` if there is none before the deadline, or ``LimitError``, which blames nobody.
        """

    @abstractmethod
    def request(
        self, channel: Channel | None, target: Address, deadline: Deadline, check: Check | None = None
    ) -> Connected:
        """Connect to a target by what ``reach`` gave, which is closed if that fails; raises like ``dial``."""

    @abstractmethod
    def sign_of_life(self, deadline: Deadline) -> int:
        """
        Ask for something that needs no target, on a connection of its own.

        Gives the HTTP status of the answer, and 200 where the protocol has none. Raises
        ``UpstreamError`` if there is no answer.
        """


class UpstreamClient(Way):
    """A way through another proxy: how it is reached, and how its faults are told from the target's."""

    def __init__(self, config: ClientConfig, name: str, via: "TunnelClient | None" = None) -> None:
        """Take one by which the proxy is reached, if that is not done directly."""
        super().__init__(name, config.timeout)
        self._via = via
        self._config = config
        self._endpoint = config.endpoint
        self.authenticate(config.username, config.password)

    def authenticate(self, username: str, password: str) -> None:
        """Use these from now on; raises ``ConfigError`` for what the protocol cannot carry."""
        self._config = replace(self._config, username=username, password=password)
        super().authenticate(username, password)

    def reach(self, deadline: Deadline) -> Channel:
        """Connect to the proxy, and do all that comes before a request."""
        return self._reach(deadline, deadline)

    def sign_of_life(self, deadline: Deadline) -> int:
        """Reach it, and ask."""
        channel = self._reach(deadline, deadline.within(CONNECT))
        try:
            return self.ask(channel, deadline)
        finally:
            channel.abort()

    def _reach(self, deadline: Deadline, connect_by: Deadline) -> Channel:
        channel = self._tunnel_to_it(deadline) if self._via else Channel(self.dial_proxy(connect_by))
        try:
            self.prepare(channel, deadline)
        except BaseException:
            channel.abort()
            raise
        return channel

    def dial_proxy(self, deadline: Deadline) -> LoopSocket:
        """Connect to the proxy itself; raises ``UpstreamError``, and ``LimitError``, which blames nobody."""
        try:
            return dial(self._endpoint.address, deadline, egress=self._config.egress)
        except DialError as exc:
            raise self.as_upstream_error(str(exc), exc) from exc

    def _tunnel_to_it(self, deadline: Deadline) -> Channel:
        assert self._via is not None
        try:
            return self._via.connect_through(self._endpoint.address, deadline)
        except DialError as exc:
            raise self.not_reached(exc) from exc

    def not_reached(self, exc: DialError) -> UpstreamError:
        """Make the error that says that the way to it failed; raises like ``as_upstream_error``."""
        if not isinstance(exc, UpstreamError):
            return self.as_upstream_error(str(exc), exc)  # that one could not reach this proxy
        # It may be just what it was asked for that it does not like, such as the port.
        is_about_this = exc.unclear or (exc.well and exc.status)
        reason = f"{self._endpoint.address} via {exc}" if is_about_this else f"via {exc}"
        return self.as_upstream_error(reason, exc, transient=exc.transient)

    @abstractmethod
    def prepare(self, channel: Channel, deadline: Deadline) -> None:
        """Do on a new connection what comes before a request; raises ``UpstreamError``."""

    @abstractmethod
    def ask(self, channel: Channel, deadline: Deadline) -> int:
        """Ask for a sign of life; raises ``UpstreamError``."""

    def request(
        self, channel: Channel | None, target: Address, deadline: Deadline, check: Check | None = None
    ) -> Connected:
        """Ask the proxy for a target."""
        assert channel is not None
        try:
            return self.ask_for(target, channel, deadline)
        except BaseException:
            channel.abort()
            raise

    @abstractmethod
    def ask_for(self, target: Address, channel: Channel, deadline: Deadline) -> Connected:
        """Make the request; raises ``DialError`` for the target's fault, or else ``UpstreamError``."""

    def as_upstream_error(
        self,
        reason: str,
        cause: Exception | None = None,
        *,
        transient: bool = True,
        unclear: bool = False,
        well: bool = False,
        status: int = 0,
    ) -> UpstreamError:
        """
        Make the error that says that the proxy failed; ``UpstreamError`` says what the words mean.

        Its failure is never the cause's own, which a client would take for the target's; only that
        time ran out is true of both. What this machine cannot do is not its failure, and stays an
        ``EgressError``. Raises ``LimitError`` where the cause is a shortage of our own.
        """
        if isinstance(cause, OSError) and is_shortage(cause):
            raise shortage(f"upstream {self.name}", cause) from cause
        if isinstance(cause, EgressError):
            return EgressError(f"upstream {self.name}: {reason}")
        timed_out = isinstance(cause, TimeoutError) or getattr(cause, "failure", None) is Failure.TIMED_OUT
        failure = Failure.TIMED_OUT if timed_out else Failure.UPSTREAM
        return UpstreamError(
            f"upstream {self.name}: {reason}",
            failure,
            # Who was silent is not known yet, so nothing may be said twice.
            transient=transient and not (unclear and timed_out),
            unclear=unclear,
            well=well,
            status=status,
        )

    def login_refused(self, detail: str = "", status: int = 0) -> UpstreamError:
        """Make the error that says that the proxy does not let us in."""
        reason = "refused our credentials" if self.credentials else "wants a login, and none is set"
        return self.as_upstream_error(reason + detail, transient=False, status=status)


class TunnelClient(UpstreamClient):
    """A way through a proxy that passes on whatever follows, so that another proxy can be spoken to by it."""

    def connect_through(self, target: Address, deadline: Deadline) -> Channel:
        """Give a connection to a target; raises like ``dial``."""
        channel = self.reach(deadline)
        try:
            self.tunnel(target, channel, deadline)
        except BaseException:
            channel.abort()
            raise
        return channel

    def ask_for(self, target: Address, channel: Channel, deadline: Deadline) -> Connected:
        """Make the request, and go on from there."""
        bound = self.tunnel(target, channel, deadline)
        return Connected(channel.stream(), bound, self.name)

    @abstractmethod
    def tunnel(self, target: Address, channel: Channel, deadline: Deadline) -> Address:
        """Make the request, and tell where the proxy's connection is bound; raises like ``ask_for``."""


_SPOKEN = (
    (b"HTTP", "an HTTP server"),
    (b"SSH-", "an SSH server"),
    (b"\x15\x03", "a TLS server"),
    (b"\x05", "a SOCKS5 server"),
    (b"220", "a mail or FTP server"),
)


def speaker_of(data: bytes) -> str:
    """Name who speaks, as far as the first bytes tell, however few there are."""
    for beginning, name in _SPOKEN:
        if data and data[: len(beginning)] == beginning[: len(data)]:
            return name
    return f"something that begins with {data[:4]!r}"


class DirectClient(Way):
    """Connects to the target itself; names are resolved here."""

    def __init__(self, name: str = "direct", timeout: float = 30.0, egress: Egress = ANYHOW) -> None:
        super().__init__(name, timeout)
        self._egress = egress

    def reach(self, deadline: Deadline) -> None:
        """Do nothing: whatever is done here is done for a target."""

    def sign_of_life(self, deadline: Deadline) -> int:
        """Give one: what is no proxy is always there."""
        return 200

    def request(
        self, channel: Channel | None, target: Address, deadline: Deadline, check: Check | None = None
    ) -> Connected:
        """
        Connect by Happy Eyeballs; raises ``DialError``, also for an address on which we listen.

        Raises ``EgressError`` if connections cannot leave as they are to.
        """
        is_ours = partial(_check_with_port, target.port) if ours.has(target.port) else rules.check
        try:
            sock = dial(target, deadline, check or is_ours, self._egress)
        except EgressError as exc:
            raise EgressError(f"upstream {self.name}: {exc}") from exc
        bound = address_of(sock.getsockname())
        return Connected(TcpStream(sock), bound, self.name)


def _check_with_port(port: int, ip: IPAddress) -> None:
    rules.check(ip)
    if ours.is_ours(ip, port):
        raise DialError(f"this proxy itself listens on {ip}, port {port}", Failure.NOT_ALLOWED)
