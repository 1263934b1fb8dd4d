"""Fed-DFA by hand: the steps of the attack, in pixels and in embeddings; which samples count fully; what is sent."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from client_app.methods.logits.feddfa import FedDFAClient, FedDFAClientSettings, boundary_steps, moved_embeddings
from florilegium.data.public import PublicPairs
from florilegium.federation.federation import Client, Reply
from florilegium.protocol.payloads import BoundaryLogits, Report
from strategies.blocks.public_set import PublicSetSettings
from strategies.logits.feddfa import FedDFA, FedDFASettings, near_boundary
from tests.fakes import FakeResources

#  two clients, four samples: the scores of two classes, then the steps
TOLD = torch.tensor(
    [
        [[2.0, 0.0, 1.0], [0.0, 4.0, 5.0], [1.0, 0.0, 3.0], [0.0, 1.0, 5.0]],
        [[4.0, 0.0, 2.0], [0.0, 2.0, 9e3], [0.0, 3.0, 4.0], [3.0, 0.0, -7.0]],
    ]
)


def scores(v_B):
    """Of the decision `v > 0.47`."""
    return lambda move: torch.stack([v_B + move, torch.full_like(move, 0.47)], 1)


def test_the_first_step_that_changes_the_decision():
    """0.475 changes at 0.465, one step of 0.01; 0.505 at 0.465, four; 0.9 never in five, and counts five. Below the
    boundary the way is up: 0.455 becomes 0.475 in two."""
    v = torch.tensor([0.475, 0.505, 0.9, 0.455])
    s = FedDFAClientSettings(steps=5, step_size=0.01, largest=0.1)
    assert boundary_steps(scores(v), torch.zeros(4), 1.0, s).tolist() == [1, 4, 5, 2]
    # a range of 2, as pixels have here: steps of 0.02
    assert boundary_steps(scores(v), torch.zeros(4), 2.0, s).tolist() == [1, 2, 5, 1]
    near = FedDFAClientSettings(steps=5, step_size=0.01, largest=0.02)  # no further than 0.02
    assert boundary_steps(scores(v), torch.zeros(4), 1.0, near).tolist() == [1, 5, 5, 2]


class Words(nn.Module):
    """A classifier whose score is the first number of a text's one token, against 0.47."""

    def __init__(self):
        super().__init__()
        self.body = nn.Embedding(3, 1)
        self.body.weight.data = torch.tensor([[0.475], [0.505], [0.9]])

    def forward(self, ids_BT):
        v_B = self.body(ids_BT)[:, 0, 0]
        return torch.stack([v_B, torch.full_like(v_B, 0.47)], 1)


def test_texts_are_moved_in_their_embeddings():
    """The embeddings 0.475, 0.505, 0.9 deviate by 0.2374: a step is 4 * 0.2374 * 0.01 = 0.0095, so 1, 4 and never."""
    model, ids = Words(), torch.arange(3)[:, None]
    half = FedDFAClient(FedDFAClientSettings(steps=5, step_size=0.01))
    assert half.steps_of(SimpleNamespace(modality="text"), model, ids).tolist() == [1, 4, 5]
    with moved_embeddings(model) as given:
        model(ids)
        given["move"] = torch.ones(3, 1, 1)
        assert model(ids)[:, 0].tolist() == pytest.approx([1.475, 1.505, 1.9])
    assert model(ids)[:, 0].tolist() == pytest.approx([0.475, 0.505, 0.9])  # nothing is left of it


def test_half_or_more_are_near():
    """Means 1.5, 5, 3.5, 3: the lower median is 3. Where all are equal, all are near."""
    assert near_boundary(torch.tensor([[1.0, 5, 3, 5], [2, 5, 4, 1]])).tolist() == [True, False, False, True]
    assert near_boundary(torch.full((2, 3), 5.0)).all()


class Federation:
    round, cohort = 1, [Client(11, 0, "image"), Client(12, 1, "text")]

    def __init__(self):
        self.sent = []

    def ask(self, phase, payload, *expect, clients=None, **how):
        if phase == "train":
            return []
        assert how["bounds"] == {"N": 4, "C": 2} and expect == (BoundaryLogits,)
        told = zip(clients, TOLD, strict=True)
        return [Reply(c, BoundaryLogits(how["ids"], x[:, :2], x[:, 2])) for c, x in told]

    def send(self, phase, payload, *expect, clients):
        self.sent.append(payload)
        return clients

    def collect(self, clients):
        return [Reply(c, Report({"logits": 0.5}, 4)) for c in clients]


def test_a_round(monkeypatch):
    """Mean scores go down; steps of 9000 and -7 count as 5 and 1, so the means are 1.5, 5, 3.5, 3."""
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    four = PublicPairs(torch.arange(4), images, tuple("abcd"), torch.tensor([0, 1, 1, 0]), torch.arange(4), "hash")
    monkeypatch.setattr("strategies.blocks.public_set.open_public", lambda conf: four)
    strategy, federation = (
        FedDFA(FedDFASettings(public=PublicSetSettings(samples=4)), FakeResources()),
        Federation(),
    )
    told = strategy.round(1, federation)
    (down,) = federation.sent
    assert down.logits.tolist() == [[3, 0], [0, 3], [0.5, 1.5], [1.5, 0.5]] and down.labels.tolist() == [0, 1, 1, 0]
    assert down.weight.tolist() == pytest.approx([1, 0.1, 0.1, 1])
    assert told["boundary/steps"] == (1.5 + 5 + 3.5 + 3) / 4 and told["boundary/near"] == 0.5
    assert told["bytes/formula_up"] == 4 * 4 * 3  # four samples, two scores and the steps
