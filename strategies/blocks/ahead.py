"""Samples of a round, made when the round begins, or with `overlap` one round ahead, while clients work.

`distill`: the samples of round r + 1 are made while the clients distil in round r, after the generator is tuned. They
are those of a synchronous run. `train`: they are made while the clients train in round r, so the generator is not yet
tuned on round r: the samples are one tuning older (staleness 1). At most one round's samples wait (a queue of one).
What is made depends on the round and the generator alone, so that a run gives the same numbers each time.
Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from florilegium.learning.averaging import named, part

OVERLAPS = ("none", "distill", "train")  # what clients do while the next round's samples are made


@dataclass(frozen=True)
class Pool:
    """Samples of one round: the class [N] that each was drawn for, images uint8 [N, 3, H, W], and a caption of each."""

    drawn: Tensor
    images: Tensor
    captions: list[str]


class Ahead:
    """Where a method takes a round's samples from. `make(r)` makes those of round r with the generator as it is."""

    def __init__(self, make: Callable[[int], Pool], overlap: str = "none") -> None:
        self.make, self.overlap = make, overlap
        self.waiting: tuple[int, Pool] | None = None  # (round, its samples)

    def take(self, r: int) -> Pool:
        """The samples of round `r`: those that wait, or else made now."""
        held, self.waiting = self.waiting, None
        return held[1] if held is not None and held[0] == r else self.make(r)

    def fill(self, r: int, last: int, exchange: Any, *whiles: str) -> None:
        """Make the samples of round `r` while the clients of `exchange` work, if `overlap` is one of `whiles`.

        Nothing happens without clients at work, with samples that wait already, and after the `last` round.
        """
        if self.overlap in whiles and r <= last and self.waiting is None and exchange.clients:
            self.waiting = r, self.make(r)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What waits: tensors and JSON-able values for `restore`."""
        if self.waiting is None:
            return {}, {}
        r, pool = self.waiting
        return named("ahead", {"drawn": pool.drawn, "images": pool.images}), {"round": r, "captions": pool.captions}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.waiting = None
        if meta:
            kept = part(tensors, "ahead")
            self.waiting = int(meta["round"]), Pool(kept["drawn"], kept["images"], list(meta["captions"]))
