"""log.jsonl in the run directory: what the server logs, one JSON object a line, with arm, round, phase and client."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from florilegium.runs.observers import Observer

LEVELS = ("debug", "info", "warning", "error")
LOGGERS = ("flwr", "florilegium")
FIELDS = ("run", "arm", "round", "phase")


class JsonLog(logging.FileHandler):
    """Listens to Flower's logger, by which a server app is heard, until `close`."""

    def __init__(self, out: Path, level: str = "info") -> None:
        super().__init__(whole(out / "log.jsonl"), encoding="utf-8", delay=True)
        self.at: dict[str, Any] = {"run": out.name, "arm": None, "round": None, "phase": None}
        self.setLevel(level.upper())
        self.setFormatter(
            JsonFormatter("%(levelname)s %(message)s", timestamp=True, rename_fields={"levelname": "level"})
        )
        self.addFilter(self._placed)
        for logger in map(logging.getLogger, LOGGERS):
            logger.setLevel(min(logger.getEffectiveLevel(), self.level))
            logger.addHandler(self)

    def _placed(self, record: logging.LogRecord) -> bool:
        """Say where the run was; what the one who logs says himself stands."""
        for name in FIELDS:
            if not hasattr(record, name):
                setattr(record, name, self.at.get(name))
        if not hasattr(record, "client"):
            record.client = None
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the file is opened with the first line
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A log is a courtesy: one that cannot be written is left out, and says so once."""
        why = sys.exc_info()[1]
        self.detach()
        logging.getLogger("flwr").warning("%s is left out from here on: %s", self.baseFilename, why)

    def detach(self) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def close(self) -> None:
        self.detach()
        super().close()


def whole(path: Path) -> Path:
    """`path`, without the torn last line that a killed writer may have left."""
    if path.exists() and not (held := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, held.rfind(b"\n") + 1)
    return path


class LoggedRounds(Observer):
    """Keeps the log's place up to date and logs every finished round. It works at once, in no thread of its own."""

    def __init__(self, log: JsonLog) -> None:
        self.log = log

    def progress(self, at: dict[str, Any]) -> None:
        self.log.at |= {name: at.get(name) for name in FIELDS if name in at}

    def record(self, arm: str, round: int, seconds: float, metrics: dict[str, float]) -> None:
        line = logging.makeLogRecord(
            {
                "name": "florilegium",
                "levelno": logging.INFO,
                "levelname": "INFO",
                "msg": "round finished",
                "arm": arm,
                "round": round,
                "phase": "record",
                "seconds": seconds,
                "metrics": metrics,
            }
        )
        if logging.INFO >= self.log.level:
            self.log.handle(line)

    def close(self) -> None:
        self.log.close()
