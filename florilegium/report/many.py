"""One page over many runs: tables, curves over rounds and over bytes, the generators' samples beside each other.

Runs that differ in data, clients or evaluation are not put into one table: each such group has its own part of the
page. Never imports torch; the page asks no other machine for anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from florilegium.report import over_seeds, sortable
from florilegium.report.charts import ROUND, Axis, Series, swatch
from florilegium.report.comparison import (
    CHOSEN,
    COLUMNS,
    Column,
    Comparison,
    Line,
    compare,
    difference,
    found,
    terms,
)
from florilegium.report.differences import LEVEL, Figure
from florilegium.report.markup import document, duration, percent, plain_number, section
from florilegium.report.over_seeds import MB, Arm, arms_of
from florilegium.report.panels import CURVES, PALETTE, chart, drawn_plates, grids, opened
from florilegium.report.sortable import Cell, number, words
from florilegium.runs.reader import MAIN, Recorded, RunError, recorded, replace

SENT = Axis("MB a client has sent and received")
SHOWN = 6  # generators in the wall of samples


def write(run_dirs: Iterable[Path], out: Path | None = None, **how: Any) -> Path:
    """Write the page to `out`, or to report.html in the folder that holds all runs. RunError; `how` is `page`'s."""
    paths = found(run_dirs)
    text = page(paths, **how)
    path = out or Path(os.path.commonpath([p.resolve().parent for p in paths]), "report.html")
    replace(path, text.encode())
    return path


def page(run_dirs: Iterable[Path], *, at: str = "last", against: str | None = None, level: float = LEVEL) -> str:
    """The page as text. `at`, `against` and `level` are those of `compare`.

    Raises:
        RunError: No run is given, one cannot be read, or no group of runs has the arm `against`.
    """
    runs = [recorded(path) for path in found(run_dirs)]
    if not runs:
        raise RunError("report: no run directory given")
    told = [r for r in runs if r.metrics(MAIN)]
    if not told:
        raise RunError(f"report: none of the {len(runs)} runs has an evaluated round yet")
    groups = alike(told)
    compared = [tables_of(group, at, against, level) for group in groups]
    if against is not None and all(each.against is None for each in compared):
        raise RunError(f"report: {against!r} is no arm of these runs")
    parts = [group_part(n, groups, comparison) for n, comparison in enumerate(compared, 1)]
    body = "".join(parts) + section("Runs", f"{CHOSEN[at].capitalize()}, of each run’s own arm.", runs_table(runs, at))
    facts = {"runs": len(runs), "groups": len(groups), "figures": CHOSEN[at]}
    listed = "".join(f"<li>{name} <b>{escape(str(value))}</b></li>" for name, value in facts.items())
    title = " and ".join(dict.fromkeys(str(r.get("data.name", "data")) for r in told))
    header = (
        f'<a class="skip" href="#main">To the tables</a><h1>{len(runs)} runs on {escape(title)}</h1>'
        f"<ul class=facts>{listed}</ul>{contents(groups)}"
    )
    foot = "drawn by florilegium from the run directories alone"
    return document(f"{len(runs)} runs on {title}", header, body, foot, sortable.STYLE, sortable.SCRIPT)


def alike(runs: Sequence[Recorded]) -> list[list[Recorded]]:
    """Runs that may stand in one table, group by group."""
    groups: list[list[Recorded]] = []
    for run in runs:
        same = next((group for group in groups if terms(group[0]) == terms(run)), None)
        if same is None:
            groups.append([run])
        else:
            same.append(run)
    return groups


def tables_of(group: Sequence[Recorded], at: str, against: str | None, level: float) -> Comparison:
    """The comparison of a group; one that lacks the arm `against` is compared without it."""
    paths = [run.path for run in group]
    try:
        return compare(paths, at=at, against=against, level=level)
    except RunError:
        if against is None:
            raise
        made = compare(paths, at=at, level=level)
        return Comparison(made.protocol, made.warnings, made.lines, None, level, made.columns)


def contents(groups: Sequence[Sequence[Recorded]]) -> str:
    """Links to the parts of the page, where there are several."""
    if len(groups) < 2:
        return ""
    links = "".join(f'<li><a href="#group-{n}">{escape(name_of(g, groups))}</a></li>' for n, g in enumerate(groups, 1))
    return f'<nav aria-label="Groups of runs"><ul class="contents">{links}</ul></nav>'


def name_of(group: Sequence[Recorded], groups: Sequence[Sequence[Recorded]]) -> str:
    """`lexicon, 8 clients`; where an earlier group has that name too, with what differs: `(other data.judge)`."""

    def plain_name(runs: Sequence[Recorded]) -> str:
        return f"{runs[0].get('data.name', 'data')}, {len(runs[0].get('clients.mix') or [])} clients"

    earlier = next(other for other in groups if plain_name(other) == plain_name(group))
    differs = difference(earlier[0], group[0])
    return plain_name(group) + (f" (other {differs})" if differs else "")


def group_part(n: int, groups: Sequence[Sequence[Recorded]], comparison: Comparison) -> str:
    """All that the page has on the runs of the group `n`, counted from 1."""
    arms = arms_of(groups[n - 1], PALETTE)
    headed = len(groups) > 1
    head = f'<h2 class="group" id="group-{n}">{escape(name_of(groups[n - 1], groups))}</h2>' if headed else ""
    level = 3 if headed else 2
    limit = f" Colours repeat after {PALETTE} arms." if len(arms) > PALETTE else ""
    parts = [
        section(
            "Results",
            f"{escape(comparison.protocol)}. Means over seeds ± one standard error; one seed has no error. Bytes are "
            "measured; 1 MB is 2<sup>20</sup> bytes. Seconds do not include evaluation.",
            results_table(comparison, arms),
            level,
        ),
        section("Differences", escape(comparison.decides), differences_table(comparison), level),
        section(
            "Round by round",
            f"Means over seeds with bars of one standard error.{limit}",
            curves(arms, over_seeds.over_rounds, ROUND),
            level,
        ),
        section(
            "What the bytes bought",
            "The same figures over the bytes that a client has sent and received so far. An arm that sends less than "
            "a hundredth of another’s is a level.",
            curves(arms, over_seeds.over_bytes, SENT),
            level,
        ),
        section(
            "Samples beside each other",
            "Same prompts, same noise seeds: whatever differs was learned. The first seed of each arm.",
            wall(arms),
            level,
        ),
        section("Read with care", "What these figures can and cannot say.", notes(comparison), level),
    ]
    return head + "".join(parts)


def results_table(comparison: Comparison, arms: Sequence[Arm]) -> str:
    """One line an arm: its figures, its bytes, its seconds."""
    shown = [n for n in comparison.shown if any(line.figures[n] for line in comparison.lines)]
    by_name = {(arm.reference, arm.name): arm for arm in arms}
    head = ["Arm", "Seeds", *(comparison.columns[n].title for n in shown), "MB, all rounds", "s a round", "s, all"]
    rows = []
    for line in comparison.lines:
        arm = by_name.get((line.reference, line.name))
        costs: list[tuple[Figure | None, int]] = [(None, 0)] * 3
        if arm is not None:
            costs = [
                (arm.over_seeds(over_seeds.sent), 2),
                (arm.over_seeds(over_seeds.seconds), 1),
                (arm.over_seeds(over_seeds.all_seconds), 0),
            ]
        rows.append(
            [
                named_cell(line, arm),
                number(len(line.seeds), str(len(line.seeds))),
                *(figure_cell(line.figures[n], comparison.columns[n]) for n in shown),
                *(figure_cell(value, Column("", "", 1, digits)) for value, digits in costs),
            ]
        )
    own = [n for n, line in enumerate(comparison.lines) if not line.reference]
    return sortable.table("Results", head, rows, own if len(own) < len(rows) else ())


def named_cell(line: Line, arm: Arm | None) -> Cell:
    return words(line.name, (swatch(arm.colour) if arm else "") + escape(line.name))


def figure_cell(figure: Figure | None, column: Column) -> Cell:
    """`38.1 ± 0.7`, sorted by its mean."""
    if figure is None:
        return number(None, "–")
    spread = "" if figure.error is None else f" <small>± {column.scale * figure.error:.{column.digits}f}</small>"
    return number(figure.mean, f"{column.scale * figure.mean:.{column.digits}f}{spread}")


def differences_table(comparison: Comparison) -> str:
    """One line for each metric and arm that differs from `against`."""
    rows = []
    for row in comparison.compared():
        if (gap := row.difference) is None:
            continue
        _, _, scale, digits = row.column
        ends = "–"
        if gap.interval is not None:
            ends = "[" + ", ".join(f"{scale * end:+.{digits}f}" for end in gap.interval) + "]"
        verdict = f"<b>{gap.verdict}</b>" if gap.decided else gap.verdict
        rows.append(
            [
                words(row.line.name),
                words(row.column.title),
                number(len(gap.seeds), str(len(gap.seeds))),
                number(scale * gap.mean, f"{scale * gap.mean:+.{digits}f}".replace("-", "−")),
                number(None if gap.interval is None else scale * gap.interval[0], ends.replace("-", "−")),
                words(gap.verdict, verdict),
            ]
        )
    head = ["Arm", "Figure", "Seeds", "Difference", "Interval", "Result"]
    return sortable.table("Differences", head, rows) if rows else ""


def curves(arms: Sequence[Arm], series: Callable[[Arm, str], Series | None], axis: Axis) -> str:
    """A chart for each figure that some arm has."""
    drawn = []
    for title, key, fraction in CURVES:
        lines = [line for arm in arms if (line := series(arm, key)) is not None]
        lines = over_seeds.levelled(lines) if axis is SENT else lines
        if any(len(line.points) > 1 for line in lines):
            drawn.append(chart(title, lines, fraction, axis))
    return f'<div class="plots">{"".join(drawn)}</div>' if drawn else ""


def wall(arms: Sequence[Arm]) -> str:
    """The same prompts through the un-tuned generator and the last generator of each arm that has one."""
    chosen: list[tuple[str, Path]] = []
    for arm in arms:
        run, name = min(arm.runs, key=lambda held: str(held[0].get("seed")))
        kept = grids(run, name)
        if not kept:
            continue
        if not chosen and kept[0][0] == 0 and len(kept) > 1:
            chosen.append(("un-tuned", kept[0][1]))
        chosen.append((arm.name, kept[-1][1]))
    shown: list[tuple[str, np.ndarray, list[str]]] = opened(chosen[: SHOWN + 1])
    return drawn_plates(shown)


def notes(comparison: Comparison) -> str:
    """What the comparison warns of, and how to read it."""
    told = [escape(warning) for warning in comparison.warnings]
    if max((len(line.seeds) for line in comparison.lines), default=0) < 2:
        told.append("Every arm has one seed, and one seed decides nothing. Run several seeds.")
    else:
        told.append(
            "An error says how far the mean over other seeds may be from this one. Two arms of one seed share "
            "partition, cohorts and starts, so their paired difference is known better than both errors suggest."
        )
    told.append("The figures are of test data. Rounds are selected on validation data, or not at all.")
    return f'<ul class="notes">{"".join(f"<li>{line}</li>" for line in told)}</ul>'


def runs_table(runs: Sequence[Recorded], at: str) -> str:
    """One line a run: what it is, how far it came, its own arm's figures, its bytes, seconds and faults."""
    shown = [c for c in COLUMNS if c.scale == 100 and any(c.key in run.metrics(MAIN, at) for run in runs)]
    rows = []
    for run in runs:
        done, own = max((r["round"] for r in run.of(MAIN)), default=0), run.metrics(MAIN, at)
        moved = {way: sum(e.get(way) or 0 for e in run.ledger) / MB for way in ("up", "down")}
        faults = sum(bool(e.get("fault")) for e in run.ledger)
        planned = f"{done} of {run.get('rounds')}" + (" (not finished)" if run.unfinished else "")
        rows.append(
            [
                words(run.path.name),
                words(run.label),
                words(str(run.get("data.name", "–"))),
                number(seed if isinstance(seed := run.get("seed"), int) else None, escape(str(seed))),
                number(done, escape(planned)),
                *(number(own.get(c.key), percent(own.get(c.key))) for c in shown),
                *(number(moved[way], plain_number(moved[way], 1)) for way in ("up", "down")),
                number(run.seconds, duration(run.seconds)),
                number(faults, str(faults)),
            ]
        )
    head = ["Run", "Method", "Data", "Seed", "Rounds", *(c.title for c in shown)]
    return sortable.table("Runs", [*head, "MB up, all", "MB down, all", "Time, all arms", "Faults"], rows)
