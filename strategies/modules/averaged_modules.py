"""Server side of all methods whose clients exchange small modules: the mean of each module over those that have it.

LoRA-FL and Bias-FL are baselines of arXiv 2308.12305 and 2510.12254 (Table VII); FedDAT is 2308.12305. Client sides:
client_app/methods/modules. Down and up: the modules' weights. Clients may have any architecture.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation, Reply
from florilegium.learning.averaging import named, part, weighted_mean
from florilegium.protocol.payloads import Adapters
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import WEIGHTINGS, figures, group_of, group_starts, shares, trained

#: who averages with whom -> what of a client's group (modality and architecture) must be equal
SHARING: dict[str, Callable[[str], str]] = {
    "all": lambda group: "",
    "modality": lambda group: group.split(" ")[0],
    "architecture": lambda group: group,
}


@section
class AveragedModulesSettings:
    """Who averages with whom."""

    sharing: str = setting(
        "all",
        "which clients average a module of the same place and shape: all (image and text clients too) | modality | "
        "architecture",
        choices=tuple(SHARING),
    )
    weighting: str = setting(
        "examples", "p_k, the weight of a client: examples (n_k / n) | uniform (all equal)", choices=WEIGHTINGS
    )


class AveragedModules(Rounds):
    """The weighted mean of each module over the clients that have one of its shape at the same place.

    `weights` holds the modules of each group under the group's name.
    """

    Settings = AveragedModulesSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        self.take(federation)
        return self.round(0, federation)  # the clients' first training

    def take(self, federation: Federation) -> None:
        """Take the modules of the start, one set for each group."""
        starts = group_starts(federation, Adapters)
        self.weights = {name: value for group, start in starts.items() for name, value in named(group, start).items()}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        groups = dict.fromkeys(name.split(".")[0] for name in self.weights)
        down = {group: part(self.weights, group) for group in groups}
        replies = trained(federation, lambda client: down.get(group_of(client), {}), kind=Adapters)
        for group, modules in down.items():  # a module that nobody of the cohort has stays as it is
            self.weights |= named(group, {n: self.mean(group, n, value, replies) for n, value in modules.items()})
        size = 4.0 * sum(v.numel() for x in replies for v in x.body.tensors.values()) / len(replies)
        return figures(replies) | {"bytes/formula_up": size, "bytes/formula_down": size}

    def mean(self, group: str, name: str, before: Tensor, replies: list[Reply]) -> Tensor:
        """sum_k p_k of this module over the group's peers that have it; `before` without any."""
        same = SHARING[self.settings.sharing]
        peers = [
            x
            for x in replies
            if same(group_of(x.client)) == same(group)
            and name in x.body.tensors
            and x.body.tensors[name].shape == before.shape
        ]
        if not peers:
            return before
        states = [{name: x.body.tensors[name]} for x in peers]
        return weighted_mean(states, shares(peers, self.settings.weighting))[name]

    def judged_model(self) -> None:
        """No global model: each client is judged with its own, modules included."""
        return None
