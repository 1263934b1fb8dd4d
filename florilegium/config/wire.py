"""Settings of the wire: how rows of numbers, labels and images are written in messages."""

from __future__ import annotations

from florilegium.config.fields import section, setting

VECTORS = ("float32", "float16", "int8")
IMAGES = ("png", "webp", "jpeg")


@section
class WireSettings:
    """How the content of messages is written; the defaults lose nothing (docs/wire.md)."""

    vectors: str = setting(
        "float32",
        "numbers of representations, features and class scores: float32 | float16 | int8, with one scale for each row",
        choices=VECTORS,
    )
    projection: int | None = setting(
        None,
        "values in which a representation of clients.width values is sent: both sides make the same random projection "
        "from the seed, it is not sent; null: as it is",
        low=1,
        high=100_000,
    )
    top: int | None = setting(
        None,
        "k: class scores of a sample that are sent, the highest; the others get one score, so that the rest of the "
        "probability is spread evenly over them; null: all of them",
        low=1,
        high=1_000_000,
    )
    compact: bool = setting(
        False, "true: ids, labels and counts as the smallest whole numbers that hold them, confidences as float16"
    )
    images: str = setting(
        "png", "format of images that the server sends: png | webp | jpeg (jpeg always loses)", choices=IMAGES
    )
    quality: int | None = setting(
        None, "quality of images that may lose detail; null: webp loses nothing, jpeg has 90", low=1, high=100
    )

    def __post_init__(self) -> None:
        if self.images == "png" and self.quality is not None:
            raise ValueError("quality is of webp and jpeg: png loses nothing, leave it null")
