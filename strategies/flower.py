"""Any built-in strategy of Flower as one of ours: FedAdam, FedYogi, Krum, FedMedian, ... and the DP wrappers.

Down and up: weights. Client side: client_app/methods/flower.py. Our federation chooses the cohort, checks the uploads
and counts the bytes; the built-in strategy does the arithmetic in its own configure_train and aggregate_train.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as builtin
from torch import Tensor

from florilegium import seeds
from florilegium.config.bounds import one_of
from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation, FederationError, Reply
from florilegium.learning.averaging import learned, weighted_mean
from florilegium.methods.guidance.settings import GuidanceSettings
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import figures, shared_start, shares, trained

WRAPPERS = tuple(name for name in builtin.__all__ if name.startswith("DifferentialPrivacy"))
ELSEWHERE = ("FedProx", "FedXgbBagging", "FedXgbCyclic", "Result", "Strategy")  # method=fedprox; trees; no strategies
STRATEGIES = tuple(name for name in builtin.__all__ if name not in (*WRAPPERS, *ELSEWHERE))
STEPPING = ("FedAdagrad", "FedAdam", "FedAvgM", "FedYogi", "QFedAvg")  # their steps could make a variance negative
OURS = (
    "fraction_train",
    "fraction_evaluate",
    "min_train_nodes",
    "min_evaluate_nodes",
    "min_available_nodes",
    "weighted_by_key",
    "arrayrecord_key",
    "configrecord_key",
    "train_loss_key",
    "train_metrics_aggr_fn",
    "evaluate_metrics_aggr_fn",
)  # the cohort and the messages are our federation's
LEAST_VARIANCE = 1e-5


@section
class FlowerSettings:
    """Which built-in strategy of Flower runs, and with which keywords."""

    strategy: str = setting(
        "FedAdam",
        f"class of flwr.serverapp.strategy that aggregates: {' | '.join(STRATEGIES)}; FedProx is method=fedprox",
    )
    options: dict[str, Any] = setting(
        help="keywords of the strategy, e.g. {num_malicious_nodes: 1}; the cohort, the keys of records and the metrics "
        "are set by Florilegium",
        factory=dict,
    )
    wrapper: str | None = setting(
        None, "Flower's differential-privacy wrapper around the strategy; null: none", choices=(None, *WRAPPERS)
    )
    wrapper_options: dict[str, Any] = setting(
        help="keywords of the wrapper, e.g. {noise_multiplier: 0.1, clipping_norm: 5.0}; num_sampled_clients is the "
        "size of the cohort",
        factory=dict,
    )
    statistics: str | None = setting(
        None,
        "who averages the statistics of batch norm: mean (the weighted mean) | strategy | null: the mean if the "
        "strategy takes steps like an optimizer, else the strategy",
        choices=(None, "mean", "strategy"),
    )
    secret_noise: bool = setting(
        False,
        "true: the noise of the privacy wrapper comes from the operating system, so it is private but no run repeats "
        "another | false: it comes from the seed",
    )
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model, the same as the clients have (conf/guidance)",
        factory=GuidanceSettings,
    )

    def __post_init__(self) -> None:
        if self.strategy == "FedProx":  # before the choices, which would not say where it is
            raise ValueError("strategy FedProx leaves its term to the clients: take method=fedprox")
        one_of("strategy", self.strategy, STRATEGIES)
        if self.wrapper_options and not self.wrapper:
            raise ValueError("wrapper_options need a wrapper")
        build(self, 10_000)  # what it takes is known before the first round


def build(s: FlowerSettings, cohort: int) -> builtin.Strategy:
    """The strategy over a whole cohort, in its wrapper. ValueError for a keyword or a value it does not take."""
    kind = getattr(builtin, s.strategy)
    inner = _call(kind, "options", s.options, fraction_train=1.0, min_train_nodes=1, min_available_nodes=1)
    if not s.wrapper:
        return inner
    given = {"num_sampled_clients": cohort} | s.wrapper_options
    return _call(getattr(builtin, s.wrapper), "wrapper_options", given, strategy=inner)


def _call(kind: type, where: str, options: dict[str, Any], **ours: Any) -> builtin.Strategy:
    known = inspect.signature(kind).parameters
    for key in options:
        if key not in known or key in OURS or key in ours:
            there = ", ".join(k for k in known if k not in (*OURS, *ours))
            raise ValueError(f"{where}.{key} is not for {kind.__name__}; there are {there or 'none'}")
    try:
        return kind(**ours, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} of {kind.__name__}: {' '.join(str(error).split())}") from error


class CohortGrid:
    """The grid that a built-in strategy gets: only the nodes of this round's cohort."""

    def __init__(self, federation: Federation) -> None:
        self.nodes = [client.node for client in federation.cohort]

    def get_node_ids(self) -> list[int]:
        return self.nodes


class Flower(Rounds):
    """One round: the strategy says what to send, the cohort trains, the strategy aggregates what came back."""

    Settings = FlowerSettings

    def __init__(self, settings: FlowerSettings, resources: Any = None) -> None:
        super().__init__(settings, resources)
        self.strategy: builtin.Strategy | None = None
        self.saved: tuple[dict[str, Tensor], dict[str, Any]] = {}, {}

    def begin(self, federation: Federation) -> dict[str, float]:
        self.weights = shared_start(federation, "flower")
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        if self.strategy is None:
            self.strategy = build(self.settings, len(federation.cohort))
            put_moments(self.strategy, *self.saved)
        with seeds.scoped(federation.seed, "flower", r):  # Flower samples nodes and draws noise from global state
            if self.settings.secret_noise:
                np.random.seed(None)
            grid = cast(Grid, CohortGrid(federation))  # a strategy asks it for nodes and for nothing else
            questions = list(self.strategy.configure_train(r, self.theirs(), ConfigRecord(), grid))
            replies = trained(federation, self.weights, metrics=configured_figures(questions), late=False)
            aggregated, _ = self.strategy.aggregate_train(r, self.as_flower(questions, replies))
        if aggregated is None:
            raise FederationError(f"{self.settings.strategy} made nothing of {len(replies)} replies")
        uniform = "uniform" if self.settings.wrapper else "examples"
        mean = weighted_mean([x.body.tensors for x in replies], shares(replies, uniform))
        self.weights = {name: self.taken(name, aggregated, value) for name, value in mean.items()}
        return figures(replies)

    def delegated(self, name: str, value: Tensor) -> bool:
        """Whether a tensor is the strategy's to aggregate; counters never are."""
        statistics = self.settings.statistics or ("mean" if self.settings.strategy in STEPPING else "strategy")
        return learned(name, value) or (value.is_floating_point() and statistics == "strategy")

    def theirs(self, tensors: dict[str, Tensor] | None = None) -> ArrayRecord:
        """The tensors that the strategy sees."""
        state = self.weights if tensors is None else {name: tensors[name] for name in self.weights}
        return ArrayRecord({name: Array(v.numpy().copy()) for name, v in state.items() if self.delegated(name, v)})

    def as_flower(self, questions: list[Message], replies: list[Reply]) -> list[Message]:
        """Our replies as Flower's: one ArrayRecord, one MetricRecord with num-examples. DP counts clients alike."""
        asked, out = {m.metadata.dst_node_id: m for m in questions}, []
        for x in replies:
            examples = 1 if self.settings.wrapper else x.body.examples
            metrics = MetricRecord({"num-examples": examples, "train_loss": x.body.metrics.get("task", 0.0)})
            if "norm_bit" in x.body.metrics:
                metrics["norm_bit"] = int(x.body.metrics["norm_bit"])
            question = asked[x.client.node]
            question.metadata.__dict__["_message_id"] = f"{x.client.node}"  # the grid never saw it
            out.append(
                Message(RecordDict({"arrays": self.theirs(x.body.tensors), "metrics": metrics}), reply_to=question)
            )
        return out

    @staticmethod
    def taken(name: str, aggregated: ArrayRecord, mean: Tensor) -> Tensor:
        """The strategy's value of a tensor in our type, or the mean where it had none; a variance stays positive."""
        value = (
            torch.from_numpy(np.array(aggregated[name].numpy())).to(mean.dtype).reshape(mean.shape)
            if name in aggregated
            else mean
        )
        return value.clamp_min(LEAST_VARIANCE) if name.endswith("running_var") else value

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = self.saved if self.strategy is None else moments(self.strategy)
        return {f"weights/{name}": v for name, v in self.weights.items()} | tensors, meta

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.weights = {n.removeprefix("weights/"): v for n, v in tensors.items() if n.startswith("weights/")}
        self.saved = {n: v for n, v in tensors.items() if not n.startswith("weights/")}, meta


def configured_figures(questions: list[Message]) -> dict[str, float]:
    """The numbers that a strategy configures for clients (clipping_norm)."""
    config = next(iter(questions[0].content.config_records.values())) if questions else {}
    return {key: float(v) for key, v in config.items() if isinstance(v, float)}


def layers(strategy: Any) -> Iterator[tuple[int, Any]]:
    """A wrapper, then what it wraps."""
    depth = 0
    while strategy is not None:
        yield depth, strategy
        strategy, depth = getattr(strategy, "strategy", None), depth + 1


def moments(strategy: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and JSON-able values: numbers, and the form in which arrays were held."""
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {}
    for depth, layer in layers(strategy):
        for name, value in vars(layer).items():
            place = f"{depth}/{name}"
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                meta[place] = value
            elif type(value) in (dict, list) and value:
                held = dict(enumerate(value)) if isinstance(value, list) else value
                meta[place] = type(value).__name__
                tensors |= {f"{place}/{k}": torch.from_numpy(np.array(v)) for k, v in held.items()}
    return tensors, meta


def put_moments(strategy: Any, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Set what `moments` returned."""
    for depth, layer in layers(strategy):
        for name in list(vars(layer)):
            place = f"{depth}/{name}"
            form = meta.get(place)
            if isinstance(form, (int, float)):
                setattr(layer, name, form)
            elif form is not None:
                held = {k.removeprefix(f"{place}/"): v.numpy() for k, v in tensors.items() if k.startswith(f"{place}/")}
                setattr(layer, name, [held[str(i)] for i in range(len(held))] if form == "list" else held)
