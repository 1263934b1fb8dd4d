"""The forms in which arrays of a payload are written: bits of a number, projected rows, the highest class scores.

Both sides take the form from the settings of the run. So a message does not name its form, and one in another form is
refused. The sender writes a field as one to three arrays (`Form.write`). The receiver makes of them the array that the
field declares (`Form.read`), which then passes the checks of florilegium/protocol/validation.py like any array. A form
changes the fields that hold vectors and, with `compact`, arrays of one axis. Mechanisms of privacy act before it.

Axes: N rows, D width of a representation, P values of its projection, C classes, k classes of the highest scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from florilegium import seeds
from florilegium.config.wire import WireSettings
from florilegium.protocol import pixels
from florilegium.protocol.fields import VECTOR, scores_classes
from florilegium.protocol.validation import WireError, read_array

WHOLE = ("uint8", "int16", "int32", "int64")  # whole numbers of `compact`, the smallest first
BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of a number of a row
MOST = {"float16": 65504.0, "int8": 127}  # largest number of a type
SCALE, TOP = "scale", "top"  # arrays beside a field's own, as "<field>.scale"


@dataclass(frozen=True)
class Form:
    """How arrays and images of a run's messages are written. `width` is that of a representation, `seed` the run's."""

    wire: WireSettings
    width: int = 0
    seed: int = 0

    @classmethod
    def of(cls, conf: Any) -> Form:
        """The form that settings of a run ask for; without settings the exact one."""
        wire = getattr(conf, "wire", None)
        return EXACT if wire is None else cls(wire, conf.clients.width, conf.seed)

    def top(self, f: Field, classes: int) -> int:
        """How many class scores of each row of a field are sent; 0: all, or the field has none."""
        k = self.wire.top or 0
        return k if k < classes and is_vector(f) and scores_classes(f) else 0

    def projects(self, f: Field) -> bool:
        """Whether rows of a field are projected: those of representations are."""
        return self.wire.projection is not None and is_vector(f) and not scores_classes(f)

    # -- arrays ------------------------------------------------------------------------------------------------------

    def write(self, f: Field, value: Tensor) -> dict[str, np.ndarray]:
        """The arrays of a field, by their names in a message. WireError for rows of a width that is not projected."""
        x = value.detach().cpu()
        if not is_vector(f):
            values = np.ascontiguousarray(x.numpy())
            return {f.name: smallest(values) if self.wire.compact and values.ndim == 1 else values}
        beside = {}
        if k := self.top(f, x.shape[-1]):
            index_type = index_of(x.shape[-1])
            x, top_Nk = highest(x, k)
            beside[f"{f.name}.{TOP}"] = top_Nk.numpy().astype(index_type)
        elif self.projects(f) and x.shape[-1]:
            x = self._pieces(f, x, self.width) @ projection(self.width, self.wire.projection or 0, self.seed).T
            x = x.flatten(-2)
        return written(f.name, x, self.wire.vectors) | beside

    def read(self, f: Field, arrays: dict[str, Any], bounds: Mapping[str, int]) -> np.ndarray:
        """The array that a field declares, of what came; its parts leave `arrays`. WireError names a wrong part.

        `bounds` must give the number of classes C where only the highest scores are sent.
        """
        if not is_vector(f):
            values = read_array(f.name, arrays.pop(f.name, None))
            return declared(values, f.metadata["array"]) if self.wire.compact and values.ndim == 1 else values
        x = rows(f.name, arrays, self.wire.vectors)
        if self.wire.top is not None and scores_classes(f):
            return self._spread(f, x, arrays, bounds.get("C"))
        if self.projects(f) and x.size:
            p = self.wire.projection or 0
            pieces = self._pieces(f, torch.from_numpy(x), p) @ projection(self.width, p, self.seed)
            x = pieces.flatten(-2).numpy()
        return self._directions(x) if f.metadata.get("unit") and self.wire != EXACT.wire else x

    def _spread(self, f: Field, x: np.ndarray, arrays: dict[str, Any], classes: int | None) -> np.ndarray:
        if classes is None:
            raise WireError(f"{f.name} are the highest class scores, and the receiver knows no number of classes")
        if not (k := self.top(f, classes)):
            return x
        name = f"{f.name}.{TOP}"
        top_Nk = read_array(name, arrays.pop(name, None))
        if x.ndim != 2 or x.shape[1] != k + 1 or top_Nk.shape != (len(x), k):
            raise WireError(f"{f.name} should have {k + 1} scores a row, and {name} {k}: got {x.shape}, {top_Nk.shape}")
        if str(top_Nk.dtype) != index_of(classes):
            raise WireError(f"{name} has dtype {top_Nk.dtype}, expected {index_of(classes)}")
        top = torch.from_numpy(top_Nk.astype(np.int64))
        if top.numel() and (top.min() < 0 or top.max() >= classes):
            raise WireError(f"{name} names a class outside the {classes} there are")
        if (top.sort(-1).values.diff(dim=-1) == 0).any():
            raise WireError(f"{name} names one class twice in a row")
        return spread(torch.from_numpy(x), top, classes).numpy()

    def _directions(self, x: np.ndarray) -> np.ndarray:
        """Rows of unit vectors, each of length one again: rounding and projecting change the length."""
        whole = not self.width or x.shape[-1] % self.width
        x_NmD = torch.from_numpy(x).unflatten(-1, (1 if whole else -1, x.shape[-1] if whole else self.width))
        return normalize(x_NmD, dim=-1).flatten(-2).numpy()

    def _pieces(self, f: Field, x: Tensor, width: int) -> Tensor:
        """[N, m * width] -> [N, m, width]: a row may be several representations side by side. WireError."""
        if x.shape[-1] % width:
            raise WireError(f"{f.name} is {x.shape[-1]} wide, with wire.projection a multiple of {width} is expected")
        return x.unflatten(-1, (-1, width))

    # -- images ------------------------------------------------------------------------------------------------------

    def images(self, images_NCHW: Tensor) -> tuple[bytes, ...]:
        """uint8 [N, 3, H, W] -> N encoded images."""
        return pixels.encode(images_NCHW, self.wire.images, self.wire.quality)

    # -- sizes -------------------------------------------------------------------------------------------------------

    def row_bytes(self, width: int, scores: bool = False) -> int:
        """Bytes of a row of `width` numbers: a representation, or `scores` of as many classes."""
        k = self.wire.top or 0
        index = 0
        if scores and 0 < k < width:
            index, width = k * np.dtype(index_of(width)).itemsize, k + 1
        elif not scores and self.wire.projection is not None and self.width:
            width = width // self.width * self.wire.projection
        scale = 4 if self.wire.vectors == "int8" and width else 0
        return width * BYTES[self.wire.vectors] + scale + index

    def array_bytes(self, f: Field, lengths: Sequence[int]) -> int:
        """Bytes of an array of these lengths, at most; headers are not counted."""
        if is_vector(f):
            return math.prod(lengths[:-1]) * self.row_bytes(lengths[-1], scores_classes(f))
        item = np.dtype(f.metadata["array"]).itemsize
        if self.wire.compact and len(lengths) == 1:
            item = 2 if f.metadata["array"] == "float32" else item
        return math.prod(lengths) * item

    def image_words(self) -> str:
        """What a form that is not the exact one changes of images, for the listing."""
        quality = "" if self.wire.quality is None else f" of quality {self.wire.quality}"
        return "" if self.wire.images == EXACT.wire.images else f", {self.wire.images}{quality}"

    def in_words(self, f: Field, width: int | None) -> str:
        """What of a field's array leaves, for the listing; `width` is the length of its last axis."""
        if not is_vector(f):
            small = self.wire.compact and len(f.metadata["axes"]) == 1
            return f"{f.metadata['array']} in the smallest type that holds it" if small else str(f.metadata["array"])
        words = self.wire.vectors + (", one scale a row" if self.wire.vectors == "int8" else "")
        if width is not None and (k := self.top(f, width)):
            return f"{words}: the {k} highest of {width}, and one for the others"
        return f"{words}, projected to {self.wire.projection} values" if self.projects(f) else words


EXACT = Form(WireSettings())


def is_vector(f: Field) -> bool:
    """Whether a field holds rows of numbers that a form changes."""
    return f.metadata.get("holds") == VECTOR and "array" in f.metadata


# -- rows of numbers ---------------------------------------------------------------------------------------------------


def written(name: str, x_ND: Tensor, kind: str) -> dict[str, np.ndarray]:
    """Rows as numbers of `kind`. float16 cuts what lies beyond 65,504. int8 are numbers from -127 to 127 and a scale a
    row, its largest magnitude over 127: a number is off by half a scale at most."""
    if kind == "float32":
        return {name: np.ascontiguousarray(x_ND.numpy())}
    if kind == "float16":
        return {name: x_ND.clamp(-MOST[kind], MOST[kind]).half().numpy()}
    most_N = x_ND.abs().amax(-1) if x_ND.shape[-1] else x_ND.new_zeros(x_ND.shape[:-1])
    scale_N = most_N / MOST[kind]
    scale_N = torch.where(scale_N * MOST[kind] > most_N, scale_N.nextafter(torch.zeros(())), scale_N)
    whole_ND = (x_ND / scale_N.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round()
    whole_ND = whole_ND.clamp(-MOST[kind], MOST[kind]).to(torch.int8)
    return {name: whole_ND.numpy(), f"{name}.{SCALE}": scale_N.numpy()}


def rows(name: str, arrays: dict[str, Any], kind: str) -> np.ndarray:
    """float32 rows of what `written` gave; they leave `arrays`. WireError."""
    values = read_array(name, arrays.pop(name, None))
    if str(values.dtype) != kind:
        raise WireError(f"{name} has dtype {values.dtype}, expected {kind}")
    if kind != "int8":
        return values.astype(np.float32, copy=False)
    part = f"{name}.{SCALE}"
    scale_N = read_array(part, arrays.pop(part, None))
    if str(scale_N.dtype) != "float32" or scale_N.shape != values.shape[:-1]:
        raise WireError(f"{part} should be one float32 for each row, got {scale_N.dtype} {scale_N.shape}")
    if not np.isfinite(scale_N).all() or (scale_N < 0).any():
        raise WireError(f"{part} has values that are no finite numbers from 0")
    with np.errstate(over="ignore"):  # what overflows is refused with the values
        return values.astype(np.float32) * scale_N[..., None]


def smallest(values: np.ndarray) -> np.ndarray:
    """Whole numbers as the smallest type that holds them, fractions as float16."""
    if values.dtype.kind == "f":
        return np.clip(values, -MOST["float16"], MOST["float16"]).astype(np.float16)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    return values.astype(next(t for t in WHOLE if np.iinfo(t).min <= low and high <= np.iinfo(t).max))


def declared(values: np.ndarray, kind: str) -> np.ndarray:
    """Undo `smallest` for a field of this type; other types are left for the checks to refuse."""
    small = WHOLE if kind == "int64" else ("float16",)
    return values.astype(kind) if str(values.dtype) in small else values


# -- the highest class scores ------------------------------------------------------------------------------------------


def index_of(classes: int) -> str:
    """The type in which a class is named."""
    return next(t for t in WHOLE if classes - 1 <= np.iinfo(t).max)


def highest(x_NC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """([N, k + 1], [N, k]): the k highest scores, then one for each of the others; and the classes of the k.

    The one score is log(mean of exp) of the others. So the softmax of the k stays as it is, and what is left of the
    probability is spread evenly.
    """
    order_NC = x_NC.argsort(dim=-1, descending=True, stable=True)
    sorted_NC = x_NC.gather(-1, order_NC)
    others = sorted_NC[:, k:]
    rest_N = others.logsumexp(-1) - math.log(others.shape[-1])
    rest_N = rest_N.clamp(others[:, -1], others[:, 0])  # rounding must not leave the range of the scores
    return torch.cat([sorted_NC[:, :k], rest_N[:, None]], -1), order_NC[:, :k]


def spread(x: Tensor, top_Nk: Tensor, classes: int) -> Tensor:
    """Undo `highest`: [N, C], with the one score for every class that is not named."""
    return x[:, -1:].expand(-1, classes).scatter(-1, top_Nk, x[:, :-1])


# -- the projection ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def projection(width: int, values: int, seed: int) -> Tensor:
    """[P, D]: orthonormal rows, drawn from the seed alike on every machine.

    x -> x R^T R keeps what lies in a random subspace: cosines are kept on average, lengths shrink by sqrt(P / D)
    (Johnson and Lindenstrauss 1984). Applied twice it changes nothing more.
    """
    drawn_DP = torch.randn(width, values, generator=seeds.generator(seed, "wire", width, values), dtype=torch.float64)
    q_DP, r_PP = torch.linalg.qr(drawn_DP)
    return (q_DP * r_PP.diagonal().sign()).T.float().contiguous()
