"""
The keys of session tickets, where several processes serve the same listeners.

OpenSSL makes up keys for each context, so that a session is resumed only by the process that gave it. It can
also be told them, which Python's ``ssl`` does not offer: the pointer to OpenSSL's context is the first field
of CPython's (tests/test_libraries.py watches over that). Where this is not to be had, as with another Python,
with OpenSSL inside the interpreter or without ``ctypes``, everything works, with more full handshakes.
"""

import ssl
import sys
from functools import cache
from hashlib import shake_256
from typing import Any

_KEYS = 59  # SSL_CTRL_SET_TLSEXT_TICKET_KEYS, of OpenSSL's tls1.h

_secret = b""


def share(secret: bytes) -> None:
    """Have contexts that are made from now on resume the sessions of all that were told the same secret."""
    global _secret
    _secret = secret


def set_keys(context: ssl.SSLContext, identity: str) -> bool:
    """
    Set the keys of a server's context, if there is a secret to make them of; returns whether they are set.

    Who resumes a session does not prove anew who it is, nor does the server: ``identity`` has to tell apart
    the contexts for which that would make a difference.
    """
    control = _control() if _secret else None
    if not control:
        return False
    pointer = _pointer(context)
    size = control(pointer, _KEYS, 0, None)  # without keys it says how long they are
    keys = shake_256(_secret + identity.encode("utf-8", "surrogateescape")).digest(size)
    return bool(control(pointer, _KEYS, size, keys))


def _pointer(context: ssl.SSLContext) -> Any:
    import ctypes

    return ctypes.c_void_p.from_address(id(context) + object.__basicsize__)


@cache
def _control() -> Any:
    """Give OpenSSL's ``SSL_CTX_ctrl``, of that OpenSSL which ``ssl`` has, or None."""
    try:
        import _ssl
        import ctypes  # takes half a megabyte, and some distributions have it in a package of its own

        control = ctypes.CDLL(_ssl.__file__).SSL_CTX_ctrl
    except (ImportError, AttributeError, OSError):
        return None
    control.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
    control.restype = ctypes.c_long
    return control if sys.implementation.name == "cpython" else None
