"""MLflow: one MLflow run for each arm, gone on with when the run is resumed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from florilegium.runs import files
from florilegium.runs.observers import Observer
from florilegium.runs.reader import finite, read_json

PARAMETERS = 100  # of one call


class MLflow(Observer):
    """Logs to `uri`, or to mlflow.db in the run directory."""

    def __init__(self, given: Any, out: Path, settings: dict[str, Any]) -> None:
        self.out, self.settings, self.known = out, settings, out / "mlflow.json"
        self.uri = given.uri or f"sqlite:///{(out / 'mlflow.db').resolve()}"
        self.client = MlflowClient(self.uri)
        found = self.client.get_experiment_by_name(given.experiment)
        self.experiment = found.experiment_id if found else self.client.create_experiment(given.experiment)
        held = read_json(self.known)
        self.runs: dict[str, str] = held.get("runs", {}) if held.get("uri") == self.uri else {}

    def run(self, arm: str) -> str:
        """The id of the arm's MLflow run, begun when it is first needed."""
        if arm not in self.runs:
            run = self.client.create_run(self.experiment, tags={"arm": arm}, run_name=f"{self.out.name}-{arm}")
            self.runs[arm] = run.info.run_id
            given = [Param(key, str(value)[:500]) for key, value in flat(self.settings)]
            for at in range(0, len(given), PARAMETERS):
                self.client.log_batch(run.info.run_id, params=given[at : at + PARAMETERS])
            files.write_json(self.known, {"uri": self.uri, "runs": self.runs})
        return self.runs[arm]

    def record(self, arm: str, round: int, seconds: float, metrics: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        told = {**finite(metrics), "seconds": seconds}
        self.client.log_batch(self.run(arm), [Metric(name, value, now, round) for name, value in told.items()])

    def close(self) -> None:
        for run in self.runs.values():
            self.client.set_terminated(run)


def flat(node: Any, above: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of every setting."""
    if isinstance(node, dict):
        return [pair for key, value in node.items() for pair in flat(value, f"{above}.{key}" if above else str(key))]
    return [(above, node)]
