"""Settings of protection: differential privacy of what clients send, and defences against bad clients."""

from __future__ import annotations

from florilegium.config.fields import section, setting

CENTRES = ("mean", "trimmed", "median")


@section
class Representations:
    """The Gaussian mechanism on each row of representations or class scores that a client sends."""

    clip: float = setting(1.0, "C: longer rows are shortened to this L2 norm", low=1e-6, high=1e6)
    noise: float = setting(
        1.0, "sigma: standard deviation of the noise on each value, in units of C", low=1e-3, high=1e6
    )
    release: list[str] = setting(
        help="what may leave a client without noise: figures (losses, accuracies), labels (of answers, with their "
        "confidences). Figures that are not listed stay at the client; a method that sends labels is refused unless "
        "they are listed",
        choices=("figures", "labels"),
        factory=lambda: ["figures"],
    )

    @property
    def multiplier(self) -> float:
        """Noise over sensitivity: a client with other data may send any other row of the ball, 2 C away."""
        return self.noise / 2


@section
class Votes:
    """Confident-GNMax on the clients' votes for a sample's label (arXiv 1802.08908)."""

    threshold: float = setting(0.5, "T: share of the clients that must agree, before noise", low=0, high=2)
    threshold_noise: float = setting(
        1.0, "sigma_1: standard deviation of the noise on the check of T, in votes", low=1e-3, high=1e6
    )
    noise: float = setting(1.0, "sigma_2: standard deviation of the noise on each count, in votes", low=1e-3, high=1e6)
    release: list[str] = setting(
        help="what the server may send down to clients without noise, beside the labels: vectors",
        choices=("vectors",),
        factory=list,
    )


@section
class Training:
    """DP-SGD on a client's own rows."""

    noise: float = setting(
        1.0,
        "sigma: standard deviation of the noise on the summed gradient, in units of the clip",
        low=1e-3,
        high=1e6,
    )
    clip: float = setting(1.0, "L2 norm to which each row's gradient is shortened", low=1e-6, high=1e6)


@section
class PrivacySettings:
    """Differential privacy. docs/robustness.md says what each mechanism protects and what it does not."""

    representations: Representations | None = setting(
        None, "the Gaussian mechanism on each row that a client sends; null: off"
    )
    votes: Votes | None = setting(None, "Confident-GNMax on the clients' votes; null: off")
    training: Training | None = setting(None, "DP-SGD on a client's own rows; null: off")
    delta: float = setting(1e-5, "delta of every epsilon in the records", low=1e-15, high=0.5)
    seeded: bool = setting(
        False,
        "true: noise comes from the run's seed, so that a run can be repeated. Anyone who knows the settings can "
        "remove such noise: for tests only",
    )

    @property
    def reported(self) -> tuple[str, ...]:
        """The epsilons that clients report beside every reply; votes are counted at the server."""
        return (("gaussian", "gaussian_row") if self.representations else ()) + (("dpsgd",) if self.training else ())


@section
class DefenceSettings:
    """Defences against bad clients, beyond the checks of every message (docs/robustness.md)."""

    bound: float | None = setting(
        None,
        "largest share that one client may have in a sample's votes, or in the lengths of its vectors; null: no bound",
        low=1e-3,
        high=1,
    )
    centre: str = setting(
        "mean",
        "centre of representations and class scores: mean, trimmed (mean) or median (geometric)",
        choices=CENTRES,
    )
    among: str = setting(
        "all",
        "who is compared with whom: all clients, or those of one modality",
        choices=("all", "modality"),
    )
    trim: float = setting(
        0.25, "with centre=trimmed: share of the clients that is cut at each end of each coordinate", low=0, high=0.49
    )
    reputation: bool = setting(False, "clients that agreed with the consensus of earlier rounds count more")
    momentum: float = setting(0.5, "with reputation: share of it that stays each round", low=0, high=1)
    sharpness: float = setting(2.0, "with reputation: weights are proportional to this power of it", low=0, high=100)

    @property
    def active(self) -> bool:
        """Whether anything differs from the plain mean."""
        return self.bound is not None or self.centre != "mean" or self.reputation
