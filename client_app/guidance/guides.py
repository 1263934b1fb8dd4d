"""All guides of a client's training behind one interface.

Axes: B batch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from client_app.batches import Batch, ClientError
from client_app.client import Client
from client_app.guidance.feddifrc import FedDifRCGuide
from client_app.guidance.feddifrc_dense import DenseFedDifRCGuide
from client_app.guidance.frozen_features import GUIDE, FrozenFeatures
from client_app.guidance.replay import Head
from client_app.guidance.semanticfl import SemanticFLGuide
from florilegium.methods.guidance.settings import GuidanceSettings


@dataclass
class Guides:
    """All guides of a client's training behind one interface."""

    each: Sequence[Any] = ()
    own: FrozenFeatures | None = None

    @property
    def supervised(self) -> bool:
        """Whether labels may reach the encoder."""
        return all(guide.supervised for guide in self.each)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained beside the model's; they travel as "guidance.<name>"."""
        return {name: p for guide in self.each for name, p in guide.parameters.items()}

    def terms(self, z_BD: Tensor, batch: Batch, head: Head) -> dict[str, Tensor]:
        """Named scalar terms of the objective; of terms with one name (two guides' replay) the sum."""
        terms: dict[str, Tensor] = {}
        for guide in self.each:
            for name, term in guide.terms(z_BD, batch, head).items():
                terms[name] = terms[name] + term if name in terms else term
        return terms

    def metrics(self) -> dict[str, float]:
        """What the cache had to do for this training."""
        return self.own.counted() if self.own is not None else {}


def of(client: Client, s: GuidanceSettings) -> Guides:
    """The guides of this client's training. ClientError when guidance is on but no guide was ever stored."""
    if s.name == "none":
        return Guides()
    kept = client.memory.kept(GUIDE)
    if kept is None:
        raise ClientError(f"guidance is {s.name}, but no guide was kept; the server sends it again")
    frozen = FrozenFeatures(client, s, kept[0], str(kept[1]["version"]))
    each: list[Any] = []
    if s.feddifrc_on:
        guide = DenseFedDifRCGuide if client.classifier.dense else FedDifRCGuide
        each.append(guide(s.feddifrc, client, frozen))
    if s.semanticfl_on:
        each.append(SemanticFLGuide(s.semanticfl, client, frozen))
    return Guides(each, frozen)
