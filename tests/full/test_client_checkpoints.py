"""What is wrong with a client's checkpoint is one line before the first round, and of a site when it joins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client_app import app
from florilegium import preflight
from florilegium.config import composition
from florilegium.config.clients import ClientsSettings
from florilegium.config.composition import SettingsError
from florilegium.contract.tiny_models import write_clip
from florilegium.models import checkpoints
from florilegium.models.bodies import ModelError
from florilegium.protocol import codec
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Nothing
from tests.full.tiny_inputs import write_backbones


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> dict[str, str]:
    return write_backbones(tmp_path_factory.mktemp("backbones"))


def said(modality: str, name: str, **given: Any) -> str:
    """The complaint about a client of this modality; "" where there is none."""
    try:
        checkpoints.check(ClientsSettings(architectures={name: given}), modality, name)
    except ModelError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["vit", "beit", "resnet", "bert", "distilbert", "roberta"])
def test_a_whole_checkpoint_passes_for_its_own_modality_alone(kind, backbones) -> None:
    own, other = ("image", "text") if kind in ("vit", "beit", "resnet") else ("text", "image")
    assert said(own, kind, pretrained=backbones[kind]) == said(own, "mine", pretrained=backbones[kind]) == ""
    line = said(other, "mine", pretrained=backbones[kind])
    assert line.startswith(f"clients.architectures.mine.pretrained: {backbones[kind]} is a ")
    assert line.endswith(f"{other} client needs {'an' if other == 'image' else 'a'} {other} backbone")


def test_a_name_with_a_class_of_its_own_takes_that_class_alone(backbones) -> None:
    """Otherwise transformers gives the net random weights and a warning."""
    line = said("image", "vit", pretrained=backbones["beit"])
    assert "clients.architectures.vit.pretrained" in line and "type beit" in line and "architectures.mine" in line


def test_both_halves_of_a_pair_are_looked_at(backbones) -> None:
    given = {"vit": {"pretrained": backbones["vit"]}, "bert": {"pretrained": backbones["vit"]}}
    with pytest.raises(ModelError, match=r"clients.architectures.bert.pretrained: .* of type vit"):
        checkpoints.check(ClientsSettings(architectures=given), "pair", "vit+bert")


def without(place: str, folder: Path, *names: str) -> Path:
    shutil.copytree(place, folder)
    for name in names:
        (folder / name).unlink()
    return folder


def test_what_is_missing_or_torn_is_named(backbones, tmp_path) -> None:
    where = "clients.architectures.mine.pretrained: "
    bare = without(backbones["vit"], tmp_path / "bare", "model.safetensors")
    assert f"{where}{bare} has no model.safetensors" in said("image", "mine", pretrained=str(bare))
    torn = without(backbones["vit"], tmp_path / "torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-8])
    assert f"{where}{torn} cannot be read" in said("image", "mine", pretrained=str(torn.parent))
    split = without(backbones["vit"], tmp_path / "split", "model.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00001.safetensors cannot be read" in said("image", "mine", pretrained=str(split))
    mute = without(backbones["bert"], tmp_path / "mute", "tokenizer.json", "tokenizer_config.json")
    assert f"{where}{mute} has no tokenizer.json" in said("text", "mine", pretrained=str(mute))
    (mute / "tokenizer.json").write_text("{}")
    assert f"{where}{mute / 'tokenizer.json'} cannot be read" in said("text", "mine", pretrained=str(mute))
    assert f"{mute} has no open_clip_config.json" in said("image", "clip", path=str(mute))
    assert f"{where}no model directory /nowhere" in said("image", "mine", pretrained="/nowhere")
    line = said("image", "mine", pretrained=backbones["vit"], training="some")
    assert line.startswith("clients.architectures.mine.training: 'some' is none of")


def test_an_open_clip_directory_passes_for_both(tmp_path) -> None:
    place = str(write_clip(tmp_path / "clip"))
    for key in ("path", "pretrained"):
        assert said("image", "mine", **{key: place}) == said("text", "mine", **{key: place}) == ""


def test_a_hub_id_that_cannot_be_fetched_says_what_to_do() -> None:
    line = said("image", "mine", pretrained="nobody/nothing")
    assert line.startswith("clients.architectures.mine.pretrained: nobody/nothing cannot be fetched: ")
    assert "HF_HUB_OFFLINE" in line and "hf download nobody/nothing --local-dir DIR" in line


MIX = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: vit}, {modality: image, model: mine}]"


def test_one_bad_checkpoint_among_good_clients_stops_the_run_before_it_starts(toy_conf) -> None:
    conf = toy_conf("method=standalone", MIX, "+clients.architectures.mine={pretrained: nobody/nothing}")
    with pytest.raises(SettingsError, match="^clients.architectures.mine.pretrained: nobody/nothing cannot be"):
        preflight.validate(conf)


def test_a_site_looks_at_its_own_when_it_joins(toy_conf, tmp_path) -> None:
    """The launcher of a deployment cannot see it."""
    conf = toy_conf("method=standalone", MIX, "+clients.architectures.mine={pretrained: nobody/nothing}")
    conf.runtime.name, conf.runtime.superlink = "deployment", "lab"
    preflight.validate(conf)
    for client, ending in ((0, None), (2, "name DIR in clients.architectures.mine.pretrained")):
        context = Context(
            run_id=1,
            node_id=7,
            node_config={"partition-id": client, "num-partitions": 3},
            state=RecordDict(),
            run_config={"settings": json.dumps(composition.plain(conf)), "overrides": ""},
        )
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        question = Message(codec.pack(Nothing(), Header("method", 0, 1)), 1, "query.profile")
        reply = app.answer("profile", question, context)
        assert reply.has_error() is bool(ending) and (not ending or reply.error.reason.endswith(ending))
