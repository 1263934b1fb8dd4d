"""The local training of all methods that average weights: it takes the server's weights and returns the trained ones.

A method adds terms to the objective, a head, a change of the gradients, or parameters that travel beside the model. It
may train the model in several turns, and it may keep a part of it (florilegium/protocol/personal.py). Guidance
(client_app/guidance/phases.py) adds its own terms to any of them. Axes: B batch, C classes, D width, S draws.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client_app.batches import Batch, ClientError
from client_app.blocks.training import task_terms
from client_app.client import Client
from client_app.guidance import guides
from client_app.privacy.dpsgd import fit_dpsgd
from florilegium.config.fields import section, setting
from florilegium.learning.fit import OPTIMIZERS, LearningRate, fit, optimizer_of
from florilegium.methods.guidance.settings import GuidanceSettings
from florilegium.protocol import personal
from florilegium.protocol.payloads import Weights

Terms = Callable[[Tensor, Batch], dict[str, Tensor]]  # (z [B, D], batch) -> named scalar terms of the objective
Draws = Callable[[Tensor], Tensor]  # z [B, D] -> several draws around it [S, B, D]
Objective = Callable[[Batch], dict[str, Tensor]]  # batch -> named scalar terms, whose sum is minimised
PRIVATE = "private"  # the turn of a method that has no other


@section
class LocalSettings:
    """Client settings of all methods that average weights: the common protocol of their papers."""

    local_epochs: int = setting(
        2,
        "E: private epochs of a round; 10 in the papers; 0: clients return the server's weights (the start alone, as a "
        "control)",
        low=0,
        high=1_000_000,
    )
    batch: int = setting(64, "B: rows in a batch", low=2, high=100_000)
    optimizer: str = setting("sgd", "sgd | adamw", choices=OPTIMIZERS)
    learning_rate: LearningRate = setting(help="eta: learning rate", factory=lambda: LearningRate(0.01, 0.01))
    momentum: float = setting(0.9, "momentum of SGD", low=0, high=0.999)
    weight_decay: float = setting(1e-5, "weight decay", low=0, high=10)
    clip: float | None = setting(10.0, "norm that gradients are clipped to; null: no clipping", low=1e-6, high=1e6)
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model (conf/guidance)", factory=GuidanceSettings
    )


@dataclass(frozen=True)
class Turn:
    """Epochs that train a part of the model: the parameters of these names, or all (None). `name` tells its order of
    rows and its figures from those of other turns."""

    epochs: int
    trained: Collection[str] | None = None
    name: str = PRIVATE


def local(  # noqa: PLR0913  (what a method may bring)
    client: Client,
    settings: LocalSettings,
    down: Weights,
    extra_terms: Terms | None = None,
    *,
    head: Callable[[Tensor], Tensor] | None = None,
    draws: Draws | None = None,
    beside: Mapping[str, nn.Parameter] | None = None,
    before_step: Callable[[nn.Module], None] | None = None,
    keeps: Collection[str] = (),
    turns: Sequence[Turn] = (),
) -> Weights:
    """Train some epochs from the server's weights; return the new weights with the metrics of the training.

    Empty weights mean that the server asks for fresh weights, which become the common start of all clients.
    `extra_terms` are added to the objective, `head` replaces the model's, `draws` make the task's cross-entropy the
    mean over several draws of z. `beside` are parameters that are trained, sent and averaged with the model's (under
    their names, which no model's parameter may have). `keeps` are tensors of the model that neither come nor go;
    `turns` replace the one of `local_epochs`. ClientError when the weights are of another architecture.
    """
    if client.modality == "pair" and (extra_terms or head or draws or settings.guidance.name != "none"):
        raise ClientError("only plain averaging has something for retrieval clients: no terms, head or guidance")
    if client.protection.settings.training and (
        extra_terms or head or draws or beside or before_step or turns or settings.guidance.name != "none"
    ):
        raise ClientError("privacy.training covers plain averaging: no terms, head, corrections or guidance")
    guide = guides.of(client, settings.guidance)
    beside = {**(beside or {}), **{f"guidance.{name}": p for name, p in guide.parameters.items()}}
    figures: dict[str, float] = {}
    if down.tensors:
        receive(client, down.tensors, beside, keeps)
        if client.protection.settings.training:
            figures = private(client, settings)
        else:
            objective = objective_of(client, guide, extra_terms, head, draws)
            figures = train(client, settings, objective, turns, beside, before_step)
    state = {**client.model.state_dict(), **beside}
    tensors = {name: value.detach().cpu().clone() for name, value in state.items() if name not in keeps}
    return Weights(tensors, client.examples, figures | guide.metrics())


def objective_of(
    client: Client,
    guide: Any,
    extra_terms: Terms | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
    draws: Draws | None = None,
) -> Objective:
    """batch -> named terms: the task, what the guide adds, and the method's own."""

    def objective(batch: Batch) -> dict[str, Tensor]:
        if client.modality == "pair":
            return task_terms(client, batch)
        z_BD, score = client.classifier.encode(batch.inputs), head or client.classifier.head
        seen = z_BD if guide.supervised else z_BD.detach()
        if draws is None:
            task = cross_entropy(score(seen), batch.targets)
        else:
            seen_SBD = draws(seen)
            task = cross_entropy(score(seen_SBD.flatten(0, 1)), batch.labels.repeat(len(seen_SBD)))
        terms = {"task" if guide.supervised else "probe": task} | guide.terms(z_BD, batch, score)
        return terms | extra_terms(z_BD, batch) if extra_terms else terms

    return objective


def train(
    client: Client,
    settings: Any,
    objective: Objective,
    turns: Sequence[Turn] = (),
    beside: Mapping[str, nn.Parameter] | None = None,
    before_step: Callable[[nn.Module], None] | None = None,
) -> dict[str, float]:
    """Train the client's model in turns; the figures of the training, those of a named turn under its name.

    `settings` has batch, optimizer, learning_rate, momentum, weight_decay, clip and, without turns, local_epochs.
    """
    figures: dict[str, float] = {}
    for turn in turns or (Turn(settings.local_epochs),):
        with only(client.model, turn.trained):
            told = fit(
                client.model,
                lambda epoch, turn=turn: client.private_batches(settings.batch, epoch, turn.name),  # type: ignore[misc]
                objective,
                lr=settings.learning_rate.of(client.modality),
                weight_decay=settings.weight_decay,
                epochs=turn.epochs,
                clip=settings.clip,
                optimizer=settings.optimizer,
                momentum=settings.momentum,
                beside=(beside or {}).values(),
                before_step=before_step,
            )
        figures |= told if turn.name == PRIVATE else {f"{turn.name}/{name}": value for name, value in told.items()}
    return figures


@contextmanager
def only(model: nn.Module, trained: Collection[str] | None) -> Iterator[None]:
    """Inside, the parameters of no other names are trained (None: all are). Outside all are as they were."""
    frozen = [p for name, p in model.named_parameters() if trained is not None and name not in trained]
    frozen = [p for p in frozen if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(True)


def private(client: Client, settings: LocalSettings) -> dict[str, float]:
    """Train the local epochs with DP-SGD."""
    stepper = optimizer_of(
        list(client.model.parameters()),
        settings.optimizer,
        settings.learning_rate.of(client.modality),
        settings.weight_decay,
        settings.momentum,
    )
    return fit_dpsgd(client, stepper, settings.batch, settings.local_epochs, "private")


def receive(
    client: Client, tensors: Mapping[str, Tensor], beside: Mapping[str, nn.Parameter], keeps: Collection[str] = ()
) -> None:
    """Put the server's weights into the client's model and the parameters beside it; the model keeps its own tensors
    of the names `keeps`. ClientError when they differ."""
    for name, parameter in beside.items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            there = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise ClientError(f"the server's {name} is {there}, expected {tuple(parameter.shape)}")
        parameter.data.copy_(tensors[name])
    shared = {name: value for name, value in tensors.items() if name not in beside}
    client.load(personal.completed(shared, client.model, keeps))
