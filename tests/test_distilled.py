"""Distilled guidance: the target by hand, the state's next step, a loss that falls, and how adapters act and go."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
import distill_unet
from safetensors.torch import save_file

from florilegium.config.diffusion import DiffusionSettings, TuneSettings
from florilegium.contract.tiny_models import tiny_models
from florilegium.diffusion.distilled import FACTS, full_guidance
from florilegium.diffusion.load import load
from florilegium.diffusion.networks import Network, Texts
from florilegium.diffusion.tuning import TuneTexts

PROMPTS, SEEDS = ["a red cat.", "a blue dog.", "a tree."], [11, 22, 33]
LAYERS = r".*(attn2\.to_v|conv1|conv_out)$"


def generator(**settings):
    return load(DiffusionSettings(**{"steps": 2, "guidance": 3.0, **settings}), str(tiny_models()["model"]))


@pytest.fixture
def adapters(tmp_path):
    """LoRA weights that change three kinds of layers, made for guidance 3."""
    made = generator()
    student = distill_unet.students(made.pipe, made.view, 1, LAYERS)
    random = torch.Generator().manual_seed(5)
    layers = {
        name: 0.3 * torch.randn(value.shape, generator=random)
        for name, value in distill_unet.get_peft_model_state_dict(student).items()
    }
    made.view.pipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    (tmp_path / "lora" / FACTS).write_text(json.dumps({"guidance": 3.0}))
    return tmp_path / "lora"


# -- the target ------------------------------------------------------------------------------------------------------


def test_guidance_and_a_step_by_hand():
    """w = 3: 1 + 3 (2 - 1) = 4. Signal .64 (roots .8 and .6) to signal 1, a picture: velocity 0.5 of state 1 gives
    .8 - .3 = .5; noise 0.5 gives (1 - .3) / .8 = .875. To signal .36 also .8 of the noise: .5 x .6 + (.4 + .6) x .8."""
    assert distill_unet.guided(torch.tensor(2.0), torch.tensor(1.0), 3.0) == 4
    state, said = torch.ones(2, 1, 1, 1), torch.full((2, 1, 1, 1), 0.5)
    now, later = torch.tensor([0.64, 0.64]), torch.tensor([1.0, 0.36])
    v = distill_unet.advanced(state, said, now, later, "v_prediction").flatten()
    torch.testing.assert_close(v, torch.tensor([0.5, 1.1]))
    eps = distill_unet.advanced(state, said, now, later, "epsilon").flatten()
    torch.testing.assert_close(eps, torch.tensor([0.875, 0.925]))  # .875 x .6 + .5 x .8


def ways(count=4, guidance=3.0):
    made = generator()
    texts = Texts(made.pipe.encode_prompt(["", *PROMPTS], "cpu", 1, False)[0])
    torch.manual_seed(0)
    return distill_unet.Ways(Network(made.decoder), texts, made.pipe.scheduler.config, guidance, count), made


def test_the_target_is_the_guided_answer_and_states_go_on_until_they_end():
    found, made = ways()
    times, done, before = found.times(found.done, torch.arange(4)), found.done.clone(), found.states.clone()
    texts = found.texts[found.prompts]
    batch = found.batch()
    with torch.no_grad():
        plain = made.decoder(before, times, texts.tokens).sample
        empty = made.decoder(before, times, found.texts.tokens[:1].expand(4, -1, -1)).sample
    torch.testing.assert_close(batch.target, empty + 3 * (plain - empty), atol=1e-5, rtol=1e-4)
    assert torch.equal(batch.states, before) and torch.equal(batch.times, times)
    assert ((found.done == done + 1) | (found.done == 0)).all()
    assert 0 not in found.prompts  # the empty text is no prompt
    for _ in range(distill_unet.STEPS[1]):
        assert found.batch().times.min() >= 0 and (found.done < found.length).all()
    # the last step of a way of 6: from 999 - 5 x 1000 / 6 to a finished picture
    found.length[:], done = 6, torch.tensor([0, 3, 5, 6])
    assert found.times(done, torch.arange(4)).tolist() == [999, 499, 166, -1]


def test_the_loss_falls_and_scale_0_is_the_decoder_itself():
    found, made = ways(count=8)
    batch = found.batch()
    student = distill_unet.students(made.pipe, made.view, 2, r".*(to_q|to_k|to_v|to_out\.0|conv1|conv2|conv_out)$")
    network = Network(student)
    with torch.no_grad():
        plain = found.teacher(batch.states, batch.times, batch.texts)
        first = distill_unet.distilled_loss(network, batch, 1.0).item()
    learning = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=3e-2)
    for _ in range(30):
        optimizer.zero_grad()
        distill_unet.distilled_loss(network, batch, 1.0).backward()
        optimizer.step()
    with torch.no_grad():
        assert distill_unet.distilled_loss(network, batch, 1.0).item() < 0.7 * first
        distill_unet.set_scale(student, 0.0)
        torch.testing.assert_close(network(batch.states, batch.times, batch.texts), plain)


# -- how a generator uses it -----------------------------------------------------------------------------------------


def test_one_call_a_step_with_the_adapters_merged_at_the_scale_of_the_guidance(adapters):
    """At guidance 2, half of what they change at 3; the U-Net sees each image once a step, and not twice."""
    made, plain = generator(distilled=str(adapters)), generator()
    calls = []
    made.decoder.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    by_hand = generator()
    by_hand.pipe.load_lora_weights(str(adapters))
    for guidance, scale in ((None, 1.0), (2.0, 0.5), (1.0, 0.0)):
        calls.clear()
        drawn = made.synthesize(PROMPTS, SEEDS, guidance)
        assert calls == [3, 3]
        by_hand.pipe.set_adapters(by_hand.pipe.get_active_adapters(), scale)
        expected = by_hand.synthesize(PROMPTS, SEEDS, 1.0)
        assert (drawn.int() - expected.int()).abs().max() <= 1, guidance
    assert not torch.equal(made.synthesize(PROMPTS, SEEDS), plain.synthesize(PROMPTS, SEEDS, 1.0))
    calls.clear()
    assert torch.equal(made.synthesize(PROMPTS, SEEDS, 5.0), plain.synthesize(PROMPTS, SEEDS, 5.0))
    assert calls == [6, 6]  # more guidance than they were made for: the decoder itself, asked twice


@pytest.mark.parametrize("rank", [None, 2])
def test_the_decoder_is_tuned_and_saved_without_the_adapters(adapters, rank, tmp_path):
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    texts = TuneTexts(["a 0.", "a 1.", "a 2.", "a 0."], ["a red 0.", "a 1.", "a 2.", "a 0."])
    pair = generator(distilled=str(adapters)), generator()
    before = pair[0].synthesize(PROMPTS, SEEDS)
    for made in pair:
        made.finetune(images, texts, None, TuneSettings(steps=3, lora=rank, lr=0.02), rounds=(1, 1), seed=3)
    after = pair[0].synthesize(PROMPTS, SEEDS)
    assert not torch.equal(after, before) and not torch.equal(after, pair[1].synthesize(PROMPTS, SEEDS))
    one, other = (made.state()[0] for made in pair)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    pair[0].save(tmp_path / "model")
    again = load(DiffusionSettings(steps=2, guidance=3.0), str(tmp_path / "model"))
    assert (again.synthesize(PROMPTS, SEEDS).int() - pair[1].synthesize(PROMPTS, SEEDS).int()).abs().max() <= 1


def test_adapters_without_facts_act_fully_and_a_bad_file_is_named(adapters, tmp_path):
    """LoRA weights of others, such as LCM-LoRA, say no guidance."""
    (adapters / FACTS).unlink()
    made = generator(distilled=str(adapters))
    assert torch.equal(made.synthesize(PROMPTS, SEEDS, 2.0), made.synthesize(PROMPTS, SEEDS, 7.0))
    (adapters / FACTS).write_text('{"guidance": 0.5}')
    with pytest.raises(ValueError, match=r"distilled.json says guidance 0.5; it must be above 1"):
        full_guidance(str(adapters))
    (adapters / FACTS).write_text("{}")
    with pytest.raises(ValueError, match=r"distilled.json does not say the guidance as a number"):
        generator(distilled=str(adapters))
    with pytest.raises(ValueError, match=r"diffusion.distilled: .*nothing does not fit the model"):
        generator(distilled=str(tmp_path / "nothing"))
    (tmp_path / "wrong").mkdir()
    wrong = {"unet.conv_out.lora_A.weight": torch.zeros(1, 3, 3, 3)}
    save_file(wrong, tmp_path / "wrong/pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match=r"diffusion.distilled: .*wrong"):
        generator(distilled=str(tmp_path / "wrong"))


def test_a_pipeline_without_lora_refuses_them(adapters):
    settings = DiffusionSettings(steps=2, distilled=str(adapters))
    with pytest.raises(ValueError, match="diffusion.distilled: a GlidePipeline takes no LoRA weights"):
        load(settings, str(Path(__file__).resolve().parents[1] / "assets/models/mini-glide"))
