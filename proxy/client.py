"""
Everything one can connect through: directly, through a proxy, or through a choice of these.

The server's ways out and the command line's client mode are the same objects. ``dial`` is the whole
of it; ``connect`` and what follows is the same for one who uses a client as a library.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial

from proxy.address import Address, IPAddress
from proxy.config import ClientConfig, to_bytes
from proxy.errors import DialError, Failure, ProxyError, UpstreamError, is_shortage
from proxy.listening import ours
from proxy.net.deadline import Deadline
from proxy.net.dial import dial
from proxy.net.limits import shortage
from proxy.net.sock import GeventSocket, LoopSocket, address_of
from proxy.policy import rules
from proxy.relaying.relay import DataForwarder, Transfer
from proxy.relaying.stream import Ending, Stream, TcpStream

REACH = 1.0  # seconds in which an upstream is connected to that is asked for a sign of life


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
    def dial(self, target: Address, deadline: Deadline) -> Connected:
        """
        Connect to a target before the deadline.

        Raises ``DialError`` if the target cannot be reached, ``UpstreamError`` if the proxy on the way
        to it failed, and ``LimitError`` if we ourselves have no descriptor or port left for it.
        """

    def sign_of_life(self, deadline: Deadline) -> int:
        """
        Ask for something that needs no target, on a connection of its own.

        Gives the HTTP status of the answer, and 200 where the protocol has none. Raises
        ``UpstreamError`` if there is no answer.
        """
        return 200  # what is no proxy is always there

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


class UpstreamClient(ProxyClient):
    """A way through another proxy: how it is reached, and how its faults are told from the target's."""

    def __init__(self, config: ClientConfig, name: str) -> None:
        super().__init__(name, config.timeout)
        self._config = config
        self.authenticate(config.username, config.password)

    def authenticate(self, username: str, password: str) -> None:
        """Use these from now on; raises ``ConfigError`` for what the protocol cannot carry."""
        self._config = replace(self._config, username=username, password=password)
        super().authenticate(username, password)

    def dial_proxy(self, proxy: Address, deadline: Deadline) -> LoopSocket:
        """Connect to the proxy itself; raises ``UpstreamError``, and ``LimitError``, which blames nobody."""
        try:
            return dial(proxy, deadline)
        except DialError as exc:
            raise self.as_upstream_error(str(exc), exc) from exc

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
        time ran out is true of both. Raises ``LimitError`` where the cause is a shortage of our own.
        """
        if isinstance(cause, OSError) and is_shortage(cause):
            raise shortage(f"upstream {self.name}", cause) from cause
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

    def login_refused(self, detail: str = "") -> UpstreamError:
        """Make the error that says that the proxy does not let us in."""
        reason = "refused our credentials" if self.credentials else "wants a login, and none is set"
        return self.as_upstream_error(reason + detail, transient=False)


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


class DirectClient(ProxyClient):
    """Connects to the target itself; names are resolved here."""

    def __init__(self, name: str = "direct", timeout: float = 30.0) -> None:
        super().__init__(name, timeout)

    def dial(self, target: Address, deadline: Deadline) -> Connected:
        """Connect by Happy Eyeballs; raises ``DialError``, also for an address on which we listen."""
        check = partial(_check_with_port, target.port) if ours.has(target.port) else rules.check
        sock = dial(target, deadline, check)
        bound = address_of(sock.getsockname())
        return Connected(TcpStream(sock), bound, self.name)


def _check_with_port(port: int, ip: IPAddress) -> None:
    rules.check(ip)
    if ours.is_ours(ip, port):
        raise DialError(f"this proxy itself listens on {ip}, port {port}", Failure.NOT_ALLOWED)
