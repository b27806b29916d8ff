"""
Where the body of a request ends (RFC 9112, sections 6 and 7), without I/O.

A body is relayed as it comes, so nothing of it is changed or kept here. It is only followed, as what
comes behind it belongs to nobody: a second request would reach the target of the first, with the
credentials that it has for us.
"""

import re
from collections.abc import Generator
from typing import Protocol

from proxy.http.heads import MAX_HEADERS, MAX_LINE, Headers, HttpError, malformed

_LOOK = 128  # bytes in which the end of a line is looked for: the size of a chunk has a few

_LENGTH = re.compile(r"[0-9]{1,18}")
# A size, and extensions, which nobody uses (RFC 9112, section 7.1.1).
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"(?!proxy-|x-proxy-)[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n", re.IGNORECASE)


class Body(Protocol):
    """A body that is followed while its bytes pass."""

    is_over: bool
    lines: int
    """How many lines the last ``take`` has read, which is what it costs."""

    def take(self, data: bytes | memoryview, most_lines: int) -> int:
        """
        Tell how many bytes at the front of the data belong to it; raises ``HttpError``.

        After so many lines it stops: then the rest may belong to it, too.
        """


def body_of(headers: Headers, version: str) -> Body:
    """Tell how a request's body is delimited; raises ``HttpError`` where two readers could differ."""
    codings, lengths = headers.get_all("Transfer-Encoding"), headers.get_all("Content-Length")
    if codings:
        if lengths or version == "HTTP/1.0":
            raise malformed("the end of the body is given in two ways")
        *others, last = (coding.strip(" \t").lower() for coding in ",".join(codings).split(","))
        if last != "chunked" or last in others:
            raise malformed("the end of the body is unknown: chunked is not the last transfer coding")
        if others:
            raise HttpError(501, "the body has a transfer coding other than chunked")  # section 6.1
        return Chunked()
    if not lengths:
        return Sized(0)
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise malformed("the Content-Length is not one number")
    return Sized(int(lengths[0]))


class Sized:
    """A body of so many bytes."""

    lines = 0

    def __init__(self, size: int) -> None:
        self._left = size
        self.is_over = not size

    def take(self, data: bytes | memoryview, most_lines: int) -> int:
        """Tell how many bytes at the front of the data belong to it."""
        count = min(len(data), self._left)
        self._left -= count
        self.is_over = not self._left
        return count


class Chunked:
    """A body in chunks, and the trailers behind it."""

    def __init__(self) -> None:
        self.is_over = False
        self.lines = 0
        self._line = b""  # one that is not complete
        self._chunk = 0  # bytes that are left of one
        self._parser = self._lines()
        next(self._parser)

    def take(self, data: bytes | memoryview, most_lines: int) -> int:
        """Tell how many bytes at the front of the data belong to it; raises ``HttpError``."""
        self.lines = taken = 0
        while taken < len(data) and self.lines < most_lines and not self.is_over:
            if self._chunk:
                count = min(len(data) - taken, self._chunk)
                self._chunk -= count
                taken += count
            else:
                taken += self._take_line(bytes(data[taken : taken + _LOOK]))
        return taken

    def _take_line(self, data: bytes) -> int:
        self.lines += 1
        end = data.find(b"\n") + 1
        self._line += data[: end or len(data)]
        if len(self._line) > MAX_LINE:
            raise malformed("a line of the chunked body is too long")
        if end:
            line, self._line = self._line, b""
            self._parser.send(line)
        return end or len(data)

    def _lines(self) -> Generator[None, bytes, None]:
        size = -1
        while size:
            match = _CHUNK_LINE.fullmatch((yield))
            if not match:
                raise malformed("a chunk does not begin with its size")
            size = self._chunk = int(match[1], 16)
            if size and (yield) != b"\r\n":
                raise malformed("a chunk is longer than its size")
        for _ in range(MAX_HEADERS):
            line = yield
            if line == b"\r\n":
                self.is_over = True
                yield
            if not _TRAILER.fullmatch(line):
                raise malformed("a trailer is malformed, or is not to be passed on")
        raise malformed("the chunked body has too many trailers")
