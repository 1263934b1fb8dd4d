"""The shared losses against numbers worked out by hand."""

import math

import pytest
import torch

from florilegium.objectives import feature_kl, normalised


def test_feature_kl_of_two_known_distributions():
    teacher = torch.tensor([[math.log(0.5), math.log(0.5)]])
    student = torch.tensor([[math.log(0.25), math.log(0.75)]])
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # 0.14384
    assert feature_kl(teacher, student).item() == pytest.approx(by_hand, abs=1e-6)
    assert feature_kl(student, teacher).item() != pytest.approx(by_hand, abs=1e-3)  # it has a direction


def test_feature_kl_is_zero_on_equals_and_averages_over_the_batch():
    z_BD = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert feature_kl(z_BD, z_BD).item() == pytest.approx(0, abs=1e-6)
    other = z_BD.clone()
    other[0, 0] += 1
    one = feature_kl(z_BD[:1], other[:1])
    assert feature_kl(z_BD, other).item() == pytest.approx(one.item() / 3, rel=1e-4)


def test_feature_kl_temperature():
    """At temperature 2 the logits are halved and the result is multiplied by four."""
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert feature_kl(teacher, student, 2.0).item() == pytest.approx(4 * feature_kl(teacher / 2, student / 2).item())


def test_gradient_reaches_the_student_alone():
    teacher, student = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 0.0]], requires_grad=True)
    feature_kl(teacher, student).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_normalised_has_mean_zero_and_variance_one():
    assert torch.allclose(normalised(torch.tensor([[1.0, 3.0]])), torch.tensor([[-1.0, 1.0]]), atol=1e-4)
