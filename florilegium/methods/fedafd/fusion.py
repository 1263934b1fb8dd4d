"""FedAFD's granularity-aware fusion of a local with a frozen global feature (arXiv 2603.04890).

The iAFF block (arXiv 2009.14082) on vectors. With a length of one its pooling is the identity, so both branches are
bottlenecks of the same form. Axes: B batch, D width.
"""

from __future__ import annotations

from torch import Tensor, nn


def branch(width: int, reduction: int) -> nn.Sequential:
    """Linear - BN - ReLU - Linear - BN through width / reduction."""
    narrow = max(1, width // reduction)
    return nn.Sequential(
        nn.Linear(width, narrow), nn.BatchNorm1d(narrow), nn.ReLU(), nn.Linear(narrow, width), nn.BatchNorm1d(width)
    )


class GranularityFusion(nn.Module):
    """local [B, D], global [B, D] -> fused [B, D], each coordinate between the two.

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
