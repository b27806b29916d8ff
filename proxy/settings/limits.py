"""
A limit: how much those who share it may have, and to whom it applies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from proxy.errors import ConfigError
from proxy.networks import NO_NETWORKS, Networks
from proxy.settings.checked import Settings
from proxy.settings.kinds import BANDWIDTH, NAMES, NETWORKS, RATE, at_least
from proxy.units import Rate


class Per(str, Enum):
    """Who shares what a limit gives: those of one user, those of one address, or everybody."""

    USER = "user"
    CLIENT = "client"
    ALL = "all"


@dataclass(frozen=True)
class LimitConfig(Settings):
    """
    How much those may have who share it, and whom it is for; whoever is not chosen by a list is not meant.

    ``new`` is how many connections may be made in a time, and so many at once; ``bandwidth`` is bytes a
    second in each direction. None of them is no limit.
    """

    name: str
    per: Per
    connections: Annotated[int | None, at_least(1)] = None
    new: Annotated[Rate | None, RATE] = None
    bandwidth: Annotated[int | None, BANDWIDTH] = None
    user: Annotated[tuple[str, ...], NAMES] = ()
    from_: Annotated[Networks, NETWORKS] = NO_NETWORKS
    listener: Annotated[tuple[str, ...], NAMES] = ()

    def _problems(self) -> Iterator[ConfigError]:
        if self.connections is None and self.new is None and self.bandwidth is None:
            yield ConfigError("", "limits nothing: set connections, new or bandwidth")
