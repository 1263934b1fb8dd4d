"""Where a run's records go beside its directory: Prometheus, TensorBoard, MLflow. Optional extra `operations`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from florilegium.config.sinks import SinkSettings
from florilegium.runs.observers import Observer

LOG = logging.getLogger("flwr")
SINKS = {
    "prometheus": "florilegium.runs.sinks.prometheus:Prometheus",
    "tensorboard": "florilegium.runs.sinks.board:TensorBoard",
    "mlflow": "florilegium.runs.sinks.tracking:MLflow",
}


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
