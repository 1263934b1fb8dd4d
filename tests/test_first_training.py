"""The first training that arms of a run have in common is done once, and nothing else than the time tells it."""

import json
from pathlib import Path

import pytest
import torch

from client_app.blocks import training
from florilegium.runs import files

EPOCHS = "pretrain_epochs=2"


@pytest.fixture
def ran(toy_conf, federated, monkeypatch):
    """`ran(*overrides)`: (figures of each arm and round, models of each client, epochs of each call of `fit`)."""
    fitted, fit = [], training.fit

    def counted(*given, **how):
        fitted.append(how["epochs"])
        return fit(*given, **how)

    monkeypatch.setattr(training, "fit", counted)

    def run(*overrides):
        fitted.clear()
        out = federated(
            toy_conf(
                "references=standalone",
                "references.standalone.client.extra_epochs=1",
                "references.standalone.client.extra_batches=1",
                "method.server.samples=16",
                f"method.client.{EPOCHS}",
                *overrides,
            )
        )
        lines = map(json.loads, (out / "rounds.jsonl").read_text().splitlines())
        figures = {(row["arm"], row["round"]): row["metrics"] for row in lines}
        models = {str(path.relative_to(out / "state")).split("/", 1)[1]: files.load(path)[0] for path in saved(out)}
        return figures, models, list(fitted)

    return run


def saved(out: Path) -> list[Path]:
    return sorted((out / "state").rglob("model-*.safetensors"))


def alike(one, other) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[path][name]) for path, tensors in one.items() for name, value in tensors.items()
    )


def test_the_second_arm_takes_what_the_first_arm_learned(ran, tmp_path, monkeypatch):
    """Four clients have one first training each, of two epochs, and the models of two arms."""
    figures, models, fitted = ran(f"references.standalone.client.{EPOCHS}", "out=" + str(tmp_path / "once"))
    assert fitted.count(2) == 4 and len(list((tmp_path / "once").rglob("all-arms/*/first-*.safetensors"))) == 4
    monkeypatch.setattr(training.first_training, "once", lambda client, asked, train: train())
    plain, plain_models, all_fitted = ran(f"references.standalone.client.{EPOCHS}", "out=" + str(tmp_path / "each"))
    assert len(all_fitted) == len(fitted) + 4
    assert alike(models, plain_models) and len(models) > 8
    told = ("client/accuracy", "budget/private", "t2i/loss")
    for place, row in plain.items():
        assert {k: v for k, v in figures[place].items() if k.startswith(told)} == {
            k: v for k, v in row.items() if k.startswith(told)
        }


def test_an_arm_that_begins_in_another_way_trains_itself(ran):
    """Standalone's three epochs are not FedMMKT's two."""
    _, _, fitted = ran("references.standalone.client.pretrain_epochs=3")
    assert fitted.count(3) == 4


@pytest.mark.parametrize("changed", ["labels", "weights", "random numbers"])
def test_what_decides_a_training_is_in_its_name(changed, client_of):
    """Other labels, as an attack makes them, other weights or other random numbers: another training."""
    client = client_of()
    torch.manual_seed(1)
    before = training.first_training._digest(client, {"epochs": 2})
    assert training.first_training._digest(client, {"epochs": 2}) == before
    if changed == "labels":
        client.data.train.labels[0] += 1
    elif changed == "weights":
        with torch.no_grad():
            next(client.model.parameters()).view(-1)[0] += 1
    else:
        torch.rand(1)
    assert training.first_training._digest(client, {"epochs": 2}) != before
    assert training.first_training._digest(client, {"epochs": 3}) != before


@pytest.fixture
def client_of(toy_conf):
    from client_app.opening import open_client
    from florilegium.protocol.codec import Header

    return lambda: open_client(toy_conf("references=standalone"), {"partition-id": 0}, Header("method", 0, 1))
