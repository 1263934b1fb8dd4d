"""The embedded mini GLIDE: its card's facts hold, it draws, and a federation of one round is tuned with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from florilegium.config import composition
from florilegium.config.diffusion import DiffusionSettings
from florilegium.diffusion.glide.generator import GlideGenerator
from florilegium.diffusion.glide.pipeline import GlidePipeline
from florilegium.diffusion.glide.tokenizer import tokenize
from florilegium.diffusion.load import load

PLACE = Path(__file__).parents[2] / "assets/models/mini-glide"


def test_it_is_small_and_reads_every_word() -> None:
    """At most 5 MB in all; a prompt of a class is read whole, also with a letter that no prompt of its training had."""
    assert sum(path.stat().st_size for path in PLACE.rglob("*") if path.is_file()) <= 5_000_000
    pipe = GlidePipeline.from_pretrained(PLACE)
    ids, mask = tokenize(pipe.tokenizer, ["A picture of a sea animal.", "ñ"])
    assert ids.shape == (2, 24) and pipe.tokenizer.decode(ids[0][mask[0]]) == "a picture of a sea animal."
    assert pipe.tokenizer.decode(ids[1][mask[1]]) == "ñ" and pipe.upsampler is None
    assert pipe.unet.config.sample_size == 16 and pipe.text_encoder.config.positions == 24


@pytest.mark.long
def test_a_fresh_process_opens_it() -> None:
    """diffusers opens a part of a pipeline only when the module of its class is imported."""
    code = f"from florilegium.diffusion.glide.pipeline import GlidePipeline as G; G.from_pretrained({str(PLACE)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-500:]


def test_its_settings_draw_pictures_of_the_clients_size() -> None:
    """On white, as the pictures it learnt from: the corners of most pictures are bright."""
    conf = composition.compose(["diffusion=mini_glide"])
    assert conf.diffusion.model == "mini-glide" and conf.diffusion.scheduler is None and conf.tuning.variational
    made = load(conf.diffusion, str(PLACE))
    assert isinstance(made, GlideGenerator)
    images = made.synthesize(["A picture of a bird."] * 4, [1, 2, 3, 4])
    assert images.shape == (4, 3, 32, 32)
    assert images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean() > 150
    assert images.float().flatten(1).std(1).min() > 10
    other = made.synthesize(["A picture of a building."], [1])
    assert (other[0].int() - images[0].int()).abs().float().mean() > 3  # the text is heard


def test_one_round_with_it(toy_conf, federated) -> None:
    given = ["diffusion.model=mini-glide", "tuning.variational=true", "diffusion.size=16", "diffusion.steps=2"]
    small = ["method.server.samples=8", "tuning.steps=1", "tuning.batch=4", "method.client.pretrain_epochs=1"]
    run = federated(toy_conf("method=fedmmkt", "evaluation.images_per_class=1", *given, *small))
    last = json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])
    assert last["round"] == 1 and last["metrics"]["t2i/steps"] == 1 and "t2i/accuracy" in last["metrics"]
    tuned, before = (GlidePipeline.from_pretrained(place).unet for place in (run / "model", PLACE))
    assert not torch.equal(tuned.conv_in.weight, before.conv_in.weight.to(tuned.dtype))
    assert load(DiffusionSettings(size=16, steps=2), str(run / "model")).synthesize(["a cat"], [0]).shape[-1] == 16
