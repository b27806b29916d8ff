"""
What becomes of a wish for a change, and how the reasons against it are told.
"""

from dataclasses import dataclass

from proxy.configfile.load import InvalidConfigError
from proxy.configfile.outline import Problem
from proxy.control.history import Version
from proxy.errors import ConfigError, ProxyError


@dataclass(frozen=True)
class Outcome:
    """What became of a wish for a change."""

    status: str  # applied | unchanged | rejected
    version: int  # the one in effect afterwards
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # such as what takes effect at the next start only


@dataclass(frozen=True)
class Trouble:
    """Why the file is not what is in effect."""

    problem: str  # the first one
    since: float  # Unix time, in seconds


class Conflict(ProxyError):
    """The version that a change was meant for is not the current one any more."""

    def __init__(self, current: Version) -> None:
        super().__init__(f"the configuration has changed meanwhile: it is version {current.number} now")
        self.current = current


class RefusedError(ProxyError):
    """A change cannot be, for all of these reasons."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems[0])
        self.problems = problems


def refused_by_name(exc: InvalidConfigError) -> RefusedError:
    """Say what is wrong with a text that nobody has seen: its lines would mean nothing."""
    return RefusedError(tuple(map(_without_line, exc.problems)))


def _without_line(problem: Problem) -> str:
    return ".".join(filter(None, (problem.section, problem.key))) + f": {problem.message}"


def problems_of(exc: Exception) -> tuple[str, ...]:
    """Tell the reasons of a failure, each on a line."""
    if isinstance(exc, RefusedError):
        return exc.problems
    if isinstance(exc, InvalidConfigError):
        return tuple(map(str, exc.problems))
    if isinstance(exc, ConfigError) and exc.field:
        return (f"{exc.field}: {exc}",)
    return (str(exc),)
