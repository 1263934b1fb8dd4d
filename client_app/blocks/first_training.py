"""A client's first training, which is the same in all arms of a run that begin with it, and so is done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch

from florilegium.config.instances import to_plain
from florilegium.learning.averaging import named, part
from florilegium.protocol.deltas import version_of


def once(client: Any, asked: dict[str, Any], train: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The figures of `train()`, or those of an earlier arm's that began from the same weights, rows, settings (`asked`)
    and random numbers; the model, the random numbers and the budget are then as `train` would have left them.

    A client that trained before, one with data of its own and one on a GPU, whose random numbers are not kept, train.
    So do all clients of a run with one arm.
    """
    if client.trained or client.own_data or client.device.type != "cpu" or not client.conf.references:
        return train()
    memory, name = client.memory.of_all_arms, f"first-{_digest(client, asked)}"
    if (found := memory.kept(name)) is not None:
        tensors, told = found
        torch.set_rng_state(tensors["random"])
        client.load(part(tensors, "model")).train()
        client.budget.private += told["rows"]
        return dict(told["figures"])
    rows = client.budget.private
    figures = train()
    told = {"figures": figures, "rows": client.budget.private - rows}
    memory.keep(name, named("model", client.model.state_dict()) | {"random": torch.get_rng_state()}, told)
    return figures


def _digest(client: Any, asked: dict[str, Any]) -> str:
    """What decides a training: settings, seed and round, the rows' ids and labels (which an attack may have changed),
    the weights and the state of the random numbers."""
    conf, rows = client.conf, client.data.train
    tensors = {"ids": rows.ids, "labels": rows.labels, "random": torch.get_rng_state()}
    begun = version_of(named("model", client.model.state_dict()) | tensors)
    told = [asked, to_plain(conf.clients), to_plain(conf.data), client.id, client.seed(), begun]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]
