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
    """Writes the messages of Flower's logger, which server apps use, until `close`."""

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
        """Add arm, round and phase to a message that does not give them itself."""
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
        """A log that cannot be written gives one warning and stops; the run continues."""
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
    """Tells the log the current arm, round and phase, and logs every finished round.

    It works without a thread of its own.
    """

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
