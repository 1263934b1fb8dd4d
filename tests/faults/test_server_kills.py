"""A server that is killed 20 times over a run, at random moments, ends with the numbers of one that never was."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from florilegium.config import composition
from florilegium.config.settings import Settings, settings_of
from florilegium.runs import files
from tests.faults.killed_server import serve

KILLS = 20


@pytest.fixture(scope="module")
def processes():
    """Processes that start with torch, the apps and the libraries they import on their way."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tests.local_grid",
            "server_app.app",
            "client_app.app",
            "florilegium.diffusion.stable",
            "datasets",
            "flwr_datasets",
            "open_clip",
            "transformers.models.resnet.modeling_resnet",
            "transformers.models.bert.modeling_bert",
            "transformers.models.vit.modeling_vit",
            "transformers.models.distilbert.modeling_distilbert",
            "transformers.models.clip.modeling_clip",
        ]
    )
    return context


@pytest.fixture
def conf(toy_conf, tmp_path) -> Settings:
    """FedMMKT and two reference arms, so that a kill meets finished, running and unbegun arms."""
    conf = toy_conf(
        "method=fedmmkt",
        "rounds=3",
        "method.server.samples=12",
        "method.server.replay=4",
        "tuning.batch=8",
        "method.client.pretrain_epochs=1",
        "evaluation.images_per_class=2",
    )
    tuning = composition.plain(conf)["tuning"]
    conf.references = {
        "standalone": {"name": "standalone", "server": {}, "client": {"pretrain_epochs": 1}},
        "self_label": {"name": "selftuned", "server": {"source": "label", "samples": 8, "t2i": tuning}},
    }
    return conf


def run(processes, conf: Settings, out: Path, last: int | None, resume: bool) -> dict | None:
    """One process of the run; what it told of its changes, or None when it was killed at number `last`."""
    conf = settings_of(composition.plain(conf))
    conf.out, conf.clients.state_dir, conf.resume = str(out), str(out / "state"), resume
    told = out.with_name(out.name + ".told")
    told.unlink(missing_ok=True)
    process = processes.Process(target=serve, args=(json.dumps(composition.plain(conf)), last, str(told)))
    process.start()
    process.join(300)
    assert process.exitcode == (0 if told.exists() else -signal.SIGKILL), process.exitcode
    return json.loads(told.read_text()) if told.exists() else None


def newest(out: Path, arms: list[str]) -> tuple[str, int] | None:
    """The arm and round that the next process goes on after."""
    for arm in reversed(arms):
        if there := sorted((out / "checkpoints" / arm).glob("round-*.safetensors")):
            return arm, int(there[-1].stem[-4:])
    return None


def whole(out: Path) -> None:
    """Every file can be read to its end."""
    for path in out.rglob("*"):
        if path.name.startswith(".") or path.is_dir() or ".model.partial" in path.parts:
            continue
        if path.suffix == ".safetensors" and path.parent.parent.name != "model":
            files.load(path)
        elif path.suffix == ".jsonl":
            text = path.read_text()
            assert not text or text.endswith("\n"), path
            [json.loads(line) for line in text.splitlines()]
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path
        elif path.suffix == ".npz":
            with np.load(path) as held:
                assert [held[name].shape for name in held]
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()


def told_by(out: Path) -> dict:
    """What a run says, without times; the ledger without profiles, which every start asks for."""
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    ledger = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    for held in [summary, summary["method"], *summary["references"].values()]:
        held.pop("seconds")
    for entry in [*rounds, *ledger]:
        entry.pop("seconds")
    return {
        "rounds": rounds,
        "ledger": [e for e in ledger if e["phase"] != "profile"],
        "summary": summary,
        "votes": json.loads((out / "votes.json").read_text()),
        "samples": {p.name: p.read_bytes() for p in sorted((out / "samples").glob("*.png"))},
    }


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """The last checkpoints of all arms and the last models of all clients."""
    last = {path.parent: path for path in sorted(out.glob("checkpoints/*/round-*.safetensors"))}
    last |= {path.parent: path for path in sorted(out.glob("state/**/model-*.safetensors"))}
    return {
        f"{folder.parent.name}/{folder.name}/{name}": value
        for folder, path in last.items()
        for name, value in files.load(path)[0].items()
    }


@pytest.mark.faults
def test_twenty_kills_over_a_run_change_no_number_and_tear_no_file(processes, conf, tmp_path) -> None:
    calm = tmp_path / "calm"
    known = run(processes, conf, calm, None, resume=False)
    begun = {(arm, r): count for arm, r, count in known["rounds"]}
    arms = list(composition.arms(conf))
    # a random moment of each twentieth of the run
    draw = random.Random(20)
    moments = [int((k + draw.random()) / KILLS * known["count"]) + 1 for k in range(KILLS)]

    killed, places = tmp_path / "killed", set()
    for kill, moment in enumerate(moments):
        place = newest(killed, arms)
        ended = run(processes, conf, killed, max(1, moment - begun.get(place, 0)), resume=kill > 0)
        assert ended is None, f"the run ended before kill {kill + 1}"
        places.add(place)
        whole(killed)
    run(processes, conf, killed, None, resume=True)

    whole(killed)
    assert len(places) >= 6 and len({place[0] for place in places - {None}}) >= 2, places
    assert told_by(killed) == told_by(calm)
    ours, theirs = tensors(killed), tensors(calm)
    assert ours.keys() == theirs.keys() and len(ours) > 100
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    left = [path.name for path in killed.rglob(".*") if path.name.endswith((".tmp", ".partial"))]
    assert not left, left
