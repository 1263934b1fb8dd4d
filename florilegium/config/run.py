"""Settings of the run itself: who is asked, deadlines, evaluation, where the clients run, simulated attacks."""

from __future__ import annotations

from florilegium import seeds
from florilegium.config.bounds import between
from florilegium.config.fields import section, setting

MANY = 1_000_000
MONTH = 30 * 24 * 3600  # seconds
RUNTIMES = ("simulation", "inprocess", "deployment", "local")
ATTACKS = ("none", "label_flip", "confident_votes", "scaled_representations", "nan_representations", "collude")
LOG_LEVELS = ("debug", "info", "warning", "error")


@section
class Cohort:
    """Who is asked in a round."""

    fraction: float = setting(1.0, "share of the clients that are asked in a round", low=0, high=1)


@section
class Timeouts:
    """How long the server waits for clients, and what happens to late replies."""

    exchange: float = setting(600.0, "seconds that a client may take to answer", low=0.1, high=MONTH)
    quorum: int = setting(2, "the run ends when fewer clients than this give a good answer", low=1, high=MANY)
    late: str = setting(
        "drop",
        "what happens to a reply that comes too late: drop (it is lost) or decay (weights count less in a later round)",
        choices=("drop", "decay"),
    )
    decay: float = setting(
        0.5, "with late=decay: a late reply's weight is multiplied by this for each round it is late", low=0, high=1
    )
    give_up: float | None = setting(
        None,
        "seconds after which a client that never answered is asked again; null: ten times `exchange`",
        low=0,
        high=MONTH,
    )

    def __post_init__(self) -> None:
        if self.give_up is not None:
            between("give_up", self.give_up, self.exchange, MONTH)


@section
class GenericSettings:
    """The T2I model on captions of other things than the clients' (arXiv 2510.12254, Table VIII).

    It is measured un-tuned and after the last round.
    """

    data: str | None = setting(
        None,
        "captions beside images: a directory (COCO and others), an embedded data set or a hub's id; null: not measured",
    )
    split: str = setting("test", "whose pictures are taken", choices=("train", "validation", "test", "all"))
    images: int = setting(5000, "captions at most, each of another picture", low=2, high=10_000_000)
    extractor: str = setting(
        "inception",
        "inception (the standard FID and IS), clip, or a classifier: asset, directory or hub id; others than inception "
        "give `frechet` and `class_score`, which no paper has",
    )


@section
class EvaluationSettings:
    """How often all methods are evaluated, and on how many generated images."""

    every: int = setting(
        1, "rounds between two evaluations; the first and the last round are always evaluated", low=1, high=MANY
    )
    images_per_class: int = setting(
        10,
        "images that are generated for each class in an evaluation, with the same prompts and seeds every time",
        low=1,
        high=10_000,
    )
    global_model: str = setting(
        "once",
        "who evaluates a global model: once (one client of each data domain) or everywhere (all clients)",
        choices=("once", "everywhere"),
    )
    generic: GenericSettings = setting(factory=GenericSettings, help="the T2I model on captions of other things")


@section
class WorkerSettings:
    """Who works for the server's T2I model on several GPUs or machines (docs/running.md): Ray tasks that draw images
    and look at images for frozen features, each a batch, and processes that tune.
    """

    count: int = setting(0, "batches that are done at once; 0: the server does them itself", low=0, high=MANY)
    cpus: float = setting(
        0.0, "cores that Ray reserves for a batch; clients of a simulation hold them all", low=0, high=MANY
    )
    gpus: float = setting(0.0, "GPUs that Ray reserves for a batch; it sees no other", low=0, high=MANY)
    resource: str | None = setting(None, "a Ray resource of the machines that do them; null: any machine")
    strategy: str = setting(
        "SPREAD", "where Ray starts a batch: on machines in turn, or where it fits", choices=("SPREAD", "DEFAULT")
    )
    address: str | None = setting(None, "Ray cluster, such as auto; null: the simulation's own, or this machine")
    retries: int = setting(3, "how often a batch whose worker was lost is done again", low=0, high=MANY)
    tuning: int = setting(
        1,
        "processes of this machine that share each step of tuning, each on a GPU of its own; 1: the server's own",
        low=1,
        high=1024,
    )


@section
class Runtime:
    """Where the clients run."""

    name: str = setting(
        "simulation",
        "simulation (Ray actors here), inprocess (this process, one client after another), "
        "local (SuperNodes on this machine) or deployment (other machines)",
        choices=RUNTIMES,
    )
    client_cpus: int = setting(1, "CPU cores that one simulated client takes", low=1, high=MANY)
    client_gpus: float | None = setting(
        None,
        "share of a GPU that one simulated client takes; null: a quarter where clients.device finds a GPU, else none. "
        "With 0 Ray hides the GPU from the clients",
        low=0,
        high=MANY,
    )
    cpus: int | None = setting(None, "CPU cores for all simulated clients together; null: all of this machine", low=1)
    gpus: int | None = setting(None, "GPUs for all simulated clients together; null: those of this machine", low=0)
    superlink: str | None = setting(
        None, "with name=deployment: the connection's name in the config.toml of your Flower home"
    )
    workers: WorkerSettings = setting(factory=WorkerSettings, help="who works for the server's T2I model")
    keep: bool = setting(False, "with name=local: the federation stays up after the run until Ctrl-C")
    warm: bool = setting(
        True, "with name=local: a client's libraries stay imported between messages, which takes 600 MB of memory"
    )
    fatal_codes: list[int] = setting(
        factory=list, help="Flower's error codes that end the run at once; 0 is a dead Ray worker"
    )

    def __post_init__(self) -> None:
        if self.cpus is not None:
            between("cpus", self.cpus, self.client_cpus, MANY)
        if self.name == "deployment" and not self.superlink:
            raise ValueError("superlink must name a connection of your Flower home's config.toml")


@section
class Attack:
    """Clients that are made to misbehave, to measure defences (client_app/privacy/attacks.py)."""

    kind: str = setting("none", "what the attackers do; none: every client is honest", choices=ATTACKS)
    share: float = setting(
        0.25, "share of the clients that attack, at most a quarter; the seed draws which ones", low=0, high=0.25
    )
    strength: float = setting(
        10.0, "factor by which attackers enlarge representations and class scores", low=0, high=1e6
    )

    def attackers(self, clients: int, seed: int) -> list[int]:
        """The ids of the floor(share * clients) attackers that the seed draws, in order; empty without an attack."""
        count = 0 if self.kind == "none" else int(self.share * clients + 1e-9)
        return sorted(seeds.shuffled(clients, seed, "attack")[:count])
