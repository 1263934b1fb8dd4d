"""FedCola, server side (Sun et al., ECCV 2024, arXiv 2404.12467; formulas from imguangyu/FedCola, fedavgserver.py).

Client side: client_app/methods/modules/fedcola.py. Down: the client's model, and attention of the other modality. Up:
the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation, Reply
from florilegium.learning.averaging import named, part
from florilegium.protocol.payloads import Adapters
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import figures, group_of, group_starts, trained

ATTENTION, AUXILIARY = "attention", "auxiliary"
OTHER = {"image": "text", "text": "image"}


@section
class FedColaSettings:
    """How the models are averaged."""

    compensation: bool = setting(
        True,
        "as in the released code: what only some of the clients that share an attention have in common moves by their "
        "part of the rows, so that it keeps step with the attention. There they are clients of other data sets; here, "
        "retrieval clients beside classifiers",
    )


class FedCola(Rounds):
    """Attention is averaged over all encoders of a modality with one body, all else over clients of one architecture.

    `weights` holds the model of each group, its modality and architecture, under the group's name.
    """

    Settings = FedColaSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        starts = group_starts(federation, Adapters)
        shared = {n: v for start in reversed(starts.values()) for n, v in start.items() if is_attention(n)}
        self.weights = {}
        for group, start in starts.items():
            self.weights |= named(group, start | {n: shared[n] for n in start if n in shared})
        return self.round(0, federation)  # the clients' first training

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        models = {group: part(self.weights, group) for group in dict.fromkeys(n.split(".")[0] for n in self.weights)}
        down = {group: model | self.auxiliary(group, models) for group, model in models.items()}
        replies = trained(
            federation,
            lambda client: down.get(group_of(client), {}),
            like=lambda client: models.get(group_of(client), {}),
            kind=Adapters,
            late=False,
        )
        for group, model in models.items():
            self.weights |= named(group, {n: self.averaged(group, n, value, replies) for n, value in model.items()})
        return figures(replies)

    def judged_model(self) -> None:
        """No global model for all: each client is judged with its own, as its last training left it."""
        return None

    def averaged(self, group: str, name: str, before: Tensor, replies: Sequence[Reply]) -> Tensor:
        """theta + sum_k c_k (theta_k - theta) over the clients that share this tensor; `before` without any."""
        mine = [x for x in replies if name in x.body.tensors and (is_attention(name) or group_of(x.client) == group)]
        if not mine:
            return before
        alike = self.sharing(group, replies) or mine if self.settings.compensation else mine
        total = sum(x.body.examples for x in (mine if is_attention(name) else alike))
        move = torch.stack([x.body.examples / total * (x.body.tensors[name].double() - before) for x in mine]).sum(0)
        after = before + move
        return (after if before.is_floating_point() else after.round()).to(before.dtype)

    def sharing(self, group: str, replies: Sequence[Reply]) -> list[Reply]:
        """The replies of all clients that have an attention of this group's models: the same body."""
        names = {name for name in part(self.weights, group) if is_attention(name)}
        return [x for x in replies if not names.isdisjoint(x.body.tensors)]

    @staticmethod
    def auxiliary(group: str, models: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """For clients of one modality, the weights of the other one's attention, where place and shape are the same.

        Of several bodies of the other modality it is the first by name.
        """
        modality = group.split(" ")[0]
        if modality not in OTHER:
            return {}
        there = {n: v for model in models.values() for n, v in part(model, f"{ATTENTION}.{OTHER[modality]}").items()}
        bodies = sorted({name.split(".")[0] for name in there})
        if not bodies:
            return {}
        theirs = part(there, bodies[0])
        own = {
            ".".join(name.split(".")[1:]): v.shape for name, v in part(models[group], f"{ATTENTION}.{modality}").items()
        }
        fits = {n: v for n, v in theirs.items() if n.endswith("weight") and own.get(n) == v.shape}
        return named(AUXILIARY, fits)


def is_attention(name: str) -> bool:
    """Whether a tensor belongs to the attention that encoders of a modality share."""
    return name.startswith(f"{ATTENTION}.")
