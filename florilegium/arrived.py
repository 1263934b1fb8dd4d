"""What arrived, checked before it is believed: shape against bytes, dtype, axes, range, finiteness.

Every failure is a `WireError` that names the field. The contract itself is florilegium/wire.py.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_BLOB = 1 << 30  # bytes of encoded images or texts in one message


class WireError(ValueError):
    """A message did not carry what the contract says."""


def figure(name: str, value: Any, low: float = -math.inf) -> float:
    """A finite number, not below `low`."""
    if not isinstance(value, (int, float)) or not np.isfinite(value) or value < low:
        raise WireError(f"metrics[{name}] is {value!r:.40}, not a finite number{f' from {low:g}' if low == 0 else ''}")
    return float(value)


def _read(name: str, a: Any) -> np.ndarray:
    """Decode an array, its declared shape checked against its bytes first (a lying header could claim terabytes)."""
    if a is None:
        raise WireError(f"{name} is missing")
    stream = io.BytesIO(a.data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except Exception as error:  # NumPy parses the header as Python source: a broken one can raise almost anything
        raise WireError(f"{name} is no array: {type(error).__name__}") from error
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(a.data) - stream.tell():
        raise WireError(f"{name} declares {dtype} {shape} but carries {len(a.data)} bytes")
    return np.load(io.BytesIO(a.data), allow_pickle=False)


def tensor(name: str, a: Any) -> Tensor:
    """Any array of finite values."""
    values = _read(name, a)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise WireError(f"{name} has NaN or infinite values")
    return torch.from_numpy(values.copy())


def array(name: str, a: Any, spec: Any, bounds: dict[str, int]) -> Tensor:
    """An array as its field's `spec` wants it: dtype, axes, range."""
    values = _read(name, a)
    if str(values.dtype) != spec["array"]:
        raise WireError(f"{name} has dtype {values.dtype}, expected {spec['array']}")
    if values.ndim != len(spec["axes"]):
        raise WireError(f"{name} has shape {values.shape}, expected axes {' x '.join(spec['axes'])}")
    for axis, length in zip(spec["axes"], values.shape, strict=True):
        if bounds.setdefault(axis, length) != length:
            raise WireError(f"{name} has {length} along {axis}, expected {bounds[axis]}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise WireError(f"{name} has NaN or infinite values")
    high = bounds.get(spec["below"], None) if spec["below"] else None
    if values.size and spec["low"] is not None and values.min() < spec["low"]:
        raise WireError(f"{name} has a value of {values.min()}, below {spec['low']}")
    if values.size and spec["high"] is not None and values.max() > spec["high"]:
        raise WireError(f"{name} has a value of {values.max()}, above {spec['high']}")
    if values.size and high is not None and values.max() >= high:
        raise WireError(f"{name} has a value of {values.max()}, but there are {high} of {spec['below']}")
    return torch.from_numpy(values.copy())


def blobs(f: Any, arrays: dict[str, Any], bounds: dict[str, int]) -> tuple:
    """The N byte strings (or texts) of a field, or none."""
    if f.name not in arrays:
        return ()
    joined = _read(f.name, arrays.pop(f.name))
    lengths = _read(f"{f.name}.lengths", arrays.pop(f"{f.name}.lengths", None))
    if joined.dtype != np.uint8 or lengths.dtype != np.int64 or joined.ndim != 1 or lengths.ndim != 1:
        raise WireError(f"{f.name} should be bytes and their lengths")
    if (lengths < 0).any() or lengths.sum() != joined.size or joined.size > MAX_BLOB:
        raise WireError(f"{f.name} has lengths that do not add up to its {joined.size} bytes")
    if bounds.setdefault("N", len(lengths)) != len(lengths):
        raise WireError(f"{f.name} has {len(lengths)} entries, expected {bounds['N']}")
    ends = np.cumsum(lengths)
    pieces = [joined[end - n:end].tobytes() for end, n in zip(ends, lengths, strict=True)]
    return tuple(p.decode("utf-8") for p in pieces) if f.name == "texts" else tuple(pieces)
