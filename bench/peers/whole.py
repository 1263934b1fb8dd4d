"""Seconds of whole processes, ours beside the peer's, with the same data, model, rounds and epochs.

    python bench/peers/whole.py                                # FedAvg, 10 clients, 16 rounds; about ten minutes
    python bench/peers/whole.py --methods fedavg scaffold --rounds 4

From the start of a process to its end: imports, data, rounds, and one evaluation at the end. Ours is `florilegium run`
with runtime=inprocess; the peer is bench/peers/peer.py in an environment of its own (see README.md in this folder). The
bar of the ratio is 0.12.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compare import ROOT, environment, peers
from methods import PAIRS, Shared

from florilegium.config import composition


def ours(given: list[str]) -> float:
    """Seconds of our process. SystemExit with its last words when it fails."""
    command = [sys.executable, "-m", "florilegium.cli.main", "run", *given, "runtime=inprocess"]
    begun = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench/peers/whole.py: {done.stderr.strip().splitlines()[-1]}")
    return time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=["fedavg"], choices=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=16)
    asked = parser.parse_args()
    python, shared, found = environment(ROOT / "build" / "peers" / "venv"), Shared(rounds=asked.rounds), {}
    for method in asked.methods:
        with tempfile.TemporaryDirectory() as folder:
            given = [*shared.ours(method, 0, str(Path(folder, "run"))), *PAIRS[method].ours]
            settings = composition.plain(composition.complete(composition.compose(given)))
            mine, begun = ours(given), time.monotonic()
            peers(PAIRS[method], shared, settings, Path(folder), python)
            theirs = time.monotonic() - begun
        found[method] = {"ratio": mine / theirs, "ours": mine, "peer": theirs}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
