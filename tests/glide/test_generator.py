"""GLIDE behind the verbs of every generator, and as a frozen model that looks at images."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from florilegium import seeds
from florilegium.config.diffusion import DiffusionSettings, FeatureSettings, TuneSettings
from florilegium.diffusion.features import FeatureExtractor
from florilegium.diffusion.glide.generator import GlideGenerator
from florilegium.diffusion.glide.pipeline import GlidePipeline, enlarged
from florilegium.diffusion.load import backend, load
from florilegium.diffusion.tuning import TuneTexts

PROMPTS = ["a red cat", "a cat", "red", "cat a red"]
SEEDS = [5, 6, 7, 8]


@pytest.fixture
def place(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "tiny-glide")
    return str(tmp_path / "tiny-glide")


def generator(place, **given) -> GlideGenerator:
    settings = DiffusionSettings(**{"steps": 4, "upsample_steps": "3", "guidance": 3.0, "batch": 2} | given)
    return load(settings, place)


def tuned(made, **given):
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=seeds.generator("images"), dtype=torch.uint8)
    reps = torch.randn(4, 8, generator=seeds.generator("representations"))
    texts = TuneTexts(PROMPTS, [f"{text}, a cat" for text in PROMPTS])
    settings = TuneSettings(**{"lr": 1e-3, "epochs": 2, "batch": 2} | given)
    return made.finetune(images, texts, reps, settings, rounds=(1, 2), seed=3)


def test_the_backend_is_the_one_that_the_directory_names(place, tmp_path) -> None:
    assert backend(place).loaded_generator() is GlideGenerator
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="no readable model_index.json"):
        backend(str(tmp_path / "other"))
    (tmp_path / "other/model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(ValueError, match="is a KandinskyPipeline; there are backends for StableDiffusionPipeline"):
        backend(str(tmp_path / "other"))


def test_a_pipeline_opens_as_it_was_saved(pipeline, place) -> None:
    noise = [torch.Generator().manual_seed(1)]
    again = GlidePipeline.from_pretrained(place)
    first = pipeline(["a red cat"], generator=noise, num_inference_steps=3, upsample_steps="3", output_type="pt").images
    noise = [torch.Generator().manual_seed(1)]
    second = again(["a red cat"], generator=noise, num_inference_steps=3, upsample_steps="3", output_type="pt").images
    assert torch.equal(first, second) and first.shape == (1, 3, 32, 32)


def test_an_image_depends_on_its_prompt_seed_and_weights_alone(place) -> None:
    made = generator(place)
    whole = made.synthesize(PROMPTS, SEEDS)
    assert whole.shape == (4, 3, 32, 32) and whole.dtype == torch.uint8 and made.native == 16 and made.side == 32
    alone = generator(place, batch=1).synthesize(PROMPTS[2:3], SEEDS[2:3])
    assert (alone[0].int() - whole[2].int()).abs().max() <= 1  # the last bits of products depend on the batch's size
    assert not torch.equal(made.synthesize(PROMPTS[:1], [9])[0], whole[0])
    small = generator(place, upsample=False)
    assert small.synthesize(PROMPTS[:1], SEEDS[:1]).shape == (1, 3, 16, 16) and small.side == 16
    assert not torch.equal(generator(place, scheduler="ddim").synthesize(PROMPTS[:1], SEEDS[:1])[0], whole[0])


def test_guidance_of_one_asks_the_text_alone(place) -> None:
    made, calls = generator(place), []
    made.pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    made.synthesize(PROMPTS[:2], SEEDS[:2], guidance=1.0)
    made.synthesize(PROMPTS[:2], SEEDS[:2], guidance=2.0)
    assert calls == [2] * 4 + [4] * 4


def test_the_small_image_is_put_on_the_8_bit_grid_before_it_is_enlarged() -> None:
    """0.1 is (0.1 + 1) * 127.5 = 140.25, so 140 / 127.5 - 1; 2 is cut to white."""
    small = torch.tensor([[0.1, 2.0]]).expand(1, 3, 2, 2)
    on_grid = torch.tensor([[140 / 127.5 - 1, 1.0]]).expand(1, 3, 2, 2)
    expected = interpolate(on_grid, (4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(enlarged(small, 4), expected)


def test_fine_tuning_moves_the_decoder_and_nothing_else_and_resumes(place) -> None:
    made = generator(place)
    before = {name: value.clone() for name, value in made.pipe.text_encoder.state_dict().items()}
    up = {name: value.clone() for name, value in made.pipe.upsampler.state_dict().items()}
    metrics = tuned(made)
    assert metrics["t2i/steps"] == 4 and metrics["t2i/loss"] > 0
    assert all(torch.equal(value, before[name]) for name, value in made.pipe.text_encoder.state_dict().items())
    assert all(torch.equal(value, up[name]) for name, value in made.pipe.upsampler.state_dict().items())
    again = generator(place)
    again.restore(*made.state())
    assert torch.equal(again.synthesize(PROMPTS[:2], SEEDS[:2]), made.synthesize(PROMPTS[:2], SEEDS[:2]))
    tuned(made), tuned(again)
    assert all(torch.equal(a, b) for a, b in zip(made.state()[0].values(), again.state()[0].values(), strict=True))


def last_layer(made) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise rows, variance rows) of the last convolution."""
    weight = made.pipe.unet.conv_out.weight.detach()
    return weight[:3].clone(), weight[3:].clone()


def test_the_variance_channels_learn_only_with_the_variational_term(place) -> None:
    for variational in (False, True):
        made = generator(place)
        noise, variance = last_layer(made)
        tuned(made, variational=variational)
        noise_after, variance_after = last_layer(made)
        assert not torch.equal(noise, noise_after)
        assert torch.equal(variance, variance_after) is not variational


def test_the_projection_of_a_text_is_frozen_with_the_text_encoder(place) -> None:
    made = generator(place)
    before = {name: p.detach().clone() for name, p in made.pipe.unet.named_parameters()}
    tuned(made)
    same = {name for name, p in made.pipe.unet.named_parameters() if torch.equal(p, before[name])}
    assert {"class_embedding.weight", "class_embedding.bias"} <= same and "time_embedding.linear_1.weight" not in same


@pytest.mark.parametrize("merge", ["token", "add", "time"])
def test_representations_enter_by_every_operator(place, merge) -> None:
    made = generator(place)
    assert tuned(made, merge=merge, omission=0.5)["t2i/steps"] == 4
    width = {"token": 40, "add": 40, "time": 128}[merge]
    assert made.tuner.projection.out_features == width


def test_adapters_reach_the_ways_by_which_a_text_enters_and_merge_into_what_is_saved(place, tmp_path) -> None:
    made = generator(place)
    tuned(made, lora=2)
    names = {name.split(".lora_")[0].rpartition(".")[2] for name in made.tuner.trained if ".lora_" in name}
    assert {"to_q", "add_k_proj", "add_v_proj"} <= names and "class_embedding" not in names
    made.save(tmp_path / "tuned")
    again = generator(str(tmp_path / "tuned"))
    gap = (again.synthesize(PROMPTS[:1], SEEDS[:1]).int() - made.synthesize(PROMPTS[:1], SEEDS[:1]).int()).abs().float()
    assert gap.mean() < 0.1, "merged adapters round otherwise here and there; the second model enlarges that"
    untuned = generator(place).synthesize(PROMPTS[:1], SEEDS[:1])
    assert (untuned.int() - made.synthesize(PROMPTS[:1], SEEDS[:1]).int()).abs().float().mean() > 10 * gap.mean()
    assert again.pipe.upsampler is not None


def test_features_are_those_of_the_up_blocks_on_pixels(place) -> None:
    features = FeatureSettings(layers=[1, 2], dims=[4, 4], calibration=100, batch=2)
    extractor = FeatureExtractor(place, DiffusionSettings(features=features))
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=seeds.generator("images"), dtype=torch.uint8)
    ids = torch.arange(4)
    projection = extractor.fit(images, ids, seed=0)
    which = torch.tensor([[0, 1]] * 4)
    found = extractor.conditional(images, ids, ["", "a red cat"], which, projection, seed=0)
    assert found.shape == (4, 2, 8) and torch.isfinite(found).all() and extractor.native == 16
    assert not torch.equal(found[:, 0], found[:, 1])
    levels = extractor.levels(images, ids, 100, seed=0)
    assert levels["vae"].shape == (4, 3 * 64) and levels["up1"].shape == (4, 64)
    assert extractor.text(["a red cat"]).shape == (1, 40) and extractor.text(["a"], pooled=False).shape == (1, 12, 40)


def test_given_latents_stand_in_for_the_first_noise(place) -> None:
    made = generator(place, scheduler="ddim", upsample=False)
    latents = torch.stack([torch.randn(made.noise_shape, generator=torch.Generator().manual_seed(s)) for s in (3, 4)])
    assert torch.equal(made.synthesize(["a", "b"], [3, 4], latents=latents), made.synthesize(["a", "b"], [3, 4]))
