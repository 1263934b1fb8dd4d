"""Named seeds, atomic files, pixels and averaging: the leaves everything stands on."""

import os

import numpy as np
import pytest
import torch

from florilegium import seeds
from florilegium.learning.averaging import weighted_mean
from florilegium.protocol import pixels
from florilegium.runs import files


def test_names_give_the_same_numbers_whatever_came_before():
    first = torch.rand(3, generator=seeds.generator(0, "noise", 7))
    torch.rand(100)
    assert torch.equal(first, torch.rand(3, generator=seeds.generator(0, "noise", 7)))
    assert not torch.equal(first, torch.rand(3, generator=seeds.generator(1, "noise", 7)))


def test_names_do_not_run_together():
    assert seeds.seed_of("a", "bc") != seeds.seed_of("ab", "c")


def test_scoped_seeds_library_code_and_leaves_no_trace():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with seeds.scoped("x"):
        inner = (torch.rand(1), np.random.rand())
    assert torch.equal(torch.rand(1), expected)
    with seeds.scoped("x"):
        assert torch.equal(torch.rand(1), inner[0]) and np.random.rand() == inner[1]


def test_a_failed_write_leaves_the_previous_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    files.save(path, {"w": torch.ones(2)}, {"round": 1})

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        files.save(path, {"w": torch.zeros(2)}, {"round": 2})
    tensors, meta = files.load(path)
    assert meta == {"round": 1} and torch.equal(tensors["w"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_png_is_lossless_and_bombs_are_not_opened():
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pixels.decode(pixels.encode(images)), images)
    with pytest.raises(ValueError, match="image 1: is 8x8, more than 4 on a side"):
        pixels.decode([pixels.encode(images[:1, :, :4, :4])[0], pixels.encode(images[:1])[0]], max_side=4)
    with pytest.raises(ValueError, match="image 0"):
        pixels.decode([pixels.encode(images[:1])[0][:40]])


def test_weighted_mean_by_hand():
    states = [
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(2)},
        {"w": torch.tensor([5.0, 2.0]), "n": torch.tensor(4)},
    ]
    mean = weighted_mean(states, [1, 3])
    assert mean["w"].tolist() == [4.0, 2.0] and mean["n"].item() == 4  # (1 + 15) / 4; (2 + 12) / 4 = 3.5 -> 4


def test_states_that_differ_are_named():
    with pytest.raises(ValueError, match="state 1 differs in w: \\(3,\\) instead of \\(2,\\)"):
        weighted_mean([{"w": torch.zeros(2)}, {"w": torch.zeros(3)}], [1, 1])
