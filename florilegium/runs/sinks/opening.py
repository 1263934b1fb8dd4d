"""Where a run's records go beside its directory: Prometheus, TensorBoard, MLflow. Optional extra `operations`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from florilegium.config.bounds import between
from florilegium.runs.observers import Observer

LOG = logging.getLogger("flwr")
SINKS = {
    "prometheus": "florilegium.runs.sinks.prometheus:Prometheus",
    "tensorboard": "florilegium.runs.sinks.board:TensorBoard",
    "mlflow": "florilegium.runs.sinks.tracking:MLflow",
}


@dataclass
class PrometheusSettings:
    enabled: bool = False
    host: str = "127.0.0.1"  # the address that /metrics and /healthz listen on
    port: int = 9464
    stalled: float | None = 3600.0  # seconds without progress after which /healthz answers 503; null: never

    def __post_init__(self) -> None:
        between("port", self.port, 0, 65535)
        if self.stalled is not None:
            between("stalled", self.stalled, 1, 30 * 24 * 3600)


@dataclass
class TensorBoardSettings:
    enabled: bool = False
    directory: str | None = None  # null: tensorboard/ in the run directory


@dataclass
class MLflowSettings:
    enabled: bool = False
    uri: str | None = None  # null: mlflow.db in the run directory
    experiment: str = "florilegium"


@dataclass
class SinkSettings:
    """conf/sinks."""

    prometheus: PrometheusSettings = field(default_factory=PrometheusSettings)
    tensorboard: TensorBoardSettings = field(default_factory=TensorBoardSettings)
    mlflow: MLflowSettings = field(default_factory=MLflowSettings)


def open_sinks(given: SinkSettings, out: Path, settings: dict[str, Any]) -> list[Observer]:
    """The sinks that are enabled. One that cannot start says so and is left out."""
    opened = []
    for name, place in SINKS.items():
        if not getattr(given, name).enabled:
            continue
        module, _, cls = place.partition(":")
        try:
            make: Callable[..., Observer] = getattr(import_module(module), cls)
            opened.append(make(getattr(given, name), out, settings))
        except ImportError as error:
            LOG.warning("the sink %s is left out: %s (pip install 'florilegium[operations]')", name, error)
        except Exception as error:  # a port in use, an address that does not answer: a sink is a courtesy
            LOG.warning("the sink %s is left out: %s: %s", name, type(error).__name__, str(error).splitlines()[0][:200])
    return opened
