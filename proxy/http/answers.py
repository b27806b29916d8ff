"""
The answer to a request that is passed on: what its heads say of a connection holds for the client's.

Only heads are read, the interim ones and the last. What follows is the body, and goes as it comes. So does
all that is no HTTP, from the byte on at which that is seen: a client that asks for it may know what it is.

What two readers could read differently is mended where RFC 9112 says how, and else not passed on.
"""

import re

from proxy.errors import ProtocolError
from proxy.http.heads import MAX_HEAD, Headers, HttpError, ResponseHead, date, parse_response
from proxy.http.refusals import PROXY_NAME, no_answer

# What is between a server and us (RFC 9110, section 7.6.1), beside what Connection names.
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "upgrade"}
# They say where the body ends, whatever Connection says of them.
_FRAMING = {"content-length", "transfer-encoding"}
_START = b"HTTP/1."
_END = re.compile(rb"\r?\n\r?\n")
_VERSION = slice(5, 8)  # of HTTP/1.1
_NUMBER = re.compile("[0-9]+")
_LINE_END = re.compile(rb"\r?\n")
_FOLD = re.compile(rb"\r\n[ \t]+")
_MOST_LINES = 1000  # of one head: to read as many as have room in it takes 30 ms
# Heads of one read. It has room for thousands, which take 40 ms, and nobody else is served meanwhile.
_MOST_AT_ONCE = 64


class Answer:
    """Follows an answer up to its body; ``interim`` ones are for a client that may get them."""

    def __init__(self, *, interim: bool = True) -> None:
        self.in_head = True  # what comes belongs to a head
        self._interim = interim
        self._kept = bytearray()  # of a head that is not complete, or cannot be passed on
        self._scanned = 0  # up to here there is no end of it
        self._error = "connection_terminated"
        self._told = ""

    @property
    def fault(self) -> HttpError:
        """What to tell the client if no more of it comes, while it is in its head."""
        return no_answer(self._error, self._told)

    def take(self, data: bytes) -> bytes:
        """Take more of it, and give what is to be sent on now; raises ``ProtocolError`` if nothing may be."""
        ready, heads = b"", 0
        while self.in_head and data:
            self._kept += data
            self._error = "http_response_incomplete"
            if not self._kept.startswith(_START[: len(self._kept)]):
                return ready + self.give_up()
            head, data = self._next_head()
            if not head:
                return ready
            heads += 1
            if heads > _MOST_AT_ONCE:
                raise self._refused("http_protocol_error", "has one interim head after the other")
            line, is_last = self._rewritten(head)
            self._error = "connection_terminated"
            self.in_head = not is_last
            if is_last or self._interim:
                ready += line
        return ready + data

    def give_up(self) -> bytes:
        """Look at nothing more, and give what was kept, as it came."""
        kept = bytes(self._kept)
        self.in_head = False
        self._kept.clear()
        return kept

    def _next_head(self) -> tuple[bytes, bytes]:
        """Take a complete head from what was kept, if there is one, and what came behind it."""
        found = _END.search(self._kept, self._scanned)
        size = found.end() if found else len(self._kept)
        if size > MAX_HEAD or self._kept.count(b"\n", 0, size) > _MOST_LINES:
            raise self._refused("http_response_header_section_size", "has a head that is too large")
        if not found:
            self._scanned = max(size - 3, 0)
            return b"", b""
        head, rest = bytes(self._kept[:size]), bytes(self._kept[size:])
        self._kept.clear()
        self._scanned = 0
        return head, rest

    def _rewritten(self, head: bytes) -> tuple[bytes, bool]:
        """Write the head that goes to the client, and tell whether the body follows."""
        try:
            try:
                answer = parse_response(head)
            except HttpError:
                head = _mended(head)
                answer = parse_response(head)
        except HttpError as exc:
            raise self._refused("http_protocol_error", "has a malformed head") from exc
        if not _has_one_length(answer.headers):
            raise self._refused("http_protocol_error", "has an invalid Content-Length")
        if answer.status == 101:  # we pass on no Upgrade, and nothing that comes behind a request
            raise self._refused("http_protocol_error", "switches protocols, which it was not asked for")
        return _rewritten(head, answer), answer.status >= 200

    def _refused(self, error: str, what: str) -> ProtocolError:
        self._error, self._told = error, f"the target's answer {what}"
        return ProtocolError(f"its answer {what}")


def _mended(head: bytes) -> bytes:
    """
    Write a head strictly whose lines end in LF alone, are folded, or have blanks before their colons.

    To replace a fold by a blank, and to leave out the other ones, is a MUST (RFC 9112, sections 5.1 and 5.2).
    """
    first, _, rest = _LINE_END.sub(b"\r\n", head).partition(b"\r\n")
    # By partition, as a pattern would take long for a line that is nothing but blanks.
    fields = (line.partition(b":") for line in _FOLD.sub(b" ", rest).split(b"\r\n"))
    return b"\r\n".join([first, *(name.rstrip(b" \t") + colon + value for name, colon, value in fields)])


def _rewritten(head: bytes, answer: ResponseHead) -> bytes:
    first = head.partition(b"\r\n")[0].decode("latin-1")
    version = first[_VERSION]
    dropped = (answer.headers.tokens("Connection") - _FRAMING) | _HOP_BY_HOP
    length, *again = ",".join(answer.headers.get_all("Content-Length")).split(",")
    is_coded = bool(answer.headers.get_all("Transfer-Encoding"))
    if is_coded or again:
        # With a coding it counts for nothing, and may be an attack (RFC 9112, section 6.3). And what was the
        # same number is sent once (RFC 9110, section 8.6).
        dropped.add("content-length")
    lines = [
        "HTTP/1.1" + first[_VERSION.stop :],  # a MUST, whatever the server's (RFC 9112, section 2.3)
        *(f"{name}: {value}" for name, value in answer.headers.fields if name.lower() not in dropped),
        *([f"Content-Length: {length}"] if again and not is_coded else []),
        f"Via: {version} {PROXY_NAME}",  # section 7.6.3
    ]
    if answer.status >= 200:
        if "date" in dropped or not answer.headers.get_all("Date"):
            lines.append(f"Date: {date()}")  # when it was received: a MUST (section 6.6.1)
        # Nothing more comes on this connection, also where the server would have kept it.
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _has_one_length(headers: Headers) -> bool:
    """Tell whether no two readers could find different ends of it (RFC 9112, section 6.3)."""
    if headers.get_all("Transfer-Encoding"):
        return True
    # One number may be repeated.
    lengths = {each.strip(" \t") for line in headers.get_all("Content-Length") for each in line.split(",")}
    return len(lengths) <= 1 and all(map(_NUMBER.fullmatch, lengths))
