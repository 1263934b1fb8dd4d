"""The local training of clients that exchange no weights: each trains a model of its own, whatever its architecture.

Axes: B batch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import nn

from client_app.blocks.averaging import Objective, Terms, Turn, objective_of, train
from client_app.client import Client
from client_app.guidance import guides
from florilegium.config.fields import section, setting
from florilegium.learning.fit import OPTIMIZERS, LearningRate
from florilegium.methods.guidance.settings import GuidanceSettings

BEGUN = "begun"  # the part of the memory that says that the client trained before


@section
class OwnModelSettings:
    """Client settings: as many private epochs as the reference arm of clients that learn alone."""

    pretrain_epochs: int = setting(12, "E0: private epochs at a client's first training", low=1, high=1_000_000)
    local_epochs: int = setting(5, "E: private epochs of a round", low=1, high=1_000_000)
    extra_batches: int = setting(
        0,
        "the smallest number of private batches in further whole epochs of a round, where other methods pass over "
        "shared samples",
        low=0,
        high=1_000_000,
    )
    batch: int = setting(32, "B: rows in a batch", low=2, high=100_000)
    optimizer: str = setting("adamw", "adamw | sgd", choices=OPTIMIZERS)
    learning_rate: LearningRate = setting(help="eta: learning rate", factory=LearningRate)
    momentum: float = setting(0.9, "momentum of SGD", low=0, high=0.999)
    weight_decay: float = setting(0.01, "weight decay", low=0, high=10)
    clip: float | None = setting(5.0, "norm that gradients are clipped to; null: no clipping", low=1e-6, high=1e6)


def train_own(
    client: Client, settings: OwnModelSettings, terms: Terms | None = None, trained: Collection[str] | None = None
) -> dict[str, float]:
    """Private epochs on cross-entropy and the method's own terms; the figures of the training. `trained` are the names
    of the parameters that learn (None: all)."""
    objective = objective_of(client, guides.of(client, GuidanceSettings()), terms)
    return train_objective(client, settings, objective, trained=trained)


def train_objective(
    client: Client,
    settings: OwnModelSettings,
    objective: Objective,
    beside: Mapping[str, nn.Parameter] | None = None,
    trained: Collection[str] | None = None,
) -> dict[str, float]:
    """Private epochs on an objective, as many as `epochs_of` says.

    The parameters `beside` are trained with the model's, of which only those named `trained` learn (None: all).
    """
    return train(client, settings, objective, (Turn(epochs_of(client, settings), trained),), beside)


def epochs_of(client: Client, settings: OwnModelSettings) -> int:
    """E0 at the client's first training, then E and those of `extra_batches`.

    A message that only asks for a fresh start is no training.
    """
    first = client.memory.read(BEGUN) is None
    if first:
        client.memory.write(BEGUN, {"round": torch.tensor([client.round])})
    later = settings.local_epochs + math.ceil(settings.extra_batches / math.ceil(client.examples / settings.batch))
    return settings.pretrain_epochs if first else later
