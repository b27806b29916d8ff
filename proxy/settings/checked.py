"""
Values whose fields are settings, checked when they come to be.

The field names are those of the INI file, and a field's type is all that the file has to know of it: with it
stands the kind of the setting (``kinds.py``).
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from itertools import chain
from typing import Any, ClassVar, get_type_hints

from proxy.errors import ConfigError
from proxy.settings.kinds import SWITCH, TEXT, Kind, members


class SettingsError(ConfigError):
    """All the settings of one value that cannot be right together; it reads as the first of them."""

    def __init__(self, problems: tuple[ConfigError, ...]) -> None:
        super().__init__(problems[0].field, str(problems[0]))
        self.problems = problems


class Settings:
    """Settings that are checked when they come to be: one by one by their kinds, and then together."""

    kinds: ClassVar[Mapping[str, Kind]]
    _place: ClassVar[str] = ""  # what stands before a setting's name where a problem names it

    def __init_subclass__(cls) -> None:
        cls.kinds = kinds_of(cls)

    def __post_init__(self) -> None:
        self._refuse(self._take_words())
        self._refuse(self._wrong_values(), self._problems())

    def _refuse(self, *problems: Iterable[ConfigError]) -> None:
        # One that is found in two ways, as by an upstream and by its client, is told once.
        found = {(each.field, str(each)): each for each in chain(*problems)}
        if found:
            raise SettingsError(tuple(found.values()))

    def _take_words(self) -> Iterator[ConfigError]:
        """Take each word for the member that it is the value of, and complain of those that are none."""
        for name, kind in self.kinds.items():
            if kind.is_enum:
                try:
                    object.__setattr__(self, name, kind.read(getattr(self, name)))
                except ValueError as exc:
                    yield ConfigError(self._place + name, str(exc))

    def _wrong_values(self) -> Iterator[ConfigError]:
        for name, kind in self.kinds.items():
            value = getattr(self, name)
            try:
                if value is not None:
                    kind.check(value)
            except ValueError as exc:
                yield ConfigError(self._place + name, str(exc))

    def _problems(self) -> Iterator[ConfigError]:
        """Complain of what cannot be right together."""
        yield from ()


def kinds_of(config: type) -> dict[str, Kind]:
    """List the fields of a class that are settings, each with its kind."""
    hints = get_type_hints(config, localns={config.__name__: config}, include_extras=True)
    found = {name: _kind(hint) for name, hint in hints.items()}
    return {name: kind for name, kind in found.items() if kind}


def _kind(hint: Any) -> Kind | None:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return members(*hint)
    return {bool: SWITCH, str: TEXT}.get(hint) or next(iter(getattr(hint, "__metadata__", ())), None)
