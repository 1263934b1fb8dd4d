"""A run's records in Python: pandas tables, pictures, curves. `florilegium.load` and `florilegium.run` give them.

Nothing here imports torch. All tables are read from the run directory; docs/run-directory.md explains the names.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from florilegium.config.settings import Settings, settings_of
from florilegium.report import comparison, page
from florilegium.report.comparison import COLUMNS, Column, Comparison
from florilegium.report.differences import LEVEL
from florilegium.runs.reader import MAIN, Recorded, RunError, read_json, recorded

TIDY = ["arm", "round", "metric", "value"]
LEDGER = ["arm", "round", "step", "phase", "client", "modality", "down", "up", "seconds", "fault"]
PANEL = (4.2, 3.0)  # width and height of one panel of the curves, in inches


class Curves(Figure):
    """A figure that a notebook shows without any preparation."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=80)
        return stream.getvalue()


class RunResults:
    """One run, finished or not. What it shows is what its directory held when it was opened."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).expanduser().resolve()
        self.recorded: Recorded = recorded(self.directory)

    @cached_property
    def settings(self) -> Settings:
        """Every setting of the run, resolved: `run.settings.method.server`."""
        return settings_of(self.recorded.settings)

    @property
    def arms(self) -> list[str]:
        """The arms of the run: "method", then the references."""
        return self.recorded.arms

    @property
    def finished(self) -> bool:
        """Whether the main arm has all its rounds."""
        return not self.recorded.unfinished

    # -- tables ------------------------------------------------------------------------------------------------------

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """Every figure of every round, one a line: arm, round, metric, value. Seconds are a metric too."""
        lines = [
            (record["arm"], record["round"], name, value)
            for record in self.recorded.rounds
            for name, value in {"seconds": record.get("seconds"), **record["metrics"]}.items()
        ]
        return tidy(lines)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """The same with a column for each metric, indexed by arm and round; NaN where a round has no such figure."""
        wide = self.rounds.pivot(index=["arm", "round"], columns="metric", values="value")
        return wide.reindex([(record["arm"], record["round"]) for record in self._ordered()])

    @cached_property
    def summary(self) -> pd.DataFrame:
        """The figures of three rounds of each arm: arm, at, round, metric, value; `at` is first, best_on_validation
        or last."""
        held = read_json(self.directory / "summary.json")
        arms = {MAIN: held.get("method"), **(held.get("references") or {})}
        lines = [
            (arm, at, chosen["round"], name, value)
            for arm, figures in arms.items()
            for at in ("first", "best_on_validation", "last")
            if (chosen := (figures or {}).get(at))
            for name, value in chosen["metrics"].items()
        ]
        return pd.DataFrame(lines, columns=["arm", "at", "round", "metric", "value"])

    @cached_property
    def ledger(self) -> pd.DataFrame:
        """One line for each message to a client: bytes down and up, seconds, and the fault if there was one."""
        found = pd.DataFrame(self.recorded.ledger)
        return found.reindex(columns=[*LEDGER, *(name for name in found.columns if name not in LEDGER)])

    @cached_property
    def votes(self) -> pd.DataFrame:
        """How often a sample that was drawn as one class got the label of another: arm, round, drawn, label, count.

        Empty for a method whose clients do not vote.
        """
        lines = [
            (arm, int(r), drawn, label, count)
            for arm, held in self.recorded.votes.items()
            for r, matrix in held["rounds"].items()
            for drawn, counts in zip(held["classes"], matrix, strict=True)
            for label, count in zip(held["classes"], counts, strict=True)
        ]
        return pd.DataFrame(lines, columns=["arm", "round", "drawn", "label", "count"])

    @cached_property
    def partition(self) -> pd.DataFrame:
        """One line for each client: modality, model, and how many private training rows of each class it holds."""
        held = self.recorded.partition.get("clients") or []
        lines = [{"modality": c.get("modality"), "model": c.get("model"), **(c.get("classes") or {})} for c in held]
        return pd.DataFrame(lines, index=pd.Index([c.get("client", n) for n, c in enumerate(held)], name="client"))

    @cached_property
    def headline(self) -> pd.DataFrame:
        """The last evaluated figures of each arm, in the units of a report: one line an arm."""
        return figures(comparison.compare([self.directory], force=True))

    def _ordered(self) -> list[dict]:
        return [record for arm in self.arms for record in self.recorded.of(arm)]

    # -- pictures ----------------------------------------------------------------------------------------------------

    @cached_property
    def pictures(self) -> dict[tuple[str, int], Image.Image]:
        """The grids of generated images, by (arm, round). Prompts and noise are the same in every round."""
        found = {}
        for path in sorted((self.directory / "samples").glob("*-round-*.png")):
            arm, _, number = path.stem.rpartition("-round-")
            with Image.open(path) as image:
                found[arm, int(number)] = image.copy()
        return found

    def curves(self, *metrics: str) -> Curves:
        """A matplotlib figure: one panel for each of `metrics` over the rounds, one line for each arm.

        Without metrics, the headline figures that the run has. RunError for a metric that it does not have.
        """
        if unknown := [name for name in metrics if name not in self.metrics]:
            raise RunError(f"{self.directory}: no metric '{unknown[0]}'; there are {', '.join(self.metrics)}")
        chosen = list(metrics) or [key for _, key, *_ in COLUMNS if key in self.metrics and "/" in key]
        chosen = chosen if metrics else [key for key in chosen if not key.startswith("bytes/")]
        across = min(max(len(chosen), 1), 3)
        down = -(-max(len(chosen), 1) // across)
        figure = Curves(figsize=(across * PANEL[0], down * PANEL[1]), layout="constrained")
        for n, name in enumerate(chosen):
            axes = figure.add_subplot(down, across, n + 1)
            for arm in self.arms:
                values = self.metrics.loc[arm][name].dropna()
                if len(values):
                    axes.plot(values.index, values, marker="o", label=self.recorded.title(arm))
            axes.set(title=name, xlabel="round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(fontsize="small")
        return figure

    @property
    def report(self) -> Path:
        """report.html of the run; it is written if it is not there."""
        path = self.directory / "report.html"
        return path if path.exists() else page.write(self.directory)

    # -- text --------------------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """Label, data, rounds done and planned, and seed, in one line."""
        done = max((record["round"] for record in self.recorded.of(MAIN)), default=0)
        return (
            f"{self.recorded.label} on {self.recorded.get('data.name')}, {done} of {self.recorded.get('rounds')} "
            f"rounds, seed {self.recorded.get('seed')}"
        )

    @property
    def place(self) -> str:
        """The run directory, seen from the working directory where it lies below that."""
        here = Path.cwd()
        return str(self.directory.relative_to(here) if self.directory.is_relative_to(here) else self.directory)

    def __repr__(self) -> str:
        return f"{self.title}\n{self.headline.to_string(float_format='{:.3f}'.format, na_rep='–')}\n{self.place}"

    def _repr_html_(self) -> str:
        return f"<p><b>{escape(self.title)}</b></p>{html(self.headline)}<p><code>{escape(self.place)}</code></p>"


@dataclass(frozen=True)
class ComparedRuns:
    """A comparison of runs: `table` has one line for each method and reference arm, `differences` one for each pair."""

    comparison: Comparison

    @cached_property
    def table(self) -> pd.DataFrame:
        """Indexed by name; `seeds`, and for each figure the columns (figure, mean), (figure, std), (figure, error).

        error is the standard error of the mean.
        """
        shown, columns = self.comparison.shown, self.comparison.columns
        names = [(columns[n].title, part) for n in shown for part in ("mean", "std", "error")]
        lines = [
            [len(line.seeds), *(value for n in shown for value in scaled(line, n, columns))]
            for line in self.comparison.lines
        ]
        heads = pd.MultiIndex.from_tuples([("Seeds", ""), *names])
        return pd.DataFrame(lines, index=[line.name for line in self.comparison.lines], columns=heads)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Each arm's differences to the named arm, paired by seed, in the metrics' own units.

        Columns: arm, against, metric, seeds (how many are paired), difference, low, high (the ends of the confidence
        interval, NaN with one seed), result (higher, lower, not decided, one seed).
        """
        against = self.comparison.against
        lines = [
            (
                row.line.name,
                against.name if against else "",
                row.column.key,
                len(row.difference.seeds),
                row.difference.mean,
                *(row.difference.interval or (float("nan"), float("nan"))),
                row.difference.verdict,
            )
            for row in self.comparison.compared()
            if row.difference is not None
        ]
        return pd.DataFrame(lines, columns=["arm", "against", "metric", "seeds", "difference", "low", "high", "result"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the figures are trusted, such as runs that stopped early."""
        return self.comparison.warnings

    def __repr__(self) -> str:
        return str(self.comparison)

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{escape(line)}</li>" for line in self.warnings)
        told = self.comparison
        second = f"<p>{escape(told.decides)}</p>{html(self.differences)}" if told.against else ""
        return f"<p>{escape(told.protocol)}</p>{html(figures(told))}{second}<ul>{said}</ul>"


def tidy(lines: list[tuple]) -> pd.DataFrame:
    """Lines of (arm, round, metric, value) as a table; a value that is not a number is NaN."""
    found = pd.DataFrame(lines, columns=TIDY)
    return found.assign(value=pd.to_numeric(found["value"], errors="coerce").astype(float))


def scaled(line: comparison.Line, n: int, columns: Sequence[Column] = COLUMNS) -> tuple[float, float, float]:
    """Mean, std and standard error of a line's figure `n`, in the column's unit; NaN where there is none."""
    figure, scale = line.figures[n], columns[n].scale
    if figure is None:
        return float("nan"), float("nan"), float("nan")
    std, error = (float("nan") if value is None else scale * value for value in (figure.std, figure.error))
    return scale * figure.mean, std, error


def figures(found: Comparison) -> pd.DataFrame:
    """The means of a comparison, one line an arm; columns without a figure are left out."""
    shown = found.shown
    table = pd.DataFrame(
        [[scaled(line, n, found.columns)[0] for n in shown] for line in found.lines],
        index=[line.name for line in found.lines],
        columns=[found.columns[n].title for n in shown],
    )
    return table.dropna(axis="columns", how="all")


def html(table: pd.DataFrame) -> str:
    return table.to_html(float_format="{:.3f}".format, na_rep="–", border=0)


def load(directory: str | os.PathLike[str] | RunResults) -> RunResults:
    """The results of a run directory, finished or not. RunError if it is none."""
    return directory if isinstance(directory, RunResults) else RunResults(directory)


def compare(
    runs: Iterable[str | os.PathLike[str] | RunResults],
    *,
    at: str = "last",
    force: bool = False,
    against: str | None = None,
    level: float = LEVEL,
    metrics: Sequence[str] = (),
) -> ComparedRuns:
    """Mean and spread over seeds of each method and reference arm in `runs`, and the differences to one arm.

    Args:
        runs: Directories, folders of them, or results.
        at: Which round's figures: last, best_on_validation or second_half.
        force: Compare also runs that differ in data, clients or evaluation.
        against: The arm of the differences, by title, name or method; default: the one whose clients learn alone.
        level: Of the confidence intervals.
        metrics: Patterns such as "client/accuracy/*"; default: the headline figures.

    Raises:
        RunError: Runs that cannot be read or do not belong together, or a word that nothing is named.
    """
    given = [Path(run.place) if isinstance(run, RunResults) else Path(run) for run in runs]
    found = comparison.compare(given, at=at, force=force, against=against, level=level, metrics=metrics)
    return ComparedRuns(found)
