"""What a FedAFD client sees: its own encoder fused with the server's frozen one (arXiv 2603.04890, section 4).

The global encoders come once whole and then as changes (protocol/deltas.py). Axes: B batch, N rows, C classes,
D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from client_app import evaluation
from client_app.batches import ClientError
from client_app.blocks.representing import towers
from client_app.client import Client
from florilegium import seeds
from florilegium.data.datasets import Rows
from florilegium.data.public import PublicPairs
from florilegium.learning.averaging import named, part
from florilegium.learning.fit import optimizer_tensors, restore_optimizer
from florilegium.models import build
from florilegium.models.build import build_pair
from florilegium.protocol import pixels
from florilegium.protocol.deltas import applied
from florilegium.protocol.payloads import Modules, Report

ENCODERS, FUSION = "encoders", "fusion"  # parts of the memory
LOOK = 128  # rows seen at once


def keep_encoders(client: Client, sent: Modules) -> Report:
    """Take over the server's encoders, or their changes. ChangesError when they do not fit what is kept."""
    kept = client.memory.read(ENCODERS)
    client.memory.write(ENCODERS, applied(kept[0] if kept else None, sent))
    return Report({}, 0)


def own(client: Client, side: str, x: Tensor) -> Tensor:
    """The client's own unit feature [B, D] of one side."""
    if client.modality != "pair":
        return normalize(client.classifier.encode(x), dim=-1)
    return client.retriever.encode_image(x) if side == "image" else client.retriever.encode_text(x)


class LinearOnGlobal(nn.Module):
    """`fusion: global` for pairs: a linear layer on the frozen feature, the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, _: Tensor, g_BD: Tensor) -> Tensor:
        return self.linear(g_BD)


class Fused:
    """The fused path of one client, trained and judged alike. Without global encoders (round 0) it is its own model.

    `training` says that a round's training begins, for which D5 makes the fusion anew.
    """

    def __init__(self, client: Client, settings: Any, training: bool = False) -> None:
        self.client, self.settings = client, settings
        kept = client.memory.read(ENCODERS) if settings.fusion != "none" else None
        self.frozen = self.encoders(kept[0]) if kept else {}
        self.mix: nn.Module | None = self.mixing() if self.frozen else None
        self.adam: torch.optim.Adam | None = None
        if self.mix is not None:
            self.adam = self.restore(self.mix, training)

    def encoders(self, tensors: dict[str, Tensor]) -> dict[str, nn.Module]:
        """The server's encoders of this client's sides, frozen. ClientError when they are another architecture's."""
        conf, frozen = self.client.conf, {}
        with seeds.scoped(conf.seed, "model", "global"):
            dual = build_pair(conf.clients, self.settings.architecture)
        for side in towers(self.client):
            try:
                getattr(dual, side).load_state_dict(part(tensors, side))
            except RuntimeError as error:
                why = " ".join(str(error).split())[:160]
                raise ClientError(f"the server's {side} encoder is no {self.settings.architecture}: {why}") from error
            frozen[side] = getattr(dual, side).eval().requires_grad_(False).to(self.client.device)
        if "text" in frozen and self.client.vocabulary != build.vocabulary(
            conf.clients, self.settings.architecture.split("+")[1]
        ):
            raise ClientError(
                f"{self.client.architecture} and the server's {self.settings.architecture} read other "
                "tokens: fusion needs one tokenizer for both"
            )
        return frozen

    def mixing(self) -> nn.Module | None:
        """The module between local and global feature; classifiers with `global` have their head for it."""
        s, client = self.settings, self.client
        with seeds.scoped(client.conf.seed, "model", FUSION, client.id):
            if s.fusion == "gff":
                return GranularityFusion(
                    client.width, s.reduction, s.divergences.share_pool_branch, s.fusion_start == "even"
                ).to(client.device)
            return LinearOnGlobal(client.width).to(client.device) if client.modality == "pair" else None

    def restore(self, mix: nn.Module, training: bool) -> torch.optim.Adam:
        """Fusion and its Adam as the last training left them, in whichever round; or (D5) as new for a round's."""
        s, left = self.settings, self.client.memory.read(FUSION)
        decay = s.fusion_weight_decay_pair if self.client.modality == "pair" else s.fusion_weight_decay
        adam = torch.optim.Adam(mix.parameters(), s.fusion_rate.of(self.client.modality), weight_decay=decay)
        anew = training and s.divergences.reset_each_round
        if left is not None and not (anew and left[1]["round"] != self.client.round):
            mix.load_state_dict(part(left[0], "mix"))
            restore_optimizer(adam, part(left[0], "adam"))
        return adam

    def keep(self) -> None:
        if self.mix is not None and self.adam is not None:
            self.client.memory.write(
                FUSION,
                named("mix", self.mix.state_dict()) | named("adam", optimizer_tensors(self.adam)),
                {"round": self.client.round},
            )

    def train(self, mode: bool = True) -> None:
        if self.mix is not None:
            self.mix.train(mode)

    def step(self) -> None:
        """Fusion's own optimiser, after a backward pass that reached it."""
        if self.adam is not None:
            self.adam.step()
            self.adam.zero_grad(set_to_none=True)

    # -- seeing --------------------------------------------------------------------------------------------------------

    def see(self, side: str, x: Tensor) -> Tensor:
        """x~ [B, D] of inputs of one side; the local feature itself where nothing is fused."""
        if side not in self.frozen:
            return own(self.client, side, x)
        with torch.no_grad():
            g_BD = self.frozen[side](x)
        if self.mix is None:  # a classifier with `fusion: global`
            return g_BD
        if self.settings.fusion == "global":
            return self.mix(g_BD, g_BD)
        return self.mix(own(self.client, side, x), g_BD)

    def logits(self, x: Tensor) -> Tensor:
        """Class scores [B, C] by the client's head, which knows representations of norm sqrt(D)."""
        return self.client.classifier.head(self.see(self.client.modality, x) * self.client.width**0.5)

    def task(self, batch: Any) -> Tensor:
        """The client's own loss on the fused path: cross-entropy, or the retrieval loss of unit vectors."""
        if self.client.modality != "pair":
            return cross_entropy(self.logits(batch.inputs), batch.labels)
        image, text = (
            normalize(self.see(side, x), dim=-1) for side, x in (("image", batch.images), ("text", batch.texts))
        )
        return self.client.retriever.loss(image, text, batch.groups)

    @torch.no_grad()
    def evaluate(self) -> Report:
        """As `Client.evaluate`, through the fused path."""
        client = self.client
        client.model.eval()
        self.train(False)
        if client.modality == "pair":
            return evaluation.evaluate_pairs(client, self.look)
        return evaluation.classified(client, self.scores)

    def scores(self, rows: Rows) -> Tensor:
        """Class scores [N, C] of rows, on the CPU."""
        read = self.client.rows_as_inputs
        return torch.cat([self.logits(read(rows, chosen)).cpu() for chosen in torch.arange(len(rows)).split(LOOK)])

    def look(self, shown: PublicPairs) -> tuple[Tensor, Tensor]:
        """Unit vectors [N, D] of both sides of pairs."""
        found: dict[str, list[Tensor]] = {"image": [], "text": []}
        for rows in torch.arange(len(shown)).split(LOOK):
            x = {
                "image": pixels.scaled(shown.images[rows]),
                "text": self.client.vocabulary([shown.texts[n] for n in rows.tolist()]),
            }
            for side, parts in found.items():
                parts.append(normalize(self.see(side, x[side].to(self.client.device)), dim=-1).cpu())
        return torch.cat(found["image"]), torch.cat(found["text"])


# -- the fusion block --------------------------------------------------------------------------------------------------


def branch(width: int, reduction: int) -> nn.Sequential:
    """Linear - BN - ReLU - Linear - BN through width / reduction."""
    narrow = max(1, width // reduction)
    return nn.Sequential(
        nn.Linear(width, narrow), nn.BatchNorm1d(narrow), nn.ReLU(), nn.Linear(narrow, width), nn.BatchNorm1d(width)
    )


class GranularityFusion(nn.Module):
    """local [B, D], global [B, D] -> fused [B, D], each coordinate between the two (arXiv 2603.04890).

    The iAFF block (arXiv 2009.14082) on vectors. With a length of one its pooling is the identity, so both branches
    are bottlenecks of the same form.

    `even`: the branches' last scale starts at 0 (arXiv 1706.02677, section 5.1), so that every gate starts at 1/2
    and a fusion of few steps is the mean of both, whatever its batch norm has counted. Otherwise they start at random.
    `share_pool_branch`: level 2 uses level 1's T2, as the released code does, which leaves its own unused.
    """

    def __init__(self, width: int, reduction: int = 4, share_pool_branch: bool = False, even: bool = False) -> None:
        super().__init__()
        self.local1, self.pooled1 = branch(width, reduction), branch(width, reduction)  # T1, T2
        self.local2 = branch(width, reduction)  # T1'
        self.pooled2 = None if share_pool_branch else branch(width, reduction)  # T2'
        if even:
            for each in (self.local1, self.pooled1, self.local2, self.pooled2):
                if each is not None:
                    nn.init.zeros_(each.get_submodule(str(len(each) - 1)).get_parameter("weight"))

    def gates(self, x_BD: Tensor, g_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The shares of the local feature in level 1 and in the result, in (0, 1)."""
        both = x_BD + g_BD
        first = (self.local1(both) + self.pooled1(both)).sigmoid()  # M(x + g)
        h = first * x_BD + (1 - first) * g_BD  # level 1
        pooled2 = self.pooled1 if self.pooled2 is None else self.pooled2
        return first, (self.local2(h) + pooled2(h)).sigmoid()  # M'(h)

    def forward(self, x_BD: Tensor, g_BD: Tensor) -> Tensor:
        _, gate = self.gates(x_BD, g_BD)
        return gate * x_BD + (1 - gate) * g_BD  # level 2: x~
