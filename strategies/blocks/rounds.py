"""Rounds: a Flower Strategy whose `start()` is the loop of rounds, with resume, evaluation and records.

A method overrides `round()` and reads top to bottom like its paper. Flower's four callbacks describe one exchange of
weights a round. A method whose round is just that can be driven by Flower's own loop as well; for the others the
callbacks raise an error that says so.
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
    one_exchange : whether a round is one exchange of weights and their plain mean, which Flower's own loop can drive.
    alone : how the method goes on in a round that only one modality answered, for the log.
    """

    asks_clients = True
    generator: Any = None
    server_model: Any = None
    one_exchange = False
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
        """One round of the method; returns flat metrics."""
        raise NotImplementedError(f"{type(self).__name__} has no round()")

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
            if r == 0 and self.guided:
                self.weights = self.guided.started(self.weights, federation)
            metrics |= federation.metrics(r, self.alone)
            if self.guided:
                self.guided.forget(federation)
            seconds = time.monotonic() - started
            judged = journal.evaluate(self, r, r == num_rounds, federation)
            metrics |= federation.faults(r)  # again: those of the evaluation are of this round too
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

    # -- Flower's callbacks, for Flower's own loop: without our ledger, quorum and defences ------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The `train` phase with the weights `arrays`, to every node. NotImplementedError: see `one_exchange`."""
        self._check_one_exchange()
        down = Weights(dict(arrays.to_torch_state_dict()))
        return messages_to_all(grid, "train", down, Header("method", server_round, 1))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The weighted mean of the replies' weights; error replies are left out. WireError for a broken one."""
        self._check_one_exchange()
        bodies = bodies_of(replies, Weights)
        if not bodies:
            return None, None
        sizes = [float(body.examples) if self.settings.weighting == "examples" else 1.0 for body in bodies]
        mean = weighted_mean([body.tensors for body in bodies], [size / sum(sizes) for size in sizes])
        return ArrayRecord(mean), MetricRecord({"replies": len(bodies)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The `evaluate` phase with the weights `arrays`, to every node. NotImplementedError: see `one_exchange`."""
        self._check_one_exchange()
        down = Weights(model_part(dict(arrays.to_torch_state_dict())))
        return messages_to_all(grid, "evaluate", down, Header("method", server_round, 2))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The plain mean over clients of each figure; None without a good reply."""
        self._check_one_exchange()
        reports = [body.metrics for body in bodies_of(replies, Report)]
        names = sorted({name for report in reports for name in report})
        found = {name: [report[name] for report in reports if name in report] for name in names}
        return MetricRecord({name: sum(values) / len(values) for name, values in found.items()}) if found else None

    def _check_one_exchange(self) -> None:
        if not self.one_exchange or getattr(self.settings, "groups", "none") != "none" or self.guided:
            raise NotImplementedError(
                f"the rounds of {type(self).__name__} are more than one exchange of weights: call its own start(), "
                "not the one of Flower's Strategy"
            )


def messages_to_all(grid: Grid, phase: str, body: Any, header: Header) -> list[Message]:
    """One message with `body` to each node of the grid."""
    content, group = codec.pack(body, header), str(header.round)
    return [Message(content, node, phases.PHASES[phase], group_id=group) for node in sorted(grid.get_node_ids())]


def bodies_of(replies: Iterable[Message], kind: type) -> list[Any]:
    """The checked payloads of all replies but errors, in the order of the nodes. WireError."""
    good = sorted((m for m in replies if not m.has_error()), key=lambda m: m.metadata.src_node_id)
    return [codec.unpack(m.content, kind) for m in good]
