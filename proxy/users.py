"""
Who may log in, and with what: names and passwords of users, as bytes and as hashes.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from proxy.errors import ConfigError

# What ``proxy-server -hash-password`` prints: scrypt$log2(n)$r$p$salt$hash, the last two in URL-safe Base64;
# with $long before them if the password has more than 64 bytes. The hash has 32 bytes: one that lost its end
# on the way into the file would be nobody's.
_SALT = r"(?=[\w-]{2})(?:[\w-]{4})*(?:[\w-]{2}(?:==)?|[\w-]{3}=?)?"
_KEY = r"[\w-]{43}=?"
_SCRYPT = re.compile(rf"scrypt\$(?:1\d|20)\$[1-9]\d?\$[1-9]\d?\$(?:long\$)?{_SALT}\${_KEY}", re.ASCII)

# As htpasswd, crypt(3) and password managers print them.
_OF_OTHERS = re.compile(
    r"\$(?:1|2[abxy]?|5|6|7|y|gy|apr1|argon2(?:id|i|d)|scrypt|pbkdf2[\w-]*)\$.{16,}|\{S?SHA\d*\}.{20,}",
    re.ASCII,
)
OF_OTHERS = (
    "looks like a hash of another program, such as htpasswd, and is taken for the password itself: "
    "only what -hash-password prints is a hash here"
)


class Users(dict[str, str]):
    """
    Names, and passwords that are plain or hashed, which never change: all listeners share them.

    So what is worked out of them is worked out once, however many listeners there are.
    """

    @cached_property
    def problems(self) -> tuple[ConfigError, ...]:
        """What is wrong with those who could never log in."""
        return tuple(problem for name in self for problem in user_problems(name, self[name]))

    @cached_property
    def as_bytes(self) -> Mapping[bytes, bytes]:
        """The same as they come from a wire."""
        return {to_bytes(name): to_bytes(password) for name, password in self.items()}

    @cached_property
    def hashes(self) -> Mapping[bytes, bytes]:
        """One hash of each kind that there is, by its kind."""
        return {kind_of(each): each for each in self.as_bytes.values() if is_hash(each)}

    def __reduce__(self) -> tuple[Any, ...]:
        return Users, (dict(self),)  # without what was worked out


def check_user(username: str, password: str) -> None:
    """Raise ``ConfigError`` for a user who could never log in (RFC 1929, section 2)."""
    for problem in user_problems(username, password):
        raise problem


def user_problems(username: str, password: str) -> Iterator[ConfigError]:
    """Complain of a user who could never log in."""
    for what, text in (("user name", username), ("password", password)):
        if not 1 <= len(to_bytes(text)) <= 255:
            yield ConfigError(username, f"a {what} has 1 to 255 bytes")
    if password.startswith("scrypt$") and not _SCRYPT.fullmatch(password):
        yield ConfigError(
            username, "begins like a password hash, but is not one: copy all that -hash-password prints"
        )


def is_hash(stored: bytes) -> bool:
    """Tell whether a configured password is a hash."""
    return stored.startswith(b"scrypt$")


def is_of_others(password: str) -> bool:
    """Tell whether a plain password looks like a hash of another program, which would log in as it is."""
    return bool(_OF_OTHERS.fullmatch(password))


def kind_of(stored: bytes) -> bytes:
    """Tell all of a hash but its salt and key: to check those of one kind costs the same."""
    return stored.rpartition(b"$")[0].rpartition(b"$")[0]


def to_bytes(text: str) -> bytes:
    """Encode a user name or password; bytes that came in as such from a command line come out again."""
    return text.encode("utf-8", "surrogateescape")
