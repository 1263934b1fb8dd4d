"""The personalised figure: by hand, at a client, for a global model, at a site, and under DP-SGD."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot

from client_app import evaluation
from florilegium.learning.own_distribution import own_accuracy, recalls, shares

NAN = float("nan")


def test_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 0, 1, 1, 0, 0])
    recall = recalls(predicted, labels, 4)
    assert recall[:3].tolist() == [0.75, 0.5, 0.0] and recall[3].isnan()
    share = shares(torch.tensor([1, 1, 1, 0]), 4)
    assert share.tolist() == [0.25, 0.75, 0, 0]
    assert own_accuracy(recall, share) == pytest.approx(0.25 * 0.75 + 0.75 * 0.5)
    # a class without a test row counts nothing: half of what is left is class 2, half is class 0
    assert own_accuracy(recall, torch.tensor([0.25, 0, 0.25, 0.5]).double()) == pytest.approx((0.75 + 0.0) / 2)
    assert math.isnan(own_accuracy(recall, torch.tensor([0, 0, 0, 1.0]).double()))
    with pytest.raises(ValueError, match="no rows"):
        shares(torch.zeros(0, dtype=torch.int64), 2)


def test_with_the_shares_of_the_test_rows_it_is_the_accuracy():
    labels, predicted = torch.randint(0, 5, (2, 200), generator=torch.Generator().manual_seed(0))
    accuracy = (labels == predicted).float().mean().item()
    assert own_accuracy(recalls(predicted, labels, 5), shares(labels, 5)) == pytest.approx(accuracy)


def client(train: list[int], own: tuple[str, ...] = (), training: object = None) -> SimpleNamespace:
    """Two classes; three of four test rows and one of two validation rows are class 0."""

    class Rows(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.labels)

    held = {name: Rows(labels=torch.tensor(x)) for name, x in (("test", [0, 0, 0, 1]), ("validation", [0, 1]))}
    data = SimpleNamespace(train=Rows(labels=torch.tensor(train)), own=own, **held)
    private = SimpleNamespace(settings=SimpleNamespace(training=training))
    return SimpleNamespace(data=data, classes=2, protection=private)


def zeros(rows) -> torch.Tensor:
    """A classifier that always says class 0."""
    return one_hot(torch.zeros(len(rows), dtype=torch.int64), 2).float()


def test_a_client_weights_the_global_test_rows_by_its_own_classes():
    report = evaluation.classified(client([0, 1, 1, 1]), zeros)
    assert report.metrics["accuracy"] == 0.75 and report.metrics["accuracy_own"] == 0.25
    assert report.metrics["validation"] == 0.5 and report.metrics["validation_own"] == 0.25
    assert evaluation.classified(client([0, 0]), zeros).metrics["accuracy_own"] == 1.0
    assert set(report.metrics) == {"accuracy", "validation", "loss", "accuracy_own", "validation_own"}


def test_rows_of_a_site_s_own_count_as_they_are():
    report = evaluation.classified(client([1, 1], own=("test",)), zeros)
    assert report.metrics["accuracy_own"] == 0.75 and report.metrics["validation_own"] == 0.0


def test_shares_of_classes_tell_nothing_under_dp_sgd():
    report = evaluation.classified(client([0, 1], training=object()), zeros, by_class=True)
    assert not [name for name in report.metrics if name.endswith("_own")]
    assert (report.metrics["accuracy_of/0"], report.metrics["accuracy_of/1"]) == (1.0, 0.0)


def test_held_out_rows_of_a_site_s_own_stay_under_dp_sgd():
    both = evaluation.classified(client([0, 1], own=("test", "validation"), training=object()), zeros, by_class=True)
    assert both.metrics == {} and both.examples == 4
    one = evaluation.classified(client([0, 1], own=("test",), training=object()), zeros, by_class=True)
    assert one.metrics == {"validation": 0.5, "validation_of/0": 1.0, "validation_of/1": 0.0}  # of global rows


TWO = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"


def last(run) -> dict[str, float]:
    return json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])["metrics"]


def test_a_global_model_that_one_client_judges_has_the_own_figures_of_all(toy_conf, federated, tmp_path):
    """The server weights the recalls of the one judge; with all judging, the clients do it: the same numbers."""
    given = ["method=fedavg", TWO, "rounds=1", "clients.partition.alpha=0.1", "clients.partition.min_samples=2"]
    once = last(federated(toy_conf(*given)))
    everywhere = last(federated(toy_conf(*given, "evaluation.global_model=everywhere", f"out={tmp_path / 'all'}")))
    names = {f"client/{name}_own{end}" for name in ("accuracy", "validation") for end in ("", "/0", "/1", "/image")}
    assert names <= once.keys() and names <= everywhere.keys()
    assert {name: once[name] for name in names} == pytest.approx({name: everywhere[name] for name in names})
    assert "client/accuracy/1" not in once
