"""The generator against facts of the method: what trains, exact omission, named noise, exact resume, export.

FedMMKT section 13, invariant 6: with b = 1 the output is the text-only decoder's; the omission rate is within 3 sigma
of p; only the decoder and the projection change.
"""

import copy
import math
import re
import threading
import time
from functools import partial

import pytest
import torch

from florilegium import preflight
from florilegium.config.composition import SettingsError
from florilegium.config.diffusion import CaptionSettings, DiffusionSettings, TuneSettings
from florilegium.contract.tiny_models import SIDE, WIDTH, tiny_models, write_diffusion
from florilegium.diffusion import threads, tuned
from florilegium.diffusion.captions import Captioner, check_room
from florilegium.diffusion.load import load
from florilegium.diffusion.networks import Network, Texts
from florilegium.diffusion.tuning import TuneData, Tuner, TuneTexts, drawn_batches, drawn_order, learning_rate, predict

D = 24
PROMPTS = ["a red cat.", "a blue dog.", "a tree.", "a house.", "a cat."]
SEEDS = [11, 22, 33, 44, 55]


def generator(**settings):
    return load(DiffusionSettings(**{"steps": 2, **settings}), str(tiny_models()["model"]))


def samples(n=8, width=D):
    random = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (n, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    texts = TuneTexts([f"a {i % 3}." for i in range(n)], [f"a {i % 3}. a red thing" for i in range(n)])
    return images, texts, torch.randn(n, width, generator=random)


def tune(made, settings, rounds=(1, 2), seed=3, reps=True):
    images, texts, representations = samples()
    return made.finetune(images, texts, representations if reps else None, settings, rounds=rounds, seed=seed)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


# -- synthesis -------------------------------------------------------------------------------------------------------


def test_an_image_depends_on_its_own_prompt_and_seed_only():
    made = generator()
    together = made.synthesize(PROMPTS, SEEDS)
    assert together.shape == (5, 3, SIDE, SIDE) and together.dtype == torch.uint8
    alone = torch.cat([made.synthesize([p], [s]) for p, s in zip(PROMPTS, SEEDS, strict=True)])
    turned = made.synthesize(PROMPTS[::-1], SEEDS[::-1]).flip(0)
    for other in (alone, turned, generator(batch=2).synthesize(PROMPTS, SEEDS)):
        assert (together.int() - other.int()).abs().max() <= 1  # rounding of the last bit of a product
    assert not torch.equal(together[4], made.synthesize(PROMPTS[4:], [56])[0])


def test_given_latents_stand_in_for_the_first_noise():
    """Those that the seeds would have drawn give the same images; others give other ones."""
    made = generator()
    latents = torch.stack([torch.randn(made.noise_shape, generator=torch.Generator().manual_seed(s)) for s in SEEDS])
    assert torch.equal(made.synthesize(PROMPTS, SEEDS, latents=latents), made.synthesize(PROMPTS, SEEDS))
    assert not torch.equal(made.synthesize(PROMPTS, SEEDS, latents=latents.flip(0)), made.synthesize(PROMPTS, SEEDS))
    with pytest.raises(ValueError, match="5 prompts but 5 seeds and 4 latents"):
        made.synthesize(PROMPTS, SEEDS, latents=latents[:4])


def test_stochastic_schedulers_draw_from_each_sample_s_own_seed():
    made = generator(scheduler="euler_ancestral", steps=3)
    together = made.synthesize(PROMPTS, SEEDS)
    assert (together[1:2].int() - made.synthesize(PROMPTS[1:2], SEEDS[1:2]).int()).abs().max() <= 1


@pytest.fixture
def four_cores():
    with threads.limited(4):
        yield


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral"])
def test_batches_side_by_side_are_those_of_one_core(scheduler, four_cores):
    """Three batches on four cores: three threads, and the same images bit for bit."""
    made, heard, at_work = generator(batch=2, scheduler=scheduler), [], set()
    made.decoder.register_forward_hook(lambda *_: at_work.add((threading.current_thread(), torch.get_num_threads())))
    drawn = made.synthesize(PROMPTS, SEEDS, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(2, 5), (4, 5), (5, 5)] and torch.get_num_threads() == 4
    assert {count for _, count in at_work} == {1} and threading.main_thread() not in {thread for thread, _ in at_work}
    torch.set_num_threads(1)
    assert torch.equal(made.synthesize(PROMPTS, SEEDS), drawn)
    assert threading.main_thread() in {thread for thread, _ in at_work}


def test_a_small_decoder_takes_one_core_and_a_large_one_or_a_setting_others(four_cores, monkeypatch):
    """Of four cores: four batches of one thread, two of two, one of all. Tuning takes as many threads as one batch."""
    assert [len(generator(**given)._hands(9)) for given in ({}, {"threads": 2}, {"compile": "default"})] == [4, 2, 1]
    assert len(generator()._hands(3)) == 3
    seen = set()
    for made in (generator(), generator(threads=3)):
        made.steps = lambda *_: seen.add(torch.get_num_threads()) or {}
        tune(made, TuneSettings())
    assert seen == {1, 3} and torch.get_num_threads() == 4
    monkeypatch.setattr(tuned, "SMALL", 10)
    large = generator()
    assert large.threads is None and large._hands(9) == [large]


def test_an_error_of_one_batch_is_raised_and_no_further_batch_is_begun(four_cores):
    """Two tools, and the first of a thousand items fails: few others are begun."""
    begun = []

    def work(tool, item):
        begun.append(item)
        if item == 0:
            raise ValueError("no room")
        time.sleep(0.01)

    with pytest.raises(ValueError, match="no room"):
        list(threads.side_by_side(work, ["a", "b"], range(1000), 2))
    assert len(begun) < 100 and torch.get_num_threads() == 4


def test_size_brings_images_to_the_size_that_travels():
    assert generator(size=8).synthesize(PROMPTS[:2], SEEDS[:2]).shape == (2, 3, 8, 8)
    assert generator().synthesize([], []).shape == (0, 3, SIDE, SIDE)


def test_bfloat16_weights_have_float32_ones_beside_them_where_they_train():
    """The frozen parts are bfloat16; the whole decoder trains in float32 and synthesizes in bfloat16."""
    made = generator(dtype="bfloat16")
    assert {p.dtype for part in (made.decoder, made.pipe.vae) for p in part.parameters()} == {torch.bfloat16}
    before = made.synthesize(PROMPTS[:2], SEEDS[:2])
    assert before.shape == (2, 3, SIDE, SIDE)
    assert math.isfinite(tune(made, TuneSettings(epochs=1))["t2i/loss"])
    assert {p.dtype for p in made.decoder.parameters()} == {torch.float32}
    with made.tuner.averaged():
        assert {p.dtype for p in made.decoder.parameters()} == {torch.bfloat16}
    assert not torch.equal(made.synthesize(PROMPTS[:2], SEEDS[:2]), before)


def test_adapters_train_in_float32_beside_frozen_bfloat16_weights():
    made = generator(dtype="bfloat16")
    assert math.isfinite(tune(made, TuneSettings(epochs=1, lora=2, checkpointing=True))["t2i/loss"])
    kinds = {
        (name.split(".")[-3] if "lora_" in name else "frozen", p.dtype) for name, p in made.decoder.named_parameters()
    }
    assert kinds == {("frozen", torch.bfloat16), ("lora_A", torch.float32), ("lora_B", torch.float32)}
    assert made.synthesize(PROMPTS[:2], SEEDS[:2]).shape == (2, 3, SIDE, SIDE)


def test_computing_activations_twice_changes_no_number():
    kept, twice = generator(), generator()
    tune(kept, TuneSettings(epochs=2))
    tune(twice, TuneSettings(epochs=2, checkpointing=True))
    for name, value in weights(kept.decoder).items():
        torch.testing.assert_close(value, twice.decoder.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_fresh_moments_are_no_part_of_a_checkpoint_and_resume_exactly():
    """Two float32 copies of what is trained, weights and average; with the moments of Adam there are four."""
    made, again = generator(), generator()
    settings = TuneSettings(fresh_moments=True, batch=3)
    tune(made, settings, rounds=(1, 2), seed=1)
    tensors, meta = made.state()
    trained = sum(p.numel() for p in made.tuner.trained.values())
    assert sum(x.numel() for x in tensors.values()) == 2 * trained
    again.restore(tensors, meta)
    tune(made, settings, rounds=(2, 2), seed=2)
    tune(again, settings, rounds=(2, 2), seed=2)
    assert not changed(made.state()[0], again.state()[0])


def test_moments_of_8_bits_take_a_quarter_and_resume_exactly():
    made, again, whole = generator(), generator(), generator()
    settings = TuneSettings(moments="int8", batch=3)
    tune(made, settings, rounds=(1, 2), seed=1)
    tune(whole, TuneSettings(batch=3), rounds=(1, 2), seed=1)
    tensors, meta = made.state()
    tensors = {name: value.contiguous() for name, value in tensors.items()}  # as a file of a checkpoint has them
    state = made.tuner.optimizer.state
    large = [p for p in made.tuner.trained.values() if p.numel() >= 4096]  # smaller tensors stay in float32
    assert large and all(state[p][part].dtype == torch.uint8 for p in large for part in ("state1", "state2"))
    start = generator().decoder.state_dict()
    moved = sum((whole.decoder.state_dict()[n] - x).square().sum() for n, x in start.items()).sqrt()
    apart = sum((whole.decoder.state_dict()[n] - x).square().sum() for n, x in made.decoder.state_dict().items()).sqrt()
    assert 0 < apart < 0.2 * moved
    again.restore(tensors, meta)
    tune(made, settings, rounds=(2, 2), seed=2)
    tune(again, settings, rounds=(2, 2), seed=2)
    assert not changed(made.state()[0], again.state()[0])
    with pytest.raises(ValueError, match="tuned with moments=int8; float32 cannot go on"):
        tune(made, TuneSettings(batch=3), rounds=(2, 2), seed=2)
    name = next(k for k, p in made.tuner.trained.items() if p.numel() >= 4096)
    broken = tensors | {f"{name}/state1": torch.zeros(3, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=rf"does not fit this model: {re.escape(name)}/state1"):
        generator().restore(broken, meta)


def test_moments_of_8_bits_name_what_to_install(monkeypatch):
    monkeypatch.setattr("florilegium.config.diffusion.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"moments=int8 needs bitsandbytes: pip install 'florilegium\[tuning\]'"):
        TuneSettings(moments="int8")


def test_progress_counts_images():
    heard = []
    generator(batch=2).synthesize(PROMPTS, SEEDS, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(2, 5), (4, 5), (5, 5)]


# -- eqs 11-12: what trains, and exact omission ----------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["token", "add", "time"])
def test_only_decoder_and_projection_change(merge):
    made = generator()
    parts = {name: getattr(made.pipe, name) for name in ("unet", "vae", "text_encoder")}
    before = {name: weights(part) for name, part in parts.items()}
    figures = tune(made, TuneSettings(merge=merge, epochs=3, batch=4, lr=1e-2))
    after = {name: weights(part) for name, part in parts.items()}
    assert not changed(before["vae"], after["vae"]) and not changed(before["text_encoder"], after["text_encoder"])
    assert len(changed(before["unet"], after["unet"])) > 0.9 * len(before["unet"])
    assert made.tuner.projection.weight.abs().sum() > 0
    assert figures["t2i/steps"] == 6 and math.isfinite(figures["t2i/loss"])


@pytest.mark.parametrize("merge", ["token", "add", "time"])
def test_omitted_rows_equal_the_text_only_decoder_bit_for_bit(merge):
    made = generator()
    unet, random = made.pipe.unet, torch.Generator().manual_seed(1)
    noisy = torch.randn(6, 4, 8, 8, generator=random)
    text = torch.randn(6, 16, WIDTH, generator=random)
    extra = torch.randn(6, 32 if merge == "time" else WIDTH, generator=random)
    time = torch.arange(6) * 100
    omit = torch.tensor([True, False, True, True, False, False])
    with torch.no_grad():
        plain = unet(noisy, time, text).sample
        said, texts = Network(unet), Texts(text)
        assert torch.equal(predict(said, noisy, time, texts, extra, torch.ones(6, dtype=torch.bool), merge), plain)
        assert torch.equal(predict(said, noisy, time, texts, None, omit, merge), plain)
        mixed = predict(said, noisy, time, texts, extra, omit, merge)
        alone = unet(noisy[omit], time[omit], text[omit]).sample if merge == "token" else plain[omit]
    assert torch.equal(mixed[omit], alone)
    torch.testing.assert_close(mixed[omit], plain[omit], atol=1e-5, rtol=1e-5)
    assert (mixed[~omit] - plain[~omit]).flatten(1).abs().amax(1).min() > 1e-4
    assert not unet.time_embedding._forward_hooks


def test_zero_projections_start_from_the_original_model():
    for merge in ("add", "time"):
        made = generator()
        made.tuner.prepare(None, merge, D, seed=0)
        extra = made.tuner.projection(torch.randn(2, D))
        text, noisy = torch.randn(2, 16, WIDTH), torch.randn(2, 4, 8, 8)
        never = torch.zeros(2, dtype=torch.bool)
        with torch.no_grad():
            shown = predict(Network(made.pipe.unet), noisy, torch.tensor([5, 500]), Texts(text), extra, never, merge)
            assert torch.equal(shown, made.pipe.unet(noisy, torch.tensor([5, 500]), text).sample)


def test_empirical_omission_rate_is_within_three_sigma():
    made, settings = generator(), TuneSettings(text="label+caption", omission=0.2, text_drop=0.1, label_only=0.5)
    data = TuneData(
        torch.zeros(100, 4, 8, 8), Texts(torch.zeros(1)), torch.zeros(100), torch.zeros(100), torch.ones(100, D)
    )
    omitted, dropped, label = 0, 0, 0
    for made.tuner.step in range(200):
        drawn = made.tuner._draw(data, torch.arange(100), settings, seed=5)
        omitted += drawn.omit_B.sum()
        dropped += drawn.drop_B.sum()
        label += drawn.label_B.sum()
    for found, p in ((omitted, 0.2), (dropped, 0.1), (label, 0.5)):
        assert abs(found / 20_000 - p) < 3 * math.sqrt(p * (1 - p) / 20_000)


def test_omission_one_never_touches_the_projection():
    """The ablation -T2I_Rep: with p = 1 the representations leave no trace in the decoder."""
    text_only, blind = generator(), generator()
    tune(text_only, TuneSettings(), reps=False)
    figures = tune(blind, TuneSettings(omission=1.0))
    assert figures["t2i/omitted"] == 1.0
    assert not changed(weights(text_only.pipe.unet), weights(blind.pipe.unet))


def test_texts_follow_the_setting():
    made, (images, texts, _) = generator(), samples()
    data = made._encode(images, texts, None)
    assert len(data.texts_U) == 7  # the empty text, three labels, three full texts
    for text, share in (("label", 1.0), ("caption", 0.0)):
        drawn = made.tuner._draw(data, torch.arange(8), TuneSettings(text=text), seed=0)
        assert drawn.label_B.float().mean() == share
    expected = made.pipe.encode_prompt("a 0. a red thing", "cpu", 1, False)[0]
    torch.testing.assert_close(data.texts_U.tokens[data.full_N[0]][None], expected)


def test_tuning_learns_and_the_average_synthesizes():
    made = generator()
    before = made.synthesize(PROMPTS, SEEDS)
    first = tune(made, TuneSettings(lr=5e-3, epochs=10, schedule="constant"))["t2i/loss"]
    assert tune(made, TuneSettings(lr=5e-3, epochs=10, schedule="constant"))["t2i/loss"] < first
    raw = weights(made.pipe.unet)
    after = made.synthesize(PROMPTS, SEEDS)
    assert not torch.equal(before, after)
    assert not changed(raw, weights(made.pipe.unet))  # the training weights are back
    with made.tuner.averaged():
        assert changed(raw, weights(made.pipe.unet))
        assert all(torch.equal(p, made.pipe.unet.get_parameter(n)) for n, p in made.pipe.unet.named_parameters())


def test_moving_average_by_hand():
    """One weight, ema 0.999: after steps 0 and 1 the decay is 1/10, then 2/11."""
    made = generator()
    name = "decoder.conv_in.bias"
    tune(made, TuneSettings(epochs=1, batch=8, lr=1e-2, schedule="constant"))
    state, _ = made.state()
    start = generator().pipe.unet.conv_in.bias
    torch.testing.assert_close(state[f"{name}/average"], 0.1 * start + 0.9 * state[f"{name}/weight"])
    one, average = state[f"{name}/weight"], state[f"{name}/average"]
    tune(made, TuneSettings(epochs=1, batch=8, lr=1e-2, schedule="constant"))
    state, _ = made.state()
    assert not torch.equal(one, state[f"{name}/weight"])
    torch.testing.assert_close(state[f"{name}/average"], 2 / 11 * average + 9 / 11 * state[f"{name}/weight"])


def test_cosine_runs_over_all_rounds():
    settings = TuneSettings(lr=2e-4)
    assert [learning_rate(settings, x) for x in (0, 0.5, 1)] == pytest.approx([2e-4, 1e-4, 0])
    assert learning_rate(TuneSettings(lr=2e-4, schedule="constant"), 0.9) == 2e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_target_follows_the_scheduler(prediction, tmp_path):
    made = load(DiffusionSettings(steps=2), str(write_diffusion(tmp_path / "sd", prediction)))
    latents, noise, time = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    alpha = made.tuner.noising.schedule.alphas_cumprod[time].view(2, 1, 1, 1)
    by_hand = {"epsilon": noise, "sample": latents, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * latents}
    torch.testing.assert_close(made.tuner.noising.target(latents, noise, time), by_hand[prediction])


def test_images_of_another_size_are_brought_to_the_native_one():
    made, (images, _, _) = generator(), samples()
    small = torch.nn.functional.interpolate(images.float(), (8, 8)).to(torch.uint8)
    assert made._latents(small).shape == made._latents(images).shape == (8, 4, 8, 8)


# -- resume and export -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [TuneSettings(batch=3), TuneSettings(batch=3, lora=2), TuneSettings(merge="time")])
def test_restored_tuning_equals_uninterrupted_tuning_exactly(settings):
    whole = generator()
    tune(whole, settings, rounds=(1, 2), seed=1)
    tensors, meta = copy.deepcopy(whole.state())
    tune(whole, settings, rounds=(2, 2), seed=2)

    resumed = generator()
    tune(resumed, settings, rounds=(1, 2), seed=9)  # a model that went another way meanwhile
    resumed.restore(tensors, meta)
    tune(resumed, settings, rounds=(2, 2), seed=2)

    (one, one_meta), (two, two_meta) = whole.state(), resumed.state()
    assert one.keys() == two.keys() and one_meta == two_meta
    assert not changed(one, two)
    assert torch.equal(whole.synthesize(PROMPTS, SEEDS), resumed.synthesize(PROMPTS, SEEDS))


def test_state_survives_the_file(tmp_path):
    from florilegium.runs import files

    made, other = generator(), generator()
    tune(made, TuneSettings(merge="token"))
    files.save(tmp_path / "round.safetensors", *made.state())
    other.restore(*files.load(tmp_path / "round.safetensors"))
    assert not changed(made.state()[0], other.state()[0])
    assert torch.equal(made.synthesize(PROMPTS, SEEDS), other.synthesize(PROMPTS, SEEDS))


def test_an_untuned_generator_has_nothing_to_keep():
    made = generator()
    tensors, meta = made.state()
    assert tensors == {} and meta["step"] == 0
    made.restore(tensors, meta)


def test_a_foreign_checkpoint_is_refused_in_one_line():
    made = generator()
    tune(made, TuneSettings(merge="token"))
    tensors, meta = made.state()
    tensors["decoder.conv_in.weight/weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="decoder.conv_in.weight/weight is \\(1,\\)"):
        generator().restore(tensors, meta)


@pytest.mark.parametrize("settings", [TuneSettings(lr=1e-2), TuneSettings(lr=1e-2, lora=2)])
def test_the_saved_pipeline_gives_the_same_images(settings, tmp_path):
    from diffusers import DiffusionPipeline

    made = generator()
    tune(made, settings)
    made.save(tmp_path / "model")
    made.save(tmp_path / "model")  # a second time replaces it
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipe(PROMPTS, generator=noise, num_inference_steps=2, guidance_scale=3.0, output_type="pt").images
    ours = made.synthesize(PROMPTS, SEEDS)
    assert ((images * 255).round().int() - ours.int()).abs().max() <= 1
    again = load(DiffusionSettings(steps=2), str(tmp_path / "model")).synthesize(PROMPTS, SEEDS)
    assert (again.int() - ours.int()).abs().max() <= 1
    assert not any("lora" in name for name in pipe.unet.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_lora_trains_adapters_and_projection_only():
    made = generator()
    before = weights(made.pipe.unet)
    tune(made, TuneSettings(lora=2, lr=1e-2))
    after = weights(made.pipe.unet)
    frozen = {name.replace(".base_layer", ""): value for name, value in after.items() if "lora_" not in name}
    assert frozen.keys() == before.keys() and not changed(before, frozen)
    assert all("lora_" in name or name.startswith("projection.") for name in made.tuner.trained)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_bad_calls_say_what_is_wrong():
    made, (images, texts, reps) = generator(), samples()
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        made.synthesize(PROMPTS[:2], SEEDS[:1])
    with pytest.raises(ValueError, match="8 images, 8 label texts, 8 full texts, 3 representations"):
        made.finetune(images, texts, reps[:3], TuneSettings(merge="token"), rounds=(1, 1), seed=0)
    assert made.finetune(images[:0], TuneTexts([], []), None, TuneSettings(merge="token"), rounds=(1, 1), seed=0) == {}
    tune(made, TuneSettings(merge="token"))
    with pytest.raises(ValueError, match="lora=None, merge=token; lora=4, merge=token cannot go on"):
        tune(made, TuneSettings(merge="token", lora=4))
    with pytest.raises(ValueError, match="representations have width 5, the projection takes 24"):
        made.finetune(images, texts, reps[:, :5], TuneSettings(merge="token"), rounds=(1, 1), seed=0)
    with pytest.raises(FloatingPointError, match="T2I loss is nan"):
        made.finetune(images, texts, reps * math.nan, TuneSettings(merge="token", omission=0.0), rounds=(1, 1), seed=0)


@pytest.mark.parametrize(
    "cls, key, value",
    [
        (TuneSettings, "merge", "concat"),
        (TuneSettings, "omission", 1.5),
        (TuneSettings, "lora", -1),
        (DiffusionSettings, "dtype", "float16"),
        (DiffusionSettings, "scheduler", "magic"),
        (CaptionSettings, "beams", 0),
    ],
)
def test_settings_name_the_key(cls, key, value):
    with pytest.raises(ValueError, match=f"^{key} must"):
        cls(**{key: value})


def test_a_tuner_needs_nothing_of_diffusers():
    import florilegium.diffusion.tuning as module

    assert "diffusers" not in vars(module) and Tuner.__module__ == "florilegium.diffusion.tuning"


# -- captions --------------------------------------------------------------------------------------------------------


def test_captions_are_deterministic_and_independent_of_the_batch():
    images, _, _ = samples(5)
    caption = Captioner(str(tiny_models()["captioner"]), CaptionSettings(max_tokens=6))
    texts = caption(images)
    assert len(texts) == 5 and all(isinstance(t, str) and t == t.strip() for t in texts)
    assert texts == caption(images)
    assert texts == Captioner(str(tiny_models()["captioner"]), CaptionSettings(max_tokens=6, batch=2))(images)
    assert caption(images[:0]) == []


def test_a_balanced_pass_meets_rare_labels_as_often_as_frequent_ones():
    labels = torch.tensor([7] * 900 + [3] * 100)
    plain = drawn_order(labels, 0.0, torch.Generator().manual_seed(0))
    assert sorted(plain.tolist()) == list(range(1000))
    for balance, share in ((1.0, 0.5), (0.5, 0.25)):  # 900 / 900^.5 : 100 / 100^.5 = 30 : 10
        order = drawn_order(labels, balance, torch.Generator().manual_seed(0))
        assert len(order) == 1000 and abs((labels[order] == 3).float().mean().item() - share) < 0.04


def test_words_that_begin_every_caption_can_be_dropped():
    images = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    place = str(tiny_models()["captioner"])
    (whole,) = Captioner(place, CaptionSettings(prefix="the cat", max_tokens=4))(images)
    assert Captioner(place, CaptionSettings(prefix="the cat", drop="the cat", max_tokens=4))(images) == [
        whole.removeprefix("the cat").strip() or whole
    ]
    told = Captioner(place, CaptionSettings(drop="a picture of"))._without_opening
    assert told("a picture of a bird, a swan") == "a bird, a swan" and told("a swan") == "a swan"
    assert told("a picture of") == "a picture of"


def test_a_prefix_begins_every_caption_and_beams_run():
    images, _, _ = samples(3)
    caption = Captioner(str(tiny_models()["captioner"]), CaptionSettings(prefix="the cat", beams=2, max_tokens=4))
    assert all(text.startswith("the cat") for text in caption(images))
    doubled = torch.nn.functional.interpolate(images.float(), (32, 32)).to(torch.uint8)
    assert len(caption(doubled)) == 3  # brought to the processor's size


@pytest.mark.parametrize(
    ("most", "prefix", "line"),
    [
        (32, None, ""),
        (33, None, "diffusion.captions.max_tokens is 33, but the captioner .* of 32 positions, has room for 32$"),
        (30, "the cat", ""),  # [CLS] the cat, then 30 tokens, of which the last is not read again
        (31, "the cat", "max_tokens is 31, but after the 3 tokens of diffusion.captions.prefix .* has room for 30$"),
        (1, "the cat " * 20, "diffusion.captions.prefix has 41 tokens, but the captioner .* has 32 positions$"),
    ],
)
def test_captions_longer_than_the_captioner_s_positions_are_one_line_before_a_run(most, prefix, line, toy_conf):
    place, settings = str(tiny_models()["captioner"]), CaptionSettings(prefix=prefix, max_tokens=most, min_tokens=most)
    if not line:
        check_room(place, settings)
        assert len(Captioner(place, settings)(samples(2)[0])) == 2  # every position is used
        return
    conf = toy_conf()
    conf.diffusion.captions = settings
    for late in (lambda: preflight.validate(conf), lambda: Captioner(place, settings)):
        with pytest.raises(SettingsError, match=line) as raised:
            late()
        assert "\n" not in str(raised.value)


def test_a_round_has_as_many_steps_as_asked_whatever_the_number_of_samples():
    labels, of = torch.zeros(10), partial(TuneSettings, batch=4, balance=0.0)
    sizes = [len(rows) for rows in drawn_batches(labels, of(epochs=2), 0)]
    assert sizes == [4, 4, 2, 4, 4, 2]
    drawn = list(drawn_batches(labels, of(epochs=1, steps=5), 0))
    assert [len(rows) for rows in drawn] == [4, 4, 2, 4, 4]
    assert sorted(torch.cat(drawn[:3]).tolist()) == list(range(10))  # the first pass sees every sample once
    assert [len(rows) for rows in drawn_batches(labels[:3], of(steps=4), 0)] == [3, 3, 3, 3]
