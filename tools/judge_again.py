"""Judge the generators of finished runs again, by another classifier or with other noise.

    python tools/judge_again.py docs/records/second_judge runs/lexicon/* --judge assets/models/judges/second

The weights come from the runs' last checkpoints, prompts and noise are those of the run. The un-tuned model is judged
as round 0. What is written reads like a kept run (keep_records.py): `florilegium compare` makes its table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from keep_records import write
from rich.progress import track

from florilegium.config.settings import settings_of
from florilegium.resources import Resources
from florilegium.runs import files
from florilegium.runs.checkpoints import oldest_first
from florilegium.runs.reader import MAIN, Recorded, recorded
from server_app.evaluation import Evaluation

PARTS = ("", "generator.")  # before the names of a generator's tensors, by kind of arm


def own(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def tuned(resources: Resources, run: Recorded, arm: str):
    """The generator of an arm after its last round. ValueError where its checkpoint is gone or holds none."""
    kept = oldest_first(run.path / "checkpoints" / arm)
    if not kept:
        raise ValueError(f"{run.path}: no checkpoint of {arm}")
    tensors, told = files.load(kept[-1])
    for prefix in PARTS:
        if any(name.startswith(f"{prefix}decoder.") for name in tensors):
            generator = resources.generator()
            generator.restore(own(tensors, prefix), told["strategy"].get("generator", told["strategy"]))
            return generator
    raise ValueError(f"{kept[-1]}: no tuned decoder")


def judged(run: Recorded, judge: str) -> list[dict]:
    """A record of the un-tuned model, and of each arm that has a generator."""
    conf = settings_of(run.settings)
    conf.data.judge = judge
    resources = Resources(conf)
    evaluation = Evaluation(conf, resources)
    arms = {record["arm"]: record for record in run.rounds if "t2i/accuracy" in record["metrics"]}  # the last of each
    records = [{"arm": MAIN, "round": 0, "metrics": evaluation.generator(resources.generator()).metrics}]
    for arm, last in track(arms.items(), str(run.path)):
        metrics = evaluation.generator(tuned(resources, run, arm)).metrics
        print(f"{run.path.name} {arm}: {last['metrics']['t2i/accuracy']:.4f}, again {metrics['t2i/accuracy']:.4f}")
        records.append({"arm": arm, "round": last["round"], "metrics": metrics})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the records go, for example docs/records/second_judge")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--judge", required=True, help="a directory or an asset, as data.judge names it")
    args = parser.parse_args()
    for path in args.runs:
        run = recorded(path)
        records = judged(run, args.judge)
        write(args.folder / path.name, run.settings | {"data": run.settings["data"] | {"judge": args.judge}}, records)


if __name__ == "__main__":
    main()
