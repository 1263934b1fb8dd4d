"""Accuracy against bytes: the default run with each form of the wire (docs/wire.md), differences to the exact form.

    python bench/wire.py --out runs/wire                                # all forms, two seeds, two rounds: an hour
    python bench/wire.py --out runs/wire --forms "exact|small" --seeds 0

The clients' first training, round 0, is the same for every form, so it is made once for a seed; each form goes on from
a copy of it. A form that was measured in the same directory is not measured again. One thread, everything in one
process.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import math
import shutil
import statistics
from pathlib import Path

import torch

from florilegium import preflight
from florilegium.config import composition
from florilegium.config.instances import to_yaml
from florilegium.config.settings import Settings
from florilegium.runs.reader import MAIN, read_lines
from florilegium.runtime import inprocess

LOGIT = ["method.variant=logit"]
FORMS: dict[str, list[str]] = {
    "exact": [],
    "float16": ["wire.vectors=float16"],
    "int8": ["wire.vectors=int8"],
    "small": ["wire=small"],
    "small, webp 50": ["wire=small", "wire.quality=50"],
    "small, projected to 64": ["wire=small", "wire.projection=64"],
    "small, projected to 16": ["wire=small", "wire.projection=16"],
    "logits": [*LOGIT],
    "logits, small": [*LOGIT, "wire=small", "wire.top=3", "wire.vectors=float16"],
}
FIGURES = ("client/accuracy/image", "client/accuracy/text", "t2i/accuracy")
BYTES = ("bytes/up_per_client", "bytes/down_per_client")
SAME = [
    "references=none",
    "runtime=inprocess",
    "clients.threads=1",
    "evaluation.images_per_class=10",
    "timeouts.exchange=86400",  # nobody is late on a busy machine
]


def settings(out: Path, seed: int, rounds: int, *overrides: str) -> Settings:
    """Complete settings of the default run in the directory `out`."""
    given = [*SAME, f"seed={seed}", f"rounds={rounds}", f"out={out}", *overrides]
    conf = composition.complete(composition.compose(given))
    preflight.validate(conf)
    return conf


def first_round(folder: Path, seed: int, more: list[str]) -> Path:
    """The run directory of round 0 alone."""
    out = folder / "start" / f"seed-{seed}"
    if not (out / "report.html").exists():
        shutil.rmtree(out, ignore_errors=True)
        conf = settings(out, seed, 0, *more)
        out.mkdir(parents=True)
        inprocess.federate(conf)
    return out


def measured(folder: Path, form: str, seed: int, rounds: int, more: list[str]) -> dict[str, float]:
    """Figures of the last round and bytes of a round, the mean over the rounds."""
    # clients find their memory by the name of the run directory, so that a copy has the name of what it is a copy of
    out = folder / form.replace(", ", "-").replace(" ", "-") / first_round(folder, seed, more).name
    if not (out / "report.html").exists() or len(read_lines(out / "rounds.jsonl")) < rounds + 1:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder / "start" / out.name, out)
        conf = settings(out, seed, rounds, "resume=true", *more, *FORMS[form])
        (out / "settings.yaml").write_text(to_yaml(conf.plain()))  # round 0 is the same with these settings
        inprocess.federate(conf)
    told = [r["metrics"] for r in read_lines(out / "rounds.jsonl") if r["arm"] == MAIN and r["round"] > 0]
    found = {name: told[-1].get(name, math.nan) for name in FIGURES}  # not all data have a judge
    return found | {name: statistics.fmean(one[name] for one in told) for name in BYTES}


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: bytes, and each accuracy with its mean paired difference to the exact form of the same variant."""
    head = ["form", "kB up", "kB down", *(name.split("/", 1)[1] if "t2i" not in name else "T2I" for name in FIGURES)]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for form, runs in found.items():
        against = found.get("logits" if form.startswith("logits") else "exact", runs)
        cells = [f"{statistics.fmean(run[name] for run in runs) / 1e3:.1f}" for name in BYTES]
        for name in FIGURES:
            mean = 100 * statistics.fmean(run[name] for run in runs)
            apart = [100 * (a[name] - b[name]) for a, b in zip(runs, against, strict=False)]
            cells.append(f"{mean:.1f}" + (f" ({statistics.fmean(apart):+.1f})" if runs is not against else ""))
        lines.append("| " + " | ".join([form, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a directory for the runs and figures.json")
    parser.add_argument("--forms", default="|".join(FORMS), help="names of forms, with | between them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("more", nargs="*", help="overrides of the default run, the same for every form")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {}
    for form in given.forms.split("|"):
        found[form] = [measured(given.out.absolute(), form, seed, given.rounds, given.more) for seed in given.seeds]
        (given.out / "figures.json").write_text(json.dumps(found, indent=1))
        print(table(found), flush=True)


if __name__ == "__main__":
    main()
