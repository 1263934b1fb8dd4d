"""What CreamFL, FedMEKT and FedMKD share: the real apps with every kind of client, bad replies, resume, votes."""

import json
from functools import partial

import pytest
import torch
from flwr.app import Message

from florilegium.config.composition import SettingsError
from florilegium.federation.federation import Client, Reply
from florilegium.federation.guard import Guard
from florilegium.preflight import validate
from florilegium.protocol import codec
from florilegium.protocol.payloads import Answers, Features
from strategies.blocks.representations import formula_bytes, joint, majority, sides_of, stacked, text_groups
from tests.tiers import first

SMALL = [
    "method.server.public.samples=12",
    "tuning.batch=8",
    "method.client.pretrain_epochs=1",
    "evaluation.images_per_class=2",
    "timeouts.quorum=1",
]
MIX = "clients.mix=[{modality: image, model: vit}, {modality: text, model: bert}, {modality: pair, model: vit+bert}]"
METHODS = ("creamfl", "fedmekt", "fedmkd")
IMAGE, TEXT, PAIR = Client(100, 0, "image"), Client(101, 1, "text"), Client(102, 2, "pair")


def lines(run):
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def entries(run):
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_one_stack_for_each_side_and_layer():
    ids, one, two, none = torch.arange(2), torch.ones(2, 3), torch.full((2, 6), 2.0), torch.zeros(2, 0)
    answers = Answers(ids, ids, torch.ones(2), one, none)
    replies = [Reply(IMAGE, answers), Reply(TEXT, Features(ids, none, two)), Reply(PAIR, Features(ids, two, one))]
    first, second = stacked(replies, 3), stacked(replies, 3, 1)
    assert {side: (who, tuple(reps.shape)) for side, (who, reps) in first.items()} == {
        "image": ([0, 2], (2, 2, 3)),
        "text": ([1, 2], (2, 2, 3)),
    }
    assert {side: who for side, (who, _) in second.items()} == {"image": [2], "text": [1]}
    assert sides_of(PAIR) == ("image", "text") and sides_of(TEXT) == ("text",)


def test_the_majority_of_classifiers_ties_to_the_lowest_class():
    def said(client, *labels):
        n = len(labels)
        return Reply(
            client, Answers(torch.arange(n), torch.tensor(labels), torch.ones(n), torch.zeros(n, 1), torch.zeros(n, 0))
        )

    drawn = torch.tensor([3, 3, 3])
    label, agree = majority([said(IMAGE, 1, 2, 2), said(TEXT, 1, 1, 2), said(PAIR, 0, 0, 2)], 4, drawn, Guard())
    assert label.tolist() == [1, 0, 2] and agree["labels/client_0_agrees"] == pytest.approx(2 / 3)
    nobody = Reply(PAIR, Features(torch.arange(3), torch.zeros(3, 1), torch.zeros(3, 1)))
    assert majority([nobody], 4, drawn, Guard())[0].tolist() == [3, 3, 3]  # no classifier: what was drawn


def test_joint_groups_and_bytes_by_hand():
    assert joint({"image": torch.zeros(2, 2), "text": torch.ones(2, 2)}).tolist() == [[0.5, 0.5]] * 2
    assert joint({"text": torch.ones(2, 2)}).tolist() == [[1.0, 1.0]] * 2
    assert text_groups(["a", "b", "a"]).tolist() == [0, 1, 0]
    n, none, wide = 800, torch.zeros(800, 0), torch.zeros(800, 768)
    one = [Reply(IMAGE, Features(torch.arange(n), wide, none))]
    bytes_ = formula_bytes(one * 10, 8000, lambda client: 2 * 768)
    assert bytes_["bytes/formula_up"] / 2**20 == pytest.approx(23.4375)  # Table X: 23.4 up, 46.9 down
    assert bytes_["bytes/formula_down"] / 2**20 == pytest.approx(46.875)


# -- through the real apps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", first(["synthetic", "proxy"]))
@pytest.mark.parametrize("method", METHODS)
def test_it_runs_with_every_kind_of_client(method, source, toy_conf, federated):
    run = federated(toy_conf(f"method={method}", f"method.public_set={source}", MIX, *SMALL))
    last = lines(run)[-1]["metrics"]
    assert {"client/accuracy/image", "client/accuracy/text", "client/rsum/pair", "bytes/formula_up"} <= last.keys()
    assert ("t2i/loss" in last) == ("labels/accuracy" in last) == (source == "synthetic")
    assert any(name.startswith("server/retrieval/") for name in last) == (method != "fedmekt")
    assert not [e for e in entries(run) if e["fault"]]
    exchanged = {e["phase"] for e in entries(run) if e["round"] == 1}
    assert exchanged == {"train", "represent", "distill", "evaluate"}
    extra = 1.0 if source == "proxy" else 12 * 20.0  # answers say a label and how sure beside each id
    assert last["bytes/formula_up"] <= last["bytes/up_per_client"] <= last["bytes/formula_up"] + extra + 2500


def test_one_modality_alone(toy_conf, federated):
    """Nobody has texts: no text side is merged, G still has both."""
    mix = "clients.mix=[{modality: image, model: vit}, {modality: image, model: resnet}]"
    last = lines(federated(toy_conf("method=creamfl", mix, *SMALL)))[-1]["metrics"]
    assert "distill/inter_image" in last and "server/kd_image" in last and "server/kd_text" not in last


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("misses a side", "has 0 values of the image side, expected 32"),
        ("too long", "of the image side longer than one"),
        ("ids", "are not the ids that were sent"),
    ],
)
def test_a_bad_reply_is_named_and_left_out(kind, line, toy_conf, federated):
    def tamper(question, reply):
        if question.metadata.message_type != "query.represent" or question.metadata.dst_node_id != 102:
            return reply
        body, header = codec.unpack(reply.content, Features), codec.header(reply.content)
        if not len(body.ids):
            return reply
        fields = (
            vars(body)
            | {
                "misses a side": {"image": body.image[:, :0]},
                "too long": {"image": torch.full_like(body.image, 0.9)},
                "ids": {"ids": body.ids.flip(0)},
            }[kind]
        )
        return Message(codec.pack(Features(**fields), header), reply_to=question)

    run = federated(toy_conf("method=creamfl", MIX, *SMALL), tamper)
    (fault,) = [e for e in entries(run) if e["fault"]]
    assert fault["client"] == 2 and fault["phase"] == "represent" and line in fault["fault"]
    last = lines(run)[-1]["metrics"]
    assert "fusion/image_weight_2" not in last and last["fusion/image_weight_0"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("method", "source"), first([("creamfl", "proxy"), ("fedmkd", "proxy"), ("fedmekt", "synthetic")], 2)
)
def test_a_resumed_run_equals_an_uninterrupted_one(method, source, toy_conf, resumed):
    given = [f"method={method}", f"method.public_set={source}", MIX, *SMALL, "rounds=2"]
    whole, part = resumed(partial(toy_conf, *given), "train.distill", 2)
    for a, b in zip(lines(whole), lines(part), strict=True):
        assert a["round"] == b["round"] and a["metrics"] == b["metrics"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("method=creamfl method.server.anchors=clips", "anchors must be one of encoder, clip, mean"),
        ("method=creamfl method.public_set=public", "method.server.public: source must be one of proxy, synthetic"),
        ("method=fedmekt method.server.reconstruct=all", "reconstruct must be one of own, both"),
        ("method=fedmekt method.server.target=pixels", "target must be one of reconstruct, contrast"),
        ("method=fedmekt method.client.temperature=0", "temperature must lie between"),
    ],
)
def test_a_bad_setting_is_one_line(override, line, toy_conf):
    with pytest.raises(SettingsError, match=line) as caught:
        validate(toy_conf(*override.split()))
    assert "\n" not in str(caught.value)
