"""FedMMKT's server side on one page: four clients, six samples, every number worked by hand."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from client_app.distillation_set import Kept, joined, taught
from client_app.methods.fedmmkt import FedMMKTClient, FedMMKTClientSettings
from florilegium.config.diffusion import TuneSettings
from florilegium.federation.federation import Client, Reply
from florilegium.federation.guard import Guard
from florilegium.learning.metrics import confusion
from florilegium.protocol.payloads import Answers, Logits, Nothing, Report, Targets
from florilegium.protocol.pixels import decode
from strategies.blocks.ahead import Ahead, Pool
from strategies.blocks.synthesis import Reservoir, draw_classes, filled
from strategies.centralised import Centralised, CentralisedSettings
from strategies.fedmmkt import FedMMKT, FedMMKTSettings
from tests.fakes import Classes, FakeResources

FLOWERS = Classes(["rose", "tulip", "lily"])
CLIENTS = [Client(11, 0, "image"), Client(12, 1, "image"), Client(13, 2, "text"), Client(14, 3, "text")]
#                      samples:  0  1  2  3  4  5
LABELS = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 1, 1, 1, 2], [0, 1, 0, 2, 0, 2], [0, 0, 2, 0, 2, 2]])
#  consensus (weights 1):       0  1  2  0  1  2     votes 4 3 2 2 2 4


@dataclass
class Exchange:
    replies: list
    clients: tuple = tuple(CLIENTS)  # at work


class FakeFederation:
    """Answers as LABELS say; remembers what was sent."""

    def __init__(self, reps=None, logits=None):
        self.sent, self.reps, self.logits = [], reps, logits
        self.guard = Guard()

    def send(self, phase, payload, *expect, clients=None, **how):
        if phase != "represent":
            self.sent.append((phase, payload))
            return Exchange([Reply(c, Report({"label": 0.5 + c.id}, 3)) for c in clients or ()])
        return Exchange(self.answers(payload, how))

    def collect(self, exchange):
        return exchange.replies

    def answers(self, payload, how):
        self.samples = {c.modality: payload(c) for c in CLIENTS}
        ids = how["ids"]
        if self.logits is not None:
            return [Reply(c, Logits(ids, x)) for c, x in zip(CLIENTS, self.logits, strict=True)]
        reps = self.reps if self.reps is not None else torch.ones(4, 6, 4)
        wide = how["bounds"]["A"]
        return [
            Reply(c, Answers(ids, y, torch.ones(6), r, r[:, :wide]))
            for c, y, r in zip(CLIENTS, LABELS, reps, strict=True)
        ]


def one_round(reps=None, logits=None, **settings):
    resources = FakeResources(FLOWERS)
    literal = {"balance": False, "prompt_weight": 0.0, "prompt_veto": False, "fill": 0.2} | settings
    strategy = FedMMKT(FedMMKTSettings(samples=6, **literal), resources)
    strategy.num_rounds = 2
    federation = FakeFederation(reps, logits)
    metrics = strategy.round(1, federation)
    phases = [phase for phase, _ in federation.sent]
    return strategy, resources, federation, metrics, phases, dict(federation.sent).get("distill")


def test_a_round_end_to_end():
    _, resources, federation, metrics, phases, targets = one_round(vote_threshold=0.75)
    assert phases == ["train", "distill"]
    assert targets.ids.tolist() == [6, 7, 11] and targets.labels.tolist() == [0, 1, 2]  # ids go on over rounds
    assert torch.allclose(targets.representations, torch.ones(3, 4))  # equal clients: their mean
    assert metrics["labels/kept"] == 0.5 and metrics["distill/label"] == 2.0  # mean of .5 1.5 2.5 3.5
    assert metrics["labels/client_3_agrees"] == pytest.approx(4 / 6)  # samples 0, 2, 3, 5
    images, texts, reps, rounds = resources.tuned[0]
    assert images == resources.drawn[[0, 1, 5]].tolist() and rounds == (1, 2) and reps.shape == (3, 4)
    assert texts.label == ["A picture of a rose.", "A picture of a tulip.", "A picture of a lily."]
    assert texts.full[1] == f"A picture of a tulip. caption {resources.drawn[1]}"


def test_clients_see_their_own_modality_and_never_the_drawn_class():
    _, _, federation, *_ = one_round()
    image, text = federation.samples["image"], federation.samples["text"]
    assert len(image.images) == 6 and not image.texts and len(text.texts) == 6 and not text.images
    assert set(vars(image)) == {"ids", "images", "texts"}


def test_half_the_votes_keep_all_six():
    *_, metrics, _, targets = one_round(vote_threshold=0.5)
    assert metrics["labels/kept"] == 1.0 and targets.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_the_drawn_class_votes_as_one_client_of_mean_confidence():
    # sample 3 of LABELS has votes 0 1 2 0: class 0 weighs 2, the drawn class 1 more wherever it is
    _, resources, _, _, _, targets = one_round(balance=True, prompt_weight=1.5, vote_threshold=0.0)
    drawn = resources.drawn.tolist()
    ballots = [[LABELS[:, n].tolist().count(c) + 1.5 * (c == drawn[n]) for c in range(3)] for n in range(6)]
    assert targets.labels.tolist() == [max(range(3), key=lambda c, b=b: (b[c], -c)) for b in ballots]


def test_the_prompt_and_the_clients_must_say_the_same():
    # LABELS agree on classes 0 1 2 0 1 2 by half of the clients; the drawn classes are the fake's own
    _, resources, _, metrics, _, targets = one_round(vote_threshold=0.5, prompt_veto=True, class_sampling="uniform")
    same = [
        n
        for n, (drawn, label) in enumerate(zip(resources.drawn.tolist(), [0, 1, 2, 0, 1, 2], strict=True))
        if drawn == label
    ]
    assert 0 < len(same) < 6, "the case tells nothing"
    assert targets.ids.tolist() == [6 + n for n in same] and metrics["labels/agree_with_prompt"] == 1.0


def test_a_class_without_agreement_is_filled_with_the_samples_of_most_votes():
    drawn, label = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 1, 1, 1, 1, 1])
    keep, votes = torch.tensor([True, False, False, False, True, True]), torch.tensor([3.0, 0.5, 2.0, 0.5, 3.0, 3.0])
    labels, used = filled(drawn, label, keep, 0.75, votes)  # class 0 needs three of its four: sample 2, then sample 1
    assert used.tolist() == [True, True, True, False, True, True] and labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert filled(drawn, label, keep, 0.5)[1].tolist() == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]  # without votes: in order


def test_without_labvote_the_prompt_labels_everything():
    _, resources, _, metrics, _, targets = one_round(labvote=False, vote_threshold=1.0)
    assert targets.labels.tolist() == resources.drawn.tolist() and metrics["labels/kept"] == 1.0


@pytest.mark.parametrize(
    "switch, width, tuned",
    [("fusion", 0, None), ("client_representations", 0, (3, 4)), ("t2i_representations", 4, None)],
)
def test_ablations_close_one_path_each(switch, width, tuned):
    _, resources, _, _, _, targets = one_round(vote_threshold=0.75, **{switch: False})
    assert targets.representations.shape == (3, width)
    reps = resources.tuned[0][2]
    assert (None if reps is None else tuple(reps.shape)) == tuned


def test_the_logit_variant_votes_by_fused_logits_and_sends_labels_only():
    logits = torch.nn.functional.one_hot(LABELS, 3).float() * 5
    _, resources, _, metrics, _, targets = one_round(logits=logits, variant="logit", vote_threshold=0.75)
    assert targets.labels.tolist() == [0, 1, 2] and targets.representations.shape == (3, 0)
    assert resources.tuned[0][2] is None
    assert metrics["bytes/formula_up"] == 6 * 3 * 4


def test_the_unimodal_variant_asks_for_an_augmented_view_and_ignores_modality():
    reps = torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(0))
    _, _, _, metrics, _, targets = one_round(reps=reps, variant="unimodal", vote_threshold=0.5, temperature=1.0)
    anchor = reps.mean(0)
    unit = torch.nn.functional.normalize
    scores = torch.stack([(unit(r, dim=-1) @ unit(anchor, dim=-1).T).log_softmax(-1).diagonal() for r in reps])
    expected = (scores.softmax(0)[..., None] * reps).sum(0)
    assert torch.allclose(targets.representations, expected, atol=1e-5)


def test_nothing_kept_is_no_reason_to_fail():
    strategy = FedMMKT(FedMMKTSettings(samples=6, vote_threshold=1.0, prompt_weight=0.0), FakeResources(FLOWERS))
    disagree = FakeFederation()
    LABELS_BEFORE = LABELS.clone()
    try:
        LABELS[0] = (LABELS[1] + 1) % 3
        metrics = strategy.round(1, disagree)
    finally:
        LABELS.copy_(LABELS_BEFORE)
    assert metrics["labels/kept"] == 0.0 and "labels/accuracy" not in metrics


def test_a_round_that_keeps_nothing_leaves_a_clients_replay():
    """Its targets have no width, the replay has one of 4: the client learns the replay and keeps it."""
    ids, labels = torch.tensor([1, 2]), torch.tensor([0, 1])
    samples = Kept(ids, texts=("a rose", "a tulip"))
    earlier = taught(samples, Targets(ids, labels, torch.ones(2, 4)))
    nothing = taught(samples, Targets(ids[:0], labels[:0], torch.zeros(0, 0)))
    both = joined(nothing, earlier)
    assert both.samples.texts == ("a rose", "a tulip") and both.fused.shape == (2, 4)
    stored = []
    client = SimpleNamespace(recall=lambda _: nothing, replayed=lambda: None, store=lambda *given: stored.append(given))
    assert FedMMKTClient(FedMMKTClientSettings()).distill(client, None).examples == 0 and not stored


@pytest.mark.parametrize("text", ["caption", "label", "label+caption"])
def test_a_caption_alone_has_no_prompt_before_it(text):
    """For FedMMKT and for Centralised: what the T2I model is tuned on with text=caption."""

    def full(prompt, caption):
        return caption if text == "caption" else f"{prompt} {caption}"

    _, resources, *_ = one_round(t2i=TuneSettings(text=text))
    images, texts, *_ = resources.tuned[0]
    told = [full(prompt, f"caption {int(c)}") for prompt, c in zip(texts.label, images, strict=True)]
    assert texts.full == told
    resources = FakeResources(FLOWERS)
    resources.pooled_private = lambda: (torch.zeros(2, 3, 8, 8), torch.tensor([1, 1]), ["red", "red"])
    Centralised(CentralisedSettings(samples=1, t2i=TuneSettings(text=text)), resources).round(1, None)
    assert resources.tuned[0][1].full == [full("A picture of a tulip.", "red")]


def test_state_holds_generator_and_replay():
    strategy, resources, *_ = one_round(vote_threshold=0.75, replay=2)
    tensors, meta = strategy.state()
    twin = FedMMKT(FedMMKTSettings(samples=6, replay=2), FakeResources(FLOWERS))
    twin.restore(tensors, meta)
    assert torch.equal(twin.generator.restored[0]["w"], torch.ones(1)) and twin.generator.restored[1] == {"steps": 3}
    assert twin.replay.captions == strategy.replay.captions and len(twin.replay.captions) == 2


def test_replay_joins_after_this_rounds_samples():
    reservoir = Reservoir(2)
    first = (torch.zeros(3, 1), torch.tensor([0, 1, 2]), ["a", "b", "c"], torch.zeros(3, 4))
    assert reservoir.mixed(*first, (0, 1))[2] == ["a", "b", "c"]
    kept = list(reservoir.captions)
    _, labels, texts, _ = reservoir.mixed(torch.ones(1, 1), torch.tensor([9]), ["d"], torch.ones(1, 4), (0, 2))
    assert texts == ["d", *kept] and labels.tolist() == [9, *["abc".index(c) for c in kept]]


def test_stratified_classes_cover_all_and_rounds_differ():
    drawn = draw_classes(24, 100, "stratified", 0, 1)
    assert set(drawn.bincount(minlength=24).tolist()) == {4, 5}
    assert not torch.equal(drawn, draw_classes(24, 100, "stratified", 0, 2))
    assert torch.equal(drawn, draw_classes(24, 100, "stratified", 0, 1))


def test_confusion_counts():
    assert confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    "bad, line",
    [
        ({"vote_threshold": 1.4}, "vote_threshold must lie between 0 and 1, got 1.4"),
        ({"confidence": "softmax"}, "confidence must be one of exp_neg"),
        ({"samples": 0}, "samples must lie between"),
    ],
)
def test_settings_are_checked(bad, line):
    with pytest.raises(ValueError, match=line):
        FedMMKTSettings(**bad)


def test_begin_lets_clients_start_alone():
    federation = FakeFederation()
    FedMMKT(FedMMKTSettings(samples=6), FakeResources(FLOWERS)).begin(federation)
    assert federation.sent == [("train", Nothing())]


# -- samples made a round ahead ----------------------------------------------------------------------------------------


class Counting(FakeResources):
    """A generator whose pictures are as grey as the number of its tunings."""

    def synthesize(self, prompts, noise, guidance=None, latents=None):
        super().synthesize(prompts, noise)
        return torch.full((len(prompts), 3, 8, 8), len(self.tuned), dtype=torch.uint8)


def drawn_with(rounds=4, resume_after=None, **settings):
    """(round -> grey of its samples, labels of the targets of each round) of a run of FedMMKT."""
    given = {"vote_threshold": 0.5, "prompt_veto": False, "labvote": False, "fill": 0.2} | settings
    strategy = FedMMKT(FedMMKTSettings(samples=6, **given), Counting(FLOWERS))
    strategy.num_rounds, greys, labels = rounds, [], []
    federation = FakeFederation()
    strategy.begin(federation)
    for r in range(1, rounds + 1):
        strategy.round(r, federation)
        greys += decode(federation.samples["image"].images)[:1, 0, 0, 0].tolist()
        labels.append(dict(federation.sent)["distill"].labels.tolist())
        if r == resume_after:
            tensors, meta = strategy.state()
            twin = FedMMKT(FedMMKTSettings(samples=6, **given), Counting(FLOWERS))
            twin.resources.tuned, twin.num_rounds = strategy.resources.tuned, rounds
            twin.restore(tensors, json.loads(json.dumps(meta)))
            strategy = twin
    return greys, labels, strategy


@pytest.mark.parametrize("overlap, tunings", [("distill", [0, 1, 2, 3]), ("train", [0, 0, 1, 2])])
def test_samples_made_while_clients_train_are_one_tuning_older_and_nothing_else_differs(overlap, tunings):
    """Round 1's are made in round 0, where a synchronous run has the same generator; from then on one tuning less."""
    now, labels, _ = drawn_with()
    ahead, same, strategy = drawn_with(overlap=overlap)
    assert now == [0, 1, 2, 3] and ahead == tunings and labels == same
    assert strategy.ahead.waiting is None, "nothing is made for a round that never comes"


@pytest.mark.parametrize("overlap", ["distill", "train"])
def test_the_samples_that_wait_are_part_of_the_state(overlap):
    whole, resumed = drawn_with(overlap=overlap)[:2], drawn_with(overlap=overlap, resume_after=2)[:2]
    assert whole == resumed
    tensors, meta = drawn_with(overlap=overlap, rounds=2)[2].state()
    assert meta["ahead"] == {} and not [name for name in tensors if name.startswith("ahead")]


def test_one_rounds_samples_wait_at_most_and_only_while_clients_work():
    made = []
    ahead = Ahead(lambda r: made.append(r) or Pool(torch.zeros(1), torch.zeros(1, 3, 2, 2), ["a"]), "train")
    idle, busy = Exchange([], ()), Exchange([])
    ahead.fill(2, 4, idle, "train")
    ahead.fill(2, 4, busy, "distill")
    assert made == []
    ahead.fill(2, 4, busy, "train", "distill")
    ahead.fill(3, 4, busy, "train")  # the queue is full
    assert made == [2] and ahead.take(2).captions == ["a"] and made == [2]
    ahead.fill(5, 4, busy, "train")  # after the last round
    assert made == [2] and ahead.take(5).captions == ["a"] and made == [2, 5]
    ahead.fill(3, 4, busy, "train")
    ahead.take(4)  # what waits is of another round, as after a resume with more rounds: made anew
    assert made == [2, 5, 3, 4]
