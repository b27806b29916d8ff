"""
The headers of a request for a tunnel, beyond those of RFC 6455.
"""

import re
from dataclasses import dataclass, field

from proxy.address import Address, asks_for
from proxy.errors import ProtocolError
from proxy.http.basic import MAX_CREDENTIAL, parse_basic
from proxy.http.heads import Headers, HttpError, RequestHead, answer_to_question, malformed, vet_host

TARGET_HOST = "X-Proxy-Target-Host"
TARGET_PORT = "X-Proxy-Target-Port"
USERNAME = "X-Proxy-Username"
PASSWORD = "X-Proxy-Password"
HALF_CLOSE = "X-Proxy-Half-Close"
BOUND = "X-Proxy-Bound"
TIMEOUT = "X-Proxy-Timeout"

_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_SECONDS = re.compile(r"(?=.*[1-9])[0-9]+(?:\.[0-9]{1,3})?")  # more than 0


@dataclass(frozen=True)
class TunnelRequest:
    """What a client asks for: a connection to a target, on whose behalf, and how to speak."""

    host: bytes
    port: int
    username: bytes | None
    password: bytes | None = field(repr=False)
    half_close: bool
    key: str
    patience: float | None = None
    """Seconds for which the client waits for an answer, if it says so."""

    @property
    def target(self) -> Address:
        """
        Read the target's host, and raise ``HttpError`` if it is none.

        To be done after the login: it may take more time than all the rest.
        """
        try:
            return Address(self.host.decode(), self.port)
        except UnicodeDecodeError as exc:
            raise malformed("the target's host is not UTF-8") from exc
        except ProtocolError as exc:
            raise HttpError(400, "the target's host is not valid", detail=str(exc)) from exc


def vet_request(head: RequestHead, *, path: str = "") -> TunnelRequest:
    """
    Check a request, but for its credentials and its target's host; raises ``HttpError``.

    An empty ``path`` means that any will do.
    """
    _vet_http(head)
    if path and head.target != path and not asks_for(head.target, path):
        raise HttpError(404, "there is nothing here")
    key = _vet_upgrade(head.headers)
    host, port = _target(head.headers)
    username, password = _credentials(head.headers)
    return TunnelRequest(
        host=host,
        port=port,
        username=username,
        password=password,
        half_close=head.headers.get(HALF_CLOSE) == "1",
        key=key,
        patience=_patience(head.headers.get(TIMEOUT)),
    )


def _vet_http(head: RequestHead) -> None:
    if head.method != "GET":
        # RFC 9110, section 9.3.2: an answer to HEAD has no content.
        raise HttpError(405, "only GET will do", headers=(("Allow", "GET"),), bodiless=head.method == "HEAD")
    if head.version != "HTTP/1.1":
        raise malformed("only HTTP/1.1 will do")
    if not head.target.startswith("/"):
        raise malformed("the request target is not a path")
    vet_host(head)
    # Content-Length: 0 is no body, too (RFC 9112, section 6.3), and some clients and proxies say it.
    lengths = head.headers.get_all("Content-Length")
    if lengths not in ([], ["0"]) or head.headers.get_all("Transfer-Encoding"):
        raise malformed("a request for a WebSocket has no body")
    if head.headers.get_all("Expect"):
        raise HttpError(417, "nothing can be expected here")


def _vet_upgrade(headers: Headers) -> str:
    if not headers.get_all("Upgrade") and not headers.any_begins("Sec-WebSocket-"):
        raise _upgrade_required()
    if "websocket" not in headers.tokens("Upgrade"):
        raise malformed("the Upgrade header does not say websocket")
    if "upgrade" not in headers.tokens("Connection"):
        raise malformed("the Connection header does not say Upgrade")
    key = headers.get("Sec-WebSocket-Key")
    if key is None or not _KEY.fullmatch(key):
        raise malformed("the Sec-WebSocket-Key header is not 16 bytes in base64")
    if headers.get("Sec-WebSocket-Version") != "13":
        raise _upgrade_required(("Sec-WebSocket-Version", "13"))
    return key


def _target(headers: Headers) -> tuple[bytes, int]:
    host, port = headers.get(TARGET_HOST), headers.get(TARGET_PORT)
    if host is None and port is None and headers.get(HALF_CLOSE):
        # Whoever knows that header knows the others too.
        raise answer_to_question("the target is missing")
    if host is None or port is None:
        raise malformed("the target is missing")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise malformed("the target's port is not a number from 1 to 65535")
    return host.encode("latin-1"), int(port)


def _patience(value: str | None) -> float | None:
    if value is None:
        return None
    if not _SECONDS.fullmatch(value):
        raise malformed(f"{TIMEOUT} is not a number of seconds above 0 with at most three decimals")
    return float(value)


def _credentials(headers: Headers) -> tuple[bytes | None, bytes | None]:
    """Read ours, or Basic, which programs of other makes can send (RFC 7617)."""
    basic = parse_basic(headers.get("Authorization"))
    ours = _credential(headers.get(USERNAME)), _credential(headers.get(PASSWORD))
    if basic and ours != (None, None):
        raise malformed(f"there are Basic credentials beside {USERNAME} and {PASSWORD}")
    return basic or ours


def _credential(value: str | None) -> bytes | None:
    if value is not None and len(value) > MAX_CREDENTIAL:
        raise malformed(f"a user name or password is longer than {MAX_CREDENTIAL} bytes")
    return None if value is None else value.encode("latin-1")


def _upgrade_required(*headers: tuple[str, str]) -> HttpError:
    return HttpError(426, "only WebSocket is spoken here", headers=(("Upgrade", "websocket"), *headers))
