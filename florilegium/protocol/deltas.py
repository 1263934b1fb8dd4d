"""Weights that are sent once, then only where they changed: tensors are told apart by the hash of their content.

The receiver keeps what it has under a version, the hash over all names and contents; a delta names the version it was
made from, so it is never applied to anything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from florilegium.protocol.payloads import Modules

DIGITS = 16


class ChangesError(ValueError):
    """A delta does not fit what is kept; one line."""


def fingerprint(tensor: Tensor) -> str:
    """A hash of type, shape and content."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(
        tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    )
    return digest.hexdigest()[:DIGITS]


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: fingerprint(tensor) for name, tensor in tensors.items()}


def version(prints: Mapping[str, str]) -> str:
    """One hash for all names and contents, whatever their order."""
    return hashlib.sha256("\n".join(f"{n} {prints[n]}" for n in sorted(prints)).encode()).hexdigest()[: 2 * DIGITS]


def version_of(tensors: Mapping[str, Tensor]) -> str:
    return version(fingerprints(tensors))


def changed(tensors: Mapping[str, Tensor], known: Mapping[str, str] | None = None) -> Modules:
    """What must be sent to a receiver whose tensors have the fingerprints `known` (None or none: all of them)."""
    now = fingerprints(tensors)
    known = known if known and known.keys() == now.keys() else {}
    new = {name: tensor.detach().cpu() for name, tensor in tensors.items() if known.get(name) != now[name]}
    return Modules(version(now), version(known) if known else "", new)


def applied(kept: Mapping[str, Tensor] | None, sent: Modules) -> dict[str, Tensor]:
    """The receiver's tensors after `sent`. ChangesError when that was made for, or leads to, another version."""
    if sent.base and (have := version_of(kept or {}) if kept else "nothing") != sent.base:
        raise ChangesError(f"the server sent changes to encoders {sent.base}, this client keeps {have}")
    whole = {**(kept or {}), **sent.tensors} if sent.base else dict(sent.tensors)
    if (made := version_of(whole)) != sent.version:
        raise ChangesError(f"the encoders are {made} after the server's changes, it calls them {sent.version}")
    return whole


class Sent:
    """What each receiver has, as its sender knows it: `sent.to(client, tensors)`, and `sent.arrived(client)` once the
    receiver answered. One that failed gets everything again."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, str]] = {}
        self._now: dict[str, dict[str, str]] = {}

    def to(self, client: int, tensors: Mapping[str, Tensor]) -> Modules:
        """The message for one receiver; its last state is forgotten until it answers."""
        body = changed(tensors, self.known.pop(str(client), None))
        self._now[str(client)] = fingerprints(tensors)
        return body

    def arrived(self, client: int) -> None:
        self.known[str(client)] = self._now[str(client)]

    def state(self) -> dict[str, Any]:
        """JSON-able; hand it to `restore`."""
        return {name: dict(prints) for name, prints in self.known.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.known = {str(name): dict(prints) for name, prints in state.items()}
