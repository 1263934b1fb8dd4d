"""Rounds: a Flower Strategy whose `start()` is the loop of rounds, with resume, evaluation and records.

A knowledge-transfer method overrides `round()` alone and reads top to bottom like its paper. A method that averages
weights overrides nothing: the default round is Flower's own pair configure_train / aggregate_train.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from logging import INFO
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from florilegium.federation.federation import Client, Federation
from florilegium.federation.joining import Joining
from florilegium.learning.averaging import model_part, weighted_mean
from florilegium.protocol import codec, phases
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Nothing, Report, Weights
from strategies.blocks.guidance import Guided
from strategies.blocks.weights import figures, trained


class Journal:
    """What surrounds an arm's rounds: evaluation, records, checkpoints. This one only evaluates the clients."""

    def resume(self, strategy: Rounds, federation: Federation) -> int | None:
        """Restore the strategy and the federation; the last finished round, or None to start from scratch."""
        return None

    def evaluate(self, strategy: Rounds, r: int, last: bool, federation: Federation) -> dict[str, float]:
        """Judge the state after round `r` by the one protocol of all methods."""
        if not strategy.asks_clients:
            return {}
        reports = federation.ask("evaluate", strategy.judged_model() or Nothing(), Report, clients=federation.clients)
        told = [x.body.metrics["accuracy"] for x in reports if "accuracy" in x.body.metrics]
        return {"client/accuracy": sum(told) / len(told)} if told else {}

    def close(
        self, strategy: Rounds, r: int, seconds: float, metrics: dict[str, float], federation: Federation
    ) -> None:
        """Record round `r` and make it the one to resume from."""


class Rounds(Strategy):
    """Common base of our strategies. Settings are typed and checked; resources are built once per run.

    Attributes
    ----------
    asks_clients : whether the method talks to clients at all.
    generator : the T2I model the method tunes, judged after each round; None when it has none.
    server_model : the DualEncoder the method trains for the server's own retrieval, judged likewise; None without one.
    alone : how the method goes on in a round that only one modality answered, for the log.
    """

    asks_clients = True
    generator: Any = None
    server_model: Any = None
    alone = ""

    def __init__(self, settings: Any, resources: Any = None) -> None:
        self.settings, self.resources = settings, resources
        self.num_rounds = 0
        given = getattr(settings, "guidance", None)
        self.guided = Guided(given, resources) if given is not None and given.name != "none" else None
        self.weights: dict[str, Tensor] = {}

    # -- what a method says -------------------------------------------------------------------------------------

    @classmethod
    def left_empty(cls, settings: Any) -> frozenset[str]:
        """Fields of payloads, as "Targets.representations", that the method sends empty with these settings."""
        return frozenset()

    def begin(self, federation: Federation) -> dict[str, float]:
        """Round 0: what must happen before the first evaluation. Default: nothing."""
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        """One round; returns flat metrics. Default: average the clients' weights (McMahan 2017, Algorithm 1)."""
        replies = trained(federation, self.weights)
        self.weights = weighted_mean([x.body.tensors for x in replies], [x.weight * x.body.examples for x in replies])
        return figures(replies)

    def judged_model(self) -> Weights | Callable[[Client], Weights] | None:
        """What clients judge: the global model where there is one, their own otherwise."""
        return Weights(model_part(self.weights)) if self.weights else None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able values from which `restore` goes on exactly."""
        return dict(self.weights), {}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.weights = dict(tensors)

    # -- the loop -----------------------------------------------------------------------------------------------

    def start(  # noqa: PLR0913  (Flower's signature)
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
        *,
        federation: Federation | None = None,
        journal: Journal | None = None,
    ) -> Result:
        """Run `num_rounds` rounds, going on after the last one the journal knows.

        Works in anybody's ServerApp as `Strategy(settings, resources).start(grid=grid, num_rounds=10)`; our driver
        passes the federation (quorum, deadlines, ledger) and the journal (records, checkpoints).
        """
        federation = federation or Federation(grid, timeout=timeout, resources=self.resources)
        if getattr(self.settings, "exchanges", "separate") == "joined":
            federation = cast(Federation, Joining(federation, num_rounds))
        journal = journal or Journal()
        self.num_rounds = num_rounds
        if initial_arrays is not None:
            self.weights = dict(initial_arrays.to_torch_state_dict())
        done = journal.resume(self, federation)
        result = Result()
        if done is not None and done >= num_rounds:
            return result
        self.summary()
        if self.asks_clients:
            federation.meet()
        for r in range(0 if done is None else done + 1, num_rounds + 1):
            started = time.monotonic()
            federation.begin(r)
            shared = self.guided.share(federation) if self.guided else {}
            metrics = shared | (self.begin(federation) if r == 0 else self.round(r, federation))
            metrics |= federation.metrics(r, self.alone)
            if self.guided:
                self.guided.forget(federation)
            seconds = time.monotonic() - started
            judged = journal.evaluate(self, r, r == num_rounds, federation)
            journal.close(self, r, seconds, metrics | judged, federation)
            result.train_metrics_clientapp[r] = MetricRecord({k: float(v) for k, v in metrics.items()})
            result.evaluate_metrics_serverapp[r] = MetricRecord({k: float(v) for k, v in judged.items()})
            if evaluate_fn is not None and (own := evaluate_fn(r, ArrayRecord(self.weights))) is not None:
                result.evaluate_metrics_serverapp[r] = own
        result.arrays = ArrayRecord(self.weights)
        return result

    def summary(self) -> None:
        """Log what is about to run."""
        log(INFO, "%s: %s", type(self).__name__, self.settings)

    # -- Flower's callbacks: one weight exchange and one evaluation, for those who drive them themselves ----------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The `train` phase with `arrays` to every node."""
        body = codec.pack(Weights(dict(arrays.to_torch_state_dict())), Header("method", server_round, 1))
        return [Message(body, node, phases.PHASES["train"], group_id=str(server_round)) for node in grid.get_node_ids()]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean of the replies' weights by examples; error replies are left out."""
        bodies = [codec.unpack(m.content, Weights) for m in replies if not m.has_error()]
        if not bodies:
            return None, None
        mean = weighted_mean([b.tensors for b in bodies], [b.examples for b in bodies])
        return ArrayRecord(mean), MetricRecord({"replies": len(bodies)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The `evaluate` phase to every node, with the global model where there is one."""
        body = codec.pack(
            Weights(dict(arrays.to_torch_state_dict())) if len(arrays) else Nothing(), Header("method", server_round, 2)
        )
        group = str(server_round)
        return [Message(body, node, phases.PHASES["evaluate"], group_id=group) for node in grid.get_node_ids()]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The plain mean over clients of each figure (the papers' client accuracy)."""
        reports = [codec.unpack(m.content, Report).metrics for m in replies if not m.has_error()]
        if not reports:
            return None
        return MetricRecord({name: sum(x[name] for x in reports) / len(reports) for name in reports[0]})
