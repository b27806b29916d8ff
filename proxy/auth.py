"""
Users and their passwords, plain or hashed.

A hash is ``scrypt$14$8$1$SALT$HASH``: log2 of the cost, block size, parallelism, and salt and key in
URL-safe base64; none of its characters needs quoting in an INI file. Checking one takes 70 ms of
processor time on purpose, so a native thread does it, and a success is remembered for a while.
"""

import hmac
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import scrypt, sha256
from time import monotonic

from proxy.config import to_bytes
from proxy.errors import AuthError

Offload = Callable[[Callable[[], bool]], bool]

_COST, _BLOCK, _LANES = 14, 8, 1  # 16 MiB, and 70 ms on a desktop machine
_HASH = re.compile(r"scrypt\$(\d\d)\$(\d{1,2})\$(\d{1,2})\$([\w=-]+)\$([\w=-]+)", re.ASCII)
_MOST_MEMORY = 2**31 - 1  # bytes: what hashlib can be told
_REMEMBER = 120.0  # seconds
_REMEMBER_AT_MOST = 10_000  # logins


class Authenticator:
    """Judges credentials against a fixed set of users."""

    def __init__(self, users: Mapping[str, str], offload: Offload = lambda check: check()) -> None:
        self._passwords = {to_bytes(name): to_bytes(password) for name, password in users.items()}
        self._offload = offload
        # Of each cost that the users' hashes have, one that is nobody's.
        self._nobodys = {_cost(each): _nobodys(each) for each in self._passwords.values() if is_hash(each)}
        self._secret = os.urandom(32)
        self._remembered: OrderedDict[bytes, float] = OrderedDict()

    def authenticate(self, username: str, password: str) -> bool:
        """Tell whether the password is this user's."""
        return self.check(to_bytes(username), to_bytes(password))

    def validate_credentials(self, credentials: Mapping[str, str]) -> None:
        """Check ``username`` and ``password``; raises ``AuthError`` if they are missing or wrong."""
        username = credentials.get("username", "")
        if not self.authenticate(username, credentials.get("password", "")):
            raise AuthError(username)

    def check(self, username: bytes, password: bytes) -> bool:
        """Tell whether the password is this user's, in bytes as they come from the wire."""
        name = next((each for each in _readings(username) if each in self._passwords), b"")
        stored = self._passwords.get(name, b"")
        if is_hash(stored):
            return self._check_hash(name, password, stored)
        # What is to be refused costs the same for an unknown user, and for one whose password is plain
        # or a hash: the time tells nobody who exists.
        right = [hmac.compare_digest(_digest(stored), _digest(each)) for each in _readings(password)]
        if any(right) and name:
            return True
        return bool(self._nobodys) and self._offload(lambda: self._is_right(password, b""))

    def _is_right(self, password: bytes, stored: bytes) -> bool:
        """Compare a password to a hash, at the cost of one of each kind if it is wrong."""
        readings = _readings(password)
        if any(verify(each, stored) for each in readings):
            return True
        for cost, nobodys in self._nobodys.items():
            if cost != _cost(stored):
                any(verify(each, nobodys) for each in readings)
        return False

    def _check_hash(self, username: bytes, password: bytes, stored: bytes) -> bool:
        # The stored hash is part of the key, so that a changed password is not remembered.
        login = b"".join(sha256(part).digest() for part in (username, password, stored))
        key = hmac.digest(self._secret, login, "sha256")
        if self._remembered.get(key, 0.0) > monotonic():
            return True
        if not self._offload(lambda: self._is_right(password, stored)):
            return False
        self._remembered[key] = monotonic() + _REMEMBER
        self._remembered.move_to_end(key)
        if len(self._remembered) > _REMEMBER_AT_MOST:
            self._remembered.popitem(last=False)
        return True


def _readings(text: bytes) -> tuple[bytes, ...]:
    """
    Read a name or a password as it came; and what is no UTF-8 as Latin-1 too.

    RFC 1929 names no encoding, and some clients send Latin-1 (Firefox, Java).
    """
    try:
        text.decode()
    except UnicodeDecodeError:
        return text, text.decode("latin-1").encode()
    return (text,)


def _nobodys(stored: bytes) -> bytes:
    """Make a hash as costly as this one, and of no password."""
    return stored.rpartition(b"$")[0] + b"$" + urlsafe_b64encode(os.urandom(32))


def _cost(stored: bytes) -> tuple[bytes, ...]:
    """Tell what it costs to check a hash: of equal ones, the same."""
    return tuple(stored.split(b"$")[1:4])


def is_hash(stored: bytes) -> bool:
    """Tell whether a configured password is a hash."""
    return stored.startswith(b"scrypt$")


def hash_password(password: str) -> str:
    """Make the hash of a password, for ``[auth_users]``."""
    salt = os.urandom(16)
    key = _derive(to_bytes(password), salt, _COST, _BLOCK, _LANES)
    text = "$".join(urlsafe_b64encode(part).decode() for part in (salt, key))
    return f"scrypt${_COST}${_BLOCK}${_LANES}${text}"


def verify(password: bytes, stored: bytes) -> bool:
    """Tell whether a hash is this password's; a malformed hash is nobody's."""
    match = _HASH.fullmatch(stored.decode("ascii", "replace"))
    # HMAC, in scrypt, pads its key with NULs (RFC 2104): with some behind it a password is the same.
    if not match or password.endswith(b"\0"):
        return False
    cost, block, lanes = (int(number) for number in match.groups()[:3])
    try:
        salt, key = (urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in match.groups()[3:])
        return hmac.compare_digest(_derive(password, salt, cost, block, lanes), key)
    except (TypeError, ValueError, OverflowError, MemoryError):
        return False


def _derive(password: bytes, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    memory = 128 * block * ((1 << cost) + lanes + 2)
    most = min(2 * memory, _MOST_MEMORY)
    return scrypt(password, salt=salt, n=1 << cost, r=block, p=lanes, maxmem=most, dklen=32)


def _digest(text: bytes) -> bytes:
    # compare_digest takes as long as the shorter text; digests have one length.
    return sha256(text).digest()
