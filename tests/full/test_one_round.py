"""Each experiment of a paper goes through one round, on tiny random checkpoints in the hub's layout and tiny data.

Not all of them run: each method, data set, generator and list of clients that any of them takes runs once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from florilegium import preflight
from florilegium.config import composition
from florilegium.config.settings import Settings
from florilegium.contract.tiny_models import tiny_models
from florilegium.runs.reader import read_lines
from tests.full.test_experiments import EXPERIMENTS
from tests.full.tiny_inputs import write_backbones, written_data
from tests.full.tiny_pipelines import write
from tests.tiers import first

PIPELINES = {  # of each model that an experiment names; the methods without a generator keep the default
    "models/glide": "glide",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "one",
    "mini-sd": "one",
}
SHORT = [  # keys that a method has or has not
    ("server", "samples", 12),
    ("client", "pretrain_epochs", 1),
    ("client", "local_epochs", 1),
    ("client", "distill_epochs", 1),
    ("server", "pretrain_epochs", 1),
]


def groups_of(name: str) -> set[str]:
    """The groups that an experiment takes, and the generator of its method. Hydra would need seconds to tell them."""
    given = yaml.safe_load(Path(composition.CONF, "experiment", f"{name}.yaml").read_text())
    taken = {key.removeprefix("override /"): value for line in given["defaults"] for key, value in line.items()}
    found = {f"{group}={taken.get(group)}" for group in ("method", "data", "clients")}
    return {*found, f"{taken.get('method')} with {taken.get('diffusion')}"}


def representatives() -> list[str]:
    """Experiments that take together every group that any of them takes."""
    found: list[str] = []
    seen: set[str] = set()
    for name in EXPERIMENTS:
        if not groups_of(name) <= seen:
            found.append(name)
            seen |= groups_of(name)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def backbones(folder) -> dict[str, str]:
    return write_backbones(folder / "backbones")


@pytest.fixture(scope="module")
def pipelines(folder) -> dict[str, str]:
    return {name: write(name, folder) for name in ("one", "glide")}


def tiny(name: str, folder: Path, backbones: dict[str, str], pipelines: dict[str, str], out: Path) -> Settings:
    """The experiment's settings with tiny models, tiny data and short training."""
    full = composition.compose([f"experiment={name}"])
    made, layers = tiny_models(), full.diffusion.features.layers
    given = [
        f"diffusion.model={pipelines[PIPELINES[full.diffusion.model]]}",
        *(f"diffusion.{which}={made[which]}" for which in ("captioner", "clip")),
        *("diffusion.steps=2", "diffusion.upsample_steps='2'", "diffusion.device=cpu", "diffusion.dtype=float32"),
        *(f"diffusion.features.layers={layers}", f"diffusion.features.dims={[8] * len(layers)}"),
        *(f"clients.width={8 * len(layers)}", "clients.device=cpu", "clients.tokens=12"),
        *(
            "diffusion.size=16",
            "diffusion.features.size=16",
            "diffusion.captions.min_tokens=0",
            "diffusion.captions.max_tokens=24",
        ),
        *("rounds=1", "evaluation.images_per_class=1", "references=none", f"out={out}"),
        *("tuning.batch=8", "clients.partition.min_samples=2", "clients.partition.alpha=2"),
    ]
    for which, place in backbones.items():
        if (full.clients.architectures.get(which) or {}).get("pretrained"):
            given.append(f"clients.architectures.{which}.pretrained={place}")
        else:
            own = "{input_size: 16, embedding_size: 8, hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}"
            given += [f"clients.architectures.{which}={own}"] if which == "resnet" else []
    for side, key, value in SHORT:
        if full.method.value(side, key) is not None:
            given.append(f"method.{side}.{key}={value}")
    conf = composition.compose([f"experiment={name}", *written_data(full.data.name, folder), *given])
    conf = composition.complete(conf)
    for side in ("server", "client"):
        if guidance := conf.method.value(side, "guidance"):
            guidance["cache"] = str(out.parent / "features")
    return conf


@pytest.mark.parametrize("name", first(representatives(), 3))
def test_one_round_at_tiny_size(name, folder, backbones, pipelines, tmp_path, federated) -> None:
    conf = tiny(name, folder, backbones, pipelines, tmp_path / "run")
    preflight.validate(conf)
    run = federated(conf)
    rounds = [r for r in read_lines(run / "rounds.jsonl") if r["arm"] == "method"]
    faults = [entry["fault"] for entry in read_lines(run / "ledger.jsonl") if entry["fault"]]
    assert [r["round"] for r in rounds] == [0, 1] and not faults
    figures = rounds[-1]["metrics"]
    assert {"client/accuracy", "client/rsum"} & figures.keys()
    assert (conf.method.value("server", "t2i") is None) or "t2i/clip_score" in figures
