"""Settings of the sinks: where a run's records go beside its directory."""

from __future__ import annotations

from florilegium.config.fields import section, setting


@section
class PrometheusSettings:
    """Metrics for Prometheus, and a health check."""

    enabled: bool = setting(False, "serve /metrics and /healthz during the run")
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 in a container")
    port: int = setting(9464, "port to listen on; 0: any free one", low=0, high=65535)
    stalled: float | None = setting(
        3600.0,
        "seconds without progress after which /healthz answers 503; null: never",
        low=1,
        high=30 * 24 * 3600,
    )


@section
class TensorBoardSettings:
    """Event files for TensorBoard."""

    enabled: bool = setting(False, "write event files")
    directory: str | None = setting(None, "where to write them; null: tensorboard/ in the run directory")


@section
class MLflowSettings:
    """A run in MLflow."""

    enabled: bool = setting(False, "log the run in MLflow")
    uri: str | None = setting(None, "address of a tracking server; null: mlflow.db in the run directory")
    experiment: str = setting("florilegium", "name of the experiment in MLflow")


@section
class SinkSettings:
    """Where records go beside the run directory; each needs the extra `operations`, MLflow the extra `mlflow`.

    A sink that fails ends no run.
    """

    prometheus: PrometheusSettings = setting(factory=PrometheusSettings, help="metrics for Prometheus")
    tensorboard: TensorBoardSettings = setting(factory=TensorBoardSettings, help="event files for TensorBoard")
    mlflow: MLflowSettings = setting(factory=MLflowSettings, help="a run in MLflow")
