"""The local training of clients that exchange no weights: each trains a model of its own, whatever its architecture.

Axes: B batch, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from client_app.blocks.averaging import Objective, Terms, Turn, objective_of, train
from client_app.client import Client
from client_app.guidance import guides
from florilegium.config.fields import section, setting
from florilegium.learning.fit import OPTIMIZERS, LearningRate
from florilegium.methods.guidance.settings import GuidanceSettings


@section
class OwnModelSettings:
    """Client settings: as many private epochs as the reference arm of clients that learn alone."""

    pretrain_epochs: int = setting(12, "E0: private epochs at a client's first training", low=1, high=1_000_000)
    local_epochs: int = setting(5, "E: private epochs of a round", low=1, high=1_000_000)
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
    """Private epochs on an objective: `pretrain_epochs` at the client's first training, then `local_epochs`.

    The parameters `beside` are trained with the model's, of which only those named `trained` learn (None: all).
    """
    epochs = settings.local_epochs if client.trained else settings.pretrain_epochs
    return train(client, settings, objective, (Turn(epochs, trained),), beside)
