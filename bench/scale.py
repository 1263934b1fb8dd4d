"""What a simulation of many clients costs beside one of ten: peak memory, and time for each client that takes part.

    python bench/scale.py                                   # 1,000 clients with 20 in a cohort, beside 10
    python bench/scale.py --clients 200 --cohort 10 --rounds 2

Two runs of FedAvg on fashion, one after the other, in Flower's simulation engine. All clients of both have equally many
rows and the same model. Memory is that of all processes of a run together, where a page that several of them share
counts once (PSS). Time is that of the rounds after the first, without evaluation, over the clients that were asked.
The bar for both ratios is 1.2.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow.parquet

from bench.run_cost import measure as run_measured
from florilegium import assets
from florilegium.runs import files
from florilegium.runs.reader import read_lines

ROWS, FEW = 12, 10  # rows of a client; clients of the small run
MEMBER = "{modality: image, model: resnet}"


def dataset(folder: Path, rows: int) -> Path:
    """Fashion with so many training rows, spread evenly over the whole."""
    place = assets.path("data", "fashion")
    folder.mkdir()
    for name in ("classes.json", "validation.parquet", "test.parquet"):
        shutil.copy(place / name, folder / name)
    table = pyarrow.parquet.read_table(place / "train.parquet")
    if rows > len(table):
        raise SystemExit(f"bench/scale.py: fashion has {len(table)} rows, {rows} are needed")
    chosen = [n * len(table) // rows for n in range(rows)]
    pyarrow.parquet.write_table(table.take(chosen), folder / "train.parquet")
    return folder


def overrides(folder: Path, clients: int, cohort: int, rounds: int) -> list[str]:
    """The run of `clients` clients with `cohort` of them in a round."""
    return [
        "method=fedavg",
        "data=fashion",
        f"data.path={dataset(folder / f'data-{clients}', clients * ROWS)}",
        "clients=ten",
        f"clients.mix=[{', '.join([MEMBER] * clients)}]",
        "clients.partition={name: iid}",
        f"cohort.fraction={cohort / clients}",
        "references=none",
        f"rounds={rounds}",
        f"evaluation.every={rounds}",
    ]


def one(folder: Path, clients: int, cohort: int, rounds: int) -> dict[str, float]:
    """Peak memory in MiB, seconds of a client in a round, seconds until round 1 began."""
    out = folder / f"run-{clients}"
    told = run_measured(overrides(folder, clients, cohort, rounds), out)
    lines = [line for line in read_lines(out / "rounds.jsonl") if line["round"] > 0]
    later = [line["seconds"] for line in lines[1:]] or [line["seconds"] for line in lines]
    entries = [e for e in read_lines(out / "ledger.jsonl") if e["phase"] == "train" and e["round"] > 0]
    asked = len(entries) / len(lines)
    assert asked == cohort and not any(e["fault"] for e in entries), (asked, cohort)
    model = next(file for file in out.glob("checkpoints/method/*.safetensors"))
    state = [value for name, value in files.load(model)[0].items() if not name.startswith("federation")]
    return {
        "clients": clients,
        "cohort": cohort,
        "up_bytes": sum(e["up"] for e in entries) / len(entries),
        "down_bytes": sum(e["down"] for e in entries) / len(entries),
        "weights": sum(value.numel() for value in state),
        "arrays": len(state),
        "peak_mib": told["peak MiB"],
        "client_seconds": sum(later) / len(later) / cohort,
        "start_seconds": told["seconds"] - sum(line["seconds"] for line in lines),
        "seconds": told["seconds"],
    }


def measure(clients: int = 1000, cohort: int = 20, rounds: int = 4) -> dict[str, Any]:
    """Both runs, and the ratios of the large one to the small one."""
    with tempfile.TemporaryDirectory(prefix="florilegium-bench-") as scratch:
        few = one(Path(scratch), FEW, FEW, rounds)
        many = one(Path(scratch), clients, cohort, rounds)
    return {
        "memory ratio": many["peak_mib"] / few["peak_mib"],
        "time ratio": many["client_seconds"] / few["client_seconds"],
        "few": few,
        "many": many,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("clients", 1000), ("cohort", 20), ("rounds", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    print(json.dumps(measure(given.clients, given.cohort, given.rounds), indent=1))


if __name__ == "__main__":
    main()
