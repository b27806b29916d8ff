"""
Read an INI file line by line, strictly, and write values so that they read back.

configobj knows no line numbers once it has parsed, cuts a value at any ``#``, and puts settings into
the wrong section after a broken header. So every line is read here first, by rules that leave nothing to
guess; what breaks them is reported, and configobj never sees it. No message repeats what a line says:
it may be a password.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half a character, or a byte of a command line that was none
QUOTE_IT = 'put the value into quotes, name = "…"'
QUOTE_EACH = 'put each element into quotes, name = "…", "…"'

_BLANKS = " \t"
_HEADER = re.compile(r"""(\[+)[ \t]*(?:"([^"]+)"|'([^']+)'|([^][#'"]+?))[ \t]*(\]+)[ \t]*(?:\#.*)?""")
_SETTING = re.compile(r"""(?:"([^"]+)"|'([^']+)'|([^\s'"=;:,#][^\s=:,#]*))[ \t]*=[ \t]*(.*)""")
_QUOTED = {
    mark: re.compile(rf"{mark}({inside}){mark}([ \t]*)(#.*)?")
    # The longest mark first: three quotes begin with one.
    for mark, inside in (('"""', ".*?"), ("'''", ".*?"), ('"', '[^"]*'), ("'", "[^']*"))
}
_PLAIN = re.compile(r"([^#]*?)([ \t]*)(#.*)?")
_ELEMENT = r"""(?:"[^"]*"|'[^']*')"""
_ELEMENTS = re.compile(rf"({_ELEMENT}(?:[ \t]*,[ \t]*{_ELEMENT})+)([ \t]*)(#.*)?")  # two or more

_SAFE_VALUE = re.compile(r"""(?![\s'"])[^#,]*(?<!\s)""")
_SAFE_KEY = re.compile(r"""[^\s'"=;:,#\[][^\s=:,#]*""")

NO_CLOSING_QUOTE = "the closing quote is missing"
_HASH = f"everything from # on would be a comment: {QUOTE_IT}"
_UNUSUAL = "has a blank that is neither a space nor a tab, or a character that cannot be seen (U+{:04X})"


@dataclass(frozen=True)
class Header:
    """A line such as ``[[name]]``, of depth 2."""

    line: int
    depth: int
    name: str


@dataclass(frozen=True)
class Setting:
    """A line such as ``key = raw``, where raw still has its quotes and its comment."""

    line: int
    key: str
    raw: str


@dataclass(frozen=True)
class Fault:
    """A line that cannot be read; one that hides more leaves open where the next settings belong."""

    line: int
    message: str
    hides_more: bool = False


@dataclass(frozen=True)
class Value:
    """What stands behind the ``=``."""

    text: str
    is_quoted: bool
    gap: str
    comment: str
    elements: tuple[str, ...] = ()  # of a list in which each of them is in quotes


def scan(lines: Sequence[str]) -> Iterator[Header | Setting | Fault]:
    """Read each line that is neither empty nor a comment."""
    numbered = enumerate(lines, 1)
    for number, line in numbered:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        item = read_line(number, line)
        mark = _opened_quotes(item)
        # What follows is the inside of a value, up to the line that closes it.
        if mark and not any(mark in later for _, later in numbered):
            item = Fault(
                number, "the quotes are never closed: the rest of the file is in them", hides_more=True
            )
        yield item


def read_line(number: int, line: str) -> Header | Setting | Fault:
    """Read a line that is neither empty nor a comment, with no regard to those below."""
    return _read_header(number, line) if line.strip().startswith("[") else _read_setting(number, line)


def _read_header(number: int, line: str) -> Header | Fault:
    match = _HEADER.fullmatch(line.strip(_BLANKS))
    if not match or len(match[1]) != len(match[5]):
        message = "not a section header: write [name], or [[name]] under [listeners] and [upstreams]"
        return Fault(number, message, hides_more=True)
    return Header(number, len(match[1]), match[2] or match[3] or match[4])


def _read_setting(number: int, line: str) -> Setting | Fault:
    text = line.strip(_BLANKS)
    match = _SETTING.fullmatch(text)
    if not match:
        return Fault(number, _why_no_setting(text))
    unusual = _unusual_character(match[3] or "", match[4])
    if unusual:
        return Fault(number, _UNUSUAL.format(ord(unusual)))
    return Setting(number, match[1] or match[2] or match[3], match[4])


def _unusual_character(key: str, raw: str) -> str:
    """Find what cannot be told from nothing or from a space, where it would change a name or a value."""
    ends = (raw[:1], raw[-1:]) if "#" not in raw and raw != raw.strip() else ()
    return next((char for char in (*key, *ends) if not char.isprintable() and char not in _BLANKS), "")


def _why_no_setting(text: str) -> str:
    if text.startswith(";"):
        return "a comment begins with #, not with ;"
    key, equals, raw = text.partition("=")
    if lacks_a_quote(key):
        return NO_CLOSING_QUOTE
    if not equals:
        return "has no =: write key = value"
    unusual = _unusual_character(key, raw.strip(_BLANKS))
    if unusual:
        return _UNUSUAL.format(ord(unusual))
    return 'has no name before the =, or one that needs quotes: "name" = value'


def _opened_quotes(item: Header | Setting | Fault) -> str:
    if not isinstance(item, Setting) or item.raw[:3] not in ('"""', "'''"):
        return ""
    mark = item.raw[:3]
    return "" if mark in item.raw[3:] else mark


def read_value(raw: str) -> Value:
    """Take a value out of its quotes and off its comment. Raises ``ValueError`` where that is a guess."""
    value = _split(raw)
    is_comment = value.gap or raw.startswith("#") or value.comment[1:2] in ("", *_BLANKS)
    if value.comment and not is_comment:
        raise ValueError(_HASH)
    return value


def read_secret(raw: str) -> Value:
    """Read a password, exactly or not at all. Raises ``ValueError`` with a text that says how to write it."""
    value = read_value(raw)
    if value.is_quoted:
        return value
    if raw.startswith(('"', "'")):
        if lacks_a_quote(raw):
            raise ValueError(f"{NO_CLOSING_QUOTE}; a value that begins with one goes into the other kind")
        raise ValueError(
            "the quotes do not enclose the value: use the kind that is not in it, or three of them"
        )
    if value.comment and not _is_surely_a_comment(value):
        raise ValueError(_HASH)
    if "," in value.text:
        raise ValueError(f"has a comma: {QUOTE_IT}")
    if value.text != value.text.strip():
        raise ValueError(f"begins or ends with a blank that is not a space: {QUOTE_IT}")
    return value


def read_elements(raw: str) -> list[str]:
    """
    Read a list each of whose elements is in quotes; what is none gives none, and may be a value of its own.

    Raises ``ValueError`` for a list some of whose elements are not: a comma may belong to them.
    """
    value = read_value(raw)
    if not value.is_quoted and not value.elements and "," in value.text and not lacks_a_quote(raw):
        raise ValueError(f"has a comma: {QUOTE_EACH}")
    return list(value.elements)


def lacks_a_quote(text: str) -> bool:
    """Tell whether quotes are opened, where a value or an element of a list begins, and never closed."""
    rest = text.strip(_BLANKS)
    while rest:
        if rest[0] in "\"'":
            end = rest.find(rest[0], 1)
            if end < 0:
                return True
            rest = rest[end + 1 :]
        rest = rest.partition(",")[2].strip(_BLANKS)
    return False


def _is_surely_a_comment(value: Value) -> bool:
    if not value.text:
        return value.comment[1:2] in (" ", "\t")
    is_set_off = "\t" in value.gap or len(value.gap) > 1
    return is_set_off and value.comment[1:2] in ("", *_BLANKS)


def _split(raw: str) -> Value:
    mark = next((each for each in _QUOTED if raw.startswith(each)), "")
    match = _QUOTED[mark].fullmatch(raw) if mark else None
    if match:
        return Value(match[1], True, match[2], match[3] or "")
    if match := _ELEMENTS.fullmatch(raw):
        elements = tuple(each[1:-1] for each in re.findall(_ELEMENT, match[1]))
        return Value(match[1], False, match[2], match[3] or "", elements)
    if len(mark) == 3:
        raise ValueError("the triple quotes are not closed on this line, where the value must end")
    match = _PLAIN.fullmatch(raw)
    assert match, "every line without a line end matches"
    return Value(match[1], False, match[2], match[3] or "")


def quote(text: str, *, always: bool = False, may_be_list: bool = False) -> str:
    """
    Write a value so that it reads back the same. Raises ``ValueError`` where no quotes can do that.

    What ``may_be_list`` stays as it is if it is one, with each element in quotes.
    """
    _refuse_what_no_file_has(text)
    if may_be_list and (match := _ELEMENTS.fullmatch(text)) and match[1] == text:
        return text
    if not always and _SAFE_VALUE.fullmatch(text):
        return text
    for quoted in (f"{mark}{text}{mark}" for mark in ('"', "'", '"""', "'''")):
        if _reads_as(quoted, text):
            return quoted
    raise ValueError("a value with both kinds of triple quotes cannot be written in the file")


def quote_key(text: str) -> str:
    """Write a key so that it reads back the same. Raises ``ValueError`` where no quotes can do that."""
    _refuse_what_no_file_has(text)
    if text.isprintable() and _SAFE_KEY.fullmatch(text):
        return text
    for mark in ('"', "'"):
        if mark not in text:
            return f"{mark}{text}{mark}"
    raise ValueError("a name with both kinds of quotes and an = cannot be written in the file")


def is_text(text: str) -> bool:
    """Tell whether it is all UTF-8; what comes from a command line need not be."""
    return not _SURROGATE.search(text)


def _refuse_what_no_file_has(text: str) -> None:
    if CONTROL.search(text):
        raise ValueError("the file cannot contain a control character")
    if not is_text(text):
        raise ValueError("is not UTF-8, the encoding of the file")


def _reads_as(raw: str, text: str) -> bool:
    try:
        value = _split(raw)
    except ValueError:
        return False
    return value.is_quoted and value.text == text
