"""Files that are whole or absent: written beside the target, flushed to disk, then renamed over it.

A write that fails says which file could not be written, and what was there stays as it was. Tensors go into one
safetensors file with a JSON text in its metadata; nothing is ever pickled.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the report reads and writes runs without torch
    from torch import Tensor


class WriteError(OSError):
    """A file could not be written; one line with its path and the system's reason."""

    def __init__(self, path: Path, why: OSError) -> None:
        super().__init__(why.errno, why.strerror, str(path))
        self.path = path

    def __str__(self) -> str:
        kept = "; what was there before is whole" if self.path.exists() else ""
        return f"cannot write {self.path} ({self.strerror}){kept}"


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace `path` by `data` in one step; on any failure the previous file stays whole. WriteError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as why:
        temporary.unlink(missing_ok=True)
        if isinstance(why, OSError):
            raise WriteError(path, why) from why
        raise


def write_json(path: Path | str, value: Any) -> None:
    """Replace `path` by `value` as JSON. WriteError."""
    write_bytes(path, (json.dumps(value) + "\n").encode())


def append_bytes(path: Path | str, data: bytes) -> None:
    """Let `path` grow by all of `data`, flushed to disk, or by nothing. WriteError."""
    path = Path(path)
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab", buffering=0) as file:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
    except OSError as why:
        if path.exists():
            os.truncate(path, before)
        raise WriteError(path, why) from why


def sweep(folder: Path | str, age: float = 0.0) -> None:
    """Remove the temporary files below `folder` that killed writers left at least `age` seconds ago."""
    for left in Path(folder).rglob(".*.tmp"):
        try:
            if time.time() - left.stat().st_mtime >= age:
                left.unlink()
        except FileNotFoundError:  # its writer is alive, and done
            continue


def save(path: Path | str, tensors: dict[str, Tensor], meta: dict[str, Any] | None = None) -> None:
    """Write `tensors` and the JSON-able `meta` as one safetensors file. WriteError."""
    from safetensors.torch import save as encode

    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise WriteError(Path(path), why) from why
    # clone: safetensors refuses tensors that share memory (tied weights)
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_bytes(path, encode(whole, metadata={"meta": json.dumps(meta or {})}))


def load(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote: (tensors, meta)."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, json.loads((file.metadata() or {}).get("meta", "{}"))
