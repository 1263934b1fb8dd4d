"""FedBN, FedPer and FedRep: which tensors stay, by name and by bytes; a round by hand; two turns; the door."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from client_app.blocks.averaging import LocalSettings
from client_app.methods.averaging.fedbn import FedBNClient, FedBNClientSettings
from client_app.methods.averaging.fedper import FedPerClient, FedPerClientSettings, last_layers
from client_app.methods.averaging.fedrep import FedRepClient, FedRepClientSettings
from client_app.methods.fedavg import FedAvgClient
from florilegium.learning.fit import LearningRate
from florilegium.privacy.listing import listing
from florilegium.protocol import personal
from florilegium.protocol.payloads import Nothing, Weights
from strategies.averaging.shared_part import SharedPart, SharedPartSettings
from tests.toy_federation import ToyClient, ToyFederation, classifier, rounds, same

STEPS = {"batch": 8, "learning_rate": LearningRate(0.1), "momentum": 0.0, "weight_decay": 0.0, "clip": None}
HALVES = [
    FedBNClient(FedBNClientSettings(**STEPS)),
    FedPerClient(FedPerClientSettings(**STEPS)),
    FedRepClient(FedRepClientSettings(**STEPS)),
]


def size(state):
    return sum(value.numel() * value.element_size() for value in state.values())


@pytest.mark.parametrize(
    "half, floats, counters",
    [
        (HALVES[0], 4 * 6, 1),  # gamma, beta, mean and variance of six numbers, and a counter of 8 bytes
        (HALVES[1], 4 * 2 + 2, 0),  # a classifier of two classes, four wide
        (HALVES[2], 4 * 2 + 2, 0),
    ],
)
def test_bytes_are_those_of_the_model_without_what_stays(half, floats, counters, tmp_path):
    strategy, federation = SharedPart(SharedPartSettings()), ToyFederation(half, tmp_path, norm=True)
    rounds(strategy, federation, 1)
    assert size(strategy.weights) == size(classifier(norm=True).state_dict()) - 4 * floats - 8 * counters
    assert not strategy.weights.keys() & half.personal(classifier(norm=True)) and not federation.faults


def test_layers_of_fedper_are_counted_from_the_end():
    model = classifier(norm=True)  # a linear layer, batch norm, tanh; the projection; the classifier
    head, project = {"classifier.weight", "classifier.bias"}, {"project.weight", "project.bias"}
    assert last_layers(model, 1) == head
    assert last_layers(model, 2) == head | project
    with pytest.raises(ValueError, match="personal_layers is 3, but the model has 3 layers and must share some"):
        last_layers(model, 3)


@pytest.mark.parametrize("half", HALVES)
def test_a_round_averages_what_is_shared_and_keeps_the_rest(half, tmp_path):
    """8 and 24 rows: shared <- 1/4 shared_0 + 3/4 shared_1. What stays differs between clients and comes back."""
    strategy, federation = SharedPart(SharedPartSettings()), ToyFederation(half, tmp_path, (8, 24), norm=True)
    rounds(strategy, federation, 0)
    start = dict(strategy.weights)
    ups = [half.train(ToyClient(k, tmp_path / "by hand", n, norm=True), Weights(start)) for k, n in ((0, 8), (1, 24))]
    rounds(strategy, federation, 1)
    for name, value in strategy.weights.items():
        mean = (ups[0].tensors[name].double() + 3 * ups[1].tensors[name].double()) / 4
        mean = mean if value.is_floating_point() else mean.round()
        assert torch.allclose(value.double(), mean, atol=1e-6)
    after = [ToyClient(k, tmp_path, n, norm=True, round_=2) for k, n in ((0, 8), (1, 24))]
    own = half.personal(after[0].model)
    states = [client.model.state_dict() for client in after]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in own)
    seen = personal.completed(strategy.judged_model()(federation.clients[0]).tensors, after[0].model, own)
    assert seen.keys() == states[0].keys() and all(torch.equal(seen[name], states[0][name]) for name in own)


def test_fedrep_trains_the_head_first_and_then_the_body(tmp_path):
    """One step each, by hand: the body's gradient is taken with the head that was just trained."""
    one = STEPS | {"batch": 16, "local_epochs": 1}
    half, client = FedRepClient(FedRepClientSettings(**one)), ToyClient(0, tmp_path)
    start = {name: value.clone() for name, value in client.model.state_dict().items()}
    up = half.train(client, Weights({n: v for n, v in start.items() if not n.startswith("classifier")}))
    by_hand = classifier()
    for part in ("classifier", "body.project"):
        cross_entropy(by_hand(client.x), client.labels).backward()
        with torch.no_grad():
            for name, p in by_hand.named_parameters():
                if name.split(".")[0] in part.split("."):
                    p -= 0.1 * p.grad
                p.grad = None
    expected = by_hand.state_dict()
    assert same(client.model.state_dict(), expected, atol=1e-6)
    assert same(up.tensors, {n: v for n, v in expected.items() if not n.startswith("classifier")}, atol=1e-6)
    assert up.metrics["head/steps"] == 1 and up.metrics["steps"] == 1
    assert all(p.requires_grad for p in client.model.parameters())


def test_without_personal_layers_it_is_fedavg(tmp_path):
    """No normalisation layer in the model: FedBN sends everything."""
    ours, theirs = (SharedPart(SharedPartSettings()) for _ in range(2))
    rounds(ours, ToyFederation(HALVES[0], tmp_path / "a"), 2)
    rounds(theirs, ToyFederation(FedAvgClient(LocalSettings(**STEPS)), tmp_path / "b"), 2)
    assert same(ours.weights, theirs.weights, atol=0)


def test_the_door_refuses_an_upload_with_personal_tensors():
    model = classifier()
    keeps = personal.personal_names(HALVES[1], model)
    with pytest.raises(ValueError, match="Weights.tensors has classifier.weight, which is personal and never leaves"):
        personal.check_stays(Weights(model.state_dict()), keeps)
    personal.check_stays(Weights({n: v for n, v in model.state_dict().items() if n not in keeps}), keeps)
    personal.check_stays(Nothing(), keeps)
    assert personal.personal_names(FedAvgClient(LocalSettings()), model) == frozenset()
    with pytest.raises(ValueError, match="personal names body.9, which the model does not have"):
        personal.personal_names(SimpleNamespace(personal=lambda model: {"body.9"}), model)


def test_the_privacy_listing_says_what_stays(toy_conf):
    """The head of four classes, 32 wide: (4 x 32 + 4) floats stay; an upload is smaller by as much."""
    alike = "clients.mix=[{modality: image, model: resnet}]"
    shared, whole = (listing(toy_conf(f"method={method}", alike)) for method in ("fedrep", "fedavg"))
    (said,) = [note for note in shared.notes if note.startswith("Personal tensors")]
    assert "image resnet 528 B" in said and not any(note.startswith("Personal") for note in whole.notes)
    sizes = [next(f.size for f in x.fields if f.name == "tensors" and f.way == "up") for x in (shared, whole)]
    assert sizes[1] - sizes[0] == 528
