"""Exchanges a round and what they cost, from the ledgers of recorded runs: one line a run, and ratios to the first.

    python bench/exchanges.py RUN...                    # directories that `florilegium run` wrote
    python bench/exchanges.py --floor 4 RUN...          # seconds an exchange costs by polling alone; 0 in a simulation

An exchange is one question to the cohort and its answers. Round 0, profiles and evaluations are left out.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from florilegium.runs.reader import MAIN, OVERHEAD, Recorded, mean, recorded


@dataclass(frozen=True)
class Cost:
    """Means over the rounds of a run's main arm: exchanges, messages a client, bytes a client, seconds."""

    name: str
    exchanges: float
    messages: float
    down: float
    up: float
    waited: float  # seconds from a question to its last answer, summed over the exchanges

    def ratios(self, first: Cost) -> dict[str, float]:
        """Each figure over that of `first`, where that is not zero."""
        pairs = {key: (value, getattr(first, key)) for key, value in vars(self).items() if key != "name"}
        return {key: round(value / by, 3) for key, (value, by) in pairs.items() if by}


def cost(run: Recorded, floor: float) -> Cost:
    """What the main arm's exchanges cost; `floor` seconds are added for each."""
    rounds: dict[int, list[dict]] = defaultdict(list)
    for entry in run.ledger:
        if entry["arm"] == MAIN and entry["round"] > 0 and entry["phase"] not in OVERHEAD and not entry.get("late"):
            rounds[entry["round"]].append(entry)
    if not rounds:
        raise SystemExit(f"{run.path}: its ledger has no exchange after round 0")
    told = [_of_round(entries, floor) for entries in rounds.values()]
    keys = ("exchanges", "messages", "down", "up", "waited")
    return Cost(f"{run.label} ({run.path.name})", **{key: mean(t[key] for t in told) or 0.0 for key in keys})


def _of_round(entries: list[dict], floor: float) -> dict[str, float]:
    steps: dict[int, list[dict]] = defaultdict(list)
    for entry in entries:
        steps[entry["step"]].append(entry)
    clients = len({entry["client"] for entry in entries})
    return {
        "exchanges": len(steps),
        "messages": len(entries) / clients,
        "down": sum(e["down"] for e in entries) / clients,
        "up": sum(e["up"] for e in entries) / clients,
        "waited": sum(max(e["seconds"] for e in step) + floor for step in steps.values()),
    }


def table(costs: list[Cost]) -> str:
    """The costs, with their ratios to the first in brackets."""
    wide = max(len(c.name) for c in costs)
    lines = [f"{'a round':{wide}}  exchanges  messages/client    kB down/client      kB up/client           seconds"]
    for c in costs:
        r = c.ratios(costs[0])
        measured = "  ".join(
            f"{value:9.1f} ({r.get(key, 0):4.2f})"
            for key, value in (("down", c.down / 1e3), ("up", c.up / 1e3), ("waited", c.waited))
        )
        lines.append(f"{c.name:{wide}}  {c.exchanges:9.2f}  {c.messages:15.2f}  {measured}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--floor", type=float, default=0.0, help="seconds that each exchange costs by polling alone")
    parser.add_argument("--json", action="store_true", help="ratios to the first run, as JSON")
    given = parser.parse_args()
    found = [cost(recorded(run), given.floor) for run in given.runs]
    print(json.dumps({c.name: c.ratios(found[0]) for c in found}, indent=1) if given.json else table(found))
