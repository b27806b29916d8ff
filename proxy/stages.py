"""
Test an upstream: reach it stage by stage, with the result and the time of each.

The code that serves is the code that is tested: the same clients do each hop's part, in the order of ``via``.
All of it is done once and from scratch, without retries, spares and resumed TLS sessions, and the
result does not change the upstream's health. Rules are not applied: ``explain`` is for these.
"""

import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import Any

from proxy.accesslog import quoted
from proxy.address import Address
from proxy.client import DirectClient, TunnelClient, UpstreamClient, Way
from proxy.config import ProxyConfig
from proxy.errors import DialError, EgressError, LimitError, ProxyError, UpstreamError
from proxy.net.deadline import Deadline
from proxy.net.sock import address_of
from proxy.net.threads import NativeThreads
from proxy.redact import without_query
from proxy.relaying.channel import Channel
from proxy.settings.upstream import DIRECT_UPSTREAM, UpstreamConfig, UpstreamType
from proxy.tls.tlssocket import RefusedCertificateError
from proxy.upstream import LOGIN_REFUSED, PATIENCE, is_same, make_client

Object = dict[str, Any]

_threads = NativeThreads(1)


def find(config: ProxyConfig, name: str) -> UpstreamConfig:
    """Find the upstream that is meant; raises ``LookupError``, which names those that there are."""
    used = (one for listener in config.listeners for one in listener.all_upstreams)
    known = {one.name: one for one in (*config.upstreams, *used, DIRECT_UPSTREAM)}
    if name not in known:
        raise LookupError(f"there is no upstream {quoted(name)}, only {', '.join(known)}")
    return known[name]


def examine(upstream: UpstreamConfig, target: Address | None = None) -> Object:
    """
    Reach an upstream, or a target through it, within its timeout; say how that went, as values for JSON.

    Raises ``ValueError`` where that asks for nothing.
    """
    if target is None and upstream.type is UpstreamType.DIRECT:
        raise ValueError("a direct upstream is tested with a target: name one")
    trial = _Trial(upstream, target)
    started, failure = monotonic(), ""
    try:
        trial.run()
    except ProxyError as exc:
        failure = str(exc)
    return {
        "upstream": upstream.name,
        "target": str(target or ""),
        "ok": not failure,
        "failure": failure,
        "note": "" if failure else trial.doubt,
        "seconds": round(monotonic() - started, 6),
        "hops": trial.hops,
    }


class _Watch(Deadline):
    """A deadline that remembers when a name was looked up under it."""

    looked_up = 0.0

    @contextmanager
    def limit(self, step: str) -> Iterator[None]:
        with super().limit(step):
            yield
        if step == "name lookup" and not self.looked_up:  # another one may find more addresses meanwhile
            self.looked_up = monotonic()


class _Channel(Channel):
    """A channel that remembers when it sent something."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self.sent: list[float] = []

    def send(self, data: bytes) -> int:
        self.sent.append(monotonic())
        return super().send(data)


class _Trial:
    """One test: what came of the stages of each hop, and which one is under way."""

    def __init__(self, upstream: UpstreamConfig, target: Address | None) -> None:
        self.hops: list[Object] = []
        self.doubt = ""  # what has not been shown
        self._upstream = upstream
        self._target = target
        self._deadline = _Watch(upstream.timeout)
        self._doing = ""
        self._since = 0.0

    def run(self) -> None:
        """Go from hop to hop, and ask the last one; raises the ``ProxyError`` that a log would have."""
        hops = self._upstream.hops[::-1]
        self._come_to(hops[0])
        self._begin("settings")
        left: list[Way] = []
        channel: _Channel | None = None
        try:
            # In a thread, as it reads certificates.
            left = _threads.run(lambda: [make_client(replace(hop, via=None)) for hop in hops])
            self._deadline = _Watch(self._upstream.timeout)
            for hop in hops:
                client = left.pop(0)
                if isinstance(client, DirectClient):
                    return self._go_directly(client)
                assert isinstance(client, UpstreamClient)
                if channel is None:
                    channel = self._connect(client, hop)
                else:
                    self._come_to(hop)
                self._prepare(client, channel, hop)
                if left:
                    assert isinstance(client, TunnelClient)
                    self._go_on(client, channel, hops[len(hops) - len(left)])
                else:
                    self._ask(client, channel, hop)
        except ProxyError as exc:
            self._fail(exc)
            for client in left:
                if isinstance(exc, DialError) and isinstance(client, UpstreamClient):
                    exc = client.not_reached(exc)
            raise exc
        finally:
            if channel:
                channel.abort()

    # -- what is done

    def _connect(self, client: UpstreamClient, hop: UpstreamConfig) -> "_Channel":
        with self._dialling(hop.client_config.endpoint.address):
            channel = _Channel(client.dial_proxy(self._deadline))
        self._end(_peer(channel.sock))
        return channel

    def _go_directly(self, client: DirectClient) -> None:
        assert self._target is not None
        with self._dialling(self._target):
            connected = client.request(None, self._target, self._deadline)
        self._end(f"{self._target} is connected")
        connected.close()

    @contextmanager
    def _dialling(self, address: Address) -> Iterator[None]:
        """Tell the lookup of a name, which is a part of it, from the rest."""
        self._begin("tcp" if address.ip else "lookup")
        try:
            yield
        finally:
            if self._deadline.looked_up:
                self._end(address.host, at=self._deadline.looked_up)
                self._doing = "tcp"

    def _prepare(self, client: UpstreamClient, channel: "_Channel", hop: UpstreamConfig) -> None:
        """Do TLS, or the greeting of SOCKS5 and the login behind it, or nothing."""
        is_socks, plain = hop.type is UpstreamType.SOCKS5, channel.sock
        channel.sent.clear()
        self._begin("handshake" if is_socks else "tls")
        try:
            client.prepare(channel, self._deadline)
        finally:
            if len(channel.sent) > 1:
                self._end("it wants a login", at=channel.sent[1])
                self._doing = "login"
        if channel.sock is not plain:
            trusted = True if hop.tls_verify else None
            self._end(channel.sock.version, certificate=_certificate(channel.sock.certificate, trusted))
        elif is_socks:
            is_asked = self._doing == "login"
            self._end(f"as {quoted(hop.proxy_username)}" if is_asked else "it wants no login")

    def _go_on(self, client: TunnelClient, channel: "_Channel", next_hop: UpstreamConfig) -> None:
        address = next_hop.client_config.endpoint.address
        self._begin("tunnel")
        client.tunnel(address, channel, self._deadline)
        self._end(f"to {address}")

    def _ask(self, client: UpstreamClient, channel: "_Channel", hop: UpstreamConfig) -> None:
        """Ask for the target or, without one, for a sign of life."""
        is_socks = hop.type is UpstreamType.SOCKS5
        if self._target is None and is_socks:
            return  # the greeting was one
        self._begin("target" if is_socks else "handshake")
        if self._target is None:
            status = client.ask(channel, self._deadline)
            if status in LOGIN_REFUSED:
                raise client.login_refused(status=status)
            asks = ": is the path of its address right?" if status == HTTPStatus.NOT_FOUND else ""
            self._end(f"it answers in HTTP (status {status} to a request without a target){asks}")
            login = " and takes our login" if hop.proxy_username else ""
            self.doubt = f"it lives; test it with a HOST:PORT to see whether it lets us through{login}"
            return
        try:
            connected = client.request(channel, self._target, self._deadline)
        except UpstreamError as exc:
            if exc.unclear:
                raise self._judged(exc) from exc
            raise
        self._doing = "target"
        self._end(f"{self._target} is connected" if connected.confirmed else f"{self._target} is promised")
        connected.close()

    def _judged(self, exc: UpstreamError) -> DialError:
        """Say who is to blame where the request was not answered, as a ``Selector`` would."""
        patience = min(PATIENCE, self._upstream.timeout)
        try:
            life = _threads.run(partial(make_client, self._upstream)).sign_of_life(Deadline(patience))
        except (EgressError, LimitError):
            pass  # nothing is known
        except UpstreamError:
            return exc
        else:
            if is_same(life, exc.status):
                return exc
        return DialError(f"{self._target} through {exc}", exc.failure)

    # -- what came of it

    def _come_to(self, hop: UpstreamConfig) -> None:
        address = without_query(hop.proxy_address)
        self.hops.append({"upstream": hop.name, "type": hop.type.value, "address": address, "stages": []})

    def _begin(self, stage: str) -> None:
        self._doing, self._since = stage, monotonic()

    def _end(
        self, said: str = "", *, ok: bool = True, at: float = 0.0, certificate: Object | None = None
    ) -> None:
        """Note what came of the stage; the next one has begun when it ended."""
        at = at or monotonic()
        took = round(at - self._since, 6)
        stage = {"stage": self._doing, "ok": ok, "seconds": took, "said": said, "certificate": certificate}
        self.hops[-1]["stages"].append(stage)
        self._since = at

    def _fail(self, exc: ProxyError) -> None:
        """Note that it ended with the stage under way."""
        if isinstance(exc, UpstreamError) and exc.status in LOGIN_REFUSED:
            self._doing = "login"
        elif self._doing == "handshake" and not isinstance(exc, UpstreamError):
            self._doing = "target"
        refused = exc.__cause__
        says = refused.certificate if isinstance(refused, RefusedCertificateError) else {}
        self._end(ok=False, certificate=_certificate(says, trusted=False))


def _peer(sock: Any) -> str:
    with suppress(OSError):  # it may be gone already
        return str(address_of(sock.getpeername()))
    return ""


def _certificate(says: Mapping[str, Any], trusted: bool | None) -> Object | None:
    """Say whom a certificate is for and by whom, until when (as a Unix time), and whether it is trusted."""
    if not says:
        return None
    names = [value for kind, value in says.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    return {
        "for": names or [_name(says.get("subject", ()))],
        "by": _name(says.get("issuer", ())),
        "until": ssl.cert_time_to_seconds(says["notAfter"]),
        "trusted": trusted,  # null: it was not asked for
    }


def _name(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    known = {kind: value for part in parts for kind, value in part}
    return known.get("commonName") or known.get("organizationName") or ""
