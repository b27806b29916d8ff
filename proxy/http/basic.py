"""
Basic credentials (RFC 7617), written and read.
"""

import re
from base64 import b64decode, b64encode

from proxy.http.heads import malformed

MAX_CREDENTIAL = 255  # bytes: as in every protocol, RFC 1929, section 2

_BASIC = re.compile(r"basic +([A-Za-z0-9+/]+={0,2})", re.IGNORECASE)


def encode_basic(username: bytes, password: bytes) -> str:
    """Give the value of an Authorization or Proxy-Authorization header."""
    return "Basic " + b64encode(username + b":" + password).decode()


def parse_basic(value: str | None) -> tuple[bytes, bytes] | None:
    """
    Read such a value; None where there is none, or one of another scheme.

    Raises ``HttpError`` for one that is malformed, or longer than any that could be right.
    """
    if value is None or value.partition(" ")[0].lower() != "basic":
        return None
    match = _BASIC.fullmatch(value)
    try:
        username, colon, password = b64decode(match[1] if match else "", validate=True).partition(b":")
    except ValueError as exc:
        raise malformed("the Basic credentials are not base64") from exc
    if not colon:
        raise malformed("the Basic credentials have no colon")
    if max(len(username), len(password)) > MAX_CREDENTIAL:
        raise malformed(f"a user name or password is longer than {MAX_CREDENTIAL} bytes")
    return username, password
