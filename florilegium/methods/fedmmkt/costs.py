"""Bytes per client and round by the formulas of FedMMKT's Appendix E (constants solved from its Table X)."""

from __future__ import annotations

from florilegium.protocol.forms import EXACT, Form

MB = 2**20  # the paper's megabyte


def modelled(
    samples: int,
    image_clients: int,
    text_clients: int,
    classes: int,
    width: int,
    image_bytes: float,
    text_bytes: float,
    *,
    pair_clients: int = 0,
    variant: str = "representation",
    label_bytes: int = 4,
    form: Form = EXACT,
) -> dict[str, float]:
    """Upload and download of one client in one round, the mean over all clients.

    Down: each client's samples in its own modality (both for a client of pairs) and a label a sample, plus (FedMMKT)
    the fused representation.
    Up: a representation and a label a sample (twice the representation for u-FedMMKT), or logits (l-FedMMKT).
    `form` says how many bytes a row of numbers has; the paper's is the exact one, 4 bytes a value.
    """
    row_bytes = form.row_bytes(width)
    clients = image_clients + text_clients + pair_clients
    read = (image_clients + pair_clients) * image_bytes + (text_clients + pair_clients) * text_bytes
    sent = samples * read / clients + samples * label_bytes
    if variant == "logit":
        return {"up": samples * form.row_bytes(classes, scores=True), "down": sent}
    views = 2 if variant == "unimodal" else 1
    return {"up": samples * (views * row_bytes + label_bytes), "down": sent + samples * row_bytes}
