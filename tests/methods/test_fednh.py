"""FedNH: the prototypes' update by hand, uniform starts, class sums, and the head that evaluation sees."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from client_app.batches import ClientError
from client_app.methods.fednh import FedNHClient, FedNHClientSettings
from florilegium import seeds
from florilegium.learning.averaging import prototype_head
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Weights
from strategies.fednh import FedNH, FedNHSettings, uniform_prototypes, updated
from tests.toy_federation import ToyClient, ToyFederation, classifier, rounds

STEPS = {"batch": 8, "learning_rate": LearningRate(0.1)}


def test_the_update_by_hand():
    """w (1, 0), class mean (0, 1), rho 0.5 -> (1, 1) / sqrt 2; rho 0.75 -> (3, 1) / sqrt 10. No row: w_c stays."""
    w, counts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([9.0, 0])
    sums = torch.tensor([[0.0, 7.0], [0.0, 0.0]])
    half = updated(w, sums, counts, 0.5)
    assert torch.allclose(half[0], torch.tensor([1.0, 1.0]) / math.sqrt(2)) and half[1].tolist() == [0.0, 1.0]
    assert torch.allclose(updated(w, sums, counts, 0.75)[0], torch.tensor([3.0, 1.0]) / math.sqrt(10))


def test_two_clients_count_by_their_rows():
    """3 rows towards (1, 0) and 4 towards (0, 1): (0.6, 0.8)."""
    sums = torch.tensor([[3.0, 0.0]]) + torch.tensor([[0.0, 4.0]])
    moved = updated(torch.tensor([[1.0, 0.0]]), sums, torch.tensor([7.0]), 0.0)
    assert torch.allclose(moved, torch.tensor([[0.6, 0.8]]))


def test_prototypes_start_orthonormal_and_the_same_every_time():
    w = uniform_prototypes(5, 8, seeds.generator(0, "prototypes"))
    assert torch.allclose(w @ w.T, torch.eye(5), atol=1e-6)
    assert torch.equal(w, uniform_prototypes(5, 8, seeds.generator(0, "prototypes")))
    many = uniform_prototypes(9, 4, seeds.generator(0, "prototypes"))
    assert torch.allclose(many.norm(dim=-1), torch.ones(9))


def test_the_ordinary_head_scores_as_the_hypersphere_does():
    model, x = classifier(), torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    w = uniform_prototypes(2, 4, seeds.generator(1))
    model.load_state_dict(prototype_head(w, torch.tensor(20.0)), strict=False)
    z = model.encode(x).detach()
    assert torch.allclose(model.head(z), 20 * normalize(z, dim=-1) @ w.T, rtol=2e-3, atol=0.02)  # LayerNorm's epsilon


def test_class_sums_by_hand(tmp_path):
    client = ToyClient(0, tmp_path, 7)
    sums, counts = FedNHClient.class_sums(client)
    assert counts.tolist() == [4, 3]
    z = normalize(client.encoded(client.x), dim=-1)
    for c in range(2):
        mean = z[client.labels == c].mean(0)
        assert torch.allclose(sums[c], counts[c] * mean / mean.norm(), atol=1e-5)


def test_a_round(tmp_path):
    half = FedNHClient(FedNHClientSettings(**STEPS))
    strategy, federation = FedNH(FedNHSettings(smoothing=0.5)), ToyFederation(half, tmp_path, (8, 24))
    rounds(strategy, federation, 0)
    start = dict(strategy.weights)
    assert "classifier.weight" not in start and start["fednh.scale"].item() == 20.0
    ups = [half.train(ToyClient(k, tmp_path / "by hand", n), Weights(start)) for k, n in ((0, 8), (1, 24))]
    assert "fednh.prototypes" not in ups[0].tensors and "classifier.weight" not in ups[0].tensors
    metrics = rounds(strategy, federation, 1)[1]
    assert not federation.faults and metrics["fednh/classes"] == 2 and metrics["fednh/scale"] != 20.0
    sums = ups[0].tensors["fednh.sums"] + ups[1].tensors["fednh.sums"]
    expected = normalize(0.5 * start["fednh.prototypes"] + 0.5 * normalize(sums, dim=-1), dim=-1)
    assert torch.allclose(strategy.weights["fednh.prototypes"], expected, atol=1e-5)
    name = "body.0.weight"
    assert torch.allclose(strategy.weights[name], (ups[0].tensors[name] + ups[1].tensors[name]) / 2, atol=1e-6)


def test_what_evaluation_sees_is_what_was_trained(tmp_path):
    """The judged model's loss is that of scale * cos(z, W), and it falls."""
    half = FedNHClient(FedNHClientSettings(**STEPS))
    strategy, federation = FedNH(FedNHSettings()), ToyFederation(half, tmp_path, (32, 32))
    metrics = rounds(strategy, federation, 6)
    assert metrics[-1]["train/task"] < metrics[1]["train/task"]
    model = classifier()
    model.load_state_dict(strategy.judged_model().tensors)
    model.eval()
    client = ToyClient(0, tmp_path / "other", 32)
    z = model.encode(client.x)
    scores = strategy.weights["fednh.scale"] * normalize(z, dim=-1) @ strategy.weights["fednh.prototypes"].T
    assert cross_entropy(model.head(z), client.labels).item() == pytest.approx(
        cross_entropy(scores, client.labels).item(), abs=1e-3
    )


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("fednh.counts", torch.tensor([90.0, 0.0]), "sums to 90 of 24 examples"),
        ("fednh.counts", torch.tensor([-1.0, 3.0]), "sums to 2 of 24 examples"),
        ("fednh.sums", torch.full((2, 4), 1e6), "has a class mean longer than one"),
        ("fednh.sums", torch.zeros(2, 3), r"is float32 \[2, 3\], expected float32 \[2, 4\]"),
    ],
)
def test_implausible_classes_are_left_out_and_named(name, value, line, tmp_path):
    import re

    def tamper(k, up):
        return Weights(up.tensors | {name: value}, up.examples, up.metrics) if k == 1 and up.metrics else up

    federation = ToyFederation(FedNHClient(FedNHClientSettings(**STEPS)), tmp_path, tamper=tamper)
    rounds(FedNH(FedNHSettings()), federation, 1)
    ((k, fault),) = federation.faults
    assert k == 1 and re.search(line, fault)


def test_a_server_without_prototypes_is_refused(tmp_path):
    half = FedNHClient(FedNHClientSettings())
    with pytest.raises(ClientError, match="the server sent no prototypes"):
        half.train(ToyClient(0, tmp_path), Weights({"body.0.weight": torch.zeros(1)}))
