"""Accuracies and seconds of our methods beside a peer's, over seeds: see README.md in this folder.

    python bench/peers/compare.py [--methods fedavg ...] [--rounds 20] [--seeds 0 1 2] [--out DIR]

Prints a table, and writes every run to DIR/peers.json as it ends. A run that is there already is not made again.
`python bench/peers/table.py DIR/peers.json` puts the runs into the table of README.md.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from methods import PAIRS, Pair, Shared
from table import HEAD, line

import florilegium
from florilegium.config import composition
from florilegium.runs.reader import read_lines

ROOT = Path(__file__).resolve().parents[2]
PEER = "fluke-fl==0.8.1"
NEEDS = ("diskcache", "cerberus", "wandb", "clearml", "seaborn", "networkx", "requests", "tensorboard", "scikit-learn")


def environment(place: Path) -> Path:
    """The Python of the peer's virtual environment, made where it is not there; ours gives torch and our code."""
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        venv.create(place, with_pip=True, clear=True)
        packages = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (packages / "ours.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "--no-deps", PEER], check=True)
        subprocess.run([*install, *NEEDS], check=True)
        (place / "ready").touch()
    return python


def ours(pair: Pair, method: str, shared: Shared, seed: int, out: Path) -> tuple[dict[str, float], Any]:
    """Accuracy of the last round and seconds of all rounds; and the complete settings."""
    given = [*shared.ours(method, seed, str(out)), *pair.ours]
    shutil.rmtree(out, ignore_errors=True)
    run = florilegium.run(*given)
    rounds = [line for line in read_lines(out / "rounds.jsonl") if line["round"] > 0]
    found = rounds[-1]["metrics"]["client/accuracy/image"]
    conf = composition.complete(composition.compose([*given]))
    assert run.rounds is not None
    return {"accuracy": found, "seconds": sum(line["seconds"] for line in rounds)}, composition.plain(conf)


def peers(pair: Pair, shared: Shared, settings: Any, out: Path, python: Path) -> dict[str, float]:
    """The same of the peer."""
    optimizer = {"name": "SGD", "lr": shared.rate, "momentum": 0.0, "weight_decay": 0.0}
    client = {"batch_size": shared.batch, "local_epochs": shared.epochs, "clipping": shared.clip}
    client |= {"loss": "CrossEntropyLoss", "optimizer": optimizer, "scheduler": {"gamma": 1, "step_size": 1}}
    facts = asdict(pair) | {"client": client | pair.client, "settings": settings, "rounds": shared.rounds}
    file = out / "given.json"
    file.write_text(json.dumps(facts))
    command = [str(python), str(Path(__file__).with_name("peer.py")), str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode} and said nothing"]
        raise SystemExit(f"the peer's {pair.peer} failed: {said[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "peers" / "runs")
    for name, value in asdict(Shared()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    given = parser.parse_args()
    shared = replace(Shared(), **{name: getattr(given, name) for name in asdict(Shared())})
    python = environment(ROOT / "build" / "peers" / "venv")
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "peers.json"
    known = json.loads(file.read_text()) if file.exists() else []
    print(HEAD)
    for method in given.methods:
        runs = []
        for seed in given.seeds:
            key = {"method": method, "seed": seed, "shared": asdict(shared)}
            run = next((k for k in known if k.items() >= key.items()), None)
            if run is None:
                mine, settings = ours(PAIRS[method], method, shared, seed, given.out / f"{method}-{seed}")
                run = key | {"ours": mine, "peer": peers(PAIRS[method], shared, settings, given.out, python)}
                known.append(run)
                file.write_text(json.dumps(known, indent=1))
            runs.append(run)
        print(line(runs), flush=True)


if __name__ == "__main__":
    main()
