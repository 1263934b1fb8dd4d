"""What a run needs beside its settings: data, generator, captioner and judges, built when first asked for.

A name in the settings is an asset (`mini-sd`), a directory, or a hub id (`org/name`). AssetError is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch import Tensor

from florilegium import assets, hub
from florilegium.assets import AssetError, located
from florilegium.config.composition import SettingsError, first_line
from florilegium.config.settings import Settings
from florilegium.data.datasets import Classes, Splits, held_out, modality_rows, open_dataset, read_rows
from florilegium.diffusion.captions import Captioner
from florilegium.diffusion.generator import Generator, Progress, device_of
from florilegium.diffusion.load import load
from florilegium.diffusion.spread import Spread
from florilegium.diffusion.tuning_processes import TuningProcesses
from florilegium.learning.frechet import Quality, of_classifier, of_clip, of_inception
from florilegium.learning.metrics import ClipScore, Judge

LONGEST = 300  # characters of a library's own words


@contextmanager
def loading(what: str, place: str, setting: str, file: str = "config.json") -> Iterator[None]:
    """Whatever a library raises over a missing or corrupt file becomes one AssetError line that names `setting`.

    Of a hub id, the small `file` that says what it is comes first: without a network this ends in seconds.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        if hub.is_id(place):
            hub.fetched(place, file, setting)
        yield
    except (AssetError, SettingsError):
        raise
    except hub.HubError as error:
        raise AssetError(str(error)) from error
    except Exception as error:  # each format has exceptions of its own; all mean that the model cannot be read
        if hub.is_id(place) and hub.is_about_fetching(error):
            raise AssetError(hub.cannot(setting, place, error)) from error
        embedded = Path(place).is_relative_to(assets.root())
        way = "`make assets` rebuilds it" if embedded else f"it is what {setting} names"
        why = shorten(f"{type(error).__name__}: {first_line(error)}", LONGEST, placeholder=" ...")
        raise AssetError(f"{what} {place} cannot be loaded: {why} ({way})") from error


class Resources:
    """Built once per run and handed to every arm. `progress(phase=, done=, total=)` hears of long work."""

    def __init__(self, conf: Settings, progress: Callable[..., None] | None = None) -> None:
        self.conf, self.progress = conf, progress or (lambda **news: None)
        self.seed, self.width = conf.seed, conf.clients.width
        self.diffusion = conf.diffusion
        self._judge: Judge | None = None
        self._clip: ClipScore | None = None
        self._captioner: Captioner | None = None

    # -- data --------------------------------------------------------------------------------------------------------

    @cached_property
    def splits(self) -> Splits:
        """Train, validation and test rows, and the classes."""
        return open_dataset(self.conf.data)

    @property
    def classes(self) -> Classes:
        """The classes in the order of their ids: `len`, iteration over names, `prompt(c)`."""
        return self.splits.classes

    def test_images(self) -> tuple[Tensor, Tensor]:
        """uint8 [N, 3, S, S] and labels [N] of the real test rows in the clients' domain."""
        rows = held_out(self.conf.data, "test", "image")
        return rows.images, rows.labels

    def pooled_private(self) -> tuple[Tensor, Tensor, list[str]]:
        """(images uint8 [N, 3, S, S], labels [N], texts) of all clients' rows: for the upper bound alone."""
        return self._pooled

    @cached_property
    def _pooled(self) -> tuple[Tensor, Tensor, list[str]]:
        private = modality_rows(self.splits.private("train"), "image")
        place = f"{self.splits.place}/train"
        rows = read_rows(private, "image", self.conf.data.image_size, place, workers=self.conf.data.workers)
        return rows.images, rows.labels, list(private["text"][:])

    # -- models ------------------------------------------------------------------------------------------------------

    def generator(self) -> Generator:
        """The un-tuned generator. Every arm tunes a copy of its own, so each call reads it again."""
        place, settings = located(self.diffusion.model), self.diffusion
        if settings.distilled:
            settings = replace(settings, distilled=located(settings.distilled))
        with loading("the generator", place, "diffusion.model", "model_index.json"):
            generator = load(settings, place)
        workers = self.conf.runtime.workers
        if workers.tuning > 1:
            generator.steps = TuningProcesses(replace(settings, distilled=None), place, workers.tuning)
        if workers.count:
            generator = Spread(generator, settings, place, workers)
        return Narrated(generator, self.progress)

    def captioner(self) -> Callable[[Tensor], list[str]]:
        """uint8 [N, 3, H, W] -> captions."""
        if self._captioner is None:
            place = located(self.diffusion.captioner)
            with loading("the captioner", place, "diffusion.captioner"):
                self._captioner = Captioner(place, self.diffusion.captions, device_of(self.diffusion.device))
        captioner = self._captioner
        return lambda images: captioner(images, self._hear("caption"))

    @cached_property
    def why_no_judge(self) -> str:
        """Why there is no classifier of these classes, and how to get one; "" where there is one.

        AssetError when the settings name one that cannot be used.
        """
        try:
            self.judge()
        except AssetError as error:
            if self.conf.data.judge:
                raise
            return f"{first_line(error)}; `florilegium judge train DIR data=...` makes a judge, data.judge=DIR names it"
        return ""

    def judge(self) -> Judge:
        """The classifier of the T2I accuracy: conf.data.judge, else that of the clients' domain of these data."""
        if self._judge is None:
            place = located(self.conf.data.judge or self._default_judge())
            with loading("the judge", place, "data.judge"):
                judge = Judge(place, device_of(self.diffusion.device))
            known = [str(name) for name in self.classes]
            named = not judge.names[0].startswith("LABEL_")
            if len(judge.names) != len(known) or (named and judge.names != known):
                raise AssetError(
                    f"the judge {place} knows {len(judge.names)} classes ({', '.join(judge.names[:3])}, "
                    f"...), the data have {len(known)} ({', '.join(known[:3])}, ...)"
                )
            self._judge = judge
        return self._judge

    def _default_judge(self) -> str:
        private = f"judges/{self.conf.data.name}-private"
        there = (assets.root() / "models" / private).is_dir()
        return private if there else f"judges/{self.conf.data.name}"

    def clip_score(self) -> ClipScore:
        """CLIP for the score, the diversity and, in self-tuning, as the public image encoder."""
        if self._clip is None:
            place = located(self.diffusion.clip)
            with loading("the CLIP model", place, "diffusion.clip", "open_clip_config.json"):
                self._clip = ClipScore(place, device_of(self.diffusion.device))
        return self._clip

    def quality(self) -> Quality:
        """What compares drawn images with real ones, by `evaluation.generic.extractor`. AssetError, ValueError."""
        name, device = self.conf.evaluation.generic.extractor, device_of(self.diffusion.device)
        if name == "inception":
            return of_inception(device)
        if name == "clip":
            return of_clip(self.clip_score())
        place = located(name)
        with loading("the extractor", place, "evaluation.generic.extractor"):
            return of_classifier(Judge(place, device))

    def _hear(self, phase: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(phase=phase, done=done, total=total)


class Narrated:
    """A generator that tells a run's progress what it is doing."""

    def __init__(self, generator: Generator, progress: Callable[..., None]) -> None:
        self._generator, self._progress = generator, progress

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
        """As the generator's; without `progress` the run's hears of it."""
        return self._generator.synthesize(
            prompts,
            seeds,
            guidance,
            progress=progress or (lambda done, total: self._progress(phase="synthesize", done=done, total=total)),
            latents=latents,
            size=size,
        )

    def finetune(self, *parts: Any, **how: Any) -> dict[str, float]:
        """As the generator's, with progress."""
        return self._generator.finetune(
            *parts, **how, progress=lambda done, total: self._progress(phase="tune", done=done, total=total)
        )
