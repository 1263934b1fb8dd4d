"""Tables over many runs: each arm's mean and standard error over seeds, and its paired difference to one arm."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import io
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from florilegium import catalogue
from florilegium.catalogue import Role
from florilegium.report import differences
from florilegium.report.differences import LEVEL, Difference, Figure
from florilegium.runs.reader import MAIN, Recorded, RunError, finite, recorded


class Column(NamedTuple):
    """A metric of the tables: its title, its name in the records, the factor of its unit, digits after the point."""

    title: str
    key: str
    scale: float = 1
    digits: int = 3


COLUMNS = (
    Column("Image acc. %", "client/accuracy/image", 100, 1),
    Column("Text acc. %", "client/accuracy/text", 100, 1),
    Column("Image own %", "client/accuracy_own/image", 100, 1),
    Column("Text own %", "client/accuracy_own/text", 100, 1),
    Column("mIoU %", "client/miou/image", 100, 1),
    Column("Retrieval rsum %", "client/rsum/pair", 100, 1),
    Column("Server rsum %", "server/rsum", 100, 1),
    Column("T2I acc. %", "t2i/accuracy", 100, 1),
    Column("CLIP score", "t2i/clip_score", 1, 3),
    Column("Diversity", "t2i/diversity", 1, 3),
    Column("FID", "t2i/generic/fid", 1, 2),
    Column("IS", "t2i/generic/inception_score", 1, 2),
    Column("Fréchet distance", "t2i/generic/frechet", 1, 4),
    Column("Class score", "t2i/generic/class_score", 1, 2),
    Column("Generic CLIP score", "t2i/generic/clip_score", 1, 4),
    Column("Private rows", "budget/private_rows", 1, 0),
    Column("Shared rows", "budget/shared_rows", 1, 0),
    Column("Up MB", "bytes/up_per_client", 2**-20, 2),
    Column("Down MB", "bytes/down_per_client", 2**-20, 2),
)
# columns of runs that have them; "own": on rows with the shares of classes of each client's own data
SOMETIMES = (
    "client/accuracy_own/image",
    "client/accuracy_own/text",
    "client/miou/image",
    "client/rsum/pair",
    "server/rsum",
    "t2i/generic/fid",
    "t2i/generic/inception_score",
    "t2i/generic/frechet",
    "t2i/generic/class_score",
    "t2i/generic/clip_score",
    "budget/private_rows",
    "budget/shared_rows",
)
CHOSEN = {
    "last": "last round",
    "best_on_validation": "round chosen on validation",
    "second_half": "mean of the second half's evaluated rounds",
}
# where clients run and where rows lie says nothing about what they are
MACHINE = ("device", "threads", "state_dir", "workers", "path", "prepared")
HEAD = ("Metric", "Arm", "Seeds", "Mean", "Std. error", "Difference", "Interval", "Result")  # of the second table


@dataclass(frozen=True)
class Line:
    """A row of the table: its name, the seeds behind it, and a Figure or None for each column of the comparison.

    `aliases` are other words that mean this arm: its name in the run, or its method.
    """

    name: str
    seeds: tuple
    figures: tuple[Figure | None, ...]
    reference: bool
    aliases: frozenset[str] = frozenset()


class Compared(NamedTuple):
    """A row of the table of differences: a metric, an arm with its Figure, and its Difference to the other arm."""

    column: Column
    line: Line
    figure: Figure
    difference: Difference | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `table()` and `difference_table()` for a terminal, `markdown()` and `csv()` for files."""

    protocol: str
    warnings: tuple[str, ...]
    lines: tuple[Line, ...]
    against: Line | None = None
    level: float = LEVEL
    columns: tuple[Column, ...] = COLUMNS

    def to(self, against: str) -> Comparison:
        """The same figures, with differences to another arm. RunError when no arm has this title, name or method."""
        return dataclasses.replace(self, against=other_arm(list(self.lines), against))

    @property
    def shown(self) -> list[int]:
        """Which of the columns this comparison has."""
        return [
            n
            for n, column in enumerate(self.columns)
            if column.key not in SOMETIMES or any(line.figures[n] for line in self.lines)
        ]

    @property
    def decides(self) -> str:
        """What the table of differences says, and what it cannot say, in one line."""
        if self.against is None:
            return ""
        opening = f"Differences to {self.against.name}, paired by seed, with {100 * self.level:g} % t intervals."
        several = any(row.difference and row.difference.interval for row in self.compared())
        if not several:
            return f"{opening} No difference has two seeds: nothing is decided."
        chance = f"One interval in {round(1 / (1 - self.level))} excludes zero by chance alone."
        return f"{opening} A difference is decided when its interval excludes zero. {chance}"

    def compared(self) -> Iterator[Compared]:
        """Metric by metric, each arm with its difference to `against`; none of metrics that `against` lacks or that
        have no chance."""
        for n, column in enumerate(self.columns):
            other = self.against.figures[n] if self.against else None
            if other is None or column.key.startswith(differences.UNPAIRED):
                continue
            for line in self.lines:
                if (figure := line.figures[n]) is not None:
                    paired = other is not None and line is not self.against
                    yield Compared(
                        column,
                        line,
                        figure,
                        differences.difference(figure, other, self.level) if paired and other else None,
                    )

    def __str__(self) -> str:
        """Both tables as text, as wide as the terminal or, where it is narrow, as they need."""
        text, tables = io.StringIO(), self.tables()
        drawn = Console(file=text, width=1000, force_jupyter=False, force_terminal=False)
        needed = max(drawn.measure(table).maximum for table in tables)
        drawn.width = max(needed, shutil.get_terminal_size((120, 24)).columns)
        for table in tables:
            drawn.print(table)
        return text.getvalue().rstrip("\n")

    def text(self, form: str = "table") -> str:
        """`table`, `markdown` or `csv`; RunError names them when it is none of these."""
        forms = {"table": self.__str__, "markdown": self.markdown, "csv": self.csv}
        if form not in forms:
            raise RunError(f"compare: format {form!r} is none of {', '.join(forms)}")
        return forms[form]()

    def tables(self) -> list[Table]:
        """The table of arms, and that of differences where there is an arm to compare with."""
        return [self.table(), *([self.difference_table()] if self.against else [])]

    def table(self) -> Table:
        """One line an arm: the mean of each figure and its standard error."""
        drawn = Table(
            title=self.protocol, title_justify="left", title_style="", caption="\n".join(self.warnings) or None
        )
        drawn.add_column("")
        for name in ("Seeds", *(self.columns[n].title for n in self.shown)):
            drawn.add_column(name, justify="right")
        for n, line in enumerate(self.lines):
            turn = n + 1 < len(self.lines) and self.lines[n + 1].reference != line.reference
            drawn.add_row(
                line.name,
                str(len(line.seeds)),
                *texts(line, self.shown, self.columns),
                end_section=turn,
                style="dim" if line.reference else "bold",
            )
        return drawn

    def difference_table(self) -> Table:
        """One line for each metric and arm: seeds, mean, standard error, difference, interval, and what is decided."""
        drawn = Table(title=self.decides, title_justify="left", title_style="")
        for name in HEAD:
            drawn.add_column(name, justify="left" if name in ("Metric", "Arm", "Result") else "right", no_wrap=True)
        rows = list(self.compared())
        for n, row in enumerate(rows):
            first = n == 0 or rows[n - 1].column != row.column
            final = n + 1 == len(rows) or rows[n + 1].column != row.column
            decided = row.difference is not None and row.difference.decided
            style = "bold" if decided else "dim" if row.difference else ""
            drawn.add_row(row.column.title if first else "", *cells(row), end_section=final, style=style)
        return drawn

    def markdown(self) -> str:
        """Both tables for a page of docs, and the warnings."""
        head = ["", "Seeds", *(self.columns[n].title for n in self.shown)]
        rows = [
            [line.name.replace("|", "\\|"), str(len(line.seeds)), *texts(line, self.shown, self.columns)]
            for line in self.lines
        ]
        parts = [self.protocol, "", *piped(head, rows, "|---|" + "---:|" * (len(head) - 1)), ""]
        if self.against is not None:
            told = [[row.column.title, *(cell.replace("|", "\\|") for cell in cells(row))] for row in self.compared()]
            bold = [
                [f"**{cell}**" if row[-1] in ("higher", "lower") and cell else cell for cell in row] for row in told
            ]
            parts += [self.decides, "", *piped(list(HEAD), bold, "|---|---|" + "---:|" * 5 + "---|"), ""]
        return "\n".join([*parts, *(f"- {warning}" for warning in self.warnings)]).rstrip("\n") + "\n"

    def csv(self) -> str:
        """One line for each metric and arm, unrounded and in the metrics' own units.

        std and error are empty with one seed; so are low and high, the ends of the interval.
        """
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n")
        out.writerow(
            ["arm", "reference", "metric", "seeds", "mean", "std", "error", "against", "paired", "difference"]
            + ["low", "high", "result"]
        )
        compared = {(row.line.name, row.line.reference, row.column.key): row.difference for row in self.compared()}
        for n in self.shown:
            for line in self.lines:
                if (figure := line.figures[n]) is None:
                    continue
                key = self.columns[n].key
                found = compared.get((line.name, line.reference, key))
                seeds = " ".join(map(str, sorted(figure.by_seed, key=str)))
                out.writerow(
                    [line.name, int(line.reference), key, seeds, figure.mean, figure.std, figure.error]
                    + ([self.against.name, *numbers(found)] if self.against and found else [""] * 6)
                )
        return text.getvalue()


def numbers(found: Difference) -> list:
    """A difference as the cells of a CSV line: seeds, mean, low, high, result."""
    low, high = found.interval or ("", "")
    return [" ".join(map(str, found.seeds)), found.mean, low, high, found.verdict]


def piped(head: list[str], rows: list[list[str]], rule: str) -> list[str]:
    """The lines of a Markdown table."""
    first, *rest = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return [first, rule, *rest]


def cells(row: Compared) -> list[str]:
    """A line of the table of differences after its metric."""
    (_, _, scale, digits), figure, found = row.column, row.figure, row.difference
    error = "–" if figure.error is None else f"{scale * figure.error:.{digits}f}"
    start = [row.line.name, str(len(figure.by_seed)), f"{scale * figure.mean:.{digits}f}", error]
    if found is None:
        return [*start, "", "", ""]
    ends = "–"
    if found.interval is not None:
        ends = "[" + ", ".join(f"{scale * end:+.{digits}f}" for end in found.interval) + "]"
    return [*start, f"{scale * found.mean:+.{digits}f}", ends, found.verdict]


def texts(line: Line, shown: list[int], columns: Sequence[Column] = COLUMNS) -> list[str]:
    """The figures of a line, `38.1 ± 0.7` with the standard error, a dash where there is none."""
    told = []
    for (_, _, scale, digits), f in ((columns[n], line.figures[n]) for n in shown):
        spread = f" ± {scale * f.error:.{digits}f}" if f and f.error is not None else ""
        told.append(f"{scale * f.mean:.{digits}f}{spread}" if f else "–")
    return told


def compare(
    run_dirs,
    *,
    at: str = "last",
    force: bool = False,
    against: str | None = None,
    level: float = LEVEL,
    metrics: Sequence[str] = (),
) -> Comparison:
    """Mean and standard error over seeds of every arm of `run_dirs`, and its paired difference to one of them.

    Args:
        run_dirs: Run directories, or folders of them. Arms of several runs are paired by seed.
        at: `last`, `best_on_validation` or `second_half`.
        force: Compare also runs that differ in data, clients or evaluation.
        against: The arm of the differences: its title, its name in the run or its method. Default: the arm whose
            clients learn alone, and without one the first arm.
        level: Of the confidence intervals.
        metrics: Patterns as `client/accuracy/*` of the metrics to show. Default: COLUMNS.

    Raises:
        RunError: Runs that cannot be read or do not belong together, or a word that nothing is named.
    """
    if at not in CHOSEN:
        raise RunError(f"compare: at={at!r} is none of {', '.join(CHOSEN)}")
    runs = [recorded(path) for path in found(run_dirs)]
    if not runs:
        raise RunError("compare: no run directory given")
    differ = differing(runs)
    if differ and not force:
        raise RunError(f"compare: {differ[0]}; such figures do not belong in one table (--force puts them there)")
    empty = [f"{r.path} has no evaluated round: left out" for r in runs if not r.metrics(MAIN)]
    stopped = [f"{r.path} stopped {r.standing}" for r in runs if r.unfinished and r.metrics(MAIN)]
    groups = gathered(runs, at)
    budgets = unequal_budgets(groups)
    columns = chosen_columns(groups, metrics)
    known = aliases(runs)
    lines = [line(*key, kept, columns, known.get(key, frozenset())) for key, kept in groups.items()]
    lines = sorted(lines, key=lambda x: x.reference)
    measured = [line for line in lines if any(line.figures)]
    return Comparison(
        protocol(runs, at),
        (*differ, *empty, *stopped, *budgets),
        tuple(measured or lines),
        other_arm(lines, against),
        differences.check_level(level),
        columns,
    )


def differing(runs: list[Recorded]) -> list[str]:
    """One line for each setting of data, clients or evaluation in which runs differ from the first run."""
    by_key: dict[str, list[Recorded]] = {}
    for run in runs[1:]:
        if key := difference(runs[0], run):
            by_key.setdefault(key, []).append(run)
    more = {key: f"and {len(others) - 1} more differ" if others[1:] else "differs" for key, others in by_key.items()}
    return [f"{others[0].path} {more[key]} from {runs[0].path} in {key}" for key, others in by_key.items()]


def unequal_budgets(groups: dict) -> list[str]:
    """A warning where clients of one arm trained on more than a tenth more rows of a kind than those of another.

    Arms whose clients never see shared rows are not compared in those.
    """
    told = []
    for kind in ("private", "shared"):
        key, means = f"budget/{kind}_rows", {}
        for (_, name), seeds in groups.items():
            if values := [m[key] for runs in seeds.values() for m in runs if m.get(key)]:
                means[name] = statistics.fmean(values)
        low, high = min(means, key=means.__getitem__, default=""), max(means, key=means.__getitem__, default="")
        if means and means[high] > 1.1 * means[low]:
            told.append(
                f"budgets differ: a client of {high} trained on {means[high]:.0f} {kind} rows, one of {low} on "
                f"{means[low]:.0f}"
            )
    return told


def chosen_columns(groups: dict, metrics: Sequence[str]) -> tuple[Column, ...]:
    """COLUMNS, or a column for every metric that one of the patterns matches. RunError for one that matches none."""
    if not metrics:
        return COLUMNS
    names = dict.fromkeys(name for seeds in groups.values() for runs in seeds.values() for m in runs for name in m)
    known = {column.key: column for column in COLUMNS}
    chosen: dict[str, Column] = {}
    for pattern in metrics:
        matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            raise RunError(
                f"compare: no metric of these runs is named {pattern!r}; report.html and rounds.jsonl list them"
            )
        chosen |= {name: known.get(name, Column(name, name, 1, 4)) for name in matched}
    return tuple(chosen.values())


def aliases(runs: list[Recorded]) -> dict[tuple[bool, str], frozenset[str]]:
    """(is a reference, title) -> the arm's names in the runs, its methods, and the role of clients that learn alone."""
    known: dict[tuple[bool, str], set[str]] = {}
    for run in runs:
        for arm in run.arms:
            words = known.setdefault((arm != MAIN, run.title(arm)), set())
            words.add(run.method if arm == MAIN else arm)
            if catalogue.role(run.method_of(arm)) is Role.ALONE:
                words.add(Role.ALONE)
        known.setdefault((True, run.title("untuned")), set()).add("untuned")
    return {key: frozenset(words) for key, words in known.items()}


def other_arm(lines: list[Line], against: str | None) -> Line | None:
    """The arm that all others are compared with; None where there is nothing to compare. RunError, naming the arms."""
    if against is None:
        alone = [one for one in lines if Role.ALONE in one.aliases]
        return [*alone, *lines][0] if len(lines) > 1 else None
    word = against.casefold()
    if by_title := [one for one in lines if one.name.casefold() == word]:
        return by_title[0]
    named = [one for one in lines if word in {alias.casefold() for alias in one.aliases}]
    if len(named) == 1:
        return named[0]
    names = ", ".join(dict.fromkeys(one.name for one in named or lines))
    raise RunError(f"compare: {against!r} is {'several arms' if named else 'no arm of these runs'}; there are {names}")


def found(run_dirs) -> list[Path]:
    """Run directories as given; a folder of runs stands for the runs in it."""
    paths: list[Path] = []
    for path in map(Path, run_dirs):
        inner = sorted(p.parent for p in path.glob("*/settings.yaml")) if not (path / "settings.yaml").exists() else []
        paths += inner or [path]
    return list(dict.fromkeys(paths))


def gathered(runs: list[Recorded], at: str) -> dict[tuple[bool, str], dict]:
    """(is a reference, name) -> seed -> the metrics of that seed's runs."""
    groups: dict[tuple[bool, str], dict] = {}
    for run in runs:
        arms = [((arm != MAIN, run.title(arm)), run.metrics(arm, at)) for arm in run.arms]
        for key, metrics in [*arms, ((True, run.title("untuned")), run.untuned())]:
            if metrics:
                groups.setdefault(key, {}).setdefault(run.get("seed"), []).append(metrics)
    return groups


def line(reference: bool, name: str, by_seed: dict, columns: Sequence[Column], words: frozenset[str]) -> Line:
    """Several runs of one seed (a reference arm that many experiments repeat) count as one: their mean."""
    figures = []
    for column in columns:
        values = {
            seed: statistics.fmean(m[column.key] for m in told)
            for seed, runs in by_seed.items()
            if (told := [m for m in map(finite, runs) if column.key in m])
        }
        figures.append(Figure(values) if values else None)
    return Line(name, tuple(sorted(by_seed, key=str)), tuple(figures), reference, words)


def terms(run: Recorded) -> dict:
    """What two runs must share for their figures to stand in one table."""
    clients = {k: v for k, v in (run.get("clients") or {}).items() if k not in MACHINE}
    data = {k: v for k, v in (run.get("data") or {}).items() if k not in MACHINE}
    return {"data": data, "clients": clients, "evaluation": run.get("evaluation")}


def difference(one: Recorded, other: Recorded) -> str | None:
    """The first setting of data, clients or evaluation in which two runs differ.

    A setting that one of them does not have is left out: its version did not know it yet.
    """
    for key, was in terms(one).items():
        now = terms(other)[key]
        if not (isinstance(was, dict) and isinstance(now, dict)):
            if was != now:
                return key
        elif inner := [k for k in was if k in now and was[k] != now[k]]:
            return f"{key}.{inner[0]}"
    return None


def protocol(runs: list[Recorded], at: str) -> str:
    """One line: data, clients, rounds, seeds."""

    def all_of(key: str) -> str:
        return ", ".join(dict.fromkeys(str(r.get(key)) for r in runs))

    mix = [c.get("modality") for c in runs[0].get("clients.mix") or [] if isinstance(c, dict)]
    clients = " + ".join(f"{mix.count(m)} {m}" for m in dict.fromkeys(mix)) or "?"
    return (
        f"data {all_of('data.name')} · clients {clients} · rounds {all_of('rounds')} · seeds {all_of('seed')}"
        f" · {CHOSEN[at]}"
    )
