"""tools/traces.py: what counts as a difference between two traces, by hand."""

import importlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def traces(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "tools"))
    return importlib.import_module("traces")


def found(loss=0.5, up=10, tensor="abc", arm="arm"):
    return {
        "rounds": [{arm: "method", "round": 1, "metrics": {"loss": loss, "t2i/loss": 1.0}}],
        "ledger": [{arm: "method", "round": 1, "phase": "train", "client": 0, "up": up, "fault": None}],
        "tensors": {"method server/round w": tensor},
    }


def test_the_last_bit_of_a_float_is_a_difference(traces):
    (line,) = traces.differences(found(), found(loss=math.nextafter(0.5, 1)), [])
    assert line == "method round 1 metrics loss: expected 0.5, got 0.5000000000000001"


def test_differences_come_in_the_order_of_a_run(traces):
    lines = traces.differences(found(), found(loss=1.0, up=11, tensor="abd"), [])
    assert [line.split(":")[0] for line in lines] == [
        "method round 1 metrics loss",
        "ledger entry 1 up",
        "tensors method server/round w",
    ]
    assert traces.differences(found(), found(loss=1.0, up=11, tensor="abd"), ["metrics loss", "tensors *"]) == [
        "ledger entry 1 up: expected 10, got 11"
    ]


def test_a_missing_round_and_an_integer_for_a_float_are_differences(traces):
    assert traces.differences(found(), found() | {"rounds": []}, [])[0].startswith(
        "method round 1: expected 'recorded'"
    )
    assert len(traces.differences(found(loss=1.0), found(loss=1), [])) == 1


def test_the_old_name_of_a_key_and_times_are_no_difference(traces):
    old = found(arm="row")
    old["ledger"][0]["seconds"] = 0.1
    assert traces.differences(old, found(), []) == []


def test_nested_settings_are_compared_leaf_by_leaf(traces):
    old, new = ({"settings": {"method/a": {"server": {"rows": [1, n], "empty": {}}}}} for n in (2, 3))
    assert traces.differences(old, new, []) == ["settings method/a server.rows.1: expected 2, got 3"]


def test_the_newest_file_of_each_part_is_read(traces, tmp_path):
    for name, value in (("round-0001", 1.0), ("round-0002", 2.0)):
        folder = tmp_path / "checkpoints" / "method"
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.tensor([value])}, folder / f"{name}.safetensors")
    client = tmp_path / "state" / "1" / "method" / "client-3"
    client.mkdir(parents=True)
    save_file({"w": torch.tensor([[2.0]])}, client / "model-000002-0003.safetensors")
    (tmp_path / "model").mkdir()
    save_file({"w": torch.tensor([3.0])}, tmp_path / "model" / "diffusion.safetensors")
    held = traces.tensors(tmp_path)
    assert held == {
        "method client-3/model w": traces.digest(torch.tensor([[2.0]])),  # another shape: another hash
        "method server/round w": traces.digest(torch.tensor([2.0])),
    }
    assert len(set(held.values())) == 2
