"""SemanticFL's anchors: levels and their weights, PCA, centres, texts. Worked by hand, and on tiny models."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from florilegium.contract.tiny_models import WIDTH
from florilegium.methods.guidance.anchors import (
    Anchors,
    AnchorSettings,
    aggregated,
    build_anchors,
    centres,
    level_weights,
    representations,
    separation,
)
from tests.test_features import extractor, pictures

PROMPTS = ("a photo of a cat", "a photo of a dog", "a photo of a bird")
LABELS = torch.arange(30) % 3


def built(seed: int = 0, **settings: object) -> Anchors:
    given = {"width": 8, **settings}
    return build_anchors(extractor(), pictures(30), LABELS, PROMPTS, AnchorSettings(**given), seed)


def test_levels_are_joined_as_unit_vectors_under_their_weights() -> None:
    levels = {"up1": torch.tensor([[3.0, 4.0]]), "vae": torch.tensor([[0.0, 2.0, 0.0]])}
    joined = aggregated(levels, {"up1": 0.75, "vae": 0.25})
    assert torch.allclose(joined, torch.tensor([[0.45, 0.6, 0.0, 0.25, 0.0]]))


def test_separation_by_hand() -> None:
    """Means 0 and 4 around 2: between (4 + 4) / 2 = 4; each point lies 1 off its mean: within 1."""
    x, labels = torch.tensor([[-1.0], [1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1, 1])
    assert separation(x, labels) == pytest.approx(4.0)
    assert separation(x, torch.tensor([0, 1, 0, 1])) == pytest.approx((1 + 1) / 2 / 4)  # means 1 and 3 around 2


@pytest.mark.parametrize("kind", ["fixed", "entropy", "learned"])
def test_weights_sum_to_one_and_prefer_the_level_that_tells_classes_apart(kind: str) -> None:
    random = torch.Generator().manual_seed(0)
    told = normalize(torch.eye(3)[LABELS] + 0.1 * torch.randn(30, 3, generator=random), dim=-1)
    levels = {"up1": torch.randn(30, 3, generator=random), "up2": told}
    weights = level_weights(levels, LABELS, AnchorSettings(weights=kind, width=8), seed=0)
    assert sum(weights.values()) == pytest.approx(1) and list(weights) == ["up1", "up2"]
    assert weights["up2"] == pytest.approx(0.5) if kind == "fixed" else weights["up2"] > 0.6
    assert weights == level_weights(levels, LABELS, AnchorSettings(weights=kind, width=8), seed=0)


def test_centres_by_hand() -> None:
    x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0], [10.0, 4.0]])
    assert torch.allclose(centres(x, 1, 0), torch.tensor([[6.0, 1.6]]))
    two = centres(x, 2, 0)
    assert torch.allclose(two[two[:, 0].argsort()], torch.tensor([[0.0, 1.0], [10.0, 2.0]]))
    assert tuple(centres(x[:1], 3, 0).shape) == (3, 2)
    assert torch.equal(centres(x[:1], 3, 0), x[:1].repeat(3, 1))


@pytest.mark.parametrize("per_class", [1, 3])
def test_anchors_of_a_tiny_model(per_class: int) -> None:
    anchors = built(per_class=per_class)
    assert tuple(anchors.visual.shape) == (3, per_class, 8) and tuple(anchors.text.shape) == (3, WIDTH)
    assert set(anchors.weights) == {"up1", "up2", "vae"} and 0 < anchors.explained <= 1
    assert not anchors.visual.requires_grad and anchors.visual.isfinite().all()
    assert (anchors.visual.norm(dim=-1) <= 1 + 1e-5).all()  # means of unit vectors
    assert anchors.version == built(per_class=per_class).version != built(seed=1, per_class=per_class).version


def test_a_class_anchor_is_the_mean_of_its_images() -> None:
    x, s = extractor(), AnchorSettings(width=8)
    levels = x.levels(pictures(30), torch.arange(30), s.timestep, seed=0)
    joined = aggregated(levels, {name: 1 / 3 for name in levels})
    mean = joined.mean(0)
    _, _, axes = torch.linalg.svd((joined - mean).double(), full_matrices=False)
    z = normalize((joined - mean) @ axes[:8].T.float(), dim=-1)
    expected = torch.stack([z[LABELS == c].mean(0) for c in range(3)])
    got = built().visual[:, 0]
    assert torch.allclose(got.abs(), expected.abs(), atol=1e-3)  # an axis may point either way


def test_more_width_than_images_falls_back_to_a_random_projection() -> None:
    wide = built(width=64)
    assert tuple(wide.visual.shape) == (3, 1, 64) and wide.explained == 0.0
    assert wide.version == built(width=64).version


def test_text_anchors_are_the_prompts_own() -> None:
    assert torch.allclose(built().text, extractor().text(PROMPTS))


def test_single_images_are_seen_with_the_anchors_weights_and_axes() -> None:
    x, anchors = extractor(), built(weights="entropy")
    v = representations(x, pictures(30), torch.arange(30), 150, 0, anchors.weights, anchors.projection)
    assert torch.allclose(torch.stack([v[LABELS == c].mean(0) for c in range(3)]), anchors.visual[:, 0], atol=1e-5)
    assert torch.allclose(v.norm(dim=-1), torch.ones(30), atol=1e-5)


def test_bad_input_is_refused_by_name() -> None:
    x, s = extractor(), AnchorSettings(width=8)
    with pytest.raises(ValueError, match="no image shows class 2, 'a photo of a bird'"):
        build_anchors(x, pictures(30), LABELS.clamp(max=1), PROMPTS, s, 0)
    with pytest.raises(ValueError, match="class 1 has no prompt"):
        build_anchors(x, pictures(30), LABELS, ("cat", " ", "bird"), s, 0)
    with pytest.raises(ValueError, match="30 images, but 29 labels"):
        build_anchors(x, pictures(30), LABELS[:29], PROMPTS, s, 0)
    with pytest.raises(ValueError, match="label 2, but there are 2 prompts"):
        build_anchors(x, pictures(30), LABELS, PROMPTS[:2], s, 0)
    for bad, said in (
        ({"weights": "best"}, "weights must be one of"),
        ({"probe_lr": 0}, "probe_lr must lie"),
        ({"per_class": 0}, "per_class must lie"),
        ({"timestep": -1}, "timestep must lie"),
    ):
        with pytest.raises(ValueError, match=said):
            AnchorSettings(**bad)
