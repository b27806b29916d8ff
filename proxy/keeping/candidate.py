"""
A configuration that may come into effect, and the outcome of the attempt: plain values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.configfile.content import InvalidConfigError
from proxy.configfile.load import Loaded
from proxy.configtext.document import edit
from proxy.errors import ConfigError, ProxyError
from proxy.keeping.fingerprint import Fingerprint
from proxy.keeping.history import Version

Edits = Mapping[str, str | None]  # values by their dotted names; None takes a setting away


@dataclass(frozen=True)
class Layers:
    """What the file holds, volatile changes over that, and the text of both together, which is in effect."""

    base: str
    text: str
    volatile: Edits = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> "Layers":
        """Make what a file holds, with nothing over it."""
        return cls(text, text)

    def with_edits(self, edits: Edits) -> "Layers":
        """
        Change what the file holds; volatile changes of the same settings go away.

        Raises ``ConfigError`` for what cannot be written.
        """
        base, kept = edit(self.base, edits.items()), self._unaffected_by(edits)
        return Layers(base, edit(base, kept.items(), is_again=True), kept)

    def with_volatile(self, edits: Edits) -> "Layers":
        """Lay changes over what the file holds. Raises ``ConfigError`` for what cannot be written."""
        volatile = {**self._unaffected_by(edits), **edits}
        return Layers(self.base, edit(self.text, edits.items()), volatile)

    def _unaffected_by(self, edits: Edits) -> Edits:
        """List the volatile changes of other settings, and of other sections."""
        return {
            name: value
            for name, value in self.volatile.items()
            if not any(f"{name}.".startswith(f"{each}.") for each in edits)
        }


@dataclass(frozen=True)
class State:
    """What is in effect, or may come to be."""

    version: Version
    layers: Layers
    loaded: Loaded
    files: Fingerprint  # of those that it names, taken before they are read

    @property
    def warnings(self) -> tuple[str, ...]:
        """What there is to say of it, for somebody who has not its text before him."""
        return tuple(each.by_name for each in self.loaded.warnings)


@dataclass(frozen=True)
class Candidate:
    """All that a change needs; nothing of it is in effect yet."""

    state: State
    notes: tuple[str, ...] = ()
    is_to_apply: bool = True
    is_for_file: bool = False
    without_file: str = ""  # why it cannot be if the file cannot be written; empty if it can all the same


@dataclass(frozen=True)
class Outcome:
    """What became of a wish for a change."""

    status: str  # applied | unchanged | rejected
    version: int  # the one in effect afterwards
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # such as what takes effect at the next start only


class Conflict(ProxyError):
    """The version that a change was meant for is not the current one any more."""

    def __init__(self, current: Version) -> None:
        super().__init__(f"the configuration has changed meanwhile: it is at version {current.number}")
        self.current = current


class RefusedError(ProxyError):
    """A change cannot be, for all of these reasons."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems[0])
        self.problems = problems


def problems_of(exc: Exception) -> tuple[str, ...]:
    """List the reasons of a failure, each on a line."""
    if isinstance(exc, (RefusedError, InvalidConfigError)):
        return tuple(map(str, exc.problems))
    if isinstance(exc, ConfigError) and exc.field:
        return (f"{exc.field}: {exc}",)
    return (str(exc),)
