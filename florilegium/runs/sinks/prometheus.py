"""/metrics for Prometheus and /healthz for whoever watches over the server, on one port."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app

from florilegium.runs.observers import Observer
from florilegium.runs.reader import finite


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Silent(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """A scrape every few seconds is no news."""


class Prometheus(Observer):
    """Gauges of the last round's metrics, counters of rounds, messages, bytes and faults."""

    def __init__(self, given: Any, out: Path, settings: dict[str, Any]) -> None:
        self.stalled, self.heard = given.stalled, time.monotonic()
        self.at: dict[str, Any] = {"arm": "", "round": 0, "rounds": settings.get("rounds") or 0, "phase": "starting"}
        self.registry = registry = CollectorRegistry()
        self.metric = Gauge(
            "florilegium_metric", "A metric of an arm's last finished round", ["arm", "name"], registry=registry
        )
        self.round = Gauge("florilegium_round", "The last finished round of an arm", ["arm"], registry=registry)
        self.planned = Gauge("florilegium_rounds_planned", "Rounds that an arm shall have", registry=registry)
        self.planned.set(self.at["rounds"])
        self.rounds = Counter("florilegium_rounds", "Rounds finished by this process", ["arm"], registry=registry)
        self.seconds = Gauge(
            "florilegium_round_seconds", "Length of the last round, without evaluation", ["arm"], registry=registry
        )
        self.messages = Counter("florilegium_messages", "Messages to clients", ["arm", "phase"], registry=registry)
        self.bytes = Counter(
            "florilegium_bytes", "Bytes of message contents", ["arm", "phase", "way"], registry=registry
        )
        self.faults = Counter(
            "florilegium_faults", "Replies that were refused or did not come", ["arm", "phase"], registry=registry
        )
        self.late = Counter(
            "florilegium_late_replies",
            "Replies that came after their exchange ended",
            ["arm", "phase"],
            registry=registry,
        )
        self.since = Gauge(
            "florilegium_seconds_since_progress", "Seconds since the run was last heard of", registry=registry
        )
        self.since.set_function(lambda: time.monotonic() - self.heard)
        self.metrics = make_wsgi_app(registry)
        self.server = make_server(given.host, given.port, self.answer, Server, Silent)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, name="prometheus", daemon=True).start()

    def answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """One request: /metrics, /healthz, or 404."""
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return self.metrics(environ, start)
        if path != "/healthz":
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics and /healthz are here\n"]
        seconds = time.monotonic() - self.heard
        well = self.stalled is None or seconds <= self.stalled
        start("200 OK" if well else "503 Service Unavailable", [("Content-Type", "application/json")])
        told = {"status": "running" if well else "stalled", **self.at, "seconds_since_progress": round(seconds, 1)}
        return [json.dumps(told).encode() + b"\n"]

    def progress(self, at: dict[str, Any]) -> None:
        self.at, self.heard = at, time.monotonic()

    def record(self, arm: str, round: int, seconds: float, metrics: dict[str, float]) -> None:
        self.heard = time.monotonic()
        for name, value in finite(metrics).items():
            self.metric.labels(arm, name).set(value)
        self.round.labels(arm).set(round)
        self.seconds.labels(arm).set(seconds)
        self.rounds.labels(arm).inc()

    def ledger(self, entries: list[dict[str, Any]]) -> None:
        for e in entries:
            arm, phase = e["arm"], e["phase"]
            for way in ("down", "up"):
                self.bytes.labels(arm, phase, way).inc(e[way])
            if e.get("late"):
                self.late.labels(arm, phase).inc()
                continue
            self.messages.labels(arm, phase).inc()
            self.faults.labels(arm, phase).inc(e["fault"] is not None)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
