"""FedProx: nothing without mu, a pull by hand, and clients that stay nearer."""

import pytest
import torch

from client_app.blocks.averaging import LocalSettings
from client_app.methods.fedavg import FedAvgClient
from client_app.methods.fedprox import FedProxClient, FedProxClientSettings
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Weights
from strategies.fedavg import FedAvg, FedAvgSettings
from tests.toy_federation import ToyClient, ToyFederation, rounds, same

STEPS = {"batch": 8, "learning_rate": LearningRate(0.1), "weight_decay": 0.0, "clip": None, "momentum": 0.0}


def test_without_mu_it_is_fedavg(tmp_path):
    ours, theirs = FedAvg(FedAvgSettings()), FedAvg(FedAvgSettings())
    rounds(ours, ToyFederation(FedProxClient(FedProxClientSettings(proximal=0.0)), tmp_path / "a"), 2)
    rounds(theirs, ToyFederation(FedAvgClient(LocalSettings()), tmp_path / "b"), 2)
    assert same(ours.weights, theirs.weights, atol=0)


def test_the_pull_by_hand(tmp_path):
    """Two full-batch steps: w1 = w0 - eta g(w0); w2 = w1 - eta (g(w1) + mu (w1 - w0))."""
    eta, mu = 0.1, 3.0
    start = ToyClient(0, tmp_path).model.state_dict()
    start = {name: value.clone() for name, value in start.items()}
    plain = STEPS | {"batch": 16}
    one = FedAvgClient(LocalSettings(local_epochs=1, **plain)).train(ToyClient(0, tmp_path), Weights(start)).tensors
    two = FedAvgClient(LocalSettings(local_epochs=2, **plain)).train(ToyClient(0, tmp_path), Weights(start)).tensors
    up = FedProxClient(FedProxClientSettings(local_epochs=2, proximal=mu, **plain)).train(
        ToyClient(0, tmp_path), Weights(start)
    )
    expected = {name: two[name] - eta * mu * (one[name] - start[name]) for name in two}
    assert same(up.tensors, expected, atol=1e-6)
    moved = sum(((one[name] - start[name]) ** 2).sum().item() for name in one)
    assert up.metrics["proximal"] == pytest.approx(mu / 2 * moved / 2, rel=1e-4)  # nothing at the first of two steps
    assert up.metrics["share/proximal"] > 0


def test_more_mu_keeps_nearer(tmp_path):
    def away(mu):
        start = {name: value.clone() for name, value in ToyClient(0, tmp_path).model.state_dict().items()}
        up = FedProxClient(FedProxClientSettings(proximal=mu, **STEPS)).train(ToyClient(0, tmp_path), Weights(start))
        return torch.stack([(up.tensors[name] - start[name]).norm() for name in start]).norm().item()

    assert away(0.0) > away(0.5) > away(2.0)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="proximal must lie between 0 and"):
        FedProxClientSettings(proximal=-1.0)
    with pytest.raises(ValueError, match="local_epochs"):
        FedProxClientSettings(local_epochs=-1)
