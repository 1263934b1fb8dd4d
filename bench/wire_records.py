"""Points of accuracy that `wire=small` loses, from the kept records of whole runs: docs/records/wire.

    python bench/wire_records.py

Means of paired differences, exact - small, after the last round; docs/wire.md has their intervals.
"""

from __future__ import annotations

import json
from pathlib import Path

from florilegium.report.comparison import compare

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "records" / "wire"
EXACT, SMALL = "FedMMKT, exact", "FedMMKT, small"
METRICS = {
    "image clients": "client/accuracy/image",
    "text clients": "client/accuracy/text",
    "T2I model": "t2i/accuracy",
}


def lost(records: Path = RECORDS) -> dict[str, float]:
    """Points that the small form loses; below zero it gains. KeyError where the records lack a figure."""
    found = compare([records], force=True, against=EXACT, metrics=list(METRICS.values()))
    told = {row.column.key: row.difference for row in found.compared() if row.line.name == SMALL and row.difference}
    return {name: -100 * told[metric].mean for name, metric in METRICS.items()}


if __name__ == "__main__":
    print(json.dumps({name: round(value, 2) for name, value in lost().items()}))
