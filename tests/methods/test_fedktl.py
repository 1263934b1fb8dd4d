"""FedKTL: the fixed classifier, losses and the discrepancy by hand; rounds on fakes; bytes by the paper's count."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from client_app.blocks.prototypes import prototypes
from client_app.methods.prototypes.fedktl import FedKTLClient, FedKTLClientSettings, arcface, etf, simplex
from florilegium import seeds
from florilegium.learning.fit import LearningRate
from florilegium.protocol import codec
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import LatentPairs, Nothing, Prototypes
from strategies.prototypes.alignment import align, centroids_of, discrepancy, feature_transformer
from strategies.prototypes.fedktl import FedKTL, FedKTLSettings
from tests.fakes import FakeResources
from tests.toy_federation import ToyClient, ToyFederation, rounds

OWN = FedKTLClientSettings(pretrain_epochs=1, local_epochs=1, batch=8, transfer=10.0)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_fixed_classifier_is_a_simplex(classes):
    """Unit columns, any two with the cosine -1 / (C - 1)."""
    cosines = (frame := simplex(classes, seeds.generator(0))).T @ frame
    off = -1 / (classes - 1)
    assert torch.allclose(cosines, torch.eye(classes) * (1 - off) + off, atol=1e-6)


def test_all_clients_have_the_same_classifier(tmp_path):
    assert torch.equal(etf(ToyClient(0, tmp_path)), etf(ToyClient(1, tmp_path)))


def test_the_margin_by_hand():
    """Angles 60 and 90 degrees, margin 30 degrees, s 2: scores 2 cos 90 = 0 and 2 * 0 = 0, so the loss is log 2."""
    found = arcface(torch.tensor([[0.5, 0.0]]), torch.tensor([0]), math.pi / 6, 2.0)
    assert found.item() == pytest.approx(math.log(2), abs=1e-5)
    plain = arcface(torch.tensor([[0.5, 0.0]]), torch.tensor([0]), 0.0, 2.0)
    assert plain.item() == pytest.approx(cross_entropy(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).item(), abs=1e-5)


def test_the_discrepancy_by_hand():
    """One point each, 20 apart in square: 4 + 4 - 2 (e^-1 + e^-2/3 + e^-1/2 + e^-1/5); nothing between equal ones."""
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 4.0]])
    expected = 8 - 2 * (math.exp(-1) + math.exp(-2 / 3) + math.exp(-1 / 2) + math.exp(-1 / 5))
    assert discrepancy(x, y).item() == pytest.approx(expected, rel=1e-5)
    assert discrepancy(x, x).item() == 0


def test_centroids_are_the_means_of_a_class():
    """F doubles: classes 1, 1 and 0 of three; class 2 keeps what it had."""
    doubles = torch.nn.Linear(1, 1, bias=False)
    doubles.weight.data.fill_(2.0)
    found = centroids_of(doubles, torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([1, 1, 0]), torch.full((3, 1), 9.0))
    assert found.tolist() == [[10.0], [4.0], [9.0]]


def test_the_alignment_brings_the_means_of_a_class_together_and_is_repeatable():
    labels = torch.arange(3).repeat_interleave(6)
    means = normalize(torch.eye(3)[labels] + 0.2 * torch.randn(18, 3, generator=seeds.generator(1)), dim=-1)

    def run():
        with seeds.scoped(0):
            made = feature_transformer(3, 8)
        how = {"weight": 1.0, "lr": 0.01, "epochs": 60, "batch": 100, "names": (0, "align", 1)}
        return made, *align(made, means, labels, torch.zeros(3, 8), **how)

    made, centroids, told = run()
    latents = made(means).detach()
    within = (latents - centroids[labels]).square().mean()
    between = (centroids - centroids.mean(0)).square().mean()
    assert within < 0.2 * between and told["align/discrepancy"] < 1.5 and torch.equal(run()[1], centroids)


def test_what_a_client_learns_and_answers(tmp_path):
    """One step of size 0: mu times the mean square of map(z) - latent; class means are unit vectors, C wide."""
    still = FedKTLClientSettings(
        pretrain_epochs=1, batch=64, optimizer="sgd", learning_rate=LearningRate(0.0), transfer=3.0
    )
    half, client = FedKTLClient(still), ToyClient(0, tmp_path, 7)
    latents = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    down = LatentPairs(torch.tensor([0, 1]), latents, texts=("a", "b"))
    project, _ = half.objective(client, etf(client), down)
    up = half.train(client, down)
    z = client.encoded(client.inputs(down.samples))
    assert up.metrics["transfer"] == pytest.approx(3 * ((project(z) - latents) ** 2).mean().item(), rel=1e-5)
    unit = normalize(client.logits(client.encoded(client.x)), dim=-1)
    cosines = unit @ etf(client)
    assert up.metrics["task"] == pytest.approx(arcface(cosines, client.labels, 0.5, 64.0).item(), rel=1e-4)
    assert torch.allclose(up.means[1], normalize(unit[client.labels == 1].mean(0), dim=-1), atol=1e-6)
    assert half.train(client, Nothing()).metrics.keys() & {"transfer"} == set()


def test_rounds_and_the_images_of_the_classes(tmp_path):
    resources = FakeResources()
    strategy, federation = FedKTL(FedKTLSettings(prompt="", align_epochs=3), resources), None
    federation = ToyFederation(FedKTLClient(OWN), tmp_path, (8, 24))
    metrics = rounds(strategy, federation, 2)
    assert not federation.faults and metrics[2]["train/transfer"] > 0 and "train/transfer" not in metrics[0]
    assert strategy.weights["ids"].tolist() == [0, 1] and resources.drawn.tolist() == [0, 1]  # each class's own prompt
    assert resources.latents.shape == (2, 1, 2, 2)  # images start from the centroids
    assert torch.equal(resources.latents.flatten(1), strategy.weights["centroids"])
    assert strategy.captions == [] and len(strategy.lessons()["image"].images) == 2  # nobody reads texts
    other = FedKTL(FedKTLSettings(), FakeResources())
    other.restore(*strategy.state())
    assert other.lessons()["image"].images == strategy.lessons()["image"].images


def test_bytes_are_those_of_the_paper(tmp_path):
    """Up: C floats for each class of the client. Down: an image and V floats a class. The rest is heads and names."""
    client = ToyClient(0, tmp_path)
    up = prototypes(client, {}, lambda z: normalize(client.logits(z), dim=-1))
    size = codec.size(codec.pack(Prototypes(up.classes, up.counts, up.means), Header("method", 1, 1)))
    assert 0 <= size - (2 * 2 * 4 + 2 * 2 * 8) < 3 * 140 + 200
    down = LatentPairs(torch.tensor([0, 1]), torch.zeros(2, 256), texts=("a rose", "a tulip"))
    size = codec.size(codec.pack(down, Header("method", 1, 1)))
    assert 0 <= size - (2 * 256 * 4 + 2 * 8 + 13 + 2 * 8) < 4 * 140 + 200
