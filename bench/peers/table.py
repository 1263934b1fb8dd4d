"""The table of README.md in this folder, made of the runs that compare.py wrote.

python bench/peers/table.py [MORE.json ...]    # put more runs into runs.json beside this file, and write the table
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KEPT = HERE / "runs.json"
PAGE = HERE / "README.md"
HEAD = "| method | ours, % | peer, % | difference | ours, s | peer, s |\n|---|---:|---:|---:|---:|---:|"
BLOCK = re.compile(r"(<!-- table -->\n).*?(<!-- end -->)", re.DOTALL)


def line(runs: Sequence[dict[str, Any]]) -> str:
    """One method: both accuracies in percent with their standard errors, the difference, and the seconds.

    A difference beyond two standard errors has a star.
    """
    pairs = [(100 * r["ours"]["accuracy"], 100 * r["peer"]["accuracy"]) for r in runs]

    def mean(values: list[float]) -> tuple[float, float]:
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return statistics.mean(values), error

    (a, a_error), (b, b_error) = (mean([p[side] for p in pairs]) for side in (0, 1))
    apart, error = mean([x - y for x, y in pairs])
    seconds = [statistics.mean(r[side]["seconds"] for r in runs) for side in ("ours", "peer")]
    mark = " *" if error == error and abs(apart) > 2 * error else ""

    def figure(value: float, error: float, sign: str = "") -> str:
        return f"{value:{sign}.1f}" + (f" ± {error:.1f}" if error == error else "")

    cells = [figure(a, a_error), figure(b, b_error), figure(apart, error, "+") + mark]
    return f"| {runs[0]['method']} | {' | '.join(cells)} | {seconds[0]:.0f} | {seconds[1]:.0f} |"


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A line a method, in the order in which the methods come."""
    methods = dict.fromkeys(run["method"] for run in runs)
    return "\n".join([HEAD, *(line([run for run in runs if run["method"] == method]) for method in methods)])


def written(page: str, runs: Sequence[dict[str, Any]]) -> str:
    """The page with the table of these runs in its place."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table(runs)}\n\n{found[2]}", page)


def main(more: Sequence[str]) -> None:
    runs = json.loads(KEPT.read_text()) if KEPT.exists() else []
    for file in more:
        for run in json.loads(Path(file).read_text()):
            key = {name: run[name] for name in ("method", "seed", "shared")}
            runs = [held for held in runs if not held.items() >= key.items()] + [run]
    KEPT.write_text(json.dumps(runs, indent=1) + "\n")
    PAGE.write_text(written(PAGE.read_text(), runs))


if __name__ == "__main__":
    main(sys.argv[1:])
