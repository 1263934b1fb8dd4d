"""What arrived, checked before it is believed: shape against bytes, dtype, axes, range, finiteness.

Every failure is a `WireError` that names the field. The contract itself is florilegium/protocol/payloads.py.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from florilegium.protocol import pieces, pixels

MAX_BLOB = 1 << 30  # bytes of encoded images or texts in one message
LARGEST = 1e6  # magnitude of any value of a tensor whose field has no narrower range
LARGEST_FIGURE = 1e12  # and of a figure
LARGEST_COUNT = 1 << 40  # of whole numbers: ids, examples, counters
LONGEST = 256  # characters of a word (architecture, version, name of a figure or tensor)
Read = Callable[[Field, dict[str, Any], Mapping[str, int]], np.ndarray]  # (field, arrays that came, lengths of axes)
NUMBERS = frozenset({"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"})


class WireError(ValueError):
    """A message did not carry what the contract says."""


def figure(name: str, value: Any, low: float = -math.inf) -> float:
    """A finite number, not below `low`."""
    word("metrics", name)
    if not isinstance(value, (int, float)) or not np.isfinite(value) or value < low:
        raise WireError(f"metrics[{name}] is {value!r:.40}, not a finite number{f' from {low:g}' if low == 0 else ''}")
    if abs(value) > LARGEST_FIGURE:
        raise WireError(f"metrics[{name}] is {value:g}, beyond {LARGEST_FIGURE:g}")
    return float(value)


def word(name: str, value: Any) -> str:
    """A short text."""
    if not isinstance(value, str) or len(value) > LONGEST:
        raise WireError(f"{name} has a word of {len(str(value))} characters, at most {LONGEST} may be")
    return value


def count(name: str, value: Any) -> int:
    """A whole number from 0."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_COUNT:
        raise WireError(f"{name} should be a count, got {value!r:.40}")
    return value


def scalar(f: Any, value: Any) -> Any:
    """A field that is no tensor: a count, counts, or one of some words."""
    if str(f.type) == "int":
        return count(f.name, value)
    if str(f.type) == "list[int]":
        if not isinstance(value, list):
            raise WireError(f"{f.name} should be counts, got {value!r:.40}")
        return [count(f.name, entry) for entry in value]
    choices = f.metadata.get("choices")
    if not isinstance(value, str) or (choices and value not in choices):
        raise WireError(f"{f.name} should be {' or '.join(choices) if choices else 'a word'}, got {value!r:.40}")
    return word(f.name, value)


def read_array(name: str, a: Any) -> np.ndarray:
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
    if str(dtype) not in NUMBERS or any(length < 0 for length in shape):
        raise WireError(f"{name} has dtype {dtype}, expected one of numbers")
    return np.load(io.BytesIO(a.data), allow_pickle=False)


def _finite(name: str, values: np.ndarray, most: float = LARGEST) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise WireError(f"{name} has NaN or infinite values")
    largest = LARGEST_COUNT if values.dtype.kind in "iu" else most
    if values.size and values.dtype.kind != "b" and max(-float(values.min()), float(values.max())) > largest:
        raise WireError(f"{name} has a value of {max(values.min(), values.max(), key=abs):g}, beyond {largest:g}")


def tensor(name: str, a: Any) -> Tensor:
    """Any array of finite, not absurd values."""
    word("tensors", name)
    values = read_array(name, a)
    _finite(name, values)
    return torch.from_numpy(values.copy())


def array(name: str, values: np.ndarray, spec: Any, bounds: dict[str, int]) -> Tensor:
    """An array as its field's `spec` wants it: dtype, axes, range."""
    if str(values.dtype) != spec["array"]:
        raise WireError(f"{name} has dtype {values.dtype}, expected {spec['array']}")
    if values.ndim != len(spec["axes"]):
        raise WireError(f"{name} has shape {values.shape}, expected axes {' x '.join(spec['axes'])}")
    for axis, length in zip(spec["axes"], values.shape, strict=True):
        if bounds.setdefault(axis, length) != length:
            raise WireError(f"{name} has {length} along {axis}, expected {bounds[axis]}")
    _finite(name, values, LARGEST if spec["high"] is None else math.inf)
    if spec["unique"] and len(np.unique(values)) != len(values):
        raise WireError(f"{name} name one id twice")
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
    data = read_array(f.name, arrays.pop(f.name))
    lengths = read_array(f"{f.name}.lengths", arrays.pop(f"{f.name}.lengths", None))
    if data.size > MAX_BLOB:
        raise WireError(f"{f.name} has {data.size} bytes, more than {MAX_BLOB}")
    try:
        found = pieces.unpack(data, lengths)
    except pieces.PiecesError as error:
        raise WireError(f"{f.name} {error}") from error
    axis = f.metadata["blobs"]
    if bounds.setdefault(axis, len(found)) != len(found):
        raise WireError(f"{f.name} has {len(found)} entries, expected {bounds[axis]}")
    try:
        return tuple(p.decode("utf-8") for p in found) if f.name == "texts" else pixels.check_images(found)
    except ValueError as error:  # UnicodeDecodeError is one
        raise WireError(f"{f.name} cannot be read: {error}") from error


def values(cls: Any, record: Any, kinds: Mapping[str, Any], bounds: dict[str, int], read: Read) -> dict[str, Any]:
    """The values of the fields of a payload class; `kinds` says what each part of a record must be. WireError.

    `read` makes the array of a field of those that came, and takes these away (florilegium/protocol/forms.py).
    """
    names = {f.name for f in fields(cls)}
    allowed = {"header", "arrays", "scalars", "privacy", "budget"} | (names & {"tensors", "metrics"})
    for name, part in record.items():
        if name not in allowed or not isinstance(part, kinds[name]):
            raise WireError(f"{name:.40} is not a record of {cls.__name__}")
    arrays = dict(record["arrays"].items()) if "arrays" in record else {}
    scalars = dict(record["scalars"]) if "scalars" in record else {}
    found: dict[str, Any] = {}
    for f in fields(cls):
        if f.name in ("tensors", "metrics") and f.name not in record:
            raise WireError(f"{f.name} is missing")
        if "array" in f.metadata:
            found[f.name] = array(f.name, read(f, arrays, bounds), f.metadata, bounds)
        elif "blobs" in f.metadata:
            found[f.name] = blobs(f, arrays, bounds)
        elif f.name in ("tensors", "metrics"):
            found[f.name] = {
                k: tensor(f"tensors[{k}]", a) if f.name == "tensors" else figure(k, a)
                for k, a in record[f.name].items()
            }
        else:
            found[f.name] = scalar(f, scalars.pop(f.name, None))
    if extra := [*arrays, *scalars]:
        raise WireError(f"{extra[0]:.40} is not a field of {cls.__name__}")
    return found
