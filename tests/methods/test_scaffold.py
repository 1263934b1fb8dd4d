"""SCAFFOLD: one client is SGD, a corrected step and both control variates by hand, and what a client remembers."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from client_app.blocks.averaging import LocalSettings
from client_app.methods.fedavg import FedAvgClient
from client_app.methods.scaffold import ScaffoldClient, ScaffoldClientSettings
from florilegium.learning.averaging import model_part, named, part
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Weights
from strategies.fedavg import FedAvg, FedAvgSettings
from strategies.scaffold import Scaffold, ScaffoldSettings, moved
from tests.toy_federation import ToyClient, ToyFederation, rounds, same

PLAIN = {"batch": 8, "learning_rate": LearningRate(0.1), "momentum": 0.0, "weight_decay": 0.0, "clip": None}


def test_zero_control_variates_and_one_client_are_sgd(tmp_path):
    """c = c_k after every round, so that nothing is ever corrected."""
    ours, theirs = Scaffold(ScaffoldSettings()), FedAvg(FedAvgSettings())
    rounds(ours, ToyFederation(ScaffoldClient(ScaffoldClientSettings(**PLAIN)), tmp_path / "a", (16,), norm=True), 3)
    rounds(theirs, ToyFederation(FedAvgClient(LocalSettings(**PLAIN)), tmp_path / "b", (16,), norm=True), 3)
    assert same(model_part(ours.weights), theirs.weights, atol=1e-6)
    assert any(value.abs().max() > 0 for value in part(ours.weights, "control").values())


def gradient(client, tensors):
    client.load(tensors)
    client.model.train()
    cross_entropy(client.model(client.x), client.labels).backward()
    return {name: p.grad.clone() for name, p in client.model.named_parameters()}


def test_a_corrected_step_by_hand(tmp_path):
    """One full-batch step with c and c_k: y = x - eta (g - c_k + c); option II gives c_k+ = g; up goes g - c_k."""
    eta, one = 0.1, PLAIN | {"batch": 16, "local_epochs": 1}
    half = ScaffoldClient(ScaffoldClientSettings(**one))
    x = {name: value.clone() for name, value in ToyClient(0, tmp_path).model.state_dict().items()}
    c = {name: torch.full_like(value, 0.3) for name, value in x.items()}
    own = {name: torch.full_like(value, -0.2) for name, value in x.items()}
    earlier = ToyClient(0, tmp_path, round_=0)
    earlier.memory.write("control", own)
    g = gradient(ToyClient(0, tmp_path), x)
    up = half.train(ToyClient(0, tmp_path, round_=1), Weights(x | named("control", c)))
    assert same(model_part(up.tensors), {n: x[n] - eta * (g[n] + 0.2 + 0.3) for n in x}, atol=1e-6)
    assert same(part(up.tensors, "control"), {n: g[n] + 0.2 for n in x}, atol=1e-5)
    assert same(ToyClient(0, tmp_path, round_=2).memory.read("control")[0], g, atol=1e-5)


@pytest.mark.parametrize("still", [{"local_epochs": 0}, {"learning_rate": LearningRate(0.0)}])
def test_without_a_step_the_control_variates_stay(still, tmp_path):
    """S eta = 0: c_k stays -0.2, the change is 0, the weights are the server's."""
    half = ScaffoldClient(ScaffoldClientSettings(**PLAIN | still))
    x = {name: value.clone() for name, value in ToyClient(0, tmp_path).model.state_dict().items()}
    own = {name: torch.full_like(value, -0.2) for name, value in x.items()}
    ToyClient(0, tmp_path, round_=0).memory.write("control", own)
    down = x | named("control", {name: torch.full_like(value, 0.3) for name, value in x.items()})
    up = half.train(ToyClient(0, tmp_path, round_=1), Weights(down))
    assert same(model_part(up.tensors), x, atol=0)
    assert not any(change.any() for change in part(up.tensors, "control").values())
    assert same(ToyClient(0, tmp_path, round_=2).memory.read("control")[0], own, atol=0)


def test_the_servers_control_variate_moves_by_the_share_of_the_cohort(tmp_path):
    """Two of four clients: c <- 0 + 1/4 (dc_0 + dc_2); x <- the plain mean, whatever their sizes."""
    half, sizes = ScaffoldClient(ScaffoldClientSettings(**PLAIN)), (8, 8, 24, 8)
    strategy, federation = Scaffold(ScaffoldSettings()), ToyFederation(half, tmp_path, sizes, cohort=(0, 2))
    rounds(strategy, federation, 0)
    down = Weights(strategy.weights)
    ups = [half.train(ToyClient(k, tmp_path / "by hand", sizes[k]), down).tensors for k in (0, 2)]
    rounds(strategy, federation, 1)
    for name, value in part(strategy.weights, "control").items():
        assert torch.allclose(value, (ups[0][f"control.{name}"] + ups[1][f"control.{name}"]) / 4, atol=1e-6)
        assert torch.allclose(strategy.weights[name], (ups[0][name] + ups[1][name]) / 2, atol=1e-6)


def test_batch_norms_counters_have_no_control_variate(tmp_path):
    strategy = Scaffold(ScaffoldSettings())
    federation = ToyFederation(ScaffoldClient(ScaffoldClientSettings()), tmp_path, norm=True)
    rounds(strategy, federation, 2)
    assert not any("running" in name or "num_batches" in name for name in part(strategy.weights, "control"))
    assert strategy.weights["body.1.num_batches_tracked"].dtype == torch.int64
    assert "control.body.0.weight" not in strategy.judged_model().tensors and not federation.faults


def test_with_momentum_the_control_variate_is_still_the_mean_gradient(tmp_path):
    """A constant gradient g (tiny steps): c_k+ = g, whatever the momentum."""
    tiny = {"batch": 16, "local_epochs": 6, "learning_rate": LearningRate(1e-4), "weight_decay": 0.0, "clip": None}
    half = ScaffoldClient(ScaffoldClientSettings(**tiny | {"momentum": 0.9}))
    x = {name: value.clone() for name, value in ToyClient(0, tmp_path).model.state_dict().items()}
    g = gradient(ToyClient(0, tmp_path), x)
    half.train(ToyClient(0, tmp_path), Weights(x | named("control", {n: torch.zeros_like(v) for n, v in x.items()})))
    assert same(ToyClient(0, tmp_path, round_=2).memory.read("control")[0], g, atol=2e-2)


def test_the_servers_rate_by_hand():
    x, mean = (
        {"w": torch.tensor([1.0]), "b.running_mean": torch.tensor([1.0])},
        {"w": torch.tensor([3.0]), "b.running_mean": torch.tensor([3.0])},
    )
    half = moved(x, mean, 0.5)
    assert half["w"].item() == 2.0 and half["b.running_mean"].item() == 3.0 and moved(x, mean, 1.0) == mean


def test_it_needs_sgd():
    with pytest.raises(ValueError, match="optimizer must be sgd, control variates are gradients of SGD, got 'adamw'"):
        ScaffoldClientSettings(optimizer="adamw")
