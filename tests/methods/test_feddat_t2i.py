"""FedDAT's averaged adapters in the server's T2I model: by hand, frozen, exact after a resume, and who gives them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from florilegium.config.diffusion import DiffusionSettings, TuneSettings
from florilegium.contract.tiny_models import SIDE, tiny_models
from florilegium.diffusion import inserted
from florilegium.diffusion.load import load
from florilegium.diffusion.spread import averaged
from florilegium.diffusion.tuning import TuneTexts
from strategies.modules.feddat import FedDAT, FedDATSettings, T2IAdapterSettings, chains
from tests.fakes import FakeResources

PROMPTS, SEEDS = ["a red cat.", "a tree.", "a house."], [11, 22, 33]


def adapter(width, inner=2, scale=1.0):
    """All weights `scale`, all biases 0."""
    ones = {"down.weight": (inner, width), "up.weight": (width, inner)}
    zeros = {"down.bias": (inner,), "up.bias": (width,)}
    return {n: torch.full(s, scale) for n, s in ones.items()} | {n: torch.zeros(s) for n, s in zeros.items()}


def drawn_adapter(width, seed):
    random = torch.Generator().manual_seed(seed)
    return {n: torch.randn(v.shape, generator=random) for n, v in adapter(width).items()}


def generator():
    return load(DiffusionSettings(steps=2), str(tiny_models()["model"]))


def tune(made, r=1):
    images = torch.randint(0, 256, (6, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(r))
    texts = TuneTexts(["a 0.", "a 1."] * 3, ["a 0.", "a 1."] * 3)
    settings = TuneSettings(lr=0.05, epochs=1, batch=3)
    return made.finetune(images, texts, None, settings, rounds=(r, 2), seed=r)


def test_the_sum_behind_a_map_by_hand():
    """last(x) = 2 x = 6. in = 0.5 to H = 2: 3 each; down: R = 1, 3 + 3 = 6; up: (6, 0), which is (1, -1) with mean 0
    and deviation 1; out = (0.25, -0.75): 1. So 6 + 1."""
    last = nn.Linear(1, 1, bias=False)
    last.weight.data.fill_(2.0)
    given = adapter(2, inner=1) | {"up.weight": torch.tensor([[1.0], [0.0]])}
    layer = inserted.Inserted(last, 1, [given])
    assert layer(torch.tensor([[3.0]])).item() == 6  # `out` is zero at first
    layer.into[0].weight.data.fill_(0.5)
    layer.out[0].weight.data.copy_(torch.tensor([[0.25, -0.75]]))
    assert layer(torch.tensor([[3.0]])).item() == pytest.approx(7, abs=1e-5)
    assert layer(torch.tensor([[-3.0]])).item() == -6  # nothing passes the adapter's relu
    assert {n for n, p in layer.named_parameters() if n.startswith("adapters") and p.requires_grad} == set()
    with pytest.raises(ValueError, match=r"down.weight of an adapter is \(1, 3\), not \(1, 2\)"):
        layer.load([adapter(3, inner=1)])


def test_which_adapter_stands_at_which_place():
    """Five adapters at three places: the first, the middle, the last; one place: the last. Two chains: both."""
    five, two = [{"n": n} for n in range(5)], [{"n": 10}, {"n": 11}]
    assert [[a["n"] for a in inserted.at_place([five, two], m, 3)] for m in range(3)] == [[0, 10], [2, 10], [4, 11]]
    assert inserted.at_place([five], 0, 1) == [{"n": 4}]


def test_only_the_maps_around_frozen_adapters_learn_and_a_resume_is_exact(tmp_path):
    made, plain = generator(), generator()
    before = {name: value.clone() for name, value in made.decoder.state_dict().items()}
    given = [[drawn_adapter(6, 0), drawn_adapter(4, 1)]]
    made.insert(given, seed=5)
    assert torch.equal(made.synthesize(PROMPTS, SEEDS), plain.synthesize(PROMPTS, SEEDS))
    tune(made)
    assert {name.split(".")[-3] for name in made.tuner.trained} == {"into", "out"}
    held = inserted.removed(copy.deepcopy(made.decoder)).state_dict()
    assert held.keys() == before.keys() and all(torch.equal(held[name], value) for name, value in before.items())
    drawn = made.synthesize(PROMPTS, SEEDS)
    assert not torch.equal(drawn, plain.synthesize(PROMPTS, SEEDS))
    again, worker = generator(), generator()
    again.restore(*made.state())
    worker.restore(*averaged(made.state()))
    assert torch.equal(worker.synthesize(PROMPTS, SEEDS), drawn)
    for one in (made, again):  # the next round's adapters
        one.insert([[drawn_adapter(6, 2), drawn_adapter(4, 3)]], seed=5)
        tune(one, 2)
    assert torch.equal(made.synthesize(PROMPTS, SEEDS), again.synthesize(PROMPTS, SEEDS))
    made.save(tmp_path / "model")  # the pipeline as diffusers reads it, and the adapters beside it
    assert torch.equal(
        load(DiffusionSettings(steps=2), str(tmp_path / "model")).synthesize(PROMPTS, SEEDS),
        plain.synthesize(PROMPTS, SEEDS),
    )
    assert (tmp_path / "model" / "inserted.safetensors").is_file()


def test_a_tuned_decoder_takes_no_adapters():
    made = generator()
    tune(made)
    with pytest.raises(ValueError, match="tuned already"):
        made.insert([[adapter(4)]], seed=0)


def test_groups_that_average_give_one_chain_and_layers_are_in_order():
    """ViT has layers 0, 2 and 10; BEiT's layer 2 is a part of it; a ResNet's is another; BERT is another modality."""

    def held(group, place, value, width=4):
        return {f"{group}.{place}.{n}": v for n, v in adapter(width, scale=value).items()}

    weights = held("image beit", "2.output", 2.0) | held("text bert", "2.output", 9.0)
    for n in (10, 0, 2):
        weights |= held("image vit", f"{n}.output", float(n))
    weights |= held("image resnet", "stages.0.layer", 7.0, width=8)
    found = [[int(a["up.weight"][0, 0]) for a in chain] for chain in chains(weights, "modality")]
    assert found == [[7], [0, 2, 10], [9]]
    assert len(chains(weights, "all")) == 2 and len(chains(weights, "architecture")) == 4


class Recorder(FakeResources):
    def insert(self, given, seed):
        self.tuned.append(given[0][0]["up.weight"][0, 0].item())


@pytest.mark.parametrize("source, expected", [("averaged", 5.0), ("fresh", 1.0)])
def test_a_round_draws_then_inserts_then_tunes(source, expected, monkeypatch):
    resources = Recorder()
    settings = FedDATSettings(sharing="modality", t2i_adapter=T2IAdapterSettings(source=source, samples=4))
    strategy = FedDAT(settings, resources)
    strategy.shared.weights = {f"text bert.0.output.{n}": v for n, v in adapter(4).items()}
    strategy.keep_fresh()
    strategy.shared.weights = {f"text bert.0.output.{n}": v for n, v in adapter(4, scale=5.0).items()}
    strategy.num_rounds = 3
    assert strategy.tune(2) == {"t2i/loss": 1.0}
    inserted_value, (greys, texts, representations, rounds) = resources.tuned
    assert inserted_value == expected and rounds == (2, 3) and representations is None
    assert sorted(greys) == [0, 0, 1, 1] and texts.label[0] == resources.classes.prompt(int(greys[0]))
    tensors, meta = strategy.state()
    assert ("fresh.text bert.0.output.up.bias" in tensors) == (source == "fresh")
    again = FedDAT(settings, Recorder())
    again.restore(tensors, meta)
    assert again.shared.weights.keys() == strategy.shared.weights.keys() and again.fresh.keys() == strategy.fresh.keys()
    assert again.generator.restored[1] == {"steps": 3}


def test_without_a_t2i_model_nothing_is_drawn():
    strategy = FedDAT(FedDATSettings(), SimpleNamespace())
    assert strategy.generator is None and strategy.state() == ({}, {})
