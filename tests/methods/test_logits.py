"""FedMD, FedGEMS and Fed-ET on one page: three clients, four samples, two classes, every number worked by hand."""

import json
import logging
import math
from functools import partial

import pytest
import torch
from flwr.app import Error, Message
from torch.nn.functional import cross_entropy

from client_app.batches import ClientError
from client_app.blocks.logits import LogitsClient, LogitsClientSettings, recalled
from client_app.distillation_set import DistillationSetError
from client_app.opening import open_client
from florilegium.config import composition
from florilegium.data.public import PublicPairs
from florilegium.federation.federation import Client, FederationError, Reply
from florilegium.learning.losses import logit_kl, logit_l1
from florilegium.protocol import codec
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Logits, Nothing, Report, Samples, SoftTargets, Targets
from florilegium.protocol.validation import WireError
from florilegium.runs import files
from strategies.blocks.public_set import PublicSet, PublicSetSettings
from strategies.logits.fedet import FedET, FedETSettings, diversity, variance_weights
from strategies.logits.fedgems import FedGEMS, FedGEMSSettings, selective_weights, sure_weights
from strategies.logits.fedmd import FedMD, FedMDSettings
from tests.fakes import FakeResources
from tests.tiers import first

METHODS = ("fedmd", "fedgems", "fedet")
CLIENTS = [Client(11, 0, "image"), Client(12, 1, "image"), Client(13, 2, "text")]
#  class scores of three clients:   sample 0        1           2           3
LOGITS = torch.tensor(
    [
        [[2.0, 0.0], [0.0, 4.0], [1.0, 0.0], [0.0, 1.0]],
        [[4.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]],
        [[0.0, 3.0], [0.0, 3.0], [2.0, 0.0], [4.0, 0.0]],
    ]
)
TRUTH = torch.tensor([0, 1, 1, 0])


class FakeFederation:
    """Answers as LOGITS say; remembers what was sent."""

    def __init__(self, logits=LOGITS, cohort=CLIENTS):
        self.sent, self.logits, self.cohort, self.round = [], logits, cohort, 1

    def ask(self, phase, payload, *expect, clients=None, **how):
        if phase != "represent":
            self.sent.append((phase, payload))
            return []
        self.samples = {c.modality: payload(c) for c in clients}
        assert how["bounds"] == {"N": 4, "C": 2}
        return [Reply(c, Logits(how["ids"], x)) for c, x in zip(clients, self.logits, strict=True)]

    def send(self, phase, payload, *expect, clients):
        self.sent.append((phase, payload))
        return clients

    def collect(self, clients):
        return [Reply(c, Report({"logits": 0.5 + c.id}, 4)) for c in clients]


@pytest.fixture
def pairs(monkeypatch):
    """Four public pairs with ids 10, 11, 12, 13; their order is the rows' own."""
    images = torch.arange(4, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    four = PublicPairs(torch.arange(10, 14), images, ("a", "b", "c", "d"), TRUTH, torch.arange(4), "hash")
    monkeypatch.setattr("strategies.blocks.public_set.open_public", lambda conf: four)
    return four


def one_round(Method, Settings, federation=None, source="proxy", **given):
    resources = FakeResources()
    strategy = Method(Settings(public=PublicSetSettings(source=source, samples=4), **given), resources)
    strategy.num_rounds = 2
    federation = federation or FakeFederation()
    metrics = strategy.round(1, federation)
    return strategy, resources, federation, metrics, dict(federation.sent)["distill"]


# -- FedMD -------------------------------------------------------------------------------------------------------------


def test_fedmd_sends_the_plain_mean_of_the_scores(pairs):
    _, _, federation, metrics, down = one_round(FedMD, FedMDSettings)
    assert isinstance(down, Logits) and down.ids.tolist() == [10, 11, 12, 13]
    assert torch.allclose(down.logits, torch.tensor([[2, 1], [0, 3], [2, 0], [4 / 3, 2 / 3]]))
    assert metrics["labels/accuracy"] == 0.75  # arg-max 0 1 0 0 of 0 1 1 0
    assert metrics["labels/client_2_agrees"] == 0.75  # its own 1 1 0 0
    assert metrics["distill/logits"] == 1.5  # mean of .5 1.5 2.5
    assert [phase for phase, _ in federation.sent] == ["train", "distill"]
    assert metrics["bytes/formula_up"] == 4 * 2 * 4


def test_fedmd_warms_up_on_labels_before_the_private_training(pairs):
    federation = FakeFederation()
    FedMD(FedMDSettings(warm_up=True, public=PublicSetSettings(samples=4)), FakeResources()).begin(federation)
    (first, targets), (second, nothing) = federation.sent
    assert (first, second) == ("distill", "train") and nothing == Nothing()
    assert isinstance(targets, Targets) and targets.labels.tolist() == TRUTH.tolist()
    assert targets.representations.shape == (4, 0)


# -- FedGEMS -----------------------------------------------------------------------------------------------------------


def entropy_of(gap):
    p = 1 / (1 + math.exp(-gap))
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def softmax(values):
    e = [math.exp(v - max(values)) for v in values]
    return [x / sum(e) for x in e]


def test_selective_weights_are_zero_before_the_softmax_where_a_client_is_wrong():
    weight_KN = selective_weights(LOGITS, TRUTH, 1e-3)
    assert weight_KN.sum(0).tolist() == pytest.approx([1] * 4)
    by_hand = softmax([1 / entropy_of(2), 1 / entropy_of(4), 0.0])  # sample 0: clients 0 and 1 are right
    assert weight_KN[:, 0].tolist() == pytest.approx(by_hand, rel=1e-4)
    assert weight_KN[:, 2].tolist() == pytest.approx([1 / 3] * 3)  # sample 2: nobody is


def test_a_sure_client_has_a_finite_weight():
    sure = torch.tensor([[[1000.0, 0.0]], [[0.0, 0.0]]])
    assert selective_weights(sure, torch.tensor([0]), 1e-3)[:, 0].tolist() == pytest.approx([1, 0])
    assert sure_weights(sure, 1e-3).isfinite().all()


def test_the_server_teaches_itself_where_right_then_the_pool_then_the_clients(pairs):
    # the ensemble of all: sample 0 right (client 1 is surest), 1 right, 2 wrong, 3 right (client 2 is surest)
    strategy, _, _, metrics, down = one_round(FedGEMS, FedGEMSSettings)
    server_NC = (sure_weights(LOGITS, 1e-3)[..., None] * LOGITS).sum(0)
    assert metrics["server/right"] == 0.75 and set(strategy.pool) == {10, 11, 13}
    assert torch.allclose(down.logits[[0, 1, 3]], server_NC[[0, 1, 3]])
    assert torch.allclose(down.logits[2], LOGITS[:, 2].mean(0))  # wrong, unknown, and no client is right
    assert down.labels.tolist() == TRUTH.tolist() and down.weight.tolist() == [1] * 4

    turned = FakeFederation(LOGITS.flip(-1))  # now all but sample 2 is wrong
    again = strategy.round(2, turned)
    taught = dict(turned.sent)["distill"].logits
    assert again["server/right"] == 0.25 and again["server/from_pool"] == 0.75 and again["server/taught_right"] == 1.0
    assert torch.allclose(taught[[0, 1, 3]], server_NC[[0, 1, 3]])  # what the pool remembers of round 1
    assert set(strategy.pool) == {10, 11, 12, 13}


def test_without_the_pool_the_right_clients_are_asked(pairs):
    strategy, *_ = one_round(FedGEMS, FedGEMSSettings, pool=False)
    assert not strategy.pool
    # sample 0, turned: the ensemble is wrong, client 2 alone is right
    turned = FakeFederation(LOGITS.flip(-1))
    strategy.round(2, turned)
    weights = softmax([0.0, 0.0, 1 / entropy_of(3)])
    expected = weights[2] * 3.0  # class 0: clients 0 and 1 give 0 there
    assert dict(turned.sent)["distill"].logits[0, 0].item() == pytest.approx(expected, rel=1e-4)


def test_the_pool_is_in_the_checkpoint(pairs):
    strategy, *_ = one_round(FedGEMS, FedGEMSSettings)
    twin = FedGEMS(strategy.settings, FakeResources())
    twin.restore(*strategy.state())
    assert twin.pool.keys() == strategy.pool.keys()
    assert all(torch.equal(twin.pool[i], strategy.pool[i]) for i in twin.pool)


def test_clip_may_stand_for_the_server(pairs, monkeypatch):
    class Clip:
        def encode_texts(self, prompts):
            assert prompts == ["A picture of a rose.", "A picture of a tulip."]
            return torch.eye(2)

        def encode_images(self, images):
            return torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.6, 0.8]])

    monkeypatch.setattr(FakeResources, "clip_score", lambda self: Clip(), raising=False)
    *_, metrics, down = one_round(FedGEMS, FedGEMSSettings, server_model="clip", clip_scale=10.0)
    assert metrics["server/right"] == 0.75 and torch.allclose(down.logits[2], torch.tensor([0.0, 10.0]))


# -- Fed-ET ------------------------------------------------------------------------------------------------------------


def test_variance_weights_sum_to_one_and_follow_the_variance():
    # two classes with scores l and 0: the variance is l^2 / 4, whatever constant is added
    weight_KN = variance_weights(LOGITS.log_softmax(-1))
    assert weight_KN.sum(0).tolist() == pytest.approx([1] * 4)
    assert weight_KN[:, 0].tolist() == pytest.approx([4 / 29, 16 / 29, 9 / 29], rel=1e-4)
    assert variance_weights(torch.zeros(2, 1, 3))[:, 0].tolist() == [0.5, 0.5]


def test_fedet_sends_the_consensus_and_the_mean_of_those_who_dispute_it(pairs):
    *_, metrics, down = one_round(FedET, FedETSettings, scores="log_softmax")
    # sample 0: differences l0 - l1 of 2, 4, -3 with weights 4, 16, 9 (of 29) give (8 + 64 - 27) / 29 > 0: class 0
    # sample 1: all say 1; sample 2: all say 0; sample 3: -1, -1, 4 with weights 1, 1, 16: class 0
    assert down.labels.tolist() == [0, 1, 0, 0] and down.weight.tolist() == [1, 0, 0, 1]
    assert torch.allclose(down.logits[0], LOGITS[2, 0].log_softmax(-1))  # client 2 alone disputes sample 0
    assert torch.allclose(down.logits[3], LOGITS[0, 3].log_softmax(-1))  # clients 0 and 1, alike
    assert metrics["labels/disputed"] == 0.5 and metrics["labels/accuracy"] == 0.75
    assert metrics["fusion/weight_2"] == pytest.approx((9 / 29 + 9 / 29 + 4 / 14 + 16 / 18) / 4, rel=1e-4)


def test_disputers_are_weighed_by_their_variance():
    score_KNC = torch.tensor([[[9.0, 0.0]], [[0.0, 1.0]], [[0.0, 2.0]]])
    weight_KN = variance_weights(score_KNC)  # 81, 1, 4 of 86
    diverse_NC, some_N = diversity(weight_KN, score_KNC, torch.tensor([0]))
    assert some_N.tolist() == [True] and diverse_NC[0].tolist() == pytest.approx([0, (1 * 1 + 4 * 2) / 5], rel=1e-4)


def test_softmax_scores_travel_as_log_probabilities(pairs):
    *_, down = one_round(FedET, FedETSettings, scores="softmax")
    assert torch.allclose(down.logits.exp().sum(-1), torch.ones(4))
    *_, off = one_round(FedET, FedETSettings, diversity=False)
    assert off.weight.tolist() == [0] * 4


# -- the public set ----------------------------------------------------------------------------------------------------


def test_a_client_sees_its_side_and_never_a_label(pairs):
    _, _, federation, _, _ = one_round(FedMD, FedMDSettings)
    image, text = federation.samples["image"], federation.samples["text"]
    assert len(image.images) == 4 and not image.texts and text.texts == ("a", "b", "c", "d") and not text.images
    assert set(vars(image)) == {"ids", "images", "texts"}


def test_a_proxy_set_gives_another_subset_each_round_or_always_the_same(pairs):
    def ids(r, fresh):
        return PublicSet(PublicSetSettings(samples=2, fresh=fresh), FakeResources()).drawn(r).ids.tolist()

    assert len({tuple(ids(r, True)) for r in range(8)}) > 1 and ids(3, True) == ids(3, True) == sorted(ids(3, True))
    assert {tuple(ids(r, False)) for r in range(8)} == {tuple(ids(0, False))}
    assert PublicSet(PublicSetSettings(samples=99), FakeResources()).drawn(1).ids.tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize(
    "Method, Settings, labels",
    [(FedMD, FedMDSettings, [0, 1, 0, 0]), (FedET, FedETSettings, [0, 1, 0, 0]), (FedGEMS, FedGEMSSettings, None)],
)
def test_the_t2i_model_is_tuned_on_the_agreed_labels(Method, Settings, labels):
    strategy, resources, _, metrics, down = one_round(Method, Settings, source="synthetic")
    images, texts, reps, rounds = resources.tuned[0]
    drawn = strategy.public.drawn(1)
    assert down.ids.tolist() == [4, 5, 6, 7] and images == drawn.labels.tolist() and rounds == (1, 2) and reps is None
    labels = drawn.labels.tolist() if labels is None else labels  # FedGEMS: labels are the drawn classes
    assert texts.label == [resources.classes.prompt(c) for c in labels]
    assert texts.full[0] == f"{texts.label[0]} caption {images[0]}"
    assert metrics["prompts/accuracy"] == 1.0 and metrics["t2i/loss"] == 1.0
    tensors, meta = strategy.state()
    assert torch.equal(tensors["generator.w"], torch.ones(1)) and meta["generator"] == {"steps": 3}


def test_representations_and_a_filter_reach_the_tuning(pairs):
    """What CreamFL and FedMEKT pass; a proxy set has nothing to tune."""
    resources = FakeResources()
    public_set = PublicSet(PublicSetSettings(source="synthetic", samples=4), resources)
    drawn, keep = public_set.drawn(1), torch.tensor([True, False, True, True])
    public_set.tune((1, 2), drawn, drawn.labels, torch.arange(8.0).view(4, 2), keep)
    assert resources.tuned[0][2].tolist() == [[0, 1], [4, 5], [6, 7]] and len(resources.tuned[0][1].full) == 3
    assert not PublicSet(PublicSetSettings(samples=4), resources).tune((1, 2), drawn, drawn.labels)
    nothing = public_set.tune((1, 2), drawn, drawn.labels, keep_N=torch.zeros(4, dtype=torch.bool))
    assert nothing == {} and len(resources.tuned) == 1


def test_pair_clients_are_left_out_by_name(pairs, caplog):
    with caplog.at_level(logging.INFO, "flwr"):
        logging.getLogger("flwr").addHandler(caplog.handler)
        _, _, federation, metrics, _ = one_round(
            FedMD, FedMDSettings, FakeFederation(cohort=[*CLIENTS, Client(14, 3, "pair", "resnet+bert")])
        )
    assert "FedMD has nothing to exchange with client 3 (pair, resnet+bert)" in caplog.text
    assert set(federation.samples) == {"image", "text"} and "labels/client_3_agrees" not in metrics
    with pytest.raises(FederationError, match=r"FedMD needs clients that classify images or texts; .* client 3 \(pair"):
        one_round(FedMD, FedMDSettings, FakeFederation(cohort=[Client(14, 3, "pair", "resnet+bert")]))


# -- the client --------------------------------------------------------------------------------------------------------


@pytest.fixture
def vit(toy_conf):
    """`vit(method, ...)`: (its half, client 1 at any message): a small ViT without dropout or augmentation, which a
    learning rate of 0 leaves as it is."""

    def opened(method, *overrides, r=1, step=2):
        conf = toy_conf(
            f"method={method}",
            "clients.augment={crop: 0, flip: false, tags: false}",
            "method.client.learning_rate={image: 0.0, text: 0.0}",
            *overrides,
        )
        half = LogitsClient(composition.typed(LogitsClientSettings, conf.method.client, "method.client"))
        return half, lambda step_=step, r_=r: open_client(conf, {"partition-id": 1}, Header("method", r_, step_))

    return opened


def eight():
    from florilegium import seeds
    from florilegium.protocol import pixels

    images = torch.randint(0, 256, (8, 3, 16, 16), generator=seeds.generator("eight"), dtype=torch.uint8)
    return Samples(torch.arange(8), images=pixels.encode(images))


def test_the_digest_is_the_mean_absolute_difference(vit):
    half, message = vit("fedmd", "method.client.revisit_epochs=0")
    own = half.represent(message(), eight())
    assert own.logits.shape == (8, 4) and own.ids.tolist() == list(range(8))
    consensus = own.logits + torch.tensor([1.0, -1.0, 0.5, 0.0])  # mean difference 2.5 / 4
    report = half.distill(message(3), Logits(own.ids, consensus))
    assert report.metrics["logits"] == pytest.approx(0.625, abs=1e-5) and report.examples == 8
    assert "label" not in report.metrics and "private" not in report.metrics


@pytest.mark.parametrize("method, hard, soft", [("fedgems", 0.75, 0.25), ("fedet", 1.0, 0.05)])
def test_labels_and_scores_are_weighed_and_undisputed_samples_have_no_second_term(method, hard, soft, vit):
    half, message = vit(method, "method.client.mix_private=false")
    own = half.represent(message(), eight())
    labels, weight = torch.arange(8) % 4, torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0])
    teacher = own.logits.flip(-1)
    report = half.distill(message(3), SoftTargets(own.ids, labels, teacher, weight))
    p, q = teacher.log_softmax(-1), own.logits.log_softmax(-1)
    kl_N = (p.exp() * (p - q)).sum(-1)
    assert report.metrics["label"] == pytest.approx(hard * cross_entropy(own.logits, labels).item(), rel=1e-4)
    assert report.metrics["logits"] == pytest.approx(soft * (kl_N[0] + kl_N[4]).item() / 8, rel=1e-3)


def test_warm_up_learns_labels_alone_and_the_first_training_still_is_the_long_one(vit):
    half, message = vit("fedmd", "method.client.warmup_epochs=2", "method.client.pretrain_epochs=3")
    client = message(2, 0)
    own = half.represent(client, eight())
    client.save()
    client = message(3, 0)
    report = half.distill(client, Targets(own.ids, torch.zeros(8, dtype=torch.int64), torch.zeros(8, 0)))
    assert report.metrics["steps"] == 2 and {"label", "gradient", "steps"} == set(report.metrics)
    client.save()
    epochs = []
    for step, r in ((4, 0), (1, 1)):
        client = message(step, r)
        plain = client.private_batches
        seen = set()
        client.private_batches = lambda size, epoch, name, plain=plain, seen=seen: (
            seen.add(epoch),
            plain(size, epoch, name),
        )[1]
        half.train(client, Nothing())
        epochs.append(len(seen))
    assert epochs == [3, 0]  # E0, then the revisit has them


def test_the_revisit_follows_the_digest_and_earlier_samples_come_again(vit):
    half, message = vit("fedmd", "method.client.revisit_epochs=1", "method.client.replay=6")
    own = half.represent(message(), eight())
    report = half.distill(message(3), Logits(own.ids, own.logits))
    assert report.metrics["revisit"] > 0 and report.metrics["logits"] == pytest.approx(0, abs=1e-6)
    half.represent(message(2, 2), eight())
    assert half.distill(message(3, 2), Logits(own.ids, own.logits)).examples == 14  # 8 and 6 of round 1


def test_what_does_not_fit_the_kept_samples_is_refused(vit):
    half, message = vit("fedmd")
    with pytest.raises(ClientError, match="no samples were ever kept"):
        recalled(message(), Logits(torch.arange(8), torch.zeros(8, 4)))
    half.represent(message(), eight())
    with pytest.raises(DistillationSetError, match="id 9, which is not among the 8"):
        recalled(message(3), Logits(torch.tensor([9]), torch.zeros(1, 4)))
    with pytest.raises(ClientError, match="targets are 4 wide, representations 5"):
        recalled(message(3), Logits(torch.arange(8), torch.zeros(8, 3)))


def test_logit_losses_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    weight = torch.tensor([1.0, 0.0])
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert logit_kl(teacher, student, weight).item() == pytest.approx(by_hand / 2, rel=1e-5)
    assert logit_l1(teacher, student, torch.ones(2)).item() == pytest.approx((math.log(3) + 4) / 4, rel=1e-5)
    assert logit_kl(teacher, student, weight, 2.0).item() == pytest.approx(
        4 * logit_kl(teacher / 2, student / 2, weight).item()
    )


# -- through the real apps ---------------------------------------------------------------------------------------------


def toy(toy_conf, method, *overrides):
    return toy_conf(
        f"method={method}",
        "method.server.public.samples=12",
        "tuning.batch=8",
        "method.client.pretrain_epochs=1",
        "evaluation.images_per_class=2",
        *overrides,
    )


def lines(run):
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def faults(run):
    return [e for e in map(json.loads, (run / "ledger.jsonl").read_text().splitlines()) if e["fault"]]


@pytest.mark.parametrize("source", first(["proxy", "synthetic"]))
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(method, source, toy_conf, resumed):
    whole, part = resumed(partial(toy, toy_conf, method, "rounds=2", f"method.public_set={source}"), "train.distill", 3)
    for a, b in zip(lines(whole), lines(part), strict=True):
        assert a["round"] == b["round"] and a["metrics"] == b["metrics"]
    ends = [files.load(sorted((d / "checkpoints/method").glob("*"))[-1])[0] for d in (whole, part)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert ("t2i/accuracy" in lines(whole)[-1]["metrics"]) == (source == "synthetic") and not faults(whole)


@pytest.mark.parametrize("method, label", [("fedmd", 0), ("fedgems", 12)])  # a label is 8 bytes, its weight 4
def test_measured_bytes_are_the_formula_and_headers(method, label, toy_conf, federated):
    metrics = lines(federated(toy(toy_conf, method)))[-1]["metrics"]
    up, down = (metrics[f"bytes/{way}_per_client"] - metrics[f"bytes/formula_{way}"] for way in ("up", "down"))
    assert 12 * 8 <= up <= 12 * 8 + 1000 and 12 * (24 + label) <= down <= 12 * (24 + label) + 2000  # 8 an id and length


@pytest.mark.parametrize(
    "kind, line",
    [
        ("nan", "NaN or infinite"),
        ("shape", "has 3 along C"),
        ("ids", "not the ids"),
        ("huge", "above 10000.0"),
        ("kind", "expected Logits, got Nothing"),
    ],
)
def test_a_bad_upload_is_named_and_left_out(kind, line, toy_conf, federated):
    def tamper(question, reply):
        if question.metadata.message_type != "query.represent" or question.metadata.dst_node_id != 101:
            return reply
        body, header = codec.unpack(reply.content, Logits), codec.header(reply.content)
        bad = {
            "nan": Logits(body.ids, torch.full_like(body.logits, torch.nan)),
            "shape": Logits(body.ids, body.logits[:, :3]),
            "ids": Logits(body.ids.flip(0), body.logits),
            "huge": Logits(body.ids, body.logits + 1e30),
            "kind": Nothing(),
        }[kind]
        return Message(codec.pack(bad, header), reply_to=question)

    run = federated(toy(toy_conf, "fedmd"), tamper)
    (fault,) = faults(run)
    assert fault["client"] == 1 and line in fault["fault"]
    last = lines(run)[-1]["metrics"]
    assert "labels/client_1_agrees" not in last and "labels/client_0_agrees" in last


@pytest.mark.parametrize("method", METHODS)
def test_replies_that_miss_one_modality_are_no_reason_to_stop(method, toy_conf, federated):
    def silent_texts(question, reply):
        if question.metadata.message_type == "query.represent" and question.metadata.dst_node_id >= 102:
            return Message(Error(2, "no text today"), reply_to=question)
        return reply

    run = federated(toy(toy_conf, method), silent_texts)
    assert [f["client"] for f in faults(run)] == [2, 3] and "labels/accuracy" in lines(run)[-1]["metrics"]


@pytest.mark.parametrize("method", METHODS)
def test_beside_retrieval_clients_the_classifiers_exchange_alone(method, toy_conf, federated):
    mix = "[{modality: image, model: resnet}, {modality: text, model: bert}, {modality: pair, model: resnet+bert}]"
    run = federated(toy(toy_conf, method, f"clients.mix={mix}", "method.client.alone_batches=2"))
    ledger = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    asked = {
        phase: {e["client"] for e in ledger if e["phase"] == phase and e["round"]}
        for phase in ("train", "represent", "distill", "evaluate")
    }
    assert asked == {"train": {0, 1, 2}, "represent": {0, 1}, "distill": {0, 1}, "evaluate": {0, 1, 2}}
    assert not faults(run)


def test_soft_targets_are_checked_on_the_wire():
    good = SoftTargets(torch.arange(2), torch.tensor([0, 1]), torch.zeros(2, 2), torch.ones(2))
    codec.unpack(codec.pack(good, Header("method", 1, 1)), bounds={"C": 2})
    for name, value, line in (
        ("weight", torch.tensor([1.0, 2.0]), "weight has a value of 2.0, above 1.0"),
        ("labels", torch.tensor([0, 2]), "but there are 2 of C"),
        ("logits", torch.full((2, 2), 2e4), "logits has a value of 20000.0"),
    ):
        bad = SoftTargets(**{**vars(good), name: value})
        with pytest.raises(WireError, match=line):
            codec.unpack(codec.pack(bad, Header("method", 1, 1)), bounds={"C": 2})


@pytest.mark.parametrize(
    "make, line",
    [
        (lambda: PublicSetSettings(source="mine"), "source must be one of proxy, synthetic, got 'mine'"),
        (lambda: PublicSetSettings(samples=1), "samples must lie between 2"),
        (lambda: FedGEMSSettings(server_model="gpt"), "server_model must be one of ensemble, clip"),
        (lambda: FedETSettings(scores="raw"), "scores must be one of softmax, log_softmax"),
        (lambda: LogitsClientSettings(distance="l2"), "distance must be one of l1, kl"),
        (lambda: LogitsClientSettings(label_weight=0, logit_weight=0), "label_weight and logit_weight are both 0"),
        (lambda: LogitsClientSettings(distill_batch=1), "distill_batch must lie between 2"),
    ],
)
def test_settings_are_checked(make, line):
    with pytest.raises(ValueError, match=line):
        make()
