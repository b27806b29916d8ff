"""
HTTP for a handful of clients: one request per connection, and a bound on everything.

Heads are read by the same strict parser as the listeners use. What a request means is its handler's
business; what it may cost is decided here.
"""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from gevent import GreenletExit, getcurrent
from gevent.pool import Pool

from proxy.accesslog import quoted
from proxy.address import Address
from proxy.errors import reason_of
from proxy.http.heads import Fields, Headers, HttpError, RequestHead, date, read_request, reason_phrase
from proxy.listening.listen import SocketServer
from proxy.net.deadline import Deadline
from proxy.net.limits import BALLAST
from proxy.net.sock import GeventSocket, address_of
from proxy.relaying.channel import Channel

log = logging.getLogger(__name__)

PLACES = 16  # requests at a time; more wait in the kernel's queue
STRANGERS = 16  # connections beside them, of whom nothing is known yet
PATIENCE = 10.0  # seconds for a request to arrive, and again for its answer to be taken
MAX_BODY = 64 * 1024  # bytes

JSON, TEXT = "application/json", "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Request:
    """A complete request."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What is answered: an object as JSON, or a text, which is that of metrics if no other kind is said."""

    content: Any
    status: int = 200
    headers: Fields = ()
    kind: str = ""

    def encode(self, *, bodiless: bool = False) -> bytes:
        """Encode the whole of it, after which the connection is closed."""
        is_text = isinstance(self.content, str)
        body = (self.content if is_text else json.dumps(self.content) + "\n").encode()
        lines = [
            f"HTTP/1.1 {self.status} {reason_phrase(self.status)}",
            f"Date: {date()}",
            *(f"{name}: {value}" for name, value in self.headers),
            f"Content-Type: {self.kind or (TEXT if is_text else JSON)}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if bodiless else body)


Handler = Callable[[Request], Answer]
Guard = Callable[[RequestHead, Address], None]

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # a MUST where it is expected (RFC 9110, section 10.1.1)


class HttpServer:
    """
    Serves a listening socket. The guard sees a request's head first, and raises ``HttpError``.

    Who has not come past the guard takes no place from those who have. If there are too many of them
    the oldest gives way: who knows the token sends it at once.
    """

    def __init__(self, sock: GeventSocket, handler: Handler, guard: Guard) -> None:
        self._handler = handler
        self._guard = guard
        self._strangers: dict[Any, None] = {}  # greenlets, the oldest first
        self._server = _Server(sock, self._serve, spawn=Pool(PLACES + STRANGERS + 1))

    @property
    def address(self) -> Address:
        """Where it listens, if that is TCP."""
        return address_of(self._server.socket.getsockname())

    def start(self) -> None:
        """Begin to accept."""
        self._server.start()

    def stop(self) -> None:
        """Close the listening socket; whoever is being answered gets a moment."""
        self._server.stop(timeout=1.0)

    def _serve(self, sock: GeventSocket, peer: Any) -> None:
        channel = Channel(sock)
        self._strangers[getcurrent()] = None
        if len(self._strangers) > STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.kill(block=False)
        try:
            self._converse(channel, address_of(peer))
        except (OSError, EOFError) as exc:
            log.debug("control: %s", reason_of(exc))
        except GreenletExit:
            channel.abort()  # another one wants this place, or it all ends: there is no last word
        finally:
            self._strangers.pop(getcurrent(), None)
            channel.close()

    def _converse(self, channel: Channel, client: Address) -> None:
        bodiless = False
        try:
            with Deadline(PATIENCE).limit("request"):
                head = read_request(channel)
                bodiless = head.method == "HEAD"
                self._guard(head, client)
                self._strangers.pop(getcurrent(), None)
                size = _body_size(head.headers)
                if size and head.version != "HTTP/1.0" and "100-continue" in head.headers.tokens("Expect"):
                    channel.send(_CONTINUE)
                body = channel.read_exact(size)
                self._guard(head, client)  # what opened it may have been taken away while the body came
            answer = self._handler(_request(head, body))
        except HttpError as exc:
            answer = Answer({"error": str(exc)}, exc.status, exc.headers)
        except TimeoutError:
            answer = Answer({"error": "the request did not arrive in time"}, 408)
        except (OSError, EOFError):
            raise
        except MemoryError:
            BALLAST.give_up()
            answer = Answer({"error": "there is not enough memory: raise its limit"}, 503)
        except Exception as exc:
            log.error("control: internal error: %s: %s", type(exc).__name__, exc)
            log.debug("internal error", exc_info=True)
            answer = Answer({"error": "internal error"}, 500)
        with suppress(TimeoutError), Deadline(PATIENCE).limit("answer"):
            channel.send(answer.encode(bodiless=bodiless))


class _Server(SocketServer):
    """Accepts also while memory is short, as that is when an operator wants to know what is going on."""

    def has_memory(self) -> bool:
        try:
            BALLAST.leave_some()
        except MemoryError:
            return False
        return True


def _body_size(headers: Headers) -> int:
    # The Content-Type is not looked at: curl says of all that it sends that it is a form.
    if (coding := headers.get("Content-Encoding") or "identity").lower() != "identity":
        raise HttpError(415, f"a body is not read in the coding {quoted(coding)}")
    if headers.get_all("Transfer-Encoding"):
        raise HttpError(411, "a body needs a Content-Length")
    length = headers.get("Content-Length") or "0"
    if not length.isascii() or not length.isdecimal():
        raise HttpError(400, "the Content-Length is not a number")
    if len(length) > 9 or int(length) > MAX_BODY:
        raise HttpError(413, f"a body has at most {MAX_BODY} bytes")
    return int(length)


def _request(head: RequestHead, body: bytes) -> Request:
    if not head.target.startswith("/"):
        raise HttpError(400, "the request target is not a path")
    path, _, text = head.target.partition("?")
    query = parse_qsl(text, keep_blank_values=True)
    if len(dict(query)) < len(query):
        raise HttpError(400, "the query has a name twice")
    return Request(head.method, path, dict(query), head.headers, body)
