"""FID, Inception Score and CLIP score on captions of other things, worked by hand."""

import sys
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchmetrics.image.fid as fid
from PIL import Image

from florilegium.data.datasets import DataError
from florilegium.data.decoding import decoded
from florilegium.data.generic import open_captioned
from florilegium.learning.frechet import Encoded, Quality, class_score, of_classifier, of_inception
from florilegium.report import published
from florilegium.report.comparison import COLUMNS
from florilegium.resources import Resources
from florilegium.runs.reader import read_lines
from server_app.evaluation import Evaluation
from tests.full.test_data_sets import write_coco

GENERIC = ["evaluation.generic.data=toy", "evaluation.generic.split=all", "evaluation.generic.images=6"]


def points(*pairs):
    """Images whose first two pixels are these numbers."""
    images = torch.zeros(len(pairs), 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0] = torch.tensor(pairs, dtype=torch.uint8)
    return images


def test_the_distance_of_two_gaussians_by_hand():
    """Means (1, 2) and (12, 2), variances (4/3, 16/3) and (16/3, 16/3), no covariance:
    11^2 + (4/3 + 16/3 - 2 * 8/3) + (16/3 + 16/3 - 2 * 16/3) = 121 + 4/3."""
    real, drawn = points((0, 0), (2, 0), (0, 4), (2, 4)), points((10, 0), (14, 0), (10, 4), (14, 4))
    features = Encoded(lambda images: images[:, 0, 0], 2)
    standard, other = Quality(features, None, True), Quality(features, None, False)
    assert standard(real, drawn, 0) == pytest.approx({"fid": 121 + 4 / 3}, rel=1e-5)
    assert other(real, real, 0) == pytest.approx({"frechet": 0}, abs=1e-4)


def test_the_score_of_classes_by_hand():
    """Two clear images of two classes: KL to (1/2, 1/2) is ln 2, so 2. Of one class, or unclear: 1."""
    scores = Encoded(lambda images: images[:, 0, 0])
    for pixels, score in ((((200, 0), (0, 200)), 2), (((200, 0), (200, 0)), 1), (((7, 7), (7, 7)), 1)):
        assert class_score(scores, points(*pixels), 0) == pytest.approx(score)
    state = torch.random.get_rng_state()
    class_score(scores, points((200, 0), (0, 200)), 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_classifiers_features_are_what_its_last_layer_gets(toy_conf):
    judge = Resources(toy_conf()).judge()
    quality = of_classifier(judge)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    heads = [m for m in judge.model.modules() if isinstance(m, torch.nn.Linear)]
    seen, scores = quality.features(images), quality.scores(images)
    assert seen.shape == (3, quality.features.num_features) and torch.allclose(
        heads[-1](seen.float()), scores.float(), atol=1e-5
    )


def test_missing_inception_weights_are_one_line_that_says_what_to_do(monkeypatch):
    def offline(*given, **how):
        raise URLError("no route\nto host")

    monkeypatch.setattr(fid, "NoTrainInceptionV3", offline)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)  # not installed
    with pytest.raises(ValueError, match=r"extractor=inception cannot be used \(URLError\): install torch-fid") as e:
        of_inception("cpu")
    assert "\n" not in str(e.value) and "florilegium[fid]" in str(e.value)
    package = SimpleNamespace(URL_INCEPTION_V3="https://there/weights.pth")
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, package)
    with pytest.raises(ValueError, match=r"fetch https://there/weights.pth elsewhere and put it into .*/checkpoints;"):
        of_inception("cpu")


def test_captions_are_one_for_each_picture_of_the_split(tmp_path):
    """COCO's two pictures of val with two captions each; the lexicon's public test rows; a wrong place."""
    (tmp_path / "coco").mkdir()
    write_coco(tmp_path / "coco")
    found = open_captioned(str(tmp_path / "coco"), "test", 5000, 8, 0)
    assert found.texts == ["a 0", "a 1"] and found.images[:, 0, 4, 4].tolist() == [0, 10]
    some = open_captioned(str(tmp_path / "coco"), "all", 4, 8, 0)
    assert len(some.texts) == len(some.images) == 4 and len(set(some.texts)) == 4
    assert len(open_captioned("lexicon", "test", 5000, 8, 0).texts) == 54
    with pytest.raises(DataError, match="evaluation.generic.data: there is no directory /nowhere"):
        open_captioned("/nowhere", "test", 10, 8, 0)


def test_a_wide_picture_is_cut_to_its_middle(tmp_path):
    """24 x 8: black, white, black thirds; the middle is white."""
    image = Image.new("RGB", (24, 8))
    image.paste((255, 255, 255), (8, 0, 16, 8))
    image.save(tmp_path / "x.png")
    cell = {"bytes": None, "path": str(tmp_path / "x.png")}
    assert decoded(cell, 8, crop=True).min() == 255 and decoded(cell, 8).min() == 0


def test_figures_are_of_the_first_and_the_last_round(toy_conf, federated):
    """Three rounds, the middle ones without; the extractor is not Inception, so nothing is called FID."""
    run = federated(toy_conf("method=fedmmkt", "rounds=2", *GENERIC, "evaluation.generic.extractor=clip"))
    told = [
        sorted(name for name in line["metrics"] if name.startswith("t2i/generic/"))
        for line in read_lines(run / "rounds.jsonl")
    ]
    assert told == [["t2i/generic/clip_score", "t2i/generic/frechet"], [], told[0]]


def test_pictures_are_compared_at_the_size_that_is_drawn(toy_conf):
    conf = toy_conf("diffusion.size=8", *GENERIC, "evaluation.generic.extractor=clip")
    resources = Resources(conf)
    evaluation, generator = Evaluation(conf, resources), resources.generator()
    assert set(evaluation.generic(generator)) == {"t2i/generic/clip_score", "t2i/generic/frechet"}
    assert evaluation.captioned.images.shape == (6, 3, generator.side, generator.side) and generator.side == 16
    assert evaluation.protocol()["generic"]["images"] == 6


def test_the_papers_table_stands_beside():
    rows = published.tables()["fedmmkt/table8_flowers102_glide"]
    assert ("Un-tuned T2I", "t2i/generic/fid", 16.77) in rows and ("FedMMKT", "t2i/generic/clip_score", 0.2687) in rows
    assert {key for _, key, _ in rows} <= {column.key for column in COLUMNS}
