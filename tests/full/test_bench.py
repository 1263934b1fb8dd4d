"""The benchmarks of full-size models run through on a CPU with small ones, and the full sizes are what they say."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from bench import gpu


def test_the_whole_table_is_measured(tmp_path, monkeypatch) -> None:
    out = tmp_path / "figures.json"
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--tiny", "--no-compile", "--device", "cpu", "--dtype", "float32", "--out", str(out)]
    )
    gpu.main()
    found = json.loads(out.read_text())["figures"]
    assert list(found) == [
        "bare synthesis", "our synthesis", "bare features", "our features", "decoder call", "tuning, LoRA 16",
        "tuning, whole decoder",
    ]  # fmt: skip
    assert found["tuning, whole decoder"]["of_trained"] == pytest.approx(2.0)  # weights and their average
    assert all(figures["images_per_s"] > 0 for name, figures in found.items() if "synthesis" in name)


def test_the_pipeline_has_the_size_of_stable_diffusion(tmp_path, monkeypatch) -> None:
    """On the meta device: 860 M weights in the U-Net and 84 M in the VAE, as the original's."""
    import diffusers

    sizes = {}

    def count(pipe, folder) -> None:
        sizes.update({name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in ("unet", "vae")})

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "save_pretrained", count)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "to", lambda pipe, **how: pipe)
    with torch.device("meta"):
        gpu.write_full(tmp_path)
    assert sizes == {"unet": 859_520_964, "vae": 83_653_863}
