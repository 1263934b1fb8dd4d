"""FedMKD: attention over teachers, the mixture's contrast and the alignment by hand; what moves, and what does not."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from client_app.batches import ClientError
from client_app.blocks.representing import read, seen
from client_app.methods.representations.fedmkd import FedMKDClient, FedMKDClientSettings
from client_app.opening import open_client
from florilegium.data.public import open_public
from florilegium.learning.fit import LearningRate
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Features, Nothing
from florilegium.resources import Resources
from strategies.blocks.public_set import PublicSetSettings
from strategies.blocks.retriever import RetrieverSettings
from strategies.representations.fedmkd import Attention, FedMKD, FedMKDSettings, contrast

MIX = ["clients.mix=[{modality: image, model: vit}, {modality: pair, model: vit+bert}]"]


def test_attention_over_teachers_by_hand():
    """Width 2 without the network: <own, teacher> / 2 is 1/2 for the first teacher and 0 for the second, so they weigh
    e^(1/2) to 1. The second sample stands between both."""
    found = Attention(2, 2)
    found.project = nn.Identity()
    for layer in (found.query, found.key):
        layer.weight.data = torch.eye(2)
    own = torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5]])
    teachers = torch.stack([torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 2)])
    w = math.exp(0.5) / (math.exp(0.5) + 1)
    assert torch.allclose(found(own, teachers), torch.tensor([[w, 0.5], [1 - w, 0.5]]))


def test_the_contrast_with_the_mixture_by_hand():
    """Two samples, each alike to its own teacher and at a right angle to the other's: log(1 + e^-2) at T = 1/2. A
    teacher's length does not count."""
    own = torch.eye(2)
    assert contrast(own, 3 * own, 0.5).item() == pytest.approx(math.log1p(math.exp(-2)))
    assert contrast(own, own.flip(0), 0.5).item() == pytest.approx(math.log1p(math.exp(2)))


@pytest.fixture
def server(toy_conf):
    conf = toy_conf("method=fedmkd")

    def made(**given):
        encoder = RetrieverSettings(architecture="resnet+distilbert", learning_rate=0.01, batch=8, kd_epochs=2)
        public = PublicSetSettings(samples=16, fresh=False)
        return FedMKD(FedMKDSettings(encoder=encoder, public=public, **given), Resources(conf))

    return made


def features(*names, width=32, count=16):
    return torch.stack(
        [normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(n)), dim=-1) for n in names]
    )


@pytest.mark.parametrize("integration", ["attention", "uniform"])
def test_teachers_weights_sum_to_one_and_the_control_has_equal_ones(integration, server):
    strategy = server(integration=integration)
    before = {n: v.clone() for n, v in strategy.state()[0].items()}
    told = strategy.distill(strategy.public.drawn(1), {"image": ([0, 4, 5], features(1, 2, 3))}, 1)
    weights = [told[f"fusion/image_{k}_weight"] for k in (0, 4, 5)]
    assert sum(weights) == pytest.approx(1) and (weights == pytest.approx([1 / 3] * 3)) == (integration == "uniform")
    assert {"server/retrieval", "server/distillation_image"} <= told.keys() and "server/distillation_text" not in told
    moved = {n.split(".")[0] for n, v in strategy.state()[0].items() if not torch.equal(v, before[n])}
    assert moved == ({"encoder", "attention"} if integration == "attention" else {"encoder"})


def test_the_server_comes_nearer_to_its_teachers_and_its_state_comes_back(server):
    strategy, teachers = server(distillation=1.0), {"text": ([0], features(1))}
    losses = [strategy.distill(strategy.public.drawn(1), teachers, 1)["server/distillation_text"] for _ in range(4)]
    assert losses[-1] < losses[0]
    tensors, meta = strategy.state()
    other = server(distillation=1.0)
    other.restore(tensors, meta)
    assert all(torch.equal(v, tensors[n]) for n, v in other.state()[0].items())


def test_a_client_gets_the_sides_that_it_reads(server):
    strategy = server()
    public = strategy.public.drawn(1)
    anchors = {"image": torch.ones(16, 2), "text": torch.zeros(16, 2)}
    down = strategy.down(public, anchors, SimpleNamespace(modality="text"))
    assert down.image.shape == (16, 0) and torch.equal(down.text, anchors["text"])


def test_the_alignment_of_a_client_by_hand(toy_conf, tmp_path):
    """A step of size 0: the mean of 2 - 2 cos, weighted, of both sides of a retrieval client, but for its dropout."""
    conf = toy_conf("method=fedmkd", *MIX)
    still = FedMKDClientSettings(
        alignment=3.0, learning_rate=LearningRate(0.0, 0.0, 0.0), weight_decay=0.0, mix_private=False, public_batch=64
    )
    half, node = FedMKDClient(still), {"partition-id": 1, "state-dir": str(tmp_path)}
    pairs = open_public(conf).select(torch.arange(16))
    anchors = features(1)[0], features(2)[0]
    first = open_client(conf, node, Header("method", 0, 1))
    half.train(first, Nothing())
    first.save()
    client = open_client(conf, node, Header("method", 1, 1))
    report = half.distill(client, Features(pairs.ids, *anchors))
    found = seen(client, read(client, pairs.images, pairs.texts))
    for side, anchor in zip(("image", "text"), anchors, strict=True):
        expected = 3 * (2 - 2 * (found[side][0] * anchor).sum(-1)).mean().item()
        assert report.metrics[f"alignment_{side}"] == pytest.approx(expected, rel=0.05)
    narrow = Features(pairs.ids, anchors[0][:, :5], anchors[1])
    with pytest.raises(ClientError, match="the server's image features are 5 wide, not 32"):
        half.distill(client, narrow)
