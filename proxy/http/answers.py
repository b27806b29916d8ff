"""
The answer to a request that is passed on: what its heads say of a connection holds for the client's.

Only heads are read, the interim ones and the last. What follows is the body, and goes as it comes. So does
all that is no HTTP, from the byte on at which that is seen: a client that asks for it may know what it is.
And so does what comes behind many heads at once, which no server sends that has an answer to give.
"""

import re

from proxy.errors import ProtocolError
from proxy.http.heads import HeadBuffer, Headers, HttpError, date, parse_response
from proxy.http.refusals import PROXY_NAME

# What is between a server and us (RFC 9110, section 7.6.1), beside what Connection names.
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "upgrade"}
# They say where the body ends, whatever Connection says of them.
_FRAMING = {"content-length", "transfer-encoding"}
_VERSION = slice(5, 8)  # of HTTP/1.1
_NUMBER = re.compile("[0-9]+")
# Heads of one read that are looked at. It has room for thousands, which take 40 ms, and nobody else is served
# meanwhile.
_MOST_AT_ONCE = 8


class Answer:
    """Follows an answer up to its body; ``interim`` ones are for a client that may get them."""

    def __init__(self, *, interim: bool = True) -> None:
        self._interim = interim
        self._head: HeadBuffer | None = HeadBuffer(request=False)
        self._kept = b""  # of a head that is not complete, or cannot be passed on
        self._is_valid = True

    @property
    def in_head(self) -> bool:
        """True as long as what comes belongs to a head."""
        return self._head is not None

    @property
    def fault(self) -> str:
        """What to call it if no more of it comes, while it is in its head (RFC 9209, section 2.3)."""
        if not self._is_valid:
            return "http_protocol_error"
        return "http_response_incomplete" if self._kept else "connection_terminated"

    def take(self, data: bytes) -> bytes:
        """Take more of it, and give what is to be sent on now; raises ``ProtocolError`` if nothing may be."""
        ready, heads = b"", 0
        while self._head is not None and data:
            self._kept += data
            try:
                if not self._head.feed(data):
                    return ready
                head, is_last = _rewritten(self._head.head)
            except HttpError:
                return ready + self.give_up()
            except ProtocolError:
                self._is_valid = False
                raise
            data, self._kept = self._head.leftover, b""
            heads += 1
            self._head = None if is_last or heads == _MOST_AT_ONCE else HeadBuffer(request=False)
            if is_last or self._interim:
                ready += head
        return ready + data

    def give_up(self) -> bytes:
        """Look at nothing more, and give what was kept, as it came."""
        self._head, kept, self._kept = None, self._kept, b""
        return kept


def _rewritten(head: bytes) -> tuple[bytes, bool]:
    """
    Write the head that goes to the client, and tell whether the body follows.

    Raises ``HttpError`` if it is none, and another ``ProtocolError`` if it may not be passed on.
    """
    answer = parse_response(head)
    if answer.status == 101:  # to what nobody asked for: we pass on no Upgrade
        return head, True
    is_last = answer.status >= 200
    first = head.partition(b"\r\n")[0].decode("latin-1")
    dropped = (answer.headers.tokens("Connection") - _FRAMING) | _HOP_BY_HOP
    if answer.headers.get_all("Transfer-Encoding"):
        # It counts for nothing then, and may be an attack (RFC 9112, section 6.3).
        dropped.add("content-length")
    else:
        _check_length(answer.headers)
    lines = [
        first,
        *(f"{name}: {value}" for name, value in answer.headers.fields if name.lower() not in dropped),
        f"Via: {first[_VERSION]} {PROXY_NAME}",  # section 7.6.3
    ]
    if is_last:
        if not answer.headers.get_all("Date"):
            lines.append(f"Date: {date()}")  # when it was received: a MUST (section 6.6.1)
        # Nothing more comes on this connection, also where the server would have kept it.
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1"), is_last


def _check_length(headers: Headers) -> None:
    """Refuse what two readers could read differently; one number may be repeated (RFC 9112, section 6.3)."""
    lengths = {each.strip(" \t") for line in headers.get_all("Content-Length") for each in line.split(",")}
    if len(lengths) > 1 or not all(map(_NUMBER.fullmatch, lengths)):
        raise ProtocolError("the target's answer has an invalid Content-Length")
