"""Changed values of a payload, back in the range that the contract allows the field.

Noise, defences and attacks change the vectors that a payload declares; what they made must still pass the wire.
Axes: N samples, D representation width; a dot is any number of further axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from florilegium.protocol.validation import LARGEST


def clamped(x: Tensor, spec: Mapping[str, Any]) -> Tensor:
    """Values within the range that `spec` (a field's metadata) declares, or within the range of every tensor."""
    low, high = (spec.get(end) for end in ("low", "high"))
    return x.clamp(-LARGEST if low is None else low, LARGEST if high is None else high)


def returned(x_ND: Tensor, spec: Mapping[str, Any], width: int) -> Tensor:
    """Rows as the field that declares `spec` may carry them.

    Rows of a `unit` field become unit vectors again, each piece of `width` values for itself; then values are clamped.
    """
    if spec.get("unit") and x_ND.numel():
        x_ND = torch.cat([normalize(piece, dim=-1) for piece in x_ND.split(width, dim=-1)], dim=-1)
    return clamped(x_ND, spec)
