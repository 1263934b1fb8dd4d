"""How a field of a payload says what may be in it: dtype, axes, range, and what it holds.

Every field of every payload (florilegium/protocol/payloads.py) is made by one of the functions below, and each of them
asks what the field `holds`. Noise, defences, attacks and the privacy listing read this one declaration, so a payload
that nobody thought of is refused and not let through (florilegium/privacy/coverage.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any

AXES = {
    "N": "samples",
    "L": "samples of an earlier round",
    "M": "rows of the client's own data",
    "C": "classes",
    "G": "classes with a prototype",
    "D": "representation width",
    "A": "width of an augmented view's representation (0 or D)",
    "R": "width of a target (0 or D)",
    "P": "anchors of a class",
    "W": "width of a text encoder",
    "Q": "features of a row",
    "V": "values of a generator's latent vector",
    "J": "images that the server looked at",
    "H": "images that the shared projection was fitted on",
    "I": "width for the images of pairs (0 or D)",
    "T": "width for the texts of pairs (0 or D)",
}

PUBLIC, COUNT, FIGURE, LABEL = "public", "count", "figure", "label"
VECTOR, MODEL, DERIVED, RAW = "vector", "model", "derived", "raw"
#: what a field may hold -> in words
HOLDS = {
    PUBLIC: "nothing of private data",
    COUNT: "counts of the client's rows, and which classes they have",
    FIGURE: "figures that a client measured, such as losses and accuracies",
    LABEL: "classes that a private model decided for, and how sure it is",
    VECTOR: "rows of numbers that a model gives for samples: representations, features, class scores",
    MODEL: "weights of a model",
    DERIVED: "something else that was made from private data",
    RAW: "rows of private data as they are",
}


class DeclarationError(TypeError):
    """A payload, or one of its fields, does not say what it is; one line."""


def plain(
    holds: str,
    *,
    default: Any = MISSING,
    factory: Callable[[], Any] | None = None,
    choices: Sequence[str] = (),
    **more: Any,
) -> Any:
    """A field that holds one of HOLDS. A word may be limited to `choices`. DeclarationError for another `holds`."""
    if holds not in HOLDS:
        raise DeclarationError(f"a field holds one of {', '.join(HOLDS)}, not {holds!r}")
    metadata = {"holds": holds, "choices": tuple(choices), **more}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def array(
    dtype: str,
    *axes: str,
    holds: str,
    low: float | None = None,
    high: float | None = None,
    below: str | None = None,
    unique: bool = False,
    unit: bool = False,
) -> Any:
    """A tensor field: its dtype, its axes, and its range.

    `below` names an axis whose length is an exclusive bound. `unique`: no value twice. `unit`: each row is a unit
    vector, or several of them side by side, each as wide as a representation.

    DeclarationError for vectors that are not rows of float32.
    """
    if holds == VECTOR and (dtype != "float32" or len(axes) < 2):
        raise DeclarationError(f"vectors are rows of float32, not {dtype} over {' x '.join(axes) or 'nothing'}")
    return plain(holds, array=dtype, axes=axes, low=low, high=high, below=below, unique=unique, unit=unit)


def sample_ids(axis: str = "N") -> Any:
    """Names of samples along `axis`, each once."""
    return array("int64", axis, holds=PUBLIC, low=0, unique=True)


def class_labels(axis: str = "N", holds: str = LABEL) -> Any:
    """A class for each entry of `axis`."""
    return array("int64", axis, holds=holds, low=0, below="C")


def vectors(*axes: str, low: float | None = None, high: float | None = None, unit: bool = False) -> Any:
    """Rows of numbers that the Gaussian mechanism and the defences cover: float32, axes of samples, then of values."""
    return array("float32", *axes, holds=VECTOR, low=low, high=high, unit=unit)


def blobs(axis: str = "N", holds: str = PUBLIC) -> Any:
    """A field of byte strings or texts, one for each along `axis`, or of none."""
    return plain(holds, default=(), blobs=axis)


def holds(payload: Any, f: Field) -> str:
    """What a field of a payload (a class, or one of it) holds. DeclarationError where it does not say so."""
    found = f.metadata.get("holds")
    if found not in HOLDS:
        name = payload.__name__ if isinstance(payload, type) else type(payload).__name__
        raise DeclarationError(f"{name}.{f.name} does not say what it holds (florilegium/protocol/fields.py)")
    return str(found)


def holding(payload: Any, *kinds: str) -> list[Field]:
    """The fields of a payload that hold one of `kinds`, in order. DeclarationError for a field that does not say."""
    return [f for f in fields(payload) if holds(payload, f) in kinds]


def names_classes(f: Field) -> bool:
    """Whether the values of a field are classes."""
    return f.metadata.get("below") == "C"


def scores_classes(f: Field) -> bool:
    """Whether the last axis of a field is one value for each class."""
    return (f.metadata.get("axes") or ("",))[-1] == "C"
