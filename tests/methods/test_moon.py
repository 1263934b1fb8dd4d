"""MOON: without a previous model the contrast pulls nowhere; the loss by hand; what is remembered."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from client_app.blocks.averaging import LocalSettings
from client_app.methods.fedavg import FedAvgClient
from client_app.methods.moon import MoonClient, MoonClientSettings
from florilegium.learning.averaging import model_part
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Weights
from strategies.fedavg import FedAvg, FedAvgSettings
from tests.toy_federation import ToyClient, ToyFederation, classifier, rounds, same

STEPS = {"batch": 8, "learning_rate": LearningRate(0.1), "weight_decay": 0.0, "clip": None}


def fresh(tmp_path, half):
    return half.train(ToyClient(0, tmp_path / "fresh", round_=0), Weights({})).tensors


@pytest.mark.parametrize("projection", [0, 8])
def test_the_first_round_without_a_previous_model_is_fedavg(projection, tmp_path):
    """The global model stands in for it: l_con = log 2, and its gradients cancel."""
    half = MoonClient(MoonClientSettings(projection=projection, **STEPS))
    start = fresh(tmp_path, half)
    up = half.train(ToyClient(1, tmp_path), Weights(start))
    plain = FedAvgClient(LocalSettings(**STEPS)).train(ToyClient(1, tmp_path), Weights(model_part(start)))
    assert same(model_part(up.tensors), plain.tensors, atol=1e-5)
    assert up.metrics["contrast"] == pytest.approx(5 * math.log(2), rel=1e-4)
    assert up.metrics["share/contrast"] == pytest.approx(0, abs=1e-5)


def test_the_loss_by_hand(tmp_path):
    """One step from w with a previous model of another seed: mu * mean -log(e^g / (e^g + e^p)), g, p = cos / tau."""
    one = STEPS | {"batch": 16, "local_epochs": 1}
    half = MoonClient(MoonClientSettings(projection=0, contrast=2.0, temperature=0.5, **one))
    now, before = classifier(seed=1), classifier(seed=2)
    ToyClient(0, tmp_path, round_=0).memory.write("model", before.state_dict(), {"trained": 1})
    client = ToyClient(0, tmp_path, round_=1)
    up = half.train(client, Weights({name: value.clone() for name, value in now.state_dict().items()}))
    with torch.no_grad():
        z, last = now.encode(client.x), before.encode(client.x)
        g, p = (cosine_similarity(z, other) / 0.5 for other in (z, last))
    expected = 2 * (torch.logaddexp(g, p) - g).mean().item()
    assert up.metrics["contrast"] == pytest.approx(expected, rel=1e-4)
    assert up.metrics["share/contrast"] > 0


def test_the_last_local_model_is_remembered_with_its_projection_head(tmp_path):
    half = MoonClient(MoonClientSettings(projection=8, **STEPS))
    strategy, federation = FedAvg(FedAvgSettings()), ToyFederation(half, tmp_path)
    rounds(strategy, federation, 2)
    assert "moon.0.weight" in strategy.weights and strategy.weights["moon.2.weight"].shape[0] == 8
    client = ToyClient(1, tmp_path, 24, round_=3)
    assert client.trained == 2 and client.memory.read("moon")[0].keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    up = half.train(client, Weights(strategy.weights))
    assert up.metrics["share/contrast"] > 0.001 and not federation.faults
    assert strategy.judged_model().tensors.keys() == classifier().state_dict().keys()


def test_frozen_models_are_not_trained_and_count_nothing(tmp_path):
    half = MoonClient(MoonClientSettings(projection=0, **STEPS))
    client = ToyClient(0, tmp_path, norm=True)
    weights = {name: value.clone() for name, value in client.model.state_dict().items()}
    seen = half.frozen(client, weights, {})
    assert not seen(client.x).requires_grad
    assert same(client.model.state_dict(), weights)


def test_without_mu_it_is_fedavg(tmp_path):
    ours, theirs = FedAvg(FedAvgSettings()), FedAvg(FedAvgSettings())
    rounds(ours, ToyFederation(MoonClient(MoonClientSettings(contrast=0.0, projection=0)), tmp_path / "a"), 2)
    rounds(theirs, ToyFederation(FedAvgClient(LocalSettings()), tmp_path / "b"), 2)
    assert same(ours.weights, theirs.weights, atol=0)
