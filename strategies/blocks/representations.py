"""What servers that gather representations share: the question, the checks, one stack a side.

Axes: K clients that have a side, N samples, D representation width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from florilegium.federation.federation import Client, Federation, Reply
from florilegium.federation.guard import Guard
from florilegium.protocol.payloads import Answers, Features, PublicSet, Samples
from florilegium.protocol.validation import WireError
from strategies.blocks.public_set import PublicRound
from strategies.blocks.public_set import PublicSet as Public

SIDES = ("image", "text")
UNIT = 1.001  # of a unit vector's length, for rounding


def sides_of(client: Client) -> tuple[str, ...]:
    """The sides of a pair that a client reads."""
    return SIDES if client.modality == "pair" else (client.modality,)


def question(public_set: Public, public: PublicRound) -> Callable[[Client], Samples | PublicSet]:
    """What a client is asked about: pairs of the public set that it has itself, or samples that go down to it."""
    if public_set.pairs is not None:
        pairs = PublicSet(public_set.pairs.order, public.ids)
        return lambda client: pairs
    both = Samples(public.ids, images=public.sent["image"].images, texts=public.texts)
    return lambda client: both if client.modality == "pair" else public.sent[client.modality]


def ask_representations(
    federation: Federation,
    public_set: Public,
    public: PublicRound,
    width: int,
    second: bool = False,
    clients: list[Client] | None = None,
) -> list[Reply]:
    """Unit representations of the public samples, of each side a client has; a reply that misses one is left out.

    `second` allows the output of a body as wide as the representation beside it.
    """

    def whole(client: Client, body: Answers | Features) -> None:
        allowed = (width, 2 * width) if second else (width,)
        for side, found in sides_in(body, client).items():
            expected = allowed if side in sides_of(client) else (0,)
            if found.shape[1] not in expected:
                raise WireError(
                    f"{type(body).__name__} has {found.shape[1]} values of the {side} side, expected "
                    f"{' or '.join(map(str, expected))}"
                )
            if found.shape[1] and max(p.norm(dim=1).amax().item() for p in found.split(width, 1) if len(p)) > UNIT:
                raise WireError(f"{type(body).__name__} has a representation of the {side} side longer than one")

    kinds = (Features,) if public_set.pairs is not None else (Answers, Features)
    return federation.ask(
        "represent",
        question(public_set, public),
        *kinds,
        ids=public.ids,
        check=whole,
        clients=clients,
        bounds={"N": len(public), "C": len(public_set.classes), "A": 0},
    )


def handshake(federation: Federation, public_set: Public) -> list[Client]:
    """The clients of the cohort that have the server's public set; others say so in the ledger."""
    none = public_set.pairs.ids[:0]
    asked = PublicSet(public_set.pairs.order, none)
    return [x.client for x in federation.ask("represent", asked, Features, ids=none)]


def sides_in(body: Answers | Features, client: Client) -> dict[str, Tensor]:
    """What a reply says of each side, [N, W] (W = 0: nothing)."""
    if isinstance(body, Features):
        return {"image": body.image, "text": body.text}
    return {client.modality: body.representations}


def stacked(replies: Sequence[Reply], width: int, layer: int = 0) -> dict[str, tuple[list[int], Tensor]]:
    """By side: the clients that have it and their representations [K, N, D]; `layer` 1: what stands beside them."""
    found: dict[str, tuple[list[int], Tensor]] = {}
    for side in SIDES:
        parts = [(x.client.id, sides_in(x.body, x.client).get(side)) for x in replies]
        mine = [
            (k, rep[:, layer * width : (layer + 1) * width])
            for k, rep in parts
            if rep is not None and rep.shape[1] >= (layer + 1) * width
        ]
        if mine:
            found[side] = [k for k, _ in mine], torch.stack([rep for _, rep in mine])
    return found


def majority(replies: Sequence[Reply], classes: int, drawn_N: Tensor, guard: Guard) -> tuple[Tensor, dict[str, float]]:
    """The label most classifiers gave, ties to the lowest class; without any, what the samples were drawn for. [N].

    With `privacy.votes` a label that Confident-GNMax does not answer is the class the sample was drawn for.
    """
    votes = {x.client.id: x.body.labels for x in replies if isinstance(x.body, Answers)}
    if not votes:
        return drawn_N, {}
    vote_KN = torch.stack(list(votes.values()))
    label_N = one_hot(vote_KN, classes).sum(0).argmax(-1)
    label_N, answered_N = guard.released(vote_KN, label_N, torch.ones_like(label_N, dtype=torch.bool))
    label_N = label_N.where(answered_N, drawn_N)
    return label_N, {f"labels/client_{k}_agrees": (v == label_N).float().mean().item() for k, v in votes.items()}


def joint(by_side: dict[str, Tensor]) -> Tensor:
    """One representation [N, D] of each sample: the mean over the sides there are (eq 11's input; adapted form)."""
    return torch.stack(list(by_side.values())).mean(0)


def text_groups(texts: Sequence[str]) -> Tensor:
    """[N] numbers that are equal where the texts are: such pairs may stand for each other in retrieval."""
    known: dict[str, int] = {}
    return torch.tensor([known.setdefault(text, len(known)) for text in texts])


def formula_bytes(replies: Sequence[Reply], count: int, down: Callable[[Client], int]) -> dict[str, float]:
    """The papers' byte formula, 4 bytes a value and no headers: N times a client's values up, N times `down(client)`
    values down; the mean over clients. Samples that travel are not in it."""
    mean = 4.0 * count / max(len(replies), 1)
    up = sum(found.shape[1] for x in replies for found in sides_in(x.body, x.client).values())
    return {"bytes/formula_up": mean * up, "bytes/formula_down": mean * sum(down(x.client) for x in replies)}
