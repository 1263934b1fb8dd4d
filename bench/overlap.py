"""Seconds of a round with samples made ahead over seconds without, from recorded runs of `method.server.overlap`.

    florilegium run references=none out=runs/none
    florilegium run references=none out=runs/distill method.server.overlap=distill
    python bench/overlap.py runs/none runs/distill                # ratios to the first run (bar 0.7)
    python bench/overlap.py --measure                             # makes these runs and one of `train`: ten minutes

For each run also what a round waits for: the exchanges, and the server alone, which is all that is no exchange. Making
samples ahead takes the server's work out of the time in which all clients wait. Round 0 and evaluations are left out.
Run both on an otherwise idle machine, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from florilegium.runs.reader import MAIN, Recorded, mean, recorded

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ("profile", "evaluate")
WAYS = ("none", "distill", "train")
GIVEN = ("references=none", "rounds=3", "evaluation.every=3", "evaluation.images_per_class=1")
SERVER, WHOLE = "server alone", "round"


def parts(run: Recorded) -> dict[str, float]:
    """Mean seconds of a round of the main arm, whole and by what it waits for."""
    longest: dict[tuple[int, str], float] = defaultdict(float)
    for entry in run.ledger:
        if entry["arm"] == MAIN and entry["phase"] not in LEFT_OUT and not entry.get("late"):
            key = entry["round"], entry["phase"]
            longest[key] = max(longest[key], entry["seconds"])
    rounds = [r for r in run.rounds if r["arm"] == MAIN and r["round"] > 0]
    if not rounds:
        raise SystemExit(f"{run.path}: no round after round 0 is recorded")
    waits: dict[str, list[float]] = defaultdict(list)
    for r in rounds:
        those = {phase: seconds for (number, phase), seconds in longest.items() if number == r["round"]}
        for phase, seconds in those.items():
            waits[phase].append(seconds)
        waits[SERVER].append(r["seconds"] - sum(those.values()))
        waits[WHOLE].append(r["seconds"])
    return {name: mean(values) or 0.0 for name, values in waits.items()}


def table(runs: list[Recorded]) -> str:
    """Markdown: a line for each run, its parts, and its round over that of the first."""
    found = [parts(run) for run in runs]
    names = [name for name in dict.fromkeys(name for told in found for name in told) if name != WHOLE]
    lines = ["| run | " + " | ".join([*names, WHOLE, "ratio"]) + " |", "|---" + "|---:" * (len(names) + 2) + "|"]
    for run, told in zip(runs, found, strict=True):
        cells = [f"{told[name]:.1f}" if name in told else "" for name in [*names, WHOLE]]
        lines.append("| " + " | ".join([run.path.name, *cells, f"{told[WHOLE] / found[0][WHOLE]:.2f}"]) + " |")
    return "\n".join(lines)


def measured(folder: Path) -> list[Recorded]:
    """A default run of each way of overlap, one after the other. SystemExit with the last words of one that fails."""
    for way in WAYS:
        command = [sys.executable, "-m", "florilegium.cli.main", "run", *GIVEN, f"method.server.overlap={way}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, f"out={folder / way}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"bench/overlap.py: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return [recorded(folder / way) for way in WAYS]


def ratios(runs: list[Recorded]) -> dict[str, float]:
    """The round of each run over that of the first, by the run's name; `ratio` is the smallest."""
    seconds = {run.path.name: parts(run)[WHOLE] for run in runs}
    first = seconds.pop(runs[0].path.name)
    found = {name: value / first for name, value in seconds.items()}
    return found | {"ratio": min(found.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--measure", action="store_true", help="make the runs")
    given = parser.parse_args()
    if given.measure:
        with tempfile.TemporaryDirectory(prefix="florilegium-bench-") as folder:
            runs = measured(Path(folder))
            print(table(runs))
            print(json.dumps({name: round(value, 3) for name, value in ratios(runs).items()}))
    elif given.runs:
        print(table([recorded(run) for run in given.runs]))
    else:
        parser.error("name recorded runs, or give --measure")


if __name__ == "__main__":
    main()
