"""Stable Diffusion 2, XL and 3 behind the verbs of every generator, and as frozen models that look at images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import diffusers
import pytest
import torch

from florilegium import seeds
from florilegium.config.diffusion import DiffusionSettings, FeatureSettings, TuneSettings
from florilegium.diffusion.features import FeatureExtractor
from florilegium.diffusion.load import backend, load
from florilegium.diffusion.noising import Diffusion, Flow
from florilegium.diffusion.tuning import TuneTexts
from tests.full.tiny_pipelines import SIDE, write, write_flow

KINDS = ("two", "xl", "flow")
PROMPTS = ["a red cat.", "a dog.", "a tree.", "a house."]
SEEDS = [11, 22, 33, 44]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pipelines")
    return {kind: write(kind, folder) for kind in KINDS}


def generator(place, **given):
    return load(DiffusionSettings(**{"steps": 3, "guidance": 3.0} | given), place)


def tune(made, rounds=(1, 1), seed=3, **given):
    images = torch.randint(0, 256, (4, 3, 12, 12), generator=seeds.generator("images"), dtype=torch.uint8)
    reps = torch.randn(4, 6, generator=seeds.generator("representations"))
    texts = TuneTexts(PROMPTS, [f"{text} red" for text in PROMPTS])
    settings = TuneSettings(**{"lr": 1e-2, "epochs": 2, "batch": 2} | given)
    return made.finetune(images, texts, reps, settings, rounds=rounds, seed=seed)


def far(one, two) -> int:
    return int((one.int() - two.int()).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_the_plain_pipeline(kind, places) -> None:
    """Also one by one: an image depends on its own prompt and seed."""
    made = generator(places[kind])
    images = made.synthesize(PROMPTS, SEEDS)
    assert images.shape == (4, 3, SIDE, SIDE) and made.native == SIDE
    pipe = diffusers.DiffusionPipeline.from_pretrained(places[kind])
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    plain = pipe(PROMPTS, generator=noise, num_inference_steps=3, guidance_scale=3.0, output_type="pt").images
    assert far((plain * 255).round(), images) <= 1
    assert far(made.synthesize(PROMPTS[1:2], SEEDS[1:2]), images[1:2]) <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("merge", ["token", "add", "time"])
def test_tuning_moves_the_decoder_alone_and_resumes_exactly(kind, merge, places) -> None:
    made = generator(places[kind])
    frozen = [part for name, part in made.pipe.components.items() if name.startswith(("vae", "text_encoder")) and part]
    before = [[p.clone() for p in part.parameters()] for part in frozen]
    start = [p.clone() for p in made.decoder.parameters()]
    metrics = tune(made, rounds=(1, 2), merge=merge, omission=0.5)
    assert metrics["t2i/steps"] == 4 and math.isfinite(metrics["t2i/loss"])
    assert all(
        torch.equal(a, b)
        for old, part in zip(before, frozen, strict=True)
        for a, b in zip(old, part.parameters(), strict=True)
    )
    moved = [not torch.equal(a, b) for a, b in zip(start, made.decoder.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)
    again = generator(places[kind])
    again.restore(*made.state())
    tune(made, (2, 2), 4, merge=merge), tune(again, (2, 2), 4, merge=merge)
    assert all(torch.equal(a, b) for a, b in zip(made.state()[0].values(), again.state()[0].values(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_load_in_a_plain_pipeline(kind, places, tmp_path) -> None:
    """The file is diffusers' own: `load_lora_weights` on the untuned pipeline gives our images."""
    made = generator(places[kind])
    untuned = made.synthesize(PROMPTS, SEEDS)
    tune(made, lora=2, text="label")
    ours = made.synthesize(PROMPTS, SEEDS)
    assert far(ours, untuned) > 3
    made.save(tmp_path / "tuned")
    pipe = diffusers.DiffusionPipeline.from_pretrained(places[kind])
    pipe.load_lora_weights(tmp_path / "tuned/lora")
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    theirs = pipe(PROMPTS, generator=noise, num_inference_steps=3, guidance_scale=3.0, output_type="pt").images
    assert far((theirs * 255).round(), ours) <= 1
    merged = generator(str(tmp_path / "tuned"))
    assert far(merged.synthesize(PROMPTS, SEEDS), ours) <= 1
    assert type(merged.pipe) is type(pipe)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_weights_are_held_as_such_and_draw_nearly_the_same(kind, places) -> None:
    made = generator(places[kind], dtype="bfloat16")
    assert {p.dtype for p in made.decoder.parameters()} == {torch.bfloat16}
    exact = generator(places[kind]).synthesize(PROMPTS, SEEDS)
    assert (made.synthesize(PROMPTS, SEEDS).int() - exact.int()).abs().float().mean() < 6
    assert math.isfinite(tune(made, lora=2)["t2i/loss"]) and made.synthesize(PROMPTS, SEEDS).shape == exact.shape


def test_the_velocity_of_stable_diffusion_2_by_hand(places) -> None:
    """Schedule with a_t = 0.64: v = 0.8 eps - 0.6 x_0, so 0.8 * 2 - 0.6 * 1 = 1 and x_t = 0.8 * 1 + 0.6 * 2 = 2."""
    noising = generator(places["two"]).tuner.noising
    assert isinstance(noising, Diffusion) and noising.config.prediction_type == "v_prediction"
    noising.schedule.alphas_cumprod = torch.full((1000,), 0.64)
    start, noise, time = torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), 2.0), torch.tensor([7])
    torch.testing.assert_close(noising.target(start, noise, time), torch.ones(1, 4, 2, 2))
    torch.testing.assert_close(noising.noisy(start, noise, time), torch.full((1, 4, 2, 2), 2.0))


def test_flow_matching_by_hand(places) -> None:
    """s = 0.25: x_s = 0.75 * 4 + 0.25 * 8 = 5, the target is 8 - 4 = 4; shift 3: 3 * 0.25 / (1 + 2 * 0.25) = 0.5.

    Weights at s = 0.5: sigma_sqrt 4, cosmap 2 / (pi (1 - 1 + 0.5)) = 4 / pi.
    """
    noising = generator(places["flow"]).tuner.noising
    assert isinstance(noising, Flow) and noising.shift == 3.0
    start, noise, time = torch.full((1, 8, 2, 2), 4.0), torch.full((1, 8, 2, 2), 8.0), torch.tensor([250.0])
    torch.testing.assert_close(noising.noisy(start, noise, time), torch.full((1, 8, 2, 2), 5.0))
    torch.testing.assert_close(noising.target(start, noise, time), torch.full((1, 8, 2, 2), 4.0))
    assert noising.shifted(torch.tensor(0.25)).item() == pytest.approx(0.5)
    half = torch.tensor([500.0])
    assert noising.weights(half, TuneSettings()) is None
    assert noising.weights(half, TuneSettings(weighting="sigma_sqrt")).item() == pytest.approx(4.0)
    assert noising.weights(half, TuneSettings(weighting="cosmap")).item() == pytest.approx(4 / math.pi)
    drawn = noising.drawn(20_000, torch.Generator().manual_seed(0), TuneSettings())
    assert 0 < drawn.min() and drawn.max() < 1000
    assert drawn.median().item() == pytest.approx(750, abs=10)  # logit-normal's median 1/2, shifted: 3/2 / 2


def test_a_weighted_loss_is_the_mean_of_weight_times_square(places) -> None:
    """Two samples, errors 1 and 2, s = 0.5 and 0.25, weights s ** -2 = 4 and 16: (4 * 1 + 16 * 4) / 2 = 34."""
    tuner = generator(places["flow"]).tuner
    said = torch.stack([torch.ones(8, 2, 2), torch.full((8, 2, 2), 2.0)])
    settings = TuneSettings(weighting="sigma_sqrt")
    loss = tuner._loss(said, torch.zeros_like(said), torch.tensor([500.0, 250.0]), settings)
    assert loss.item() == pytest.approx(34.0)
    assert tuner._loss(said, torch.zeros_like(said), torch.tensor([500.0, 250.0]), TuneSettings()).item() == 2.5


def test_xl_is_told_the_true_and_the_drawn_size(places) -> None:
    """Images of 12 pixels, drawn at 16, not cropped; the empty text is zeros, as the model's configuration says."""
    made = generator(places["xl"])
    seen = []
    made.decoder.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    tune(made, epochs=1)
    assert all(call["added_cond_kwargs"]["time_ids"].tolist() == [[12, 12, 0, 0, 16, 16]] * 2 for call in seen)
    texts = made.view.texts(made.pipe, ["", "a cat."])
    assert texts.sizes.tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    assert texts.tokens.shape == (2, 16, 40) and texts.pooled.shape == (2, 24)
    assert not texts.tokens[0].any() and not texts.pooled[0].any() and texts.tokens[1].any()


@pytest.mark.parametrize("kind, scaled", [("two", 0.18215), ("xl", 0.13025), ("flow", (1 - 0.0609) * 1.5305)])
def test_latents_follow_the_autoencoders_own_numbers(kind, scaled, places) -> None:
    made = generator(places[kind])
    found = made.view.scaled(made.pipe, torch.ones(1, made.decoder.config.in_channels, 1, 1))
    torch.testing.assert_close(found, torch.full_like(found, scaled))


@pytest.mark.parametrize(
    "kind, shapes", [("xl", {"up1": (64, 16), "up2": (64, 8)}), ("flow", {"block1": (16, 16), "block3": (16, 16)})]
)
def test_features_are_those_of_the_decoder_s_blocks(kind, shapes, places) -> None:
    layers = [int(name[-1]) for name in shapes]
    features = FeatureSettings(layers=layers, dims=[4, 4], calibration=100, batch=2)
    extractor = FeatureExtractor(places[kind], DiffusionSettings(features=features))
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=seeds.generator("images"), dtype=torch.uint8)
    ids = torch.arange(4)
    maps = extractor._maps(
        extractor._noisy(extractor._latents(images, ids, 0), ids, 300, 0), 300, extractor._text(PROMPTS)
    )
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == shapes
    projection = extractor.fit(images, ids, seed=0)
    found = extractor.conditional(images, ids, ["", "a red cat"], torch.tensor([[0, 1]] * 4), projection, seed=0)
    assert found.shape == (4, 2, 8) and torch.isfinite(found).all() and not torch.equal(found[:, 0], found[:, 1])
    assert extractor.text(["a red cat"]).shape == (1, {"xl": 24, "flow": 40}[kind])


def test_noise_of_a_flow_follows_its_own_path(places) -> None:
    """t = 300: 0.7 * 2 + 0.3 * 1 = 1.7."""
    made = generator(places["flow"])
    noisy = made.view.noisy(made.pipe, torch.full((1, 8, 2, 2), 2.0), torch.ones(1, 8, 2, 2), 300)
    torch.testing.assert_close(noisy, torch.full((1, 8, 2, 2), 1.7))


def test_the_third_encoder_may_be_missing(places, tmp_path) -> None:
    """Its part of the text is zeros then; the 256 positions stay."""
    with_it = generator(places["flow"])
    made = generator(str(write_flow(tmp_path / "two-encoders", third=False)))
    tokens = made.view.texts(made.pipe, PROMPTS).tokens
    assert made.pipe.text_encoder_3 is None and tokens.shape == with_it.view.texts(with_it.pipe, PROMPTS).tokens.shape
    assert not tokens[:, 16:].any() and made.synthesize(PROMPTS[:1], SEEDS[:1]).shape == (1, 3, SIDE, SIDE)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_one_line(places, tmp_path) -> None:
    with pytest.raises(ValueError, match="diffusion.scheduler: ddim does not fit a model with flow matching"):
        generator(places["flow"], scheduler="ddim")
    with pytest.raises(ValueError, match="tuning.weighting: cosmap is for models with flow matching"):
        tune(generator(places["two"]), weighting="cosmap")
    with pytest.raises(ValueError, match="layer 4, but the decoder of tiny-flow has 3 blocks"):
        FeatureExtractor(places["flow"], DiffusionSettings(features=FeatureSettings(layers=[4], dims=[4])))
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="is a FluxPipeline; there are backends for StableDiffusionPipeline") as raised:
        backend(str(other))
    assert "\n" not in str(raised.value)
    assert not Path(other, "unet").exists()
