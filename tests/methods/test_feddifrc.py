"""FedDifRC's client side: its terms worked by hand, what it asks the decoder, and its own condition."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from client_app.batches import Batch
from client_app.guidance.feddifrc import FedDifRCGuide
from client_app.guidance.frozen_features import orthogonal
from client_app.guidance.replay import drawn_of_others
from florilegium.methods.guidance.prompts import questions
from florilegium.methods.guidance.settings import FedDifRCSettings

HEAD = None  # no term of these asks it, but replay
PROMPTS = ["a coat", "a bag", "a boot", "a dress"]


class FrozenFeatures:
    """Two rows, ids 3 and 8: H along y and x, F+ along x, two negatives along y and -x."""

    version = "v1"
    tensors = {
        "shown_labels": torch.tensor([0, 1, 1]),
        "prompted": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]).half(),
        "unprompted": torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]).half(),
    }

    def __init__(self):
        self.asked = []

    def features(self, condition=None):
        self.asked.append(condition)
        x, y = [1.0, 0.0], [0.0, 1.0]
        return torch.tensor([[y, x, y, [-1.0, 0.0]], [x, x, y, [-1.0, 0.0]]]).half()

    def standard(self, features):
        return features.float()

    def at(self, ids):
        return torch.searchsorted(torch.tensor([3, 8]), ids)


def batch(*ids):
    return Batch(torch.zeros(len(ids), 1), torch.zeros(len(ids), dtype=torch.int64), torch.tensor(ids))


def guide(**settings):
    head = nn.Linear(2, 2)
    head.finished = lambda z: 3 * z
    given = FedDifRCSettings(temperature=0.5, **settings)
    client = SimpleNamespace(classifier=head, device=torch.device("cpu"), seed=lambda *names: 0)
    return FedDifRCGuide(given, client, FrozenFeatures())


def test_the_terms_by_hand():
    """z = (2, 0) twice, tau = 1/2: s+ = 2, s- = 0 and -2. H is at a right angle for id 3 and along z for id 8."""
    z = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    terms = guide().terms(z, batch(8, 3), HEAD)
    assert terms["tdcl"].item() == pytest.approx(math.log(1 + math.exp(-2) + math.exp(-4)), abs=1e-5)
    assert terms["ndcr"].item() == pytest.approx((0 + 2) / 2, abs=1e-5)
    assert guide().terms(z[:1], batch(8), HEAD)["ndcr"].item() == pytest.approx(0, abs=1e-5)  # features are found by id
    assert guide().terms(z[:1], batch(3), HEAD)["ndcr"].item() == pytest.approx(2, abs=1e-5)


def test_each_term_has_a_weight_and_can_be_off():
    z = torch.tensor([[2.0, 0.0]])
    assert set(guide(tdcl=0.0).terms(z, batch(3), HEAD)) == {"ndcr"}
    assert set(guide(ndcr=0.0).terms(z, batch(3), HEAD)) == {"tdcl"}
    assert guide(ndcr=0.25).terms(z, batch(3), HEAD)["ndcr"].item() == pytest.approx(0.5, abs=1e-5)


def test_negatives_from_images_of_other_classes():
    """Class 0, z along x, tau = 1/2: s+ = 2; the two images of class 1 lie along y and -x: 0 and -2."""
    one, z = guide(negatives_from="images", ndcr=0.0), torch.tensor([[2.0, 0.0]])
    expected = math.log(1 + math.exp(-2) + math.exp(-4))
    assert one.terms(z, batch(8), HEAD)["tdcl"].item() == pytest.approx(expected, abs=1e-5)
    other = Batch(torch.zeros(1, 1), torch.tensor([1]), torch.tensor([8]))  # class 1: the one image of class 0, along x
    assert one.terms(z, other, HEAD)["tdcl"].item() == pytest.approx(math.log(2), abs=1e-5)


def test_images_of_the_own_class_are_never_negatives():
    labels, random = torch.tensor([0, 1, 2, 0, 1, 0]), torch.Generator().manual_seed(0)
    for _ in range(20):
        drawn = drawn_of_others(torch.tensor([0, 1]), labels, 2, random)
        assert drawn.shape == (2, 2) and set(drawn[0].tolist()) <= {1, 2, 4} and set(drawn[1].tolist()) <= {0, 2, 3, 5}
        assert all(len(set(row)) == 2 for row in drawn.tolist())
    assert drawn_of_others(torch.tensor([0]), labels, 9, random).shape == (1, 3)  # no more than there are
    with pytest.raises(ValueError, match="no other class"):
        drawn_of_others(torch.tensor([0]), torch.zeros(3), 1, random)


def test_replay_of_unprompted_features_in_the_head():
    """All features are (1, 0), finished (3, 0); logits 3 and 0: a third of the draws is of class 0."""
    one = guide(tdcl=0.0, ndcr=0.0, replay=2.0)
    (term,) = one.terms(torch.zeros(3000, 2), batch(*[8] * 3000), lambda z: z).values()
    low, high = math.log(1 + math.exp(-3)), math.log(1 + math.exp(3))
    assert term.item() == pytest.approx(2 * (low / 3 + 2 * high / 3), rel=0.05)


def test_without_labels_there_is_no_replay():
    with pytest.raises(ValueError, match="supervised=false knows no classes"):
        FedDifRCSettings(supervised=False, replay=1.0)


def test_features_are_read_once_and_only_when_a_batch_asks():
    one = guide()
    assert one.frozen.asked == []
    for _ in range(3):
        one.terms(torch.ones(1, 2), batch(3), HEAD)
    assert one.frozen.asked == [None]


def test_both_terms_move_the_encoder_at_the_start():
    """Each gives at least a thousandth of the task's gradient; the released consistency gives a ten-thousandth."""
    random = torch.Generator().manual_seed(0)
    seen = torch.rand(32, 4, 128, generator=random)
    z = torch.randn(32, 128, generator=random).requires_grad_()
    head = nn.Linear(128, 10)
    task = nn.functional.cross_entropy(head(z), torch.arange(32) % 10)
    reference = torch.autograd.grad(task, z)[0].norm()

    def share(**settings):
        one = FedDifRCGuide(FedDifRCSettings(**settings), SimpleNamespace(), FrozenFeatures())
        one.__dict__["features_NQD"], one.frozen.at = seen, lambda ids: ids
        return {
            name: (torch.autograd.grad(term, z, retain_graph=True)[0].norm() / reference).item()
            for name, term in one.terms(z, batch(*range(32)), HEAD).items()
        }

    assert min(share().values()) > 1e-2
    assert share(ndcr_form="kl")["ndcr"] < 1e-3 < share(ndcr_form="kl_t")["ndcr"]


# -- without labels ----------------------------------------------------------------------------------------------------


def test_without_labels_only_the_probe_sees_them_and_it_moves_no_representation():
    one = guide(supervised=False)
    one.client.classifier.head = nn.Linear(2, 2)
    assert not one.supervised
    z = torch.tensor([[2.0, 0.0]], requires_grad=True)
    terms = one.terms(z, batch(3), HEAD)
    assert set(terms) == {"tdcl", "ndcr", "probe"}
    assert torch.autograd.grad(terms["probe"], z, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(terms["probe"], one.client.classifier.head.weight)[0].abs().sum() > 0


def test_what_is_asked_without_labels():
    """Prompt 0 for H, 1 the positive for every sample; negatives by name, whatever the labels are."""
    s = FedDifRCSettings(supervised=False, negatives=2, other_names=["koala", "barn", "wok"])
    asked, other = (questions(PROMPTS, torch.tensor(y), torch.tensor([7, 9]), s, 0) for y in ([0, 3], [1, 1]))
    assert asked.prompts == [
        "a photo of a visual object",
        "a photo of a similar object",
        "a photo of a koala",
        "a photo of a barn",
        "a photo of a wok",
    ]
    assert asked.which_NQ[:, :2].tolist() == [[0, 1], [0, 1]] and torch.equal(asked.which_NQ, other.which_NQ)
    assert all(len(set(row)) == 2 and set(row) <= {2, 3, 4} for row in asked.which_NQ[:, 2:].tolist())
    with pytest.raises(ValueError, match="other_names has 1 names for 2 negatives"):
        FedDifRCSettings(supervised=False, negatives=2, other_names=["koala", "koala"])


# -- prompts and negatives ---------------------------------------------------------------------------------------------


def test_h_the_true_class_and_all_wrong_classes():
    asked = questions(PROMPTS, torch.tensor([0, 2]), torch.tensor([5, 6]), FedDifRCSettings(negatives=10), 0)
    assert asked.prompts == ["", *PROMPTS]
    assert asked.which_NQ.tolist() == [[0, 1, 2, 3, 4], [0, 3, 1, 2, 4]]  # K = min(10, C - 1)


def test_negatives_are_wrong_classes_drawn_once_by_seed_and_id():
    labels, ids = torch.arange(40) % 4, torch.arange(40) * 3
    s = FedDifRCSettings(negatives=2)
    asked = questions(PROMPTS, labels, ids, s, 0).which_NQ
    assert asked.shape == (40, 4) and (asked[:, 2:] != 1 + labels[:, None]).all()
    assert (asked[:, 2] != asked[:, 3]).all() and asked[:, 2:].min() >= 1
    some = questions(PROMPTS, labels[10:12], ids[10:12], s, 0).which_NQ
    assert torch.equal(some, asked[10:12])  # whoever else is asked about changes nothing
    assert not torch.equal(questions(PROMPTS, labels, ids, s, 1).which_NQ, asked)


# -- the client's own condition ---------------------------------------------------------------------------------------


class Memory:
    def __init__(self):
        self.parts = {}

    def read(self, part):
        return self.parts.get(part)

    def write(self, part, tensors, meta):
        self.parts[part] = tensors, meta


def test_the_map_of_the_condition_keeps_lengths():
    a = orthogonal(3, 5)
    assert a.shape == (3, 5) and torch.allclose(a @ a.T, torch.eye(3), atol=1e-6)
    assert torch.equal(orthogonal(3, 5), a) and orthogonal(5, 3).shape == (5, 3)


@pytest.mark.parametrize("rounds, takes", [((1, 2), 1), ((1, 3), 2)])
def test_conditioned_features_are_taken_again_after_so_many_rounds(rounds, takes):
    """refresh = 3: rounds 1 and 2 are of one period, round 3 begins the next."""
    frozen, memory, tokens = FrozenFeatures(), Memory(), torch.full((4, 2, 5), 2.0)
    frozen.extractor = SimpleNamespace(text=lambda prompts, pooled: tokens)
    frozen.questions, frozen.order = SimpleNamespace(prompts=PROMPTS), torch.arange(2)
    c = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    for r in rounds:
        client = SimpleNamespace(
            round=r,
            memory=memory,
            model=nn.Linear(1, 1),
            data=SimpleNamespace(train=None),
            encoded_rows=lambda rows, order: c,
        )
        FedDifRCGuide(FedDifRCSettings(condition="add_all_tokens", refresh=3), client, frozen).terms(
            torch.ones(1, 2), batch(3), HEAD
        )
    assert len(frozen.asked) == takes
    token = math.sqrt(5 * 4)  # each token's norm
    assert frozen.asked[0].norm(dim=-1).mean().item() == pytest.approx(0.1 * token, rel=1e-4)


def test_negatives_from_images_ask_the_decoder_for_no_wrong_prompt():
    s = FedDifRCSettings(negatives_from="images")
    assert questions(PROMPTS, torch.tensor([0, 3]), torch.tensor([7, 9]), s, 0).which_NQ.tolist() == [[0, 1], [0, 4]]
