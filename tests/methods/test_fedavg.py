"""FedAvg and what all weight averaging stands on: the mean, the checks of uploads, the figures, the common start."""

import json
from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp.strategy import Strategy
from flwr.supercore.task_identity import TaskIdentity

from client_app.app import app as client_app
from client_app.blocks.averaging import LocalSettings, local
from client_app.methods.fedavg import FedAvgClient
from florilegium.config import composition
from florilegium.federation.federation import Client as Known
from florilegium.federation.federation import FederationError
from florilegium.learning.averaging import model_part, named, part, weighted_mean, without
from florilegium.learning.fit import LearningRate
from florilegium.protocol import codec
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Weights
from florilegium.runs import files
from florilegium.runs.reader import read_lines
from strategies.blocks.weights import figures, same_tensors, shared_start
from strategies.fedavg import FedAvg, FedAvgSettings
from strategies.standalone import Standalone, StandaloneSettings
from tests.local_grid import LocalGrid
from tests.toy_federation import ToyClient, ToyFederation, rounds, same

ONE = {"local_epochs": 1, "batch": 8}


def test_the_mean_by_hand_keeps_each_tensors_type():
    mean = weighted_mean(
        [{"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}, {"w": torch.tensor([5.0, 6.0]), "n": torch.tensor(6)}],
        [1, 3],
    )
    assert mean["w"].tolist() == [4.0, 5.0]
    assert mean["n"].dtype == torch.int64 and mean["n"].item() == 5  # 5.25
    half = weighted_mean([{"h": torch.ones(2, dtype=torch.float16)}] * 2, [1, 1])
    assert half["h"].dtype == torch.float16


def test_a_round_is_the_mean_by_examples(tmp_path):
    half = FedAvgClient(LocalSettings(**ONE))
    strategy, federation = FedAvg(FedAvgSettings()), ToyFederation(half, tmp_path, (8, 24), norm=True)
    rounds(strategy, federation, 0)
    start = strategy.weights
    ups = [half.train(ToyClient(k, tmp_path / "by hand", n, True, 1), Weights(start)) for k, n in ((0, 8), (1, 24))]
    metrics = rounds(strategy, federation, 1)[1]
    for name in start:
        expected = 0.25 * ups[0].tensors[name].double() + 0.75 * ups[1].tensors[name].double()
        assert torch.allclose(strategy.weights[name].double(), expected.round() if "num" in name else expected)
        assert strategy.weights[name].dtype == start[name].dtype
    assert metrics["weights/replies"] == 2
    assert metrics["train/task"] == pytest.approx(0.25 * ups[0].metrics["task"] + 0.75 * ups[1].metrics["task"])
    assert metrics["train/steps"] == pytest.approx(0.25 * 1 + 0.75 * 3)
    uniform = FedAvg(FedAvgSettings(weighting="uniform"))
    rounds(uniform, ToyFederation(half, tmp_path / "uniform", (8, 24), norm=True), 1)
    name = "classifier.weight"
    assert torch.allclose(uniform.weights[name], (ups[0].tensors[name] + ups[1].tensors[name]) / 2, atol=1e-6)


def test_it_learns(tmp_path):
    strategy = FedAvg(FedAvgSettings())
    half = FedAvgClient(LocalSettings(batch=8, learning_rate=LearningRate(0.1)))
    metrics = rounds(strategy, ToyFederation(half, tmp_path), 8)
    assert metrics[-1]["train/task"] < 0.5 * metrics[1]["train/task"]


# -- bad uploads -------------------------------------------------------------------------------------------------------


def bad(kind):
    def tamper(k, up):
        if k != 1 or not up.metrics:
            return up
        t = dict(up.tensors)
        name = "classifier.weight"
        if kind == "shape":
            t[name] = t[name][:1]
        elif kind == "type":
            t[name] = t[name].double()
        elif kind == "missing":
            del t[name]
        elif kind == "extra":
            t["back.door"] = torch.ones(1)
        examples = {"many": 10**9, "none": 0, "less than none": -5}.get(kind, up.examples)
        return Weights(t, examples, up.metrics)

    return tamper


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("shape", r"tensors\[classifier.weight\] is float32 \[1, 4\], expected float32 \[2, 4\]"),
        ("type", r"tensors\[classifier.weight\] is float64 \[2, 4\], expected float32"),
        ("missing", r"tensors\[classifier.weight\] is nothing, expected"),
        ("extra", r"tensors\[back.door\] is float32 \[1\], expected nothing"),
        ("many", r"examples is 1000000000, the client's profile says 24"),
        ("none", "examples is 0"),
        ("less than none", "examples is -5"),
    ],
)
def test_a_bad_upload_is_left_out_and_named(kind, line, tmp_path):
    import re

    half = FedAvgClient(LocalSettings(**ONE))
    strategy, federation = FedAvg(FedAvgSettings()), ToyFederation(half, tmp_path, tamper=bad(kind))
    metrics = rounds(strategy, federation, 1)[1]
    ((k, fault),) = federation.faults
    assert k == 1 and re.search(line, fault) and metrics["weights/replies"] == 1
    alone = FedAvg(FedAvgSettings())
    rounds(alone, ToyFederation(half, tmp_path / "alone", (16, 24), cohort=(0,)), 1)
    assert same(strategy.weights, alone.weights)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("nan", "tensors[classifier.weight] has NaN or infinite values"),
        ("shape", "is float32 [1, 32], expected float32 [4, 32]"),
    ],
)
def test_a_bad_upload_is_named_in_the_ledger_of_a_real_run(kind, line, toy_conf, federated):
    import json

    from florilegium.protocol import codec

    def tamper(question, reply):
        if question.metadata.message_type != "train" or question.metadata.dst_node_id != 101:
            return reply
        body, header = codec.unpack(reply.content, Weights), codec.header(reply.content)
        value = body.tensors["classifier.weight"]
        body.tensors["classifier.weight"] = torch.full_like(value, torch.nan) if kind == "nan" else value[:1]
        from flwr.app import Message

        return Message(codec.pack(body, header), reply_to=question)

    pair = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"
    run = federated(toy_conf("method=fedavg", pair, "timeouts.quorum=1", "evaluation.images_per_class=2"), tamper)
    faults = [e for e in map(json.loads, (run / "ledger.jsonl").read_text().splitlines()) if e["fault"]]
    assert [e["client"] for e in faults] == [1] and line in faults[0]["fault"] and faults[0]["phase"] == "train"


@pytest.mark.parametrize("method", ["scaffold", "moon", "fednh", "flower"])
def test_a_resumed_run_equals_an_uninterrupted_one(method, toy_conf, resumed):
    """Control variates, previous models, prototypes and Adam's moments: killed while client 1 trains in round 2."""
    import json

    one = "{modality: image, model: resnet}"
    whole, part = resumed(
        partial(
            toy_conf,
            f"method={method}",
            "rounds=3",
            f"clients.mix=[{one},{one},{one}]",
            "cohort.fraction=0.67",
            "evaluation.images_per_class=2",
        ),
        "train",
        2,
    )  # the second of the cohort's two

    def records(run):
        lines = map(json.loads, (run / "rounds.jsonl").read_text().splitlines())
        return [(x["round"], x["metrics"]) for x in lines]

    assert records(whole) == records(part) and len(records(part)) == 4


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_other_architectures_are_refused_by_name(tmp_path):
    federation = ToyFederation(FedAvgClient(LocalSettings()), tmp_path, (8, 8, 8))
    federation.clients[1] = Known(101, 1, "image", "vit", 8)
    with pytest.raises(FederationError, match="image toy: client 0, 2; image vit: client 1"):
        shared_start(federation, "fedavg")


def test_figures_are_means_by_examples_and_counts_are_sums():
    from florilegium.federation.federation import Reply

    def reply(k, n, **metrics):
        return Reply(Known(k, k), Weights({}, n, metrics))

    got = figures(
        [
            reply(0, 10, task=1.0, **{"cache/hits": 3.0}),
            reply(1, 30, task=2.0, **{"cache/hits": 4.0}),
            reply(2, 60, other=5.0),
        ]
    )
    assert got == {"weights/replies": 3, "train/task": 1.75, "cache/hits": 7.0, "train/other": 5.0}


def test_what_travels_beside_a_model_is_told_apart():
    state = {"body.w": torch.ones(1), "control.body.w": torch.zeros(1), "guidance.text": torch.ones(2)}
    assert list(model_part(state)) == ["body.w"] and list(part(state, "control")) == ["body.w"]
    assert list(named("moon", {"x": torch.ones(1)})) == ["moon.x"] and "guidance.text" not in without(state, "guidance")
    strategy = FedAvg(FedAvgSettings())
    strategy.weights = state
    assert list(strategy.judged_model().tensors) == ["body.w"]
    same_tensors(state, dict(state))


class Pull:
    """A guide with a parameter of its own."""

    def __init__(self, supervised=True):
        self.supervised, self.parameters = supervised, {"target": torch.nn.Parameter(torch.zeros(4))}

    def terms(self, z_BD, batch, head):
        return {"pull": ((z_BD - self.parameters["target"]) ** 2).mean()}

    def metrics(self):
        return {"cache/hits": 2.0}


def test_guidance_adds_its_terms_and_its_parameters_travel(tmp_path, monkeypatch):
    from client_app.blocks import averaging

    monkeypatch.setattr(averaging.guides, "of", lambda client, node: Pull())
    fresh = local(ToyClient(0, tmp_path), LocalSettings(**ONE), Weights({}))
    assert fresh.tensors["guidance.target"].tolist() == [0.0] * 4
    down = Weights(fresh.tensors | {"guidance.target": torch.ones(4)})
    up = local(ToyClient(0, tmp_path), LocalSettings(**ONE), down)
    assert not torch.equal(up.tensors["guidance.target"], torch.ones(4)) and up.metrics["cache/hits"] == 2
    assert up.metrics["share/pull"] + up.metrics["share/task"] == pytest.approx(1) and up.metrics["pull"] > 0
    strategy = FedAvg(FedAvgSettings())
    metrics = rounds(strategy, ToyFederation(FedAvgClient(LocalSettings(**ONE)), tmp_path / "two"), 2)[2]
    assert metrics["cache/hits"] == 4 and "guidance.target" in strategy.weights


def test_without_labels_only_a_probe_learns_from_them(tmp_path, monkeypatch):
    from client_app.blocks import averaging

    class Blind(Pull):
        def terms(self, z_BD, batch, head):
            return {}

    monkeypatch.setattr(averaging.guides, "of", lambda client, node: Blind(supervised=False))
    fresh = local(ToyClient(0, tmp_path), LocalSettings(weight_decay=0), Weights({}))
    up = local(ToyClient(0, tmp_path), LocalSettings(weight_decay=0), Weights(fresh.tensors))
    moved = {name for name in fresh.tensors if not torch.equal(fresh.tensors[name], up.tensors[name])}
    assert moved == {"classifier.weight", "classifier.bias"} and up.metrics["probe"] > 0


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd"),
        ({"momentum": 1.0}, "momentum must lie between 0 and 0.999"),
        ({"clip": 0.0}, "clip must lie between"),
        ({"local_epochs": -1}, "local_epochs must lie between 0"),
    ],
)
def test_settings_are_checked(wrong, line):
    with pytest.raises(ValueError, match=line):
        LocalSettings(**wrong)


# -- Flower's own loop -------------------------------------------------------------------------------------------------


def alike(toy_conf, out):
    mix = "clients.mix=[{modality: image, model: vit}, {modality: image, model: vit}]"
    return toy_conf("method=fedavg", mix, "rounds=1", "method.client.local_epochs=1", f"out={out}")


def test_flowers_own_loop_drives_it_to_the_same_weights(toy_conf, federated, tmp_path):
    """Strategy.start of Flower, through the four callbacks and the real ClientApp, from the same start."""
    ours = federated(alike(toy_conf, tmp_path / "ours"))
    start, end = (files.load(ours / "checkpoints" / "method" / f"round-{r:04d}.safetensors")[0] for r in (0, 1))
    conf = alike(toy_conf, tmp_path / "theirs")
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    grid = LocalGrid(client_app, 2, {"settings": json.dumps(composition.plain(conf)), "overrides": ""})
    result = Strategy.start(FedAvg(FedAvgSettings()), grid, ArrayRecord(start), num_rounds=1)
    theirs = result.arrays.to_torch_state_dict()
    assert theirs.keys() == end.keys() and all(torch.equal(theirs[name], end[name]) for name in end)
    assert not all(torch.equal(start[name], end[name]) for name in end)
    assert result.train_metrics_clientapp[1]["replies"] == 2
    judged = read_lines(ours / "rounds.jsonl")[1]["metrics"]
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == judged["client/accuracy"]


def test_what_failed_is_left_out_of_flowers_loop():
    strategy = FedAvg(FedAvgSettings(weighting="uniform"))
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    asked = [Message(RecordDict(), node, "train") for node in (1, 2, 3)]
    good = [Weights({"w": torch.tensor([2.0 * n])}, 10 * n) for n in (1, 2)]
    replies = [
        Message(codec.pack(body, Header("method", 1, 1)), reply_to=question)
        for body, question in zip(good, asked, strict=False)
    ]
    replies.append(Message(Error(2, "no memory"), reply_to=asked[2]))
    mean, metrics = strategy.aggregate_train(1, replies)
    assert mean.to_torch_state_dict()["w"].tolist() == [3.0] and metrics["replies"] == 2  # (2 + 4) / 2
    assert strategy.aggregate_train(1, replies[2:]) == (None, None)
    assert strategy.aggregate_evaluate(1, replies[2:]) is None


def test_a_method_with_more_than_one_exchange_says_so():
    strategy = Standalone(StandaloneSettings())
    with pytest.raises(NotImplementedError, match="the rounds of Standalone are more than one exchange of weights"):
        strategy.configure_train(1, ArrayRecord(), ConfigRecord(), None)
