"""DP-SGD on a client's own rows (Abadi et al. 2016), through opacus: Poisson batches, clipped rows, Gaussian noise.

Unit: one row of one client. Gradients of single rows come from torch.func, which needs no hooks in a model's layers;
the clipping, the noise and the optimiser are opacus's DPOptimizer, the accountant its own. Axes: B batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from client_app.client import Client
from florilegium.models.text import TextBody
from florilegium.privacy.mechanisms import PrivacyError
from florilegium.protocol.deltas import version_of

GROUPS = 32  # rows whose gradients are held at once


def row_gradients(model: nn.Module, inputs: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
    """Gradient [B, ...] of each row's cross-entropy for each trained parameter. PrivacyError names what cannot."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    others = {name: p for name, p in model.named_parameters() if not p.requires_grad} | dict(model.named_buffers())
    body = getattr(model, "body", None)
    if isinstance(body, TextBody):
        body.whole_mask = True

    def loss(parameters: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, (parameters, others), (x[None],)), label[None])

    try:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule for vmap
            return vmap(grad(loss), in_dims=(None, 0, 0), randomness="different", chunk_size=GROUPS)(
                trained, inputs, labels_B
            )
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0][:160]
        architecture = getattr(getattr(model, "body", None), "architecture", type(model).__name__)
        raise PrivacyError(f"DP-SGD cannot take the gradients of single rows of {architecture}: {line}") from error


def fit_dpsgd(client: Client, optimizer: torch.optim.Optimizer, size: int, epochs: int, name: str) -> dict[str, float]:
    """`epochs` passes over the client's own rows by DP-SGD; each step takes every row with probability size / rows.

    The sampling and the noise come from the client's secret, the question, the rows and the weights at the start; what
    they cost is entered. Returns "steps" alone: losses and norms of private rows would say more than epsilon allows.
    PrivacyError for a retrieval client.
    """
    from opacus.optimizers import DPOptimizer
    from opacus.utils.uniform_sampler import UniformWithReplacementSampler

    s, rows, model = client.protection.settings.training, client.data.train, client.model
    if s is None:
        raise PrivacyError("privacy.training is not set")
    if client.modality == "pair":
        raise PrivacyError("a retrieval loss has no single rows: privacy.training does not cover pair clients")
    rate = min(1.0, size / len(rows))
    steps = epochs * max(1, round(1 / rate))
    start = version_of({**model.state_dict(), f"{name}: ids": rows.ids, f"{name}: labels": rows.labels})
    stepper = DPOptimizer(
        optimizer,
        noise_multiplier=s.noise,
        max_grad_norm=s.clip,
        loss_reduction="mean",
        expected_batch_size=rate * len(rows),
        generator=client.protection.noise(start, "dpsgd", "sum", name),
    )
    drawn = client.protection.noise(start, "dpsgd", "rows", name)
    sampler = UniformWithReplacementSampler(num_samples=len(rows), sample_rate=rate, steps=steps, generator=drawn)
    augmented = torch.Generator().manual_seed(client.seed("batches", name))
    client.protection.spend("dpsgd", start, s.noise, steps, rate)  # before: a step that fails has been taken
    model.train()
    for chosen in sampler:
        stepper.zero_grad(set_to_none=True)
        client.budget.private += len(chosen)
        summed(model, client, torch.tensor(chosen, dtype=torch.int64), augmented)
        stepper.step()
    for parameter in model.parameters():
        give(parameter, None)
    return {"steps": float(steps)}


def summed(model: nn.Module, client: Any, chosen: Tensor, augmented: torch.Generator) -> None:
    """Give every trained parameter the gradients of the chosen rows, [B, ...]; B may be 0."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not len(chosen):
        for p in trained.values():
            give(p, p.new_zeros(0, *p.shape))
        return
    rows = client.data.train
    inputs = client.rows_as_inputs(rows, chosen, augmented)
    for name, gradients in row_gradients(model, inputs, rows.labels[chosen].to(client.device)).items():
        give(trained[name], gradients)


def give(parameter: nn.Parameter, gradients: Tensor | None) -> None:
    """Set what opacus's optimizer reads: the gradients of single rows [B, ...]; torch's type lacks this attribute."""
    sampled: Any = parameter
    sampled.grad_sample = gradients
