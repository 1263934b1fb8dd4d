"""What servers of weight-averaging methods share: one architecture, a common start, checked uploads, their figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from florilegium.checks import one_of
from florilegium.federation import Check, Federation, FederationError, Reply
from florilegium.wire import Weights, WireError

WEIGHTINGS = ("examples", "uniform")
SUMMED = "cache/"  # figures that count something over all clients; of all others the mean is of interest


def shared_start(federation: Federation, name: str) -> dict[str, Tensor]:
    """The fresh weights of the first client. FederationError, naming them, when clients' architectures differ."""
    kinds: dict[str, list[int]] = {}
    for client in federation.clients:
        kinds.setdefault(f"{client.modality} {client.architecture}", []).append(client.id)
    if len(kinds) > 1:
        those = "; ".join(f"{kind}: client {', '.join(map(str, ids))}" for kind, ids in sorted(kinds.items()))
        raise FederationError(f"{name} averages weights and needs one architecture, these clients have {those}")
    return federation.ask("train", Weights({}), Weights, clients=federation.clients[:1])[0].body.tensors


def trained(
    federation: Federation, down: Mapping[str, Tensor], *, like: Mapping[str, Tensor] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None, check: Check | None = None,
    metrics: Mapping[str, float] | None = None,
) -> list[Reply]:
    """The cohort's weights after local training from `down` (with `metrics`, figures for the clients); a bad upload is
    left out and named in the ledger.

    An upload must have the names, shapes and types of `like` (default: of `down`), the figures of `ranges` within
    them, and no more examples than the client's profile says.
    """
    like = down if like is None else like

    def checked(client: Any, body: Weights) -> None:
        same_tensors(body.tensors, like)
        if not 1 <= body.examples <= max(client.examples, 1):
            raise WireError(f"Weights.examples is {body.examples}, the client's profile says {client.examples}")
        for name, (low, high) in (ranges or {}).items():
            if not low <= body.metrics.get(name, low - 1) <= high:
                raise WireError(f"Weights.metrics[{name}] is {body.metrics.get(name)}, not in [{low:g}, {high:g}]")
        if check is not None:
            check(client, body)

    return federation.ask("train", Weights(dict(down), metrics=dict(metrics or {})), Weights, check=checked)


def same_tensors(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """WireError naming the first tensor whose shape or type is not that of `like`."""
    def told(state: Mapping[str, Tensor], name: str) -> str:
        return f"{str(state[name].dtype)[6:]} {list(state[name].shape)}" if name in state else "nothing"

    for name in [*like, *tensors]:
        if told(tensors, name) != told(like, name):
            raise WireError(f"Weights.tensors[{name}] is {told(tensors, name)}, expected {told(like, name)}")


def shares(replies: Sequence[Reply], weighting: str = "examples") -> list[float]:
    """p_k: each reply's share in an average, by its examples or the same for all."""
    sizes = [float(x.body.examples) if weighting == "examples" else 1.0 for x in replies]
    return [size / sum(sizes) for size in sizes]


def figures(replies: Sequence[Reply]) -> dict[str, float]:
    """What the clients' trainings had to say: train/<name>, the mean by examples over those who said it; and sums."""
    out: dict[str, float] = {"weights/replies": float(len(replies))}
    for name in _names(replies):
        told = [(x.body.metrics[name], x.body.examples) for x in replies if name in x.body.metrics]
        if name.startswith(SUMMED):
            out[name] = sum(value for value, _ in told)
        else:
            out[f"train/{name}"] = sum(value * n for value, n in told) / sum(n for _, n in told)
    return out


def _names(replies: Iterable[Reply]) -> list[str]:
    return list(dict.fromkeys(name for x in replies for name in x.body.metrics))


def check_weighting(value: str) -> None:
    one_of("weighting", value, WEIGHTINGS)
