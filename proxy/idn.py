"""
Encode host names that are not ASCII: mapped as browsers do (UTS 46), then IDNA 2008 (RFC 5891).

A stranger may ask for any name, so the work is bounded before it is done: by the length of a label, and
by that of what has been spelt so far. Hence Punycode is done here: the standard library's codec takes
milliseconds for a label that is refused for its length afterwards.
"""

import re

from proxy.errors import ProtocolError, reason_of

MAX_LABEL = 63  # bytes: RFC 1035, section 2.3.4

_PREFIX = "xn--"
# The dots of RFC 3490, section 3.1, which UTS 46 maps to the first one.
_DOT = re.compile("[.\u3002\uff0e\uff61]")
# RFC 3492, section 5.
_BASE, _TMIN, _TMAX, _SKEW, _DAMP, _BIAS, _FIRST = 36, 1, 26, 38, 700, 72, 0x80
_DIGITS = "abcdefghijklmnopqrstuvwxyz0123456789"


def to_ascii(name: str) -> str:
    """Spell a name in ASCII; raises ``ProtocolError``. Its ASCII labels are only put into lower case."""
    _check_lengths(name)
    try:
        # Only here: it takes 3 MB, and most never need it.
        import idna

        mapped: str = idna.uts46_remap(name, std3_rules=False)
        _check_lengths(mapped)
        labels = mapped.split(".")
        for place, label in enumerate(labels):
            # The rules for ASCII names are others: they allow the underscore.
            if not label.isascii():
                labels[place] = _PREFIX + punycode(label, MAX_LABEL - len(_PREFIX))
                idna.check_label(label)
    except ImportError as exc:
        raise ProtocolError(
            f"this Python cannot read a host name that is not ASCII: {reason_of(exc)}"
        ) from exc
    except UnicodeError as exc:
        raise ProtocolError(f"the host name is not valid in IDNA 2008: {exc!s:.100}") from exc
    return ".".join(labels)


def _check_lengths(name: str) -> None:
    if any(len(label) > MAX_LABEL for label in _DOT.split(name)):
        raise _too_long()


def _too_long() -> ProtocolError:
    return ProtocolError(f"a part of the host name is longer than {MAX_LABEL} bytes")


def punycode(label: str, most: int) -> str:
    """Encode a label (RFC 3492, section 6.3); raises ``ProtocolError`` if that takes too many characters."""
    codes = [ord(character) for character in label]
    output = [character for character in label if character < "\x80"]
    handled = basic = len(output)
    if basic:
        output.append("-")
    n, delta, bias = _FIRST, 0, _BIAS
    for code in sorted({code for code in codes if code >= _FIRST}):
        delta += (code - n) * (handled + 1)
        n = code
        for each in codes:
            if each < n:
                delta += 1
            elif each == n:
                output += _integer(delta, bias)
                bias = _adapt(delta, handled + 1, is_first=handled == basic)
                delta = 0
                handled += 1
                if len(output) > most:
                    raise _too_long()
        delta += 1
        n += 1
    return "".join(output)


def _integer(value: int, bias: int) -> str:
    digits = ""
    k = _BASE
    while True:
        threshold = min(max(k - bias, _TMIN), _TMAX)
        if value < threshold:
            return digits + _DIGITS[value]
        value, digit = divmod(value - threshold, _BASE - threshold)
        digits += _DIGITS[threshold + digit]
        k += _BASE


def _adapt(delta: int, points: int, *, is_first: bool) -> int:
    delta = delta // _DAMP if is_first else delta // 2
    delta += delta // points
    k = 0
    while delta > (_BASE - _TMIN) * _TMAX // 2:
        delta //= _BASE - _TMIN
        k += _BASE
    return k + (_BASE - _TMIN + 1) * delta // (delta + _SKEW)
