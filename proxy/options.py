"""
Parse the options of a command line, without repeating a secret in any message.

A password can begin with a dash, and it can stand anywhere: after a misspelt option,
or glued to one. So a message names known options and the position of a word, but never the word.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from proxy.errors import ProxyError

_COLUMN = 30  # of the help, where the explanations begin


class UsageError(ProxyError):
    """A command line that cannot be meant."""


@dataclass(frozen=True)
class Option:
    """
    An option, written with one dash or two.

    ``value`` is what its value is called in the help; without one it is a switch. ``default`` is the value
    that is meant where no word follows which could be one. ``modes`` is what it belongs to, for those who
    care.
    """

    name: str
    value: str
    help: str
    modes: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    default: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All that it is called."""
        return (self.name, *self.also)


def read(
    words: Sequence[str], options: Iterable[Option], *, first: int = 1, hint: str = ""
) -> tuple[dict[str, str], list[str]]:
    """
    Read a command line, whose words are counted from ``first`` on.

    Returns the values by the names of their options, "" for a switch, and the words that belong to no
    option; raises ``UsageError``. The word after an option is its value, whatever it looks like, unless
    it is an option itself. After ``--`` there are no options. ``hint`` says what else may be meant by a
    word that is none.
    """
    known = {dashes + name: option for option in options for name in option.names for dashes in ("-", "--")}
    given: dict[str, str] = {}
    others: list[str] = []
    rest = deque(enumerate(words, first))
    while rest:
        place, word = rest.popleft()
        if word == "--":
            others += (word for _, word in rest)
            break
        written, equals, glued = word.partition("=")
        option = known.get(written)
        if option is None:
            if not _is_plain(word):
                raise UsageError(_unknown(place, written, known) + hint)
            others.append(word)
            continue
        if option.name in given:
            raise UsageError(f"-{option.name} is given twice")
        if equals or not option.value:
            value: str | None = glued
        elif option.default and not (rest and _is_plain(rest[0][1])):
            value = option.default
        else:
            value = rest.popleft()[1] if rest else None
        given[option.name] = _checked(option, equals, value, known)
    return given, others


def _is_plain(word: str) -> bool:
    return word == "-" or not word.startswith("-")


def _checked(option: Option, equals: str, value: str | None, known: Mapping[str, Option]) -> str:
    name = f"-{option.name}"
    if not option.value and equals:
        raise UsageError(f"{name} takes no value")
    if value is None:
        raise UsageError(f"{name} needs a value")
    if not equals and value.partition("=")[0] in known:
        raise UsageError(
            f"{name} needs a value: write a value that looks like an option as {name}={option.value}"
        )
    if option.choices and value not in option.choices:
        raise UsageError(f"{name} must be one of {', '.join(option.choices)}")
    return value


def _unknown(place: int, written: str, known: Iterable[str]) -> str:
    near = get_close_matches(written, known, 1, 0.75)
    return f"argument {place} is an unknown option" + (f" (did you mean {near[0]}?)" if near else "")


def describe(options: Iterable[Option]) -> str:
    """Explain options, one a line, for the help."""
    lines = []
    for option in options:
        names = ", ".join(f"-{name}" for name in option.names)
        choices = f" ({' or '.join(option.choices)})" if option.choices else ""
        value = f"[{option.value}]" if option.default else option.value
        lines.append(f"  {names + ' ' + value:{_COLUMN - 3}} {option.help}{choices}")
    return "\n".join(lines)
