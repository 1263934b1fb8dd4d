"""CreamFL: contrasts and aggregation by hand, G of each kind, what a client remembers, bad replies."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import mse_loss, normalize

from client_app.batches import ClientError
from client_app.blocks.representing import inputs_of, seen
from client_app.methods.representations.creamfl import CreamFLClient, CreamFLClientSettings
from client_app.opening import open_client
from florilegium.data.datasets import DataError
from florilegium.data.public import open_public
from florilegium.learning.losses import info_nce, model_contrast
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Features, Nothing, PublicSet
from florilegium.resources import Resources
from strategies.blocks.public_set import PublicSetSettings
from strategies.blocks.retriever import Retriever, RetrieverSettings, annealed
from strategies.representations.creamfl import CreamFL, CreamFLSettings, carried, mean_anchors

I2, SWAPPED = torch.eye(2), torch.eye(2).flip(0)
MIX = ["clients.mix=[{modality: image, model: vit}, {modality: text, model: bert}, {modality: pair, model: vit+bert}]"]


def test_the_contrast_between_models_by_hand():
    """z = near, far at a right angle, temperature 1/2: log(1 + e^-2); near and far alike: log 2."""
    z, near, far = torch.tensor([[3.0, 0]]), torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 2]])
    assert model_contrast(z, near, far, 0.5).item() == pytest.approx(math.log1p(math.exp(-2)))
    assert model_contrast(z, near, near, 0.5).item() == pytest.approx(math.log(2))


def test_the_contrast_between_modalities_is_over_all_public_pairs():
    """One row of a batch against three texts: its own at cosine 1, two at 0: log(1 + 2 e^-2) at temperature 1/2."""
    texts = torch.eye(3)
    assert info_nce(texts[2:], texts, torch.tensor([2]), 0.5).item() == pytest.approx(math.log1p(2 * math.exp(-2)))


# -- aggregation ------------------------------------------------------------------------------------------------------


def server(**settings):
    strategy = CreamFL.__new__(CreamFL)
    strategy.settings = CreamFLSettings(**settings)
    return strategy


def test_a_client_weighs_as_it_finds_the_other_side_of_a_pair():
    """Scores log e/(e+1) and log 1/(e+1) differ by one: weights 1/(1+1/e) = 0.7311 and 0.2689."""
    anchors = {"image": SWAPPED, "text": I2}  # the images' own anchors would turn the weights round
    merged, metrics = server().aggregated({"image": ([3, 7], torch.stack([I2, SWAPPED]))}, anchors)
    w = 1 / (1 + math.exp(-1))
    assert torch.allclose(merged["image"], w * I2 + (1 - w) * SWAPPED)
    assert metrics == pytest.approx({"fusion/image_weight_3": w, "fusion/image_weight_7": 1 - w})


def test_uniform_weights_are_the_control():
    merged, metrics = server(aggregation="uniform").aggregated(
        {"image": ([0, 1], torch.stack([I2, SWAPPED]))}, {"text": I2}
    )
    assert torch.equal(merged["image"], torch.full((2, 2), 0.5)) and set(metrics.values()) == {0.5}


def test_a_side_nobody_has_is_not_merged_and_without_its_anchor_weights_are_equal():
    merged, metrics = server().aggregated({"text": ([0, 1], torch.stack([I2, SWAPPED]))}, {"text": I2})
    assert list(merged) == ["text"] and set(metrics.values()) == {0.5}


def test_clients_permuted_weights_permuted():
    reps = normalize(torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    anchors = {"text": normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), dim=-1)}
    one, there = server().aggregated({"image": ([0, 1, 2], reps)}, anchors)
    other, back = server().aggregated({"image": ([2, 0, 1], reps[[2, 0, 1]])}, anchors)
    assert torch.allclose(one["image"], other["image"], atol=1e-6) and there == pytest.approx(back)


# -- G: the server's features -----------------------------------------------------------------------------------------


def test_the_clients_mean_as_unit_vectors():
    found = mean_anchors({"image": ([0, 1], torch.stack([I2, I2])), "text": ([2, 3], torch.stack([I2, SWAPPED]))})
    assert torch.allclose(found["image"], I2) and torch.allclose(found["text"], torch.full((2, 2), 0.5**0.5))


@pytest.mark.parametrize(("wide", "width"), [(4, 4), (4, 9), (9, 4)])
def test_features_of_another_width_keep_their_cosines_where_they_can(wide, width):
    x = torch.randn(6, wide, generator=torch.Generator().manual_seed(0))
    out = carried(x, width, 0)
    assert out.shape == (6, width) and torch.allclose(out.norm(dim=1), torch.ones(6), atol=1e-5)
    if wide <= width:
        unit = normalize(x, dim=-1)
        assert torch.allclose(out @ out.T, unit @ unit.T, atol=1e-5)
    assert torch.equal(out, carried(x, width, 0)) and not torch.equal(out, carried(x, width, 1))


def test_clip_features_of_both_sides(toy_conf):
    conf = toy_conf("method=creamfl", "method.server.anchors=clip", "method.server.public.samples=6")
    strategy = CreamFL(
        CreamFLSettings(anchors="clip", public=PublicSetSettings(samples=6, fresh=False)), Resources(conf)
    )
    found = strategy.anchors(strategy.public.drawn(1))
    assert {side: tuple(g.shape) for side, g in found.items()} == {"image": (6, 32), "text": (6, 32)}
    assert strategy.server_model is None and strategy.supervised(strategy.public.drawn(1), 1) == {}


def test_the_mean_needs_answers_first():
    with pytest.raises(ValueError, match="anchors: mean needs the clients' answers first"):
        CreamFLSettings(anchors="mean")


def test_the_learning_rate_is_half_a_cosine_over_the_rounds():
    assert [annealed((r, 4)) for r in (0, 1, 3)] == pytest.approx([1, 1, 0.5])
    assert annealed((5, 4)) == pytest.approx(0, abs=1e-12)


@pytest.fixture
def retriever(toy_conf):
    conf = toy_conf("method=creamfl")
    settings = RetrieverSettings(architecture="resnet+distilbert", learning_rate=0.01, batch=8, kd_epochs=4, epochs=4)
    return Retriever(settings, Resources(conf)), open_public(conf).select(torch.arange(16))


def test_features_are_clean(retriever):
    """Twice the same, unit length, and batch norm counts nothing."""
    server, pairs = retriever
    before = {n: v.clone() for n, v in server.model.state_dict().items()}
    one, two = (server.features(pairs.images, pairs.texts) for _ in range(2))
    assert all(torch.equal(one[side], two[side]) for side in one)
    assert torch.allclose(one["text"].norm(dim=1), torch.ones(16), atol=1e-5)
    assert all(torch.equal(v, before[n]) for n, v in server.model.state_dict().items())


def test_supervision_and_distillation_learn(retriever):
    server, pairs = retriever
    losses = [server.supervise(pairs.images, pairs.texts, pairs.groups, (1, 4))["server/retrieval"] for _ in range(3)]
    assert losses[-1] < losses[0]
    start = server.features(pairs.images, pairs.texts)
    target = normalize(torch.randn(1, start["image"].shape[1], generator=torch.Generator().manual_seed(3)), dim=-1)
    target = target.expand(16, -1)
    told = server.distill(pairs.images, pairs.texts, {"image": target}, 100.0, (1, 4))
    end = server.features(pairs.images, pairs.texts)
    assert list(told) == ["server/kd_image"] and mse_loss(end["image"], target) < mse_loss(start["image"], target)
    assert torch.equal(end["text"], start["text"]) or mse_loss(end["text"], start["text"]) < 1e-4  # decay alone
    assert server.distill(pairs.images, pairs.texts, {}, 0.3, (1, 4)) == {}


# -- the client -------------------------------------------------------------------------------------------------------


def opened(conf, k, round_, step):
    client = open_client(conf, {"partition-id": k}, Header("method", round_, step))
    client.memory.begin()
    return client


@pytest.mark.parametrize(("k", "sides"), [(0, ["image"]), (1, ["text"]), (2, ["image", "text"])])
def test_a_client_contrasts_answers_and_goes_on_from_there(k, sides, toy_conf):
    conf, half = toy_conf("method=creamfl", *MIX), CreamFLClient(CreamFLClientSettings(pretrain_epochs=1))
    pairs = open_public(conf).select(torch.arange(12))
    asked = PublicSet(open_public(conf).order, pairs.ids)
    first = opened(conf, k, 0, 1)
    half.train(first, Nothing())
    first.save()
    left = {n: v.clone() for n, v in first.model.state_dict().items()}
    now = opened(conf, k, 1, 1)
    half.train(now, Nothing())
    now.save()

    client = opened(conf, k, 1, 2)
    inputs = inputs_of(client, asked)
    old = CreamFLClient.before(client, inputs)  # the model that round 0 left, not the one trained since
    assert all(torch.equal(client.model.state_dict()[n], v) for n, v in now.model.state_dict().items())
    client.model.load_state_dict(left)
    assert all(torch.equal(old[side], z) for side, (z, _) in seen(client, inputs).items())

    client = opened(conf, k, 1, 2)
    g = normalize(torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    report = half.distill(client, Features(pairs.ids, g[0], g[1]))
    client.save()
    assert {f"{name}_{side}" for name in ("inter", "intra") for side in sides} | {"private"} <= report.metrics.keys()
    assert report.metrics[f"inter_{sides[0]}"] == pytest.approx(0.5 * math.log(12), rel=0.3)  # nothing is known yet
    told = half.represent(opened(conf, k, 1, 3), asked)
    for side in ("image", "text"):
        found = getattr(told, side)
        assert found.shape == (12, 32 if side in sides else 0)
        if side in sides:
            assert torch.allclose(found.norm(dim=1), torch.ones(12), atol=1e-5)
            assert not torch.equal(found, old[side])


def test_the_terms_by_hand_before_the_first_step(toy_conf):
    """One batch of all pairs: the reported terms are those of the model that came in."""
    conf = toy_conf("method=creamfl", *MIX)
    half = CreamFLClient(CreamFLClientSettings(pretrain_epochs=1, mix_private=False, public_batch=12))
    pairs = open_public(conf).select(torch.arange(12))
    client = opened(conf, 1, 0, 1)
    half.train(client, Nothing())
    client.save()
    client = opened(conf, 1, 0, 2)
    for layer in client.model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    inputs = inputs_of(client, PublicSet(open_public(conf).order, pairs.ids))
    z, (g_image, g_text) = (
        seen(client, inputs)["text"][0],
        normalize(torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0)), dim=-1),
    )
    old = CreamFLClient.before(client, inputs)["text"]
    inter = -((z @ g_image.T / 0.5).log_softmax(-1).diagonal()).mean()
    near, far = ((z * other).sum(-1) / 0.5 for other in (g_text, old))
    report = half.distill(client, Features(pairs.ids, g_image, g_text))
    assert report.metrics["inter_text"] == pytest.approx(0.5 * inter.item(), rel=1e-3)
    intra = (torch.logaddexp(near, far) - near).mean().item()
    assert report.metrics["intra_text"] == pytest.approx(0.5 * intra, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "there"),
    [({"inter": False}, {"intra_image"}), ({"intra": False}, {"inter_image"}), ({"contrast": 0.0}, set())],
)
def test_each_contrast_can_be_switched_off(settings, there, toy_conf):
    conf = toy_conf("method=creamfl", *MIX)
    half = CreamFLClient(CreamFLClientSettings(pretrain_epochs=1, mix_private=False, **settings))
    client = opened(conf, 0, 0, 1)
    half.train(client, Nothing())
    client.save()
    g = normalize(torch.randn(12, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    report = half.distill(opened(conf, 0, 0, 2), Features(open_public(conf).ids[:12], g, g))
    assert {name for name in report.metrics if name.startswith("in")} == there


def test_another_public_set_is_refused_with_both_hashes(toy_conf):
    conf = toy_conf("method=creamfl", *MIX)
    half, ours = CreamFLClient(CreamFLClientSettings()), open_public(conf)
    with pytest.raises(DataError, match=f"{ours.order[:16]}.*{'0' * 16}"):
        half.represent(opened(conf, 0, 1, 1), PublicSet("0" * 64, ours.ids[:0]))
    with pytest.raises(DataError, match="no pair with id 999999"):
        half.represent(opened(conf, 0, 1, 1), PublicSet(ours.order, torch.tensor([999999])))


def test_features_of_another_width_are_refused(toy_conf):
    conf = toy_conf("method=creamfl", *MIX)
    wrong = torch.zeros(4, 7)
    with pytest.raises(ClientError, match="the server's features are 7 and 7 wide, representations 32"):
        CreamFLClient(CreamFLClientSettings()).distill(
            opened(conf, 0, 1, 1), Features(open_public(conf).ids[:4], wrong, wrong)
        )


def test_the_headline_of_the_server_is_its_own_encoder(toy_conf):
    conf = toy_conf("method=creamfl", *MIX)
    settings = CreamFLSettings(
        encoder=RetrieverSettings(architecture="resnet+bert"), public=PublicSetSettings(samples=6)
    )
    strategy = CreamFL(settings, Resources(conf))
    assert strategy.server_model is strategy.encoder.model
    tensors, meta = strategy.state()
    other = CreamFL(
        settings,
        SimpleNamespace(**{**vars(Resources(conf)), "seed": 9, "classes": Resources(conf).classes}),
    )
    other.restore(tensors, meta)
    assert all(torch.equal(v, tensors[f"encoder.{n}"]) for n, v in other.encoder.state().items())
