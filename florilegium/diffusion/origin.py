"""Which weights a pipeline has: where its files lie, and one hash of them all."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SUFFIXES = (".safetensors", ".bin", ".json", ".txt")


def directory(place: str) -> Path:
    """Where the pipeline's files lie; those of a hub id are fetched into the hub's own cache."""
    if Path(place).is_dir():
        return Path(place)
    from florilegium.diffusion.stable import fetched

    return fetched(place)


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
