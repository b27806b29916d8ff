"""
What is fuzzed, and what has to be so whatever comes.

A subject reads an input and gives its outcome: what it understood, or how it refused. The input in
pieces has to have the same outcome; what else is claimed of it is asserted on the way. An exception that
is not documented, and a claim that is wrong, are findings.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from websockets.exceptions import ProtocolError as PeersProtocolError
from websockets.frames import Frame

from proxy import idn, units
from proxy.address import Address, Endpoint
from proxy.configfile import load
from proxy.configfile.content import Content
from proxy.configtext import document
from proxy.errors import ConfigError, ProtocolError
from proxy.http import bodies, heads, requests
from proxy.parsers import Parser, run
from proxy.proxyprotocol import parse_header
from proxy.relaying.channel import Channel
from proxy.runtime import Runtime
from proxy.socks4 import Socks4Inbound
from proxy.socks5 import codec
from proxy.websocket import frames, headers
from proxy.websocket.masking import mask

T = TypeVar("T")
MAX_NAME = 253  # characters of a host name (RFC 1035, section 2.3.4)
Outcome = object


@dataclass(frozen=True)
class Subject:
    """One parser: right inputs, and how one is read that comes in pieces."""

    seeds: Sequence[bytes]
    read: Callable[[Sequence[bytes]], Outcome]


class Wire:
    """Pieces as they come from a peer that then leaves."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = list(pieces)
        self.rest = b""

    def recv(self, count: int) -> bytes:
        """Receive what comes next."""
        return self._pieces.pop(0) if self._pieces else b""

    def push_back(self, data: bytes) -> None:
        """Take back what was too much."""
        self.rest = data + b"".join(self._pieces)

    def read_exact(self, count: int) -> bytes:
        """Read so many bytes; raises ``EOFError``."""
        assert 0 <= count <= 1 << 16, "asks for more than anybody may say"
        data = b"".join(self._pieces)
        if len(data) < count:
            raise EOFError
        self._pieces = [data[count:]]
        return data[:count]

    @property
    def left(self) -> bytes:
        """What was not read."""
        return b"".join(self._pieces)


def _attempt(action: Callable[[], T], *refusals: type[Exception]) -> T | tuple[str, str]:
    """Do something, or say how it was refused."""
    try:
        return action()
    except refusals as exc:
        return type(exc).__name__, str(exc)


# -- SOCKS, PROXY protocol


def _parsed(parser: Callable[[], Parser[Any]]) -> Callable[[Sequence[bytes]], Outcome]:
    def read(pieces: Sequence[bytes]) -> Outcome:
        wire = Wire(pieces)
        outcome = _attempt(lambda: run(parser(), wire.read_exact), ProtocolError, EOFError)
        if hasattr(outcome, "encode"):
            # What is understood can be said again, and is understood in the same way.
            again = Wire([outcome.encode()])
            assert run(parser(), again.read_exact) == outcome
            assert not again.left
        return outcome, wire.left

    return read


def _read_socks4(pieces: Sequence[bytes]) -> Outcome:
    wire = Wire(pieces)
    door = Socks4Inbound(cast(Channel, wire), cast(Runtime, SimpleNamespace(needs_auth=False)))
    return _attempt(door.greet, ProtocolError, EOFError), wire.left


# -- HTTP


def _collect(pieces: Sequence[bytes], *, request: bool) -> tuple[bytes, bytes]:
    buffer = heads.HeadBuffer(request=request)
    for piece in pieces:
        buffer.feed(piece)
    assert not buffer.head or buffer.head + buffer.leftover == b"".join(pieces)
    return buffer.head, buffer.leftover


def _read_request(pieces: Sequence[bytes]) -> Outcome:
    got = _attempt(lambda: _collect(pieces, request=True), heads.HttpError)
    if not isinstance(got[0], bytes) or not got[0]:
        return got
    head = _attempt(lambda: heads.parse_request(got[0]), heads.HttpError)
    if isinstance(head, tuple):
        return head
    _as_h11_reads_it(got[0], head)
    passed = _attempt(lambda: requests.vet_proxy_request(head), heads.HttpError)
    if isinstance(passed, requests.ProxyRequest):
        _attempt(lambda: passed.target, heads.HttpError)
        if passed.head:
            # What we write ourselves has to be right in our own eyes, and say nothing of the proxy.
            written = heads.parse_request(passed.head)
            assert not written.headers.any_begins("proxy-")
    tunnel = _attempt(lambda: headers.vet_request(head), heads.HttpError)
    if isinstance(tunnel, headers.TunnelRequest):
        _attempt(lambda: tunnel.target, heads.HttpError)
    said = [each if isinstance(each, tuple) else (each.host, each.port) for each in (passed, tunnel)]
    return head.method, head.target, head.version, list(head.headers.fields), said, got[1]


def _as_h11_reads_it(data: bytes, head: heads.RequestHead) -> None:
    """Check that another strict reader takes what we take, and for the same."""
    h11 = importlib.import_module("h11")
    peer = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    peer.receive_data(data)
    try:
        event = peer.next_event()
    except h11.RemoteProtocolError as exc:
        # These concern the body and the host, which are judged by who knows what the request is for.
        about = ("Host:", "Content-Length", "Transfer-Encoding", "content-length", "transfer-encoding")
        if not any(word in str(exc) for word in about):
            raise AssertionError(f"h11 refuses it: {exc}") from exc
        return
    assert (event.method.decode(), event.target.decode("latin-1")) == (head.method, head.target)
    ours = [(name.lower(), value.strip().lower()) for name, value in head.headers.fields]
    # It writes some values in small letters.
    theirs = [(name.decode(), value.decode("latin-1").strip().lower()) for name, value in event.headers]
    assert theirs == ours


def _read_response(pieces: Sequence[bytes]) -> Outcome:
    got = _attempt(lambda: _collect(pieces, request=False), heads.HttpError)
    if not isinstance(got[0], bytes) or not got[0]:
        return got
    head = _attempt(lambda: heads.parse_response(got[0]), ProtocolError)
    if isinstance(head, tuple):
        return head
    return head.status, list(head.headers.fields), got[1]


def _read_chunked(pieces: Sequence[bytes]) -> Outcome:
    body, taken = bodies.Chunked(), 0
    for piece in pieces:
        before = -1
        try:
            while piece and not body.is_over and before:
                before = body.take(piece, 5)
                taken += before
                piece = piece[before:]
        except heads.HttpError as exc:
            return type(exc).__name__, str(exc)
    return taken, body.is_over


# -- frames


def _read_frames(*, masked: bool) -> Callable[[Sequence[bytes]], Outcome]:
    def read(pieces: Sequence[bytes]) -> Outcome:
        decoder, events, error = frames.Decoder(masked=masked), list[tuple[str, object]](), ""
        for piece in pieces:
            # A reader of its own asks for a few frames at a time.
            rest = memoryview(bytearray(piece))
            try:
                while rest:
                    for event in decoder.feed(rest, 3):
                        _add(events, event)
                    rest = decoder.rest
            except frames.FrameError as exc:
                error = f"{exc.code} {exc}"
                break
        if not error and not decoder.closed:
            _as_the_peer_reads_it(b"".join(pieces), events, masked=masked, whole=decoder.at_boundary)
        return events, error

    return read


def _add(events: list[tuple[str, object]], event: frames.Event) -> None:
    """Note an event; pieces of a payload are put together."""
    kind = type(event).__name__
    if not isinstance(event, frames.Payload):
        events.append((kind, getattr(event, "payload", getattr(event, "code", None))))
    elif events and events[-1][0] == kind:
        events[-1] = kind, cast(bytes, events[-1][1]) + bytes(event.data)
    else:
        events.append((kind, bytes(event.data)))


def _as_the_peer_reads_it(
    data: bytes, events: Iterable[tuple[str, object]], *, masked: bool, whole: bool
) -> None:
    """Check that another reader takes the whole frames that we take, and for the same payload."""
    wire, payload = Wire([data]), b""

    def read_exact(count: int) -> Any:
        yield from ()
        return wire.read_exact(count) if count else b""

    try:
        while wire.left:
            parser = Frame.parse(read_exact, mask=masked)
            try:
                next(parser)
            except StopIteration as done:
                if done.value.opcode in (0, 1, 2):
                    payload += done.value.data
    except (EOFError, AssertionError):  # it is not complete, or longer than what there is
        assert not whole
    except PeersProtocolError as exc:
        raise AssertionError(f"websockets refuses it: {exc}") from exc
    ours = b"".join(cast(bytes, value) for kind, value in events if kind == "Payload")
    assert ours == payload if whole else ours.startswith(payload)


def _frame(opcode: int, payload: bytes, key: bytes | None, *, fin: bool = True) -> bytes:
    header = bytearray(frames.encode_header(frames.Opcode(opcode), len(payload), key))
    if not fin:
        header[0] &= 0x7F
    body = bytearray(payload)
    if key:
        mask(memoryview(body), key)
    return bytes(header + body)


def _frames(key: bytes | None) -> list[bytes]:
    small = [b"", b"x", b"hello" * 20, b"y" * 125, b"z" * 126, b"z" * 300]
    return [
        *(_frame(2, payload, key) for payload in small),
        _frame(2, b"a", key, fin=False) + _frame(9, b"ping", key) + _frame(0, b"b", key),
        _frame(9, b"", key) + _frame(10, b"pong", key) + _frame(2, b"data", key),
        _frame(2, b"data", key) + _frame(8, b"\x03\xe8bye", key),
        _frame(8, b"", key),
    ]


# -- values, which come whole


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _read_endpoint(pieces: Sequence[bytes]) -> Outcome:
    text = _text(b"".join(pieces))
    found = _attempt(lambda: Endpoint.parse(text), ValueError)
    if isinstance(found, Endpoint):
        assert str(Endpoint.parse(str(found))) == str(found)
    return str(found)


def _read_address(pieces: Sequence[bytes]) -> Outcome:
    text = _text(b"".join(pieces))
    found = _attempt(lambda: Address(text, 443), ProtocolError)
    if isinstance(found, Address):
        assert Address(found.host, 443) == found
        assert found.host.isascii()
        codec.encode_address(found)
    return found


def _read_name(pieces: Sequence[bytes]) -> Outcome:
    text = _text(b"".join(pieces))
    name = _attempt(lambda: idn.to_ascii(text), ProtocolError)
    if isinstance(name, str):
        assert name.isascii()
        # Who asks looks at the length of the whole.
        assert len(name) > MAX_NAME or idn.to_ascii(name) == name
    return name


def _read_units(pieces: Sequence[bytes]) -> Outcome:
    text = _text(b"".join(pieces))
    seconds = _attempt(lambda: units.parse_duration(text), ValueError)
    if isinstance(seconds, float):
        assert units.parse_duration(units.write_duration(seconds)) == seconds
    rate = _attempt(lambda: units.parse_rate(text), ValueError)
    if isinstance(rate, units.Rate):
        assert units.parse_rate(str(rate)) == rate
    return seconds, rate, _attempt(lambda: units.parse_size(text), ValueError)


# -- the configuration file

SETTINGS = (
    ("listeners.main.timeout", "7s"),
    ("proxy.log_level", "debug"),
    ("upstreams.far.proxy_password", "a # b, 'c'"),
    ("auth_users.al ice", '"quoted"'),
    ("listeners.new.listen_addr", "127.0.0.1:1"),
)


def _read_config(pieces: Sequence[bytes]) -> Outcome:
    data = b"".join(pieces)
    loaded = _attempt(lambda: load.understand(Content(data), "proxy.ini", with_files=False), ConfigError)
    text = _text(data)
    assert str(document.Document(text)) == text
    document.redact(text)
    name, value = SETTINGS[len(data) % len(SETTINGS)]
    changed = _attempt(lambda: document.edit(text, [(name, value)]), ConfigError)
    if isinstance(changed, str):
        _differs_in_one_line(text, changed)
        assert document.edit(changed, [(name, value)]) == changed
    return "refused" if isinstance(loaded, tuple) and isinstance(loaded[0], str) else "read"


def _differs_in_one_line(text: str, changed: str) -> None:
    """Check that all lines are as they were, but for the one of the setting, or those that were added."""
    before, after = text.split("\n"), changed.split("\n")
    same = _same(before, after)
    before, after = before[same:], after[same:]
    assert len(before) - _same(before[::-1], after[::-1]) <= 1, "more than one line was changed"


def _same(one: Sequence[str], other: Sequence[str]) -> int:
    """Tell how many lines at the front are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


CONFIG = b"""\
# A comment
[proxy]
timeout = 5s   # beside it
log_level = "info"

[listeners]
[[main]]
protocol = socks5
listen_addr = 127.0.0.1:1080
upstream = far, direct
[[web]]
protocol = websocket
listen_addr = "[::1]:8080"

[upstreams]
  [[far]]
    type = websocket
    proxy_address = wss://far.example/tunnel
    proxy_username = alice
    proxy_password = 'se,cret # no comment'

[auth_users]
alice = "wonder, land"
"b o b" = x
"""

_CONNECT = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nProxy-Authorization: Basic YTpi\r\n\r\n"
_GET = b"GET http://site.example:81/a?b HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\nmore"
_POST = (
    b"POST http://[::1]/ HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
)
_UPGRADE = (
    b"GET /tunnel HTTP/1.1\r\nHost: gate.example\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nX-Proxy-Half-Close: 1\r\n"
    b"X-Proxy-Target-Host: target.example\r\nX-Proxy-Target-Port: 443\r\nX-Proxy-Username: a\r\n"
    b"X-Proxy-Password: b\r\n\r\n\x82\x80"
)
_SOCKS5 = [
    b"\x05\x01\x00\x01\x7f\x00\x00\x01\x01\xbb",
    b"\x05\x01\x00\x03\x0etarget.example\x01\xbb",
    b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x00\x50rest",
    b"\x05\x01\x00\x03\x0bb\xc3\xbccher.com\x00\x50",
]

SUBJECTS = {
    "socks5-greeting": Subject([b"\x05\x02\x00\x02", b"\x05\x01\x00more"], _parsed(codec.parse_greeting)),
    "socks5-login": Subject([b"\x01\x05alice\x06wonder"], _parsed(codec.parse_login)),
    "socks5-request": Subject(_SOCKS5, _parsed(codec.parse_request)),
    "socks4": Subject(
        [b"\x04\x01\x00\x50\x7f\0\0\x01me\0rest", b"\x04\x01\x01\xbb\0\0\0\x01me\0target.example\0"],
        _read_socks4,
    ),
    "proxy-protocol": Subject(
        [
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\nrest",
            b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n",
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x04\xd2\x01\xbb",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x13\xc0\0\x02\x01\xc0\0\x02\x02\x04\xd2\x01\xbb\x03\0\x04abcd",
            b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00",
        ],
        _parsed(parse_header),
    ),
    "http-request": Subject([_CONNECT, _GET, _POST, _UPGRADE], _read_request),
    "http-response": Subject(
        [
            b"HTTP/1.1 200 OK\r\n\r\nrest",
            b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 2\r\n\r\nno',
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n",
        ],
        _read_response,
    ),
    "http-chunked": Subject(
        [
            b"5\r\nhello\r\n0\r\n\r\nrest",
            b"a;x=y\r\n0123456789\r\n0\r\nX: y\r\n\r\n",
            b"FF\r\n" + b"x" * 255 + b"\r\n",
        ],
        _read_chunked,
    ),
    "frames-masked": Subject(_frames(b"\x01\x02\x03\x04"), _read_frames(masked=True)),
    "frames-unmasked": Subject(_frames(None), _read_frames(masked=False)),
    "endpoint": Subject(
        [
            b"127.0.0.1:1080",
            b"[::1]:80",
            b"wss://u.example:444/a?b",
            b":80",
            b"http://x.example",
            b"unix:/run/x",
        ],
        _read_endpoint,
    ),
    "address": Subject(
        [
            b"target.example",
            b"127.0.0.1",
            b"::ffff:1.2.3.4",
            b"0x7f.1",
            "bücher.例え".encode(),
            b"xn--bcher-kva",
        ],
        _read_address,
    ),
    "name": Subject(
        ["bücher.example".encode(), "例え。テスト".encode(), b"a_b.c", "faß.de".encode()], _read_name
    ),
    "units": Subject([b"30s", b"500ms", b"1.5h", b"64k", b"10/s", b"100 / h"], _read_units),
    "config": Subject(
        [CONFIG, b"[listeners]\n[[a]]\nprotocol = socks5\n", b"\xef\xbb\xbf[proxy]\r\ntimeout=5\r\n"],
        _read_config,
    ),
}
