"""Tables over many runs: mean and standard deviation over seeds, one line per experiment and reference arm."""

import csv
import io
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from florilegium.runs.reader import MAIN, Recorded, RunError, finite, recorded

COLUMNS = (
    ("Image acc. %", "client/accuracy/image", 100, 1),
    ("Text acc. %", "client/accuracy/text", 100, 1),
    ("Retrieval rsum %", "client/rsum/pair", 100, 1),
    ("Server rsum %", "server/rsum", 100, 1),
    ("T2I acc. %", "t2i/accuracy", 100, 1),
    ("CLIP score", "t2i/clip_score", 1, 3),
    ("Up MB", "bytes/up_per_client", 2**-20, 2),
    ("Down MB", "bytes/down_per_client", 2**-20, 2),
)
SOMETIMES = ("client/rsum/pair", "server/rsum")  # columns of runs that have them
CHOSEN = {
    "last": "last round",
    "best_on_validation": "round chosen on validation",
    "second_half": "mean of the second half's evaluated rounds",
}
MACHINE = ("device", "threads", "state_dir")  # where clients run says nothing about what they are


@dataclass(frozen=True)
class Figure:
    """Mean and sample standard deviation (None with one seed) of a figure over seeds."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Line:
    """A row of the table: its name, the seeds behind it, a Figure or None for each of COLUMNS."""

    name: str
    seeds: tuple
    figures: tuple[Figure | None, ...]
    reference: bool


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `table()` for a terminal, `markdown()` and `csv()` for files."""

    protocol: str
    warnings: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def shown(self) -> list[int]:
        """Which of COLUMNS this comparison has."""
        return [
            n
            for n, (_, key, *_) in enumerate(COLUMNS)
            if key not in SOMETIMES or any(line.figures[n] for line in self.lines)
        ]

    def __str__(self) -> str:
        """The table as text, as wide as the terminal."""
        text = io.StringIO()
        wide = max(100, shutil.get_terminal_size((120, 24)).columns)
        Console(file=text, width=wide, force_jupyter=False, force_terminal=False).print(self.table())
        return text.getvalue().rstrip("\n")

    def text(self, form: str = "table") -> str:
        """`table`, `markdown` or `csv`; RunError names them when it is none of these."""
        forms = {"table": self.__str__, "markdown": self.markdown, "csv": self.csv}
        if form not in forms:
            raise RunError(f"compare: format {form!r} is none of {', '.join(forms)}")
        return forms[form]()

    def table(self) -> Table:
        drawn = Table(
            title=self.protocol, title_justify="left", title_style="", caption="\n".join(self.warnings) or None
        )
        drawn.add_column("")
        for name in ("Seeds", *(COLUMNS[n][0] for n in self.shown)):
            drawn.add_column(name, justify="right")
        for n, line in enumerate(self.lines):
            turn = n + 1 < len(self.lines) and self.lines[n + 1].reference != line.reference
            drawn.add_row(
                line.name,
                str(len(line.seeds)),
                *texts(line, self.shown),
                end_section=turn,
                style="dim" if line.reference else "bold",
            )
        return drawn

    def markdown(self) -> str:
        head = ["", "Seeds", *(COLUMNS[n][0] for n in self.shown)]
        rows = [[line.name.replace("|", "\\|"), str(len(line.seeds)), *texts(line, self.shown)] for line in self.lines]
        drawn = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
        rule = "|---|" + "---:|" * (len(head) - 1)
        return "\n".join([self.protocol, "", drawn[0], rule, *drawn[1:], "", *(f"- {w}" for w in self.warnings)])

    def csv(self) -> str:
        """Unrounded, in the metrics' own units; std is empty with one seed."""
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n")
        names = (f"{COLUMNS[n][1]} {part}" for n in self.shown for part in ("mean", "std"))
        out.writerow(["row", "reference", "seeds", *names])
        for line in self.lines:
            told = [line.figures[n] for n in self.shown]
            cells = [c for f in told for c in ((f.mean, "" if f.std is None else f.std) if f else ("", ""))]
            out.writerow([line.name, int(line.reference), " ".join(map(str, line.seeds)), *cells])
        return text.getvalue()


def texts(line: Line, shown: list[int]) -> list[str]:
    """The figures of a line, `38.1 ± 0.7`, a dash where there is none."""
    told = []
    for (_, _, scale, digits), f in ((COLUMNS[n], line.figures[n]) for n in shown):
        spread = f" ± {scale * f.std:.{digits}f}" if f and f.std is not None else ""
        told.append(f"{scale * f.mean:.{digits}f}{spread}" if f else "–")
    return told


def compare(run_dirs, *, at: str = "last", force: bool = False) -> Comparison:
    """Mean ± std over seeds of every experiment in `run_dirs`, and of their reference arms.

    `at` is `last`, `best_on_validation` or `second_half`. RunError when runs differ in data, clients or evaluation,
    unless `force`.
    """
    if at not in CHOSEN:
        raise RunError(f"compare: at={at!r} is none of {', '.join(CHOSEN)}")
    runs = [recorded(path) for path in found(run_dirs)]
    if not runs:
        raise RunError("compare: no run directory given")
    differ = [
        f"{run.path} differs from {runs[0].path} in {key}" for run in runs[1:] if (key := difference(runs[0], run))
    ]
    if differ and not force:
        raise RunError(f"compare: {differ[0]}; such figures do not belong in one table (--force puts them there)")
    empty = [f"{r.path} has no evaluated round: left out" for r in runs if not r.metrics(MAIN)]
    stopped = [
        f"{r.path} stopped at round {max((x['round'] for x in r.of(MAIN)), default=0)} of {r.get('rounds')}"
        for r in runs
        if r.unfinished and r.metrics(MAIN)
    ]
    lines = [line(name, kept, reference) for (reference, name), kept in gathered(runs, at).items()]
    return Comparison(protocol(runs, at), (*differ, *empty, *stopped), tuple(sorted(lines, key=lambda x: x.reference)))


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


def line(name: str, by_seed: dict, reference: bool) -> Line:
    """Several runs of one seed (a reference arm that many experiments repeat) count as one: their mean."""
    figures = []
    for _, key, _, _ in COLUMNS:
        seeds = [
            statistics.fmean(values)
            for runs in by_seed.values()
            if (values := [m[key] for m in map(finite, runs) if key in m])
        ]
        figures.append(
            Figure(statistics.fmean(seeds), statistics.stdev(seeds) if len(seeds) > 1 else None) if seeds else None
        )
    return Line(name, tuple(sorted(by_seed, key=str)), tuple(figures), reference)


def terms(run: Recorded) -> dict:
    """What two runs must share for their figures to stand in one table."""
    clients = {k: v for k, v in (run.get("clients") or {}).items() if k not in MACHINE}
    data = {k: v for k, v in (run.get("data") or {}).items() if k != "path"}
    return {"data": data, "clients": clients, "evaluation": run.get("evaluation")}


def difference(one: Recorded, other: Recorded) -> str | None:
    """The first of data, clients, evaluation in which two runs differ, with both values' difference named."""
    for key, was in terms(one).items():
        now = terms(other)[key]
        if was != now:
            inner = [k for k in {**(was or {}), **(now or {})} if (was or {}).get(k) != (now or {}).get(k)]
            return f"{key}.{inner[0]}" if inner else key
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
