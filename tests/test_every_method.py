"""One contract for every method of the catalogue: its settings type, it runs through the real apps, and it resumes."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from flwr.app import Error, Message

from florilegium.catalogue import CATALOGUE, side
from florilegium.config import composition
from florilegium.federation.federation import FederationError
from florilegium.protocol import codec
from florilegium.protocol.payloads import Answers
from florilegium.runs import files
from tests.tiers import first

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "fedmmkt": ["method.server.samples=12", "tuning.batch=8", "method.client.pretrain_epochs=1"],
    "selftuned": ["method.server.samples=8", "tuning.batch=8"],
    "centralised": ["method.server.samples=8", "tuning.batch=8"],
    **{
        name: ["method.server.public.samples=12", "tuning.batch=8", "method.client.pretrain_epochs=1"]
        for name in ("fedmd", "fedgems", "fedet", "feddfa")
    },
    "fedafd": ["method.client.pretrain_epochs=1", "method.client.local_epochs=1", "method.server.pretrain_epochs=1"],
    "creamfl": ["method.server.public.samples=12", "method.client.pretrain_epochs=1"],
    "fedmekt": ["method.server.public.samples=12", "method.client.pretrain_epochs=1"],
    "fedmkd": ["method.server.public.samples=12", "method.client.pretrain_epochs=1"],
    "semanticfl": [
        "method.client.guidance.semanticfl.images_per_class=4",
        "method.client.guidance.semanticfl.student.epochs=2",
    ],
    "standalone": ["method.client.pretrain_epochs=1"],
}
ALIKE = ["clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"]


def lines(run, arm="method"):
    recorded = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [r for r in recorded if r["arm"] == arm]


def faults(run):
    entries = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [e for e in entries if e["fault"]]


def toy(toy_conf, method, *overrides):
    alike = ALIKE if CATALOGUE[method].one_architecture else []
    return toy_conf(f"method={method}", "evaluation.images_per_class=2", *alike, *SMALL.get(method, []), *overrides)


def test_every_method_has_its_files():
    """FedJAX forgot one in its catalogue; a half without a catalogue line is dead code."""
    named = {name.split(":")[0] for e in CATALOGUE.values() for name in (e.server, e.client) if name}
    files = (ROOT / "client_app/methods").rglob("[a-z]*.py")
    files = [path for path in files if path.name == "client.py" or not (path.parent / "client.py").exists()]
    there = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    assert there <= named
    assert {p.stem for p in (ROOT / "conf/method").glob("*.yaml")} == set(CATALOGUE)


@pytest.mark.parametrize("method", first(CATALOGUE, 10))
def test_it_runs_through_the_real_apps(method, toy_conf, federated):
    run = federated(toy(toy_conf, method, "rounds=1"))
    assert [r["round"] for r in lines(run)] == [0, 1] and not faults(run)
    last = lines(run)[-1]["metrics"]
    judged = {"client/accuracy/image"} if side(method, "client") else {"t2i/accuracy"}
    assert judged <= last.keys() and (run / "report.html").exists() and (run / "summary.json").exists()


@pytest.mark.parametrize("variant", ["representation", "logit", "unimodal"])
def test_each_variant_of_fedmmkt_sends_only_what_it_declares(variant, toy_conf, federated):
    run = federated(toy(toy_conf, "fedmmkt", "rounds=1", f"method.variant={variant}"))
    conf = composition.read_yaml(run / "settings.yaml")
    up = lines(run)[-1]["metrics"]["bytes/up_per_client"]
    n, width, classes = conf.method.server.samples, conf.clients.width, 4
    values = {"representation": width, "unimodal": 2 * width, "logit": classes}[variant]
    assert n * 4 * values <= up <= n * (4 * values + 24) + 2500  # ids, labels, weights; headers, metrics, two phases
    assert (run / "model" / "model_index.json").exists()


@pytest.mark.parametrize("overlap", first(["train", "none", "distill"]))
def test_a_resumed_run_equals_an_uninterrupted_one(overlap, toy_conf, resumed):
    given = ("rounds=3", f"method.server.overlap={overlap}")
    whole, part = resumed(partial(toy, toy_conf, "fedmmkt", *given), "train.distill", 3)  # in its last exchange
    for a, b in zip(lines(whole), lines(part), strict=True):
        assert a["round"] == b["round"] and a["metrics"] == b["metrics"]
    ends = [files.load(sorted((d / "checkpoints/method").glob("*"))[-1])[0] for d in (whole, part)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_the_order_of_nodes_changes_nothing(toy_conf, federated, monkeypatch, tmp_path):
    from tests.local_grid import LocalGrid

    runs = []
    for name in ("forward", "backward"):
        runs.append(lines(federated(toy(toy_conf, "fedmmkt", f"out={tmp_path / name}"))))
        plain = LocalGrid.get_node_ids
        monkeypatch.setattr(LocalGrid, "get_node_ids", lambda self, plain=plain: plain(self)[::-1])
    assert [r["metrics"] for r in runs[0]] == [r["metrics"] for r in runs[1]]


def broken(kind):
    """A client 1 that breaks the contract in one way when asked to represent."""

    def tamper(question, reply):
        if question.metadata.message_type != "query.represent" or question.metadata.dst_node_id != 101:
            return reply
        if kind == "silent":
            return None
        if kind == "raises":
            return Message(Error(2, "<class 'ValueError'>:<'out of memory'>"), reply_to=question)
        body, header = codec.unpack(reply.content, Answers), codec.header(reply.content)
        fields = dict(vars(body))
        fields |= {
            "nan": {"representations": torch.full_like(body.representations, torch.nan)},
            "shape": {"representations": body.representations[:, :3]},
            "ids": {"ids": body.ids.flip(0)},
            "label": {"labels": torch.full_like(body.labels, 99)},
            "weight": {"confidence": torch.full_like(body.confidence, 1e9)},
        }[kind]
        return Message(codec.pack(Answers(**fields), header), reply_to=question)

    return tamper


@pytest.mark.parametrize(
    "kind, line",
    first(
        [
            ("nan", "NaN or infinite"),
            ("ids", "are not the ids"),
            ("raises", "out of memory"),
            ("silent", "gave no answer within"),
            ("shape", "has 3 along D"),
            ("label", "there are 4 of C"),
            ("weight", "above 100.0"),
        ],
        4,
    ),
)
def test_one_bad_client_is_named_and_the_round_goes_on(kind, line, toy_conf, federated):
    run = federated(toy(toy_conf, "fedmmkt", "timeouts.exchange=2" if kind == "silent" else "rounds=1"), broken(kind))
    (fault,) = faults(run)
    assert fault["client"] == 1 and fault["phase"] == "represent" and line in fault["fault"]
    last = lines(run)[-1]["metrics"]
    assert last["clients/faults"] == 1 and "labels/client_1_agrees" not in last and "labels/client_0_agrees" in last


def test_too_few_answers_end_the_run_with_one_line(toy_conf, federated):
    def all_fail(question, reply):
        if question.metadata.message_type == "query.represent":
            return Message(Error(2, "no"), reply_to=question)
        return reply

    with pytest.raises(FederationError, match="0 of 2 needed replies to 'represent'") as caught:
        federated(toy(toy_conf, "fedmmkt"), all_fail)
    assert "\n" not in str(caught.value)


def test_an_evaluation_only_looks(toy_conf, federated):
    """Figures of a round are the same whether earlier rounds were evaluated or not."""
    every = lines(federated(toy(toy_conf, "fedmmkt", "rounds=2")))
    conf = toy(toy_conf, "fedmmkt", "rounds=2", "evaluation.every=2")
    conf.out += "-seldom"
    conf.clients.state_dir = conf.out + "/state"
    seldom = lines(federated(conf))
    shared = {k: v for k, v in every[-1]["metrics"].items() if k.startswith(("client/accuracy", "t2i/accuracy"))}
    assert shared.items() <= seldom[-1]["metrics"].items()
