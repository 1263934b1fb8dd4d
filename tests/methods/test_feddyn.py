"""FedDyn: two rounds of the server by hand, the client's terms by hand, and where it is another method."""

import pytest
import torch

from client_app.blocks.averaging import LocalSettings
from client_app.methods.averaging.feddyn import FedDynClient, FedDynClientSettings
from client_app.methods.fedprox import FedProxClient, FedProxClientSettings
from florilegium.learning.averaging import part, without
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Weights
from strategies.averaging.feddyn import FedDyn, FedDynSettings, drifted
from tests.toy_federation import ToyClient, ToyFederation, rounds, same

STEPS = {"batch": 8, "learning_rate": LearningRate(0.1), "momentum": 0.0, "weight_decay": 0.0, "clip": None}


def test_the_drift_by_hand():
    """theta 1; 2 of 4 clients end at 3 and 0: g = 0.5 + (2 - 1) / 4 = 0.75."""
    g, theta = {"w": torch.tensor([0.5])}, {"w": torch.tensor([1.0])}
    assert drifted(g, theta, [{"w": torch.tensor([3.0])}, {"w": torch.tensor([0.0])}], 4)["w"].item() == 0.75


def test_rounds_by_hand(tmp_path):
    """theta_t = mean_P theta_k - h_t / alpha with h_t = h_{t-1} - alpha/m sum_P (theta_k - theta_{t-1})."""
    half = FedDynClient(FedDynClientSettings(alpha=0.1, **STEPS))
    strategy = FedDyn(FedDynSettings())
    federation = ToyFederation(half, tmp_path, (8, 24, 16), norm=True, cohort=(0, 2))
    rounds(strategy, federation, 0)
    theta = without(strategy.weights, "drift")
    h = {n: torch.zeros_like(v) for n, v in part(strategy.weights, "drift").items()}
    assert "body.1.running_mean" not in h and "body.1.weight" in h
    for r in (1, 2):
        clients = [ToyClient(k, tmp_path / "by hand", n, norm=True, round_=r) for k, n in ((0, 8), (2, 16))]
        ups = [half.train(client, Weights(dict(theta))).tensors for client in clients]
        federation.round = r
        strategy.round(r, federation)
        h = {n: h[n] - 0.1 / 3 * sum(up[n] - theta[n] for up in ups) for n in h}
        mean = {n: (ups[0][n].double() + ups[1][n].double()) / 2 for n in theta}
        theta = {n: (m - h[n] / 0.1 if n in h else m).to(theta[n].dtype) for n, m in mean.items()}
        assert same(without(strategy.weights, "drift"), theta, atol=1e-5) and not federation.faults


def test_a_step_by_hand(tmp_path):
    """Round 1, one step: the terms have no gradient at theta. Round 2, one step: w = theta - 0.1 (grad L + alpha q)."""
    one = STEPS | {"batch": 16, "local_epochs": 1}
    half, plain = FedDynClient(FedDynClientSettings(alpha=0.5, **one)), FedProxClient(FedProxClientSettings(**one))
    theta = {name: value.clone() for name, value in ToyClient(0, tmp_path).model.state_dict().items()}
    first = half.train(ToyClient(0, tmp_path, round_=1), Weights(theta)).tensors
    assert same(first, plain.train(ToyClient(0, tmp_path / "b", round_=1), Weights(theta)).tensors, atol=1e-7)
    second = half.train(ToyClient(0, tmp_path, round_=2), Weights(theta)).tensors
    without_q = plain.train(ToyClient(0, tmp_path / "b", round_=2), Weights(theta)).tensors
    expected = {n: without_q[n] - 0.1 * 0.5 * (first[n] - theta[n]) for n in theta}
    assert same(second, expected, atol=1e-6)


def test_the_first_round_is_fedprox_with_mu_alpha(tmp_path):
    """q = 0: the regulariser is alpha/2 |w - theta|^2."""
    ours = FedDynClient(FedDynClientSettings(alpha=0.3, **STEPS))
    theirs = FedProxClient(FedProxClientSettings(proximal=0.3, **STEPS))
    theta = ToyClient(0, tmp_path).model.state_dict()
    start = {name: value.clone() for name, value in theta.items()}
    up = ours.train(ToyClient(1, tmp_path / "a"), Weights(start))
    assert same(up.tensors, theirs.train(ToyClient(1, tmp_path / "b"), Weights(start)).tensors, atol=1e-6)


def test_bytes_are_those_of_fedavg(tmp_path):
    """h and the clients' gradients never cross."""
    half = FedDynClient(FedDynClientSettings(**STEPS))
    client = ToyClient(0, tmp_path)
    up = half.train(client, Weights(client.model.state_dict()))
    assert up.tensors.keys() == client.model.state_dict().keys() and client.memory.versions("drift")


def test_alpha_must_be_positive():
    with pytest.raises(ValueError, match="alpha"):
        FedDynClientSettings(alpha=0.0)
    assert FedDynClientSettings().momentum == LocalSettings().momentum
