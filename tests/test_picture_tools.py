"""The pictures of partitions and of client features are drawn."""

import importlib
from pathlib import Path

import pytest
import torch


@pytest.fixture
def tool(monkeypatch):
    """`tool(name)`: a script of tools/, which find each other as neighbours."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "tools"))
    return importlib.import_module


def test_the_features_of_a_run_are_drawn_by_class_and_by_client(toy_conf, federated, tmp_path, monkeypatch, tool):
    feature_picture, mix = tool("feature_picture"), "{modality:image,model:resnet}"
    run = federated(toy_conf("method=fedavg", f"clients.mix=[{mix},{mix}]", "evaluation.images_per_class=2"))
    z, label, client = feature_picture.features(feature_picture.settings_of(run), run, 3)
    assert z.shape == (24, 32) and label.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] * 2
    assert client.tolist() == [0] * 12 + [1] * 12 and not torch.equal(z[:12], z[12:])  # two local models
    first, _, _ = feature_picture.features(feature_picture.settings_of(run), None, 3)
    assert torch.equal(first[:12], first[12:])  # one common start
    monkeypatch.setattr("sys.argv", ["", str(tmp_path / "f.png"), str(run), "--start", "--pca", "--each", "3"])
    feature_picture.main()
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_the_partitions_are_drawn_and_what_cannot_be_dealt_is_said(tmp_path, monkeypatch, capsys, tool):
    target = tmp_path / "deep" / "p.svg"
    monkeypatch.setattr("sys.argv", ["", str(target), "nid2", "domain", "--", "data=fashion"])
    tool("partition_picture").main()
    assert "domain is left out: clients.partition.by: the data have no column 'style'" in capsys.readouterr().err
    assert target.read_text().count('id="axes_') == 1


def test_a_clients_mark_tells_its_domain(tool):
    mark = tool("partition_picture").mark
    assert [mark({"client": 7}), mark({"client": 7, "shift": 105.0}), mark({"client": 1, "domain": "twemoji"})] == [
        "7",
        "7\n105",
        "1\ntwemoji",
    ]
