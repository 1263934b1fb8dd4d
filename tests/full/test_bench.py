"""The benchmarks of full-size models run through on a CPU with small ones, and the full sizes are what they say."""

from __future__ import annotations

import json
from argparse import Namespace

import diffusers
import pytest
import torch

from bench import gpu, gpu_models


@pytest.mark.long
def test_a_part_measures_each_of_its_figures(tmp_path) -> None:
    given = Namespace(tiny=True, device="cpu", dtype="float32", model=None, folder=tmp_path, limit=600.0)
    given.batch = given.steps = given.tuning_batch = given.features_batch = 2
    given.features_side, found = 64, {}
    for part in ("plain", "tuning"):
        given.report = tmp_path / f"{part}.json"
        gpu.measure_part(given, part)
        found |= json.loads(given.report.read_text())
    assert list(found) == [
        "bare synthesis", "our synthesis", "bare features", "our features", "decoder call",
        "decoder call, channels last", "tuning, LoRA 16", "tuning, whole", "tuning, whole, int8",
    ]  # fmt: skip
    assert not [figures["error"] for figures in found.values() if "error" in figures]
    assert found["tuning, whole"]["of_trained"] == pytest.approx(2.0)  # weights and their average
    assert all(figures["images_per_s"] > 0 for name, figures in found.items() if "synthesis" in name)


@pytest.mark.parametrize(
    ("write", "pipeline", "unet"),
    [
        (gpu_models.write_sd15, "StableDiffusionPipeline", 859_520_964),
        (gpu_models.write_sdxl, "StableDiffusionXLPipeline", 2_567_463_684),
    ],
)
def test_the_pipelines_have_the_published_sizes(tmp_path, monkeypatch, write, pipeline, unet) -> None:
    """On the meta device: 860 M and 2.6 G weights in the U-Net, 84 M in the VAE, as the originals'."""
    sizes = {}

    def count(pipe, folder) -> None:
        sizes.update({name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in ("unet", "vae")})

    monkeypatch.setattr(getattr(diffusers, pipeline), "save_pretrained", count)
    monkeypatch.setattr(getattr(diffusers, pipeline), "to", lambda pipe, **how: pipe)
    with torch.device("meta"):
        write(tmp_path)
    assert sizes == {"unet": unet, "vae": 83_653_863}
