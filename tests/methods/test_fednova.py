"""FedNova: effective steps, the normalised average by hand, and FedAvg where all take as many steps."""

import pytest
import torch

from client_app.blocks.averaging import LocalSettings
from client_app.methods.fedavg import FedAvgClient
from client_app.methods.fednova import FedNovaClient, FedNovaClientSettings
from florilegium.learning.averaging import effective_steps
from florilegium.protocol.payloads import Weights
from strategies.fedavg import FedAvg, FedAvgSettings
from strategies.fednova import FedNova, FedNovaSettings, normalised_average
from tests.toy_federation import ToyFederation, rounds, same


def test_effective_steps_by_hand():
    """Momentum 0.5, three gradients g: v = g, 1.5 g, 1.75 g, so 4.25 g in all."""
    assert effective_steps(7) == 7 and effective_steps(1, 0.9) == pytest.approx(1)
    assert effective_steps(3, 0.5) == pytest.approx(4.25)
    v = total = 0.0
    for _ in range(20):
        v = 0.9 * v + 1
        total += v
    assert effective_steps(20, 0.9) == pytest.approx(total)


def test_no_epoch_is_refused_in_one_line():
    """The steps divide; a learning rate of 0 has steps."""
    assert FedNovaClient.Settings is FedNovaClientSettings
    with pytest.raises(ValueError, match="local_epochs must be at least 1, FedNova divides by a client's steps, got 0"):
        FedNovaClientSettings(local_epochs=0)


def test_the_average_by_hand():
    """p 1/4, 3/4; a 1, 3; w 10 -> 8 and 4: d 2 and 2; a_eff 2.5; w - 2.5 * 2 = 5 (FedAvg: 5)."""

    def state(w, variance, batches):
        return {
            "w": torch.tensor([w]),
            "bn.running_var": torch.tensor([variance]),
            "bn.num_batches_tracked": torch.tensor(batches),
        }

    start, states = state(10.0, 1.0, 0), [state(8.0, 0.1, 1), state(4.0, 0.5, 3)]
    mean = normalised_average(start, states, [0.25, 0.75], [1.0, 3.0])
    assert mean["w"].item() == pytest.approx(5.0)
    assert mean["bn.running_var"].item() == pytest.approx(0.4) and mean["bn.num_batches_tracked"].item() == 2  # 2.5
    # now client 1 drifts as far with a third of the steps: d 2 and 6 -> 10 - 1 * (0.5 + 4.5)
    assert normalised_average(start, states, [0.25, 0.75], [1.0, 1.0])["w"].item() == pytest.approx(5.0)
    # and with more: a 3, 1; d 2/3, 6; a_eff 1.5; 10 - 1.5 * (1/6 + 4.5) = 3
    assert normalised_average(start, states, [0.25, 0.75], [3.0, 1.0])["w"].item() == pytest.approx(3.0)


def test_with_equal_steps_it_is_fedavg(tmp_path):
    """16 and 12 rows in batches of 8 are two steps each."""
    local = LocalSettings(batch=8)
    ours, theirs = FedNova(FedNovaSettings()), FedAvg(FedAvgSettings())
    rounds(ours, ToyFederation(FedNovaClient(local), tmp_path / "a", (16, 12), norm=True), 2)
    rounds(theirs, ToyFederation(FedAvgClient(local), tmp_path / "b", (16, 12), norm=True), 2)
    assert same(ours.weights, theirs.weights, atol=1e-6)


def test_with_unequal_steps_it_is_not(tmp_path):
    local = LocalSettings(batch=8, momentum=0.5)
    ours, theirs = FedNova(FedNovaSettings()), FedAvg(FedAvgSettings())
    metrics = rounds(ours, ToyFederation(FedNovaClient(local), tmp_path / "a", (8, 32)), 1)[1]
    rounds(theirs, ToyFederation(FedAvgClient(local), tmp_path / "b", (8, 32)), 1)
    assert not same(ours.weights, theirs.weights, atol=1e-4)
    a = [effective_steps(2, 0.5), effective_steps(8, 0.5)]
    assert metrics["train/effective_steps"] == pytest.approx(0.2 * a[0] + 0.8 * a[1])


@pytest.mark.parametrize("lie", [0.0, -3.0, 1e12, None])
def test_a_lie_about_the_steps_is_left_out_and_named(lie, tmp_path):
    def tamper(k, up):
        if k != 1 or not up.metrics:
            return up
        told = {name: value for name, value in up.metrics.items() if name != "effective_steps"}
        return Weights(up.tensors, up.examples, told if lie is None else told | {"effective_steps": lie})

    federation = ToyFederation(FedNovaClient(LocalSettings()), tmp_path, tamper=tamper)
    metrics = rounds(FedNova(FedNovaSettings()), federation, 1)[1]
    ((k, fault),) = federation.faults
    assert k == 1 and "metrics[effective_steps] is" in fault and metrics["weights/replies"] == 1
