"""
Kinds of settings: how each is read from text, and which values are valid.

The kind of a setting is declared with its field, and nowhere else: it reads and checks the file, and checks
what a program passes. Durations are seconds. Secrets stay out of every ``repr``.
"""

import difflib
import math
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from ipaddress import ip_address
from typing import Annotated, Any

from proxy.networks import Networks
from proxy.targets import Ports, Targets
from proxy.units import check_count, parse_duration, parse_rate, parse_size

_YES = ("yes", "true", "on", "1")
_NO = ("no", "false", "off", "0")
_LEAST_BANDWIDTH, _MOST_BANDWIDTH = 1 << 10, 1 << 40


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of setting. ``read`` makes a value of text, ``check`` refuses one; both raise ``ValueError``."""

    read: Callable[[Any], Any] = str
    check: Callable[[Any], object] = lambda value: None
    is_enum: bool = False
    is_list: bool = False  # so that what is read is a list of texts
    has_commas: bool = False  # in an element of that list, which is then in quotes
    is_secret: bool = False

    def parse(self, text: str | list[str]) -> Any:
        """Read a value that is right. Raises ``ValueError``."""
        value = self.read(text)
        self.check(value)
        return value


def did_you_mean(text: str, known: Iterable[str], form: str = "{}") -> str:
    """Suggest the nearest known name, if one is near."""
    name = nearest(text, known)
    return f"; did you mean {form.format(name)}?" if name else ""


def nearest(text: str, known: Iterable[str]) -> str:
    """Give the nearest known name; nothing, if none is near."""
    return next(iter(difflib.get_close_matches(text, list(known), n=1)), "")


def _switch(text: str) -> bool:
    if text.lower() not in (*_YES, *_NO):
        raise ValueError("is neither yes nor no")
    return text.lower() in _YES


def _check_positive(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ValueError("must be more than 0")


def _check_penalty(seconds: float) -> None:
    # Three of them are free, and a sum is a minute at most.
    if not 0 <= seconds < 20:
        raise ValueError("must be less than 20s, as three of them have to be less than a minute")


def _check_not_negative(seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise ValueError("must not be negative")


def _check_word(words: tuple[str, ...], word: str) -> None:
    if word not in words:
        raise ValueError(f"must be one of {', '.join(words)}{did_you_mean(word.lower(), words)}")


def _member(among: tuple[Enum, ...], word: str) -> Enum:
    _check_word(tuple(member.value for member in among), word)
    return next(member for member in among if member.value == word)


def at_least(number: int) -> Kind:
    """Make a kind of number."""
    return Kind(parse_size, partial(check_count, least=number))


def members(*among: Enum) -> Kind:
    """Make a kind of word, each of which stands for a member."""
    return Kind(partial(_member, among), is_enum=True)


def up_to(number: int, *, or_word: str) -> Kind:
    """Make a kind of number, none included, in whose place a word may stand."""

    def read(text: str) -> str | int:
        try:
            return text if text == or_word else parse_size(text)
        except ValueError:
            raise ValueError(f"is neither {or_word} nor a number{did_you_mean(text, [or_word])}") from None

    def check(value: str | int) -> None:
        is_right = value == or_word if isinstance(value, str) else 0 <= value <= number
        if not is_right:
            raise ValueError(f"must be {or_word}, or a number from 0 to {number}")

    return Kind(read, check)


def one_of(*words: str) -> Kind:
    """Make a kind of word."""
    return Kind(check=partial(_check_word, words))


def _names(texts: list[str]) -> tuple[str, ...]:
    if not all(texts) or len(set(texts)) < len(texts):
        raise ValueError("has an empty name, or the same one twice")
    return tuple(texts)


def _some_names(texts: list[str]) -> tuple[str, ...]:
    if not texts:
        raise ValueError("is empty")
    return _names(texts)


def _check_bandwidth(number: int) -> None:
    if not _LEAST_BANDWIDTH <= number <= _MOST_BANDWIDTH:
        raise ValueError("must be at least 1k and at most 1024g bytes a second")


def _check_mode(text: str) -> None:
    if text and not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError("is not a file mode such as 0660")


def _check_source(text: str) -> None:
    try:
        ip = ip_address(text) if text else None
    except ValueError:
        raise ValueError("is not an IP address") from None
    if ip and (ip.is_unspecified or ip.is_multicast or getattr(ip, "ipv4_mapped", None)):
        raise ValueError("is not an address that a machine can have")


def _check_interface(name: str) -> None:
    if not name:
        return
    if not hasattr(socket, "SO_BINDTODEVICE"):
        raise ValueError("can be chosen on Linux only")
    # What Linux takes (dev_valid_name).
    if len(name.encode()) > 15 or name in (".", "..") or re.search(r"[\s/:\0]", name):
        raise ValueError("is not a name that an interface can have, such as eth1")


def _check_headers(headers: Iterable[str]) -> None:
    # No complaint repeats any of it, not even a name: without its colon, all of a secret would be one.
    names = set()
    for number, header in enumerate(headers, 1):
        match = _HEADER.fullmatch(header)
        name = match[1].lower() if match else ""
        if not match:
            raise ValueError(f'header {number} is not written "Name: value", {_CLEAN}')
        if len(header.encode()) > _LONGEST_HEADER:
            raise ValueError(f"header {number} is longer than 8 KiB, which hardly any server reads")
        if name == "host":
            raise ValueError(f"header {number} is Host: for websocket there is the setting host")
        if name in _OURS or name.startswith(_BEGINNINGS_OF_OURS):
            raise ValueError(f"header {number} is one that is written here, or that a tunnel cannot have")
        if name in names:
            raise ValueError(f"header {number} has the name of one before it")
        names.add(name)


# RFC 9110, sections 5.1 and 5.5: a name is a token, and no control character is in a value, which it could
# end. What is not ASCII goes out as UTF-8, as logins do.
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+): *(?! )[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+(?<! )")
_CLEAN = "without control characters, and with no blank before the colon or at its end"
_LONGEST_HEADER = 8 << 10  # bytes: what one line of a head may have at most servers, and here


# What frames a message, says how a connection is used, or asks for what we would not understand. A second
# one of those that we write ourselves would be taken for an attack, or for the first.
_OURS = (
    *("connection", "content-length", "expect", "http2-settings", "keep-alive", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
)
_BEGINNINGS_OF_OURS = ("sec-websocket-", "x-proxy-")
TEXT = Kind()
SWITCH = Kind(_switch)
FILE = Kind()  # its name; a relative one starts at the folder of the configuration file
ADDRESS = Kind()  # parsed where it is known of what; what stands behind a ? in it is not for others
PATH = Kind()  # of a URL, and with the same ?
SECRET = Kind(is_secret=True)
NETWORKS = Kind(Networks, is_list=True)
NAMES = Kind(_names, is_list=True)
HEADERS = Kind(tuple, _check_headers, is_list=True, has_commas=True, is_secret=True)  # each "Name: value"
SOME_NAMES = Kind(_some_names, is_list=True)
TARGETS = Kind(Targets, is_list=True)
PORTS = Kind(Ports, is_list=True)
RATE = Kind(parse_rate)
BANDWIDTH = Kind(parse_size, _check_bandwidth)  # bytes a second
Seconds = Annotated[float, Kind(parse_duration, _check_not_negative)]
Penalty = Annotated[float, Kind(parse_duration, _check_penalty)]
SomeSeconds = Annotated[float, Kind(parse_duration, _check_positive)]  # more than none
File = Annotated[str, FILE]
Location = Annotated[str, ADDRESS]
FileMode = Annotated[str, Kind(check=_check_mode)]
SourceAddress = Annotated[str, Kind(check=_check_source)]
Interface = Annotated[str, Kind(check=_check_interface)]
UrlPath = Annotated[str, PATH]
Secret = Annotated[str, SECRET]
