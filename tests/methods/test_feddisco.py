"""FedDisco and FedCDA: weights, discrepancies and choices by hand; where they are FedAvg."""

import math

import pytest
import torch

from client_app.blocks.averaging import LocalSettings
from client_app.methods.averaging.feddisco import FedDiscoClient, discrepancy
from client_app.methods.fedavg import FedAvgClient
from florilegium.learning.averaging import without
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Weights
from strategies.averaging.fedcda import FedCDA, FedCDASettings, cached, closest, flat
from strategies.averaging.feddisco import FedDisco, FedDiscoSettings, adjusted
from strategies.fedavg import FedAvg, FedAvgSettings
from tests.toy_federation import ToyClient, ToyFederation, rounds, same

STEPS = {"batch": 8, "learning_rate": LearningRate(0.1)}


def test_the_discrepancy_by_hand():
    """Even classes: 0. One of four: log 4. Three to one of two: log 2 - H(1/4)."""
    assert discrepancy(torch.tensor([5, 5, 5])) == pytest.approx(0, abs=1e-9)
    assert discrepancy(torch.tensor([0, 7, 0, 0])) == pytest.approx(math.log(4))
    h = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert discrepancy(torch.tensor([3, 1])) == pytest.approx(math.log(2) - h)


def test_the_weights_by_hand():
    """p (.5, .3, .2), d (1, 1, 2) -> d / 4; a .5, b .1: (.475, .275, .05) of .8. Negative: 0; none positive: p."""
    q = adjusted([0.5, 0.3, 0.2], [1, 1, 2], 0.5, 0.1)
    assert q == pytest.approx([0.475 / 0.8, 0.275 / 0.8, 0.05 / 0.8])
    assert adjusted([0.9, 0.1], [0, 1], 0.5, 0.1) == [1.0, 0.0]
    assert adjusted([0.5, 0.5], [1, 1], 9.0, 0.0) == [0.5, 0.5]
    assert adjusted([0.5, 0.5], [0, 0], 0.5, 0.1) == pytest.approx([0.5, 0.5])


def test_without_a_and_b_it_is_fedavg(tmp_path):
    ours, theirs = FedDisco(FedDiscoSettings(discrepancy=0, offset=0)), FedAvg(FedAvgSettings())
    metrics = rounds(ours, ToyFederation(FedDiscoClient(LocalSettings(**STEPS)), tmp_path / "a"), 2)
    rounds(theirs, ToyFederation(FedAvgClient(LocalSettings(**STEPS)), tmp_path / "b"), 2)
    assert same(ours.weights, theirs.weights, atol=1e-6) and "train/discrepancy" in metrics[1]


def test_bytes_are_those_of_fedavg_and_a_lying_client_is_named(tmp_path):
    client = ToyClient(0, tmp_path)
    up = FedDiscoClient(LocalSettings(**STEPS)).train(client, Weights(client.model.state_dict()))
    assert up.tensors.keys() == client.model.state_dict().keys()

    def tamper(k, up):
        return Weights(up.tensors, up.examples, up.metrics | {"discrepancy": 9.0}) if k == 1 and up.metrics else up

    federation = ToyFederation(FedDiscoClient(LocalSettings(**STEPS)), tmp_path / "b", tamper=tamper)
    rounds(FedDisco(FedDiscoSettings()), federation, 1)
    ((k, fault),) = federation.faults
    assert k == 1 and "metrics[discrepancy] is 9.0, not in [0, 0.693247]" in fault


# -- FedCDA ------------------------------------------------------------------------------------------------------------


def state(value, rows=1.0):
    return {"w": torch.tensor([value]), "rows": torch.tensor(rows)}


def test_the_choice_by_hand():
    """Client 0 had 0 and 5, client 1 had 1 and 9. From the newest (5, 9): 0 takes 5 (4 away, not 9); 1 takes 9 or 1,
    both 4 away, so the first, 1; then 0 takes 0, and 1 stays at 1."""
    chosen = closest([[state(0.0), state(5.0)], [state(1.0), state(9.0)]], 2)
    assert [s["w"].item() for s in chosen] == [0.0, 1.0]
    assert [s["w"].item() for s in closest([[state(0.0), state(5.0)]], 2)] == [5.0]  # alone: the newest


def test_others_count_by_their_rows():
    """The others stand at 0 with 3 rows and at 10 with 1: their mean is 2.5, so 4 is nearer than 6."""
    chosen = closest([[state(0.0, 3.0)], [state(10.0)], [state(6.0), state(4.0)]], 1)
    assert chosen[2]["w"].item() == 4.0
    assert closest([[state(0.0)], [state(10.0, 3.0)], [state(6.0), state(4.0)]], 1)[2]["w"].item() == 6.0


def test_the_cache_is_a_part_of_the_checkpoint():
    kept = {3: {1: state(1.0), 2: state(2.0)}, 10: {2: state(4.0, 7.0)}}
    names = flat(kept)
    assert names["cache.10.2.rows"] == 7 and cached(names | {"w": torch.zeros(1)}).keys() == kept.keys()
    assert cached(names)[3][2]["w"].item() == 2.0


def test_the_warm_up_is_fedavg_and_the_last_models_are_kept(tmp_path):
    ours, theirs = FedCDA(FedCDASettings(warmup=1.0, history=2)), FedAvg(FedAvgSettings())
    ours.num_rounds = 3
    half = FedAvgClient(LocalSettings(**STEPS))
    rounds(ours, ToyFederation(half, tmp_path / "a", norm=True), 3)
    rounds(theirs, ToyFederation(half, tmp_path / "b", norm=True), 3)
    assert same(without(ours.weights, "cache"), theirs.weights, atol=1e-6)
    assert {k: sorted(mine) for k, mine in cached(ours.weights).items()} == {0: [2, 3], 1: [2, 3]}
    assert ours.judged_model().tensors.keys() == theirs.weights.keys()


def test_clients_of_earlier_rounds_count_after_the_warm_up(tmp_path):
    """Client 1 answered in round 1 alone; in round 2 it still has a share."""
    half, strategy = FedAvgClient(LocalSettings(**STEPS)), FedCDA(FedCDASettings(warmup=0.5))
    strategy.num_rounds = 2
    federation = ToyFederation(half, tmp_path)
    rounds(strategy, federation, 1)
    federation.cohort, federation.round = federation.clients[:1], 2
    assert strategy.round(2, federation)["weights/averaged"] == 2
