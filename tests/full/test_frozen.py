"""Frozen and adapted clients: what never trains neither crosses the wire nor lies in a client's memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers

from florilegium.config.clients import ClientsSettings
from florilegium.models.build import build
from florilegium.privacy.listing import listing
from florilegium.runs import files
from florilegium.runs.reader import read_lines
from tests.full.tiny_inputs import write_backbones

SMALL_HEAD = {"moon": ["method.client.projection=8"]}
WEIGHT_AVERAGING = ("fedavg", "fedprox", "scaffold", "moon", "feddyn", "fedbn", "fedper")


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    return write_backbones(tmp_path_factory.mktemp("backbones"))["vit"]


def model_of(place: str, training: str, width: int = 8, classes: int = 3):
    conf = ClientsSettings(width=width, architectures={"mine": {"pretrained": place, "training": training, "rank": 2}})
    return build(conf, "image", "mine", classes)


def size(state: dict[str, torch.Tensor]) -> int:
    return sum(value.numel() for value in state.values())


def test_a_state_dict_has_what_trains(vit) -> None:
    """Width 8 and 3 classes on a body of width 16: project 16 * 8 + 8 = 136, classifier 8 * 3 + 3 = 27. LoRA of rank 2
    on four maps 16 -> 16 and two of 16 -> 32 -> 16: 4 * 2 * 32 + 2 * 2 * 48 = 448, and the pooler's 64."""
    full, frozen, adapted = (model_of(vit, how) for how in ("full", "frozen", "lora"))
    head = {"project.weight", "project.bias", "classifier.weight", "classifier.bias"}
    assert set(frozen.state_dict()) == head and size(frozen.state_dict()) == 136 + 27
    assert all(name in head or "lora_" in name for name in adapted.state_dict())
    assert size(adapted.state_dict()) == 136 + 27 + 448 + 64
    assert size(full.state_dict()) > 3000


@pytest.mark.parametrize("training", ["frozen", "lora"])
def test_a_state_dict_loads_without_and_with_the_frozen_part(vit, training) -> None:
    model, x = model_of(vit, training).eval(), torch.rand(2, 3, 16, 16)
    before = model(x)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    again = model_of(vit, training).eval()
    again.load_state_dict(state)
    model.load_state_dict({**dict(model.named_parameters()), **state})
    torch.testing.assert_close(again(x), model(x))
    assert not torch.allclose(before, model(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({name: value for name, value in state.items() if not name.startswith("classifier")})


def test_batch_norm_of_a_frozen_body_stands_still(tmp_path) -> None:
    """Statistics of a full body move at the first batch."""
    config = transformers.MobileNetV2Config(depth_multiplier=0.1, image_size=16, finegrained_output=False)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    for training, moves in (("full", True), ("frozen", False)):
        model = model_of(str(tmp_path), training).train()
        name = next(name for name, _ in model.named_buffers() if name.endswith("running_mean"))
        before = dict(model.named_buffers())[name].clone()
        model(torch.rand(4, 3, 16, 16))
        assert (not torch.equal(before, dict(model.named_buffers())[name])) is moves


def settings(toy_conf, vit: str, training: str, *overrides: str):
    two = "{modality: image, model: mine}, {modality: image, model: mine}"
    own = f"+clients.architectures.mine={{pretrained: {vit}, training: {training}, rank: 2}}"
    return toy_conf(f"clients.mix=[{two}]", own, "method.client.local_epochs=1", *overrides)


@pytest.mark.parametrize("method", WEIGHT_AVERAGING)
def test_every_method_that_averages_weights_sends_what_trains(method, vit, toy_conf, federated) -> None:
    """The whole model has over 12,000 bytes; a frozen one sends at most its projection and its classifier, once or,
    with a control variate, twice. MOON's projection head comes on top."""
    conf = settings(toy_conf, vit, "frozen", f"method={method}", "rounds=1", *SMALL_HEAD.get(method, []))
    run = federated(conf)
    sent = [x for x in read_lines(run / "ledger.jsonl") if x["round"] == 1 and x["phase"] == "train"]
    assert len(sent) == 2 and not any(x["fault"] for x in sent)
    assert all(x["up"] < 12_000 for x in sent), [x["up"] for x in sent]
    tensors, _ = files.load(sorted((run / "checkpoints/method").glob("*"))[-1])
    assert tensors and not any("body." in name for name in tensors)


def test_the_privacy_listing_has_the_true_size(vit, toy_conf) -> None:
    """Body of width 16, D and C of the toy settings: 4 bytes for each of 16 D + D + D C + C."""
    conf = settings(toy_conf, vit, "frozen", "method=fedavg")
    width, classes = conf.clients.width, 4
    up = next(f for f in listing(conf).fields if (f.phase, f.way, f.name) == ("train", "up", "tensors"))
    assert up.size == 4 * (16 * width + width + width * classes + classes)


def test_a_resumed_run_of_adapted_clients_equals_an_uninterrupted_one(vit, toy_conf, resumed) -> None:
    whole, part = resumed(partial(settings, toy_conf, vit, "lora", "method=fedavg", "rounds=2"), "train")
    ends = [files.load(sorted((d / "checkpoints/method").glob("*"))[-1])[0] for d in (whole, part)]
    assert any("lora_" in name for name in ends[0]) and not any("base_layer" in name for name in ends[0])
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
