"""SemanticFL's client side: its two terms worked by hand, sub-anchors, own anchors, and the head of the texts."""

import math
from types import SimpleNamespace

import pytest
import torch

from client_app.batches import Batch, ClientError
from client_app.guidance.semanticfl import SemanticFLGuide
from florilegium.methods.guidance.settings import SemanticFLSettings

X, Y = [1.0, 0.0], [0.0, 1.0]


def guide(visual=((X,), (Y,)), text=(X, Y), **settings):
    tensors = {"visual": torch.tensor(visual), "text": torch.tensor(text)}
    frozen = SimpleNamespace(tensors=tensors, at=lambda ids: ids, levels=lambda: torch.tensor([Y, X]))
    client = SimpleNamespace(device=torch.device("cpu"), width=2)
    return SemanticFLGuide(SemanticFLSettings(temperature=0.5, **settings), client, frozen)


def batch(*labels):
    return Batch(torch.zeros(len(labels), 1), torch.tensor(labels), torch.arange(len(labels)))


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(*values):
    return [math.exp(v) / sum(math.exp(w) for w in values) for v in values]


def test_the_terms_by_hand():
    """z = (3, 0), class 1: V = (0, 1), unit vectors at temperature 1/2. Texts: cosines 1 with T_0, 0 with T_1."""
    terms = guide(consistency_temperature=0.5).terms(torch.tensor([[3.0, 0.0]]), batch(1))
    assert terms["consistency"].item() == pytest.approx(kl(softmax(0, 2), softmax(2, 0)), rel=1e-5)
    assert terms["text_contrast"].item() == pytest.approx(0.01 * math.log(1 + math.exp(2)), rel=1e-5)
    right = guide(consistency_temperature=0.5).terms(torch.tensor([[0.0, 3.0]]), batch(1))
    assert right["consistency"].item() == pytest.approx(0, abs=1e-6)


def test_the_literal_form_takes_raw_vectors_at_temperature_one():
    terms = guide(consistency_form="literal").terms(torch.tensor([[3.0, 0.0]]), batch(1))
    assert terms["consistency"].item() == pytest.approx(kl(softmax(0, 1), softmax(3, 0)), rel=1e-5)


def test_the_scaled_form_multiplies_by_the_temperature_squared():
    z = torch.tensor([[3.0, 1.0]])
    plain, scaled = (
        guide(consistency_temperature=0.5, consistency_scaled=s).terms(z, batch(1))["consistency"].item()
        for s in (False, True)
    )
    assert scaled == pytest.approx(plain / 4)


def test_weights_switch_terms_off():
    z = torch.tensor([[3.0, 0.0]])
    assert set(guide(contrast=0.0).terms(z, batch(0))) == {"consistency"}
    assert set(guide(consistency=0.0).terms(z, batch(0))) == {"text_contrast"}


def test_of_several_anchors_of_a_class_the_nearest_counts():
    both = ((X, Y), (X, Y))
    for z in (X, Y):
        terms = guide(both).terms(torch.tensor([z]), batch(0))
        assert terms["consistency"].item() == pytest.approx(0, abs=1e-5)


def test_own_anchors_are_found_by_id():
    """private_local: row 0 has V = (0, 1), row 1 (1, 0), whatever their classes."""
    one = guide(source="private_local")
    assert one.terms(torch.tensor([Y, X]), batch(0, 0))["consistency"].item() == pytest.approx(0, abs=1e-5)
    assert one.terms(torch.tensor([X, Y]), batch(0, 0))["consistency"].item() > 1


def test_the_head_of_the_texts_is_learned_where_widths_differ():
    wide = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    assert guide().parameters == {}  # equal widths: none, and nothing more to upload
    learned, fixed = guide(text=wide), guide(text=wide, text_head="fixed")
    assert learned.parameters["text"].shape == (2, 3) and fixed.parameters == {}
    assert torch.equal(learned.parameters["text"], fixed.head_DW)
    gradient = torch.autograd.grad(
        learned.terms(torch.tensor([X]), batch(0))["text_contrast"], learned.parameters["text"]
    )[0]
    assert gradient.abs().sum() > 0
    with pytest.raises(ClientError, match="texts are 3 wide and representations 2"):
        guide(text=wide, text_head="none")
