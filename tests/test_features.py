"""What the frozen decoder sees: input range, noise levels, hooks, the early end, the projection. No downloads."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from florilegium import assets
from florilegium.config.diffusion import DiffusionSettings, FeatureSettings
from florilegium.contract.tiny_models import SIDE, WIDTH, tiny_models, write_diffusion
from florilegium.diffusion.features import FeatureExtractor
from florilegium.diffusion.projection import Projection, pooled, principal_axes

PROMPTS = ["", "a photo of a cat", "a photo of a dog"]


def extractor(place: str | None = None, **features: object) -> FeatureExtractor:
    given = {"layers": [1, 2], "dims": [4, 4], "calibration": 500, "batch": 8, **features}
    return FeatureExtractor(
        place or str(tiny_models()["model"]), DiffusionSettings(steps=2, features=FeatureSettings(**given))
    )


def pictures(count: int, side: int = SIDE, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=random)


IMAGES, IDS = pictures(12), torch.arange(100, 112)
WHICH = torch.tensor([[0, 1, 2]]).repeat(12, 1)


@pytest.fixture(scope="module")
def tiny() -> FeatureExtractor:
    return extractor()


@pytest.fixture(scope="module")
def projection(tiny: FeatureExtractor) -> Projection:
    return tiny.fit(IMAGES, IDS, seed=0)


# -- input and noise -------------------------------------------------------------------------------------------------


def test_a_white_image_becomes_plus_one_and_a_black_one_minus_one(tiny: FeatureExtractor, monkeypatch) -> None:
    """The released transform divides by 255 twice, so that its Stable Diffusion sees an almost black image."""
    seen = []
    encode = tiny.pipe.vae.encode
    monkeypatch.setattr(tiny.pipe.vae, "encode", lambda x: (seen.append(x), encode(x))[1])
    black_and_white = torch.stack([torch.zeros(3, SIDE, SIDE), torch.full((3, SIDE, SIDE), 255.0)]).to(torch.uint8)
    tiny._latents(black_and_white, torch.arange(2), seed=0)
    assert seen[0][0].unique().tolist() == [-1.0] and seen[0][1].unique().tolist() == [1.0]


def test_the_vae_sees_the_size_of_the_settings() -> None:
    other = extractor(size=24)
    assert other.native == 24 and tuple(other._latents(IMAGES[:2], IDS[:2], 0).shape) == (2, 4, 12, 12)
    assert tuple(extractor()._latents(pictures(2, side=20), IDS[:2], 0).shape) == (2, 4, 8, 8)


@pytest.mark.parametrize(
    "t, kept, signal, noise",
    [  # section 2.3 of the method notes: SD's own schedule
        (0, 0.9992, 0.9996, 0.0292),
        (50, 0.9516, 0.9755, 0.2201),
        (100, 0.8942, 0.9456, 0.3252),
        (150, 0.8278, 0.9098, 0.4150),
        (261, 0.6557, 0.8097, 0.5868),
        (300, 0.5905, 0.7684, 0.6399),
        (500, 0.2763, 0.5257, 0.8507),
        (999, 0.0047, 0.0683, 0.9977),
    ],
)
def test_noise_of_stable_diffusions_schedule(tiny, t: int, kept: float, signal: float, noise: float) -> None:
    ids = torch.arange(2000)
    ones, zeros = torch.ones(2000, 4, 2, 2), torch.zeros(2000, 4, 2, 2)
    assert float(tiny.pipe.scheduler.alphas_cumprod[t]) == pytest.approx(kept, abs=6e-5)
    drawn = tiny._noisy(zeros, ids, t, seed=0)[0]
    assert torch.allclose(tiny._noisy(ones, ids, t, seed=0)[0] - drawn, torch.tensor(signal), atol=5e-5)
    assert float(drawn.std()) == pytest.approx(noise, rel=0.02) and abs(float(drawn.mean())) < 0.02 * noise + 1e-3
    eps = drawn / (1 - tiny.pipe.scheduler.alphas_cumprod[t]).sqrt()
    assert torch.allclose(tiny.pipe.scheduler.add_noise(ones, eps, torch.tensor(t)), drawn + signal, atol=1e-4)


def test_noise_is_the_images_own(tiny: FeatureExtractor) -> None:
    latents = torch.zeros(3, 4, 8, 8)
    one = tiny._noisy(latents, torch.tensor([7, 8, 7]), 300, seed=0)[0]
    assert torch.equal(one[0], one[2]) and not torch.equal(one[0], one[1])
    assert torch.equal(tiny._noisy(latents[:1], torch.tensor([8]), 300, seed=0)[0, 0], one[1])
    assert not torch.equal(tiny._noisy(latents[:1], torch.tensor([8]), 300, seed=1)[0, 0], one[1])


# -- hooks -----------------------------------------------------------------------------------------------------------


def test_maps_have_the_shapes_of_the_up_blocks(tiny: FeatureExtractor) -> None:
    maps = tiny._maps(torch.randn(1, 3, 4, 8, 8), 300, tiny._text(PROMPTS))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {"up1": (3, 64, 16), "up2": (3, 64, 8)}
    assert not any(m.requires_grad for m in maps.values())


def test_maps_are_what_the_whole_unet_computes(tiny: FeatureExtractor) -> None:
    noisy, text, seen = torch.randn(3, 4, 8, 8), tiny._text(PROMPTS), []
    handle = tiny.pipe.unet.up_blocks[1].register_forward_hook(lambda m, i, output: seen.append(output))
    with torch.no_grad():
        tiny.pipe.unet(noisy, 300, text.tokens)
    handle.remove()
    assert torch.equal(tiny._maps(noisy[None], 300, text)["up2"], seen[0].permute(0, 2, 3, 1).flatten(1, 2))


def test_the_unet_ends_with_the_last_wanted_block() -> None:
    ran = []
    short = extractor(layers=[1], dims=[4])
    for name in ("up_blocks.1", "conv_out"):
        short.pipe.unet.get_submodule(name).register_forward_pre_hook(lambda m, i, name=name: ran.append(name))
    projection = short.fit(IMAGES, IDS, 0)
    short.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, 0)
    assert not ran and not any(m._forward_hooks for m in short.pipe.unet.up_blocks)


def test_every_layer_changes_the_features(tiny: FeatureExtractor, projection: Projection, monkeypatch) -> None:
    """The released fusion puts its second layer in the place of the third, so the last one never counts."""
    before = tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, 0)
    called = tiny._called
    for k, name in enumerate(("up1", "up2")):
        monkeypatch.setattr(
            tiny,
            "_called",
            lambda *a, name=name: {n: m + 3 * m.roll(1, -1) if n == name else m for n, m in called(*a).items()},
        )
        other = tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, 0)
        mine = torch.zeros(8, dtype=torch.bool)
        mine[4 * k : 4 * k + 4] = True
        assert ((other - before).abs().amax((0, 1)) > 1e-3).tolist() == mine.tolist()


def test_four_up_blocks_of_stable_diffusions_plan(tmp_path) -> None:
    """Layers 2, 3 and 4 of a four-block U-Net: channels 4:2:1 and sides 2, 4, 4 of a 4 x 4 latent, as measured."""
    deep = extractor(
        str(write_diffusion(tmp_path / "sd", channels=(8, 16, 32, 32))), layers=[2, 3, 4], dims=[8, 4, 4], size=8
    )
    maps = deep._maps(torch.randn(1, 2, 4, 4, 4), 300, deep._text(["a", "b"]))
    assert {n: tuple(m.shape[1:]) for n, m in maps.items()} == {"up2": (4, 32), "up3": (16, 16), "up4": (16, 8)}
    p = deep.fit(pictures(20), torch.arange(20), 0)
    assert p.width == 16 and tuple(deep.conditional(IMAGES, IDS, PROMPTS, WHICH, p, 0).shape) == (12, 3, 16)


# -- features --------------------------------------------------------------------------------------------------------


def test_features_are_deterministic_without_gradient_and_counted(tiny, projection: Projection) -> None:
    before, told = tiny.passes, []
    one = tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, 0, lambda *news: told.append(news))
    assert tuple(one.shape) == (12, 3, 8) and one.dtype == torch.float32 and not one.requires_grad
    assert tiny.passes - before == 36 and told[-1] == (36, 36)
    assert torch.equal(one, tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, 0))
    assert not torch.allclose(one, tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, 1))
    assert not any(
        p.requires_grad for m in (tiny.pipe.unet, tiny.pipe.vae, tiny.pipe.text_encoder) for p in m.parameters()
    )
    assert torch.equal(one, tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, Projection.of(projection.tensors()), 0))


def test_a_row_is_that_of_its_own_image_and_prompt(tiny, projection: Projection) -> None:
    whole = tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, 0)
    mixed = torch.tensor([[2, 0], [1, 1]])
    some = tiny.conditional(IMAGES[[5, 9]], IDS[[5, 9]], PROMPTS, mixed, projection, 0)
    expected = torch.stack([whole[5, [2, 0]], whole[9, [1, 1]]])
    assert torch.allclose(some, expected, atol=1e-4)
    assert (whole[:, 1] - whole[:, 2]).abs().max() > 1e-3  # the prompt changes what is seen


def test_one_encoding_serves_all_prompts_and_a_prompt_is_encoded_once(tiny, projection, monkeypatch) -> None:
    encoded, said = [], []
    encode, encode_prompt = tiny.pipe.vae.encode, tiny.pipe.encode_prompt
    monkeypatch.setattr(tiny.pipe.vae, "encode", lambda x: (encoded.append(len(x)), encode(x))[1])
    monkeypatch.setattr(tiny.pipe, "encode_prompt", lambda p, *a: (said.extend(p), encode_prompt(p, *a))[1])
    tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, 0)
    assert sum(encoded) == 12 and said == PROMPTS


def test_a_condition_is_added_to_every_token(tiny, projection: Projection) -> None:
    plain = tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, 0)
    zero = tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, 0, condition=torch.zeros(12, WIDTH))
    moved = tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, 0, condition=torch.eye(12, WIDTH))
    assert torch.equal(plain, zero) and ((plain - moved).abs().amax((1, 2)) > 1e-4).all()


def test_an_ensemble_averages_maps_of_several_draws() -> None:
    two = extractor(ensemble=2)
    noisy = two._noisy(two._latents(IMAGES[:1], IDS[:1], 0), IDS[:1], 300, 0)
    text = two._text([""])
    single = [two._called(draw, 300, text)["up2"] for draw in noisy]
    assert len(single) == 2 and not torch.equal(*single)
    assert torch.allclose(two._maps(noisy, 300, text)["up2"], (single[0] + single[1]) / 2)
    two.passes = 0
    two.conditional(IMAGES, IDS, PROMPTS, WHICH, two.fit(IMAGES, IDS, 0), 0)
    assert two.passes == 2 * (12 + 36)


def test_the_posterior_may_be_drawn() -> None:
    mean, drawn = extractor(), extractor(posterior="sample")
    latents = drawn._latents(IMAGES, IDS, 0)
    assert torch.equal(latents, drawn._latents(IMAGES, IDS, 0))
    assert not torch.equal(latents, mean._latents(IMAGES, IDS, 0))


def test_the_version_tells_what_changes_features() -> None:
    base, place = extractor(), str(tiny_models()["model"])
    others = [
        extractor(timestep=100),
        extractor(layers=[2], dims=[4]),
        extractor(pool="rms"),
        extractor(size=24),
        extractor(posterior="sample"),
        extractor(ensemble=2),
        extractor(pca="per_batch"),
        FeatureExtractor(place, replace(base.settings, dtype="bfloat16")),
    ]
    same = [extractor(batch=3), extractor(calibration=20), extractor(dims=[5, 3])]  # the last is the projection's
    assert len({x.version for x in (base, *others)}) == 9
    assert {x.version for x in same} == {base.version}


def test_levels_and_texts(tiny: FeatureExtractor) -> None:
    levels = tiny.levels(IMAGES, IDS, timestep=150, seed=0)
    assert {name: tuple(x.shape) for name, x in levels.items()} == {"up1": (12, 16), "up2": (12, 8), "vae": (12, 256)}
    latents = tiny._latents(IMAGES, IDS, 0)
    assert torch.allclose(levels["vae"], latents.flatten(1))  # 8 x 8 latents stay as they are
    maps = tiny._maps(tiny._noisy(latents, IDS, 150, 0), 150, tiny._text([""]).expand(12))
    assert torch.allclose(levels["up1"], maps["up1"].mean(1), atol=1e-5)
    texts = tiny.text(PROMPTS)
    assert tuple(texts.shape) == (3, WIDTH) and (texts[1] - texts[2]).abs().max() > 1e-3
    assert tuple(tiny.text(PROMPTS, pooled=False).shape) == (3, 16, WIDTH)


def test_the_embedded_model_sees_classes_in_its_features() -> None:
    """A nearest class mean on the mini model's features of real images does better than chance by far."""
    from florilegium.config import composition
    from florilegium.data.datasets import held_out

    conf = composition.compose(["data=fashion", "diffusion=mini"])
    mini = FeatureExtractor(
        str(assets.path("models", conf.diffusion.model)),
        composition.typed(DiffusionSettings, conf.diffusion, "diffusion"),
    )
    rows = held_out(conf.data, "validation", "image")
    images, ids, labels = rows.images[:256], rows.ids[:256], rows.labels[:256]
    p = mini.fit(images, ids, seed=0)
    assert p.width == 128 and min(p.explained.values()) > 0.8 and mini.passes == 256
    z = mini.conditional(images, ids, [""], torch.zeros(256, 1, dtype=torch.int64), p, 0)[:, 0]
    means = torch.stack([z[:128][labels[:128] == c].mean(0) for c in range(10)])
    assert (torch.cdist(z[128:], means).argmin(1) == labels[128:]).float().mean() > 0.4


# -- projection ------------------------------------------------------------------------------------------------------


def test_principal_axes_by_hand() -> None:
    """Points on the line (3, 4) / 5 around (1, 2), and a fifth as far off it."""
    along, across = torch.tensor([0.6, 0.8]), torch.tensor([-0.8, 0.6])
    tokens = torch.tensor([1.0, 2.0]) + torch.stack([5 * along, -5 * along, across, -across])
    axes = principal_axes(tokens, 2)
    assert torch.allclose(axes.mean, torch.tensor([1.0, 2.0]))
    assert torch.allclose(axes.components, torch.stack([along, -across]), atol=1e-6)  # the largest entry is positive
    assert torch.allclose(axes.explained, torch.tensor([25 / 26, 1 / 26]))


def test_pools_by_hand() -> None:
    x = torch.tensor([[[3.0, -1.0], [4.0, 1.0]]])  # two positions
    assert pooled(x, "l2norm").tolist() == [[5.0, pytest.approx(math.sqrt(2))]]
    assert pooled(x, "rms").tolist() == [[pytest.approx(5 / math.sqrt(2)), 1.0]]
    assert pooled(x, "gap").tolist() == [[3.5, 0.0]]


def test_the_l2_pool_loses_a_components_sign(projection: Projection) -> None:
    maps = {"up1": torch.randn(5, 64, 16), "up2": torch.randn(5, 64, 8)}
    flipped = {name: -value if name.endswith("components") else value for name, value in projection.tensors().items()}
    assert torch.equal(projection(maps, "l2norm"), Projection.of(flipped)(maps, "l2norm"))
    assert torch.equal(projection(maps, "gap"), -Projection.of(flipped)(maps, "gap"))
    assert (projection(maps, "l2norm") >= 0).all()


def test_a_projection_is_the_same_when_it_is_fitted_again(tiny, projection: Projection) -> None:
    again = tiny.fit(IMAGES, IDS, seed=0)
    assert again.version == projection.version == Projection.of(projection.tensors()).version
    assert tiny.fit(IMAGES, IDS, seed=1).version != again.version
    assert projection.width == 8 and all(0 < share <= 1.0001 for share in projection.explained.values())


def test_too_few_tokens_or_channels_fall_back_to_a_random_projection_and_say_so(caplog, monkeypatch) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    few = Projection.fitted({"up1": torch.randn(3, 16), "up9": torch.randn(500, 3)}, [8, 5], seed=0)
    assert "layer up1 wants 8 components, but has 3 tokens" in caplog.text and "layer up9 wants 5" in caplog.text
    assert few.explained == {"up1": 0.0, "up9": 0.0} and few.width == 13
    again = Projection.fitted({name: axes.mean[None] for name, axes in few.axes.items()}, [8, 5], seed=0)
    assert again.version == few.version  # drawn from the seed alone
    x = torch.randn(4000, 1, 16)
    kept = Projection.fitted({"up1": x[:3, 0]}, [8], 0)({"up1": x}, "gap").square().sum(1)
    assert float(kept.mean()) == pytest.approx(float((x[:, 0] - x[:3, 0].mean(0)).square().sum(1).mean()), rel=0.5)


def test_axes_of_each_batch_are_the_released_form() -> None:
    each = extractor(pca="per_batch", batch=8)
    p = each.fit(IMAGES, IDS, 0)
    whole = each.conditional(IMAGES, IDS, PROMPTS, WHICH, p, 0)
    alone = each.conditional(IMAGES[:8], IDS[:8], PROMPTS, WHICH[:8], p, 0)
    fewer = each.conditional(IMAGES[:4], IDS[:4], PROMPTS, WHICH[:4], p, 0)
    assert torch.equal(whole[:8], alone) and not torch.allclose(whole[:4], fewer, atol=1e-3)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, said",
    [
        ({"layers": [2, 1]}, "layers must be rising"),
        ({"layers": [0, 1]}, "layers must be rising"),
        ({"dims": [4]}, "dims must give one width for each layer"),
        ({"pool": "max"}, "pool must be one of"),
        ({"timestep": 1000}, "timestep must lie"),
        ({"posterior": "mode"}, "posterior must be"),
        ({"ensemble": 0}, "ensemble must lie"),
        ({"pca": "none"}, "pca must be one of"),
    ],
)
def test_settings_are_refused_by_name(bad: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FeatureSettings(**{"layers": [1, 2], "dims": [4, 4], **bad})


def test_bad_requests_are_refused_by_name(tiny: FeatureExtractor, projection: Projection) -> None:
    with pytest.raises(ValueError, match="layer 3, but the decoder of sd has 2 blocks"):
        extractor(layers=[2, 3])
    with pytest.raises(ValueError, match="prompt 3 is asked for, but there are 3"):
        tiny.conditional(IMAGES, IDS, PROMPTS, WHICH + 1, projection, 0)
    with pytest.raises(ValueError, match="12 images, 11 ids"):
        tiny.conditional(IMAGES, IDS[:11], PROMPTS, WHICH, projection, 0)
    with pytest.raises(ValueError, match="the projection was fitted on"):
        tiny.conditional(IMAGES, IDS, PROMPTS, WHICH, extractor(layers=[1], dims=[4]).fit(IMAGES, IDS, 0), 0)
    with pytest.raises(ValueError, match="fitted on no image"):
        tiny.fit(IMAGES[:0], IDS[:0], 0)
    tensors = projection.tensors()
    with pytest.raises(ValueError, match="mean, components, explained for each layer"):
        Projection.of({k: v for k, v in tensors.items() if k != "up2.mean"})
    with pytest.raises(ValueError, match="up1.components is"):
        Projection.of({**tensors, "up1.mean": torch.zeros(5)})
    with pytest.raises(ValueError, match="NaN"):
        Projection.of({**tensors, "up1.mean": tensors["up1.mean"] * float("nan")})


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_too_little_gpu_memory_names_the_batch(part: str, projection: Projection, monkeypatch) -> None:
    def full(*given, **how):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    one = extractor()
    if part == "encoder":
        monkeypatch.setattr(one.pipe.vae, "encode", full)
    else:
        one.pipe.unet.register_forward_pre_hook(full)
    with pytest.raises(MemoryError, match=r"lower diffusion.features.batch \(8\)"):
        one.conditional(IMAGES, IDS, PROMPTS, WHICH, projection, seed=0)
