"""`florilegium judge train`: from a data set's real images to a directory that `data.judge` names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from florilegium.cli import main as command
from florilegium.contract.tiny_models import write_judge
from florilegium.learning import judge_training
from florilegium.learning.judge_training import JudgeTraining, Labelled, train_judge
from florilegium.learning.metrics import Judge
from tests.full.tiny_inputs import NAMES, write_labelled, write_pictures


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A classifier of 16 x 16 pictures of five other classes."""
    torch.manual_seed(0)
    return str(write_judge(tmp_path_factory.mktemp("start") / "net", 5))


def run(*arguments: str) -> None:
    options = command.parse(["judge", "train", *arguments])
    options.command(options)


def colours(counts: list[int], seed: int) -> Labelled:
    """So many pictures of each of three classes, one colour a class, with noise."""
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    noise = torch.randint(0, 60, (len(labels), 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    return Labelled((noise + 180 * torch.eye(3, dtype=torch.int64)[labels][..., None, None]).to(torch.uint8), labels)


def test_from_a_data_set_to_a_judge(tmp_path, start, capsys) -> None:
    write_labelled(tmp_path / "cifar10")
    data = ["data=cifar10", f"data.hub={tmp_path / 'cifar10'}", "data.image_size=16"]
    run(str(tmp_path / "judge"), "--start", start, "--epochs", "6", "--batch", "8", "--learning-rate", "0.01", *data)
    judge = Judge(str(tmp_path / "judge"))
    held = colours([4, 4, 4], 1)
    assert judge.names == NAMES and judge.accuracy(held.images, held.labels) == 1.0
    said, card = capsys.readouterr().out, (tmp_path / "judge" / "README.md").read_text()
    assert "test" in said and f"data.judge={tmp_path / 'judge'}" in said and "| test (seen once) | 100.0% |" in card
    assert not list((tmp_path / "judge").glob("*.bin")) + list((tmp_path / "judge").glob("*.pt*"))


def test_own_pictures_and_nothing_of_them_stays(tmp_path, start) -> None:
    for n, name in enumerate(NAMES):
        write_pictures(tmp_path / "own" / name, [f"{n}-{k}.png" for k in range(20)])
    run(str(tmp_path / "judge"), "--start", start, "--epochs", "1", "data=folder", f"data.path={tmp_path / 'own'}")
    config = json.loads((tmp_path / "judge" / "config.json").read_text())
    assert sorted(config["label2id"]) == sorted(NAMES) and not list((tmp_path / "judge").rglob("*.parquet"))


def test_the_mean_over_classes_by_hand() -> None:
    """Two of three of class 0, the only one of class 1, none of class 2: (2/3 + 1) / 2."""
    scores = np.eye(3)[[0, 0, 1, 1]]
    assert judge_training.mean_recall(scores, np.array([0, 0, 0, 1]), 3) == pytest.approx(5 / 6)


def test_validation_picks_the_epoch_and_test_comes_last(tmp_path, start, monkeypatch) -> None:
    reached, told, written, asked = [0.2, 0.7, 0.5], [], [], []

    def mean_recall(*given) -> float:
        told.append(reached[len(told)])
        return told[-1]

    found, processor = judge_training.opened(start, NAMES, 16)
    save = found.save_pretrained
    monkeypatch.setattr(judge_training, "mean_recall", mean_recall)
    monkeypatch.setattr(judge_training, "opened", lambda *given: (found, processor))
    monkeypatch.setattr(found, "save_pretrained", lambda place: (written.append(told[-1]), save(place)))

    def rows(split: str) -> Labelled:
        asked.append(split)
        assert (split == "test") == (tmp_path / "judge").exists()
        return colours([4, 6, 5], len(asked))

    figures = train_judge(tmp_path / "judge", NAMES, rows, JudgeTraining(start, epochs=3, batch=8))
    assert figures.best == 2 and figures.epochs == (0.2, 0.7, 0.5) and written == [0.2, 0.7]
    assert asked == ["train", "validation", "test"]


def test_what_cannot_be_used_is_one_line(tmp_path, start) -> None:
    with pytest.raises(ValueError, match="no training image of 'lily': a judge must have seen every class"):
        train_judge(tmp_path / "judge", NAMES, lambda split: colours([4, 0, 4], 0), JudgeTraining(start))
    with pytest.raises(ValueError, match="cannot be read as an image classifier .*; a directory, or an embedded"):
        judge_training.opened("backbones/bert", NAMES, 16)
    (tmp_path / "there").mkdir()
    for arguments, message in (
        ([str(tmp_path / "there")], "exists already; choose another directory"),
        ([str(tmp_path / "judge"), "--epochs", "0"], "--epochs and --batch must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*arguments, "--start", start)
    assert not (tmp_path / "judge").exists()
