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
from florilegium.config.composition import typed
from florilegium.config.run import Attack
from florilegium.protocol.payloads import Answers, Features, Logits, Modules, Weights
from florilegium.protocol.validation import LARGEST

SURE = {"exp_neg": 1.0, "inverse": 100.0, "normalized": 1.0}  # the highest confidence of each kind (eq 3)
VECTORS = ("representations", "augmented", "logits", "image", "text")
HIGHEST = 1e4  # of a class score on the wire


def attack_of(client: Client) -> Attack | None:
    """The attack this client plays, or None when it is honest."""
    attack = typed(Attack, client.conf.get("attack"), "attack")
    return attack if client.id in attack.attackers(len(client.conf.clients.mix), int(client.conf.seed)) else None


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
        return with_vectors(up, lambda x, name: -attack.strength * x)
    if attack.kind == "nan_representations":
        return with_vectors(up, lambda x, name: torch.full_like(x, torch.nan))
    return colluding(up, client, attack.strength) if attack.kind == "collude" else up


def with_vectors(up: Any, change: Callable[[Tensor, str], Tensor]) -> Any:
    """`up` with its representations, class scores or weights changed; all but NaN stays within the wire's range."""
    if isinstance(up, (Weights, Modules)):
        changed = {k: change(v, k).clamp(-LARGEST, LARGEST) for k, v in up.tensors.items() if v.is_floating_point()}
        return replace(up, tensors={**up.tensors, **changed})
    names = [name for name in VECTORS if hasattr(up, name)] if isinstance(up, (Answers, Logits, Features)) else []
    made = {name: change(getattr(up, name), name).clamp(-LARGEST, LARGEST) for name in names}
    if "logits" in made:
        made["logits"] = made["logits"].clamp(-HIGHEST, HIGHEST)
    if isinstance(up, Features):  # the wire knows unit vectors alone
        made = {name: x / x.norm(dim=-1, keepdim=True).clamp_min(1) for name, x in made.items()}
    return replace(up, **made)


def wrong_votes(up: Any, client: Client, strength: float) -> Any:
    """The class after the one the client sees, with the highest confidence; its score first by `strength` times the
    largest."""
    if isinstance(up, Answers):
        highest = SURE[str(client.conf.method.get("confidence", "exp_neg"))]
        return replace(up, labels=(up.labels + 1) % client.classes, confidence=torch.full_like(up.confidence, highest))
    if isinstance(up, Logits):
        return replace(up, logits=(strength * up.logits.roll(1, dims=-1)).clamp(-HIGHEST, HIGHEST))
    return up


def colluding(up: Any, client: Client, strength: float) -> Any:
    """One class and one direction for all attackers and samples, drawn by the seed; vectors `strength` times as long
    as honest ones."""
    random = seeds.generator(client.conf.seed, "attack", "plot")
    target = int(torch.randint(client.classes, (), generator=random))

    def plotted(x: Tensor, name: str) -> Tensor:
        if name == "logits":
            return strength * torch.eye(client.classes)[target].expand_as(x) * x.abs().amax()
        length = x.float().norm(dim=-1, keepdim=True) if x.dim() > 1 else x.float().norm()
        direction = torch.randn(x.shape[-1:], generator=seeds.generator(client.conf.seed, "attack", name))
        return (strength * length * direction / direction.norm()).to(x.dtype).expand_as(x).contiguous()

    up = with_vectors(up, plotted) if not isinstance(up, (Weights, Modules)) else up
    if isinstance(up, Answers):
        highest = SURE[str(client.conf.method.get("confidence", "exp_neg"))]
        up = replace(up, labels=torch.full_like(up.labels, target), confidence=torch.full_like(up.confidence, highest))
    return up
