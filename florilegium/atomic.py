"""Files that are whole or absent: written beside the target, flushed to disk, then renamed over it.

Tensors go into one safetensors file with a JSON text in its metadata; nothing is ever pickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the report reads and writes runs without torch
    from torch import Tensor


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace `path` by `data` in one step; on any failure the previous file stays whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save(path: Path | str, tensors: dict[str, Tensor], meta: dict[str, Any] | None = None) -> None:
    """Write `tensors` and the JSON-able `meta` as one safetensors file."""
    from safetensors.torch import save as encode

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # clone: safetensors refuses tensors that share memory (tied weights)
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_bytes(path, encode(whole, metadata={"meta": json.dumps(meta or {})}))


def load(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote: (tensors, meta)."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, json.loads((file.metadata() or {}).get("meta", "{}"))
