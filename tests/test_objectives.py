"""The shared losses against numbers worked out by hand."""

import math

import pytest
import torch

from florilegium.learning.losses import feature_kl, info_nce, ndcr, nearest, normalised, tdcl, unit_kl


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


# -- FedDifRC and SemanticFL -------------------------------------------------------------------------------------------

# two samples in the plane: z0 points along x, z1 along y
Z = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
PLUS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # cosine 1 with their own sample
MINUS = torch.tensor([[[0.0, 1.0], [0.0, 5.0]], [[1.0, 0.0], [0.0, -1.0]]])  # cosines 0, 0 and 0, -1


def test_tdcl_by_hand():
    """tau = 1/2: s+ = 2; sample 0 has s- = 0, 0 and sample 1 has 0, -2."""
    first = math.log(1 + 2 * math.exp(0 - 2))
    second = math.log(1 + math.exp(0 - 2) + math.exp(-2 - 2))
    assert tdcl(Z, PLUS, MINUS, 0.5).item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_tdcl_is_the_negative_log_softmax_and_ignores_lengths():
    random = torch.Generator().manual_seed(1)
    z, plus, minus = (torch.randn(*s, generator=random) for s in ((5, 8), (5, 8), (5, 3, 8)))
    s_plus = torch.cosine_similarity(z, plus) / 0.04
    s_minus = torch.cosine_similarity(z[:, None], minus, dim=-1) / 0.04
    expected = -(s_plus.exp() / (s_plus.exp() + s_minus.exp().sum(1))).log().mean()
    assert tdcl(z, plus, minus, 0.04).item() == pytest.approx(expected.item(), rel=1e-4)
    assert tdcl(7 * z, 3 * plus, 2 * minus, 0.04).item() == pytest.approx(expected.item(), rel=1e-4)


def test_tdcl_compares_a_sample_with_its_own_negatives_alone():
    z = Z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(tdcl(z, PLUS, MINUS, 0.5), z)
    changed = MINUS.clone()
    changed[1] = torch.tensor([[3.0, 1.0], [-1.0, 1.0]])  # only the other sample's negatives
    other = Z.clone().requires_grad_()
    (again,) = torch.autograd.grad(tdcl(other, PLUS, changed, 0.5), other)
    assert torch.allclose(gradient[0], again[0]) and not torch.allclose(gradient[1], again[1])


def test_the_released_tdcl_is_one_scalar_and_pairs_wrongly():
    """Tiled z: 0, 1, 0, 1. Negatives: (0, 1), (0, 1) of sample 0, then (1, 0), (0, -1) of sample 1.

    Cosines 0 (z0 with its own), 1 (z1 with sample 0's), 1 (z0 with sample 1's), -1 (z1 with its own); tau = 1/2.
    """
    plus = 2 * math.exp(2)
    expected = -math.log(plus / (plus + math.exp(0) + 2 * math.exp(2) + math.exp(-2)))
    assert tdcl(Z, PLUS, MINUS, 0.5, form="released_tiled").item() == pytest.approx(expected, abs=1e-6)


def test_tdcl_with_the_mean_distance():
    """To (1, 0): z0 is at 0, z1 at sqrt 2, so U = sqrt(2) / 2, as to (0, 1); to (0, -1): sqrt 2 and 2, U = 1.7071."""
    half = math.sqrt(2) / 2
    s_plus = 1 / half
    first = math.log(1 + 2 * math.exp(-s_plus))
    second = math.log(1 + math.exp(-s_plus) + math.exp(-1 / ((math.sqrt(2) + 2) / 2) - s_plus))
    assert tdcl(Z, PLUS, MINUS, 1.0, u_norm="mean_dist").item() == pytest.approx((first + second) / 2, abs=1e-5)


def test_ndcr_forms_by_hand():
    """z (2, 0) and (0, 3), H (0, 4) and (0, 1): cosines 0 and 1."""
    teacher = torch.tensor([[0.0, 4.0], [0.0, 1.0]])
    assert ndcr(Z, teacher, "l2_raw").item() == pytest.approx((4 + 16 + 4) / 2)
    assert ndcr(Z, teacher, "l2_unit").item() == pytest.approx((2 + 0) / 2, abs=1e-6)
    assert ndcr(Z, teacher, "cos").item() == pytest.approx((1 + 0) / 2, abs=1e-6)
    p = math.e / (1 + math.e)  # softmax of a unit vector along an axis
    kl = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    assert ndcr(Z, teacher, "kl").item() == pytest.approx(kl / 2, abs=1e-6)
    q = math.exp(2) / (1 + math.exp(2))  # at temperature 1/2
    kl = q * math.log(q / (1 - q)) + (1 - q) * math.log((1 - q) / q)
    assert ndcr(Z, teacher, "kl_t", 0.5).item() == pytest.approx(kl / 2, abs=1e-5)


def test_the_released_ndcr_is_numerically_off_and_ours_is_not():
    """Random non-negative vectors of 512, as the method document measured: 5e-4 and 0.5."""
    random = torch.Generator().manual_seed(0)
    z, teacher = (torch.rand(64, 512, generator=random) for _ in range(2))
    assert ndcr(z, teacher, "kl").item() < 1e-3 < 0.3 < ndcr(z, teacher, "l2_unit").item()


def test_info_nce_by_hand():
    """Anchors along x and y, tau = 1/2: sample 0 (class 0) and sample 1 (class 1) both have cosines 1 and 0."""
    anchors = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    assert info_nce(Z, anchors, torch.tensor([0, 1]), 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert info_nce(Z, anchors, torch.tensor([1, 1]), 0.5).item() == pytest.approx(
        (math.log(1 + math.exp(2)) + math.log(1 + math.exp(-2))) / 2
    )


def test_nearest_anchor_and_scaled_kl():
    anchors = torch.tensor([[[0.0, 1.0], [3.0, 1.0]], [[0.0, 0.5], [3.0, 1.0]]])
    assert nearest(Z, anchors).tolist() == [[3.0, 1.0], [0.0, 0.5]]
    plain, scaled = (unit_kl(PLUS, Z.flip(0), 0.5, scaled=s).item() for s in (False, True))
    assert scaled == pytest.approx(plain / 4)
