"""
What HTTP and WebSocket upstreams have in common: TLS, answers, and whose fault a failure is.
"""

import re
import ssl
from dataclasses import replace

from proxy import __version__
from proxy.address import DEFAULT_PORTS, Address, Endpoint
from proxy.client import TunnelClient, UpstreamClient, speaker_of
from proxy.errors import DialError, Failure, ProtocolError, UpstreamError, reason_of
from proxy.http.heads import HeadBuffer, HttpError, ResponseHead, parse_response
from proxy.http.refusals import PROXY_NAME, failure_reported
from proxy.net.deadline import Deadline
from proxy.redact import without_query
from proxy.relaying.channel import Channel
from proxy.settings.client import ClientConfig
from proxy.tls.contexts import client_context
from proxy.tls.tlssocket import connect_tls

_MAX_INTERIM = 8  # answers
_FULL = (Failure.LIMIT, Failure.TOO_MANY)
_OF_ITS_OWN = (*_FULL, Failure.UPSTREAM)  # what a proxy of our kind says of itself, not of a target
_SECURE = {"ws": "wss", "http": "https"}
# What servers say, in an answer 400, to one that speaks plain HTTP where they speak TLS: nginx and we, Apache
# ("You're speaking plain HTTP to an SSL-enabled server port"), and Go's ("Client sent an HTTP request to an
# HTTPS server").
_WANTS_TLS = re.compile(rb"plain HTTP|HTTP request to an HTTPS")


class Exchange:
    """One request over a channel, and the answer to it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.waits = False  # the request is sent, and nothing of its answer is there

    def send(self, data: bytes) -> int:
        """Send the request."""
        self.waits = True
        return self._channel.send(data)

    def read_answer(self) -> ResponseHead:
        """Read the head of the answer; raises ``ProtocolError``, ``EOFError`` and ``OSError``."""
        # RFC 9110, section 15.2: any number of interim answers may come before the one that counts.
        for _ in range(_MAX_INTERIM + 1):
            answer = self._read_head()
            if answer.status >= 200 or answer.status == 101:
                return answer
            self.waits = True
        raise ProtocolError("it sends too many interim answers (1xx)")

    def _read_head(self) -> ResponseHead:
        buffer = HeadBuffer(request=False)
        data = first = self._channel.recv(4096)
        self.waits = not first
        try:
            while not buffer.feed(data):
                if not data:
                    raise EOFError("the peer closed the connection")
                data = self._channel.recv(4096)
        except HttpError as exc:
            if first.startswith(b"HTTP/"):
                raise
            raise ProtocolError(f"this is not an HTTP server: {speaker_of(first)} answered") from exc
        self._channel.push_back(buffer.leftover)
        return replace(parse_response(buffer.head), behind=buffer.leftover)


class HttpSpeaker(UpstreamClient):
    """An upstream that is spoken to in HTTP."""

    def __init__(self, config: ClientConfig, name: str = "", via: TunnelClient | None = None) -> None:
        super().__init__(config, name or without_query(str(config.endpoint)), via)
        secure = self._endpoint.scheme in _SECURE.values()
        files = config.tls_ca, config.tls_cert, config.tls_key
        self._tls = (
            client_context(*files, verify=config.tls_verify, authorities=config.authorities)
            if secure
            else None
        )
        self._server_name = config.sni or self._endpoint.server_name
        names = {header.partition(":")[0].lower() for header in config.headers}
        ours = [] if "user-agent" in names else [f"User-Agent: {PROXY_NAME}/{__version__}"]
        self.more_headers = [*ours, *config.headers]  # of every request, beside those that it is made of

    def prepare(self, channel: Channel, deadline: Deadline) -> None:
        """Do the TLS handshake, if there is one."""
        if self._tls is None:
            return
        try:
            if channel.has_early:
                # Whoever it was, it was in the clear, and would pass for what comes by TLS.
                raise ProtocolError("it spoke before the TLS handshake")
            with deadline.limit("TLS handshake"):
                channel.sock = connect_tls(channel.sock, self._tls, self._server_name)
        except ProtocolError as exc:
            # A bad certificate will be no better in a moment.
            passes = isinstance(exc.__cause__, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
            raise self.as_upstream_error(str(exc), transient=passes) from exc
        except OSError as exc:
            raise self.as_upstream_error(reason_of(exc), exc) from exc

    def broken(self, exc: ProtocolError | EOFError | OSError, *, waits: bool) -> UpstreamError:
        """Make the error of an exchange that came to no answer; it ``waits`` if nothing of one had come."""
        if isinstance(exc, ProtocolError):
            # What does not speak HTTP will be no better in a moment.
            return self.as_upstream_error(str(exc), transient=False)
        if not isinstance(exc, (EOFError, ConnectionError)):
            return self.as_upstream_error(reason_of(exc), exc, unclear=waits)
        reason = "it closed the connection during the handshake"
        if isinstance(exc, ConnectionError):
            reason = reason_of(exc)
        elif waits:
            reason = "it closed the connection without an answer"
        return self.as_upstream_error(reason + (self.tls_hint() if waits else ""), unclear=waits)

    def check_plain(self, answer: ResponseHead) -> ResponseHead:
        """Give an answer back; raises ``UpstreamError`` for one that says that TLS is wanted."""
        if self._tls or answer.status != 400 or not _WANTS_TLS.search(answer.behind):
            return answer
        ours = self._endpoint.scheme
        reason = f"it speaks TLS: its address has to begin with {_SECURE[ours]}://, not {ours}://"
        # A sign of life has to say the same: what a client asks for must not make it rest.
        raise self.as_upstream_error(reason, transient=False, unclear=True, status=answer.status)

    def tls_hint(self) -> str:
        """Ask whether TLS is wanted, where there is none."""
        return "" if self._tls else f": does it want TLS ({_SECURE[self._endpoint.scheme]}://)?"

    def refusal(self, answer: ResponseHead, target: Address) -> DialError:
        """Make the error that says why an answer is not the one that was wanted."""
        status = answer.status
        if status in (401, 407):
            return self.login_refused(self.login_hint(answer), status)
        failure, is_told = failure_reported(answer)
        if is_told and failure not in _OF_ITS_OWN:
            return DialError(f"{target} through upstream {self.name}: {failure.value}", failure)
        # It may be well, and only have no place left or no way on, or not like the request.
        well = is_told or status in (400, 429)
        said = f"{failure.value} (status {status})" if is_told else self.describe(status)
        busy = is_told and failure in _FULL
        error = self.as_upstream_error(said, transient=busy, unclear=not well, well=well, status=status)
        error.failure = failure
        return error

    def describe(self, status: int) -> str:
        """Say what an answer says that is not of our kind."""
        return f"answered {status}"

    def login_hint(self, answer: ResponseHead) -> str:
        """Say what helps where our login was not enough."""
        return ""


def host_header(endpoint: Endpoint) -> str:
    """Write the Host header: only its own scheme's default port is left out (RFC 9110, section 7.2)."""
    name = endpoint.server_name
    host = f"[{name}]" if ":" in name else name
    return host if endpoint.port == DEFAULT_PORTS[endpoint.scheme] else f"{host}:{endpoint.port}"
