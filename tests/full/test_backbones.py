"""Client encoders of any kind from directories in the hub's layout: sizes, pooling and reading are the checkpoint's."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import interpolate

from florilegium.config.clients import ClientsSettings
from florilegium.contract.tiny_models import tokenizer, write_clip
from florilegium.models import pretrained
from florilegium.models.bodies import ModelError
from florilegium.models.build import body, build, build_pair, check_architecture, vocabulary

SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]
IMAGE_NETS = {
    "vit": transformers.ViTConfig(**SMALL, image_size=24, patch_size=8),
    "deit": transformers.DeiTConfig(**SMALL, image_size=24, patch_size=8),
    "dinov2": transformers.Dinov2Config(**SMALL, image_size=24, patch_size=8),
    "convnext": transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "mobilenet": transformers.MobileNetV2Config(depth_multiplier=0.1, image_size=24, finegrained_output=False),
    "swin": transformers.SwinConfig(
        image_size=24, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2
    ),
}
TEXT_NETS = {
    "bert": transformers.BertConfig(**SMALL, vocab_size=90, max_position_embeddings=12),
    "deberta": transformers.DebertaV2Config(**SMALL, vocab_size=90, max_position_embeddings=12),
    "roberta": transformers.RobertaConfig(**SMALL, vocab_size=90, max_position_embeddings=14, pad_token_id=1),
    "t5": transformers.T5Config(vocab_size=90, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
}


def write_image(folder: Path, kind: str) -> str:
    """A random net with its processor: 24 pixels, mean and deviation of its own, bicubic."""
    torch.manual_seed(0)
    transformers.AutoModel.from_config(IMAGE_NETS[kind]).save_pretrained(folder / kind)
    processor = transformers.ViTImageProcessor(
        size={"height": 24, "width": 24}, image_mean=MEAN, image_std=STD, resample=3
    )
    processor.save_pretrained(folder / kind)
    return str(folder / kind)


def write_text(folder: Path, kind: str, positions: int = 12) -> str:
    torch.manual_seed(0)
    transformers.AutoModel.from_config(TEXT_NETS[kind]).save_pretrained(folder / kind)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a red blue cat dog tree on the".split()]
    speller = transformers.BertTokenizer({word: i for i, word in enumerate(words)}, model_max_length=10**30)
    speller.save_pretrained(folder / kind)
    return str(folder / kind)


def write_pair(folder: Path) -> str:
    """A CLIPModel of transformers, whose padding is the token that ends a text."""
    torch.manual_seed(0)
    speller = tokenizer()
    ids = dict(bos_token_id=speller.bos_token_id, eos_token_id=speller.eos_token_id, pad_token_id=speller.pad_token_id)
    text = dict(**SMALL, vocab_size=len(speller), max_position_embeddings=16, **ids)
    vision = dict(**SMALL, image_size=24, patch_size=8)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    transformers.CLIPModel(config).save_pretrained(folder / "pair")
    transformers.ViTImageProcessor(size={"height": 24, "width": 24}, image_mean=MEAN, image_std=STD).save_pretrained(
        folder / "pair"
    )
    speller.save_pretrained(folder / "pair")
    return str(folder / "pair")


def clients(width: int = 16, tokens: int = 8, **architectures: Any) -> ClientsSettings:
    return ClientsSettings(width=width, tokens=tokens, architectures=architectures)


def pictures(side: int = 24) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", IMAGE_NETS)
def test_any_image_encoder_is_a_client_s_body(kind, tmp_path) -> None:
    conf = clients(mine={"pretrained": write_image(tmp_path, kind)})
    made = body(conf, "image", "mine").eval()
    assert made.size == 24 and made.filter == "bicubic" and made.mean.flatten().tolist() == pytest.approx(MEAN)
    plain = transformers.AutoModel.from_pretrained(tmp_path / kind).eval()
    x = ((pictures() + 1) / 2 - made.mean) / made.std
    with torch.no_grad():
        out, ours = plain(pixel_values=x), made(pictures())
        token = kind in ("vit", "deit")  # their pooler belongs to no pre-training: the class token
        theirs = out.last_hidden_state[:, 0] if token else out.pooler_output.flatten(1)
    torch.testing.assert_close(ours, theirs)
    model = build(conf, "image", "mine", 5)
    assert model(pictures(8)).shape == (2, 5) and model.encode(pictures(40)).shape == (2, 16)


def test_an_image_is_brought_to_the_checkpoint_s_size_by_its_own_interpolation(tmp_path) -> None:
    made = body(clients(mine={"pretrained": write_image(tmp_path, "vit")}), "image", "mine").eval()
    seen = []
    made.net.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    made(pictures(48))
    small = interpolate((pictures(48) + 1) / 2, (24, 24), mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(seen[0], (small - made.mean) / made.std)
    other = body(
        clients(mine={"pretrained": str(tmp_path / "vit"), "mean": [0.0] * 3, "std": [1.0] * 3}), "image", "mine"
    )
    assert other.mean.sum() == 0 and other.std.sum() == 3


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("resnet10t", "timm/resnet10t.c3_in1k"),
        ("vit_base_patch16_224.augreg_in1k", "timm/vit_base_patch16_224.augreg_in1k"),
        ("bert-base-uncased", "bert-base-uncased"),  # of transformers
        ("timm/resnet10t.c3_in1k", "timm/resnet10t.c3_in1k"),
    ],
)
def test_a_plain_timm_name_is_the_hub_id_of_its_weights(name, place) -> None:
    assert pretrained.image_place(name) == place


def test_a_timm_name_is_what_is_read(monkeypatch) -> None:
    """Both the weights and the preprocessing; a text encoder's name is never timm's."""
    asked = []
    for reader in (transformers.AutoModel, transformers.AutoImageProcessor):
        monkeypatch.setattr(reader, "from_pretrained", lambda place, **given: (asked.append(place), 1 / 0)[1])
    for call in (
        lambda: pretrained.preprocessing("resnet10t"),
        lambda: pretrained.encoder("resnet10t", "image"),
        lambda: pretrained.encoder("resnet10t", "text"),
    ):
        with pytest.raises(ZeroDivisionError):
            call()
    assert asked == ["timm/resnet10t.c3_in1k"] * 2 + ["resnet10t"]


@pytest.mark.parametrize("name", ["vit_giant_patch14_224", "vit_base_patch16_224.nope"])
def test_a_timm_net_without_such_weights_is_one_line(name) -> None:
    with pytest.raises(ValueError, match=name) as told:
        pretrained.image_place(name)
    assert "\n" not in str(told.value)


def test_a_timm_net_is_one_too(tmp_path) -> None:
    import timm
    from safetensors.torch import save_file

    net = timm.create_model("resnet10t", num_classes=0)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "resnet10t",
        "num_features": 512,
        "num_classes": 0,
        "pretrained_cfg": {
            "input_size": [3, 24, 24],
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "num_classes": 0,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = body(clients(mine={"pretrained": str(tmp_path)}), "image", "mine").eval()
    assert made.size == 24 and made.hidden == 512 and made.mean.flatten().tolist() == pytest.approx(MEAN)
    with torch.no_grad():
        x = ((pictures() + 1) / 2 - made.mean) / made.std
        torch.testing.assert_close(made(pictures()), net.eval()(x))


@pytest.mark.parametrize("kind", TEXT_NETS)
def test_any_text_encoder_is_a_client_s_body(kind, tmp_path) -> None:
    """A text alone is encoded as beside a longer one: padding is not seen. T5's states are averaged, else the first."""
    conf = clients(mine={"pretrained": write_text(tmp_path, kind)})
    reads = vocabulary(conf, "mine")
    made = body(conf, "text", "mine", reads).eval()
    with torch.no_grad():
        both, alone = made(reads(["a red cat", "the dog on a blue tree"])), made(reads(["a red cat"]))
        torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-5)
        plain = transformers.AutoModel.from_pretrained(tmp_path / kind)
        plain = plain.get_encoder() if kind == "t5" else plain
        ids = reads(["a red cat"])
        states = plain.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(alone, states.mean(1) if kind == "t5" else states[:, 0])


@pytest.mark.parametrize("kind, most", [("bert", 12), ("roberta", 12)])
def test_a_text_longer_than_the_positions_is_cut_with_one_line(kind, most, tmp_path, caplog) -> None:
    """BERT has 12 positions; RoBERTa 14, of which two come before the first token."""
    conf = clients(tokens=64, mine={"pretrained": write_text(tmp_path, kind)})
    with caplog.at_level(logging.WARNING):
        reads = vocabulary(conf, "mine")
        vocabulary(conf, "mine")
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1 and f"reads {most} tokens; longer texts are cut" in said[0] and "\n" not in said[0]
    ids = reads(["cat " * 40])
    assert ids.shape == (1, most)
    assert body(conf, "text", "mine", reads)(ids).shape == (1, 16)


def sentence_encoder(tmp_path, **modes) -> tuple:
    """(pooled, states) of "a red cat" and "dog" by a small BERT whose own file gives these modes of pooling."""
    place = write_text(tmp_path, "bert")
    Path(place, "1_Pooling").mkdir()
    said = {f"pooling_mode_{name}": on for name, on in modes.items()}
    Path(place, "1_Pooling/config.json").write_text(json.dumps(said))
    conf = clients(mine={"pretrained": place})
    reads = vocabulary(conf, "mine")
    made = body(conf, "text", "mine", reads).eval()
    with torch.no_grad():
        ids = reads(["a red cat", "dog"])
        return made(ids), made.net(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state


def test_a_sentence_encoder_is_pooled_as_its_own_file_says(tmp_path) -> None:
    pooled, states = sentence_encoder(tmp_path, mean_tokens=True)
    torch.testing.assert_close(pooled[1], states[1, :3].mean(0))  # [CLS] dog [SEP]


def test_a_sentence_encoder_that_reads_its_last_token(tmp_path) -> None:
    pooled, states = sentence_encoder(tmp_path, cls_token=False, mean_tokens=False, lasttoken=True)
    torch.testing.assert_close(pooled, torch.stack([states[0, 4], states[1, 2]]))  # both [SEP]


@pytest.mark.parametrize("on", [("max_tokens",), ("mean_tokens", "max_tokens"), ()])
def test_a_pooling_that_is_not_built_is_one_line(on) -> None:
    modes = {f"pooling_mode_{mode}": mode in on for mode in ("cls_token", "mean_tokens", "max_tokens")}
    with pytest.raises(ValueError, match=f"pools by {' and '.join(on) or 'nothing'} .*there are cls_token") as told:
        pretrained.sentence_pooling("mine", modes | {"word_embedding_dimension": 16})
    assert "\n" not in str(told.value)


def test_a_hub_id_is_pooled_as_the_hub_says(tmp_path, monkeypatch) -> None:
    """A hub without the file has no sentence encoder there; what a plain encoder does is asked of its configuration."""
    from huggingface_hub.errors import EntryNotFoundError

    asked = []

    def download(place, file):
        asked.append((place, file))
        if place == "owner/plain":
            raise EntryNotFoundError("404")
        (tmp_path / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
        return str(tmp_path / "config.json")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("florilegium.hub.reached", lambda: True)
    net = transformers.AutoModel.from_config(TEXT_NETS["bert"])
    assert pretrained.text_pooling("owner/sentences", net) == "mean"
    assert pretrained.text_pooling("owner/plain", net) == "first"
    assert asked == [("owner/sentences", "1_Pooling/config.json"), ("owner/plain", "1_Pooling/config.json")]


def test_towers_of_a_pair_model_give_its_embeddings(tmp_path) -> None:
    conf = clients(width=20, tokens=16, mine={"pretrained": write_pair(tmp_path)})
    whole = transformers.CLIPModel.from_pretrained(tmp_path / "pair").eval()
    reads = vocabulary(conf, "mine")
    image, text = body(conf, "image", "mine").eval(), body(conf, "text", "mine", reads).eval()
    assert image.net.text_model is None and text.net.vision_model is None
    speller = transformers.AutoTokenizer.from_pretrained(tmp_path / "pair")
    given = speller(["a cat", "a red dog"], padding=True, return_tensors="pt")
    with torch.no_grad():
        said = whole(pixel_values=((pictures() + 1) / 2 - image.mean) / image.std, **given)
        ours = (image(pictures()), text(reads(["a cat", "a red dog"])))
    for mine, theirs in zip(ours, (said.image_embeds, said.text_embeds), strict=True):
        torch.testing.assert_close(torch.nn.functional.normalize(mine, dim=-1), theirs, atol=1e-5, rtol=1e-5)
    dual = build_pair(conf, "mine+mine")
    assert dual.image(pictures()).shape == dual.text(reads(["a"]).repeat(2, 1)).shape == (2, 20)


def test_an_open_clip_directory_brings_its_own_tokenizer(tmp_path) -> None:
    place = str(write_clip(tmp_path / "clip"))
    conf = clients(tokens=64, mine={"pretrained": place})
    reads = vocabulary(conf, "mine")
    assert reads.longest == 16  # its context
    assert body(conf, "text", "mine", reads)(reads(["a cat " * 9])).shape == (1, 16)
    assert body(conf, "image", "mine")(pictures()).shape == (2, 16)


@pytest.mark.parametrize("name", ["mine", "bert"])
def test_frozen_and_adapted_bodies_train_what_they_say(tmp_path, name) -> None:
    """Under a name of one's own, and under one that has a class of its own."""
    place = write_text(tmp_path, "bert")
    for how, some in (("full", True), ("frozen", False), ("lora", True)):
        conf = clients(**{name: {"pretrained": place, "training": how, "rank": 2}})
        made = body(conf, "text", name, vocabulary(conf, name))
        training = [name for name, p in made.named_parameters() if p.requires_grad]
        assert bool(training) is some and all(how == "full" or "lora_" in name for name in training)


def test_what_cannot_be_used_is_one_line(tmp_path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    place = write_text(tmp_path, "bert")
    for modality, given, message in (
        ("image", {"pretrained": str(empty)}, "clients.architectures.mine: "),
        ("image", {"pretrained": str(tmp_path / "nothing")}, "no model directory"),
        ("text", {"pretrained": place, "training": "some"}, "training 'some' is none of full, frozen, lora"),
    ):
        with pytest.raises(ModelError, match=message) as raised:
            conf = clients(mine=given)
            body(conf, modality, "mine", vocabulary(conf, "mine") if modality == "text" else None)
        assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match="no image model 'dino'; there are .* `pretrained`"):
        check_architecture("image", "dino", architectures={"dino": {"hidden_size": 3}})
    with pytest.raises(ValueError, match="has no tokenizer that can be read"):
        vocabulary(clients(mine={"pretrained": str(empty)}), "mine")
