"""FedCDA, server side (Wang et al., ICLR 2024), reconstructed from the paper's abstract: docs/methods/averaging.md.

Client side: FedAvg's. Down and up: weights. The server keeps each client's last models. Axes: K clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation
from florilegium.learning.averaging import learned, model_part, named, part, weighted_mean, without
from florilegium.methods.guidance.settings import GuidanceSettings
from florilegium.protocol.payloads import Weights
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import figures, shared_start, trained

CACHE = "cache"  # the first name of the kept models: cache.<client>.<round>.<tensor>
State = Mapping[str, Tensor]


@section
class FedCDASettings:
    """How many models are kept, and when they are chosen from."""

    history: int = setting(3, "models of each client that the server keeps", low=1, high=1000)
    warmup: float = setting(0.5, "share of the rounds that are FedAvg, before models are chosen", low=0, high=1)
    sweeps: int = setting(2, "passes over the clients in which each chooses anew", low=1, high=1000)
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model, the same as the clients have (conf/guidance)",
        factory=GuidanceSettings,
    )


class FedCDA(Rounds):
    """Averages, of all clients' last models, those that lie closest together.

    `weights` holds the global model, the kept models, and the number of rows of each kept client.
    """

    Settings = FedCDASettings

    def begin(self, federation: Federation) -> dict[str, float]:
        self.weights = shared_start(federation, "fedcda")
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        model, kept = without(self.weights, CACHE), cached(self.weights)
        replies = trained(federation, model, late=False)
        for reply in replies:
            mine = kept.setdefault(reply.client.id, {})
            mine[r] = {**reply.body.tensors, "rows": torch.tensor(float(reply.body.examples))}
            for old in sorted(mine)[: -self.settings.history]:
                del mine[old]
        chosen: Sequence[State]
        if r <= self.settings.warmup * self.num_rounds:
            chosen = [mine[r] for mine in kept.values() if r in mine]
        else:
            chosen = closest([[mine[n] for n in sorted(mine)] for mine in kept.values()], self.settings.sweeps)
        rows = [state["rows"].item() for state in chosen]
        model = weighted_mean([{n: state[n] for n in model} for state in chosen], rows)
        self.weights = model | flat(kept)
        return figures(replies) | {"weights/averaged": float(len(chosen))}

    def judged_model(self) -> Weights | None:
        return Weights(model_part(self.weights)) if self.weights else None


def closest(histories: Sequence[Sequence[State]], sweeps: int) -> list[State]:
    """One state of each client, so that sum_k p_k |w_k - mean|^2 is small: from the newest ones on, each client in turn
    takes the one of its states that is nearest to the mean of the others' choices (p by rows)."""
    flat_K = [torch.stack([vector(state) for state in history]) for history in histories]
    rows_K = torch.tensor([history[-1]["rows"].item() for history in histories])
    choice = [len(history) - 1 for history in histories]
    for _ in range(sweeps if len(histories) > 1 else 0):
        for k, mine in enumerate(flat_K):
            others = torch.stack([w * flat[c] for w, flat, c in zip(rows_K, flat_K, choice, strict=True)])
            mean = (others.sum(0) - others[k]) / (rows_K.sum() - rows_K[k])
            choice[k] = int((mine - mean).square().sum(-1).argmin())
    return [history[c] for history, c in zip(histories, choice, strict=True)]


def vector(state: State) -> Tensor:
    """All that gradients have learnt, as one vector."""
    return torch.cat([v.flatten().float() for n, v in sorted(state.items()) if n != "rows" and learned(n, v)])


def cached(weights: State) -> dict[int, dict[int, dict[str, Tensor]]]:
    """Kept states by client and round."""
    found: dict[int, dict[int, dict[str, Tensor]]] = {}
    for name, value in part(weights, CACHE).items():
        client, r, tensor = name.split(".", 2)
        found.setdefault(int(client), {}).setdefault(int(r), {})[tensor] = value
    return dict(sorted(found.items()))


def flat(kept: Mapping[int, Mapping[int, State]]) -> dict[str, Tensor]:
    """Undo `cached`."""
    parts = (named(f"{CACHE}.{k}.{r}", dict(state)) for k, mine in kept.items() for r, state in mine.items())
    return {name: value for one in parts for name, value in one.items()}
