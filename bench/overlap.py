"""Seconds of a round with samples made ahead over seconds without, from recorded runs of `method.server.overlap`.

    florilegium run references=none out=runs/none
    florilegium run references=none out=runs/distill method.server.overlap=distill
    python bench/overlap.py runs/none runs/distill                # ratios to the first run (bar 0.7)

For each run also what a round waits for: the exchanges, and the server alone, which is all that is no exchange. Making
samples ahead takes the server's work out of the time in which all clients wait. Round 0 and evaluations are left out.
Run both on an otherwise idle machine, one after the other.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from florilegium.runs.reader import MAIN, Recorded, mean, recorded

LEFT_OUT = ("profile", "evaluate")
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    print(table([recorded(run) for run in parser.parse_args().runs]))
