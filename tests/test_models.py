"""Every architecture speaks encode and head, reproducibly, and refuses what it cannot build in one line."""

import pytest
import torch

from florilegium import assets, seeds
from florilegium.config import composition
from florilegium.config.clients import ClientsSettings
from florilegium.learning.metrics import ClipScore
from florilegium.models import bodies, build
from florilegium.models.build import build_pair
from florilegium.models.embeddings import image_features, text_features
from florilegium.models.tokens import open_vocabulary

KINDS = [(modality, name) for modality, names in build.ARCHITECTURES.items() for name in names]


def inputs(modality, vocabulary):
    if modality == "image":
        return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return vocabulary(["a red disc", "picture of a blue cross , large", "green"])


def built(conf, modality, name, *seed):
    vocabulary = open_vocabulary("toy", 12)
    with seeds.scoped("model", *seed):
        return build.build(conf.clients, modality, name, 4, vocabulary).eval(), inputs(modality, vocabulary)


@pytest.mark.parametrize(("modality", "name"), KINDS)
def test_shapes_norm_and_seed(toy_conf, modality, name):
    conf = toy_conf()
    model, x = built(conf, modality, name, 1)
    with torch.no_grad():
        z_BD = model.encode(x)
        assert z_BD.shape == (3, 32) and model.head(z_BD).shape == (3, 4)
        assert torch.allclose(z_BD.mean(-1), torch.zeros(3), atol=1e-5)
        assert torch.allclose(z_BD.var(-1, unbiased=False), torch.ones(3), atol=1e-2)
        assert torch.equal(z_BD, built(conf, modality, name, 1)[0].encode(x))
        assert not torch.equal(z_BD, built(conf, modality, name, 2)[0].encode(x))


@pytest.mark.parametrize(
    ("finish", "expected"),
    [("layer_norm", [-1.2247, 0.0, 1.2247]), ("none", [-1.0, 2.0, 5.0]), ("relu", [0.0, 2.0, 5.0])],
)
def test_representations_are_finished_as_the_settings_say(toy_conf, finish, expected):
    """(-1, 2, 5) has mean 2 and deviation root 6."""
    x = torch.tensor([[-1.0, 2.0, 5.0]])
    model = bodies.Classifier(torch.nn.Identity(), 3, 3, 2, finish=finish)
    assert torch.allclose(model.encode(x), torch.tensor([expected]), atol=1e-4)
    assert torch.equal(model.finished(x), model.encode(x))
    assert built(toy_conf(f"clients.representation={finish}"), "image", "resnet")[0].finish == finish


def test_group_norm_takes_the_place_of_batch_norm(toy_conf):
    conf = toy_conf()
    conf.clients.architectures["resnet"]["norm"] = "group"
    model, x = built(conf, "image", "resnet", 1)
    kinds = [type(m).__name__ for m in model.modules()]
    assert "BatchNorm2d" not in kinds and "GroupNorm" in kinds
    with torch.no_grad():  # a row is judged alone: no statistics of the batch, in training neither
        assert torch.allclose(model.train().encode(x)[:1], model.train().encode(x[:1]), atol=1e-5)
    conf.clients.architectures["resnet"]["norm"] = "layer"
    with pytest.raises(bodies.ModelError, match="norm 'layer' is none of batch, group"):
        built(conf, "image", "resnet", 1)


@pytest.mark.parametrize(("modality", "name"), KINDS)
def test_small_and_full_sizes_have_every_architecture(modality, name):
    small, full = (
        composition.compose([f"architectures@clients.architectures={size}"]).clients.architectures
        for size in ("small", "full")
    )
    assert full[name]["pretrained"]
    with seeds.scoped("small"):
        model = build.build(ClientsSettings(architectures=small), modality, name, 24, open_vocabulary("toy", 32))
    assert 2e4 < sum(p.numel() for p in model.parameters()) < 2e6


def test_a_text_does_not_see_its_padding(toy_conf):
    for name in build.ARCHITECTURES["text"]:
        model, _ = built(toy_conf(), "text", name, 1)
        vocabulary = open_vocabulary("toy", 12)
        with torch.no_grad():
            alone = model.encode(vocabulary(["a red disc"]))
            padded = model.encode(vocabulary(["a red disc", "a picture of a small green square , also named box"]))
        assert torch.allclose(alone[0], padded[0], atol=1e-5)


def test_vocabulary_by_hand():
    vocabulary = open_vocabulary("toy", 4)
    ids = vocabulary(["disc square", "zebra"])
    assert ids.tolist() == [[2, 3, 4], [2, 1, 0]]  # [CLS] is 2, unknown 1, padding 0
    assert vocabulary(["disc square disc square disc"]).shape == (1, 4)
    assert vocabulary([]).shape[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vit": {"hiden_size": 32}}, "clients.architectures.vit: ViTConfig has no key 'hiden_size'"),
        ({"vit": None}, "clients.architectures.vit is missing"),
        ({"vit": {"pretrained": "/nowhere/at/all"}}, "clients.architectures.vit: "),
    ],
)
def test_a_wrong_size_is_named(changes, message):
    clients = ClientsSettings(width=32, architectures=changes)
    with pytest.raises(bodies.ModelError) as caught:
        build.build(clients, "image", "vit", 4)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_the_towers_of_a_clip_see_what_it_sees():
    """Features of a fresh "clip+clip" are open_clip's own, also of a cut text; its projections change nothing."""
    clients = composition.compose(["data=emoji", "clients=mixed"]).clients
    dual, clip = build_pair(clients, "clip+clip"), ClipScore(str(assets.path("models", "mini-clip")))
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    texts = ["grinning face", "a", "cat, " * 30]
    assert torch.allclose(image_features(dual.image, images), clip.encode_images(images), atol=1e-3)
    assert torch.allclose(text_features(dual.text, texts, dual.vocabulary), clip.encode_texts(texts), atol=1e-4)
    with torch.no_grad():
        padded = dual.text(dual.vocabulary(["a"])), dual.text(dual.vocabulary(["a", "grinning face with big eyes"]))
    assert torch.allclose(padded[0][0], padded[1][0], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["clients.architectures.clip.path=/nowhere"], "/nowhere is no directory of an open_clip model"),
        (["clients.tokenizer=toy"], r"this CLIP knows 2943 tokens, clients.tokenizer \d+"),
        (["clients.architectures.clip=null"], "clients.architectures.clip is missing"),
    ],
)
def test_a_clip_that_cannot_be_had_is_named(changes, message):
    with pytest.raises((bodies.ModelError, ValueError), match=message) as caught:
        build_pair(composition.compose(["data=emoji", "clients=mixed", *changes]).clients, "clip+clip")
    assert "\n" not in str(caught.value)


def test_an_unknown_model_lists_the_choices():
    with pytest.raises(bodies.ModelError, match="no image model 'bert'; there are resnet, vit, beit, clip"):
        build.check_architecture("image", "bert")
    with pytest.raises(bodies.ModelError, match="no modality 'sound'; there are image, text"):
        build.check_architecture("sound", "bert")


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="clients.tokenizer: .*nothing.json cannot be read"):
        open_vocabulary(str(tmp_path / "nothing.json"), 8)


@pytest.mark.parametrize(("modality", "name"), KINDS)
def test_bodies_compute_in_bfloat16_where_they_are_told_to(toy_conf, modality, name):
    """Eight bits of a significand: near the figures of float32, not the same. What leaves the model is float32."""
    exact, x = built(toy_conf(), modality, name, 1)
    model, _ = built(toy_conf("clients.precision=bfloat16"), modality, name, 1)
    seen = []
    linear = next(m for m in model.body.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)))
    linear.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    z_BD = model.encode(x)
    assert seen == [torch.bfloat16] and z_BD.dtype == torch.float32
    assert not torch.equal(z_BD, exact.encode(x))
    assert torch.allclose(z_BD, exact.encode(x), atol=0.1)
    model.head(z_BD).sum().backward()
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters() if p.grad is not None}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
