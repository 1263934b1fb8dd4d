"""Which backend a text-to-image model has, by the class that its directory names; where its files lie; their hash."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from florilegium.config.diffusion import DiffusionSettings
from florilegium.diffusion.generator import Generator

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")  # those that features depend on
SUFFIXES = (".safetensors", ".bin", ".json", ".txt")
#: backend -> (generator class, the pipeline classes it opens). Named, because each brings its libraries.
BACKENDS = {
    "stable": ("florilegium.diffusion.stable:StableGenerator", ("StableDiffusionPipeline",)),
    "glide": ("florilegium.diffusion.glide.generator:GlideGenerator", ("GlidePipeline",)),
}


def backend(model: str, name: str = "auto") -> Any:
    """The generator class for `model`, a pipeline directory or hub id. ValueError for a pipeline of another class."""
    if name == "auto":
        cls = pipeline_class(model)
        name = next((known for known, (_, classes) in BACKENDS.items() if cls in classes), "")
        if not name:
            there = ", ".join(each for _, classes in BACKENDS.values() for each in classes)
            raise ValueError(f"diffusion.model: {model} is a {cls}; there are backends for {there}")
    module, _, found = BACKENDS[name][0].partition(":")
    return getattr(import_module(module), found)


def pipeline_class(model: str) -> str:
    """The class that `model_index.json` names. ValueError where there is no such file."""
    path = Path(model, "model_index.json")
    if not path.is_file() and not Path(model).is_dir():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(model, "model_index.json"))
    try:
        return str(json.loads(path.read_text())["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"diffusion.model: {model} has no readable model_index.json, so it is no pipeline") from error


def load(settings: DiffusionSettings, model: str) -> Generator:
    """The backend of `settings` around `model`, a directory or hub id."""
    return backend(model, settings.backend)(model, settings)


def directory(place: str) -> Path:
    """Where the pipeline's files lie; those of a hub id are fetched into the hub's own cache."""
    return Path(place) if Path(place).is_dir() else backend(place).view.fetched(place)


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
