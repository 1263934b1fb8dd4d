"""Clients that misbehave, simulated on the embedded data to measure defences (conf/attack, docs/robustness.md).

Nothing here runs unless `attack.kind` is set, and never on a node with data of its own.
Axes: N samples, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from client_app.batches import ClientError
from client_app.client import Client
from florilegium import seeds
from florilegium.config.run import Attack
from florilegium.protocol.fields import LABEL, MODEL, VECTOR, holding, names_classes, scores_classes
from florilegium.protocol.vectors import clamped, returned

SURE = {"exp_neg": 1.0, "inverse": 100.0, "normalized": 1.0}  # the highest confidence of each kind (eq 3)


def attack_of(client: Client) -> Attack | None:
    """The attack this client plays, or None when it is honest."""
    attack = client.conf.attack
    return attack if client.id in attack.attackers(len(client.conf.clients.mix), client.conf.seed) else None


def poisoned(client: Client, own_data: bool) -> Client:
    """The client, with wrong labels on its rows if it plays `label_flip`. ClientError for a site with its own data."""
    attack = attack_of(client)
    if attack is not None and own_data:
        raise ClientError("attacks are simulated on the embedded data alone; this node has data of its own")
    if attack is not None and attack.kind == "label_flip":
        rows = client.data.train
        client.data = replace(client.data, train=replace(rows, labels=client.classes - 1 - rows.labels))
    return client


def attacked(client: Client, up: Any) -> Any:
    """What this client uploads in the place of `up`; `up` itself when it is honest or the attack has none of it."""
    attack = attack_of(client)
    if attack is None:
        return up
    if attack.kind == "confident_votes":
        return wrong_votes(up, client, attack.strength)
    if attack.kind == "scaled_representations":
        return with_vectors(up, client, lambda x, name: -attack.strength * x)
    if attack.kind == "nan_representations":
        return with_vectors(up, client, lambda x, name: torch.full_like(x, torch.nan))
    return colluding(up, client, attack.strength) if attack.kind == "collude" else up


def with_vectors(up: Any, client: Client, change: Callable[[Tensor, str], Tensor]) -> Any:
    """`up` with its vectors and weights changed; all but NaN stays within the wire's range."""
    made: dict[str, Any] = {}
    for f in holding(up, VECTOR):
        made[f.name] = returned(change(getattr(up, f.name), f.name), f.metadata, client.width)
    for f in holding(up, MODEL):
        state = getattr(up, f.name)
        made[f.name] = state | {
            name: clamped(change(x, name), f.metadata) for name, x in state.items() if x.is_floating_point()
        }
    return replace(up, **made) if made else up


def wrong_votes(up: Any, client: Client, strength: float) -> Any:
    """The class after the one the client sees, with the highest confidence; its score first by `strength` times the
    largest."""
    made = {f.name: (getattr(up, f.name) + 1) % client.classes for f in holding(up, LABEL) if names_classes(f)}
    for f in holding(up, VECTOR):
        if scores_classes(f):
            made[f.name] = clamped(strength * getattr(up, f.name).roll(1, dims=-1), f.metadata)
    return replace(sure(up, client), **made)


def colluding(up: Any, client: Client, strength: float) -> Any:
    """One class and one direction for all attackers and samples, drawn by the seed; vectors `strength` times as long
    as honest ones. Weights stay: attackers of these have no direction in common."""
    random = seeds.generator(client.conf.seed, "attack", "plot")
    target = int(torch.randint(client.classes, (), generator=random))
    those = {f.name for f in holding(up, VECTOR) if scores_classes(f)}

    def plotted(x: Tensor, name: str) -> Tensor:
        if name in those:
            return strength * torch.eye(client.classes)[target].expand_as(x) * x.abs().amax()
        length = x.float().norm(dim=-1, keepdim=True)
        direction = torch.randn(x.shape[-1:], generator=seeds.generator(client.conf.seed, "attack", name))
        return (strength * length * direction / direction.norm()).to(x.dtype).expand_as(x).contiguous()

    if not holding(up, MODEL):
        up = with_vectors(up, client, plotted)
    classes = {f.name: torch.full_like(getattr(up, f.name), target) for f in holding(up, LABEL) if names_classes(f)}
    return replace(sure(up, client), **classes)


def sure(up: Any, client: Client) -> Any:
    """`up` with the highest confidence in each of its labels."""
    highest = SURE[getattr(client.conf.method.client, "confidence", "exp_neg")]
    how = [f.name for f in holding(up, LABEL) if not names_classes(f)]
    return replace(up, **{name: torch.full_like(getattr(up, name), highest) for name in how})
