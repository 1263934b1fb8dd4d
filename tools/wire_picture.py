"""Draws accuracy against bytes of the runs in a folder of records: docs/pictures/wire.svg.

    python tools/wire_picture.py                                  # docs/records/wire
    python tools/wire_picture.py picture.svg runs/wire            # runs of your own, named by `label`

One panel a metric. A point is a run after its last round, at the kB of all messages of a client and round, both ways.
A thin line joins the runs of one seed, a large point is the mean of a form over its seeds.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from florilegium.config.composition import MAIN
from florilegium.runs.reader import recorded

ROOT = Path(__file__).resolve().parents[1]
METRICS = {
    "client/accuracy/image": "image clients, %",
    "client/accuracy/text": "text clients, %",
    "t2i/accuracy": "T2I model, %",
}
BYTES = ("bytes/up_per_client", "bytes/down_per_client")
COLOURS = ("#4269d0", "#e0723c", "#3ca951", "#a463f2")


@dataclass(frozen=True)
class Point:
    """A run: its form, its seed, kB of a client and round, and its last figures in per cent, by metric."""

    form: str
    seed: int
    kilobytes: float
    figures: dict[str, float]


def points(folder: Path) -> list[Point]:
    """Every run of a folder that has the bytes, the most bytes first. ValueError where there is none."""
    found = []
    for path in sorted(folder.iterdir()):
        if not (path / "rounds.jsonl").exists():
            continue
        run = recorded(path)
        last = [line["metrics"] for line in run.rounds if line["arm"] == MAIN][-1]
        figures = {name: 100 * last[name] for name in METRICS if name in last}
        label = run.settings["label"] or path.name
        found.append(Point(label, run.settings["seed"], sum(last[name] for name in BYTES) / 1e3, figures))
    if not found:
        raise ValueError(f"{folder} has no run")
    return sorted(found, key=lambda point: -point.kilobytes)


def drawn(found: list[Point]) -> Figure:
    """One panel a metric that any run has."""
    named = [name for name in METRICS if any(name in point.figures for point in found)]
    figure = Figure(figsize=(3.1 * len(named), 3.1), layout="constrained")
    forms = list(dict.fromkeys(point.form for point in found))
    for axes, name in zip(figure.subplots(1, len(named), squeeze=False)[0], named, strict=True):
        by_seed, by_form = defaultdict(list), defaultdict(list)
        for point in found:
            if name in point.figures:
                place = (point.kilobytes, point.figures[name])
                by_seed[point.seed].append(place)
                by_form[point.form].append(place)
        for places in by_seed.values():
            axes.plot(*zip(*places, strict=True), color="#999999", linewidth=0.8, marker=".", markersize=4)
        for form, places in by_form.items():
            x, y = (sum(values) / len(values) for values in zip(*places, strict=True))
            axes.plot(x, y, "o", color=COLOURS[forms.index(form) % len(COLOURS)], markersize=9, label=form)
        axes.set_title(METRICS[name], fontsize=10)
        axes.set_xscale("log")
        axes.set_xticks(ticks := (100, 200, 400), [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("kB of a client and round", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    figure.axes[0].legend(fontsize=8, loc="best")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, default=ROOT / "docs" / "pictures" / "wire.svg")
    parser.add_argument("records", nargs="?", type=Path, default=ROOT / "docs" / "records" / "wire")
    given = parser.parse_args()
    mpl.rcParams["svg.hashsalt"] = "florilegium"  # the same file every time
    drawn(points(given.records)).savefig(given.picture, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
