"""
The server side of HTTP proxying: a client asks for a tunnel, or for one page (RFC 9110, RFC 9112).
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from proxy.address import Address
from proxy.errors import Failure, ProtocolError, ProxyError
from proxy.http.answers import Answer
from proxy.http.forwarded import learn_client
from proxy.http.heads import HttpError, malformed, read_request
from proxy.http.refusals import PROXY_NAME, encode_response, no_answer, refusal, too_late
from proxy.http.requests import ProxyRequest, vet_proxy_request
from proxy.relaying.channel import Channel
from proxy.relaying.stream import Buffer, Ending, Stream, TcpStream
from proxy.runtime import Runtime
from proxy.session import Wanted
from proxy.sharing.pipes import Pipe
from proxy.sharing.turns import TURNS

CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def challenge(why: str) -> HttpError:
    """Ask for a login, as programs and browsers know it (RFC 9110, section 11.7.1; RFC 7617)."""
    basic = ("Proxy-Authenticate", f'Basic realm="{PROXY_NAME}", charset="UTF-8"')
    return HttpError(407, why, failure=Failure.CREDENTIALS, headers=(basic,))


class HttpInbound:
    """One client that uses an HTTP proxy."""

    # A client may send its request and close its side: the answer is still wanted.
    half_close_grace = 0.5  # seconds

    def __init__(self, channel: Channel, runtime: Runtime) -> None:
        self._channel = channel
        self._runtime = runtime
        self._request: ProxyRequest | None = None
        self._is_head = False  # the answer to HEAD has no content (RFC 9110, section 9.3.2)

    def greet(self) -> Wanted:
        """Read where the client wants to go, and who it is."""
        head = read_request(self._channel)
        self._is_head = head.method == "HEAD"
        learn_client(self._channel, head.headers, self._runtime.config)
        request = vet_proxy_request(head)
        user = ""
        if self._runtime.needs_auth:
            if request.credentials is None:
                # No guess, and nothing for fail2ban: most programs send none before they are asked.
                raise challenge("a login is needed")
            user = self._runtime.log_in(*request.credentials, self._channel)
        self._request = request
        return Wanted(request.target, user)

    def accept(self, bound: Address | None) -> Stream:
        """Say that the tunnel is there; to a request that is passed on, its target answers."""
        assert self._request is not None
        if self._request.head:
            stream = RequestStream(self._request, self._channel.stream(), is_head=self._is_head)
            return cast(Stream, stream)
        self._channel.send(CONNECTED)
        return self._channel.stream()

    def refuse(self, error: ProxyError) -> None:
        """Answer with the status that says why not."""
        if isinstance(error, HttpError):
            answer = error
        elif error.failure is Failure.CREDENTIALS:
            answer = challenge(error.failure.value)
        else:
            answer = refusal(error.failure, error.retry_after, error.told)
        answer.bodiless = self._is_head
        self._channel.send(encode_response(answer))


class RequestStream:
    """
    A client of which one request is passed on, and the answer to it: nothing behind it is for the target.

    A second request would go to the target of the first, with the login that it has for us. So when one
    comes, what the client sends is taken for ended: the target ends after its answer, and the client asks
    anew on a connection of its own.
    """

    def __init__(self, request: ProxyRequest, client: TcpStream, *, is_head: bool = False) -> None:
        self._client = client
        self._is_head = is_head
        self._is_client_lost = False  # so that an answer of ours would be for nobody
        self._has_client_ended = False
        self._is_answer_over = False  # the target has ended, or the answer is ours
        self._objection: HttpError | None = None  # to what the client has sent
        self._head = request.head  # what goes first, in the place of what the client sent
        self._body = request.body
        self._rest = memoryview(b"")  # what was received and not looked at yet
        self._is_over = False  # something came behind the body
        # RFC 9110, section 15.2: none to HTTP/1.0, whose version the target was told, and may ignore.
        first_line = request.head.partition(b"\r\n")[0]
        self._expects = b"\r\nexpect:" in request.head.lower()
        self._answer = Answer(interim=not first_line.endswith(b" HTTP/1.0"))
        self._end_waits = False  # for what the client did not take yet
        self._has_told_all = False  # the request is over, and the client knows that the answer is

    def __getattr__(self, name: str) -> Any:
        """Be the client in everything else."""
        return getattr(self._client, name)

    @property
    def on_blocked(self) -> Callable[[], None]:
        """What is called when something has to be kept."""
        return self._client.on_blocked

    @on_blocked.setter
    def on_blocked(self, callback: Callable[[], None]) -> None:
        self._client.on_blocked = callback

    @property
    def buffered(self) -> bool:
        """True if there is more than the socket tells."""
        return bool(self._head or self._rest or self._is_over or self._client.buffered)

    def recv_into(self, buffer: Buffer, *, bulk: bool) -> int | None:
        """Give the head, and then receive the body; all that passes is looked at."""
        if self._head:
            size = min(len(self._head), len(buffer.payload))
            buffer.payload[:size] = self._head[:size]
            self._head = self._head[size:]
            return size
        try:
            if self._rest:
                return self._follow(buffer, self._rest)
            count = 0 if self._is_over else self._receive(buffer, bulk=bulk)
            if count:
                return self._follow(buffer, buffer.payload[:count])
            if count == 0 and not self._is_over:
                self._has_client_ended = True
                if not self._body.is_over:
                    raise malformed("the request broke off in its body")
        except HttpError as exc:
            self._objection = exc
            raise
        except (OSError, ProtocolError):
            self._is_client_lost = True
            raise
        return count

    def _receive(self, buffer: Buffer, *, bulk: bool) -> int | None:
        try:
            return self._client.recv_into(buffer, bulk=bulk)
        except ProtocolError:
            # Many clients that have the whole answer end TCP without a word of TLS, and cut nothing by it.
            if self._has_told_all:
                return 0
            raise

    def _follow(self, buffer: Buffer, data: memoryview) -> int:
        """Put what belongs to the body into the buffer. Of thousands of chunks some wait for a later turn."""
        taken = self._body.take(data[: len(buffer.payload)], TURNS.frames)
        TURNS.spend(self._body.lines)
        rest, self._rest = data[taken:], memoryview(b"")
        if data.obj is not buffer.view.obj:
            buffer.payload[:taken] = data[:taken]
            self._rest = rest
        elif rest:
            self._rest = memoryview(bytes(rest))  # the buffer is everybody's
        if self._body.is_over:
            self._is_over, self._rest = bool(rest), memoryview(b"")
        return taken

    def spliceable(self) -> int:
        """Allow none, as the end of the body has to be found."""
        return 0

    def send(self, buffer: Buffer, count: int) -> None:
        """Send some of the answer; of its head what is for the client."""
        if not self._answer.in_head:
            self._client.send(buffer, count)
        elif data := self._answer.take(bytes(buffer.payload[:count])):
            self._client.write(data)

    def splice_out(self, pipe: Pipe, count: int) -> None:
        """Send the payload that is in a pipe, also where that is bulk while a large head is not complete."""
        if not self._answer.in_head:
            self._client.splice_out(pipe, count)
            return
        try:
            data = pipe.read(count)
        except BaseException:
            pipe.give_back(empty=False)
            raise
        pipe.give_back()
        if data := self._answer.take(data):
            self._client.write(data)

    def flush(self) -> None:
        """Send what was kept."""
        self._client.flush()
        if self._end_waits and not self._client.blocked:
            self._end_waits = False
            self._tell_end()

    def end(self) -> None:
        """Tell the client that no more bytes follow, also where there was no answer or half a head."""
        self._answer_instead(self._answer.fault)
        self._is_answer_over = True
        if self._client.blocked:
            self._end_waits = True
        else:
            self._tell_end()

    def _answer_instead(self, error: HttpError) -> None:
        """Say what went wrong if no whole head came."""
        if self._answer.in_head:
            self._answer.give_up()
            error.bodiless = self._is_head
            self._client.write(encode_response(error))
            self._is_answer_over = True

    def _tell_end(self) -> None:
        # A client that waits for the end of the answer would wait until a relay over TLS, which has no
        # half-close, has lingered. But what it sends behind its request goes nowhere.
        if self._body.is_over:
            self._has_told_all = True
            self._client.end_both()
        else:
            self._client.end()

    def begin_close(self, ending: Ending) -> None:
        """Tell the client how it ended, or why there was no answer."""
        if ending not in (Ending.STOPPED, Ending.EVICTED) and not self._is_client_lost:
            with suppress(OSError, ProtocolError):  # nobody may be left to take it
                self._answer_instead(self._reason_for(ending))
            if self._is_answer_over:  # the client misses nothing, whatever became of its request
                ending = Ending.FINISHED
        # Where both sides ended at once, this is the first that it hears of the end: not all of it was taken.
        if ending is Ending.FINISHED and self._client.blocked:
            ending = Ending.CUT
        if ending is Ending.FINISHED and not self._has_client_ended:
            self._client.begin_farewell()
        else:
            self._client.begin_close(ending)

    @property
    def _owes_a_body(self) -> bool:
        """True if the client has to send more, and does not; but it may wait for a word that it expects."""
        if self._body.is_over or self._rest or self._expects:
            return False
        return self._client.receive(memoryview(bytearray(1))) is None

    def _reason_for(self, ending: Ending) -> HttpError:
        """Tell whose fault it is that there was no answer."""
        if ending is Ending.FAILED:
            return no_answer("proxy_internal_error")
        if ending is Ending.IDLE:
            return too_late() if self._owes_a_body else no_answer("connection_read_timeout")
        return self._objection or self._answer.fault
