"""Simulated attacks: who plays them, what they send, and what the federation makes of it."""

import json
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Error, Message

from client_app.batches import ClientError
from client_app.privacy import attacks
from florilegium.config.run import Attack
from florilegium.config.settings import settings_of
from florilegium.protocol.payloads import Answers, Features, Logits, Nothing, Weights

EIGHT = [{"modality": m, "model": x} for m, x in [("image", "vit")] * 4 + [("text", "bert")] * 4]
ATTACKERS = Attack("collude", 0.25).attackers(8, 0)


LABELS = "privacy.representations.release=[figures,labels]"


def client(kind, id_=ATTACKERS[0], **more):
    attack = {"kind": kind, "share": 0.25, "strength": 10.0} | more
    conf = settings_of({"attack": attack, "clients": {"mix": EIGHT}, "method": {"name": "fedmmkt"}})
    return SimpleNamespace(conf=conf, id=id_, classes=4, width=2)


def answers():
    return Answers(
        torch.arange(2),
        torch.tensor([3, 1]),
        torch.tensor([0.2, 0.9]),
        torch.tensor([[3.0, 4.0], [0.0, 1.0]]),
        torch.zeros(2, 0),
    )


def lines(run, name="rounds"):
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def test_a_quarter_of_the_clients_is_drawn_by_the_seed():
    assert len(ATTACKERS) == 2 and ATTACKERS == Attack("label_flip", 0.25).attackers(8, 0)
    assert len({tuple(Attack("collude", 0.25).attackers(8, seed)) for seed in range(9)}) > 3
    assert Attack("collude", 0.2).attackers(4, 0) == [] and Attack("none").attackers(8, 0) == []
    with pytest.raises(ValueError, match="share must lie between 0 and 0.25, got 0.5"):
        Attack("collude", 0.5)


def test_the_honest_send_what_they_saw():
    honest = next(k for k in range(8) if k not in ATTACKERS)
    up = answers()
    assert attacks.attacked(client("collude", honest), up) is up
    assert attacks.attacked(client("none"), up) is up and attacks.attacked(client("label_flip"), up) is up


def test_confident_wrong_votes():
    up = attacks.attacked(client("confident_votes"), answers())
    assert up.labels.tolist() == [0, 2] and up.confidence.tolist() == [1.0, 1.0]  # 3 + 1 of four classes is 0
    assert torch.equal(up.representations, answers().representations)
    scores = attacks.attacked(client("confident_votes"), Logits(torch.arange(1), torch.tensor([[1.0, 5, 0, 0]])))
    assert scores.logits.tolist() == [[0.0, 10.0, 50.0, 0.0]]  # rolled, ten times as large


def test_scaled_vectors_stay_what_the_wire_lets_through():
    up = attacks.attacked(client("scaled_representations"), answers())
    assert up.representations.tolist() == [[-30.0, -40.0], [0.0, -10.0]] and up.labels.tolist() == [3, 1]
    scores = attacks.attacked(client("scaled_representations"), Logits(torch.arange(1), torch.full((1, 4), 5e3)))
    assert scores.logits.tolist() == [[-1e4] * 4]
    unit = attacks.attacked(
        client("scaled_representations"), Features(torch.arange(1), torch.tensor([[0.6, 0.8]]), torch.zeros(1, 0))
    )
    assert torch.allclose(unit.image, torch.tensor([[-0.6, -0.8]]))  # turned round, still unit
    state = attacks.attacked(client("scaled_representations"), Weights({"w": torch.ones(1), "n": torch.tensor(3)}, 5))
    assert state.tensors["w"].tolist() == [-10.0] and state.tensors["n"].item() == 3


def test_colluders_say_the_same():
    one, two = (attacks.attacked(client("collude", k), answers()) for k in ATTACKERS)
    assert torch.equal(one.labels, two.labels) and len(one.labels.unique()) == 1
    assert torch.equal(one.representations, two.representations)
    assert one.representations.norm(dim=1).tolist() == pytest.approx([50.0, 10.0])  # ten times 5 and 1
    assert attacks.attacked(client("collude"), Nothing()) == Nothing()


def test_flipped_labels_are_the_attackers_alone():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Has:
        train: object

    @dataclass(frozen=True)
    class Rows:
        labels: torch.Tensor

    for id_ in (ATTACKERS[0], next(k for k in range(8) if k not in ATTACKERS)):
        one = client("label_flip", id_)
        one.data = Has(Rows(torch.tensor([0, 1, 3])))
        flipped = attacks.poisoned(one, own_data=False).data.train.labels.tolist()
        assert flipped == ([3, 2, 0] if id_ in ATTACKERS else [0, 1, 3])
    with pytest.raises(ClientError, match="embedded data alone"):
        attacks.poisoned(client("label_flip"), own_data=True)


# -- through the real apps ---------------------------------------------------------------------------------------------


def four(toy_conf, *overrides):
    return toy_conf(
        "method.server.samples=16",
        "method.client.pretrain_epochs=1",
        "method.client.distill_epochs=1",
        "method.server.tune_t2i=false",
        "evaluation.images_per_class=1",
        *overrides,
    )


def test_nan_uploads_are_refused_named_and_counted(toy_conf, federated):
    run = federated(four(toy_conf, "attack=nan_representations"))
    (bad,) = Attack("nan_representations").attackers(4, 0)
    (fault,) = [e for e in lines(run, "ledger") if e["fault"]]
    assert fault["client"] == bad and "Answers.representations has NaN or infinite values" in fault["fault"]
    last = lines(run)[-1]["metrics"]
    assert last["clients/faults"] == 1 and f"labels/client_{bad}_agrees" not in last


def test_a_defended_run_records_reputations_and_resumes_exactly(toy_conf, federated, tmp_path, monkeypatch):
    from florilegium.runs.writer import Run

    settings = ("attack=collude", "defence=all", "privacy=[gaussian,gnmax]", LABELS, "privacy.seeded=true", "rounds=3")
    whole = lines(federated(four(toy_conf, *settings, f"out={tmp_path / 'whole'}")))
    part, record = four(toy_conf, *settings, f"out={tmp_path / 'part'}"), Run.record

    def killed(self, row, r, *rest):
        if r == 2:
            raise KeyboardInterrupt
        record(self, row, r, *rest)

    monkeypatch.setattr(Run, "record", killed)
    with pytest.raises(KeyboardInterrupt):
        federated(part)
    monkeypatch.setattr(Run, "record", record)
    part.resume = True
    again = lines(federated(part))
    # the repeated round is answered by clients whose accounts hold it already, so what they report is a digit longer
    sizes = [r["metrics"].pop("bytes/up_per_client") for r in (again[2], whole[2])]
    assert [r["metrics"] for r in again] == [r["metrics"] for r in whole] and abs(sizes[0] - sizes[1]) < 20
    metrics = whole[-1]["metrics"]
    (bad,) = Attack("collude").attackers(4, 0)
    worst = min(range(4), key=lambda k: metrics[f"defence/reputation_{k}"])
    assert worst == bad or metrics[f"defence/reputation_{bad}"] < 0.7
    assert metrics["privacy/epsilon/gnmax"] > metrics["privacy/epsilon/gnmax_sample"] > 0
    assert metrics["privacy/epsilon/gaussian"] > whole[1]["metrics"]["privacy/epsilon/gaussian"] > 0  # it adds up


# -- a modality that is gone -----------------------------------------------------------------------------------------


def test_fedmmkt_goes_on_with_images_alone_and_says_so(toy_conf, federated):
    text_nodes, asked = {102, 103}, []

    def gone_from_round_2(question, reply):
        from florilegium.protocol import codec

        r = codec.header(question.content).round
        if question.metadata.dst_node_id in text_nodes and r >= 2:
            asked.append(question.metadata.message_type)
            return Message(Error(2, "<class 'OSError'>:<'power failure'>"), reply_to=question)
        return reply

    import logging

    logger = logging.getLogger("flwr")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        run = federated(four(toy_conf, "rounds=3"), gone_from_round_2)
    finally:
        logger.removeHandler(handler)
    rounds = [r["metrics"] for r in lines(run)]
    assert [m["clients/modalities"] for m in rounds] == [2, 2, 1, 1]
    assert "client/accuracy/text" in rounds[1] and "client/accuracy/text" not in rounds[2]
    assert rounds[3]["fusion/weight_0"] + rounds[3]["fusion/weight_1"] == pytest.approx(1)
    warned = [line for line in said if "no text client answered" in line]
    assert len(warned) == 2 and "round 2" in warned[0] and "one-modality form (eq 33)" in warned[0]
    assert "goes on with image clients alone" in warned[0] and "query.represent" in asked
