"""SemanticFL's student: whitened targets by hand, what it learns, and its settings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from florilegium import seeds
from florilegium.config.clients import Augment
from florilegium.learning.losses import cosine_distance
from florilegium.methods.guidance.student import Lesson, StudentSettings, encoded, train_student, whitened

STILL = Augment(crop=0, flip=False, tags=False)


class Model(nn.Module):
    """Mean colour [B, 3] -> z [B, 2] -> logits [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        with seeds.scoped(0, "student of a test"):
            self.project, self.classifier = nn.Linear(3, 2), nn.Linear(2, 2)

    def encode(self, x: Tensor) -> Tensor:
        return self.project(x.mean((2, 3)))

    def head(self, z: Tensor) -> Tensor:
        return self.classifier(z)


def lesson() -> Lesson:
    """Dark and light grey images: classes 0 and 1, features along x and along y."""
    images = torch.full((16, 3, 4, 4), 200, dtype=torch.uint8)
    images[::2] = 20
    labels = torch.tensor([0, 1] * 8)
    return Lesson(images, labels, torch.eye(2)[labels], torch.eye(2))


def test_whitened_features_by_hand() -> None:
    """Along (1, 1) the points lie at -3, -1, 1, 3 (times root 2), along (1, -1) at 1, -1, -1, 1 (times root 2): both
    axes end with mean 0 and sample deviation 1."""
    far, near = torch.tensor([-3.0, -1.0, 1.0, 3.0]), torch.tensor([1.0, -1.0, -1.0, 1.0])
    x = torch.stack([far + near, far - near], 1) + 5
    v = whitened(x, 2, 0)
    assert torch.allclose(v[:, 0].abs(), torch.tensor([3.0, 1.0, 1.0, 3.0]) / (20 / 3) ** 0.5, atol=1e-5)
    assert torch.allclose(v[:, 1].abs(), torch.ones(4) / (4 / 3) ** 0.5, atol=1e-5)
    assert torch.allclose(v.mean(0), torch.zeros(2), atol=1e-6) and torch.allclose(v.std(0), torch.ones(2), atol=1e-5)


def test_whitened_features_of_too_few_images_are_a_random_projection() -> None:
    v = whitened(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), 8, 0)
    assert v.shape == (5, 8) and torch.allclose(v.std(0), torch.ones(8), atol=1e-4)


def test_cosine_distance_by_hand() -> None:
    z = torch.tensor([[2.0, 0.0], [0.0, -3.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = cosine_distance(teacher, z)
    assert loss.item() == pytest.approx((0 + 2) / 2)
    loss.backward()
    assert teacher.grad is None and z.grad is not None


def test_the_student_learns_features_and_labels_and_is_the_same_for_the_same_seed() -> None:
    told = []
    for _ in range(2):
        model = Model()
        s = StudentSettings(epochs=60, batch=8, learning_rate=0.05)
        told.append(train_student(model, lesson(), s, STILL, 0.5, 0))
    assert told[0] == told[1] and told[0]["cosine"] > 0.95 and told[0]["accuracy"] == 1
    assert set(told[0]) == {"features", "labels", "cosine", "accuracy"} and not model.training
    assert encoded(model, lesson().images).shape == (16, 2)


def test_the_contrast_with_texts_is_one_of_its_terms() -> None:
    s = StudentSettings(epochs=60, batch=8, learning_rate=0.05, features=0.0, labels=0.0, texts=1.0)
    told = train_student(Model(), lesson(), s, STILL, 0.5, 0)
    assert set(told) == {"texts", "cosine", "accuracy"}
    # the difference of the cosines to texts along x and y is largest along (1, -1), at 45 degrees to the features
    assert told["cosine"] == pytest.approx(0.5**0.5, abs=0.02)


def test_bad_settings_are_one_line() -> None:
    with pytest.raises(ValueError, match="all 0, so it would learn nothing"):
        StudentSettings(features=0, labels=0)
    wide = Lesson(*(getattr(lesson(), n) for n in ("images", "labels", "features")), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="texts that are as wide as the representations"):
        train_student(Model(), wide, StudentSettings(texts=1.0), STILL, 0.5, 0)
