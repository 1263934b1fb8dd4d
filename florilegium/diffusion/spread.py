"""Synthesis as Ray tasks: on several GPUs of a machine, or on several machines (`runtime.workers`).

A task draws one whole batch, the one that a single process would draw. An image depends on its prompt, its seed and the
weights, so the images are those of a single process, whichever worker draws them. Ray gives the task of a worker that
is lost to another one. Fine-tuning stays in the server's process; the tasks get the averaged weights.
Axes: N samples.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florilegium.config.diffusion import DiffusionSettings
from florilegium.config.instances import from_text, to_text
from florilegium.config.run import WorkerSettings
from florilegium.diffusion.generator import Generator, Progress
from florilegium.diffusion.inserted import FIXED
from florilegium.diffusion.load import load

PACKAGE = Path(__file__).resolve().parents[2]
Share = tuple[list[str], list[int], Tensor | None]  # prompts, seeds and first noise of one batch
State = tuple[dict[str, Tensor], dict[str, Any]]


class Spread:
    """A generator that has its images drawn by workers; all else it does itself."""

    def __init__(self, generator: Generator, settings: DiffusionSettings, model: str, workers: WorkerSettings) -> None:
        self._generator, self._batch, self._workers = generator, settings.batch, workers
        self._task = (to_text(settings), model, uuid.uuid4().hex, torch.get_num_threads())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def synthesize(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        progress: Progress | None = None,
        latents: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """As the generator's, bit for bit; images of another `size` are drawn here.

        RuntimeError where a share is lost again and again.
        """
        shares = shares_of(prompts, seeds, latents, self._batch)
        # nothing to share, nothing that can be drawn, or a size that workers do not know
        if len(shares) < 2 or len(prompts) != len(seeds) or size is not None:
            return self._generator.synthesize(prompts, seeds, guidance, progress, latents, size)
        images: list[Tensor] = [torch.empty(0)] * len(shares)
        done = 0
        draw = opened(self._workers)
        for n, drawn in draw(self._task, averaged(self._generator.state()), shares, guidance):
            images[n] = drawn
            done += len(drawn)
            if progress:
                progress(done, len(prompts))
        return torch.cat(images)


def shares_of(prompts: Sequence[str], seeds: Sequence[int], latents: Tensor | None, batch: int) -> list[Share]:
    """The batches that a single process would draw, in order."""
    parts = [slice(start, start + batch) for start in range(0, len(prompts), batch)]
    return [(list(prompts[p]), list(seeds[p]), None if latents is None else latents[p]) for p in parts]


def averaged(state: State) -> State:
    """A generator's state without what only further training needs: the average, and what is fixed, synthesize."""
    tensors, meta = state
    averages = {name: value for name, value in tensors.items() if name.endswith("/average")}
    weights = {f"{name.removesuffix('/average')}/weight": value for name, value in averages.items()}
    return averages | weights | {name: value for name, value in tensors.items() if name.endswith(FIXED)}, meta


def opened(settings: WorkerSettings) -> Callable[..., Any]:
    """(task, state, shares, guidance) -> (share's number, uint8 [N, 3, H, W]) of each share, as they come."""
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ValueError("runtime.workers.count needs Ray: install flwr[simulation]") from error
    if not ray.is_initialized():
        ray.init(settings.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    place = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    remote: Any = ray.remote  # its types know no options that are given as names
    task = remote(
        num_cpus=settings.cpus,
        num_gpus=settings.gpus,
        resources={settings.resource: 1} if settings.resource else None,
        scheduling_strategy=settings.strategy,
        max_retries=settings.retries,  # of a task whose worker was lost
        runtime_env={"env_vars": {"PYTHONPATH": place}},
    )(drawn_by_worker)

    def draw(given: tuple, state: State, shares: Sequence[Share], guidance: float | None) -> Any:
        kept, left = ray.put(state), list(enumerate(shares))
        waiting: dict[Any, int] = {}
        while waiting or left:
            while left and len(waiting) < settings.count:
                n, share = left.pop(0)
                waiting[task.remote(given, kept, share, guidance)] = n
            (ready, *_), _ = ray.wait(list(waiting))
            try:
                yield waiting.pop(ready), torch.from_numpy(ray.get(ready).copy())
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                why = f"{type(error).__name__}, after {settings.retries} more tries"
                raise RuntimeError(f"runtime.workers: a share of the images could not be drawn: {why}") from error

    return draw


# -- in a worker -------------------------------------------------------------------------------------------------------


def drawn_by_worker(given: tuple[str, str, str, int], state: State, share: Share, guidance: float | None) -> Any:
    """NumPy uint8 [N, 3, H, W] of a share, by the worker's own copy of the generator."""
    settings, model, owner, threads = given
    torch.set_num_threads(threads)  # sums of another number of threads may differ in their last bit
    tensors, meta = state
    generator = _tuned(settings, model, owner)
    if generator.tuner.step != int(meta["step"]):
        generator.restore({name: value.clone() for name, value in tensors.items()}, meta)
    prompts, seeds, latents = share
    return generator.synthesize(prompts, seeds, guidance, latents=latents).numpy()


@lru_cache(maxsize=1)
def _tuned(settings: str, model: str, owner: str) -> Any:
    """The generator of this worker; `owner` tells apart generators that are tuned in different ways."""
    return load(from_text(DiffusionSettings, settings, "diffusion"), model)
