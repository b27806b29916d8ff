"""
Measuring: what the programs of a contender and the load have done between two moments.

What is measured is a ``Sample``: figures by name, in seconds, bytes and pieces of work.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.bench import load, meter
from tests.bench.contenders import Running
from tests.bench.load import Crew

QUIET = 0.001  # CPU seconds

Sample = Mapping[str, float]


@dataclass(frozen=True)
class Length:
    """How long a measurement takes."""

    seconds: float
    warm_up: float
    idle: int  # connections


@dataclass(frozen=True)
class Moment:
    """What was read at one moment."""

    time: float
    counts: Sequence[int]  # of each worker
    programs: Sequence[float]  # CPU seconds
    workers: Sequence[float]  # CPU seconds
    machine: float  # CPU seconds of everybody


def read(contender: Running, workers: Sequence[load.Worker]) -> Moment:
    """Read all that is measured."""
    machine = meter.machine() - meter.clock(contender.site.helper)
    programs = [meter.cpu(session) for session in contender.sessions]
    return Moment(
        time.monotonic(),
        [worker.tally.count[0] for worker in workers],
        programs,
        [meter.clock(worker.pid) for worker in workers],
        machine,
    )


@dataclass(frozen=True)
class Span:
    """What happened between two moments; CPU time is in seconds."""

    seconds: float
    counts: Mapping[load.Worker, range]
    programs: Sequence[float]
    busiest_load: float
    others: float

    def done(self, workers: Sequence[load.Worker]) -> int:
        """Tell how much some of the processes have done."""
        return sum(len(self.counts[worker]) for worker in workers)

    def effort(self) -> Sample:
        """Tell how busy the programs, the load and everybody else were, in cores."""
        return {
            "cores": sum(self.programs) / self.seconds,
            "busiest program": max(self.programs, default=0.0) / self.seconds,
            "busiest load": self.busiest_load / self.seconds,
            "others": max(0.0, self.others) / self.seconds,
        }

    def times(self, crew: Crew) -> list[int]:
        """Give the latencies that the near processes of a crew have noted, in order of length."""
        return sorted(
            taken
            for worker in crew.near
            for taken in worker.tally.since(self.counts[worker].start, self.counts[worker].stop)
        )


def span(contender: Running, crews: Sequence[Crew], length: Length) -> Span:
    """Let the load run, and read what happens between two moments."""
    workers = [worker for crew in crews for worker in crew.workers]
    time.sleep(length.warm_up)
    start = read(contender, workers)
    time.sleep(length.seconds)
    end = read(contender, workers)
    for crew in crews:
        crew.check()
    programs = differences(start.programs, end.programs)
    used = differences(start.workers, end.workers)
    return Span(
        end.time - start.time,
        dict(zip(workers, map(range, start.counts, end.counts), strict=True)),
        programs,
        max(used),
        end.machine - start.machine - sum(programs) - sum(used),
    )


def differences(start: Sequence[float], end: Sequence[float]) -> list[float]:
    """Subtract, one by one."""
    return [after - before for before, after in zip(start, end, strict=True)]


@contextlib.contextmanager
def started(contender: Running, *crews: Crew) -> Iterator[Sequence[Crew]]:
    """Have crews that work, and afterwards a contender that has got over it."""
    try:
        for crew in crews:
            crew.wait_ready()
        yield crews
    finally:
        for crew in crews:
            crew.end()
    settle(contender)


def settle(contender: Running, quiet: float = 0.01, patience: float = 1.0) -> None:
    """Wait until the contender has closed what was left to it, and has been quiet for some seconds."""
    until = time.monotonic() + patience
    used = spent(contender)
    while time.monotonic() < until:
        time.sleep(quiet)
        before, used = used, spent(contender)
        if used - before < QUIET:
            return


def spent(contender: Running) -> float:
    """Tell how many CPU seconds a contender has used so far."""
    return sum(meter.cpu(session) for session in contender.sessions)


def percentile(ordered: Sequence[int], share: float) -> float:
    """Give the latency, in seconds, that a share of all does not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e9 if ordered else math.nan


def latency(ordered: Sequence[int], of: str = "") -> Sample:
    """Give the median and what one in a hundred exceeds."""
    return {f"{of}p50": percentile(ordered, 0.50), f"{of}p99": percentile(ordered, 0.99)}
