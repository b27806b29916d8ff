"""
What an HTTP proxy is asked for: a tunnel, or one request to be passed on (RFC 9110, RFC 9112).
"""

import re
from dataclasses import dataclass, field

from proxy.address import Address, split_authority
from proxy.errors import ProtocolError
from proxy.http.basic import parse_basic
from proxy.http.bodies import Body, Sized, body_of
from proxy.http.heads import HttpError, RequestHead, answer_to_question, malformed, vet_host
from proxy.http.refusals import PROXY_NAME

HTTP_PORT = 80

_URL = re.compile(r"http://([^/?]*)([/?].*)?", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_PORT = re.compile(r"0*[1-9][0-9]{0,4}")
_NUMBER = re.compile(r"[0-9]{1,9}")

# What is between a client and its proxy (RFC 9110, section 7.6.1). Transfer-Encoding is too, but the body
# is passed on in it as it is.
_HOP_BY_HOP = {"connection", "keep-alive", "te", "upgrade"}
_OURS = ("proxy-", "x-proxy-")
_FRAMING = {"host", "content-length", "transfer-encoding"}


@dataclass(frozen=True)
class ProxyRequest:
    """Where a client wants to go, as whom, and what is to be sent there first."""

    host: str
    port: int
    credentials: tuple[bytes, bytes] | None = field(repr=False)
    head: bytes = field(default=b"", repr=False)  # empty for a tunnel
    body: Body = field(default_factory=lambda: Sized(0))

    @property
    def target(self) -> Address:
        """
        Read the target's host, and raise ``HttpError`` if it is none.

        To be done after the login: it may take more time than all the rest.
        """
        try:
            return Address(self.host, self.port)
        except ProtocolError as exc:
            raise HttpError(400, "the target's host is not valid", detail=str(exc)) from exc


def vet_proxy_request(head: RequestHead) -> ProxyRequest:
    """Check a request, but for its credentials and its target's host; raises ``HttpError``."""
    vet_host(head)
    credentials = parse_basic(head.headers.get("Proxy-Authorization"))
    if head.method == "CONNECT":
        return ProxyRequest(*_tunnel(head), credentials)
    target, port, authority, path = _parse_url(head)
    body = body_of(head.headers, head.version)
    return ProxyRequest(target, port, credentials, _rewritten(head, authority, path), body)


def _tunnel(head: RequestHead) -> tuple[str, int]:
    # Content-Length: 0 is no body, and some clients say it.
    lengths = head.headers.get_all("Content-Length")
    if lengths not in ([], ["0"]) or head.headers.get_all("Transfer-Encoding"):
        raise malformed("a CONNECT request has no body")
    return _parse_authority(head.target, None)


def _parse_authority(authority: str, default_port: int | None) -> tuple[str, int]:
    host, port = split_authority(authority) or ("", None)
    if not port and default_port:  # http://host:/ is one with the default port (RFC 3986, section 3.2.3)
        port = str(default_port)
    if not host or not port or not _PORT.fullmatch(port) or int(port) > 65535:
        raise malformed("the target is not a host with a port from 1 to 65535")
    return host, int(port)


def _parse_url(head: RequestHead) -> tuple[str, int, str, str]:
    """Split the request target in absolute form (RFC 9112, section 3.2.2)."""
    url = _URL.fullmatch(head.target)
    if head.method == "OPTIONS" and head.target == "*":
        raise answer_to_question("this is an HTTP proxy")
    if not url:
        scheme = _SCHEME.match(head.target)
        if scheme:
            hint = "use CONNECT" if scheme[1].lower() == "https" else "only http:// is passed on"
            raise HttpError(501, f"a URL of this scheme is not fetched here: {hint}")
        raise malformed("this is an HTTP proxy: ask for http://host/path, or CONNECT host:port")
    if "@" in url[1] or "#" in head.target:
        raise malformed("the URL has credentials or a fragment")
    host, port = _parse_authority(url[1], HTTP_PORT)
    path = url[2] or ("*" if head.method == "OPTIONS" else "/")  # RFC 9112, section 3.2.4
    return host, port, url[1], path if path[0] in "/*" else "/" + path


def _forwards_left(head: RequestHead) -> int | None:
    """Tell how many proxies more a request may pass, if it says so; raises ``HttpError`` if none."""
    # TRACE would come back with what only we are to see. And where Max-Forwards has run out we are asked
    # ourselves (RFC 9110, section 7.6.2), and have nothing to say.
    value = head.headers.get("Max-Forwards") if head.method == "OPTIONS" else None
    if value is not None and not _NUMBER.fullmatch(value):
        raise malformed("Max-Forwards is not a number")
    if head.method == "TRACE" or (value is not None and not int(value)):
        raise HttpError(501, "this method is not implemented here")
    return None if value is None else int(value) - 1


def _rewritten(head: RequestHead, authority: str, path: str) -> bytes:
    """Write the head that goes to the target (RFC 9110, section 7.6)."""
    named = head.headers.tokens("Connection")
    if named & _FRAMING:
        raise malformed("the Connection header names one that is needed")
    version = "1.0" if head.version == "HTTP/1.0" else "1.1"
    lines = [f"{head.method} {path} HTTP/{version}", f"Host: {authority}"]
    forwards_left = _forwards_left(head)
    dropped = named | _HOP_BY_HOP | {"host"} | ({"max-forwards"} if forwards_left is not None else set())
    for name, value in head.headers.fields:
        lowered = name.lower()
        if lowered not in dropped and not lowered.startswith(_OURS):
            lines.append(f"{name}: {value}")
    if forwards_left is not None:
        lines.append(f"Max-Forwards: {forwards_left}")
    lines += [f"Via: {version} {PROXY_NAME}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1")
