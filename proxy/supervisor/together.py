"""
A program of several workers as the control interface sees it: their sums, and their lists merged.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.address import IPAddress
from proxy.control.connections import Listing, Query
from proxy.control.program import Held, Program
from proxy.control.snapshot import Snapshot
from proxy.supervisor.fleet import Fleet
from proxy.supervisor.upgrade import Upgrade
from proxy.workers.link import GoneError

_PATIENCE = 2.0  # seconds for a worker to answer; of one that does not, what it said before is told


class Together(Program):
    """What all workers are and have, together."""

    def __init__(self, fleet: Fleet, upgrade: Upgrade) -> None:
        super().__init__(fleet)
        self._crew = fleet.crew
        self._upgrade = upgrade

    @property
    def workers(self) -> Sequence[Mapping[str, Any]]:
        """The processes that serve."""
        return [each.describe() for each in sorted(self._crew.handles, key=lambda each: each.number)]

    @property
    def deaths(self) -> int:
        """How many of these have ended unexpectedly."""
        return self._crew.deaths

    def snapshot(self) -> Snapshot:
        """Count all up, those that are gone too."""
        self._crew.report(within=_PATIENCE)
        return sum((each.snapshot for each in self._crew.handles), super().snapshot() + self._crew.past)

    def connections(self, query: Query) -> Listing:
        """Describe the live connections that are asked for, those of all workers together."""
        told = self._crew.ask_all("connections", query, within=_PATIENCE)
        return sum((each for _, each in told), Listing())

    def end_connection(self, name: str) -> bool:
        """End a connection by its id, and tell whether there is one."""
        number, _, _ = name.partition("-")
        workers = [each for each in self._crew.serving if str(each.number) == number]
        try:
            return any(each.ask("end_connection", name, within=_PATIENCE) for each in workers)
        except GoneError:
            return False

    @property
    def upgrade(self) -> Mapping[str, Any] | None:
        """What came of the last upgrade."""
        return self._upgrade.outcome

    def begin_upgrade(self, outcomes: Counter[str], held: Held) -> int:
        """Have another program take the place of this one; raises ``ProxyError``."""
        return self._upgrade.begin(outcomes, held)

    def forgive(self, client: IPAddress) -> bool:
        """Take away what is held against an address, and tell whether there was anything."""
        is_any = super().forgive(client)
        for each in self._crew.handles:
            each.link.tell("forgive", client)
        return is_any
