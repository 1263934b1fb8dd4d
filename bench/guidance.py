"""What guidance adds to a client's local training with a warm cache, and to its upload: ratios in one run.

    python bench/guidance.py [rounds]          # default 4; the first ever run fills the cache, which takes minutes

FedAvg with `guidance` none, feddifrc, semanticfl and both, on the same two clients, weights and batches, through the
real apps in one process. One thread; CPU seconds of `train`, so that another process on the machine does not change the
ratios. The issue's bars: 1.10 for the time, equal uploads.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from client_app.blocks import averaging
from florilegium.config import composition
from tests.local_grid import run_apps

GUIDANCES = ("none", "feddifrc", "semanticfl", "both")
PAIR = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"


def measured(guidance: str, rounds: int, folder: str) -> tuple[float, float]:
    """(median CPU seconds of one client's `train`, mean bytes of its upload); the first round warms up."""
    from client_app.app import app as client_app
    from server_app.app import app as server_app

    conf = composition.complete(
        composition.compose(
            [
                "method=fedavg",
                "data=fashion",
                "clients=ten",
                PAIR,
                "cohort.fraction=1",
                "references=none",
                f"guidance@method.client.guidance={guidance}",
                "partition@clients.partition=nid2",
                f"rounds={rounds}",
                f"evaluation.every={rounds}",
                "evaluation.images_per_class=1",
                f"out={folder}/{guidance}",
            ]
        )
    )
    spent: list[float] = []
    plain = averaging.local

    def clocked(*given: Any, **named: Any) -> Any:
        started = time.process_time()
        reply = plain(*given, **named)
        spent.append(time.process_time() - started)
        return reply

    from client_app.methods import fedavg

    fedavg.local = clocked
    try:
        run_apps(server_app, client_app, 2, {"settings": json.dumps(composition.plain(conf)), "overrides": ""})
    finally:
        fedavg.local = plain
    lines = [json.loads(line) for line in Path(conf.out, "rounds.jsonl").read_text().splitlines()]
    uploads = [line["metrics"]["bytes/up_per_client"] for line in lines[2:]]
    return statistics.median(spent[3:]), statistics.mean(uploads)  # one call for the common start, two of round 1


def main() -> None:
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    with tempfile.TemporaryDirectory() as folder:
        found = {guidance: measured(guidance, rounds, folder) for guidance in GUIDANCES}
    seconds, upload = found["none"]
    for guidance, (ours, up) in found.items():
        print(f"{guidance:12} train / FedAvg's {ours / seconds:.3f}   upload / FedAvg's {up / upload:.4f}")


if __name__ == "__main__":
    main()
