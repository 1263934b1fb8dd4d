"""Server side of all methods whose clients keep a part of their model: the mean of what they share.

FedBN (arXiv 2102.07623, Algorithm 1), FedPer (1912.00818, Algorithm 2) and FedRep (2102.07078, Algorithm 1) differ at
the client alone. Client sides: client_app/methods/averaging. Down and up: the weights that are shared.
"""

from __future__ import annotations

from collections.abc import Callable

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Client, Federation
from florilegium.learning.averaging import model_part, weighted_mean
from florilegium.methods.guidance.settings import GuidanceSettings
from florilegium.protocol.payloads import Weights
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import WEIGHTINGS, figures, shared_start, shares, trained


@section
class SharedPartSettings:
    """How the shared weights are averaged."""

    weighting: str = setting(
        "examples", "p_k, the weight of a client: examples (n_k / n) | uniform (all equal)", choices=WEIGHTINGS
    )
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model, the same as the clients have (conf/guidance)",
        factory=GuidanceSettings,
    )


class SharedPart(Rounds):
    """The weighted mean of the weights that clients share; the server never sees the others."""

    Settings = SharedPartSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        self.weights = shared_start(federation, "a method with personal weights")
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        replies = trained(federation, self.weights)  # ClientUpdate(k, shared)
        p_K = shares(replies, self.settings.weighting)
        self.weights = weighted_mean([x.body.tensors for x in replies], p_K)  # shared <- sum_k p_k shared_k
        return figures(replies)

    def judged_model(self) -> Callable[[Client], Weights] | None:
        """Each client is judged: the shared weights with its own personal ones."""
        if not self.weights:
            return None
        shared = Weights(model_part(self.weights))
        return lambda client: shared
