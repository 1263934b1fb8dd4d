"""The one training loop, by hand: SGD, momentum, clipping, the hook, parameters beside the model, gradient shares."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from florilegium.learning.fit import fit, gradient_shares


class Point(nn.Module):
    """One number w."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))


def parabola(model):
    """(w^2) / 2, whose gradient is w."""
    return lambda batch: {"task": model.w**2 / 2}


def ran(model, steps, objective=None, **how):
    return fit(model, lambda epoch: range(steps), objective or parabola(model), optimizer="sgd", clip=None, **how)


def test_plain_sgd_by_hand():
    model = Point(4.0)
    figures = ran(model, 2, lr=0.1)  # 4 -> 3.6 -> 3.24
    assert model.w.item() == pytest.approx(3.24)
    assert figures["task"] == pytest.approx((8 + 3.6**2 / 2) / 2) and figures["gradient"] == pytest.approx(3.8)
    assert figures["steps"] == 2 and not any(name.startswith("share/") for name in figures)


def test_momentum_and_weight_decay_by_hand():
    model = Point(4.0)
    ran(model, 2, lr=0.1, momentum=0.5)  # v: 4, then 0.5 * 4 + 3.6 = 5.6
    assert model.w.item() == pytest.approx(4 - 0.4 - 0.56)
    model = Point(4.0)
    ran(model, 1, lr=0.1, weight_decay=0.5)  # gradient 4 + 0.5 * 4
    assert model.w.item() == pytest.approx(3.4)


def test_the_hook_sees_the_gradient_before_it_is_clipped():
    model = Point(4.0)

    def double(m):
        m.w.grad.mul_(2)

    figures = fit(model, lambda epoch: [0], parabola(model), lr=0.1, optimizer="sgd", clip=1.0, before_step=double)
    assert figures["gradient"] == pytest.approx(8) and model.w.item() == pytest.approx(3.9, abs=1e-5)


def test_parameters_beside_the_model_are_trained_with_it():
    model, other = Point(1.0), nn.Parameter(torch.tensor(2.0))
    ran(model, 1, lambda batch: {"task": model.w * other}, lr=0.1, beside=[other])
    assert model.w.item() == pytest.approx(0.8) and other.item() == pytest.approx(1.9)


def test_frozen_parameters_stay():
    model = Point(1.0)
    model.still = nn.Parameter(torch.tensor(5.0), requires_grad=False)
    ran(model, 1, lr=0.1, weight_decay=0.5)
    assert model.still.item() == 5.0


def test_the_share_of_each_term_is_that_of_the_last_epochs_first_step():
    model = Point(4.0)
    start = model.w.item()
    figures = fit(
        model,
        lambda epoch: range(2),
        lambda b: {"task": model.w, "proximal": (model.w - start) ** 2 / 2},
        lr=0.5,
        optimizer="sgd",
        clip=None,
        epochs=2,
    )
    w = 4 - 0.5  # gradient 1, then 1 + (w - 4) = 0.5
    w -= 0.5 * (1 + (w - 4))
    assert figures["share/proximal"] == pytest.approx((4 - w) / (1 + 4 - w)) and 4 - w == pytest.approx(0.75)


def test_shares_by_hand():
    model = Point(4.0)

    def objective(batch):  # gradients 4, 12 and none
        return {"task": model.w**2 / 2, "pull": 3 * model.w**2 / 2, "nothing": torch.tensor(7.0)}

    figures = ran(model, 3, objective, lr=0.1)
    assert {n: v for n, v in figures.items() if n.startswith("share/")} == pytest.approx(
        {"share/task": 0.25, "share/pull": 0.75, "share/nothing": 0.0}
    )


def test_shares_over_several_tensors_and_of_nothing():
    a, b = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([4.0]))
    terms = {"both": (a**2 + b**2).sum() / 2, "one": 5 * a.sum(), "zero": 0 * b.sum()}  # norms 5, 5, 0
    assert gradient_shares(terms, [a, b]) == pytest.approx({"share/both": 0.5, "share/one": 0.5, "share/zero": 0.0})
    assert gradient_shares({"x": torch.zeros(()), "y": 0 * a.sum()}, [a, b]) == {"share/x": 0.0, "share/y": 0.0}


def test_measuring_shares_changes_no_step():
    """Two terms that sum to one: the same weights, dropout and all."""

    def trained(split):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        x, y = torch.randn(16, 3), torch.arange(16) % 2

        def objective(batch):
            loss = cross_entropy(model(x), y)
            return {"task": loss / 2, "rest": loss / 2} if split else {"task": loss}

        fit(model, lambda epoch: range(4), objective, lr=0.1, optimizer="sgd", momentum=0.9)
        return model.state_dict()

    one, two = trained(False), trained(True)
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
