"""
Users and their passwords, plain or hashed.

A hash is ``scrypt$14$8$1$SALT$HASH``: log2 of the cost, block size, parallelism, and salt and key in
URL-safe base64; none of its characters needs quoting in an INI file. Checking one takes 70 ms of
processor time on purpose, so a native thread does it, and a success is remembered for a while.

Inside of scrypt is HMAC, which hashes a key of more than 64 bytes first (RFC 2104): a longer password
and its SHA-256 would have the same hash. So that of a longer one is marked, ``scrypt$14$8$1$long$…``,
and is compared to such passwords only; and one that is not marked to none of them.
"""

import hmac
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import scrypt, sha256
from time import monotonic
from typing import Any

from proxy.errors import AuthError
from proxy.users import Users, is_hash, kind_of, to_bytes


@dataclass(frozen=True, slots=True)
class Check:
    """A password that is to be compared to hashes, which takes long; the same key is the same check."""

    compare: Callable[[], bool]
    key: bytes
    client: Any  # whoever waits for it

    def __call__(self) -> bool:
        """Compare it, in any thread."""
        return self.compare()


Offload = Callable[[Check], bool]

_COST, _BLOCK, _LANES = 14, 8, 1  # 16 MiB, and 70 ms on a desktop machine
_HASH = re.compile(r"scrypt\$(\d\d)\$(\d{1,2})\$(\d{1,2})\$(long\$)?([\w=-]+)\$([\w=-]+)", re.ASCII)
_LONG = 64  # bytes, above which a password is hashed before it is a key: the block size of SHA-256
_MOST_MEMORY = 2**31 - 1  # bytes: what hashlib can be told
_REMEMBER = 120.0  # seconds
_REMEMBER_AT_MOST = 10_000  # logins


class Logins:
    """Those that were right a while ago, so that they need no hash; they can outlive a set of users."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._secret = os.urandom(32)
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def key(self, username: bytes, password: bytes, stored: bytes) -> bytes:
        """Name a login, in a way that means nothing to a reader of our memory."""
        # The stored hash is part of it, so that a changed password is not remembered.
        login = b"".join(sha256(part).digest() for part in (username, password, stored))
        return hmac.digest(self._secret, login, "sha256")

    def __contains__(self, key: bytes) -> bool:
        return self._until.get(key, 0.0) > self._clock()

    def add(self, key: bytes) -> None:
        """Remember one, and forget the oldest if these are too many."""
        self._until[key] = self._clock() + _REMEMBER
        self._until.move_to_end(key)
        if len(self._until) > _REMEMBER_AT_MOST:
            self._until.popitem(last=False)


class Authenticator:
    """Judges credentials against a fixed set of users."""

    def __init__(
        self,
        users: Mapping[str, str],
        offload: Offload = lambda check: check(),
        logins: Logins | None = None,
    ) -> None:
        """Take those ``logins`` that were right under other users, perhaps the same."""
        known = users if isinstance(users, Users) else Users(users)
        self._passwords = known.as_bytes
        self._offload = offload
        # Of each kind that the users' hashes are of, one that is nobody's.
        self._nobodys = {kind: _nobodys(each) for kind, each in known.hashes.items()}
        self._logins = logins or Logins()

    def check(self, username: bytes, password: bytes, client: Any = None) -> bool:
        """Tell whether the password is this user's, in bytes as they come from the wire of a client."""
        name = next((each for each in _readings(username) if each in self._passwords), b"")
        stored = self._passwords.get(name, b"")
        if not is_hash(stored):
            right = [hmac.compare_digest(_digest(stored), _digest(each)) for each in _readings(password)]
            if any(right) and name:
                return True
            if not self._nobodys:
                return False
        key = self._logins.key(username, password, stored)
        if key in self._logins:
            self._logins.add(key)  # what is used stays remembered
            return True
        # What is refused costs the same for an unknown user, and for one whose password is plain or a
        # hash: the time tells nobody who exists.
        if not self._offload(Check(lambda: self._is_right(password, stored), key, client)):
            return False
        self._logins.add(key)
        return True

    def _is_right(self, password: bytes, stored: bytes) -> bool:
        """Compare a password to a hash, at the cost of one of each kind if it is wrong."""
        readings = _readings(password)
        if any(verify(each, stored) for each in readings):
            return True
        for kind, nobodys in self._nobodys.items():
            if kind != kind_of(stored):
                any(verify(each, nobodys) for each in readings)
        return False

    # -- the specification's Authenticator; the servers themselves only use ``check``

    def authenticate(self, username: str, password: str) -> bool:
        """Tell whether the password is this user's."""
        return self.check(to_bytes(username), to_bytes(password))

    def validate_credentials(self, credentials: Mapping[str, str]) -> None:
        """Check ``username`` and ``password``; raises ``AuthError`` if they are missing or wrong."""
        username = credentials.get("username", "")
        if not self.authenticate(username, credentials.get("password", "")):
            raise AuthError(username)


def name_of(user: bytes) -> str:
    """Give a user's name as it came from the wire: UTF-8, or else Latin-1, which any bytes are."""
    try:
        return user.decode()
    except UnicodeDecodeError:
        return user.decode("latin-1")


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


def hash_password(password: str) -> str:
    """Make the hash of a password, for ``[auth_users]``."""
    secret, salt = to_bytes(password), os.urandom(16)
    key = _derive(secret, salt, _COST, _BLOCK, _LANES)
    mark = "long$" if len(secret) > _LONG else ""
    text = "$".join(urlsafe_b64encode(part).decode() for part in (salt, key))
    return f"scrypt${_COST}${_BLOCK}${_LANES}${mark}{text}"


def verify(password: bytes, stored: bytes) -> bool:
    """Tell whether a hash is this password's; a malformed hash is nobody's. Raises ``MemoryError``."""
    match = _HASH.fullmatch(stored.decode("ascii", "replace"))
    # HMAC also pads its key with NULs: with some behind it a password is the same.
    if not match or password.endswith(b"\0") or bool(match[4]) is not (len(password) > _LONG):
        return False
    cost, block, lanes = (int(number) for number in match.groups()[:3])
    try:
        salt, key = (urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in match.groups()[4:])
        return hmac.compare_digest(_derive(password, salt, cost, block, lanes), key)
    except (TypeError, ValueError, OverflowError):
        return False


def _derive(password: bytes, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    memory = 128 * block * ((1 << cost) + lanes + 2)
    # OpenSSL has the same error for memory that it lacks and for a hash that cannot be; but a right password
    # is not to be called wrong. To ask for it takes a few microseconds, as it is not touched.
    bytes(min(memory, _MOST_MEMORY))
    most = min(2 * memory, _MOST_MEMORY)
    return scrypt(password, salt=salt, n=1 << cost, r=block, p=lanes, maxmem=most, dklen=32)


def _digest(text: bytes) -> bytes:
    # compare_digest takes as long as the shorter text; digests have one length.
    return sha256(text).digest()
