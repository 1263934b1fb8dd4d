"""The arms of many runs, with their curves and costs as means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from florilegium.report.charts import Series
from florilegium.report.differences import Figure
from florilegium.runs.reader import MAIN, OVERHEAD, Recorded, finite

MB = 2**20  # the papers' megabyte


@dataclass(frozen=True)
class Arm:
    """A compared method with all its runs: (run, the arm's name in it). Several runs may have the same seed."""

    name: str
    reference: bool
    colour: int
    runs: tuple[tuple[Recorded, str], ...]

    def over_seeds(self, read: Callable[[Recorded, str], float | None]) -> Figure | None:
        """What `read` finds in each run, by seed; runs of one seed count as one, their mean."""
        values: dict[Hashable, list[float]] = {}
        for run, arm in self.runs:
            if (value := read(run, arm)) is not None:
                values.setdefault(run.get("seed"), []).append(value)
        return Figure({seed: statistics.fmean(each) for seed, each in values.items()}) if values else None

    def rounds(self, metric: str) -> list[int]:
        """The rounds for which some run has this metric."""
        return sorted({r["round"] for run, arm in self.runs for r in run.of(arm) if metric in finite(r["metrics"])})


def arms_of(runs: Iterable[Recorded], palette: int) -> list[Arm]:
    """The arms of these runs by title, main arms first; colours go round a palette of so many."""
    found: dict[tuple[bool, str], list[tuple[Recorded, str]]] = {}
    for run in runs:
        for arm in run.arms:
            found.setdefault((arm != MAIN, run.title(arm)), []).append((run, arm))
    ordered = sorted(found.items(), key=lambda item: item[0][0])
    return [Arm(name, reference, n % palette, tuple(held)) for n, ((reference, name), held) in enumerate(ordered)]


def value_at(metric: str, r: int) -> Callable[[Recorded, str], float | None]:
    """Reads a metric of round `r`."""

    def read(run: Recorded, arm: str) -> float | None:
        found = [x["metrics"] for x in run.of(arm) if x["round"] == r]
        return finite(found[0]).get(metric) if found else None

    return read


def sent(run: Recorded, arm: str, upto: int | None = None) -> float:
    """Megabytes of an arm's messages, both ways, over the number of clients; to the end of round `upto` (None: all).

    Profiles and evaluations are left out, as in the papers.
    """
    clients = len(run.get("clients.mix") or []) or len({e.get("client") for e in run.ledger}) or 1
    total = sum(
        (e.get("down") or 0) + (e.get("up") or 0)
        for e in run.ledger
        if e.get("arm") == arm and e.get("phase") not in OVERHEAD and (upto is None or e.get("round", 0) <= upto)
    )
    return total / MB / clients


def sent_upto(r: int) -> Callable[[Recorded, str], float | None]:
    """Reads the megabytes of a client up to the end of round `r`."""
    return lambda run, arm: sent(run, arm, r)


def seconds(run: Recorded, arm: str) -> float | None:
    """Mean seconds of an arm's rounds, without evaluation and without round 0."""
    told = [r["seconds"] for r in run.of(arm) if r["round"] > 0 and r.get("seconds")]
    return statistics.fmean(told) if told else None


def all_seconds(run: Recorded, arm: str) -> float | None:
    """Seconds of all rounds of an arm, with round 0, without evaluation."""
    told = [r["seconds"] for r in run.of(arm) if r.get("seconds")]
    return sum(told) if told else None


def over_rounds(arm: Arm, metric: str) -> Series | None:
    """A metric over the rounds: means over seeds, with bars of one standard error."""
    held = [(r, f) for r in arm.rounds(metric) if (f := arm.over_seeds(value_at(metric, r)))]
    return Series(arm.name, arm.colour, [(r, f.mean) for r, f in held], [f.error for _, f in held]) if held else None


def levelled(lines: Sequence[Series], share: float = 0.01) -> list[Series]:
    """Lines over bytes; one that sent less than this share of what another did becomes a level at its last value."""
    most = max((line.points[-1][0] for line in lines), default=0.0)
    return [
        line
        if line.points[-1][0] > share * most
        else Series(line.name, line.colour, line.points[-1:], line.errors[-1:])
        for line in lines
    ]


def over_bytes(arm: Arm, metric: str) -> Series | None:
    """The same over the megabytes of a client so far."""
    points, errors = [], []
    for r in arm.rounds(metric):
        value, spent = arm.over_seeds(value_at(metric, r)), arm.over_seeds(sent_upto(r))
        if value and spent:
            points.append((spent.mean, value.mean))
            errors.append(value.error)
    return Series(arm.name, arm.colour, points, errors) if points else None
