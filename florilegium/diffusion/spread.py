"""Synthesis and frozen features as Ray tasks: on several GPUs or several machines (`runtime.workers`).

A task does one whole batch, the one that a single process would do. An image depends on its prompt, its seed and the
weights; a feature depends on its image, its prompt and frozen weights. So both are those of a single process, whichever
worker makes them. Ray gives the task of a worker that is lost to another one. Fine-tuning stays in the server's
process; the tasks that draw get the averaged weights.
Axes: N samples, R rows (image, prompt).
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florilegium.config.diffusion import DiffusionSettings
from florilegium.config.instances import from_text, to_text
from florilegium.config.run import WorkerSettings
from florilegium.data.stored_images import StoredImages
from florilegium.diffusion.features import FeatureExtractor
from florilegium.diffusion.generator import Generator, Progress
from florilegium.diffusion.inserted import FIXED
from florilegium.diffusion.load import load
from florilegium.diffusion.projection import Projection

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
        done, known = 0, (self._task, averaged(self._generator.state()), guidance)
        for n, drawn in done_by_workers(self._workers, drawn_by_worker, known, shares, "images"):
            images[n] = torch.from_numpy(drawn.copy())
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


class SpreadExtractor(FeatureExtractor):
    """A feature extractor whose batches of images are looked at by workers, bit for bit as its base does it.

    What is fitted on few images, the projection, and what reads texts alone stay in this process.
    """

    def __init__(self, place: str, settings: DiffusionSettings, workers: WorkerSettings) -> None:
        super().__init__(place, settings)
        self._place, self._workers = place, workers

    def pairs(
        self,
        images: Tensor | StoredImages,
        ids: Tensor,
        prompts: Sequence[str],
        rows_R2: Tensor,
        projection: Projection,
        seed: int,
        progress: Progress | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """As the base. RuntimeError where a share is lost again and again."""
        self._check(images, ids, prompts, rows_R2, condition)
        size, places, shares = self.features.batch, [], []
        for first in range(0, len(images), size):
            here = ((rows_R2[:, 0] >= first) & (rows_R2[:, 0] < first + size)).nonzero().flatten()
            if len(here):
                part = slice(first, first + size)
                places.append(here)
                shares.append(
                    {
                        "images": images[part].clone(),  # a view would be sent with all that it is a view of
                        "ids": ids[part].clone(),
                        "rows_R2": rows_R2[here] - torch.tensor([first, 0]),
                        "condition": None if condition is None else condition[part].clone(),
                    }
                )
        if len(shares) < 2:
            return super().pairs(images, ids, prompts, rows_R2, projection, seed, progress, condition)
        shown = {"prompts": list(prompts), "projection": projection, "seed": seed}
        found, done = torch.zeros(len(rows_R2), self.width(projection)), 0
        for n, values in self._done("pairs", shown, shares):
            found[places[n]], done = torch.from_numpy(values.copy()), done + len(places[n])
            self.passes += len(places[n]) * self.features.ensemble
            if progress:
                progress(done, len(rows_R2))
        return found

    def levels(
        self, images: Tensor | StoredImages, ids: Tensor, timestep: int, seed: int, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """As the base. RuntimeError where a share is lost again and again."""
        parts = zip(images.split(self.features.batch), ids.split(self.features.batch), strict=True)
        shares = [{"images": part.clone(), "ids": here.clone()} for part, here in parts]
        if len(shares) < 2:
            return super().levels(images, ids, timestep, seed, progress)
        found: list[dict[str, Tensor]] = [{}] * len(shares)
        done = 0
        for n, values in self._done("levels", {"timestep": timestep, "seed": seed}, shares):
            found[n] = {name: torch.from_numpy(value.copy()) for name, value in values.items()}
            done += len(shares[n]["ids"])
            self.passes += len(shares[n]["ids"]) * self.features.ensemble
            if progress:
                progress(done, len(images))
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def _done(self, verb: str, shown: dict[str, Any], shares: list[dict[str, Any]]) -> Iterator[tuple[int, Any]]:
        model = (to_text(self.settings), self._place, self.grid, torch.get_num_threads())
        return done_by_workers(self._workers, seen_by_worker, (model, verb, shown), shares, "features")


def done_by_workers(
    settings: WorkerSettings, work: Callable[[Any, Any], Any], known: Any, shares: Sequence[Any], what: str
) -> Iterator[tuple[int, Any]]:
    """(share's number, `work(known, share)`) of each share, as they come, from Ray tasks.

    RuntimeError, which names `what` is made, where a share is lost again and again; a task's own error is raised.
    """
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
    )(work)
    kept, left = ray.put(known), list(enumerate(shares))
    waiting: dict[Any, int] = {}
    while waiting or left:
        while left and len(waiting) < settings.count:
            n, share = left.pop(0)
            waiting[task.remote(kept, share)] = n
        (ready, *_), _ = ray.wait(list(waiting))
        try:
            yield waiting.pop(ready), ray.get(ready)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            why = f"{type(error).__name__}, after {settings.retries} more tries"
            raise RuntimeError(f"runtime.workers: a share of the {what} could not be made: {why}") from error


# -- in a worker -------------------------------------------------------------------------------------------------------


def drawn_by_worker(known: tuple[tuple[str, str, str, int], State, float | None], share: Share) -> Any:
    """NumPy uint8 [N, 3, H, W] of a share, by the worker's own copy of the generator."""
    (settings, model, owner, threads), (tensors, meta), guidance = known
    torch.set_num_threads(threads)  # sums of another number of threads may differ in their last bit
    generator = _tuned(settings, model, owner)
    if generator.tuner.step != int(meta["step"]):
        generator.restore({name: value.clone() for name, value in tensors.items()}, meta)
    prompts, seeds, latents = share
    return generator.synthesize(prompts, seeds, guidance, latents=latents).numpy()


@lru_cache(maxsize=1)
def _tuned(settings: str, model: str, owner: str) -> Any:
    """The generator of this worker; `owner` tells apart generators that are tuned in different ways."""
    return load(from_text(DiffusionSettings, settings, "diffusion"), model)


def seen_by_worker(known: tuple[tuple[str, str, int | None, int], str, dict[str, Any]], share: dict[str, Any]) -> Any:
    """NumPy arrays of what `verb` of the worker's own extractor gives for a share."""
    (settings, place, grid, threads), verb, shown = known
    torch.set_num_threads(threads)
    found = getattr(_extractor(settings, place, grid), verb)(**share, **shown)
    return {name: value.numpy() for name, value in found.items()} if isinstance(found, dict) else found.numpy()


@lru_cache(maxsize=2)
def _extractor(settings: str, place: str, grid: int | None) -> FeatureExtractor:
    """The frozen model of this worker."""
    if grid is not None:
        return _extractor(settings, place, None).on_grid(grid)
    return FeatureExtractor(place, from_text(DiffusionSettings, settings, "diffusion"))
