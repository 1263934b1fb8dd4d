"""Settings of the data: the data set, its public part, and how the rows are split over the clients."""

from __future__ import annotations

from typing import Any

from florilegium.config.fields import section, setting

MODALITIES = ("image", "text", "pair")
FLOWER_PARTITIONS = ("dirichlet", "iid", "pathological", "shard", "natural")  # partitioners of flwr-datasets
PARTITIONS = (*FLOWER_PARTITIONS, "dirichlet_grouped_balanced", "biased_unbiased", "domain")
ASSIGNMENTS = ("random", "deterministic", "first-deterministic")
SHIFTS = ("none", "rotation", "contrast")
MANY = 1_000_000


@section
class PublicSettings:
    """The public paired set: which of the data's public training rows belong to it."""

    pairs: int | None = setting(1200, "number of pairs; null: all that there are", low=2, high=100_000_000)
    seed: int | None = setting(
        None,
        "seed of the choice of pairs; null: the run's seed, so that a repetition draws others",
        low=0,
        high=2**31 - 1,
    )
    path: str | None = setting(None, "a directory of its own, e.g. of COCO; null: the public rows of the data set")
    share: float = setting(0.0, "own data: the share of the rows that everybody may have", low=0, high=0.9)


@section
class SplitSettings:
    """How own data are split where they are not: shares of the rows of each class, drawn by a seed of their own."""

    validation: float = setting(0.1, "share of the rows that runs are selected by", low=0.01, high=0.8)
    test: float = setting(0.2, "share of the rows that clients are judged on", low=0.01, high=0.8)
    seed: int = setting(0, "seed of the split; it is not the run's seed", low=0, high=2**31 - 1)


@section
class DataSettings:
    """The data set of a run."""

    name: str = setting("emoji", "an embedded data set (emoji, fashion, lexicon, toy), or a name for your own")
    path: str | None = setting(None, "directory of your own data; null: the embedded data set of this name")
    own: bool = setting(False, "the path is read as own data (docs/own-data.md), and split where it is not")
    prepared: str | None = setting(None, "where a run keeps own data that it has read; set by the launcher")
    classes: list[str] | None = setting(None, "the classes; null: those that the data name")
    split: SplitSettings = setting(factory=SplitSettings, help="how own data are split")
    text_column: str = setting("text", "own data: the column of the text")
    label_column: str = setting("label", "own data: the column of the class")
    image_column: str = setting("image", "own data: the column of the image or of its path")
    max_pixels: int = setting(1 << 26, "own data: a larger image is refused before it is decoded", low=1, high=1 << 30)
    hub: str | None = setting(
        None,
        "id of a data set on a hub, or a directory that `datasets` reads; columns: image_column, text_column, "
        "label_column, or the only ones of their kind",
    )
    hub_subset: str | None = setting(None, "configuration of the hub's data set, where it has several")
    hub_splits: dict[str, Any] = setting(
        factory=dict, help="the hub's names of train, validation and test, e.g. {test: valid}; {}: the usual names"
    )
    hub_domains: dict[str, Any] = setting(
        factory=dict, help="several data sets of the same classes as domains of one: {domain: id or id:subset}"
    )
    domain_column: str | None = setting(None, "hub: the column that names a row's domain; partition.by=style uses it")
    image_size: int = setting(32, "pixels on a side of every image", low=1, high=4096)
    workers: int = setting(
        0,
        "processes that decode images while data are opened; 0: none; rows stay the same",
        low=0,
        high=64,
    )
    prompt: str | None = setting(
        "A picture of {article} {name}.", "text from which the T2I model draws a class; null: the standard text"
    )
    judge: str | None = setting(
        None,
        "classifier that measures the T2I accuracy: asset, directory (`florilegium judge train` makes one) or hub id; "
        "null: the embedded one of the data",
    )
    public: PublicSettings = setting(factory=PublicSettings, help="the public paired set")

    def __post_init__(self) -> None:
        if self.classes is not None and not self.classes:
            raise ValueError("classes is empty: name all of them in the order of their numbers, e.g. [cat,dog]")


@section
class PartitionSettings:
    """How the rows are split over the clients (docs/partitions.md)."""

    name: str = setting("dirichlet", "the form of the split", choices=PARTITIONS)
    alpha: float = setting(
        0.5, "dirichlet, dirichlet_grouped_balanced: concentration; a small value is skewed", low=1e-3, high=1e6
    )
    self_balancing: bool = setting(
        False, "dirichlet: a client that holds the average number of rows gets no more of a class"
    )
    group: int = setting(5, "dirichlet_grouped_balanced: number of clients of one draw", low=2, high=MANY)
    biased: int | None = setting(
        None, "biased_unbiased: number of clients with few classes; null: all but the unbiased ones", low=1, high=MANY
    )
    unbiased: int = setting(1, "biased_unbiased: number of clients with all classes", low=0, high=MANY)
    classes_per_biased: int | None = setting(
        None,
        "biased_unbiased: classes of a biased client; null: a fifth of them, or as many as are needed to cover all",
        low=1,
        high=MANY,
    )
    classes_per_client: int = setting(2, "pathological: classes of a client", low=1, high=MANY)
    class_assignment: str = setting(
        "random",
        "pathological: how classes are assigned; first-deterministic gives every class to some client",
        choices=ASSIGNMENTS,
    )
    shards_per_client: int = setting(2, "shard: shards of a client", low=1, high=MANY)
    by: str = setting("style", "natural, domain: the column whose values are given to the clients")
    domains: list[str] | None = setting(
        None, "domain: the value of each client, e.g. [twemoji, twemoji, openmoji]; null: the values in turn"
    )
    imbalance: float = setting(
        1.0,
        "long tail, made before any split: rows of the rarest class divided by rows of the most frequent one",
        low=1e-4,
        high=1,
    )
    shift: str = setting("none", "domain shift of the image clients' pictures", choices=SHIFTS)
    rotation: float = setting(
        15.0, "shift=rotation: client k's pictures are turned by k times this many degrees", low=-180, high=180
    )
    contrast: float = setting(
        0.8, "shift=contrast: the contrast of client k's pictures is this to the power of k", low=0.01, high=1
    )
    judged: str = setting(
        "own",
        "with a domain shift: evaluation rows of the client's own domain (own) or the rows as they are (all)",
        choices=("own", "all"),
    )
    min_samples: int | None = setting(
        None, "rows that every client has at least; null: 10, of own data 2", low=2, high=MANY
    )
    disjoint_modalities: bool = setting(True, "image, text and pair clients see different concepts")
    image_share: float = setting(
        0.5, "share of the image clients in the concepts that pair clients leave", low=0.05, high=0.95
    )
    pair_share: float = setting(
        0.3333, "share of the pair clients in all concepts, where there are such clients", low=0.05, high=0.95
    )
