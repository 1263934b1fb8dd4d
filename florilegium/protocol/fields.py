"""Axes of the wire's payloads, and how their fields say what is allowed (florilegium/protocol/payloads.py)."""

from __future__ import annotations

from dataclasses import field
from typing import Any

AXES = {
    "N": "samples",
    "L": "samples of an earlier round",
    "M": "rows of the client's own data",
    "C": "classes",
    "D": "representation width",
    "A": "width of an augmented view's representation (0 or D)",
    "R": "width of a target (0 or D)",
    "P": "anchors of a class",
    "W": "width of a text encoder",
    "Q": "features of a row",
    "I": "width for the images of pairs (0 or D)",
    "T": "width for the texts of pairs (0 or D)",
}
RAW = "raw private data"  # what a payload carries, where it is a person's own


def array(dtype: str, *axes: str, low: float | None = None, high: float | None = None, below: str | None = None) -> Any:
    """A tensor field: its dtype, its axes, and its range (`below` names an axis whose length is an exclusive bound)."""
    return field(metadata={"array": dtype, "axes": axes, "low": low, "high": high, "below": below})


def blobs(axis: str = "N") -> Any:
    """A field of byte strings or texts, one for each along `axis`, or of none."""
    return field(default=(), metadata={"blobs": axis})
