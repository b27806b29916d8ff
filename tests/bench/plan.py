"""How many rounds a run has and how long each measurement takes, so that all of it ends in time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.bench.measuring import Length
from tests.bench.works import WORKS, Work

SHORTEST, LONGEST = 0.1, 1.5  # seconds
WARM_UP = 0.2  # of the length of a measurement


@dataclass(frozen=True)
class Scale:
    """How much a run may take."""

    rounds: int  # at most
    budget: float  # seconds for the measurements together, on a machine that does nothing else
    limit: float  # seconds after which none is begun, on any machine
    idle: int  # connections


FULL = Scale(rounds=5, budget=430, limit=460, idle=500)
QUICK = Scale(rounds=3, budget=50, limit=54, idle=100)


@dataclass(frozen=True)
class Plan:
    """How often each work is done, and for how long."""

    rounds: int
    length: Length

    def rounds_of(self, work: Work) -> int:
        """Tell how often a work is done: some come to the same each time."""
        return min(self.rounds, work.rounds)

    def length_of(self, work: Work) -> Length:
        """Tell how long a work is done."""
        seconds = self.length.seconds * work.weight
        return work.length or replace(self.length, seconds=seconds, warm_up=WARM_UP * seconds)


def make(scale: Scale, works: Sequence[str], contenders: Sequence[str]) -> Plan:
    """Divide the time there is among the measurements, in as many rounds as it allows."""
    for rounds in range(scale.rounds, 0, -1):
        fixed, free = 0.0, 0.0
        for work in map(WORKS.__getitem__, works):
            count = sum(name in work.contenders for name in contenders)
            times = min(rounds, work.rounds)
            fixed += count * (times + work.warm_ups) * cost(work, scale)
            free += 0.0 if work.length else count * times * work.weight
        seconds = (scale.budget - fixed) / max(1.0, free) / (1 + WARM_UP)
        if seconds >= SHORTEST:
            break
    seconds = min(LONGEST, max(SHORTEST, seconds))
    return Plan(rounds, Length(seconds, WARM_UP * seconds, scale.idle))


def cost(work: Work, scale: Scale) -> float:
    """Estimate the seconds of one measurement that do not depend on the plan."""
    own = work.length.seconds + work.length.warm_up if work.length else 0.0
    return own + work.overhead + work.each * scale.idle
