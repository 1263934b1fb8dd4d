"""Clients whose task is retrieval: their share of the concepts, their batches, their loss, their figures."""

import json
import math

import pytest
import torch

from client_app.batches import ClientError
from client_app.blocks.training import task_terms
from client_app.client import Client
from client_app.evaluation import seen
from client_app.memory import Memory
from florilegium import preflight
from florilegium.config import composition
from florilegium.config.composition import SettingsError
from florilegium.data.partition import partition
from florilegium.data.private import open_private
from florilegium.data.public import as_pairs
from florilegium.federation.federation import Client as Known
from florilegium.federation.federation import Reply
from florilegium.learning.losses import pair_nce, soft_contrastive
from florilegium.models.build import build_pair
from florilegium.protocol.payloads import Report, Samples
from server_app.evaluation import client_figures

MIX = (
    "clients.mix=[{modality: image, model: resnet}, {modality: text, model: bert},"
    " {modality: pair, model: resnet+bert}, {modality: pair, model: vit+distilbert}]"
)


@pytest.fixture
def paired(toy_conf):
    return lambda *overrides: toy_conf("method=standalone", MIX, "method.client.pretrain_epochs=1", *overrides)


@pytest.fixture
def client(paired, tmp_path):
    conf = paired()
    return Client(conf, 2, open_private(conf, 2, "pair", {}), Memory(tmp_path / "memory", 1, 1), 1)


# -- data ------------------------------------------------------------------------------------------------------------


def concepts_of(conf):
    from florilegium.data.datasets import open_dataset

    train = open_dataset(conf.data).private("train")
    named = dict(zip(train["id"][:], train["concept"][:], strict=True))
    return {c["client"]: {named[i] for i in c["rows"]} for c in partition(conf)["clients"]}


def test_pairs_are_dealt_from_a_third_of_the_concepts_that_nobody_else_sees(paired):
    mine = concepts_of(paired())
    image, text, pair = mine[0], mine[1], mine[2] | mine[3]
    assert not image & text and not image & pair and not text & pair and not mine[2] & mine[3]
    assert len(image | text | pair) == 160 and 48 <= len(pair) <= 58  # 160 / 3 = 53.3, each of 4 classes rounded
    most = concepts_of(paired("clients.partition.pair_share=0.8"))
    assert 124 <= len(most[2] | most[3]) <= 132


def test_without_pair_clients_nobody_s_rows_change(toy_conf):
    """The split as it was before there were pairs, by its hash."""
    assert partition(toy_conf())["hash"].startswith("a3ccae76312855ef")


def test_emoji_s_ten_clients_all_have_rows():
    conf = composition.complete(
        composition.compose(
            ["data=emoji", "clients=paper_mixed", "method=standalone", "references=none", "clients.partition.alpha=0.1"]
        )
    )
    dealt = partition(conf)["clients"]
    assert [c["modality"] for c in dealt] == ["image"] * 3 + ["text"] * 3 + ["pair"] * 4
    assert min(len(c["rows"]) for c in dealt) >= 10
    mine = concepts_of(conf)
    kinds = [set.union(*(mine[k] for k in ks)) for ks in ((0, 1, 2), (3, 4, 5), (6, 7, 8, 9))]
    assert not kinds[0] & kinds[1] and not kinds[0] & kinds[2] and not kinds[1] & kinds[2]


def test_a_batch_has_both_sides_of_the_same_rows(client):
    rows = client.data.train
    (batch, *_) = client.private_batches(8, 0, "private")
    where = {int(i): n for n, i in enumerate(rows.ids)}
    chosen = [where[int(i)] for i in batch.ids]
    assert batch.images.shape == (8, 3, 16, 16) and batch.texts.dtype == torch.int64 and len(batch.texts) == 8
    assert torch.equal(batch.groups, rows.groups[chosen]) and torch.equal(batch.labels, rows.labels[chosen])
    said = client.vocabulary([rows.texts[n] for n in chosen])  # a text begins with its label, tags come after
    assert torch.equal(batch.texts[:, :3], said[:, :3])
    assert torch.equal(next(iter(client.private_batches(8, 0, "private"))).images, batch.images)
    assert not torch.equal(next(iter(client.private_batches(8, 1, "private"))).ids, batch.ids)


# -- model and loss ----------------------------------------------------------------------------------------------------


def test_both_encoders_give_unit_vectors_of_one_width(client):
    images, texts = seen(client, as_pairs(client.data.test))
    assert images.shape == texts.shape == (64, 32)
    for vectors in (images, texts):
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(64), atol=1e-5)


def test_looking_leaves_the_model_as_it_was(client):
    model = client.model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, two = seen(client, as_pairs(client.data.test)), seen(client, as_pairs(client.data.test))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) and model.image.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # batch norm's too


def test_pair_nce_by_hand():
    """Two pairs at right angles, temperature 1: a row is (1, 0), so -log(e / (e + 1)) both ways."""
    eye = torch.eye(2)
    assert pair_nce(eye, eye, eye.bool(), 1.0).item() == pytest.approx(math.log(1 + math.exp(-1)))
    # all match: the mean over both columns, -(log e/(e+1) + log 1/(e+1)) / 2
    both = torch.ones(2, 2, dtype=torch.bool)
    assert pair_nce(eye, eye, both, 1.0).item() == pytest.approx(math.log(1 + math.e) - 0.5)


def test_soft_contrastive_by_hand():
    """Distances 0 on the diagonal, sqrt(2) off it; p = sigmoid(2 (b - a d)). Four terms over B = 2."""
    eye, a, b = torch.eye(2), 2.0, 1.0
    p_match, p_other = (1 / (1 + math.exp(-2 * (b - a * d))) for d in (0.0, math.sqrt(2)))
    expected = -(2 * math.log(p_match) + 2 * math.log(1 - p_other)) / 2
    assert soft_contrastive(eye, eye, eye.bool(), a, b).item() == pytest.approx(expected, rel=1e-4)


def test_soft_contrastive_learns_its_scale_and_shift(paired):
    model = build_pair(paired("clients.pair.loss=soft_contrastive").clients, "resnet+bert")
    unit = torch.nn.functional.normalize(torch.randn(6, 32), dim=-1)
    model.loss(unit, unit.roll(1, 0), torch.arange(6)).backward()
    assert model.scale.grad.abs() > 0 and model.shift.grad.abs() > 0
    assert {"scale", "shift"} <= model.state_dict().keys()


def test_the_loss_of_a_batch_falls_when_it_is_trained(client):
    (batch, *_) = client.private_batches(16, 0, "private")
    client.model.train()
    stepper = torch.optim.AdamW(client.model.parameters(), 5e-3)
    losses = []
    for _ in range(80):
        loss = task_terms(client, batch)["task"]
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "architecture, said",
    [
        ("resnet", "a pair model is named image+text, such as resnet+bert, got 'resnet'"),
        ("bert+resnet", "no image model 'bert'"),
        ("vit+gpt", "no text model 'gpt'"),
    ],
)
def test_a_wrong_architecture_is_one_line(architecture, said, toy_conf):
    conf = toy_conf(
        "method=standalone", f"clients.mix=[{{modality: pair, model: {architecture}}}]", "timeouts.quorum=1"
    )
    with pytest.raises(SettingsError, match="clients.mix") as caught:
        preflight.validate(conf)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override, said",
    [
        ("loss=triplet", "clients.pair: loss must be one of info_nce"),
        ("temperature=0", "clients.pair: temperature must lie between"),
    ],
)
def test_bad_settings_of_the_loss_are_one_line(override, said, paired):
    with pytest.raises(SettingsError, match=said):
        preflight.validate(paired(f"clients.pair.{override}"))


def test_a_method_without_retrieval_refuses_pair_clients(toy_conf):
    with pytest.raises(
        SettingsError,
        match=r"method: fedproto has nothing for pair clients \(clients.mix\[2\]\); "
        "these have: .*standalone",
    ):
        preflight.validate(toy_conf("method=fedproto", MIX))


def test_samples_of_one_side_are_refused(client):
    with pytest.raises(ClientError, match="reads pairs"):
        client.inputs(Samples(torch.arange(1), texts=("a disc",)))


# -- figures -----------------------------------------------------------------------------------------------------------


def test_retrieval_clients_have_figures_of_their_own():
    def reply(k, modality, **metrics):
        return Reply(Known(k, k, modality), Report(metrics, 10))

    figures = client_figures(
        [
            reply(0, "image", accuracy=0.5, validation=0.25),
            reply(1, "pair", rsum_2x_r1=0.4, rsum_6=2.0, validation=0.125),
            reply(2, "pair", rsum_2x_r1=0.8, rsum_6=3.0, validation=0.375),
        ]
    )
    assert figures["client/accuracy"] == 0.5 and "client/accuracy/pair" not in figures
    assert figures["client/rsum/pair"] == pytest.approx(0.6) and figures["client/rsum/1"] == 0.4
    assert figures["client/rsum_6/pair"] == 2.5 and figures["client/validation/pair"] == 0.25
    assert figures["client/validation"] == 0.25


def test_standalone_trains_and_judges_all_three_kinds(paired, federated):
    run = federated(paired("rounds=1", "evaluation.images_per_class=1"))
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    last = records[-1]["metrics"]
    assert {
        "client/accuracy/image",
        "client/accuracy/text",
        "client/rsum/pair",
        "client/rsum/2",
        "client/rsum_6/pair",
        "client/retrieval/i2t/r1/pair",
        "client/validation/pair",
    } <= last.keys()
    assert not any(json.loads(line)["fault"] for line in (run / "ledger.jsonl").read_text().splitlines())
    assert 0 < last["client/rsum/pair"] <= 2
    report = (run / "report.html").read_text()
    assert "Retrieval" in report
