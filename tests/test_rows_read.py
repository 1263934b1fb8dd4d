"""Images become floats a batch at a time, wherever clients answer or learn, and nothing of a run changes by that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import client_app.client
from client_app.blocks import representing
from client_app.methods.logits import feddfa
from florilegium.data import stored_images
from florilegium.data.stored_images import Changed
from florilegium.learning.metrics import Judge
from florilegium.protocol import pixels
from tests.tiers import first

BATCH = 8
TWO = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"
SHORT = "method.client.pretrain_epochs=1"
METHODS = {
    "fedmmkt": ["method.variant=unimodal", f"method.client.batch={BATCH}", SHORT],
    "feddfa": ["method=feddfa", f"method.client.batch={BATCH}", f"method.client.distill_batch={BATCH}", SHORT],
    "fedktl": ["method=fedktl", TWO, "method.client.batch=3"],  # one image of each of four classes
    "creamfl": ["method=creamfl", f"method.client.batch={BATCH}", f"method.client.public_batch={BATCH}", SHORT],
}


def test_rows_are_changed_when_they_are_read() -> None:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1)
    read: list[int] = []
    seen = Changed(images, lambda some: (read.append(len(some)), pixels.scaled(some))[1])
    assert len(seen) == 10 and not read
    assert torch.equal(seen[torch.tensor([3, 1])], pixels.scaled(images)[[3, 1]]) and read == [2]
    assert torch.equal(torch.cat(list(seen.split(4))), pixels.scaled(images)) and read == [2, 4, 4, 2]


@pytest.mark.parametrize("given", first(METHODS.values()), ids=METHODS)
def test_a_run_reads_images_by_batches_and_learns_the_same_bits(given, toy_conf, federated, tmp_path, monkeypatch):
    """The twin makes floats of all images at once."""
    for module, name in ((client_app.client, "EVALUATION_BATCH"), (representing, "LOOK"), (feddfa, "EVALUATION_BATCH")):
        monkeypatch.setattr(module, name, BATCH)

    def run(name: str, kind: Callable) -> tuple[list, dict[str, dict[str, torch.Tensor]]]:
        for module in (client_app.client, stored_images):
            monkeypatch.setattr(module, "Changed", kind)
        out = Path(federated(toy_conf(*given, f"out={tmp_path / name}")))
        assert not [e for e in map(json.loads, (out / "ledger.jsonl").read_text().splitlines()) if e["fault"]]
        metrics = [json.loads(line)["metrics"] for line in (out / "rounds.jsonl").read_text().splitlines()]
        kept = sorted((out / "state").rglob("model*.safetensors"))
        return metrics, {str(path.relative_to(out / "state" / name)): load_file(path) for path in kept}

    read: list[tuple[int, int]] = []

    def watched(images: torch.Tensor, change: Callable) -> Changed:
        return Changed(images, lambda some: (read.append((len(some), len(images))), change(some))[1])

    metrics, models = run("by batches", watched)
    assert max(n for n, _ in read) <= BATCH and any(n < of for n, of in read)
    same_metrics, same_models = run("at once", lambda images, change: change(images))
    assert metrics == same_metrics and models.keys() == same_models.keys() and models
    for path, tensors in models.items():
        assert all(torch.equal(value, same_models[path][name]) for name, value in tensors.items()), path


def test_a_judge_reads_images_in_a_file_by_batches(tiny_models_judge, monkeypatch) -> None:
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = stored_images.Pictures(16, limit=1)
    for image in images:
        pictures.append(image.permute(1, 2, 0).numpy())
    judge, read = Judge(tiny_models_judge, batch=8), []
    get = stored_images.StoredImages.__getitem__
    monkeypatch.setattr(
        stored_images.StoredImages, "__getitem__", lambda x, which: (read.append(found := get(x, which)), found)[1]
    )
    assert torch.equal(judge.predict(pictures.images()), judge.predict(images))
    assert [len(some) for some in read] == [8, 8, 4]


@pytest.fixture
def tiny_models_judge() -> str:
    from florilegium.contract.tiny_models import tiny_models

    return str(tiny_models()["judge"])
