"""Which backend a text-to-image model has, by the class that its directory names; where its files lie; their hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from florilegium import hub
from florilegium.config.diffusion import DiffusionSettings
from florilegium.diffusion.generator import Generator

PARTS = (  # those that features depend on
    *("unet", "transformer", "vae", "scheduler"),
    *(f"{part}{number}" for number in ("", "_2", "_3") for part in ("text_encoder", "tokenizer")),
)
SUFFIXES = (".safetensors", ".bin", ".json", ".txt")


@dataclass(frozen=True)
class Backend:
    """A generator class, and how frozen pipelines of this kind see images and read texts. Named, because each brings
    its libraries."""

    generator: str
    view: str
    classes: tuple[str, ...]  # of pipelines that it opens

    def loaded_generator(self) -> Any:
        return _named(self.generator)

    def loaded_view(self) -> Any:
        return _named(self.view)


_STABLE = "florilegium.diffusion.stable:StableGenerator"
BACKENDS = {
    "stable": Backend(_STABLE, "florilegium.diffusion.stable:StableView", ("StableDiffusionPipeline",)),
    "stable_xl": Backend(_STABLE, "florilegium.diffusion.stable_xl:XLView", ("StableDiffusionXLPipeline",)),
    "stable_flow": Backend(_STABLE, "florilegium.diffusion.stable_flow:FlowView", ("StableDiffusion3Pipeline",)),
    "glide": Backend(
        "florilegium.diffusion.glide.generator:GlideGenerator",
        "florilegium.diffusion.glide.generator:GlideView",
        ("GlidePipeline",),
    ),
}


def _named(name: str) -> Any:
    module, _, found = name.partition(":")
    return getattr(import_module(module), found)


def backend(model: str, name: str = "auto") -> Backend:
    """The backend for `model`, a pipeline directory or hub id. ValueError for a pipeline of another class."""
    if name == "auto":
        cls = pipeline_class(model)
        name = next((known for known, each in BACKENDS.items() if cls in each.classes), "")
        if not name:
            there = ", ".join(cls for each in BACKENDS.values() for cls in each.classes)
            raise ValueError(f"diffusion.model: {model} is a {cls}; there are backends for {there}")
    return BACKENDS[name]


def pipeline_class(model: str) -> str:
    """The class that `model_index.json` names. ValueError where there is no such file, or it cannot be fetched."""
    path = Path(model, "model_index.json")
    if not path.is_file() and not Path(model).is_dir():
        path = hub.fetched(model, "model_index.json", "diffusion.model")
    try:
        return str(json.loads(path.read_text())["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"diffusion.model: {model} has no readable model_index.json, so it is no pipeline") from error


def load(settings: DiffusionSettings, model: str) -> Generator:
    """The backend of `settings` around `model`, a directory or hub id."""
    found = backend(model, settings.backend)
    return found.loaded_generator()(model, settings, found.loaded_view())


def directory(place: str) -> Path:
    """Where the pipeline's files lie; those of a hub id are fetched into the hub's own cache."""
    return Path(place) if Path(place).is_dir() else backend(place).loaded_view().fetched(place)


def weights_hash(folder: Path) -> str:
    """SHA-256 of the pipeline's files; they are read again in this process only where one changed."""
    files = [path for part in PARTS for path in sorted((folder / part).glob("*")) if path.suffix in SUFFIXES]
    return _hashed(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@cache
def _hashed(files: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for name, size, _ in files:
        path = Path(name)
        whole.update(f"{path.parent.name}/{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()
