"""Tuning by several processes, each on a GPU of its own (`runtime.workers.tuning`), through accelerate.

Each process holds the decoder and computes its rows of each batch; accelerate averages the gradients. Rows, times and
noise are those of one process, so the weights are equal but for the order of float sums. Only the dropout of a decoder
that has it (GLIDE) draws other masks. torchrun starts the processes anew in each round, with the state of the server's
tuner, and ends them all when one is lost. State and samples go through files in the directory of temporary files.
Axes: B rows of a batch.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from florilegium.config.diffusion import DiffusionSettings, TuneSettings
from florilegium.config.errors import SettingsError
from florilegium.config.instances import from_text, to_text
from florilegium.diffusion.generator import Progress, device_of, enough_memory, ways_of
from florilegium.diffusion.load import load
from florilegium.diffusion.networks import Texts
from florilegium.diffusion.tuning import Share, TuneData, Tuner

PACKAGE = Path(__file__).resolve().parents[2]
TASK, DATA, BEFORE, AFTER, FIGURES = "task.json", "data.safetensors", "before.safetensors", "after.safetensors", "told"
PROGRESS = re.compile(r"^step (\d+) of (\d+)$")
TOLD: dict[str, type[Exception]] = {each.__name__: each for each in (FloatingPointError, MemoryError, ValueError)}
logger = logging.getLogger(__name__)


class LostProcess(RuntimeError):
    """A process ended before its work was done; the message is one line."""


class TuningProcesses:
    """Runs the steps of a tuner by `count` processes. Called with the arguments of `Tuner.fit`."""

    def __init__(self, settings: DiffusionSettings, model: str, count: int) -> None:
        check_devices(settings.device, count)
        self.settings, self.model, self.count = settings, model, count

    def __call__(
        self,
        tuner: Tuner,
        data: TuneData,
        settings: TuneSettings,
        rounds: tuple[int, int],
        seed: int,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """As `Tuner.fit`, with its errors. Where a process is lost, this process takes the same steps alone."""
        tuner.prepare_for(data, settings, seed)
        tensors, meta = tuner.state()
        task = {
            "diffusion": to_text(self.settings),
            "model": self.model,
            "tuning": to_text(settings),
            "rounds": rounds,
            "seed": seed,
            "meta": meta,
        }
        with tempfile.TemporaryDirectory(prefix="florilegium-tuning-") as place:
            folder = Path(place)
            (folder / TASK).write_text(json.dumps(task))
            save_file(as_tensors(data), folder / DATA)
            save_file({name: value.contiguous() for name, value in tensors.items()}, folder / BEFORE)
            try:
                with tuner.set_aside():
                    self._run(folder, progress)
            except LostProcess as error:
                logger.warning(f"{error}; the server's own process tunes in this round")
                return tuner.fit(data, settings, rounds, seed, progress)
            told = json.loads((folder / FIGURES).read_text())
            tuner.restore(load_file(folder / AFTER), told["meta"])
        return told["figures"]

    def _run(self, folder: Path, progress: Progress | None) -> None:
        """Start the processes and wait. Raises what one of them raised, or LostProcess."""
        threads = max(1, torch.get_num_threads() // self.count)
        place = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": place, "OMP_NUM_THREADS": str(threads)}
        with (folder / "log").open("w+") as log, started(self.count, folder, environment, log) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if progress and (found := PROGRESS.match(line)):
                    progress(int(found[1]), int(found[2]))
            code = process.wait()
        for path in sorted(folder.glob("error-*")):
            kind, message = json.loads(path.read_text())
            raise TOLD[kind](message)
        if code or not (folder / FIGURES).exists():
            raise LostProcess(f"runtime.workers.tuning: a process was lost ({why((folder / 'log').read_text())})")


def check_devices(device: str, count: int) -> None:
    """SettingsError unless each of `count` processes can have a device of this name for itself."""
    kind = device_of(device)
    if kind not in ("cpu", "cuda"):
        raise SettingsError(f"runtime.workers.tuning needs diffusion.device=cuda or cpu, not {device}")
    if kind == "cuda" and torch.cuda.device_count() < count:
        raise SettingsError(f"runtime.workers.tuning is {count}, but this machine has {torch.cuda.device_count()} GPUs")


@contextmanager
def started(count: int, folder: Path, environment: dict[str, str], log: Any) -> Iterator[subprocess.Popen]:
    """torchrun with `count` processes of this module; it is ended when the block is left."""
    # of this machine alone, on a free port
    where = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--nproc-per-node={count}"]
    command = [sys.executable, "-m", "torch.distributed.run", *where, "-m", __name__, str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def why(log: str) -> str:
    """What torchrun says of the process that failed first, else the last line of the log."""
    if found := re.search(r"exitcode\s*:\s*(-?\d+)[^\n]*", log):
        errors = re.findall(r"^(?:\[rank\d+\]: )?(\w*(?:Error|Exception)\b.*)$", log, re.MULTILINE)
        return "; ".join([f"exit code {found[1]}", *errors[:1]])
    return (log.strip().splitlines() or ["it said nothing"])[-1]


def as_tensors(data: TuneData) -> dict[str, Tensor]:
    """The samples as named tensors; `of_tensors` undoes it."""
    texts = {f"texts_U.{f.name}": getattr(data.texts_U, f.name) for f in fields(Texts)}
    others = {f.name: getattr(data, f.name) for f in fields(TuneData) if f.name != "texts_U"}
    return {name: value.cpu().contiguous() for name, value in (texts | others).items() if value is not None}


def of_tensors(tensors: dict[str, Tensor], device: torch.device) -> TuneData:
    """The samples of `as_tensors`, latents and texts on the device."""
    texts = Texts(**{f.name: tensors.get(f"texts_U.{f.name}") for f in fields(Texts)})  # type: ignore[arg-type]
    given: dict[str, Any] = {f.name: tensors.get(f.name) for f in fields(TuneData)}
    return TuneData(**given | {"latents_N": given["latents_N"].to(device), "texts_U": texts.to(device)})


# -- in a process ------------------------------------------------------------------------------------------------------


class Part(Share):
    """The rows of a batch that one of several processes computes."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank, self.processes = int(accelerator.process_index), int(accelerator.num_processes)

    def prepared(self, module: nn.Module) -> nn.Module:
        """The module, whose gradients are averaged over the processes."""
        return self.accelerator.prepare(module)

    def rows(self, count: int) -> tuple[slice, float]:
        """Rows [rank * B / P, (rank + 1) * B / P) of P processes.

        The weight makes the mean over processes the mean over all rows. A process without rows computes one that
        weighs nothing, because all processes must take part in the average.
        """
        first, end = (count * n // self.processes for n in (self.rank, self.rank + 1))
        if first == end:
            return slice(0, 1), 0.0
        return slice(first, end), (end - first) * self.processes / count

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def whole(self, loss: Tensor) -> float:
        """The mean over the processes: all learn of a loss that is not finite, and stop together."""
        return float(self.accelerator.reduce(loss.detach(), reduction="mean"))


def tune(folder: Path) -> None:
    """This process's share of a task; the first process writes the new state and the figures."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    task = json.loads((folder / TASK).read_text())
    given = from_text(DiffusionSettings, task["diffusion"], "diffusion")
    settings = from_text(TuneSettings, task["tuning"], "tuning")
    # a step in which no row shows its representation leaves the projection without a gradient
    options = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(cpu=device_of(given.device) == "cpu", kwargs_handlers=[options])
    try:
        with enough_memory(ways_of(settings)):
            # the autoencoder and the text encoders are freed at once: what they say of the samples is in the data
            tuner = load(replace(given, device=str(accelerator.device)), task["model"]).tuner
            tuner.restore(load_file(folder / BEFORE), task["meta"])
            tuner.share = Part(accelerator)
            data = of_tensors(load_file(folder / DATA), accelerator.device)
            heard = said if accelerator.is_main_process else None
            figures = tuner.fit(data, settings, tuple(task["rounds"]), task["seed"], heard)
    except tuple(TOLD.values()) as error:
        (folder / f"error-{accelerator.process_index}").write_text(json.dumps([kind_of(error), str(error)]))
        sys.exit(1)
    if accelerator.is_main_process:
        tensors, meta = tuner.state()
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / AFTER)
        (folder / FIGURES).write_text(json.dumps({"figures": figures, "meta": meta}))
    accelerator.end_training()


def kind_of(error: Exception) -> str:
    """The name in TOLD of an error's class."""
    return next(name for name, kind in TOLD.items() if isinstance(error, kind))


def said(done: int, total: int) -> None:
    print(f"step {done} of {total}", flush=True)


if __name__ == "__main__":
    tune(Path(sys.argv[1]))
