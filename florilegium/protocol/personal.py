"""The personal part of a model: tensors that never leave a client.

A client side declares them by a function `personal(model)`, which gives their names in the model's state dict. The
client's door (client_app/app.py) refuses an upload that has one of them, an evaluation of shared weights uses the
client's own, and `florilegium privacy` lists their size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn


def personal_names(side: Any, model: nn.Module) -> frozenset[str]:
    """The names that a client side declares of this model; none where it declares nothing. ValueError for a name that
    the model does not have. Frozen tensors (florilegium/models/frozen.py) are in no state dict, so they need no name.
    """
    declares = getattr(side, "personal", None)
    names = frozenset(declares(model)) if declares else frozenset()
    state = model.state_dict().keys()
    parts = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    if unknown := sorted(names - state - parts):
        raise ValueError(f"{type(side).__name__}.personal names {unknown[0]}, which the model does not have")
    return names & state


def completed(shared: Mapping[str, Tensor], model: nn.Module, keeps: Collection[str]) -> dict[str, Tensor]:
    """A state dict of the shared tensors and of the model's own, which win."""
    return {**shared, **{name: value for name, value in model.state_dict().items() if name in keeps}}


def check_stays(upload: Any, keeps: Collection[str]) -> None:
    """ValueError when an upload has a personal tensor."""
    if leaving := [name for name in getattr(upload, "tensors", {}) if name in keeps]:
        raise ValueError(f"{type(upload).__name__}.tensors has {leaving[0]}, which is personal and never leaves")
