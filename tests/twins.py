"""A run through Flower and its twin in one process."""

from __future__ import annotations

from pathlib import Path

from tools import traces


def differences(simulation: Path, twin: Path) -> list[str]:
    """What two run directories differ in, but for what a simulation decides itself."""
    ours, theirs = traces.read(twin), traces.read(simulation)
    for found in (ours, theirs):  # Ray's actors answer in any order
        found["ledger"].sort(
            key=lambda entry: (entry["arm"], entry["round"], entry["step"], entry["client"], entry["up"])
        )
    return traces.differences(theirs, ours, ["ledger entry * node"])  # Flower draws the numbers of its nodes
