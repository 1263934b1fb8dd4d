"""FedProto and FPL: class means, their average, clusters and terms by hand, bytes by the papers' formulas."""

import math

import pytest
import torch

from client_app.blocks.averaging import LocalSettings
from client_app.blocks.own_model import train_own
from client_app.blocks.prototypes import prototypes
from client_app.methods.averaging.fpl import FPLClient, FPLClientSettings, cluster_contrast
from client_app.methods.fedavg import FedAvgClient
from client_app.methods.prototypes.fedproto import FedProtoClient, FedProtoClientSettings
from florilegium.learning.averaging import without
from florilegium.learning.clustering import cluster_means, first_neighbour_clusters
from florilegium.learning.fit import LearningRate
from florilegium.protocol import codec
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Nothing, Prototypes, Weights
from strategies.averaging.fpl import FPL, FPLSettings, clustered
from strategies.blocks.prototypes import class_means
from strategies.fedavg import FedAvg, FedAvgSettings
from strategies.prototypes.fedproto import FedProto, FedProtoSettings
from tests.fakes import FakeResources
from tests.toy_federation import ToyClient, ToyFederation, rounds, same

STEPS = {"batch": 8, "learning_rate": LearningRate(0.1)}
OWN = FedProtoClientSettings(pretrain_epochs=1, local_epochs=1, batch=8)


def test_class_means_of_a_client_by_hand(tmp_path):
    client = ToyClient(0, tmp_path, 7)
    up = prototypes(client, {"task": 1.0})
    assert up.classes.tolist() == [0, 1] and up.counts.tolist() == [4, 3] and up.examples == 7
    z = client.encoded(client.x)
    assert torch.allclose(up.means[1], z[client.labels == 1].mean(0), atol=1e-6)


@pytest.mark.parametrize("weighting, expected", [("uniform", [2.0, 4.0]), ("examples", [1.5, 5.0])])
def test_the_mean_of_two_clients_by_hand(weighting, expected):
    """Class 1: (1, 6) of three rows and (3, 2) of one. Class 0 has one client, class 2 nobody."""
    ups = [
        Prototypes(torch.tensor([1]), torch.tensor([3]), torch.tensor([[1.0, 6.0]])),
        Prototypes(torch.tensor([0, 1]), torch.tensor([5, 1]), torch.tensor([[7.0, 7.0], [3.0, 2.0]])),
    ]
    means, counts = class_means(ups, 3, 2, weighting)
    assert means.tolist() == [[7.0, 7.0], expected, [0.0, 0.0]] and counts.tolist() == [5, 4, 0]


def test_rounds_of_fedproto(tmp_path):
    strategy, federation = FedProto(FedProtoSettings(), FakeResources()), ToyFederation(FedProtoClient(OWN), tmp_path)
    metrics = rounds(strategy, federation, 2)
    assert not federation.faults and metrics[-1]["prototypes/classes"] == 2 and metrics[-1]["train/prototype"] > 0
    assert "train/prototype" not in metrics[0] and strategy.judged_model() is None


def test_the_pull_by_hand(tmp_path):
    """One step of size 0: lambda * mean over rows and values of (z - prototype)^2; an unknown class adds 0."""
    still = FedProtoClientSettings(
        pretrain_epochs=1, batch=64, optimizer="sgd", learning_rate=LearningRate(0.0), pull=3.0
    )
    client = ToyClient(0, tmp_path, 6)
    target = torch.tensor([[1.0, 0.0, -1.0, 0.0]])
    up = FedProtoClient(still).train(client, Prototypes(torch.tensor([1]), torch.tensor([9]), target))
    z = client.encoded(client.x)
    expected = 3 * ((z - target) ** 2)[client.labels == 1].sum() / (6 * 4)
    assert up.metrics["prototype"] == pytest.approx(expected.item(), rel=1e-5)


def test_bytes_of_fedproto_are_the_means(tmp_path):
    """G x D floats and, ours, two whole numbers a class; the rest is names and figures."""
    up = FedProtoClient(OWN).train(ToyClient(0, tmp_path), Nothing())
    size = codec.size(codec.pack(Prototypes(up.classes, up.counts, up.means), Header("method", 1, 1)))
    arrays = 2 * 4 * 4 + 2 * 2 * 8
    assert arrays <= size < arrays + 3 * 140 + 200  # NumPy writes a head of 128 bytes before each array


def test_prediction_by_the_nearest_prototype(tmp_path):
    """Prototypes that stand where the other class is turn every answer of a perfect client around."""
    half = FedProtoClient(FedProtoClientSettings(predict="nearest"))
    client = ToyClient(0, tmp_path, 16)
    client.data.test = client.data.validation = client.data.train
    train_own(client, FedProtoClientSettings(pretrain_epochs=30, learning_rate=LearningRate(0.05)))
    own = prototypes(client, {})
    client.memory.write("prototypes", {"classes": own.classes, "means": own.means})
    client.memory.now = (2, 1)
    right = half.evaluate(client).metrics["accuracy"]
    client.memory.write("prototypes", {"classes": own.classes, "means": own.means.flip(0)})
    client.memory.now = (3, 1)
    assert right > 0.8 and half.evaluate(client).metrics["accuracy"] == pytest.approx(1 - right)


# -- FPL ---------------------------------------------------------------------------------------------------------------


def test_clusters_of_first_neighbours_by_hand():
    """Two pairs of directions: each is its pair's nearest. Merging the pairs would leave one cluster, so they stay."""
    points = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert first_neighbour_clusters(points).tolist() == [0, 0, 1, 1]
    assert torch.allclose(cluster_means(points, torch.tensor([0, 0, 1, 1])), torch.tensor([[1, 0.05], [0.05, 1]]))
    assert first_neighbour_clusters(points[:1]).tolist() == [0] and first_neighbour_clusters(points[:2]).tolist() == [
        0,
        0,
    ]


def test_clusters_are_merged_again_while_more_than_two_join():
    """0, 1, 10, 11, 80, 81, 90 and 91 degrees: four pairs, then two fours; a last step would leave one."""
    degrees = torch.tensor([0.0, 1, 10, 11, 80, 81, 90, 91])
    points = torch.stack([torch.cos(degrees * math.pi / 180), torch.sin(degrees * math.pi / 180)], 1)
    assert first_neighbour_clusters(points).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_cluster_prototypes_of_a_class_are_of_the_clients_that_have_it():
    means = torch.tensor([[[1.0, 0.0], [9.0, 9.0]], [[1.0, 0.1], [0.0, 0.0]], [[5.0, 5.0], [0.0, 2.0]]])
    counts = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 4.0]])
    clusters, classes = clustered(means, counts)
    assert classes.tolist() == [0, 1] and torch.allclose(clusters, torch.tensor([[1.0, 0.05], [0.0, 2.0]]))


def test_the_contrast_by_hand():
    """z (1, 0); class 0 has (1, 0) and (0, 1), class 1 has (-1, 0): -log((e + 1) / (e + 1 + 1/e)). Class 2: 0."""
    z, clusters = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = cluster_contrast(
        z, torch.tensor([0, 2]), clusters, torch.tensor([0, 0, 1]), FPLClientSettings(temperature=1.0)
    )
    e = math.e
    assert found.tolist() == pytest.approx([-math.log((e + 1) / (e + 1 + 1 / e)), 0.0])


def test_rounds_of_fpl(tmp_path):
    """Round 1 has no prototypes and is FedAvg. From round 2 on both terms pull. An upload is P + C (D + 1) values."""
    half, strategy = FPLClient(FPLClientSettings(**STEPS)), FPL(FPLSettings())
    federation = ToyFederation(half, tmp_path / "a", (8, 24))
    plain, other = (
        FedAvg(FedAvgSettings()),
        ToyFederation(FedAvgClient(LocalSettings(**STEPS)), tmp_path / "b", (8, 24)),
    )
    metrics = rounds(strategy, federation, 1)
    rounds(plain, other, 1)
    assert same(without(strategy.weights, "fpl"), plain.weights, atol=0) and "train/contrast" not in metrics[1]
    assert strategy.weights["fpl.classes"].tolist() == [0, 1]  # two clients: one cluster of each class
    federation.round = 2
    told = strategy.round(2, federation)
    assert told["train/contrast"] > 0 and told["train/consistency"] > 0 and not federation.faults
    up = half.train(ToyClient(0, tmp_path / "c"), Weights(dict(strategy.weights)))
    beside = up.tensors["fpl.means"].numel() + up.tensors["fpl.counts"].numel()
    assert beside == 2 * (4 + 1) and without(up.tensors, "fpl").keys() == plain.weights.keys()
    assert strategy.judged_model().tensors.keys() == plain.weights.keys()


def test_implausible_counts_are_left_out_and_named(tmp_path):
    def tamper(k, up):
        wrong = {"fpl.counts": torch.tensor([90.0, 0.0])}
        return Weights(up.tensors | wrong, up.examples, up.metrics) if k == 1 and up.metrics else up

    federation = ToyFederation(FPLClient(FPLClientSettings(**STEPS)), tmp_path, tamper=tamper)
    rounds(FPL(FPLSettings()), federation, 1)
    assert federation.faults == [(1, "Weights.tensors[fpl.counts] sums to 90 of 24 examples")]
