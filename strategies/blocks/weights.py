"""What servers of weight-averaging methods share: one architecture, a common start, checked uploads, their figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from florilegium.federation.federation import Check, Client, Federation, FederationError, Reply
from florilegium.protocol.payloads import Weights
from florilegium.protocol.validation import WireError

WEIGHTINGS = ("examples", "uniform")
GROUPINGS = ("none", "architecture")
SUMMED = "cache/"  # figures that count something over all clients; of all others the mean is of interest


def group_of(client: Client) -> str:
    """Who averages with whom when clients average within their architecture: modality and architecture."""
    return f"{client.modality} {client.architecture}"


def grouped(clients: Iterable[Client]) -> dict[str, list[Client]]:
    """Clients by group, groups in the order of their names."""
    groups: dict[str, list[Client]] = {}
    for client in clients:
        groups.setdefault(group_of(client), []).append(client)
    return dict(sorted(groups.items()))


def shared_start(federation: Federation, name: str) -> dict[str, Tensor]:
    """The fresh weights of the first client. FederationError, naming them, when clients' architectures differ."""
    groups = grouped(federation.clients)
    if len(groups) > 1:
        those = "; ".join(f"{g}: client {', '.join(str(c.id) for c in clients)}" for g, clients in groups.items())
        raise FederationError(f"{name} averages weights and needs one architecture, these clients have {those}")
    return federation.ask("train", Weights({}), Weights, clients=federation.clients[:1])[0].body.tensors


def group_starts(federation: Federation, kind: type = Weights) -> dict[str, dict[str, Tensor]]:
    """The fresh weights of each group's first client, by group; all of them are needed. `kind` is their payload."""
    firsts = [clients[0] for clients in grouped(federation.clients).values()]
    replies = federation.ask("train", kind({}), kind, clients=firsts, needed=len(firsts))
    if missing := {group_of(client) for client in firsts} - {group_of(x.client) for x in replies}:
        raise FederationError(f"no fresh weights of {', '.join(sorted(missing))} came to start from")
    return {group_of(x.client): x.body.tensors for x in replies}


def trained(
    federation: Federation,
    down: Mapping[str, Tensor] | Callable[[Client], Mapping[str, Tensor]],
    *,
    like: Mapping[str, Tensor] | Callable[[Client], Mapping[str, Tensor]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    check: Check | None = None,
    metrics: Mapping[str, float] | None = None,
    late: bool = True,
    kind: type = Weights,
) -> list[Reply]:
    """The cohort's weights after local training from `down` (with `metrics`, figures for the clients); a bad upload is
    left out and named in the ledger.

    `down` and `like` may differ by client. An upload must have the names, shapes and types of `like` (default: of
    `down`), the figures of `ranges` within them, and no more examples than the client's profile says. `late`: where
    settings have it so, the weights a client was asked for in an earlier round may come instead, and count less
    (`shares`). `kind` is the payload of both ways, with the fields of Weights.
    """

    def checked(client: Any, body: Weights) -> None:
        given = down(client) if callable(down) else down
        expected = given if like is None else like(client) if callable(like) else like
        same_tensors(body.tensors, expected)
        if not 1 <= body.examples <= max(client.examples, 1):
            raise WireError(f"Weights.examples is {body.examples}, the client's profile says {client.examples}")
        for name, (low, high) in (ranges or {}).items():
            if not low <= body.metrics.get(name, low - 1) <= high:
                raise WireError(f"Weights.metrics[{name}] is {body.metrics.get(name)}, not in [{low:g}, {high:g}]")
        if check is not None:
            check(client, body)

    def payload(tensors: Mapping[str, Tensor]) -> Any:
        return kind(dict(tensors), metrics=dict(metrics or {}))

    if not callable(down):
        return federation.ask("train", payload(down), kind, check=checked, late=late)
    bodies: dict[int, tuple[Any, Any]] = {}  # one body for all who get the same tensors

    def chosen(client: Client) -> Any:
        tensors = down(client)
        return bodies.setdefault(id(tensors), (tensors, payload(tensors)))[1]

    return federation.ask("train", chosen, kind, check=checked, late=late)


def same_tensors(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """WireError naming the first tensor whose shape or type is not that of `like`."""

    def type_and_shape(state: Mapping[str, Tensor], name: str) -> str:
        return f"{str(state[name].dtype)[6:]} {list(state[name].shape)}" if name in state else "nothing"

    for name in [*like, *tensors]:
        if type_and_shape(tensors, name) != type_and_shape(like, name):
            found, expected = type_and_shape(tensors, name), type_and_shape(like, name)
            raise WireError(f"Weights.tensors[{name}] is {found}, expected {expected}")


def shares(replies: Sequence[Reply], weighting: str = "examples") -> list[float]:
    """p_k: each reply's share in an average, by its examples or the same for all; a late one's is less."""
    sizes = [x.weight * (float(x.body.examples) if weighting == "examples" else 1.0) for x in replies]
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
