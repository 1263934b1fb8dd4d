"""How a representation joins the text in the decoder: the operator of FedMMKT's eq 11, and its omission (eq 12).

Axes: B batch, T tokens, W token width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def predict(
    decoder: nn.Module,
    noisy_B: Tensor,
    time_B: Tensor,
    text_BTW: Tensor,
    extra_BW: Tensor | None,
    omit_B: Tensor,
    merge: str,
) -> Tensor:
    """Dec(x_t, t, h) of eqs 11-12. A row with b = 1 gives the text-only decoder's output, bit for bit.

    `token`: a row without representation must not meet the extra key at all. Rows are split into two calls, because a
    masked key, though its weight is exactly zero, changes the shape of the products and so their last bits.
    `add` and `time`: what is added to such a row is exactly zero.
    """
    if extra_BW is None or bool(omit_B.all()):
        return decoder(noisy_B, time_B, text_BTW).sample
    if merge == "token":
        with_B, without_B = (~omit_B).nonzero().flatten(), omit_B.nonzero().flatten()
        longer_BTW = torch.cat([text_BTW[with_B], extra_BW[with_B, None]], 1)
        parts = [decoder(noisy_B[with_B], time_B[with_B], longer_BTW).sample]
        if len(without_B):
            parts.append(decoder(noisy_B[without_B], time_B[without_B], text_BTW[without_B]).sample)
        return torch.cat(parts)[torch.argsort(torch.cat([with_B, without_B]))]
    shown_BW = extra_BW.masked_fill(omit_B[:, None], 0)
    if merge == "add":
        return decoder(noisy_B, time_B, text_BTW + shown_BW[:, None]).sample
    embedding = decoder.get_submodule("time_embedding")
    hook = embedding.register_forward_hook(lambda module, inputs, output: output + shown_BW)
    try:
        return decoder(noisy_B, time_B, text_BTW).sample
    finally:
        hook.remove()
