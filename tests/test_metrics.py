"""Figures by hand: accuracy, confusion, cosines, diversity; judge and CLIP through their real loaders."""

import math

import pytest
import torch

from florilegium.contract.tiny_models import SIDE, tiny_models, write_judge
from florilegium.learning.metrics import (
    ClipScore,
    Judge,
    Preprocessing,
    accuracy,
    confusion,
    mean_cosine,
    pairwise_distance,
)


def images(n=6, side=SIDE):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_accuracy_and_confusion_by_hand():
    predicted, labels = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2])
    assert accuracy(predicted, labels, 3) == pytest.approx(0.75)
    assert confusion(predicted, labels, 3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert math.isnan(accuracy(predicted[:0], labels[:0], 3))


def test_cosines_by_hand():
    left = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    right = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert mean_cosine(left, right) == pytest.approx((1 + 0.8) / 2)


def test_diversity_by_hand():
    """Label 0 has the pair at a right angle (distance 1), label 1 an identical pair (0), label 2 nothing to compare."""
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert pairwise_distance(vectors, torch.tensor([0, 0, 1, 1, 2])) == pytest.approx(0.5)
    assert math.isnan(pairwise_distance(vectors, torch.arange(5)))


def test_preprocessing_maps_bytes_to_the_model_s_range():
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    out = Preprocessing((8, 8))(black_and_white)
    assert out.shape == (2, 3, 8, 8)
    torch.testing.assert_close(out[0], torch.full((3, 8, 8), -1.0))
    torch.testing.assert_close(out[1], torch.full((3, 8, 8), 1.0))


def test_judge_predicts_labels_and_its_own_labels_are_all_right():
    judge = Judge(str(tiny_models()["judge"]), batch=2)
    labels = judge.predict(images())
    assert labels.dtype == torch.int64 and labels.shape == (6,) and labels.max() < 3
    assert judge.accuracy(images(), labels) == 1.0
    assert judge.accuracy(images(), (labels + 1) % 3) == 0.0
    assert judge.predict(images()[:0]).shape == (0,)
    assert judge.names == ["class 0", "class 1", "class 2"]


def test_judge_reads_its_preprocessing(tmp_path):
    from transformers import ViTImageProcessor

    folder = write_judge(tmp_path / "judge")
    plain = Judge(str(folder))
    assert plain.preprocess == Preprocessing()
    told = ViTImageProcessor(size={"height": 24, "width": 24}, image_mean=[0.1] * 3, image_std=[0.2] * 3, resample=2)
    told.save_pretrained(folder)
    assert Judge(str(folder)).preprocess == Preprocessing((24, 24), (0.1,) * 3, (0.2,) * 3, "bilinear")


def test_judge_s_preprocessing_is_its_processor_s(tmp_path):
    from transformers import ViTImageProcessor

    told = ViTImageProcessor(size={"height": 24, "width": 24}, image_mean=[0.5] * 3, image_std=[0.25] * 3, resample=2)
    told.save_pretrained(write_judge(tmp_path / "judge"))
    expected = told(images=list(images()), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(Judge(str(tmp_path / "judge")).preprocess(images()), expected, atol=0.03, rtol=0)


def test_clip_vectors_are_units_and_scores_are_raw_cosines():
    clip = ClipScore(str(tiny_models()["clip"]), batch=4)
    prompts = ["a cat.", "a dog.", "a cat.", "a house.", "a tree.", "a cat."]
    seen, said = clip.encode_images(images()), clip.encode_texts(prompts)
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(6))
    torch.testing.assert_close(said[0], said[2])
    assert not torch.allclose(said[0], said[1])
    assert clip.score(images(), prompts) == pytest.approx((seen * said).sum(-1).mean().item())
    assert -1 <= clip.score(images(), prompts) <= 1
    assert mean_cosine(seen, seen) == pytest.approx(1.0)
    assert mean_cosine(said, said) == pytest.approx(1.0)


def test_clip_is_in_evaluation_mode_and_batches_do_not_matter():
    one, two = (ClipScore(str(tiny_models()["clip"]), batch=b) for b in (1, 6))
    assert not one.model.training
    torch.testing.assert_close(one.encode_images(images()), two.encode_images(images()), atol=1e-5, rtol=1e-4)


def test_images_of_another_size_are_resized():
    clip = ClipScore(str(tiny_models()["clip"]))
    assert clip.encode_images(images(2, side=24)).shape == clip.encode_images(images(2)).shape


def test_identical_images_have_no_diversity():
    clip = ClipScore(str(tiny_models()["clip"]))
    same = images(1).expand(4, -1, -1, -1)
    assert clip.diversity(same, torch.zeros(4)) == pytest.approx(0, abs=1e-5)
    assert clip.diversity(images(4), torch.zeros(4)) > 0
