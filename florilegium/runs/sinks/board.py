"""TensorBoard: scalars of every round and the grids of generated images, one folder an arm."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from florilegium.runs.observers import Observer
from florilegium.runs.reader import finite


class TensorBoard(Observer):
    """Writes event files below `directory`, or tensorboard/ in the run directory."""

    def __init__(self, given: Any, out: Path, settings: dict[str, Any]) -> None:
        self.place = Path(given.directory or out / "tensorboard").expanduser()
        self.place.mkdir(parents=True, exist_ok=True)
        self.writers: dict[str, SummaryWriter] = {}

    def writer(self, arm: str) -> SummaryWriter:
        if arm not in self.writers:
            self.writers[arm] = SummaryWriter(str(self.place / arm))
        return self.writers[arm]

    def record(self, arm: str, round: int, seconds: float, metrics: dict[str, float]) -> None:
        writer = self.writer(arm)
        for name, value in {**finite(metrics), "seconds": seconds}.items():
            writer.add_scalar(name, value, round)
        writer.flush()

    def grid(self, arm: str, round: int, picture: bytes) -> None:
        with Image.open(io.BytesIO(picture)) as sheet:
            pixels_HW3 = np.asarray(sheet.convert("RGB"))
        self.writer(arm).add_image("t2i/samples", pixels_HW3, round, dataformats="HWC")

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
