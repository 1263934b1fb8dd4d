"""The sections of the settings that belong to no method: their keys, types and ranges."""

from __future__ import annotations

from dataclasses import dataclass, field

from florilegium import seeds
from florilegium.config.bounds import between, one_of

MODALITIES = ("image", "text", "pair")
MANY = 1_000_000
ATTACKS = ("none", "label_flip", "confident_votes", "scaled_representations", "nan_representations", "collude")


@dataclass
class Plan:
    """The keys at the top of conf/config.yaml."""

    rounds: int = 1
    seed: int = 0
    out: str | None = None
    resume: bool = False
    label: str | None = None
    log_level: str = "info"
    assets: str | None = None  # where the launcher found them; not for the user

    def __post_init__(self) -> None:
        between("rounds", self.rounds, 0, MANY)
        between("seed", self.seed, 0, 2**31 - 1)
        one_of("log_level", self.log_level, ("debug", "info", "warning", "error"))


@dataclass
class Cohort:
    fraction: float = 1.0

    def __post_init__(self) -> None:
        between("fraction", self.fraction, 0, 1)


@dataclass
class Timeouts:
    exchange: float = 600.0
    quorum: int = 2
    late: str = "drop"
    decay: float = 0.5
    give_up: float | None = None

    def __post_init__(self) -> None:
        between("exchange", self.exchange, 0.1, 30 * 24 * 3600)
        between("quorum", self.quorum, 1, MANY)
        one_of("late", self.late, ("drop", "decay"))
        between("decay", self.decay, 0, 1)
        if self.give_up is not None:
            between("give_up", self.give_up, self.exchange, 30 * 24 * 3600)


@dataclass
class EvaluationSettings:
    """How often all methods are judged, and on how many generated images."""

    every: int = 1
    images_per_class: int = 10
    global_model: str = "once"

    def __post_init__(self) -> None:
        one_of("global_model", self.global_model, ("once", "everywhere"))
        between("every", self.every, 1, MANY)
        between("images_per_class", self.images_per_class, 1, 10_000)


@dataclass
class Runtime:
    """conf/runtime: how the clients run. `superlink` names a connection of the user's own Flower home; `keep` leaves
    a local federation up after its run, `warm` keeps a client's libraries imported in it."""

    name: str = "simulation"
    client_cpus: int = 1
    client_gpus: float = 0.0
    cpus: int | None = None
    gpus: int | None = None
    superlink: str | None = None
    keep: bool = False
    warm: bool = True
    fatal_codes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        one_of("name", self.name, ("simulation", "deployment", "local"))
        between("client_cpus", self.client_cpus, 1, MANY)
        between("client_gpus", self.client_gpus, 0, MANY)
        if self.cpus is not None:
            between("cpus", self.cpus, self.client_cpus, MANY)
        if self.name == "deployment" and not self.superlink:
            raise ValueError("superlink must name a connection of your Flower home's config.toml")


@dataclass
class Attack:
    """conf/attack: clients that are made to misbehave, for measuring defences (client_app/privacy/attacks.py)."""

    kind: str = "none"
    share: float = 0.25
    strength: float = 10.0

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ATTACKS)
        between("share", self.share, 0, 0.25)
        between("strength", self.strength, 0, 1e6)

    def attackers(self, clients: int, seed: int) -> list[int]:
        """Who misbehaves: the floor(share * clients) of the seed, in order; nobody without an attack."""
        count = 0 if self.kind == "none" else int(self.share * clients + 1e-9)
        return sorted(seeds.shuffled(clients, seed, "attack")[:count])
