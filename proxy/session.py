"""
The life of one connection, whatever protocol its client speaks.

greet and authenticate → choose an upstream and dial → accept or refuse → relay → account → close.

An ``Inbound`` does its part in the client's protocol; nothing here asks which protocol that is.
"""

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, time
from typing import Protocol

from proxy.accesslog import MOST_OF_A_USER, Record, quoted, shortened
from proxy.address import Address
from proxy.client import Connected
from proxy.errors import (
    AuthError,
    ClientLeftError,
    DialError,
    Failure,
    LimitError,
    OverLimitError,
    ProxyError,
    reason_of,
)
from proxy.limiter import Stay, Who
from proxy.metrics import CLIENT_LEFT, HANDSHAKE, TARGET, Refusal
from proxy.net.deadline import Deadline
from proxy.net.limits import BALLAST
from proxy.net.sock import GeventSocket, LoopSocket
from proxy.parsers import run
from proxy.proxyprotocol import parse_header
from proxy.relaying.channel import Channel
from proxy.relaying.relay import Relay
from proxy.relaying.stream import Ending, Stream
from proxy.runtime import Runtime
from proxy.settings.listener import ClientAddress
from proxy.sharing.turns import TURNS
from proxy.tls.accepting import secure

log = logging.getLogger(__name__)

_PATIENCE = 0.25  # seconds


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where a client wants to go, as whom, and by when it has to be told, if it says so."""

    target: Address
    user: str = ""
    answer_by: Deadline | None = None


class Inbound(Protocol):
    """One client, in the protocol of its listener (a door). All methods may block."""

    half_close_grace: float
    """Seconds for which a client that has ended its side is waited for while its target is dialled."""

    def greet(self) -> Wanted:
        """Read the request; raises ``ProtocolError``, ``AuthError``, ``EOFError`` and ``OSError``."""

    def accept(self, bound: Address | None) -> Stream:
        """
        Say that the target is connected, and give the client's end of the relay.

        Without a ``bound`` address it is only promised, and may be said as that.
        """

    def refuse(self, error: ProxyError) -> None:
        """Say why there is no connection."""


Door = Callable[[Channel, Runtime], Inbound]


class Session:
    """One client's connection, from accept to close."""

    __slots__ = (
        "_channel", "_clock", "_end", "_is_client_known", "_stay", "_stopped", "_users",
        "id", "relay", "rule", "runtime", "started", "via", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        name: int | str,
        sock: LoopSocket | GeventSocket,
        client: Address,
        runtime: Runtime,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.id = name
        self.runtime = runtime
        self.wanted: Wanted | None = None
        self.via = ""
        self.rule = ""  # that decided about its target
        self.relay: Relay | None = None
        self.started = clock()
        self._clock = clock
        self._channel = Channel(sock, client)
        self._end = "stopped"  # how it ended, for the access log; empty if there is nothing to tell
        self._stopped: Ending | None = None  # why we have ended it ourselves, if we have
        self._users: Mapping[str, str] | None = None  # of a later configuration, where it matters
        self._is_client_known = False  # who it is, as others may have to tell us
        self._stay: Stay | None = None  # as it is counted, where there are limits

    def run(self, door: Door, *, full: bool = False) -> Generator[Relay, None, None]:
        """
        Serve the client; with ``full``, only to tell it that there is no place for it.

        Yields the relay, once it runs: go on when it is over.
        """
        TURNS.small_came = True
        try:
            try:
                if relay := self._begin(door, full=full):
                    try:
                        self.runtime.forwarder.start(relay)
                        if self._stopped:  # too late for what came before it to notice
                            relay.stop(self._stopped)
                        yield relay
                    finally:
                        self._part(relay)
            finally:
                if self._stay:
                    self.runtime.limiter.leave(self._stay)
                self._account()
        except MemoryError:
            BALLAST.give_up()
        except Exception as exc:
            text = f"internal error: {type(exc).__name__}: {shortened(str(exc))}"
            log.error("%s: %s", self, text, extra=self._about(text))
            log.debug("internal error", exc_info=True)
        finally:
            self._channel.abort()

    @property
    def idle_since(self) -> float | None:
        """Since when nothing is missing but its request; None once something of it was heard."""
        if self.wanted or self._channel.heard:
            return None
        return max(self.started, self._channel.waits_since)

    def __str__(self) -> str:
        return f"{self.runtime.config.name} {self.client}"

    @property
    def client(self) -> Address:
        """Who the client is, as far as it is known by now."""
        assert self._channel.client is not None
        return self._channel.client

    def _about(self, error: object) -> dict[str, object]:
        """Mark a log line as one of those that an error of this client at this listener repeats."""
        return {"collapse": (self.client.host, f"{self.runtime.config.name}: {error}")}

    def _begin(self, door: Door, *, full: bool) -> Relay | None:
        """Do all that comes before the relay, and make it; None if there is none."""
        inbound = self._greet(door)
        return self._serve(inbound, full=full) if inbound else None

    def _greet(self, door: Door) -> Inbound | None:
        """Hear the client out; None if it is not to be served any further."""
        inbound = None
        try:
            with Deadline(self.runtime.config.handshake_timeout).limit("handshake"):
                self._meet()
                if self._is_passed_over:
                    self._end = ""
                    return None
                if self._is_client_known and self.runtime.limiter.limits:
                    self._stay = Stay()
                    self.runtime.limiter.arrive(self._stay, self._who, self._most_refused)
                if self.runtime.tls:
                    secure(self._channel, self.runtime.tls)
                    self._channel.await_request()
                inbound = door(self._channel, self.runtime)
                self.wanted = inbound.greet()
                self._is_client_known = True
                self.runtime.config.check_client(self.client.ip)
                self._check_user()
                self.runtime.metrics.handshakes.observe(self._clock() - self.started)
                return inbound
        except AuthError as exc:
            # fail2ban matches this line, so it has one form and is never collapsed.
            log.warning(
                "authentication failed: client=%s user=%s listener=%s",
                self.client.host,
                quoted(shortened(exc.user, MOST_OF_A_USER)),
                self.runtime.config.name,
            )
            self._end = "login refused"
            self._refuse(inbound, exc)
        except ClientLeftError:
            self._note_gone()
        except OverLimitError as exc:
            self._turn_away(inbound, exc)
        except ProxyError as exc:
            if self._stopped:
                self._note_gone()
                return None
            if exc.is_answer:
                log.debug("%s: asks for a health check", self)
                self._end = ""
            else:
                log.info("%s: %s", self, shortened(str(exc)), extra=self._about(exc))
                self._end = f"{'malformed' if exc.failure is Failure.MALFORMED else 'refused'}: {exc}"
            self._refuse(inbound, exc)
        except TimeoutError as exc:
            self._end = ""
            # Who says nothing may be a proxy that has a connection ready, and does not need it.
            if self._channel.heard:
                log.info("%s: %s", self, exc, extra=self._about(exc))
                self._end = str(exc)
                self._count(Failure.TIMED_OUT.value)
        except (EOFError, OSError) as exc:
            log.debug("%s: %s", self, reason_of(exc))
            self._end = ""
            # Who leaves before the first byte has only looked whether the port is open, or had a connection
            # ready that was not needed.
            if self._channel.heard:
                self._note_gone()
        except Exception as exc:
            self._end = _fault(exc)
            raise
        return None

    def _meet(self) -> None:
        """Find out who the client is, where that is told before all else; raises ``ProxyError``."""
        config = self.runtime.config
        if config.client_address is ClientAddress.PROXY_PROTOCOL:
            if not config.trusts(self.client):
                raise ProxyError("is not among the trusted proxies of this listener", Failure.NOT_ALLOWED)
            client = run(parse_header(), self._channel.read_exact)
            self._channel.client = client or self.client
            self._channel.await_request()  # its client has said nothing yet
        if config.client_address is not ClientAddress.X_FORWARDED_FOR:  # which comes later
            config.check_client(self.client.ip)
            self._is_client_known = True

    @property
    def _is_passed_over(self) -> bool:
        """True for one who is not worth an answer, and of whom others told us; see ``ProxyServer``."""
        config = self.runtime.config
        if config.client_address is not ClientAddress.PROXY_PROTOCOL or not config.needs_auth:
            return False
        return self.runtime.limiter.passes_over(config, self.client)

    @property
    def _most_refused(self) -> int:
        """Of one identity, how many above its limit may wait to be told so: most places are for others."""
        return max(1, self.runtime.config.max_connections // 4)

    @property
    def _who(self) -> Who:
        user = self.wanted.user if self.wanted else ""
        return Who(self.client, user, self.runtime.config.name)

    def _serve(self, inbound: Inbound, *, full: bool) -> Relay | None:
        limiter = self.runtime.limiter
        try:
            if full:
                raise LimitError("the listener is full")
            if limiter.limits:
                self._stay = self._stay or Stay()
                limiter.admit(self._stay, self._who)
            return self._join(inbound)
        except ClientLeftError:
            self._note_gone()
        except OverLimitError as exc:
            self._turn_away(inbound, exc)
        except ProxyError as exc:
            self._end = f"refused: {exc}"
            self._refuse(inbound, exc)
        except OSError as exc:
            self._note_gone(f"client: {reason_of(exc)}")
        except Exception as exc:
            self._end = _fault(exc)
            if isinstance(exc, MemoryError):
                BALLAST.give_up()  # else there is none for the answer either
                self._refuse(inbound, LimitError(self._end))
            else:
                self._refuse(inbound, ProxyError(str(exc)))
            raise
        return None

    def _join(self, inbound: Inbound) -> Relay:
        began = self._clock()
        connected = self._dial(inbound)
        self.runtime.metrics.dials.observe(self._clock() - began)
        self.via = connected.via
        stream = None
        try:
            stream = inbound.accept(connected.bound)
            self.relay = self.runtime.forwarder.relay(stream, connected.stream)
            if self._stay:
                self.relay.limit(*self._stay.throttles)
            return self.relay
        except BaseException:
            # No relay has them, so nobody else will close them.
            try:
                if stream:
                    stream.begin_close(Ending.CUT)
                    stream.finish_close()
            finally:
                connected.close(Ending.CUT)
            raise

    def _part(self, relay: Relay) -> None:
        """Close both ends, when the relay is over, and note how it ended."""
        try:
            transfer = self.runtime.forwarder.finish(relay)
        except Exception as exc:
            self._end = _fault(exc)
            raise
        ending = transfer.ending.value
        self._end = f"{ending}: {transfer.detail}" if transfer.detail else ending
        self.runtime.metrics.endings[ending] += 1

    def _dial(self, inbound: Inbound) -> Connected:
        assert self.wanted is not None
        timeout = self.runtime.config.timeout
        if self.wanted.answer_by:
            timeout = min(timeout, self.wanted.answer_by.remaining())
        # Whoever dials keeps the deadline, and knows which step it was that took too long; the outer
        # limit is for one that does not.
        outer = Deadline(timeout + _PATIENCE)
        wanted = self.wanted
        trip = self.runtime.router.trip(wanted.target, wanted.user, self.client.ip)
        try:
            with self._channel.watched(inbound.half_close_grace), outer.limit("reaching the target"):
                return trip.dial(Deadline(timeout, wanted.user or self.client.network))
        except TimeoutError as exc:
            self.via = trip.via
            raise DialError(f"{wanted.target}: {exc}", Failure.TIMED_OUT) from exc
        except ProxyError as exc:
            self.via = exc.via or trip.via
            raise
        finally:
            self.rule = trip.rule

    def _note_gone(self, how: str = CLIENT_LEFT) -> None:
        """Note that the client has gone; where we have ended it ourselves, that is no failure."""
        if self._stopped:
            self._end = self._stopped.value
        else:
            self._end = how
            self._count(CLIENT_LEFT)

    def _count(self, cause: str) -> None:
        self.runtime.metrics.failures[TARGET if self.wanted else HANDSHAKE, cause] += 1

    def _refuse(self, inbound: Inbound | None, error: ProxyError) -> None:
        if not error.is_answer:
            self._count(error.failure.value)
            self.runtime.metrics.refusals.append(self._as_refusal(error))
        # The client may be gone, or not read: neither is worth a word.
        with suppress(OSError), Deadline(1.0).limit("refusal"):
            if inbound:
                inbound.refuse(error)
        if inbound or self._channel.heard:
            self._channel.close()

    def _as_refusal(self, error: ProxyError) -> Refusal:
        user = self.wanted.user if self.wanted else getattr(error, "user", "")
        return Refusal(
            time=time(),
            client=str(self.client),
            user=shortened(user, MOST_OF_A_USER),
            listener=self.runtime.config.name,
            target=str(self.wanted.target) if self.wanted else "",
            upstream=self.via,
            stage=TARGET if self.wanted else HANDSHAKE,
            cause=error.failure.value,
            reason=shortened(self._end.removeprefix("refused: ")),
            rule=self.rule,
            limit=str(error).removeprefix("limit ") if isinstance(error, OverLimitError) else "",
        )

    def _turn_away(self, inbound: Inbound | None, error: OverLimitError) -> None:
        self._end = f"refused: {error}"
        about = f"{error} holds for {error.identity}"
        log.info("%s: refused: %s", self, about, extra={"collapse": (about, about)})
        self._refuse(inbound, error)

    def limit_anew(self) -> None:
        """Have the limits hold that the configuration has now, whatever they were when it began."""
        limiter = self.runtime.limiter
        if self._is_client_known and (self._stay or limiter.limits):
            self._stay = self._stay or Stay()
            limiter.renew(self._stay, self._who)
            if self.relay:
                self.relay.limit(*self._stay.throttles)

    def stop(self, ending: Ending) -> None:
        """End it: the relay, or what comes before it."""
        if self.relay:
            self.relay.stop(ending)
        else:
            self._stopped = self._stopped or ending
            self._channel.hang_up()

    def end_unless_user_in(self, users: Mapping[str, str]) -> None:
        """End it if its user is none of these, or has another password now; also if that shows later."""
        self._users = users
        if self.wanted and not self._may_go_on(self.wanted.user):
            self.stop(Ending.EVICTED)

    def _check_user(self) -> None:
        assert self.wanted is not None
        if not self._may_go_on(self.wanted.user):
            raise AuthError(self.wanted.user)

    def _may_go_on(self, user: str) -> bool:
        if not user or self._users is None:
            return True
        return self._users.get(user) == self.runtime.config.auth_users.get(user)

    def _account(self) -> None:
        # No greenlet runs between this and the session's end: its bytes are never counted twice.
        sent, received = (self.relay.sent, self.relay.received) if self.relay else (0, 0)
        self.runtime.metrics.sent += sent
        self.runtime.metrics.received += received
        if not self._end or not self.runtime.access_log.is_on:
            return
        self.runtime.access_log.add(
            Record(
                id=self.id,
                user=self.wanted.user if self.wanted else "",
                client=str(self.client),
                listener=self.runtime.config.name,
                target=str(self.wanted.target) if self.wanted else "",
                upstream=self.via,
                rule=self.rule,
                sent=sent,
                received=received,
                ms=round(1000 * (self._clock() - self.started)),
                end=self._end,
            )
        )


def _fault(exc: Exception) -> str:
    return "no memory" if isinstance(exc, MemoryError) else "internal error"
