"""One message in the place of three: last round's targets, this round's private training, answers to its samples."""

from __future__ import annotations

from typing import Any

from client_app.batches import ClientError
from client_app.client import Client
from florilegium import seeds
from florilegium.protocol.payloads import Joined, Nothing


def in_one(method: Any, client: Client, down: Joined) -> Any:
    """The phases `distill`, `train` and `represent` of a client side in turn, with the randomness of three messages.

    Returns what `represent` answers. ClientError when the side lacks a phase.
    """
    if missing := [phase for phase in ("distill", "train", "represent") if not hasattr(method, phase)]:
        raise ClientError(f"{type(method).__name__} has no phase {missing[0]!r} to join")
    if down.taught:
        now, client.round = client.round, down.taught  # these targets are of that round, and so are their draws
        with seeds.scoped(client.seed("distill")):
            method.distill(client, down.targets)
        client.round = now
    with seeds.scoped(client.seed("train")):
        method.train(client, Nothing())
    with seeds.scoped(client.seed("represent")):
        return method.represent(client, down.samples)
