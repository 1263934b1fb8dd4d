"""The local training of all methods that average weights: it takes the server's weights and returns the trained ones.

A method adds terms to the objective, a head, a change of the gradients, or parameters that travel beside the model;
guidance (client_app/guidance/phases.py) adds its own terms to any of them. Axes: B batch, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
from florilegium.protocol.payloads import Weights

Terms = Callable[[Tensor, Batch], dict[str, Tensor]]  # (z [B, D], batch) -> named scalar terms of the objective


@section
class LocalSettings:
    """Client settings of all methods that average weights: the common protocol of their papers."""

    local_epochs: int = setting(2, "E: private epochs of a round; 10 in the papers", low=1, high=1_000_000)
    batch: int = setting(64, "B: rows in a batch", low=2, high=100_000)
    optimizer: str = setting("sgd", "sgd | adamw", choices=OPTIMIZERS)
    learning_rate: LearningRate = setting(help="eta: learning rate", factory=lambda: LearningRate(0.01, 0.01))
    momentum: float = setting(0.9, "momentum of SGD", low=0, high=0.999)
    weight_decay: float = setting(1e-5, "weight decay", low=0, high=10)
    clip: float | None = setting(10.0, "norm that gradients are clipped to; null: no clipping", low=1e-6, high=1e6)
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model (conf/guidance)", factory=GuidanceSettings
    )


def local(
    client: Client,
    settings: LocalSettings,
    down: Weights,
    extra_terms: Terms | None = None,
    *,
    head: Callable[[Tensor], Tensor] | None = None,
    beside: Mapping[str, nn.Parameter] | None = None,
    before_step: Callable[[nn.Module], None] | None = None,
) -> Weights:
    """Train some epochs from the server's weights; return the new weights with the metrics of the training.

    Empty weights mean that the server asks for fresh weights, which become the common start of all clients.
    `extra_terms` are added to the objective, `head` replaces the model's, `beside` are parameters that are trained,
    sent and averaged with the model's (under their names, which no model's parameter may have). ClientError when the
    weights are of another architecture.
    """
    if client.modality == "pair" and (extra_terms or head or settings.guidance.name != "none"):
        raise ClientError("only plain averaging has something for retrieval clients: no terms, head or guidance")
    if client.protection.settings.training and (
        extra_terms or head or beside or before_step or settings.guidance.name != "none"
    ):
        raise ClientError("privacy.training covers plain averaging: no terms, head, corrections or guidance")
    model, guide = client.model, guides.of(client, settings.guidance)
    beside = {**(beside or {}), **{f"guidance.{name}": p for name, p in guide.parameters.items()}}
    figures: dict[str, float] = {}
    if down.tensors:
        receive(client, down.tensors, beside)

        def objective(batch: Batch) -> dict[str, Tensor]:
            if client.modality == "pair":
                return task_terms(client, batch)
            z_BD, score = client.classifier.encode(batch.inputs), head or client.classifier.head
            seen = z_BD if guide.supervised else z_BD.detach()
            task = cross_entropy(score(seen), batch.labels)
            terms = {"task" if guide.supervised else "probe": task} | guide.terms(z_BD, batch)
            return terms | extra_terms(z_BD, batch) if extra_terms else terms

        figures = (
            private(client, settings)
            if client.protection.settings.training
            else fit(
                model,
                lambda epoch: client.private_batches(settings.batch, epoch, "private"),
                objective,
                lr=settings.learning_rate.of(client.modality),
                weight_decay=settings.weight_decay,
                epochs=settings.local_epochs,
                clip=settings.clip,
                optimizer=settings.optimizer,
                momentum=settings.momentum,
                beside=beside.values(),
                before_step=before_step,
            )
        )
    tensors = {name: value.detach().cpu().clone() for name, value in {**model.state_dict(), **beside}.items()}
    return Weights(tensors, client.examples, figures | guide.metrics())


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


def receive(client: Client, tensors: Mapping[str, Tensor], beside: Mapping[str, nn.Parameter]) -> None:
    """Put the server's weights into the client's model and the parameters beside it. ClientError when they differ."""
    for name, parameter in beside.items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            there = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise ClientError(f"the server's {name} is {there}, expected {tuple(parameter.shape)}")
        parameter.data.copy_(tensors[name])
    client.load({name: value for name, value in tensors.items() if name not in beside})
