"""Coloured shapes with template texts: a data set made in memory, the same everywhere, for tests and first tries.

Four classes, one shape each; a row is a shape of some colour, place and size on a noisy ground. The public rows are
another domain: a dark ground.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from florilegium import seeds

if TYPE_CHECKING:
    from datasets import Dataset

CLASSES = ("disc", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "orange": (240, 150, 30),
    "violet": (150, 60, 190),
    "black": (20, 20, 20),
}
HINTS = {
    "disc": ("round", "circle", "ball"),
    "square": ("box", "edges", "block"),
    "triangle": ("corner", "roof", "pyramid"),
    "cross": ("plus", "bars", "sum"),
}
SIZES = {"train": 40, "validation": 8, "test": 16}  # rows of each class
PUBLIC = {"train": 24, "validation": 8, "test": 8}
WORDS = (
    *CLASSES,
    *COLOURS,
    *(word for hints in HINTS.values() for word in hints),
    "a",
    "an",
    "A",
    "picture",
    "of",
    "shape",
    ",",
    ".",
    "small",
    "large",
    "also",
    "named",
)


def draw(
    shape: str, colour: tuple[int, int, int], side: int, random: torch.Generator, brightest: float = 245
) -> Tensor:
    """uint8 [3, side, side]."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=random).item()

    axis = torch.arange(side) + 0.5
    y, x = torch.meshgrid(axis - uniform(0.42, 0.58) * side, axis - uniform(0.42, 0.58) * side, indexing="ij")
    r = uniform(0.26, 0.4) * side
    inside = {
        "disc": x * x + y * y <= r * r,
        "square": (x.abs() <= 0.85 * r) & (y.abs() <= 0.85 * r),
        "triangle": (y <= 0.8 * r) & (y + r >= 2 * x.abs()),
        "cross": ((x.abs() <= 0.3 * r) & (y.abs() <= r)) | ((y.abs() <= 0.3 * r) & (x.abs() <= r)),
    }[shape]
    ground = brightest - 20 * torch.rand(3, side, side, generator=random)
    return torch.where(inside, torch.tensor(colour).float()[:, None, None], ground).to(torch.uint8)


def png(image_3SS: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_3SS.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def dataset(split: str, side: int) -> Dataset:
    """One split with the columns of the embedded data sets; ids do not repeat across splits."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageColumn

    first = 1000 * list(SIZES).index(split)
    rows = []
    for part, sizes, start, brightest in (("private", SIZES, first, 245), ("public", PUBLIC, first + 500, 80)):
        random = seeds.generator("toy", split, side, *([part] if part == "public" else []))
        for n in range(sizes[split] * len(CLASSES)):
            label, name = n % len(CLASSES), CLASSES[n % len(CLASSES)]
            colour = list(COLOURS)[int(torch.randint(len(COLOURS), (), generator=random))]
            image = draw(name, COLOURS[colour], side, random, brightest)
            rows.append(
                {
                    "id": start + n,
                    "image": {"bytes": png(image), "path": None},
                    "text": f"{colour} {name}",
                    "tags": list(HINTS[name]),
                    "label": label,
                    "concept": f"{split}-{start - first + n}",
                    "style": colour if part == "private" else "dark",
                    "part": part,
                }
            )
    features = Features(
        {
            "id": Value("int32"),
            "image": ImageColumn(),
            "text": Value("string"),
            "tags": List(Value("string")),
            "label": Value("int32"),
            "concept": Value("string"),
            "style": Value("string"),
            "part": Value("string"),
        }
    )
    return Dataset.from_list(rows, features=features)
