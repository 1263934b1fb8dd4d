"""FedAvg within each architecture: a mean of each by hand, one alone is FedAvg, each judged with its own weights."""

import json

import pytest
import torch

from client_app.blocks.averaging import LocalSettings
from client_app.methods.fedavg import FedAvgClient
from florilegium import preflight
from florilegium.config import composition
from florilegium.federation.federation import Client as Known
from florilegium.federation.federation import FederationError
from florilegium.learning.averaging import named, part
from florilegium.protocol.payloads import Weights
from strategies.blocks.weights import group_of, grouped
from strategies.fedavg import FedAvg, FedAvgSettings
from tests.toy_federation import ToyClient, ToyFederation, rounds, same

APART = FedAvgSettings(groups="architecture")
ONE = {"local_epochs": 1, "batch": 8}


def of_two_kinds(half, tmp_path, sizes=(8, 24, 16), kinds=("a", "a", "b"), cohort=None):
    federation = ToyFederation(half, tmp_path, sizes)
    federation.clients = [
        Known(100 + k, k, "image", kind, n) for k, (kind, n) in enumerate(zip(kinds, sizes, strict=True))
    ]
    federation.cohort = federation.clients if cohort is None else [federation.clients[k] for k in cohort]
    return federation


def test_groups_are_modality_and_architecture_in_the_order_of_their_names():
    clients = [Known(0, 0, "text", "bert"), Known(1, 1, "image", "vit"), Known(2, 2, "image", "vit")]
    groups = grouped(clients)
    assert [(name, [c.id for c in of]) for name, of in groups.items()] == [("image vit", [1, 2]), ("text bert", [0])]
    assert group_of(clients[1]) == "image vit"


def test_each_group_is_its_own_mean_by_examples(tmp_path):
    """8 and 24 rows: a quarter and three quarters; the third client is alone."""
    half = FedAvgClient(LocalSettings(**ONE))
    strategy, federation = FedAvg(APART), of_two_kinds(half, tmp_path)
    rounds(strategy, federation, 0)
    start = {g: part(strategy.weights, g) for g in ("image a", "image b")}
    ups = [
        half.train(ToyClient(k, tmp_path / "by hand", n), Weights(start[f"image {kind}"])).tensors
        for k, n, kind in ((0, 8, "a"), (1, 24, "a"), (2, 16, "b"))
    ]
    metrics = rounds(strategy, federation, 1)[1]
    expected = {name: 0.25 * ups[0][name] + 0.75 * ups[1][name] for name in ups[0]}
    assert same(part(strategy.weights, "image a"), expected, atol=1e-6)
    assert same(part(strategy.weights, "image b"), ups[2], atol=1e-6)
    assert metrics["weights/groups"] == 2 and metrics["weights/replies"] == 3


def test_one_group_alone_is_fedavg(tmp_path):
    ours, theirs = FedAvg(APART), FedAvg(FedAvgSettings())
    rounds(ours, ToyFederation(FedAvgClient(LocalSettings(**ONE)), tmp_path / "a"), 2)
    rounds(theirs, ToyFederation(FedAvgClient(LocalSettings(**ONE)), tmp_path / "b"), 2)
    assert same(ours.weights, named("image toy", theirs.weights), atol=0)


def test_a_group_outside_the_cohort_keeps_its_weights(tmp_path):
    strategy = FedAvg(APART)
    federation = of_two_kinds(FedAvgClient(LocalSettings(**ONE)), tmp_path, cohort=(0, 1))
    rounds(strategy, federation, 0)
    before = part(strategy.weights, "image b")
    rounds(strategy, federation, 1)
    assert same(part(strategy.weights, "image b"), before, atol=0)


def test_each_client_is_judged_with_its_own_groups_weights(tmp_path):
    strategy, federation = FedAvg(APART), of_two_kinds(FedAvgClient(LocalSettings(**ONE)), tmp_path)
    assert strategy.judged_model() is None
    rounds(strategy, federation, 1)
    judged = strategy.judged_model()
    for client in federation.clients:
        assert same(judged(client).tensors, part(strategy.weights, group_of(client)), atol=0)
    assert judged(federation.clients[0]) is judged(federation.clients[1])  # packed once
    tensors, meta = strategy.state()
    again = FedAvg(APART)
    again.restore(tensors, meta)
    assert same(again.judged_model()(federation.clients[2]).tensors, judged(federation.clients[2]).tensors, atol=0)


def test_a_group_without_a_start_is_named(tmp_path):
    federation = of_two_kinds(FedAvgClient(LocalSettings(**ONE)), tmp_path)
    ask = federation.ask
    federation.ask = lambda *a, **how: [x for x in ask(*a, **how) if x.client.id != 2]
    with pytest.raises(FederationError, match="no fresh weights of image b came"):
        FedAvg(APART).begin(federation)


def test_it_runs_with_several_architectures_and_modalities(toy_conf, federated):
    run = federated(toy_conf("method=fedavg", "method.server.groups=architecture", "rounds=1", "timeouts.quorum=1"))
    *_, last = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    mix = composition.plain(toy_conf())["clients"]["mix"]
    assert {f"client/accuracy/{k}" for k in range(len(mix))} | {"client/accuracy/text"} <= last["metrics"].keys()
    assert not [x for x in map(json.loads, (run / "ledger.jsonl").read_text().splitlines()) if x["fault"]]


def test_retrieval_clients_average_among_themselves(toy_conf, federated):
    pair = "{modality: pair, model: vit+bert}"
    mix = f"clients.mix=[{{modality: image, model: vit}}, {pair}, {pair}]"
    run = federated(toy_conf("method=fedavg", "method.server.groups=architecture", mix, "timeouts.quorum=1"))
    *_, last = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    rsum = [last["metrics"][f"client/rsum/{k}"] for k in (1, 2)]
    assert rsum[0] == rsum[1] and "client/accuracy/0" in last["metrics"]  # one model, one held-out set
    assert not [x for x in map(json.loads, (run / "ledger.jsonl").read_text().splitlines()) if x["fault"]]


@pytest.mark.parametrize("method", ["fedprox", "moon"])
def test_methods_with_terms_of_their_own_have_nothing_for_retrieval(method, toy_conf):
    mix = "clients.mix=[{modality: image, model: vit}, {modality: pair, model: vit+bert}]"
    with pytest.raises(composition.SettingsError, match=f"{method} has nothing for pair clients"):
        preflight.validate(toy_conf(f"method={method}", "method.server.groups=architecture", mix))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("method.server.groups=none", "averages weights and needs one architecture"),
        ("method.server.groups=arch", "groups must be one of none, architecture, got 'arch'"),
    ],
)
def test_a_bad_setting_is_one_line(override, line, toy_conf):
    with pytest.raises(composition.SettingsError, match=line):
        preflight.validate(toy_conf("method=fedavg", override))


def test_uploads_are_held_to_their_groups_shapes(tmp_path):
    def tamper(k, up):
        return (
            Weights({n: v[..., :1] for n, v in up.tensors.items()}, up.examples, up.metrics)
            if k == 1 and up.metrics
            else up
        )

    half = FedAvgClient(LocalSettings(**ONE))
    strategy, federation = FedAvg(APART), of_two_kinds(half, tmp_path)
    federation.tamper = tamper
    metrics = rounds(strategy, federation, 1)[1]
    assert metrics["weights/replies"] == 2 and "expected float32" in federation.faults[0][1]
    assert torch.isfinite(strategy.weights["image a.classifier.bias"]).all()
