"""What several rounds come to: a burst of other work on the machine must not decide it."""

import math
import statistics
from collections.abc import Sequence

from tests.bench.measuring import Sample

Rounds = Sequence[Sample]  # of one contender in one work


def median(rounds: Rounds, figure: str) -> float:
    """Give the median of a figure; NaN if it was not measured."""
    return _median([sample[figure] for sample in rounds if figure in sample])


def ratio(ours: Rounds, theirs: Rounds, figure: str) -> float:
    """
    Tell how many times theirs a figure of ours is: the median of the ratios of all rounds.

    The two of one round were measured within seconds of each other, so what slows the machine for
    longer than that slows both.
    """
    pairs = [(mine.get(figure), other.get(figure)) for mine, other in zip(ours, theirs, strict=False)]
    return _median([mine / other for mine, other in pairs if mine is not None and other])


def surplus(ours: Rounds, others: Rounds, figure: str) -> Rounds:
    """Give how much more than another's a figure of ours is, round by round."""
    pairs = [(mine.get(figure), other.get(figure)) for mine, other in zip(ours, others, strict=False)]
    return [{figure: mine - other} for mine, other in pairs if mine is not None and other is not None]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan
