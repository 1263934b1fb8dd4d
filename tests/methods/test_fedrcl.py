"""FedRCL: both losses by hand, the levels of a body, and where it is FedAvg."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from client_app.blocks.averaging import LocalSettings
from client_app.methods.averaging.fedrcl import FedRCLClient, FedRCLClientSettings, contrast, cosines, levels, penalty
from client_app.methods.fedavg import FedAvgClient
from florilegium.learning.fit import LearningRate
from strategies.fedavg import FedAvg, FedAvgSettings
from tests.toy_federation import ToyFederation, rounds, same

STEPS = {"batch": 8, "learning_rate": LearningRate(0.1)}
# cosines of three rows: two of class 0, one of class 1
COSINES, LABELS = torch.tensor([[1.0, 0.8, 0.5], [0.8, 1.0, 0.1], [0.5, 0.1, 1.0]]), torch.tensor([0, 0, 1])


def lost(near, *far):
    return -math.log(math.exp(near) / (math.exp(near) + sum(map(math.exp, far))))


def test_the_contrast_by_hand():
    """tau 1: rows 0 and 1 have each other (0.8) against 0.5 and 0.1. Row 2 has itself, against 0.5 and 0.1."""
    expected = (lost(0.8, 0.5) + lost(0.8, 0.1) + lost(1.0, 0.5, 0.1)) / 3
    assert contrast(COSINES, LABELS, 1.0, 2).item() == pytest.approx(expected, rel=1e-5)
    assert contrast(COSINES, torch.zeros(3, dtype=torch.int64), 1.0, 2).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("threshold, close", [(0.7, 0.8), (0.9, -1.0)])
def test_the_penalty_by_hand(threshold, close):
    """tau 1: rows 0 and 1 against each other where 0.8 is too close, else against -1; row 2 has no other: -1."""
    expected = (2 * lost(1.0, close) + lost(1.0, -1.0)) / 3
    assert penalty(COSINES, LABELS, 1.0, threshold).item() == pytest.approx(expected, rel=1e-5)


def test_cosines_of_pictures_and_of_first_tokens():
    pictures = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]], [[[2.0, 2.0]], [[2.0, 2.0]]]])  # means (2, 0) and (2, 2)
    assert cosines(pictures)[0, 1].item() == pytest.approx(math.sqrt(0.5))
    texts = torch.tensor([[[1.0, 0.0], [9.0, 9.0]], [[0.0, 1.0], [9.0, 9.0]]])
    assert cosines(texts)[0, 1].item() == pytest.approx(0, abs=1e-6)


def test_the_levels_of_a_body_are_its_outermost():
    body = nn.ModuleDict({"embedder": nn.Linear(2, 2), "stages": nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])})
    body["stages"][0].add_module("layers", nn.ModuleList([nn.Linear(2, 2)]))
    with levels(body) as seen:
        body["embedder"](torch.ones(1, 2))
        body["stages"][0][0](torch.ones(1, 2))
        assert list(seen) == ["embedder"]
    body["embedder"](torch.zeros(1, 2))
    assert seen["embedder"].shape == (1, 2) and not body["embedder"]._forward_hooks


def test_a_pass_that_does_not_learn_is_no_level():
    """A guide's student is a copy of the model, hooks and all."""
    body = nn.ModuleDict({"embedder": nn.Linear(1, 1, bias=False)})
    body["embedder"].weight.data.fill_(2.0)
    with levels(body) as seen:
        body["embedder"](torch.ones(1, 1))
        student = deepcopy(body)
        student["embedder"].weight.data.fill_(9.0)
        with torch.no_grad():
            student["embedder"](torch.ones(1, 1))
        assert seen["embedder"].item() == 2


def test_cosines_are_float32_whatever_the_body_computes_in():
    """(1, 0) and (1, 1/8): 1 / sqrt(1 + 1/64) = 0.99228, which bfloat16 rounds to 0.99219."""
    pictures = torch.tensor([[[[1.0]], [[0.0]]], [[[1.0]], [[0.125]]]])
    for h in (pictures, pictures[..., 0, 0], pictures[..., 0].transpose(1, 2)):
        found = cosines(h.bfloat16())
        assert found.dtype == torch.float32 and found[0, 1].item() == pytest.approx(1 / math.sqrt(1 + 1 / 64), rel=1e-6)


def test_rounds_and_where_it_is_fedavg(tmp_path):
    half = FedRCLClient(FedRCLClientSettings(**STEPS))
    strategy, federation = FedAvg(FedAvgSettings()), ToyFederation(half, tmp_path / "a")
    metrics = rounds(strategy, federation, 1)
    assert metrics[1]["train/contrast"] > 0 and metrics[1]["train/penalty"] > 0 and not federation.faults
    ours, theirs = FedAvg(FedAvgSettings()), FedAvg(FedAvgSettings())
    off = FedRCLClient(FedRCLClientSettings(contrast=0.0, penalty=0.0, **STEPS))
    rounds(ours, ToyFederation(off, tmp_path / "b"), 2)
    rounds(theirs, ToyFederation(FedAvgClient(LocalSettings(**STEPS)), tmp_path / "c"), 2)
    assert same(ours.weights, theirs.weights, atol=0)  # and so are the bytes
