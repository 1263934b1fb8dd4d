"""Checkpoints are written by a thread: whole, in order, from a copy; a fault is told before the next round counts."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from florilegium.runs import files
from florilegium.runs.checkpoints import Checkpoints


@pytest.fixture
def held(monkeypatch) -> threading.Event:
    """Writing waits until the event is set."""
    gate, plain = threading.Event(), files.write_bytes

    def slow(path: Path | str, data: bytes) -> None:
        assert gate.wait(30)
        plain(path, data)

    monkeypatch.setattr(files, "write_bytes", slow)
    return gate


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_round_goes_on_while_the_file_is_written_from_a_copy(tmp_path, held) -> None:
    value = torch.ones(3)
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(0, {"w": value}, {"round": 0})
        assert names(tmp_path) == []  # the next round runs, and changes the weights
        value += 1
        held.set()
        checkpoints.wait()
        assert names(tmp_path) == ["round-0000.safetensors"]
    tensors, meta = files.load(tmp_path / "round-0000.safetensors")
    assert tensors["w"].tolist() == [1, 1, 1] and meta == {"round": 0}


def test_the_next_save_waits_and_the_newest_two_stay(tmp_path) -> None:
    with Checkpoints(tmp_path, 2) as checkpoints:
        for r in range(4):
            checkpoints.save(r, {"w": torch.full((1,), float(r))}, {"round": r})
            if r:
                assert f"round-{r - 1:04d}.safetensors" in names(tmp_path)
    assert names(tmp_path) == ["round-0002.safetensors", "round-0003.safetensors"]
    assert [files.load(path)[0]["w"].item() for path in checkpoints.there()] == [2, 3]


def test_after_round_9999_the_newest_two_stay_as_well(tmp_path) -> None:
    with Checkpoints(tmp_path, 2) as checkpoints:
        for r in range(9998, 10_002):
            checkpoints.save(r, {"w": torch.full((1,), float(r))}, {"round": r})
    assert [files.load(path)[0]["w"].item() for path in checkpoints.there()] == [10_000, 10_001]


def test_the_end_waits_for_the_last_file(tmp_path, held) -> None:
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(0, {"w": torch.ones(1)}, {})
        threading.Timer(0.1, held.set).start()
    assert names(tmp_path) == ["round-0000.safetensors"]


def test_a_fault_is_raised_before_the_next_round_is_recorded(tmp_path) -> None:
    (tmp_path / "file").write_text("no folder")
    checkpoints = Checkpoints(tmp_path / "file", 2)
    checkpoints.save(0, {"w": torch.ones(1)}, {})
    with pytest.raises(files.WriteError, match="cannot write"):
        checkpoints.wait()
    checkpoints.wait()  # told once
    checkpoints.save(1, {"w": torch.ones(1)}, {})
    with pytest.raises(files.WriteError), checkpoints:
        pass


def test_the_error_of_a_round_is_not_hidden_by_that_of_its_file(tmp_path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path / "file", 2) as checkpoints:
        checkpoints.save(0, {"w": torch.ones(1)}, {})
        raise ZeroDivisionError
