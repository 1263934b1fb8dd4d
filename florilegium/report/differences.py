"""Differences between two arms, paired by seed, with their confidence intervals.

Two arms of one seed have the same partition, the same cohorts and the same starts. So their difference is taken seed by
seed, and its interval is Student's t interval of the mean of these differences. It says how sure the mean is over
other seeds. It assumes that the differences of the seeds are about normal.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from florilegium.runs.reader import RunError

LEVEL = 0.95  # of a confidence interval, where nobody asks for another
UNPAIRED = ("bytes/", "budget/")  # metrics that settings fix; no chance is in them, so no interval


@dataclass(frozen=True)
class Figure:
    """One metric of one arm: its value for each seed."""

    by_seed: Mapping[Hashable, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None with one seed."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    @property
    def error(self) -> float | None:
        """Standard error of the mean, std / sqrt(seeds); None with one seed."""
        return None if self.std is None else self.std / math.sqrt(len(self.by_seed))


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of one arm's figure minus the other's, and its interval (None with one seed)."""

    seeds: tuple[Hashable, ...]
    mean: float
    interval: tuple[float, float] | None

    @property
    def decided(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def verdict(self) -> str:
        """`higher`, `lower`, `not decided`, or `one seed`."""
        if self.interval is None:
            return "one seed"
        return ("higher" if self.mean > 0 else "lower") if self.decided else "not decided"


def check_level(level: float) -> float:
    """A confidence level between 0 and 1, both excluded. RunError otherwise."""
    if not 0 < level < 1:
        raise RunError(f"compare: level {level:g} is not between 0 and 1, such as 0.95")
    return level


def difference(one: Figure, other: Figure, level: float = LEVEL) -> Difference | None:
    """`one` minus `other` over the seeds that both have; None where they share no seed."""
    seeds = tuple(sorted(one.by_seed.keys() & other.by_seed.keys(), key=str))
    if not seeds:
        return None
    gaps = [one.by_seed[seed] - other.by_seed[seed] for seed in seeds]
    return Difference(seeds, statistics.fmean(gaps), interval(gaps, level))


def interval(values: list[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Student's t interval of the mean of `values`; None of fewer than two."""
    if len(values) < 2:
        return None
    from scipy.stats import t  # heavy, and needed by nobody who compares nothing

    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half
