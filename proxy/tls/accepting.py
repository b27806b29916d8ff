"""
The server's TLS handshake, and what is told to a client that speaks plain HTTP instead.

OpenSSL would know some methods by their first bytes; here it is the whole first line that tells.
"""

import ssl

from proxy.errors import ProtocolError
from proxy.http.heads import MAX_LINE, HttpError, parse_request
from proxy.http.refusals import encode_response
from proxy.relaying.channel import Channel
from proxy.tls.tlssocket import accept_tls

# What nginx answers too, whose words clients know.
_TO_PLAIN_HTTP = "The plain HTTP request was sent to HTTPS port: use wss:// or https://"


def secure(channel: Channel, context: ssl.SSLContext) -> None:
    """Do the server's handshake; raises ``ProtocolError``, ``EOFError`` and ``OSError``."""
    first = channel.read_exact(1)
    channel.push_back(first)
    if first.isalpha():  # what TLS begins with is not (RFC 8446, section 5.1)
        _answer_plain_http(channel)
    channel.sock = accept_tls(channel.sock, context, channel.take_early())


def _answer_plain_http(channel: Channel) -> None:
    """Tell a client so that sends a request, and raise ``ProtocolError``; leave all else where it was."""
    data = b""
    while b"\n" not in data and len(data) <= MAX_LINE:
        more = channel.recv(4096)
        if not more:
            raise EOFError("the peer closed the connection")
        data += more
    try:
        request = parse_request(data.partition(b"\n")[0] + b"\n\r\n")
    except HttpError:
        channel.push_back(data)
        return
    channel.send(encode_response(HttpError(400, _TO_PLAIN_HTTP, bodiless=request.method == "HEAD")))
    raise ProtocolError(
        "TLS handshake: the client speaks plain HTTP: it needs an address that begins with wss:// or https://"
    )
