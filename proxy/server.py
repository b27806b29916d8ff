"""
The base of every server: a listener, a pool of greenlets, and the runtime for new clients.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from time import monotonic

from proxy.accesslog import NO_LOG, AccessLog
from proxy.address import Address, Endpoint
from proxy.client import Connected
from proxy.limiter import Limiter
from proxy.listening.fullness import Fullness, describe
from proxy.listening.listen import Acceptor, MakeAcceptor
from proxy.listening.opening import Opening, bind
from proxy.listening.pool import Job, Pool, do
from proxy.metrics import Metrics
from proxy.net.deadline import Deadline
from proxy.net.sock import GeventSocket, LoopSocket, listening_address
from proxy.net.threads import Task
from proxy.relaying.channel import Channel
from proxy.relaying.stream import Ending
from proxy.runtime import Runtime, build_runtime
from proxy.session import Inbound, Session
from proxy.settings.listener import ClientAddress, Overload, ServerConfig

REFUSALS = 128  # clients above the limit that are being told so at a time
_ASKS_SOON = 1.0  # seconds in which a client begins its request, if it has one
_LOOK = 0.1  # seconds between two looks for those that have not, while there is no room
_FAREWELL = 0.8  # seconds for relays to say goodbye, when they are cut


class ProxyServer(ABC):
    """
    Serves one listener.

    ``listen``, then ``shutdown``; ``reload_config`` in between changes it for new connections.
    """

    ids: Iterator[int | str] = count(1)  # of the connections of all servers

    def __init__(
        self,
        config: ServerConfig,
        access_log: AccessLog = NO_LOG,
        metrics: Metrics | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self.metrics = (metrics or Metrics()).listener(config.name)
        # Of new connections.
        self.runtime = build_runtime(config, access_log, self.metrics, limiter=limiter)
        self._pool = Pool(pool_size(config))
        self.make_acceptor: MakeAcceptor = Acceptor
        self.acceptors: list[Acceptor] = []
        self.opening: Opening | None = None  # of its addresses, some of which may be missing yet
        self.sessions: set[Session] = set()
        self.count_elsewhere: Callable[[], int] = lambda: 0  # the live connections that other processes serve
        self._users: Mapping[str, str] | None = None  # of whom clients must be that are not yet served
        self._fullness = Fullness(self._describe_fullness)
        self._is_making_room = False

    @property
    def total(self) -> int:
        """How many clients were accepted."""
        return self.metrics.accepted

    @property
    def config(self) -> ServerConfig:
        """The configuration of new connections."""
        return self.runtime.config

    @property
    def addresses(self) -> list[Address]:
        """The addresses it listens on."""
        return [listening_address(acceptor.socket) for acceptor in self.acceptors]

    @property
    def missing(self) -> list[str]:
        """The addresses that it still waits for."""
        return self.opening.missing if self.opening else []

    @property
    def is_idle(self) -> bool:
        """True if it has no clients, not even one that was accepted a moment ago."""
        return not len(self._pool) and not self.count_elsewhere()

    @property
    def offers(self) -> str:
        """What it offers its clients, in a word or two."""
        return "wss" if self.config.tls_cert else self.config.protocol.value

    def exposure(self, address: Address) -> str:
        """Say what anyone can do who reaches an address of it; nothing if only some may."""
        if self.config.needs_auth or self.config.clients:
            return ""
        return (
            f"is an open proxy: anyone who reaches {address} can use it; set users in [auth_users] or with "
            "-username, or listen on 127.0.0.1"
        )

    @abstractmethod
    def inbound(self, channel: Channel, runtime: Runtime) -> Inbound:
        """Make the client's side of a session."""

    def listen(self, address: str = "") -> None:
        """Open the listener, on the configuration's address if none is given; raises ``ProxyError``."""
        endpoint = Endpoint.parse(address) if address else self.config.endpoint
        self.accept_on(bind(endpoint, self.config.file_mode))

    def accept_on(self, sockets: Iterable[GeventSocket]) -> None:
        """Accept clients on sockets that listen already; they belong to this server from now on."""
        for sock in sockets:
            acceptor = self.make_acceptor(sock, self._serve, self._pool, self._passes_over)
            acceptor.start()
            self.acceptors.append(acceptor)
        self.runtime.begin()

    def _passes_over(self, client: Address) -> bool:
        """Tell of a client that could only be told that no login of its is judged, as many are already."""
        config = self.config
        if config.client_address is not ClientAddress.SOCKET or not config.needs_auth:
            return False
        return self.runtime.limiter.passes_over(config, client)

    def handle_connection(self, sock: LoopSocket | GeventSocket, client: Address) -> None:
        """Serve one client until it is done."""
        do(self._serve(sock, client))

    def _serve(self, sock: LoopSocket | GeventSocket, client: Address) -> Job:
        runtime = self.runtime
        session = Session(next(self.ids), sock, client, runtime)
        # Only with overload = refuse are there more places than connections.
        full = len(self.sessions) >= runtime.config.max_connections
        if not full:
            self.sessions.add(session)
            self._note_fullness()
        if self._users is not None:
            session.end_unless_user_in(self._users)
        self.metrics.accepted += 1
        try:
            yield from session.run(self.inbound, full=full)
        finally:
            self.sessions.discard(session)
            self._note_fullness()

    def _note_fullness(self) -> None:
        is_full = len(self.sessions) >= self.runtime.config.max_connections
        if is_full is self._fullness.is_full or not self.acceptors:
            return
        self.metrics.filled += is_full
        self._fullness.become(is_full)
        if is_full and not self._is_making_room:
            self._is_making_room = True
            Task(self._make_room)

    def _make_room(self) -> None:
        """
        While it is full, end those that have asked for nothing for a while, the oldest first.

        They may be connections that another proxy has ready, and must not keep clients out.
        """
        while self._fullness.is_full and self.acceptors:
            for oldest in self._idle()[:1]:
                oldest.stop(Ending.EVICTED)
            Deadline(_LOOK).pause(_LOOK)
        self._is_making_room = False

    def _idle(self) -> list[Session]:
        """List those that have asked for nothing for a while, the oldest first."""
        since = {each: moment for each in self.sessions if (moment := each.idle_since) is not None}
        long_ago = monotonic() - _ASKS_SOON
        return sorted((each for each in since if since[each] < long_ago), key=since.__getitem__)

    def _describe_fullness(self) -> str:
        return describe(self.config, len(self.sessions), is_full=self._fullness.is_full)

    def use(self, runtime: Runtime) -> None:
        """Serve new connections with a runtime that was built for this server."""
        before, self.runtime = self.runtime, runtime
        if self.acceptors:
            runtime.begin()
        before.retire()
        self._users = None
        self._pool.resize(pool_size(runtime.config))
        self._note_fullness()

    def end_sessions_of_changed(self, users: Mapping[str, str]) -> None:
        """End the connections of those who are no users any more, or have another password."""
        self._users = users
        for session in list(self.sessions):
            session.end_unless_user_in(users)

    def stop_accepting(self) -> None:
        """Close the listener; live connections go on."""
        for acceptor in self.acceptors:
            acceptor.finish()
        self.acceptors.clear()
        self._fullness.end()
        self.runtime.retire()

    def shutdown(self, drain_timeout: float = 0.0) -> None:
        """
        Close the listener, let connections finish for a while, and then cut them.

        Who asks for nothing meanwhile, as a connection that another proxy has ready, is not waited for.
        """
        self.stop_accepting()
        drain = Deadline(drain_timeout)
        while not self.is_idle and drain.remaining():
            for each in self._idle():
                each.stop(Ending.STOPPED)
            self._pool.join(min(_LOOK, drain.remaining()))
        for session in list(self.sessions):
            session.stop(Ending.STOPPED)
        self._pool.join(_FAREWELL)
        self._pool.kill()

    # -- the rest of the specification's ProxyServer; the program itself has no use for it

    def authenticate(self, username: str, password: str) -> bool:
        """Tell whether a client with these credentials would be let in."""
        return not self.runtime.needs_auth or self.runtime.authenticator.authenticate(username, password)

    def select_upstream_connection(self, target_host: str, target_port: int) -> Connected:
        """Connect to a target as the rules say of one who has not logged in; raises ``DialError``."""
        trip = self.runtime.router.trip(Address(target_host, target_port))
        return trip.dial(Deadline(self.config.timeout))

    def reload_config(self, config: ServerConfig) -> None:
        """Serve new connections under a new configuration; old ones keep theirs."""
        self.use(self.runtime.under(config))  # all or nothing


def pool_size(config: ServerConfig) -> int:
    """Tell how many clients are served or refused at a time."""
    return config.max_connections + (REFUSALS if config.overload is Overload.REFUSE else 0)
