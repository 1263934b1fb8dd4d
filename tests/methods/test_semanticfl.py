"""SemanticFL's client side: its terms worked by hand, the student, sub-anchors, own anchors, replay, and the head of
the texts."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from client_app.batches import Batch, ClientError
from client_app.guidance.replay import HeadReplay
from client_app.guidance.semanticfl import SemanticFLGuide
from florilegium.methods.guidance.settings import SemanticFLSettings

X, Y = [1.0, 0.0], [0.0, 1.0]
ANCHORS = {"form": "anchors", "start": "fresh", "consistency": 1.0, "consistency_form": "unit", "contrast": 0.01,
           "replay": 0.0}  # fmt: skip


def HEAD(z):
    """Logits (z_x, z_y): class 0 lies along x."""
    return z


class Model(nn.Module):
    """z = turn x, as a client's classifier says it."""

    def __init__(self, turn):
        super().__init__()
        self.turn = nn.Parameter(torch.tensor(turn))

    def encode(self, x):
        return x @ self.turn.T

    def finished(self, z):
        return 2 * z


def guide(visual=((X,), (Y,)), text=(X, Y), **settings):
    """Anchors along x and y; the client's model gives x as it is, the student turns it by a right angle."""
    tensors = {
        "visual": torch.tensor(visual),
        "text": torch.tensor(text),
        "student.turn": torch.tensor([[0.0, -1.0], [1.0, 0.0]]),
        "replay": torch.tensor([X, Y]).half(),
        "replay_labels": torch.tensor([1, 1]),
    }
    frozen = SimpleNamespace(tensors=tensors, at=lambda ids: ids, levels=lambda: torch.tensor([Y, X]))
    client = SimpleNamespace(device=torch.device("cpu"), width=2, classifier=Model([X, Y]), seed=lambda *names: 0)
    given = ANCHORS | {"temperature": 0.5} | settings
    return SemanticFLGuide(SemanticFLSettings(**given), client, frozen)


def batch(*labels):
    return Batch(torch.zeros(len(labels), 1), torch.tensor(labels), torch.arange(len(labels)))


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(*values):
    return [math.exp(v) / sum(math.exp(w) for w in values) for v in values]


def test_the_terms_by_hand():
    """z = (3, 0), class 1: V = (0, 1), unit vectors at temperature 1/2. Texts: cosines 1 with T_0, 0 with T_1."""
    terms = guide(consistency_temperature=0.5).terms(torch.tensor([[3.0, 0.0]]), batch(1), HEAD)
    assert terms["consistency"].item() == pytest.approx(kl(softmax(0, 2), softmax(2, 0)), rel=1e-5)
    assert terms["text_contrast"].item() == pytest.approx(0.01 * math.log(1 + math.exp(2)), rel=1e-5)
    right = guide(consistency_temperature=0.5).terms(torch.tensor([[0.0, 3.0]]), batch(1), HEAD)
    assert right["consistency"].item() == pytest.approx(0, abs=1e-6)


def test_the_literal_form_takes_raw_vectors_at_temperature_one():
    terms = guide(consistency_form="literal").terms(torch.tensor([[3.0, 0.0]]), batch(1), HEAD)
    assert terms["consistency"].item() == pytest.approx(kl(softmax(0, 1), softmax(3, 0)), rel=1e-5)


def test_the_scaled_form_multiplies_by_the_temperature_squared():
    z = torch.tensor([[3.0, 1.0]])
    plain, scaled = (
        guide(consistency_temperature=0.5, consistency_scaled=s).terms(z, batch(1), HEAD)["consistency"].item()
        for s in (False, True)
    )
    assert scaled == pytest.approx(plain / 4)


def test_weights_switch_terms_off():
    z = torch.tensor([[3.0, 0.0]])
    assert set(guide(contrast=0.0).terms(z, batch(0), HEAD)) == {"consistency"}
    assert set(guide(consistency=0.0).terms(z, batch(0), HEAD)) == {"text_contrast"}


def test_of_several_anchors_of_a_class_the_nearest_counts():
    both = ((X, Y), (X, Y))
    for z in (X, Y):
        terms = guide(both).terms(torch.tensor([z]), batch(0), HEAD)
        assert terms["consistency"].item() == pytest.approx(0, abs=1e-5)


def test_own_anchors_are_found_by_id():
    """private_local: row 0 has V = (0, 1), row 1 (1, 0), whatever their classes."""
    one = guide(source="private_local")
    assert one.terms(torch.tensor([Y, X]), batch(0, 0), HEAD)["consistency"].item() == pytest.approx(0, abs=1e-5)
    assert one.terms(torch.tensor([X, Y]), batch(0, 0), HEAD)["consistency"].item() > 1


STUDENT = {"form": "student", "consistency": 6.0, "consistency_form": "cosine"}


def test_the_student_gives_each_image_a_target_of_its_own():
    """The student turns x by a right angle. z = x: cosine 0, so 6 (1 - 0); z = the student's answer: 0; z = -: 12."""
    one = guide(**STUDENT, contrast=0.0)
    images = torch.tensor([X, Y])  # the student's answers: (0, 1) and (-1, 0)
    told = Batch(images, torch.tensor([0, 0]), torch.arange(2))  # one class, two targets
    z = torch.tensor([X, [-3.0, 0.0]], requires_grad=True)
    terms = one.terms(z, told, HEAD)
    assert set(terms) == {"consistency"} and terms["consistency"].item() == pytest.approx(6 * (1 + 0) / 2)
    assert one.terms(torch.tensor([[0.0, -1.0], X]), told, HEAD)["consistency"].item() == pytest.approx(12)
    terms["consistency"].backward()
    assert torch.allclose(z.grad[0], torch.tensor([0.0, -3.0]), atol=1e-6)  # half of 6, towards (0, 1)
    assert torch.equal(one.client.classifier.turn, torch.eye(2)) and not one.student.turn.requires_grad


def test_replay_teaches_the_head_alone():
    """Both features are of class 1. Logits (2, 0): -log of softmax 1 = log(1 + e^2); (0, 2): log(1 + e^-2)."""
    one = guide(consistency=0.0, contrast=0.0, replay=0.5)
    either = [0.5 * math.log(1 + math.exp(2)), 0.5 * math.log(1 + math.exp(-2))]
    drawn = [one.terms(torch.tensor([X]), batch(0), HEAD)["replay"].item() for _ in range(20)]
    assert all(min(abs(d - e) for e in either) < 1e-5 for d in drawn) and len({round(d, 3) for d in drawn}) == 2
    head, z = nn.Linear(2, 2), torch.tensor([X], requires_grad=True)
    term = one.terms(z, batch(0), head)["replay"]
    assert torch.autograd.grad(term, z, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(term, head.weight)[0].abs().sum() > 0


def test_replay_draws_the_same_for_the_same_seed():
    features, labels = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 2
    a, b, c = (HeadReplay(features, labels, 1.0, seed).term(HEAD, 8).item() for seed in (3, 3, 4))
    assert a == b != c


def test_a_start_from_the_student_needs_one():
    with pytest.raises(ValueError, match="start=student needs form=student, form is anchors"):
        SemanticFLSettings(form="anchors")
    with pytest.raises(ValueError, match="goes with form=anchors"):
        SemanticFLSettings(source="private_local")


def test_the_head_of_the_texts_is_learned_where_widths_differ():
    wide = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    assert guide().parameters == {}  # equal widths: none, and nothing more to upload
    learned, fixed = guide(text=wide), guide(text=wide, text_head="fixed")
    assert learned.parameters["text"].shape == (2, 3) and fixed.parameters == {}
    assert torch.equal(learned.parameters["text"], fixed.head_DW)
    gradient = torch.autograd.grad(
        learned.terms(torch.tensor([X]), batch(0), HEAD)["text_contrast"], learned.parameters["text"]
    )[0]
    assert gradient.abs().sum() > 0
    with pytest.raises(ClientError, match="texts are 3 wide and representations 2"):
        guide(text=wide, text_head="none")
