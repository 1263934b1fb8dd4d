"""Flower's own strategies through our adapter: each runs, their arithmetic by hand, DP, resume, and what is refused."""

import json

import numpy as np
import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

from client_app.blocks.averaging import LocalSettings
from client_app.methods.fedavg import FedAvgClient
from client_app.methods.flower import FlowerClient
from florilegium.config import composition
from florilegium.config.composition import SettingsError
from florilegium.protocol.payloads import Weights
from strategies.fedavg import FedAvg, FedAvgSettings
from strategies.flower import STRATEGIES, WRAPPERS, Flower, FlowerSettings
from tests.tiers import first
from tests.toy_federation import ToyClient, ToyFederation, rounds, same

LOCAL = LocalSettings(batch=8)
NEEDED = {
    "QFedAvg": {"client_learning_rate": 0.1},
    "FedAdam": {"eta": 0.01},
    "FedYogi": {"eta": 0.01},
    "FedAdagrad": {"eta": 0.01},
    "FedAvgM": {"server_momentum": 0.9},
}
NOISE = {"noise_multiplier": 0.01}


@pytest.fixture(autouse=True)
def identity():
    """What Flower's Message asks for."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def ran(folder, count=1, sizes=(16, 24, 16, 8), norm=True, cohort=None, **how):
    strategy = Flower(FlowerSettings(**how))
    federation = ToyFederation(FlowerClient(LOCAL), folder, sizes, norm=norm, cohort=cohort)
    return strategy, rounds(strategy, federation, count), federation


@pytest.mark.parametrize("name", first(STRATEGIES, 6))
def test_every_strategy_runs_two_rounds(name, tmp_path):
    strategy, metrics, federation = ran(tmp_path, 2, strategy=name, options=NEEDED.get(name, {}))
    assert metrics[2]["weights/replies"] == 4 and not federation.faults
    assert all(value.isfinite().all() for value in strategy.weights.values())
    assert strategy.weights["body.1.num_batches_tracked"].dtype == torch.int64
    assert strategy.weights["body.1.running_var"].min() > 0


def test_flowers_fedavg_is_ours(tmp_path):
    ours = FedAvg(FedAvgSettings())
    rounds(ours, ToyFederation(FedAvgClient(LOCAL), tmp_path / "a", (16, 24), norm=True), 2)
    theirs, *_ = ran(tmp_path / "b", 2, sizes=(16, 24), strategy="FedAvg")
    assert same(ours.weights, theirs.weights, atol=1e-6)


def uploads(folder, start, sizes):
    half = FlowerClient(LOCAL)
    return [half.train(ToyClient(k, folder / "by hand", n, True), Weights(start)).tensors for k, n in enumerate(sizes)]


def test_krum_takes_one_client_and_the_median_is_the_median(tmp_path):
    start = ran(tmp_path / "start", 0, strategy="Krum")[0].weights
    ups = uploads(tmp_path, start, (16, 24, 16, 8))
    krum, *_ = ran(tmp_path / "krum", strategy="Krum", options={"num_malicious_nodes": 1})
    learnt = [n for n in start if "num_batches" not in n]
    assert any(all(torch.allclose(krum.weights[n], up[n], atol=1e-6) for n in learnt) for up in ups)
    median, *_ = ran(tmp_path / "median", strategy="FedMedian")
    for n in learnt:
        expected = np.median(np.stack([up[n].numpy() for up in ups]), axis=0)
        assert torch.allclose(median.weights[n], torch.from_numpy(expected), atol=1e-6)


def test_fedadams_first_step_by_hand(tmp_path):
    """Without memory m = d and v = d^2, so w moves by eta sign(d), d the mean update; batch norm's figures by d."""
    options = {"eta": 0.01, "beta_1": 0.0, "beta_2": 0.0, "tau": 1e-9}
    start = ran(tmp_path / "start", 0)[0].weights
    mean = ran(tmp_path / "mean", strategy="FedAvg")[0].weights
    adam, *_ = ran(tmp_path / "adam", strategy="FedAdam", options=options)
    name = "classifier.weight"
    step = (adam.weights[name] - start[name]).abs()
    assert torch.equal((adam.weights[name] - start[name]).sign(), (mean[name] - start[name]).sign())
    assert torch.allclose(step, torch.full_like(step, 0.01), rtol=0.05)
    assert same({"v": adam.weights["body.1.running_var"]}, {"v": mean["body.1.running_var"]}, atol=1e-6)  # a mean


def test_a_client_that_lies_a_little_does_not_move_krum(tmp_path):
    def tamper(k, up):
        return (
            Weights({n: v + 50 if v.is_floating_point() else v for n, v in up.tensors.items()}, up.examples, up.metrics)
            if k == 2 and up.metrics
            else up
        )

    strategy = Flower(FlowerSettings(strategy="Krum", options={"num_malicious_nodes": 1}))
    rounds(strategy, ToyFederation(FlowerClient(LOCAL), tmp_path, (16, 24, 16, 8, 8), norm=True, tamper=tamper), 1)
    assert max(v.abs().max() for v in strategy.weights.values()) < 20


# -- differential privacy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_dp_wrapper_runs(wrapper, tmp_path):
    more = {"clipping_norm": 1.0} if "Fixed" in wrapper else {"clipped_count_stddev": 0.5}
    strategy, metrics, federation = ran(tmp_path, 2, strategy="FedAvg", wrapper=wrapper, wrapper_options=NOISE | more)
    assert metrics[2]["weights/replies"] == 4 and not federation.faults
    assert all(value.isfinite().all() for value in strategy.weights.values())
    assert strategy.strategy.num_sampled_clients == 4
    if "Adaptive" in wrapper:
        assert strategy.strategy.clipping_norm != 0.1  # it adapted
    if "ClientSide" in wrapper:
        assert 0 <= metrics[2]["train/norm_bit"] <= 1


def length(update):
    return torch.stack([u.double().square().sum() for u in update.values()]).sum().sqrt().item()


def test_without_noise_dp_is_the_plain_mean_of_clipped_updates(tmp_path):
    name, options = "DifferentialPrivacyServerSideFixedClipping", {"noise_multiplier": 0.0, "clipping_norm": 0.05}
    start = ran(tmp_path / "start", 0)[0].weights
    ups = uploads(tmp_path, start, (16, 24))
    floats = [n for n in start if start[n].is_floating_point()]
    clipped = []
    for up in ups:
        update = {n: up[n] - start[n] for n in floats}
        assert length(update) > 0.05
        clipped.append({n: u * 0.05 / length(update) for n, u in update.items()})
    ours, *_ = ran(tmp_path / "server", sizes=(16, 24), strategy="FedAvg", wrapper=name, wrapper_options=options)
    name = name.replace("ServerSide", "ClientSide")
    theirs, metrics, _ = ran(
        tmp_path / "client", sizes=(16, 24), strategy="FedAvg", wrapper=name, wrapper_options=options
    )
    assert metrics[1]["train/norm_bit"] == 1
    for n in floats:
        expected = start[n] + (clipped[0][n] + clipped[1][n]) / 2
        assert torch.allclose(ours.weights[n], expected, atol=1e-5)
        assert torch.allclose(theirs.weights[n], expected, atol=1e-5)


def test_noise_is_named_or_secret(tmp_path):
    how = {
        "strategy": "FedAvg",
        "wrapper": "DifferentialPrivacyServerSideFixedClipping",
        "wrapper_options": {"noise_multiplier": 1.0, "clipping_norm": 1.0},
    }
    runs = [ran(tmp_path / str(i), **how, secret_noise=i > 1)[0].weights["classifier.weight"] for i in range(4)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2]) and not torch.equal(runs[2], runs[3])


# -- resume and cohorts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [
        ("FedYogi", None),
        ("FedAvgM", None),
        ("FedAdagrad", None),
        ("FedAvg", "DifferentialPrivacyServerSideAdaptiveClipping"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(name, wrapper, tmp_path):
    how = {
        "strategy": name,
        "options": NEEDED.get(name, {}),
        "wrapper": wrapper,
        "wrapper_options": NOISE | {"clipped_count_stddev": 0.5} if wrapper else {},
    }
    whole, *_ = ran(tmp_path / "whole", 4, **how)
    part, _, federation = ran(tmp_path / "part", 2, **how)
    tensors, meta = part.state()
    twin = Flower(FlowerSettings(**how))
    twin.restore(tensors, json.loads(json.dumps(meta)))
    for r in (3, 4):
        federation.round = r
        twin.round(r, federation)
    assert same(whole.weights, twin.weights, atol=1e-6)


def test_only_the_cohort_is_asked(tmp_path):
    _, metrics, federation = ran(tmp_path, strategy="FedMedian", cohort=(1, 3))
    assert metrics[1]["weights/replies"] == 2
    asked = {int(p.name.split("-")[1]) for p in tmp_path.glob("client-*")}
    assert asked == {0, 1, 3}  # client 0 gave the start


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"strategy": "FedBest"}, "strategy must be one of Bulyan, FedAdagrad, FedAdam"),
        ({"strategy": "FedProx"}, "take method=fedprox"),
        ({"strategy": "FedXgbCyclic"}, "strategy must be one of"),
        ({"strategy": "Krum", "options": {"eta": 1}}, r"options.eta is not for Krum; there are num_malicious_nodes"),
        ({"options": {"fraction_train": 0.5}}, "options.fraction_train is not for FedAdam; there are eta"),
        ({"strategy": "QFedAvg"}, "options of QFedAvg: .*client_learning_rate"),
        ({"wrapper": "Dp"}, "wrapper must be one of None, DifferentialPrivacy"),
        ({"wrapper": WRAPPERS[-1]}, "wrapper_options of Differential.*noise_multiplier"),
        (
            {"wrapper": WRAPPERS[-1], "wrapper_options": {"noise_multiplier": -1.0, "clipping_norm": 1.0}},
            "non-negative",
        ),
        ({"wrapper_options": {"clipping_norm": 1.0}}, "wrapper_options need a wrapper"),
    ],
)
def test_settings_are_checked(wrong, line):
    with pytest.raises(ValueError, match=line):
        FlowerSettings(**wrong)


def test_options_come_from_the_command_line(toy_conf):
    conf = toy_conf("method=flower", "method.server.strategy=Krum", "+method.server.options.num_malicious_nodes=1")
    given = composition.typed(FlowerSettings, conf.method.server, "method.server")
    assert given.options == {"num_malicious_nodes": 1}
    with pytest.raises(SettingsError, match="method.server: options.beta is not for FedAdam"):
        toy_conf("method=flower", "+method.server.options.beta=1")


@pytest.mark.parametrize("given", [["Krum"], ["FedYogi"], ["FedMedian"], ["FedAvg", WRAPPERS[-1]]])
def test_it_runs_through_the_real_apps(given, toy_conf, federated):
    one = "{modality: image, model: resnet}"
    dp = (
        [
            f"method.server.wrapper={given[1]}",
            "+method.server.wrapper_options.noise_multiplier=0.01",
            "+method.server.wrapper_options.clipping_norm=1.0",
        ]
        if len(given) > 1
        else []
    )
    run = federated(
        toy_conf(
            "method=flower",
            f"method.server.strategy={given[0]}",
            f"clients.mix=[{one},{one},{one}]",
            "evaluation.images_per_class=2",
            *dp,
        )
    )
    last = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()][-1]["metrics"]
    assert 0 <= last["client/accuracy/image"] <= 1 and last["weights/replies"] == 3 and last["clients/faults"] == 0
